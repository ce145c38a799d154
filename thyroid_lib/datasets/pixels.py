"""Opening what a row of a manifest names: its frame, and its mask in the frame's own pixels."""

import contextlib
import json
import os

import cv2
import numpy as np

from thyroid_lib import frames
from thyroid_lib.datasets import stanford
from thyroid_lib.datasets.contract import is_dicom

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
    path = str(row if isinstance(row, (str, os.PathLike)) else _cell(row, "path"))
    file, number = _split(path)
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
    value = _cell(row, "mask")
    if not isinstance(value, str) or not value:
        return None
    try:
        parts = json.loads(value) if value.startswith("[") else [value]
    except (ValueError, RecursionError):
        raise frames.FrameError("its outline is no JSON", "mask_outline") from None
    mask = np.zeros(shape, np.uint8)
    for part in parts:
        if not isinstance(part, str):
            cv2.fillPoly(mask, [_outline(part)], 1)
            continue
        found = _mask_file(part)
        if found.shape != tuple(shape):
            came, frame = (f"{width} x {height}" for height, width in (found.shape, shape))
            reason = f"mask of another size: {came} px came, the frame has {frame}; save the mask at the frame's size"
            raise frames.FrameError(reason, "mask_size")
        mask |= found
    return mask.astype(bool)


def _outline(corners) -> np.ndarray:
    with contextlib.suppress(ValueError, TypeError, OverflowError):
        points = np.asarray(corners, np.float64)
        if points.ndim == 2 and points.shape[1] == 2 and (np.abs(points) < FAR).all():
            return points.round().astype(np.int32)
    reason = "its outline is no list of corners: [[x, y], ...] in px of the frame is expected"
    raise frames.FrameError(reason, "mask_outline")


def _mask_file(path: str) -> np.ndarray:
    file, number = _split(path)
    hdf5 = file.endswith((".h5", ".hdf5"))
    gray = stanford.load(file, number, "mask") if hdf5 else frames.read(path, check=False).gray
    limit = 0 if hdf5 else gray.max() / 2  # 0/1 as well as 0/255, and JPEG's rounding
    return (gray > limit).astype(np.uint8)


def _split(path: str) -> tuple[str, int]:
    """ "clip.dcm#7" -> ("clip.dcm", 7); a path without a frame number gives frame 0."""
    file, mark, number = path.rpartition("#")
    return (file, int(number)) if mark and number.isdecimal() and not os.path.exists(path) else (path, 0)


def _cell(row, name: str):
    """A cell of a Series, mapping or named tuple; None where there is none."""
    return row.get(name) if hasattr(row, "get") else getattr(row, name, None)
