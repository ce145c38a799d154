"""Readers of image collections: many layouts in, one contract out, the manifest.

``read(spec)`` finds the reader named before the colon and gives a table with one row per frame:

======== =====================================================================================
column   meaning
======== =====================================================================================
image    stable identifier, a path relative to the data set's root ("#7" names a frame of a clip)
path     absolute path of the file on this machine; never written to a report
label    class key, "" where the source gives none
patient  the finest identifier of the person that the source gives
group    what a split must never cut: the patient, or several joined by shared frames
dataset  name of the source
======== =====================================================================================

and, where the source gives them, ``mask`` (see `load_mask`), ``box`` ("x y width height" in px), ``age``
(years), ``sex``, ``device``, ``part`` (the source's own split), ``text`` (printed on the frame) and more.

``attrs`` of the table: ``classes`` (keys in order), ``names`` (key: (English, Chinese)), ``simulated``,
``title``, ``excluded`` (image, reason: every file that was found and not used) and ``notes`` (image, note).
"""

import importlib
import inspect
import re
from pathlib import Path
from typing import NamedTuple, get_args
from urllib.parse import parse_qsl

import pandas as pd

from thyroid_lib.common.messages import listed, quoted
from thyroid_lib.datasets.contract import DatasetError, public
from thyroid_lib.datasets.pixels import load_frame, load_mask

__all__ = ["SOURCES", "DatasetError", "Spec", "load_frame", "load_mask", "parse", "public", "read"]

SOURCES = "phantom ddti busi tn3k tg3k tn5000 auitd thyus2path stanford folder manifest dicom".split()
MODULES = {"manifest": "manifest_csv"}  # read by a module of another name than the source


class Spec(NamedTuple):
    """A parsed SPEC, ``source:location?key=value&key=value``."""

    source: str
    location: str
    options: dict[str, str]


def parse(spec: str) -> Spec:
    """Takes a SPEC apart.

    Args:
        spec: such as ``phantom:clinic?patients=120`` or ``ddti:PATH?labels=two``. Only what follows the last
            "?" and reads as key=value is taken for options, so a path may hold a question mark.

    Raises:
        DatasetError: the source is not one of `SOURCES`, or the location is missing.
    """
    source, colon, location = spec.partition(":")
    source = source.strip().lower()
    if not colon or source not in SOURCES:
        hint = f" Did you mean folder:{spec}?" if not colon and Path(spec).expanduser().is_dir() else ""
        came = f"{quoted(spec)} came" if not colon else f"the source {quoted(source)} came"
        expected = f"A data SPEC is SOURCE:PATH with a source among {', '.join(SOURCES)}"
        raise DatasetError(f"{expected}; {came}.{hint}")
    location, options = location.strip(), {}
    head, mark, tail = location.rpartition("?")
    pairs = parse_qsl(tail, keep_blank_values=True)
    if mark and "=" in tail and len(pairs) == tail.count("&") + 1:
        location, options = head, dict(pairs)
    if not location:
        where = "phantom:clinic?patients=120" if source == "phantom" else f"{source}:PATH"
        raise DatasetError(f"The SPEC {quoted(spec)} names no place to read; expected for example {where}.")
    return Spec(source, location, options)


def read(spec: str) -> pd.DataFrame:
    """Reads a data set's manifest.

    Args:
        spec: ``phantom:clinic?patients=120``, ``ddti:PATH``, ``busi:PATH``, ``tn3k:PATH``, ``tg3k:PATH``,
            ``tn5000:PATH``, ``auitd:PATH``, ``thyus2path:PATH``, ``stanford:PATH``, ``folder:PATH``,
            ``manifest:PATH`` or ``dicom:PATH``, with options after a "?".

    Returns:
        The manifest; its columns and attrs are described at the top of this module. Frames are not decoded
        here (but for DICOM, whose headers must be read): `thyroid_lib.manifest.check` does that.

    Raises:
        DatasetError: the place does not exist, an option is unknown, or the layout is not the source's.
    """
    asked = parse(spec)
    module = importlib.import_module(f"thyroid_lib.datasets.{MODULES.get(asked.source, asked.source)}")
    options = _options(asked, inspect.signature(module.read).parameters.values())
    return module.read(asked.location if asked.source == "phantom" else _place(asked, module), **options)


def _options(asked: Spec, parameters) -> dict:
    """The options of a SPEC as its reader's keyword arguments are annotated: `Literal` words, `Annotated` numbers."""
    known = {p.name: get_args(p.annotation) for p in parameters if p.kind == p.KEYWORD_ONLY}
    values = dict(asked.options)
    if unknown := [name for name in values if name not in known]:
        there = ", ".join(known) or "(none)"
        raise DatasetError(f"{asked.source}: knows the options {there}; {listed(unknown)} came.")
    for name, text in asked.options.items():
        right, expected = not known[name] or text in known[name], " or ".join(sorted(map(str, known[name])))
        if known[name][:1] == (int,):
            right = re.fullmatch(r"-?\d{1,9}", text) and int(text) >= known[name][1]
            values[name], expected = int(text) if right else text, f"a whole number from {known[name][1]}"
        if not right:
            raise DatasetError(f"{asked.source}: {name} is {expected}; {quoted(text)} came.")
    return values


def _place(asked: Spec, module) -> Path:
    handle = getattr(module, "KAGGLE", None)
    if asked.location == "kaggle" and handle:
        try:
            import kagglehub
        except ImportError as error:
            needed = "needs the package kagglehub: install the extra thyroid_lib[kaggle]"
            by_hand = f"download {handle} by hand and give its folder"
            raise DatasetError(f"Fetching from Kaggle {needed}, or {by_hand}.") from error
        return Path(kagglehub.dataset_download(handle))
    try:
        place = Path(asked.location).expanduser()
        there = place.exists()
    except (OSError, ValueError, RuntimeError):  # too long, not a name, the home of nobody
        place, there = Path(asked.location), False
    if not there:
        fetch = f" {asked.source}:kaggle fetches the set." if handle else ""
        # The path is the user's own words here, so it may be repeated, except for DICOM.
        shown = "the given place" if asked.source == "dicom" else str(place)
        came = f"{asked.source}: expected an existing folder or file; {shown} does not exist.{fetch}"
        raise DatasetError(f"{came} docs/data.md says where each set is to be had and how it is laid out.")
    return place.absolute()
