"""A folder per class: ``ROOT/<class>/[<patient>/]<frame>.png``, masks as ``<frame>_mask.png`` beside."""

from pathlib import Path

import pandas as pd

from thyroid_lib import LESION_TYPES
from thyroid_lib.common.files import natural
from thyroid_lib.datasets import contract


def read(root: Path, *, patient: str = "folder", title: str = "") -> pd.DataFrame:
    """Reads a folder per class.

    A class folder is named with a lesion type's key, English or Chinese name, or any other class name.

    Args:
        root: folder that holds the class folders.
        patient: what tells patients apart: "folder" (the folder below the class folder; a frame directly in
            the class folder is a patient of its own) or "prefix" (the file name up to the first "_").
        title: name of the collection for reports.

    Returns:
        Manifest with `mask` where mask files lie beside the frames.

    Raises:
        DatasetError: there is no class folder, or the option is unknown.
    """
    if patient not in ("folder", "prefix"):
        raise contract.DatasetError(f"folder: patient is folder or prefix; {patient!r} came.")
    if not root.is_dir():
        raise contract.DatasetError(f"folder: expected a folder with one folder per class; {root} is a file.")
    frames, masks = contract.frames_and_masks(root)
    rows, excluded, alone, keys, seen = [], [], 0, {}, {}
    for image, path, reason in frames:
        parts = image.split("/")
        if reason or len(parts) < 2:
            excluded.append((image, reason or "not inside a class folder"))
            continue
        label = lesion_type(parts[0])
        keys.setdefault(label, parts[0])
        person = _patient(parts, patient)
        alone += person == contract.stem_of(image)
        seen.setdefault(person, set()).add(label)
        mask = contract.mask_cell(masks.pop(contract.stem_of(image), []))
        rows.append({"image": image, "path": str(path), "label": label, "patient": person, "mask": mask})
    excluded += [(image, "a mask whose frame is missing") for left in masks.values() for image, _ in left]
    if not keys:
        there = ", ".join(sorted(entry.name for entry in root.iterdir())[:12]) or "nothing"
        raise contract.DatasetError(
            f"folder: expected {root}/<class>/<frame>.png; found {there}. Make one folder per class, "
            f"for example {', '.join(LESION_TYPES)}."
        )
    notes = []
    if alone:
        notes.append(
            f"{alone} of {len(rows)} frames have no patient: each counts as a patient of its own, and "
            "frames of one person may fall on both sides of a split: use <class>/<patient>/<frame> or "
            "?patient=prefix"
        )
    if several := sorted((p for p in seen if len(seen[p]) > 1), key=natural):
        # One person with nodules of several types, or numbers that restart in each class: never split either.
        for row in rows:
            row["nodule"] = row["label"] if row["patient"] in several else ""
        some = ", ".join(several[:5])
        notes.append(
            f"{len(several)} patient names occur in several classes ({some}): kept together in splits"
        )
    return contract.table(
        rows,
        dataset="folder",
        title=title or f"folder {root.name}",
        classes=order(keys),
        names={**{k: (name, name) for k, name in keys.items()}, **LESION_TYPES},
        excluded=excluded,
        notes=[("", note) for note in notes],
    )


def lesion_type(name: str) -> str:
    """Class key of a name: a lesion type's key where it is its key, English or Chinese name."""
    key = contract.class_key(name)
    for lesion, (english, chinese) in LESION_TYPES.items():
        if key.replace("-", "_") in (lesion, contract.class_key(english)) or name.strip() == chinese:
            return lesion
    return key


def order(keys) -> list[str]:
    """Lesion types first in the study's order, other classes after them in natural order."""
    known = [key for key in LESION_TYPES if key in keys]
    return known + sorted((key for key in keys if key not in LESION_TYPES), key=natural)


def _patient(parts: list[str], rule: str) -> str:
    stem = Path(parts[-1]).stem
    if rule == "prefix":
        return stem.partition("_")[0]
    return "/".join(parts[1:-1]) if len(parts) > 2 else f"{parts[0]}/{stem}"
