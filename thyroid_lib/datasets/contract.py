"""What every reader shares: how a manifest is put together, and how its frames and masks are opened."""

import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import cv2
import numpy as np
import pandas as pd

from thyroid_lib import frames

COLUMNS = ["image", "path", "label", "patient", "group", "dataset"]
PRIVATE = ["path", "mask"]  # hold absolute paths of this machine
TWO = {"benign": ("benign", "良性"), "malignant": ("malignant", "恶性")}
"""Names of the two classes that most public sets have."""
NO_PATIENTS = "no patient identifiers in this set: each frame counts as a patient of its own"
SYSTEM_FILES = {"thumbs.db", "desktop.ini", "ehthumbs.db"}
SYSTEM = "a system or hidden file, not an image"
OUTSIDE = re.compile(r"[/\\~]|\w:[/\\]|(.*[/\\])?\.\.([/\\]|$)")  # absolute, or up and out of the folder
FAR = 1e6  # px: no corner of an outline lies farther out


class DatasetError(ValueError):
    """A data set that cannot be read as asked: what was expected, what came, what to do."""


class Listing(pd.DataFrame):
    """A table that may lie in another table's attrs: pandas compares attrs with ==, so this gives a bool."""

    @property
    def _constructor(self):
        return Listing

    def __eq__(self, other):
        return isinstance(other, pd.DataFrame) and self.equals(other)

    __hash__ = None


def table(
    rows: Iterable[Mapping],
    *,
    dataset: str,
    title: str,
    classes: Sequence[str],
    names: Mapping[str, tuple[str, str]] | None = None,
    excluded: Iterable[tuple[str, str]] = (),
    notes: Iterable[tuple[str, str]] = (),
    simulated: bool = False,
) -> pd.DataFrame:
    """Puts a manifest together.

    Args:
        rows: mappings with at least `image`, `path`, `label` and `patient`; `group` is the patient and
            `dataset` the argument where a row does not say otherwise.
        classes: class keys in the order of the network's outputs.
        names: class key -> (English, Chinese); the key itself where absent.
        excluded: (image, reason) of every file that was found and not used.
        notes: (image, note) of what a reader should know of a used file; image "" for the whole set.

    Returns:
        The manifest, sorted by image in natural order, with its attrs.
    """
    data = pd.DataFrame(list(rows))
    for column in COLUMNS:
        if column not in data:
            data[column] = {"dataset": dataset, "group": data.get("patient")}.get(column, "")
    for column in COLUMNS:
        data[column] = data[column].fillna("").astype(str)
    data["group"] = data["group"].where(data["group"] != "", data["patient"])
    data = data[COLUMNS + [c for c in data if c not in COLUMNS]]
    data = data.sort_values("image", key=lambda column: column.map(natural)).reset_index(drop=True)
    data.attrs = {
        "classes": list(classes),
        "names": {key: tuple((names or {}).get(key, (key, key))) for key in classes},
        "simulated": simulated,
        "title": title,
        "excluded": Listing(list(excluded), columns=["image", "reason"]),
        "notes": Listing(list(notes), columns=["image", "note"]),
    }
    return data


def public(manifest: pd.DataFrame) -> pd.DataFrame:
    """The manifest without the columns that hold paths of this machine: fit to be saved in a run."""
    return manifest.drop(columns=[c for c in PRIVATE if c in manifest])


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
        from thyroid_lib.datasets import stanford

        return frames.read(stanford.load(file, number, "image"))
    if is_dicom(file):
        from thyroid_lib.datasets import dicom_frames

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
        from thyroid_lib.datasets import stanford

        return (stanford.load(file, number, "mask") > 0).astype(np.uint8)
    gray = frames.read(path, check=False).gray
    return (gray > gray.max() / 2).astype(np.uint8)  # 0/1 as well as 0/255, and JPEG's rounding


def split_frame(path: str) -> tuple[str, int]:
    """ "clip.dcm#7" -> ("clip.dcm", 7); a path without a frame number gives frame 0."""
    file, mark, number = path.rpartition("#")
    if mark and number.isdigit() and not os.path.exists(path):
        return file, int(number)
    return path, 0


