"""TN5000: 5,000 thyroid nodules with boxes and pathology (CC BY 4.0), in Pascal VOC layout.

Layout: ``JPEGImages/000001.jpg``, ``Annotations/000001.xml`` (``<name>`` 0 benign, 1 malignant, ``<bndbox>``) and
``ImageSets/Main/{train,val,trainval,test}.txt``. There are no patient identifiers, and byte-identical frames lie
on both sides of the published split: `thyroid_lib.manifest.check` joins them.
"""

import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pandas as pd

from thyroid_lib.datasets import contract


def read(root: Path, *, part: str = "all") -> pd.DataFrame:
    """Reads TN5000.

    Args:
        root: folder with ``JPEGImages``, ``Annotations`` and ``ImageSets``.
        part: "all", "train", "val" or "test", the source's own split.

    Returns:
        Manifest with `box` (the largest annotated one) and `part`.

    Raises:
        DatasetError: a folder is missing, or the option is unknown.
    """
    if part not in ("all", "train", "val", "test"):
        raise contract.DatasetError(f"tn5000: part is all, train, val or test; {part!r} came.")
    contract.need(root, "JPEGImages", "Annotations", source="tn5000")
    parts = _parts(root / "ImageSets" / "Main")
    rows, excluded, notes, named = [], [], [("", contract.NO_PATIENTS)], set()
    if not parts:
        notes.append(("", "ImageSets/Main is missing: the published split is not known"))
        if part != "all":
            raise contract.DatasetError(
                f"tn5000: part={part} needs ImageSets/Main/{part}.txt, which is missing."
            )
    for image, path, reason in contract.files(root / "JPEGImages"):
        stem, identifier = contract.stem_of(image), f"JPEGImages/{image}"
        named.add(stem)
        annotation = root / "Annotations" / f"{stem}.xml"
        if not reason and not annotation.is_file():
            reason = f"Annotations/{stem}.xml is missing"
        if not reason and part != "all" and parts.get(stem) != part:
            reason = f"not in part {part}"
        if not reason:
            label, box, reason = _annotation(annotation)
        if reason:
            excluded.append((identifier, reason))
            continue
        rows.append(
            {
                "image": identifier,
                "path": str(path),
                "label": label,
                "patient": stem,
                "box": box,
                "part": parts.get(stem, ""),
            }
        )
    for annotation in sorted((root / "Annotations").glob("*.xml")):
        if annotation.stem not in named:
            excluded.append((f"JPEGImages/{annotation.stem}.jpg", "annotated, but the file is missing"))
    return contract.table(
        rows,
        dataset="tn5000",
        title="TN5000",
        classes=list(contract.TWO),
        names=contract.TWO,
        excluded=excluded,
        notes=notes,
    )


def _parts(folder: Path) -> dict[str, str]:
    """Frame -> train, val or test."""
    found = {}
    for name in ("train", "val", "test"):
        path = folder / f"{name}.txt"
        if path.is_file():
            found |= {line.split()[0]: name for line in path.read_text().splitlines() if line.strip()}
    return found


def _annotation(path: Path) -> tuple[str, str, str]:
    """(label, largest box, reason why it cannot be used)."""
    try:
        objects = ElementTree.parse(path).getroot().findall("object")
        labels = {contract.benign_or_malignant(thing.findtext("name") or "") for thing in objects}
        boxes = []
        for thing in objects:
            left, top, right, bottom = (
                round(float(thing.findtext(f"bndbox/{side}"))) for side in ("xmin", "ymin", "xmax", "ymax")
            )
            boxes.append((left, top, right - left, bottom - top))
    except (ElementTree.ParseError, TypeError, ValueError):
        return "", "", f"Annotations/{path.name} cannot be read"
    if len(labels) != 1 or labels == {""}:
        return "", "", f"Annotations/{path.name} holds no label, or several: {sorted(labels)}"
    largest = max(boxes, key=lambda box: box[2] * box[3])
    return labels.pop(), " ".join(str(max(0, value)) for value in largest), ""
