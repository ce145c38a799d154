"""A DICOM tree: ultrasound frames out, and nothing of the header that says whose they are.

Patients, studies, devices and files appear as keyed hashes only (`thyroid_lib.datasets.identity`); no header text
and no file name reaches the manifest's public columns, a message or a log. Frames come out blanked outside the
scanner's own ultrasound region, or outside the largest connected region where the header names none, because
scanners print names beside the sector.

Layout: any tree of files. The class of a file is the name of the first folder, if that is a lesion type (or one
of ``?classes=a,b``), or comes from a table (``?labels=FILE.csv``).
"""

import math
import re
from pathlib import Path

import pydicom
from joblib import Parallel, delayed

from thyroid_lib import LESION_TYPES, regions
from thyroid_lib.common.progress import progress
from thyroid_lib.datasets import contract, dicom_frames
from thyroid_lib.datasets.contract import DatasetError
from thyroid_lib.datasets.identity import pseudonym
from thyroid_lib.frames import FrameError

AGREE = 0.7  # intersection over union of the scanner's region and our largest one, below which it is reported
OLDEST = 90  # years; higher ages can tell a person
MAKERS = "GE Philips Siemens Samsung Canon Toshiba Mindray Hitachi Fujifilm Esaote".split()
COLUMNS = ("PatientID", "AccessionNumber", "StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID", "file")


def read(
    root: Path, *, labels: str = "", classes: str = "", frames: str = "1", title: str = ""
) -> contract.Manifest:
    """Reads a DICOM tree.

    Args:
        root: folder, or one DICOM file.
        labels: a CSV file with a column `label` and one of `COLUMNS` to find the files by; a relative path is
            taken from root. It is read for matching only, none of its identifiers goes further.
        classes: comma-separated class keys; by default the four lesion types.
        frames: how many frames of a clip to take, evenly spaced ("1" the middle one), or "all".
        title: name of the collection for reports.

    Returns:
        Manifest with `study`, `nodule` (empty), `age` (90 stands for 90 and above), `sex`, `device` and
        `region_agreement` (intersection over union of the scanner's 2D region and the largest connected region).
        Colour Doppler, M-mode and spectral frames and files that are no ultrasound are listed as excluded.

    Raises:
        DatasetError: no DICOM file is there, an option is unknown, or the table of labels cannot be used.
    """
    if not re.fullmatch("all|0*[1-9][0-9]*", frames):
        raise DatasetError(f"dicom: frames is all or a whole number from 1; {frames!r} came.")
    keys = contract.class_keys(classes) or list(LESION_TYPES)
    column, known = _labels(root, labels, keys) if labels else ("", {})
    found = contract.Collection("dicom", root)
    listed, work = [("", root, "")] if root.is_file() else list(contract.files(root)), []
    for name, path, reason in listed:
        if path.name.upper() == "DICOMDIR":
            found.leave_out(identifier(name), "the index of the medium, not an image")
        elif path == root or contract.is_dicom(path):
            work.append((name, str(path)))
        else:
            found.leave_out(identifier(name), reason if reason.startswith("a ") else "not a DICOM file")
    if not work:
        came = f"none among the {len(listed)} files there"
        raise DatasetError(f"dicom: expected DICOM files; {came}. docs/data.md shows what is read.")
    jobs = Parallel(n_jobs=-1 if len(work) > 16 else 1, return_as="generator")
    results = jobs(delayed(_inspect)(path, frames) for _, path in work)
    for (name, path), about in zip(work, progress(results, "reading DICOM", len(work))):
        folder = contract.lesion_type(name.partition("/")[0]) if "/" in name else ""
        label = folder if folder in keys else ""
        if column:
            label = known.get(name if column == "file" else about["ids"].get(column), "")
        for number, (reason, note, agreement) in about["frames"].items():
            image = identifier(name) + (f"#{number}" if about["count"] > 1 else "")
            if note:
                found.note(note, image)
            if reason:
                found.leave_out(image, reason)
            else:
                found.frame(
                    image, label, path=f"{path}#{number}", **about["public"], region_agreement=agreement
                )
    if bare := sum(row["label"] == "" for row in found.rows):
        how = "the table of labels does not name them" if column else "their first folder is no class"
        found.note(f"{bare} of {len(found.rows)} frames are unlabelled: {how}")
    seen = keys if classes else contract.in_order({row["label"] for row in found.rows} - {""})
    return found.manifest(title or "DICOM collection", contract.named(seen))


def identifier(name: str) -> str:
    """The public name of a file: a keyed hash of its path below the root, for paths hold names of people."""
    return f"dicom/{pseudonym('file', name)}"


def find(root: Path, image: str) -> str:
    """The path below root of the file that has a public name; "" where there is none. For the owner's eyes."""
    wanted = image.partition("#")[0]
    return next((name for name, _, _ in contract.files(root) if identifier(name) == wanted), "")


