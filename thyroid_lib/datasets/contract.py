"""The one contract of the readers: what a manifest is, and how a reader puts one together.

A reader describes its folder to a `Collection`: which files are frames, which are masks, what is left out and
why. The collection knows the rest: paths, order, files of the system, links, masks without a frame.
"""

import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import pandas as pd

from thyroid_lib import LESION_TYPES, frames
from thyroid_lib.common.files import natural

Manifest = pd.DataFrame  # one row per frame; the columns and attrs stand at the top of `thyroid_lib.datasets`
COLUMNS = ["image", "path", "label", "patient", "group", "dataset"]
TWO = {"benign": ("benign", "良性"), "malignant": ("malignant", "恶性")}  # the classes of most public sets
ALONE = "each counts as a patient of its own, and frames of one person may fall on both sides of a split"
NO_PATIENTS = "no patient identifiers in this set: each frame counts as a patient of its own"
SYSTEM_FILES = {"thumbs.db", "desktop.ini", "ehthumbs.db", "__macosx"}
BESIDE = r"(.+)[_-]mask(_\d+)?"  # "a_mask.png", "a_mask_1.png": masks of "a.png" beside it
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


class Collection:
    """What a reader finds below a folder; images are named by their path relative to it.

    Args:
        source: name of the source, for messages and the column `dataset`.
        root: folder of the set.
    """

    def __init__(self, source: str, root: Path):
        self.source, self.root = source, root
        self.rows, self.excluded, self.notes = [], [], []
        self._masks: dict[str, list[str]] = {}

    def need(self, *names: str) -> None:
        """Raises DatasetError with everything that a layout wants and the folder has not."""
        if missing := ", ".join(name for name in names if not (self.root / name).exists()):
            raise self.unlike(", ".join(names), f"missing: {missing}")

    def unlike(self, expected: str, came: str) -> DatasetError:
        """The error of a folder that is not laid out as the source's, with what lies in it."""
        there = "(not a folder)"
        if self.root.is_dir():
            there = ", ".join(sorted(entry.name for entry in self.root.iterdir())[:12]) or "nothing"
        found = f"in {self.root}; {came}; found: {there}. docs/data.md shows the layout."
        return DatasetError(f"{self.source}: expected {expected} {found}")

    def masks(self, folder: str = "", frames: str = "", named: str = "(.+)") -> None:
        """Says which files are masks: those of `folder` belong to the frames of the same name in `frames`.

        Args:
            named: what a mask's name without suffix looks like; its first group is the frame's. With `BESIDE`
                and no folder, masks lie beside their frames.
        """
        for image, _, reason in files(self.root, folder):
            stem = re.fullmatch(named, stem_of(image.removeprefix(f"{folder}/")), re.IGNORECASE)
            if stem and not reason:
                self._masks.setdefault(f"{frames}/{stem[1]}".removeprefix("/"), []).append(image)

    def images(self, folder: str = "", *used: Path) -> Iterator[tuple[str, Path]]:
        """Every frame of a folder, (image, its path) in natural order; what is neither that nor `used` is left out."""
        used = {*used, *(self.root / mask for masks in self._masks.values() for mask in masks)}
        for image, path, reason in files(self.root, folder):
            if reason and path not in used:
                self.leave_out(image, reason)
            elif path not in used:
                yield image, path

    def mask(self, image: str) -> str:
        """The manifest's `mask` cell for a frame; "" where it has none."""
        found = self._masks.pop(stem_of(image), [])
        return json.dumps([str(self.root / mask) for mask in found]) if found else ""

    def frame(self, image: str, label: str, patient: str, **more) -> None:
        """Takes a frame into the manifest, with any other columns."""
        row = {"image": image, "path": str(self.root / image), "label": label, "patient": patient}
        self.rows.append(row | more)

    def leave_out(self, image: str, reason: str) -> None:
        """Lists a file that was found, or named, and is not used."""
        self.excluded.append((image, reason))

    def note(self, text: str, image: str = "") -> None:
        """Notes what a reader should know of a used file, or of the whole set."""
        self.notes.append((image, text))

    def manifest(self, title: str, names: Mapping[str, tuple[str, str]], **attrs) -> pd.DataFrame:
        """The manifest of what was found, sorted by image in natural order, with its attrs.

        `group` is the patient and `dataset` the source where a row does not say otherwise; masks that no frame
        asked for are left out.

        Args:
            title: name of the collection for reports.
            names: class key -> (English, Chinese), in the order of the network's outputs.
            attrs: any others; `simulated` says whether the frames are.
        """
        for mask in (mask for masks in self._masks.values() for mask in masks):
            self.leave_out(mask, "a mask whose frame is missing")
        usual = {**dict.fromkeys(COLUMNS, ""), "dataset": self.source}
        data = pd.DataFrame([{**usual, **row} for row in self.rows], columns=None if self.rows else COLUMNS)
        data[COLUMNS] = data[COLUMNS].fillna("").astype(str)
        data["group"] = data["group"].where(data["group"] != "", data["patient"])
        data = data.sort_values("image", key=lambda column: column.map(natural), ignore_index=True)
        data.attrs = {"classes": list(names), "names": names, "simulated": False, "title": title, **attrs}
        data.attrs["excluded"] = Listing(self.excluded, columns=["image", "reason"])
        data.attrs["notes"] = Listing(self.notes, columns=["image", "note"])
        return data


