"""ThyUS2Path: 8,508 frames of 842 cases with pathology (Hou et al. 2024, Scientific Data 11:1272, CC BY 4.0).

Layout: ``batch1_image/dataset/<case>_<nnn>.Jpg``, ``batch2_image/...`` and one ``*label*.csv`` per batch with
``patient_name,histo_label``. Case numbers restart in each batch, so a patient here is "batch1/<case>".
"""

import re
from pathlib import Path

from thyroid_lib.common.files import natural
from thyroid_lib.common.messages import listed
from thyroid_lib.datasets import contract


def read(root: Path) -> contract.Manifest:
    """Reads ThyUS2Path.

    Args:
        root: folder with ``batch1_image`` and ``batch2_image``; the label files may lie in the batch folders or
            beside them, with "batch1", "batch2" in their path.

    Returns:
        Manifest with `part` (the batch).

    Raises:
        DatasetError: no batch folder, or no label file for one.
    """
    found = contract.Collection("thyus2path", root)
    there = sorted(entry.name for entry in root.iterdir())
    batches = [name for name in there if re.match(r"batch\d+_image$", name, re.IGNORECASE)]
    if not batches:
        found.need("batch1_image", "batch2_image")
    tables = [path for path in sorted(root.rglob("*.csv")) if "label" in path.name.casefold()]
    for folder in batches:
        batch = folder.partition("_")[0].casefold()
        own = [path for path in tables if batch in path.relative_to(root).as_posix().casefold()]
        if len(own) != 1:
            raise found.unlike(f"one *label*.csv for {batch}", f"{len(own)} came")
        labels = contract.texts(own[0])
        if not {"patient_name", "histo_label"} <= set(labels):
            columns = f"the columns patient_name and histo_label in {own[0].name}"
            raise found.unlike(columns, f"came: {listed(labels)}")
        labels = dict(zip(labels["patient_name"].str.strip(), labels["histo_label"]))
        seen = set()
        for image, path in found.images(folder, *own):
            case = re.fullmatch(r"(.+)_(\d+)", path.stem)
            if case is None:
                found.leave_out(image, "not named <case>_<number>")
                continue
            label = contract.benign_or_malignant(labels.get(case[1], ""))
            if not label:
                found.note("unlabelled: its case is not in the label file as 0 or 1", image)
            found.frame(image, label, f"{batch}/{case[1]}", part=batch)
            seen.add(case[1])
        for case in sorted(set(labels) - seen, key=natural):
            found.leave_out(f"{folder}/{case}_*", f"case in {own[0].name}, but no frame of it is there")
    return found.manifest("ThyUS2Path", contract.TWO)