def _inspect(path: str, wanted: str) -> dict:
    """What the manifest may know of a file: hashes, age, sex, and its frames as `_frame` gives them."""
    with dicom_frames.quiet():
        try:
            dataset = dicom_frames.usable(path)
        except FrameError as error:
            return {"count": 1, "ids": {}, "frames": {0: (str(error), "", math.nan)}}
        count = dicom_frames.frame_count(dataset)
        take = count if wanted == "all" else min(count, int(wanted))
        numbers = sorted({math.floor((i + 0.5) * count / take) for i in range(take)})
        ids = {name: _text(dataset, name) for name in COLUMNS[:-1]}
        taken = {number: _frame(path, dataset, number) for number in numbers}
        return {"count": count, "ids": ids, "public": _public(dataset), "frames": taken}


def _frame(path: str, dataset: pydicom.Dataset, number: int) -> tuple[str, str, float]:
    """Why a frame cannot be used ("" where it can), a note, and how far the stated region agrees with ours."""
    try:
        gray, stated = dicom_frames.pixels(path, dataset, number)
        if stated is None:
            return "", "", math.nan
        ours = regions.largest_region(gray).box
    except FrameError as error:
        return str(error), "", math.nan
    except regions.NoRegion:
        return "", "no connected region was found inside the scanner's region", math.nan
    agreement = round(overlap(stated, ours), 4)
    boxes = f"region {stated} and the largest connected region {ours} (x, y, width, height in px)"
    note = f"the scanner's {boxes} disagree: their overlap is {agreement:.2f} of their union"
    return "", note if agreement < AGREE else "", agreement


def overlap(a: tuple, b: tuple) -> float:
    """Intersection over union of two boxes (x, y, width, height)."""
    width = min(a[0] + a[2], b[0] + b[2]) - max(a[0], b[0])
    height = min(a[1] + a[3], b[1] + b[3]) - max(a[1], b[1])
    common = max(0, width) * max(0, height)
    return common / (a[2] * a[3] + b[2] * b[3] - common)


def _public(dataset: pydicom.Dataset) -> dict:
    name_and_birth = f"{_text(dataset, 'PatientName')}\0{_text(dataset, 'PatientBirthDate')}"
    person = _text(dataset, "PatientID") or name_and_birth.strip("\0")
    who = ("patient", _text(dataset, "IssuerOfPatientID"), person)
    patient, sex = pseudonym(*who) if person else study(dataset), _text(dataset, "PatientSex").upper()
    about = {"patient": patient, "study": study(dataset), "age": _age(dataset)}
    return about | {"sex": sex if sex in ("F", "M", "O") else "", "device": scanner(dataset)}


def scanner(dataset: pydicom.Dataset) -> str:
    """A maker's name from our list and six digits that tell its models apart: "Philips 3fa2b1"."""
    maker = _text(dataset, "Manufacturer")
    brand = next((name for name in MAKERS if maker.casefold().startswith(name.casefold())), "device")
    return f"{brand} {pseudonym('device', maker, _text(dataset, 'ManufacturerModelName'))[:6]}"


def study(dataset: pydicom.Dataset) -> str:
    """Pseudonym of a study: the same in a manifest and in a report of `classify`."""
    return pseudonym("study", _text(dataset, "StudyInstanceUID"))


def _age(dataset: pydicom.Dataset) -> float:
    text, born, seen = (_text(dataset, n) for n in ("PatientAge", "PatientBirthDate", "StudyDate"))
    years = -1
    if re.fullmatch(r"\d{3}[YMWD]", text):
        years = int(text[:3]) // {"Y": 1, "M": 12, "W": 52, "D": 365}[text[3]]
    elif re.fullmatch(r"\d{8} \d{8}", f"{born} {seen}"):
        years = (int(seen) - int(born)) // 10000
    return float(min(years, OLDEST)) if years >= 0 else math.nan


def _text(dataset: pydicom.Dataset, name: str) -> str:
    try:
        return str(dataset.get(name, "") or "").strip()
    except Exception:  # a value that cannot be converted is as good as none, and must not be quoted
        return ""


def _labels(root: Path, name: str, keys: list[str]) -> tuple[str, dict[str, str]]:
    """(column to match by, value -> class key or "") of a clinic's table."""
    path = (root if root.is_dir() else root.parent) / Path(name).expanduser()
    if not path.is_file():
        raise DatasetError("dicom: the file given as labels does not exist.")
    table = contract.texts(path)
    column = next((c for c in reversed(COLUMNS) if c in table), None)
    if column is None or "label" not in table:
        needed = f"the column label and one of {', '.join(COLUMNS)}"
        raise DatasetError(f"dicom: the table of labels needs {needed}.")
    pairs = set(zip(table[column].str.strip(), table["label"].map(contract.lesion_type)))
    if unknown := {label for _, label in pairs} - {*keys, ""}:
        came = f"{len(unknown)} labels of the table are none of {', '.join(keys)}"
        raise DatasetError(f"dicom: {came}; name the classes with classes=a,b.")
    values = dict(pairs)
    if twice := len(pairs) - len(values):
        raise DatasetError(f"dicom: the table of labels gives {twice} identifiers a second, other label.")
    return column, values