def public(manifest: pd.DataFrame) -> pd.DataFrame:
    """The manifest without the columns that hold paths of this machine: fit to be saved in a run."""
    return manifest.drop(columns=["path", "mask"], errors="ignore")


def files(root: Path, folder: str = "") -> Iterator[tuple[str, Path, str]]:
    """Every file below a folder of root, in natural order, links to folders not followed.

    Yields:
        (path relative to root in POSIX form, absolute path, reason why it is no image or "").
    """
    found = ((path.relative_to(root).as_posix(), path) for path in (root / folder).rglob("*"))
    for name, path in sorted(found, key=lambda item: natural(item[0])):
        if not path.is_dir():
            yield name, path, not_an_image(name, path)
        elif path.is_symlink():
            yield name, path, "a link to a folder, not followed"


def not_an_image(name: str, path: Path) -> str:
    """Why a file is no image by its name alone; "" where it may be one."""
    suffix = path.suffix.lower()
    if any(part.startswith(".") or part.casefold() in SYSTEM_FILES for part in name.split("/")):
        return "a system or hidden file, not an image"
    if path.is_symlink() and not path.exists():
        return "a broken link"
    if suffix in frames.SUFFIXES:
        return ""
    if is_dicom(path):
        return "a DICOM file: read such folders with dicom:PATH"
    return f"not an image format that is read here ({suffix or 'no suffix'}); {' '.join(frames.SUFFIXES)} are"


def is_dicom(path: str | Path) -> bool:
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


def stem_of(image: str) -> str:
    """ "benign/a (1).png" -> "benign/a (1)"."""
    return Path(image).with_suffix("").as_posix()


def beside(root: Path, name: str) -> dict[str, dict] | None:
    """Rows by image of a companion table in the folder of a set or one of the two above it; None where none is."""
    path = next((p / name for p in (root, *root.parents[:2]) if (p / name).is_file()), None)
    return {row["image"]: row for row in texts(path).to_dict("records")} if path else None


def texts(path: Path) -> pd.DataFrame:
    """A CSV table, every cell as text; raises DatasetError where it is none."""
    try:
        return pd.read_csv(path, dtype=str, keep_default_na=False, encoding="utf-8-sig")
    except ValueError:  # of pandas or the decoder, and it may quote a cell
        raise DatasetError(f"{path.name} is no table of even rows; save it as UTF-8 CSV.") from None


def benign_or_malignant(value) -> str:
    """The class key of 0, 1, "benign", "Malignant" and the like; "" for anything else."""
    word = str(value).strip().casefold().removesuffix(".0")
    return {"0": "benign", "1": "malignant"}.get(word, word if word in TWO else "")


def class_key(name: str) -> str:
    """ "Normal  Thyroid" -> "normal_thyroid": lower case, one underscore for blanks."""
    return "_".join(str(name).casefold().split())


def class_keys(names: str) -> list[str]:
    """ "a,B c" -> ["a", "b_c"], as the option `classes` of a SPEC gives them."""
    return [class_key(name) for name in names.split(",") if name.strip()]


LESIONS = {word: key for key, names in LESION_TYPES.items() for word in (key, *map(class_key, names))}


def lesion_type(name: str) -> str:
    """Class key of a name: a lesion type's key where it is its key, English or Chinese name."""
    key = class_key(name)
    return LESIONS.get(key.replace("-", "_"), key)


def named(keys: Iterable[str], own: Mapping[str, str] | None = None) -> dict[str, tuple[str, str]]:
    """Class key -> (English, Chinese) of a class known to the study, else the name in `own`, else the key."""
    known = {**LESION_TYPES, **TWO}
    return {key: known.get(key, ((own or {}).get(key, key),) * 2) for key in keys}


def in_order(keys: Iterable[str]) -> list[str]:
    """Lesion types first in the study's order, then other classes in natural order."""
    return [key for key in LESION_TYPES if key in keys] + sorted(set(keys) - set(LESION_TYPES), key=natural)
