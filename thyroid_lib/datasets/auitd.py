"""AUITD, the Algerian thyroid set (Azouz Maroua, Kaggle): benign, malignant and normal frames.

Layout: ``dataset thyroid/{train,test}/{benign,Malignant,normal thyroid}/*.jpg``; the case of the folder names
differs between the parts, and many files are "<name> - Copy". No patient identifiers.
"""

import filecmp
import re
from pathlib import Path
from typing import Literal

from thyroid_lib.datasets import contract

KAGGLE = "azouzmaroua/algeria-ultrasound-images-thyroid-dataset-auitd"
NAMES = {**contract.TWO, "normal": ("normal thyroid", "正常甲状腺")}


def read(
    root: Path, *, classes: Literal["3", "2"] = "3", part: Literal["all", "train", "test"] = "all"
) -> contract.Manifest:
    """Reads AUITD.

    Args:
        root: the folder ``dataset thyroid`` or the one that holds it.
        classes: "3", or "2" (normal frames listed as not used).
        part: "all", "train" or "test", the source's own split.

    Returns:
        Manifest with `part`; "<name> - Copy" files with the same bytes as <name> are listed, not used.

    Raises:
        DatasetError: no such folders are there.
    """
    inner = (entry for entry in sorted(root.iterdir()) if entry.name.casefold() == "dataset thyroid")
    found, seen = contract.Collection("auitd", next(inner, root)), set()
    names = dict(list(NAMES.items())[: int(classes)])
    for image, path in found.images():
        where, folder = (*image.casefold().split("/"), "")[:2]
        label = folder.removesuffix(" thyroid")
        original = path.with_name(re.sub(r" - Copy( \(\d+\))?(?=\.\w+$)", "", path.name))
        seen.add(label)
        if where not in ("train", "test") or label not in NAMES:
            found.leave_out(image, "not in {train,test}/{benign,malignant,normal thyroid}")
        elif part not in ("all", where):
            found.leave_out(image, f"not in part {part}")
        elif label not in names:
            found.leave_out(image, f"class {label} is not used with classes={classes}")
        elif original != path and original.is_file() and filecmp.cmp(path, original, shallow=False):
            found.leave_out(image, f"the same bytes as {original.name} beside it")
        else:
            found.frame(image, label, contract.stem_of(image), part=where)
    if missing := ", ".join(sorted(set(names) - seen)):
        layout = "train/ and test/ with benign, malignant and normal thyroid"
        raise found.unlike(layout, f"no frame of {missing}")
    found.note(contract.NO_PATIENTS)
    return found.manifest("AUITD", names)
