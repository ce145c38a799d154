"""AUITD, the Algerian thyroid set (Azouz Maroua, Kaggle): benign, malignant and normal frames.

Layout: ``dataset thyroid/{train,test}/{benign,Malignant,normal thyroid}/*.jpg``; the case of the folder names
differs between the parts, and many files are "<name> - Copy". No patient identifiers.
"""

import filecmp
import re
from pathlib import Path

import pandas as pd

from thyroid_lib.datasets import contract

KAGGLE = "azouzmaroua/algeria-ultrasound-images-thyroid-dataset-auitd"
NAMES = {**contract.TWO, "normal": ("normal thyroid", "正常甲状腺")}
FOLDERS = {"benign": "benign", "malignant": "malignant", "normal_thyroid": "normal", "normal": "normal"}


def read(root: Path, *, classes: str = "3", part: str = "all") -> pd.DataFrame:
    """Reads AUITD.

    Args:
        root: the folder ``dataset thyroid`` or the one that holds it.
        classes: "3", or "2" (normal frames listed as not used).
        part: "all", "train" or "test", the source's own split.

    Returns:
        Manifest with `part`; "<name> - Copy" files with the same bytes as <name> are listed, not used.

    Raises:
        DatasetError: no such folders are there, or an option is unknown.
    """
    if classes not in ("2", "3") or part not in ("all", "train", "test"):
        raise contract.DatasetError(
            f"auitd: classes is 2 or 3 and part is all, train or test; {classes!r} and {part!r} came."
        )
    root = next((e for e in sorted(root.iterdir()) if e.name.casefold() == "dataset thyroid"), root)
    wanted = list(NAMES)[: int(classes)]
    rows, excluded, seen = [], [], set()
    for image, path, reason in contract.files(root):
        steps = image.split("/")
        where = steps[0].casefold()
        label = FOLDERS.get(contract.class_key(steps[1])) if len(steps) > 2 else None
        original = re.sub(r" - Copy( \(\d+\))?(?=\.\w+$)", "", path.name)
        if not reason and (where not in ("train", "test") or label is None):
            reason = "not in {train,test}/{benign,malignant,normal thyroid}"
        elif not reason and part not in ("all", where):
            reason = f"not in part {part}"
        elif not reason and label not in wanted:
            reason = f"class {label} is not used with classes={classes}"
        elif not reason and original != path.name and _same(path, path.with_name(original)):
            reason = f"the same bytes as {original} beside it"
        if label:
            seen.add(label)
        if reason:
            excluded.append((image, reason))
            continue
        stem = contract.stem_of(image)
        rows.append({"image": image, "path": str(path), "label": label, "patient": stem, "part": where})
    if missing := set(wanted) - seen:
        there = ", ".join(sorted(entry.name for entry in root.iterdir())[:12]) or "nothing"
        raise contract.DatasetError(
            f"auitd: expected train/ and test/ with benign, malignant and normal thyroid in {root}; no frame of "
            f"{', '.join(sorted(missing))}; found: {there}. docs/data.md shows the layout."
        )
    return contract.table(
        rows,
        dataset="auitd",
        title="AUITD",
        classes=wanted,
        names=NAMES,
        excluded=excluded,
        notes=[("", contract.NO_PATIENTS)],
    )


def _same(a: Path, b: Path) -> bool:
    return b.is_file() and filecmp.cmp(a, b, shallow=False)
