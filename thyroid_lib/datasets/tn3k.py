"""TN3K: thyroid nodules with masks (Gong et al. 2021, 2023) and benign / malignant labels.

Layout: ``trainval-image/0000.jpg``, ``trainval-mask/``, ``test-image/``, ``test-mask/`` and, without a header,
``label4trainval.csv`` and ``label4test.csv`` (``name.jpg,0|1``); ``tn3k-trainval-fold{0..4}.json`` index the
numerically sorted frames. There are no patient identifiers, though many patients have several frames.
"""

import csv
import json
from pathlib import Path
from typing import Literal

from thyroid_lib.datasets import contract


def read(root: Path, *, part: Literal["all", "trainval", "test"] = "all") -> contract.Manifest:
    """Reads TN3K.

    Args:
        root: folder with the four image folders and two label files.
        part: "all", "trainval" or "test", the source's own split.

    Returns:
        Manifest with `mask`, `part` and, where the JSON files are there, `official_fold` (the fold in which the
        source validates on the frame).

    Raises:
        DatasetError: a folder or label file is missing.
    """
    found = contract.Collection("tn3k", root)
    parts = ("trainval", "test") if part == "all" else (part,)
    found.need(*(name for p in parts for name in (f"{p}-image", f"label4{p}.csv")))
    found.note(contract.NO_PATIENTS)
    for name in parts:
        found.masks(f"{name}-mask", frames=f"{name}-image")
        with open(root / f"label4{name}.csv", newline="", encoding="utf-8-sig") as file:
            labels = {row[0].strip(): row[1] for row in csv.reader(file) if len(row) >= 2}
        images = [image for image, _ in found.images(f"{name}-image")]
        folds = _folds(root, images) if name == "trainval" else {}
        for image in images:
            label = contract.benign_or_malignant(labels.pop(Path(image).name, ""))
            mask = found.mask(image)
            if not label:
                found.note(f"unlabelled: not in label4{name}.csv as 0 or 1", image)
            if not mask:
                found.note("has no mask", image)
            more = {"official_fold": folds.get(image)} if folds else {}
            found.frame(image, label, f"{name}/{Path(image).stem}", mask=mask, part=name, **more)
        for image in labels:
            found.leave_out(f"{name}-image/{image}", f"in label4{name}.csv, but the file is missing")
    return found.manifest("TN3K", contract.TWO)


def _folds(root: Path, images: list[str]) -> dict[str, int]:
    """Frame -> fold it is validated in; the JSON's indices count the frames in numerical order."""
    folds = {}
    for number, path in ((n, root / f"tn3k-trainval-fold{n}.json") for n in range(5)):
        if path.is_file():
            chosen = json.loads(path.read_text(encoding="utf-8")).get("val", [])
            folds |= {images[index]: number for index in chosen if 0 <= index < len(images)}
    return folds
