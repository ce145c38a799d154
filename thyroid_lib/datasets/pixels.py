"""Opening what a row of a manifest names: its frame, and its mask in the frame's own pixels."""

import json
import os
from collections.abc import Mapping

import cv2
import numpy as np
import pandas as pd

from thyroid_lib import frames
from thyroid_lib.datasets import stanford
from thyroid_lib.datasets.contract import is_dicom, split_frame

FAR = 1e6  # px: no corner of an outline lies farther out


def load_frame(row) -> np.ndarray:
    """Opens one frame.

    Args:
        row: a manifest row (Series, mapping or named tuple with `path`), or a path. "FILE#7" is frame 7 of a
            clip in a DICOM or HDF5 file.

    Returns:
        uint8 (H, W), 0 black. A DICOM frame comes blanked outside its ultrasound region, so that no name
        printed beside the sector goes further.

    Raises:
        FrameError: why the file is not a usable grey frame; the path is never named.
    """
    return open_frame(row).gray


def open_frame(row) -> frames.Frame:
    """Like `load_frame`, with the warnings of the decoder: `.gray` uint8 (H, W) and `.warnings`."""
    path = str(row if isinstance(row, (str, os.PathLike)) else _get(row, "path"))
    file, number = split_frame(path)
    if file.endswith((".h5", ".hdf5")):
        return frames.read(stanford.load(file, number, "image"))
    if is_dicom(file):
        from thyroid_lib.datasets import dicom_frames  # pydicom takes its time

        return dicom_frames.load(file, number)
    return frames.read(path)


def load_mask(row, shape: tuple[int, int]) -> np.ndarray | None:
    """Opens the nodule (or gland) mask of a row, in the frame's own pixels.

    Args:
        row: a manifest row. Its `mask` is a path, or a JSON list of paths (joined) and of polygons
            ([[x, y], ...] in px of the frame, filled), or empty.
        shape: (H, W) of the frame.

    Returns:
        bool (H, W), or None where the row has no mask.

    Raises:
        FrameError: the mask file cannot be read, or its size is not the frame's.
    """
    value = _get(row, "mask", "")
    if not isinstance(value, str) or not value:
        return None
    try:
        parts = json.loads(value) if value.startswith("[") else [value]
    except (ValueError, RecursionError):
        raise frames.FrameError("its outline is no JSON", "mask_outline") from None
    mask = np.zeros(shape, np.uint8)
    for part in parts:
        if isinstance(part, str):
            found = _mask_file(part)
            if found.shape != tuple(shape):
                raise frames.FrameError(
                    f"mask of another size: {found.shape[1]} x {found.shape[0]} px came, the frame has "
                    f"{shape[1]} x {shape[0]}; save the mask at the frame's size",
                    "mask_size",
                )
            mask |= found
        else:
            cv2.fillPoly(mask, [_outline(part)], 1)
    return mask.astype(bool)


def _outline(corners) -> np.ndarray:
    try:
        points = np.asarray(corners, np.float64)
    except (ValueError, TypeError, OverflowError):
        points = np.empty(0)
    if points.ndim != 2 or points.shape[1] != 2 or not (np.abs(points) < FAR).all():
        raise frames.FrameError(
            "its outline is no list of corners: [[x, y], ...] in px of the frame is expected", "mask_outline"
        )
    return points.round().astype(np.int32)


def _mask_file(path: str) -> np.ndarray:
    file, number = split_frame(path)
    if file.endswith((".h5", ".hdf5")):
        return (stanford.load(file, number, "mask") > 0).astype(np.uint8)
    gray = frames.read(path, check=False).gray
    return (gray > gray.max() / 2).astype(np.uint8)  # 0/1 as well as 0/255, and JPEG's rounding


def _get(row, name: str, default=None):
    if isinstance(row, (Mapping, pd.Series)):
        return row.get(name, default)
    return getattr(row, name, default)
