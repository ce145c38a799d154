"""TG3K: thyroid gland frames from 16 videos with gland masks, no labels (Gong et al. 2021, 2023).

Layout: ``thyroid-image/*.jpg`` and ``thyroid-mask/`` with the same names (``.png`` or ``.jpg``). The masks show
the gland, not nodules. Which frame came from which video is not kept, so no honest split exists inside the set:
all frames are one group, and the set serves segmentation and pre-training without labels only.
"""

from pathlib import Path

from thyroid_lib.datasets.contract import Collection, Manifest


def read(root: Path) -> Manifest:
    """Reads TG3K.

    Args:
        root: folder with ``thyroid-image`` and ``thyroid-mask``, or the one that holds it as ``tg3k``.

    Returns:
        Manifest of unlabelled frames, all in one group, with the gland as `mask` (attrs["mask_shows"]).

    Raises:
        DatasetError: an image folder is missing.
    """
    found = Collection("tg3k", root / "tg3k" if (root / "tg3k" / "thyroid-image").is_dir() else root)
    found.need("thyroid-image", "thyroid-mask")
    found.note("unlabelled, and video identifiers are not kept: one group, never split")
    found.masks("thyroid-mask", frames="thyroid-image")
    for image, _ in found.images("thyroid-image"):
        mask = found.mask(image)
        if not mask:
            found.note("has no gland mask", image)
        found.frame(image, label="", patient="unknown", mask=mask)
    return found.manifest("TG3K, thyroid gland", {}, mask_shows="gland")
