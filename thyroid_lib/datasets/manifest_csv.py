"""A clinic's own table: ``manifest.csv`` with one row per frame.

Columns: ``image`` (path of the frame relative to the table's folder) and ``label``; better also ``patient``
(a pseudonym, never a name) and, as far as known, ``group``, ``nodule``, ``mask``, ``box``, ``age``, ``sex``,
``device`` and anything else, which is carried along unless its name says that it tells who a person is, or it repeats
what such a column says.
Comma, semicolon or tab; UTF-8 or GB 18030.
"""

import csv
import io
import json
import re
from pathlib import Path

import pandas as pd

from thyroid_lib import LESION_TYPES
from thyroid_lib.common.messages import listed
from thyroid_lib.datasets import contract
from thyroid_lib.datasets.folder import lesion_type, order

MAX_BYTES = 256 * 2**20
PERSONAL = re.compile(
    r"(^|_)(name|surname|first_?name|last_?name|dob|birth\w*|mrn|phone|mobile|address|e-?mail|ssn|accession\w*)($|_)"
    r"|姓名|出生|身份证|电话|手机|住址|地址|病历号"
)  # columns of a hospital's export that have no place in a study


def read(root: Path, *, classes: str = "", title: str = "") -> pd.DataFrame:
    """Reads a table of frames.

    Args:
        root: the table, or a folder with ``manifest.csv``.
        classes: comma-separated class keys in order; rows with another label are then listed. By default the
            classes are the labels that occur, lesion types first.
        title: name of the collection for reports.

    Returns:
        Manifest; `row` is the row's number in the table as a spreadsheet shows it (the header is row 1).

    Raises:
        DatasetError: there is no table, it cannot be decoded, or it has no column `image` or `label`.
    """
    path = root / "manifest.csv" if root.is_dir() else root
    if not path.is_file():
        entries = (
            sorted(entry.name for entry in root.iterdir())[:12] if root.is_dir() else ["nothing: it is none"]
        )
        raise contract.DatasetError(
            f"manifest: expected {path}; the folder holds {', '.join(entries) or 'nothing'}."
        )
    header, lines = _lines(path)
    lacking = [column for column in ("image", "label") if column not in header]
    if lacking:
        raise contract.DatasetError(
            f"manifest: {path.name} needs the columns image and label; missing: {', '.join(lacking)}; "
            f"came: {listed(header) or 'an empty table'}."
        )
    rows, excluded, notes, alone, hidden, people = [], [], [], 0, set(), {}
    personal = [name for name in header if PERSONAL.search(name)]
    if personal:
        notes.append(("", f"columns that seem to say who a person is are not read: {listed(personal)}"))
    for number, line in lines:
        if len(line) != len(header):
            image = line[0].strip() if line else ""
            excluded.append((image, f"row {number}: {len(header)} cells are expected, {len(line)} came"))
            continue
        row = {name: value.strip() for name, value in zip(header, line) if name not in personal}
        row["image"] = row["image"].replace("\\", "/")
        row |= {"path": _absolute(path.parent, row["image"]), "label": lesion_type(row["label"])}
        told = _words(value for name, value in zip(header, line) if name in personal)
        for name in [name for name in row if name not in KEPT and told & _words([row[name]])]:
            if name in ("patient", "group"):
                row[name] = people.setdefault(row[name], f"person {len(people) + 1}")
            else:
                row[name] = f"row {number}" if name == "image" else ""
            hidden.add(name)
        row["row"] = number
        if row.get("mask"):
            row["mask"], outside = _mask(path.parent, row["mask"])
            if outside:
                notes.append(
                    (row["image"], "mask not used: not inside the table's folder: relative, without '..'")
                )
        if "age" in row:
            row["age"] = _number(row["age"])
        if "sex" in row:
            row["sex"] = SEXES.get(row["sex"].casefold(), row["sex"])
        if not row.get("patient"):
            alone += 1
            row["patient"] = f"row {number}"
        rows.append(row)
    if hidden:
        notes.append(
            (
                "",
                f"{', '.join(sorted(hidden))}: cells that repeat what a column left out says are replaced by the "
                "numbers of rows and persons, or blanked",
            )
        )
    if alone:
        notes.append(
            (
                "",
                f"{alone} of {len(rows)} rows have no patient: each counts as a patient of its own, and frames of "
                "one person may fall on both sides of a split",
            )
        )
    asked = [contract.class_key(key) for key in classes.split(",") if key.strip()]
    found = {row["label"] for row in rows} - {""}
    data = contract.table(
        rows,
        dataset="manifest",
        title=title or f"manifest {path.parent.name}",
        classes=asked or order(found),
        names=LESION_TYPES,
        excluded=excluded,
        notes=notes,
    )
    data.attrs["numbered"] = True  # `row` is a row of a table that a person can open
    return data


