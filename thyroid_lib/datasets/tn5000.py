"""TN5000: 5,000 thyroid nodules with boxes and pathology (CC BY 4.0), in Pascal VOC layout.

Layout: ``JPEGImages/000001.jpg``, ``Annotations/000001.xml`` (``<name>`` 0 benign, 1 malignant, ``<bndbox>``) and
``ImageSets/Main/{train,val,trainval,test}.txt``. There are no patient identifiers, and byte-identical frames lie
on both sides of the published split: `thyroid_lib.manifest.check` joins them.
"""

import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Literal

from thyroid_lib.datasets import contract


def read(root: Path, *, part: Literal["all", "train", "val", "test"] = "all") -> contract.Manifest:
    """Reads TN5000.

    Args:
        root: folder with ``JPEGImages``, ``Annotations`` and ``ImageSets``.
        part: "all", "train", "val" or "test", the source's own split.

    Returns:
        Manifest with `box` (the largest annotated one) and `part`.

    Raises:
        DatasetError: a folder is missing, or the published split where a part of it is asked for.
    """
    found = contract.Collection("tn5000", root)
    found.need("JPEGImages", "Annotations", *([] if part == "all" else [f"ImageSets/Main/{part}.txt"]))
    lists = {name: root / "ImageSets" / "Main" / f"{name}.txt" for name in ("train", "val", "test")}
    there = [name for name, path in lists.items() if path.is_file()]
    parts = {stem: name for name in there for stem in lists[name].read_text().split()}
    found.note(contract.NO_PATIENTS)
    if not parts:
        found.note("ImageSets/Main is missing: the published split is not known")
    annotations = {path.stem: path for path in sorted((root / "Annotations").glob("*.xml"))}
    for image, path in found.images("JPEGImages"):
        annotation, own = annotations.pop(path.stem, None), parts.get(path.stem, "")
        if annotation is None:
            found.leave_out(image, f"Annotations/{path.stem}.xml is missing")
        elif part not in ("all", own):
            found.leave_out(image, f"not in part {part}")
        else:
            label, box, reason = _annotation(annotation)
            if reason:
                found.leave_out(image, f"Annotations/{annotation.name} {reason}")
            else:
                found.frame(image, label, path.stem, box=box, part=own)
    for stem in annotations:
        found.leave_out(f"JPEGImages/{stem}.jpg", "annotated, but the file is missing")
    return found.manifest("TN5000", contract.TWO)


def _annotation(path: Path) -> tuple[str, str, str]:
    """(label, largest box, reason why it cannot be used)."""
    try:
        objects = ElementTree.parse(path).getroot().findall("object")
        labels = {contract.benign_or_malignant(thing.findtext("name") or "") for thing in objects}
        sides = ("xmin", "ymin", "xmax", "ymax")
        corners = [[round(float(thing.findtext(f"bndbox/{side}"))) for side in sides] for thing in objects]
    except (ElementTree.ParseError, TypeError, ValueError):
        return "", "", "cannot be read"
    if len(labels) != 1 or labels == {""}:
        return "", "", f"holds no label, or several: {sorted(labels)}"
    boxes = [(left, top, right - left, bottom - top) for left, top, right, bottom in corners]
    largest = max(boxes, key=lambda box: box[2] * box[3])
    return labels.pop(), " ".join(str(max(0, value)) for value in largest), ""
