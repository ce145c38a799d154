"""ThyUS2Path: 8,508 frames of 842 cases with pathology (Hou et al. 2024, Scientific Data 11:1272, CC BY 4.0).

Layout: ``batch1_image/dataset/<case>_<nnn>.Jpg``, ``batch2_image/...`` and one ``*label*.csv`` per batch with
``patient_name,histo_label``. Case numbers restart in each batch, so a patient here is "batch1/<case>".
"""

import csv
import re
from pathlib import Path

import pandas as pd

from thyroid_lib.common.files import natural
from thyroid_lib.common.messages import listed
from thyroid_lib.datasets import contract


def read(root: Path) -> pd.DataFrame:
    """Reads ThyUS2Path.

    Args:
        root: folder with ``batch1_image`` and ``batch2_image``; the label files may lie in the batch folders or
            beside them, with "batch1", "batch2" in their path.

    Returns:
        Manifest with `part` (the batch).

    Raises:
        DatasetError: no batch folder, or no label file for one.
    """
    batches = [entry for entry in sorted(root.iterdir()) if re.match(r"batch\d+_image$", entry.name, re.I)]
    if not batches:
        contract.need(root, "batch1_image", "batch2_image", source="thyus2path")
    rows, excluded, notes = [], [], []
    label_files = [path for path in sorted(root.rglob("*.csv")) if "label" in path.name.casefold()]
    for folder in batches:
        batch = folder.name.partition("_")[0].casefold()
        own = [p for p in label_files if batch in p.relative_to(root).as_posix().casefold()]
        if len(own) != 1:
            raise contract.DatasetError(
                f"thyus2path: expected one *label*.csv for {batch} in {root}; found {len(own)}: "
                f"{', '.join(p.relative_to(root).as_posix() for p in own) or 'none'}. docs/data.md shows the layout."
            )
        labels = _labels(own[0])
        seen = set()
        for name, path, reason in contract.files(folder):
            image = f"{folder.name}/{name}"
            case = re.fullmatch(r"(.+)_(\d+)", path.stem)
            if path == own[0]:
                continue
            if reason or case is None:
                excluded.append((image, reason or "not named <case>_<number>"))
                continue
            seen.add(case[1])
            label = contract.benign_or_malignant(labels.get(case[1], ""))
            if not label:
                notes.append((image, "unlabelled: its case is not in the label file as 0 or 1"))
            patient = f"{batch}/{case[1]}"
            rows.append(
                {"image": image, "path": str(path), "label": label, "patient": patient, "part": batch}
            )
        for case in sorted(set(labels) - seen, key=natural):
            excluded.append(
                (f"{folder.name}/{case}_*", f"case in {own[0].name}, but no frame of it is there")
            )
    return contract.table(
        rows,
        dataset="thyus2path",
        title="ThyUS2Path",
        classes=list(contract.TWO),
        names=contract.TWO,
        excluded=excluded,
        notes=notes,
    )


def _labels(path: Path) -> dict[str, str]:
    with open(path, newline="", encoding="utf-8-sig") as file:
        reader = csv.DictReader(file)
        if not {"patient_name", "histo_label"} <= set(reader.fieldnames or []):
            raise contract.DatasetError(
                f"thyus2path: expected the columns patient_name and histo_label in {path.name}; "
                f"came: {listed(reader.fieldnames or ['nothing'])}."
            )
        return {row["patient_name"].strip(): row["histo_label"] for row in reader}
