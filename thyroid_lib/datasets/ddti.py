"""DDTI: thyroid frames with TI-RADS grades and nodule outlines (Pedraza et al. 2015, SPIE 9287, 92870W).

Layout: one folder of ``<case>.xml`` and ``<case>_<n>.jpg``. The label is a TI-RADS group, never pathology.
Known traps, each handled: outlines cut at 2500 characters or empty (listed; such a frame has no mask), arrows
among the outlines (left out), cases that share identical frames (``ddti_notes.csv`` beside the set, or the
duplicate search of `thyroid_lib.manifest`, joins them), grades printed on the frame (column ``text``).
"""

import csv
import json
import re
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pandas as pd

from thyroid_lib.common.files import natural
from thyroid_lib.common.messages import quoted
from thyroid_lib.datasets import contract

KAGGLE = "dasmehdixtr/ddti-thyroid-ultrasound-images"
GROUPS = {"2": "2-3", "3": "2-3", "4a": "4a", "4b": "4b", "4c": "4c-5", "5": "4c-5"}
TWO = {grade: "2-3" if group == "2-3" else "4a-5" for grade, group in GROUPS.items()}
SIGNS = ("composition", "echogenicity", "margins", "calcifications")
WORDS = {  # the set's own spellings of one value
    "non": "none",
    "ill defined": "ill-defined",
    "well defined smooth": "well defined",
    "microcalcification": "microcalcifications",
    "macrocalcification": "macrocalcifications",
}


def read(root: Path, *, labels: str = "groups") -> pd.DataFrame:
    """Reads DDTI.

    Args:
        root: folder with the XML and JPEG files.
        labels: "groups" (2-3, 4a, 4b, 4c-5) or "two" (2-3, 4a-5).

    Returns:
        Manifest with `mask` (polygons), `age`, `sex`, `tirads`, the four described signs (`sign_*`), and `text` where
        the notes lie beside. Frames without a grade have the label "".

    Raises:
        DatasetError: no XML file is there, or the option is unknown.
    """
    if labels not in ("groups", "two"):
        raise contract.DatasetError(f"ddti: labels is groups or two; {labels!r} came.")
    key = GROUPS if labels == "groups" else TWO
    listed = {image: (path, reason) for image, path, reason in contract.files(root) if "/" not in image}
    cases = [image for image in listed if image.lower().endswith(".xml")]
    if not cases:
        raise contract.DatasetError(
            f"ddti: expected <case>.xml and <case>_<n>.jpg in {root}; no XML file is there. "
            "docs/data.md shows the layout."
        )
    notes_file = contract.beside(root, "ddti_notes.csv")
    printed = _notes(notes_file) if notes_file else {}
    rows, excluded, notes, used = [], [], [], set()
    for case_file in cases:
        case = Path(case_file).stem
        used.add(case_file)
        try:
            tree = ElementTree.parse(listed[case_file][0]).getroot()
        except ElementTree.ParseError as error:
            excluded.append((case_file, f"broken XML: {error}"))
            continue
        outlines = _outlines(tree, case, notes)
        grade = _text(tree, "tirads").lower().replace(" ", "")
        if grade and grade not in key:
            notes.append((case_file, f"unknown TI-RADS {quoted(grade)}, left unlabelled"))
        numbers = {Path(i).stem.rpartition("_")[2] for i in listed if Path(i).stem.rpartition("_")[0] == case}
        for number in sorted(numbers | set(outlines), key=natural):
            names = (f"{case}_{number}{suffix}" for suffix in (".jpg", ".JPG", ".jpeg", ".png"))
            image = next((name for name in names if name in listed), None)
            if image is None:
                excluded.append((f"{case}_{number}.jpg", f"named in {case_file}, but the file is missing"))
                continue
            used.add(image)
            about = printed.get(image, {})
            rows.append(
                {
                    "image": image,
                    "path": str(listed[image][0]),
                    "label": key.get(grade, ""),
                    "patient": case,
                    "group": about.get("group") or case,
                    "mask": json.dumps(outlines[number]) if outlines.get(number) else "",
                    "age": pd.to_numeric(_text(tree, "age"), errors="coerce"),
                    "sex": {"f": "F", "m": "M"}.get(_text(tree, "sex").lower(), ""),
                    "tirads": grade,
                    **{f"sign_{sign}": _sign(tree, sign) for sign in SIGNS},
                    "text": about.get("burned_in_text", ""),
                }
            )
            if not grade:
                notes.append((image, "unlabelled: its case has no TI-RADS grade"))
    for image, (_, reason) in listed.items():
        if image not in used:
            excluded.append((image, reason or "no XML file for its case"))
    if not notes_file:
        notes.append(("", "ddti_notes.csv is not beside the set: text printed on the frames is not known"))
    classes = list(dict.fromkeys(key.values()))
    return contract.table(
        rows,
        dataset="ddti",
        title="DDTI, TI-RADS groups (not pathology)",
        classes=classes,
        names={c: (f"TI-RADS {c.replace('-', '–')}", f"TI-RADS {c.replace('-', '–')} 类") for c in classes},
        excluded=excluded,
        notes=notes,
    )


def _sign(tree, name: str) -> str:
    value = re.sub(r"\s*-\s*", "-", _text(tree, name))
    return WORDS.get(value, value)


def _outlines(tree, case: str, notes: list) -> dict[str, list]:
    """Freehand polygons by image number; a broken list gives none at all, for half a mask is a wrong one."""
    outlines = {}
    for mark in tree.iter("mark"):
        number = (mark.findtext("image") or "").strip()
        svg = (mark.findtext("svg") or "").strip()
        image = f"{case}_{number}.jpg"
        polygons = outlines.setdefault(number, [])
        if not svg:
            notes.append((image, "no outline: its svg is empty"))
            continue
        try:
            shapes = json.loads(svg)
            kinds = [shape.get("regionType") for shape in shapes]
            drawn = [[[p["x"], p["y"]] for p in s["points"]] for s in shapes if s["regionType"] == "freehand"]
        except (ValueError, KeyError, TypeError, AttributeError):
            cut = "is cut short" if not svg.endswith("]") else "cannot be read"
            notes.append((image, f"no outline: its svg {cut}"))
            continue
        good = [polygon for polygon in drawn if len(polygon) >= 3]
        if arrows := kinds.count("arrow"):
            notes.append((image, f"{arrows} arrow(s) among its outlines, left out"))
        if len(good) < len(drawn):
            notes.append((image, f"{len(drawn) - len(good)} outline(s) of fewer than three points, left out"))
        polygons += good
    return outlines


def _notes(path: Path) -> dict[str, dict]:
    with open(path, newline="", encoding="utf-8") as file:
        return {row["image"]: row for row in csv.DictReader(file)}


def _text(tree, name: str) -> str:
    return " ".join((tree.findtext(name) or "").split())