KEPT = ("path", "mask", "label")  # paths never leave this machine, labels are known words


def _words(texts) -> set[str]:
    """Words of texts that can tell a person: of four characters and more, or of two in other than Latin letters."""
    words = {word for text in texts for word in re.findall(r"[^\W_]+", text.casefold())}
    return {word for word in words if len(word) >= (4 if word.isascii() else 2)}


SEXES = {
    **dict.fromkeys(["f", "female", "w", "woman", "女"], "F"),
    **dict.fromkeys(["m", "male", "man", "男"], "M"),
    **dict.fromkeys(["o", "other", "其他"], "O"),
    **dict.fromkeys(["", "u", "unknown", "n/a", "na", "未知"], ""),
}


def _lines(path: Path) -> tuple[list[str], list[tuple[int, list[str]]]]:
    if path.stat().st_size > MAX_BYTES:
        raise contract.DatasetError(
            f"manifest: {path.name} is larger than {MAX_BYTES // 2**20} MiB: is it a table?"
        )
    data = path.read_bytes()
    for encoding in ("utf-8-sig", "gb18030"):
        try:
            text = data.decode(encoding)
            break
        except UnicodeDecodeError:
            continue
    else:
        raise contract.DatasetError(
            f"manifest: {path.name} is neither UTF-8 nor GB 18030 text; save it as UTF-8 CSV."
        )
    if "\0" in text:
        raise contract.DatasetError(
            f"manifest: {path.name} is no text (a spreadsheet?); save it as UTF-8 CSV."
        )
    first = text.partition("\n")[0]
    delimiter = max(",;\t", key=first.count)
    reader = csv.reader(io.StringIO(text), delimiter=delimiter)
    try:
        header = [contract.class_key(name) for name in next(reader, [])]
        return header, [(reader.line_num, line) for line in reader if any(cell.strip() for cell in line)]
    except csv.Error as error:
        raise contract.DatasetError(
            f"manifest: {path.name} breaks off at line {reader.line_num}: {error}."
        ) from error


def _absolute(folder: Path, image: str) -> str:
    return str(folder / image) if image else ""


def _mask(folder: Path, value: str) -> tuple[str, bool]:
    """The manifest's cell for files of masks, joined with "|", or for JSON; and whether one lies outside the folder."""
    parts = [part.strip() for part in value.split("|")]
    if value.startswith("["):
        try:
            parts = json.loads(value)
        except (ValueError, RecursionError):
            return value, False  # the check names it
    named = [part.replace("\\", "/") if isinstance(part, str) else part for part in parts]
    if any(isinstance(part, str) and contract.OUTSIDE.match(part) for part in named):
        return "", True
    return json.dumps([str(folder / part) if isinstance(part, str) else part for part in named]), False


def _number(value: str) -> float | str:
    """A number where it is one; other text stays, so that the check can name it."""
    try:
        return float(value) if value else float("nan")
    except ValueError:
        return value
