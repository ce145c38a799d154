"""What every reader shares: how a manifest is put together, and how its frames and masks are opened."""

import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import pandas as pd

from thyroid_lib import frames
from thyroid_lib.common.files import natural

COLUMNS = ["image", "path", "label", "patient", "group", "dataset"]
PRIVATE = ["path", "mask"]  # hold absolute paths of this machine
TWO = {"benign": ("benign", "良性"), "malignant": ("malignant", "恶性")}
"""Names of the two classes that most public sets have."""
NO_PATIENTS = "no patient identifiers in this set: each frame counts as a patient of its own"
SYSTEM_FILES = {"thumbs.db", "desktop.ini", "ehthumbs.db"}
SYSTEM = "a system or hidden file, not an image"
OUTSIDE = re.compile(r"[/\\~]|\w:[/\\]|(.*[/\\])?\.\.([/\\]|$)")  # absolute, or up and out of the folder


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
