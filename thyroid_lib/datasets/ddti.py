"""DDTI: thyroid frames with TI-RADS grades and nodule outlines (Pedraza et al. 2015, SPIE 9287, 92870W).

Layout: one folder of ``<case>.xml`` and ``<case>_<n>.jpg``. The label is a TI-RADS group, never pathology.
Known traps, each handled: outlines cut at 2500 characters or empty (listed; such a frame has no mask), arrows
among the outlines (left out), cases that share identical frames (``ddti_notes.csv`` beside the set, or the
duplicate search of `thyroid_lib.manifest`, joins them), grades printed on the frame (column ``text``).
"""

import json
import re
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Literal

import pandas as pd

from thyroid_lib.common.files import natural
from thyroid_lib.common.messages import quoted
from thyroid_lib.datasets import contract

KAGGLE = "dasmehdixtr/ddti-thyroid-ultrasound-images"
GROUPS = {"2": "2-3", "3": "2-3", "4a": "4a", "4b": "4b", "4c": "4c-5", "5": "4c-5"}
SIGNS = ("composition", "echogenicity", "margins", "calcifications")
WORDS = {"non": "none", "ill defined": "ill-defined", "well defined smooth": "well defined"}


def read(root: Path, *, labels: Literal["groups", "two"] = "groups") -> pd.DataFrame:
    """Reads DDTI.

    Args:
        root: folder with the XML and JPEG files.
        labels: "groups" (2-3, 4a, 4b, 4c-5) or "two" (2-3, 4a-5).

    Returns:
        Manifest with `mask` (polygons), `age`, `sex`, `tirads`, the four described signs (`sign_*`), and `text` where
        the notes lie beside. Frames without a grade have the label "".

    Raises:
        DatasetError: no XML file is there.
    """
    found = contract.Collection("ddti", root)
    cases = sorted((p for p in root.glob("*.xml") if p.is_file()), key=lambda path: natural(path.name))
    if not cases:
        raise found.unlike("<case>.xml and <case>_<n>.jpg", "no XML file is there")
    classes = GROUPS if labels == "groups" else dict.fromkeys(GROUPS, "4a-5") | {"2": "2-3", "3": "2-3"}
    printed = contract.beside(root, "ddti_notes.csv")
    images = {}  # case -> number -> image
    for image, path in found.images("", *cases):
        case, _, number = path.stem.rpartition("_")
        if "/" in image or images.setdefault(case, {}).setdefault(number, image) != image:
            found.leave_out(image, "not <case>_<n>.jpg beside its XML file, or a second one")
    for path in cases:
        try:
            tree = ElementTree.parse(path).getroot()
        except ElementTree.ParseError as error:
            found.leave_out(path.name, f"broken XML: {error}")
            continue
        case, own = path.stem, images.pop(path.stem, {})
        outlines = _outlines(tree, case, found)
        grade = _text(tree, "tirads").lower().replace(" ", "")
        age = pd.to_numeric(_text(tree, "age"), errors="coerce")
        sex = {"f": "F", "m": "M"}.get(_text(tree, "sex").lower(), "")
        signs = {f"sign_{sign}": _sign(tree, sign) for sign in SIGNS}
        if grade and grade not in classes:
            found.note(f"unknown TI-RADS {quoted(grade)}, left unlabelled", path.name)
        for number in sorted({*own, *outlines}, key=natural):
            if number not in own:
                found.leave_out(f"{case}_{number}.jpg", f"named in {path.name}, but the file is missing")
                continue
            image, about = own[number], (printed or {}).get(own[number], {})
            mask = json.dumps(outlines[number]) if outlines.get(number) else ""
            row = {"group": about.get("group") or case, "mask": mask, "age": age, "sex": sex, "tirads": grade}
            row |= {**signs, "text": about.get("burned_in_text", "")}
            found.frame(image, classes.get(grade, ""), case, **row)
            if not grade:
                found.note("unlabelled: its case has no TI-RADS grade", image)
    for image in (image for left in images.values() for image in left.values()):
        found.leave_out(image, "no XML file for its case")
    if printed is None:
        found.note("ddti_notes.csv is not beside the set: text printed on the frames is not known")
    names = {key: f"TI-RADS {key.replace('-', '–')}" for key in classes.values()}
    names = {key: (name, f"{name} 类") for key, name in names.items()}
    return found.manifest("DDTI, TI-RADS groups (not pathology)", names)


def _outlines(tree, case: str, found: contract.Collection) -> dict[str, list]:
    """Freehand polygons by image number; a broken list gives none at all, for half a mask is a wrong one."""
    outlines = {}
    for mark in tree.iter("mark"):
        number, svg = ((mark.findtext(name) or "").strip() for name in ("image", "svg"))
        image, polygons = f"{case}_{number}.jpg", outlines.setdefault(number, [])
        try:
            shapes = json.loads(svg)
            arrows = sum(shape.get("regionType") == "arrow" for shape in shapes)
            drawn = [[[p["x"], p["y"]] for p in s["points"]] for s in shapes if s["regionType"] == "freehand"]
        except (ValueError, KeyError, TypeError, AttributeError):
            broken = "is empty" if not svg else "cannot be read" if svg.endswith("]") else "is cut short"
            found.note(f"no outline: its svg {broken}", image)
            continue
        good = [polygon for polygon in drawn if len(polygon) >= 3]
        if arrows:
            found.note(f"{arrows} arrow(s) among its outlines, left out", image)
        if len(good) < len(drawn):
            found.note(f"{len(drawn) - len(good)} outline(s) of fewer than three points, left out", image)
        polygons += good
    return outlines


def _sign(tree, name: str) -> str:
    """A described sign, in one of the set's own spellings of it."""
    value = re.sub("calcification$", "calcifications", re.sub(r"\s*-\s*", "-", _text(tree, name)))
    return WORDS.get(value, value)


def _text(tree, name: str) -> str:
    return " ".join((tree.findtext(name) or "").split())
