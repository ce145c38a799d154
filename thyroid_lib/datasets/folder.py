"""A folder per class: ``ROOT/<class>/[<patient>/]<frame>.png``, masks as ``<frame>_mask.png`` beside."""

from pathlib import Path
from typing import Literal

from thyroid_lib import LESION_TYPES
from thyroid_lib.common.files import natural
from thyroid_lib.datasets import contract


def read(
    root: Path, *, patient: Literal["folder", "prefix"] = "folder", title: str = ""
) -> contract.Manifest:
    """Reads a folder per class.

    A class folder is named with a lesion type's key, English or Chinese name, or any other class name.

    Args:
        root: folder that holds the class folders.
        patient: what tells patients apart: "folder" (the folder below the class folder; a frame directly in
            the class folder is a patient of its own) or "prefix" (the file name up to the first "_").
        title: name of the collection for reports.

    Returns:
        Manifest with `mask` where mask files lie beside the frames.

    Raises:
        DatasetError: there is no class folder.
    """
    found = contract.Collection("folder", root)
    found.masks(named=contract.BESIDE)
    labels, names = {}, {}  # patient -> labels, class key -> name of its folder
    for image, path in found.images():
        folder, *between, _ = image.split("/") if "/" in image else ("", image)
        if not folder:
            found.leave_out(image, "not inside a class folder")
            continue
        label, person = contract.lesion_type(folder), "/".join(between) or contract.stem_of(image)
        if patient == "prefix":
            person = path.stem.partition("_")[0]
        names.setdefault(label, folder)
        labels.setdefault(person, set()).add(label)
        found.frame(image, label, person, mask=found.mask(image))
    if not names:
        advice = f"make one folder per class, for example {', '.join(LESION_TYPES)}"
        raise found.unlike("<class>/<frame>.png", advice)
    if alone := sum(row["patient"] == contract.stem_of(row["image"]) for row in found.rows):
        advice = "use <class>/<patient>/<frame> or ?patient=prefix"
        found.note(f"{alone} of {len(found.rows)} frames have no patient: {contract.ALONE}: {advice}")
    if several := sorted((person for person in labels if len(labels[person]) > 1), key=natural):
        # One person with nodules of several types, or numbers that restart in each class: never split either.
        for row in found.rows:
            row["nodule"] = row["label"] if row["patient"] in several else ""
        some = f"{len(several)} patient names occur in several classes ({', '.join(several[:5])})"
        found.note(f"{some}: kept together in splits")
    return found.manifest(title or f"folder {root.name}", contract.named(contract.in_order(names), names))
