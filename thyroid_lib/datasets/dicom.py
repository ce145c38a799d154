"""A DICOM tree: ultrasound frames out, and nothing of the header that says whose they are.

Patients, studies, devices and files appear as keyed hashes only (`thyroid_lib.datasets.identity`); no header text
and no file name reaches the manifest's public columns, a message or a log. Frames come out blanked outside the
scanner's own ultrasound region, or outside the largest connected region where the header names none, because
scanners print names beside the sector.

Layout: any tree of files. The class of a file is the name of the first folder, if that is a lesion type (or one
of ``?classes=a,b``), or comes from a table (``?labels=FILE.csv``).
"""

import csv
import math
from pathlib import Path

import pandas as pd
import pydicom
from joblib import Parallel, delayed

from thyroid_lib import LESION_TYPES, regions
from thyroid_lib.common.progress import progress
from thyroid_lib.datasets import contract, dicom_frames
from thyroid_lib.datasets.folder import lesion_type, order
from thyroid_lib.datasets.identity import pseudonym
from thyroid_lib.frames import FrameError, check_content

AGREE = 0.7  # intersection over union of the scanner's region and our largest one, below which it is reported
OLDEST = 90  # years; higher ages can tell a person
MAKERS = (
    "GE",
    "Philips",
    "Siemens",
    "Samsung",
    "Canon",
    "Toshiba",
    "Mindray",
    "Hitachi",
    "Fujifilm",
    "Esaote",
)
COLUMNS = ("PatientID", "AccessionNumber", "StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID", "file")


def read(
    root: Path, *, labels: str = "", classes: str = "", frames: str = "1", title: str = ""
) -> pd.DataFrame:
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
    if frames != "all" and not (frames.isdigit() and int(frames) > 0):
        raise contract.DatasetError(f"dicom: frames is all or a whole number from 1; {frames!r} came.")
    keys = [contract.class_key(key) for key in classes.split(",") if key.strip()] or list(LESION_TYPES)
    table = _labels(root, labels, keys) if labels else None
    single = root.is_file()
    found = [("", root, "")] if single else list(contract.files(root))
    rows, excluded, notes, work = [], [], [], []
    for name, path, reason in found:
        if path.name.upper() == "DICOMDIR":
            excluded.append((identifier(name), "the index of the medium, not an image"))
        elif single or contract.is_dicom(str(path)):
            work.append((name, str(path)))
        else:
            excluded.append((identifier(name), "not a DICOM file" if not reason.startswith("a ") else reason))
    if not work:
        raise contract.DatasetError(
            f"dicom: expected DICOM files; none among the {len(found)} files there. docs/data.md shows what is read."
        )
    jobs = Parallel(n_jobs=-1 if len(work) > 16 else 1, return_as="generator")
    for (name, path), about in zip(
        work, progress(jobs(delayed(_inspect)(path, frames) for _, path in work), "reading DICOM", len(work))
    ):
        if about["reason"]:
            excluded.append((identifier(name), about["reason"]))
            continue
        folder = lesion_type(name.partition("/")[0]) if "/" in name else ""
        label = _from_table(table, about["ids"], name) if table else (folder if folder in keys else "")
        for number, frame in about["frames"].items():
            image = identifier(name) + (f"#{number}" if about["count"] > 1 else "")
            if frame["reason"]:
                excluded.append((image, frame["reason"]))
                continue
            notes += [(image, note) for note in frame["notes"]]
            rows.append(
                {
                    "image": image,
                    "path": f"{path}#{number}",
                    "label": label,
                    **about["public"],
                    "region_agreement": frame["agreement"],
                }
            )
    if bare := sum(row["label"] == "" for row in rows):
        how = "the table of labels does not name them" if table else "their first folder is no class"
        notes.append(("", f"{bare} of {len(rows)} frames are unlabelled: {how}"))
    return contract.table(
        rows,
        dataset="dicom",
        title=title or "DICOM collection",
        classes=order({row["label"] for row in rows} - {""}) if not classes else keys,
        names=LESION_TYPES,
        excluded=excluded,
        notes=notes,
    )


def identifier(name: str) -> str:
    """The public name of a file: a keyed hash of its path below the root, for paths hold names of people."""
    return f"dicom/{pseudonym('file', name)}"


def find(root: Path, image: str) -> str:
    """The path below root of the file that has a public name; "" where there is none. For the owner's eyes."""
    wanted = image.partition("#")[0]
    return next((name for name, _, _ in contract.files(root) if identifier(name) == wanted), "")


