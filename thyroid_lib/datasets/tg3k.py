"""TG3K: thyroid gland frames from 16 videos with gland masks, no labels (Gong et al. 2021, 2023).

Layout: ``thyroid-image/*.jpg`` and ``thyroid-mask/`` with the same names (``.png`` or ``.jpg``). The masks show
the gland, not nodules. Which frame came from which video is not kept, so no honest split exists inside the set:
all frames are one group, and the set serves segmentation and pre-training without labels only.
"""

from pathlib import Path

import pandas as pd

from thyroid_lib.datasets import contract


def read(root: Path) -> pd.DataFrame:
    """Reads TG3K.

    Args:
        root: folder with ``thyroid-image`` and ``thyroid-mask``, or the one that holds it as ``tg3k``.

    Returns:
        Manifest of unlabelled frames, all in one group, with the gland as `mask` (attrs["mask_shows"]).

    Raises:
        DatasetError: an image folder is missing.
    """
    if (root / "tg3k" / "thyroid-image").is_dir():
        root = root / "tg3k"
    contract.need(root, "thyroid-image", "thyroid-mask", source="tg3k")
    masks = {contract.stem_of(image): str(path) for image, path, _ in contract.files(root / "thyroid-mask")}
    rows, excluded = [], []
    notes = [("", "unlabelled, and video identifiers are not kept: one group, never split")]
    for image, path, reason in contract.files(root / "thyroid-image"):
        if reason:
            excluded.append((f"thyroid-image/{image}", reason))
            continue
        stem = contract.stem_of(image)
        if stem not in masks:
            notes.append((f"thyroid-image/{image}", "has no gland mask"))
        rows.append(
            {
                "image": f"thyroid-image/{image}",
                "path": str(path),
                "label": "",
                "patient": "unknown",
                "mask": masks.pop(stem, ""),
            }
        )
    excluded += [
        (f"thyroid-mask/{Path(path).name}", "a mask whose frame is missing") for path in masks.values()
    ]
    data = contract.table(
        rows, dataset="tg3k", title="TG3K, thyroid gland", classes=[], excluded=excluded, notes=notes
    )
    data.attrs["mask_shows"] = "gland"
    return data
