"""BUSI: breast frames with masks in three classes (Al-Dhabyani et al. 2020, Data in Brief 28, 104863).

Layout: ``Dataset_BUSI_with_GT/{benign,malignant,normal}/<class> (n).png`` with ``<class> (n)_mask.png``,
``_mask_1.png`` and so on, to be joined. There are no patient identifiers; ``busi_near_duplicates.csv`` beside
the set, or the duplicate search of `thyroid_lib.manifest`, groups frames that show the same.
"""

import csv
from pathlib import Path

import pandas as pd

from thyroid_lib.datasets import contract

KAGGLE = "aryashah2k/breast-ultrasound-images-dataset"
NAMES = {**contract.TWO, "normal": ("normal", "正常")}


def read(root: Path, *, classes: str = "3") -> pd.DataFrame:
    """Reads BUSI.

    Args:
        root: the folder ``Dataset_BUSI_with_GT`` or the one that holds it.
        classes: "3" (benign, malignant, normal) or "2" (normal frames listed as not used).

    Returns:
        Manifest with `mask`; each frame is its own patient, groups are those of the near-duplicate list.

    Raises:
        DatasetError: a class folder is missing, or the option is unknown.
    """
    if classes not in ("2", "3"):
        raise contract.DatasetError(f"busi: classes is 2 or 3; {classes!r} came.")
    if (root / "Dataset_BUSI_with_GT").is_dir():
        root = root / "Dataset_BUSI_with_GT"
    contract.need(root, *NAMES, source="busi")
    wanted = list(NAMES)[: int(classes)]
    list_file = contract.beside(root, "busi_near_duplicates.csv")
    groups = {}
    if list_file:
        with open(list_file, newline="", encoding="utf-8") as file:
            groups = {row["image"]: row for row in csv.DictReader(file)}
    frames, masks = contract.frames_and_masks(root)
    rows, excluded, notes = [], [], []
    for image, path, reason in frames:
        label, stem = image.partition("/")[0], contract.stem_of(image)
        about, own = groups.get(image, {}), masks.pop(stem, [])
        if reason or label not in NAMES:
            excluded.append((image, reason or "not in a class folder"))
        elif label not in wanted:
            excluded.append((image, f"class {label} is not used with classes={classes}"))
        elif about.get("group_has_mixed_class") == "1":
            excluded.append((image, f"in near-duplicate group {about['dup_group']}, which mixes classes"))
        else:
            if not own:
                notes.append((image, "has no mask"))
            rows.append(
                {
                    "image": image,
                    "path": str(path),
                    "label": label,
                    "patient": stem,
                    "group": f"near-duplicate {about['dup_group']}" if about else stem,
                    "mask": contract.mask_cell(own),
                }
            )
    excluded += [(image, "a mask whose frame is missing") for left in masks.values() for image, _ in left]
    notes.append(("", contract.NO_PATIENTS))
    if not list_file:
        notes.append(
            ("", "busi_near_duplicates.csv is not beside the set: groups come from the hash search only")
        )
    return contract.table(
        rows,
        dataset="busi",
        title="BUSI, breast ultrasound",
        classes=wanted,
        names=NAMES,
        excluded=excluded,
        notes=notes,
    )
