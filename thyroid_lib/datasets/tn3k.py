"""TN3K: thyroid nodules with masks (Gong et al. 2021, 2023) and benign / malignant labels.

Layout: ``trainval-image/0000.jpg``, ``trainval-mask/``, ``test-image/``, ``test-mask/`` and, without a header,
``label4trainval.csv`` and ``label4test.csv`` (``name.jpg,0|1``); ``tn3k-trainval-fold{0..4}.json`` index the
numerically sorted frames. There are no patient identifiers, though many patients have several frames.
"""

import csv
import json
from pathlib import Path

import pandas as pd

from thyroid_lib.datasets import contract

PARTS = ("trainval", "test")


def read(root: Path, *, part: str = "all") -> pd.DataFrame:
    """Reads TN3K.

    Args:
        root: folder with the four image folders and two label files.
        part: "all", "trainval" or "test", the source's own split.

    Returns:
        Manifest with `mask`, `part` and, where the JSON files are there, `official_fold` (the fold in which the
        source validates on the frame).

    Raises:
        DatasetError: a folder or label file is missing, or the option is unknown.
    """
    if part not in ("all", *PARTS):
        raise contract.DatasetError(f"tn3k: part is all, trainval or test; {part!r} came.")
    parts = PARTS if part == "all" else (part,)
    contract.need(root, *(n for p in parts for n in (f"{p}-image", f"label4{p}.csv")), source="tn3k")
    rows, excluded, notes = [], [], [("", contract.NO_PATIENTS)]
    for name in parts:
        labels = _labels(root / f"label4{name}.csv")
        folder = root / f"{name}-image"
        found = list(contract.files(folder))
        excluded += [(f"{name}-image/{image}", reason) for image, _, reason in found if reason]
        there = [(image, path) for image, path, reason in found if not reason]
        folds = _folds(root, [image for image, _ in there]) if name == "trainval" else {}
        for image, path in there:
            label = contract.benign_or_malignant(labels.pop(image, ""))
            mask = next((m for m in _masks(root / f"{name}-mask", image) if m.exists()), None)
            identifier = f"{name}-image/{image}"
            if not label:
                notes.append((identifier, f"unlabelled: not in label4{name}.csv as 0 or 1"))
            if mask is None:
                notes.append((identifier, "has no mask"))
            rows.append(
                {
                    "image": identifier,
                    "path": str(path),
                    "label": label,
                    "patient": f"{name}/{Path(image).stem}",
                    "mask": str(mask or ""),
                    "part": name,
                    **({"official_fold": folds.get(image)} if folds else {}),
                }
            )
        reason = f"in label4{name}.csv, but the file is missing"
        excluded += [(f"{name}-image/{image}", reason) for image in labels]
    return contract.table(
        rows,
        dataset="tn3k",
        title="TN3K",
        classes=list(contract.TWO),
        names=contract.TWO,
        excluded=excluded,
        notes=notes,
    )


def _labels(path: Path) -> dict[str, str]:
    with open(path, newline="", encoding="utf-8-sig") as file:
        return {row[0].strip(): row[1] for row in csv.reader(file) if len(row) >= 2}


def _masks(folder: Path, image: str):
    return (folder / image, (folder / image).with_suffix(".png"), (folder / image).with_suffix(".jpg"))


def _folds(root: Path, images: list[str]) -> dict[str, int]:
    """Frame -> fold it is validated in; the JSON's indices count the frames in numerical order."""
    folds = {}
    for number in range(5):
        path = root / f"tn3k-trainval-fold{number}.json"
        if path.is_file():
            chosen = json.loads(path.read_text(encoding="utf-8")).get("val", [])
            folds |= {images[index]: number for index in chosen if 0 <= index < len(images)}
    return folds