def is_dicom(path: str) -> bool:
    """Whether a file is DICOM: by suffix, or by its magic bytes where the suffix names no image format."""
    suffix = Path(path).suffix.lower()
    if suffix in (".dcm", ".dicom"):
        return True
    if suffix in frames.SUFFIXES or not os.path.isfile(path):
        return False
    try:
        with open(path, "rb") as file:
            return file.read(132)[128:] == b"DICM"
    except OSError:
        return False


def files(root: Path) -> Iterator[tuple[str, Path, str]]:
    """Every file below a folder, in natural order, links to folders not followed.

    Yields:
        (path relative to root in POSIX form, absolute path, reason why it is no image or "").
    """
    found = []
    for folder, folders, names in os.walk(root):
        linked = [name for name in folders if os.path.islink(os.path.join(folder, name))]
        found += [(Path(folder, name), "a link to a folder, not followed") for name in linked]
        found += [(Path(folder, name), "") for name in names]
    named = [(path.relative_to(root).as_posix(), path, reason) for path, reason in found]
    for name, path, reason in sorted(named, key=lambda item: natural(item[0])):
        hidden = any(part.startswith(".") or part == "__MACOSX" for part in name.split("/"))
        yield name, path, reason or (SYSTEM if hidden else not_an_image(path))


def frames_and_masks(root: Path) -> tuple[list, dict[str, list]]:
    """Parts the files below a folder into frames and the masks that lie beside them.

    Returns:
        The frames as `files` yields them, and {frame without suffix: [(image, path) of its masks]} from names
        such as ``a_mask.png``, ``a_mask_1.png``.
    """
    frame_files, masks = [], {}
    for image, path, reason in files(root):
        stem = re.fullmatch(r"(.+)[_-]mask(_\d+)?", stem_of(image), re.IGNORECASE)
        if stem and not reason:
            masks.setdefault(stem[1], []).append((image, str(path)))
        else:
            frame_files.append((image, path, reason))
    return frame_files, masks


def stem_of(image: str) -> str:
    """ "benign/a (1).png" -> "benign/a (1)"."""
    return Path(image).with_suffix("").as_posix()


def mask_cell(masks: Iterable[tuple[str, str]]) -> str:
    """The manifest's `mask` cell for mask files, joined when several; "" for none."""
    paths = [path for _, path in masks]
    return json.dumps(paths) if paths else ""


def not_an_image(path: Path) -> str:
    """Why a file is no image by its name alone; "" where it may be one."""
    suffix = path.suffix.lower()
    if path.name.lower() in SYSTEM_FILES:
        return SYSTEM
    if path.is_symlink() and not path.exists():
        return "a broken link"
    if suffix in frames.SUFFIXES:
        return ""
    if is_dicom(str(path)):
        return "a DICOM file: read such folders with dicom:PATH"
    return f"not an image format that is read here ({suffix or 'no suffix'}); {' '.join(frames.SUFFIXES)} are"


def natural(text: str) -> list:
    """Sort key under which frame 10 follows frame 9."""
    return [
        (1, int(part), "") if part.isdecimal() else (0, 0, part) for part in re.split(r"(\d+)", str(text))
    ]


def benign_or_malignant(value) -> str:
    """The class key of 0, 1, "benign", "Malignant" and the like; "" for anything else."""
    word = str(value).strip().casefold().removesuffix(".0")
    return {"0": "benign", "1": "malignant"}.get(word, word if word in TWO else "")


def class_key(name: str) -> str:
    """ "Normal  Thyroid" -> "normal_thyroid": lower case, one underscore for blanks."""
    return "_".join(str(name).casefold().split())


def need(root: Path, *names: str, source: str) -> None:
    """Raises DatasetError with everything that a layout wants and the folder has not."""
    missing = [name for name in names if not (root / name).exists()]
    if missing:
        there = sorted(entry.name for entry in root.iterdir())[:12] if root.is_dir() else ["(not a folder)"]
        raise DatasetError(
            f"{source}: expected {', '.join(names)} in {root}; missing: {', '.join(missing)}; "
            f"found: {', '.join(there) or 'nothing'}. docs/data.md shows the layout."
        )


def beside(root: Path, name: str) -> Path | None:
    """A companion file in the folder of a set or in one of the two above it."""
    return next((p / name for p in (root, *root.parents[:2]) if (p / name).is_file()), None)


def _get(row, name: str, default=None):
    if isinstance(row, (Mapping, pd.Series)):
        return row.get(name, default)
    return getattr(row, name, default)