def _inspect(path: str, wanted: str) -> dict:
    """What the manifest may know of a file: hashes, age, sex, and which of its frames can be used."""
    about = {"reason": "", "ids": {}, "public": {}, "frames": {}, "count": 0}
    with dicom_frames.quiet():
        try:
            dataset = dicom_frames.header(path)
            problem = dicom_frames.unusable(dataset)
        except FrameError as error:
            problem = error
        if problem:
            return about | {"reason": str(problem)}
        about["count"] = count = dicom_frames.frame_count(dataset)
        about["ids"] = {name: _text(dataset, name) for name in COLUMNS[:-1]}
        about["public"] = _public(dataset)
        take = count if wanted == "all" else min(count, int(wanted))
        for number in sorted({math.floor((i + 0.5) * count / take) for i in range(take)}):
            about["frames"][number] = _frame(path, dataset, number)
    return about


def _frame(path: str, dataset: pydicom.Dataset, number: int) -> dict:
    result = {"reason": "", "notes": [], "agreement": float("nan")}
    try:
        gray, coloured = dicom_frames.pixels(path, dataset, number)
        check_content(gray, coloured)
    except FrameError as error:
        return result | {"reason": str(error)}
    stated = dicom_frames.region_box(dataset, gray.shape)
    if stated is None:
        return result
    try:
        ours = regions.largest_region(gray).box
    except regions.NoRegion:
        return result | {"notes": ["no connected region was found inside the scanner's region"]}
    result["agreement"] = round(overlap(stated, ours), 4)
    if result["agreement"] < AGREE:
        result["notes"].append(
            f"the scanner's region {stated} and the largest connected region {ours} (x, y, width, height in px) "
            f"disagree: their overlap is {result['agreement']:.2f} of their union"
        )
    return result


def overlap(a: tuple, b: tuple) -> float:
    """Intersection over union of two boxes (x, y, width, height)."""
    width = min(a[0] + a[2], b[0] + b[2]) - max(a[0], b[0])
    height = min(a[1] + a[3], b[1] + b[3]) - max(a[1], b[1])
    common = max(0, width) * max(0, height)
    return common / (a[2] * a[3] + b[2] * b[3] - common)


def _public(dataset: pydicom.Dataset) -> dict:
    person = _text(dataset, "PatientID") or "\0".join(
        _text(dataset, name) for name in ("PatientName", "PatientBirthDate")
    ).strip("\0")
    uid = _text(dataset, "StudyInstanceUID")
    who = ("patient", _text(dataset, "IssuerOfPatientID"), person) if person else ("study", uid)
    return {
        "patient": pseudonym(*who),
        "study": study(dataset),
        "age": _age(dataset),
        "sex": _text(dataset, "PatientSex").upper()
        if _text(dataset, "PatientSex").upper() in ("F", "M", "O")
        else "",
        "device": scanner(dataset),
    }


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
    if len(text) == 4 and text[:3].isdigit() and text[3] in "YMWD":
        years = int(text[:3]) // {"Y": 1, "M": 12, "W": 52, "D": 365}[text[3]]
    elif born.isdigit() and seen.isdigit() and len(born) == len(seen) == 8:
        years = (int(seen) - int(born)) // 10000
    else:
        return float("nan")
    return float(min(years, OLDEST)) if years >= 0 else float("nan")


def _text(dataset: pydicom.Dataset, name: str) -> str:
    try:
        return str(dataset.get(name, "") or "").strip()
    except Exception:  # a value that cannot be converted is as good as none, and must not be quoted
        return ""


def _labels(root: Path, name: str, keys: list[str]) -> tuple[str, dict[str, str]]:
    """(column to match by, value -> class key or "") of a clinic's table."""
    path = Path(name).expanduser()
    path = path if path.is_absolute() else (root if root.is_dir() else root.parent) / path
    if not path.is_file():
        raise contract.DatasetError("dicom: the file given as labels does not exist.")
    with open(path, newline="", encoding="utf-8-sig") as file:
        reader = csv.DictReader(file)
        header = reader.fieldnames or []
        column = next((c for c in reversed(COLUMNS) if c in header), None)
        if column is None or "label" not in header:
            raise contract.DatasetError(
                f"dicom: the table of labels needs the column label and one of {', '.join(COLUMNS)}."
            )
        rows = [(row[column].strip(), lesion_type(row["label"] or "")) for row in reader]
    unknown = sorted(set(label for _, label in rows) - set(keys) - {""})
    if unknown:
        raise contract.DatasetError(
            f"dicom: {len(unknown)} labels of the table are none of {', '.join(keys)}; "
            "name the classes with classes=a,b."
        )
    pairs = set(rows)
    values = dict(pairs)
    if len(pairs) > len(values):
        raise contract.DatasetError(
            f"dicom: the table of labels gives {len(pairs) - len(values)} identifiers a second, other label."
        )
    return column, values


def _from_table(table: tuple[str, dict[str, str]], ids: dict[str, str], name: str) -> str:
    column, values = table
    return values.get(name if column == "file" else ids.get(column, ""), "")
