"""BUSI: breast frames with masks in three classes (Al-Dhabyani et al. 2020, Data in Brief 28, 104863).

Layout: ``Dataset_BUSI_with_GT/{benign,malignant,normal}/<class> (n).png`` with ``<class> (n)_mask.png``,
``_mask_1.png`` and so on, to be joined. There are no patient identifiers; ``busi_near_duplicates.csv`` beside
the set, or the duplicate search of `thyroid_lib.manifest`, groups frames that show the same.
"""

from pathlib import Path
from typing import Literal

from thyroid_lib.datasets import contract

KAGGLE = "aryashah2k/breast-ultrasound-images-dataset"
NAMES = {**contract.TWO, "normal": ("normal", "正常")}


def read(root: Path, *, classes: Literal["3", "2"] = "3") -> contract.Manifest:
    """Reads BUSI.

    Args:
        root: the folder ``Dataset_BUSI_with_GT`` or the one that holds it.
        classes: "3" (benign, malignant, normal) or "2" (normal frames listed as not used).

    Returns:
        Manifest with `mask`; each frame is its own patient, groups are those of the near-duplicate list.

    Raises:
        DatasetError: a class folder is missing.
    """
    inner = root / "Dataset_BUSI_with_GT"
    found = contract.Collection("busi", inner if inner.is_dir() else root)
    found.need(*NAMES)
    found.masks(named=contract.BESIDE)
    names = dict(list(NAMES.items())[: int(classes)])
    listed = contract.beside(found.root, "busi_near_duplicates.csv")
    for image, _ in found.images():
        label, mask, about = image.partition("/")[0], found.mask(image), (listed or {}).get(image, {})
        group = f"near-duplicate {about['dup_group']}" if about else ""
        if label not in NAMES:
            found.leave_out(image, "not in a class folder")
        elif label not in names:
            found.leave_out(image, f"class {label} is not used with classes={classes}")
        elif about.get("group_has_mixed_class") == "1":
            found.leave_out(image, "its group of near-duplicates mixes classes")
        else:
            if not mask:
                found.note("has no mask", image)
            found.frame(image, label, contract.stem_of(image), group=group, mask=mask)
    found.note(contract.NO_PATIENTS)
    if listed is None:
        found.note("busi_near_duplicates.csv is not beside the set: groups come from the hash search only")
    return found.manifest("BUSI, breast ultrasound", names)
