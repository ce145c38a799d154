"""A clinic's own table: ``manifest.csv`` with one row per frame.

Columns: ``image`` (path of the frame relative to the table's folder) and ``label``; better also ``patient``
(a pseudonym, never a name) and, as far as known, ``group``, ``nodule``, ``mask``, ``box``, ``age``, ``sex``,
``device`` and anything else, which is carried along unless its name says that it tells who a person is, or it repeats
what such a column says.
Comma, semicolon or tab; UTF-8 or GB 18030.
"""

import contextlib
import csv
import io
import json
import re
from pathlib import Path

from thyroid_lib.common.messages import listed
from thyroid_lib.datasets import contract
from thyroid_lib.datasets.contract import DatasetError

MAX_BYTES = 256 * 2**20
PERSONAL = re.compile(
    r"(^|_)(name|surname|first_?name|last_?name|dob|birth\w*|mrn|phone|mobile|address|e-?mail|ssn|accession\w*)($|_)"
    r"|姓名|出生|身份证|电话|手机|住址|地址|病历号"
)  # columns of a hospital's export that have no place in a study
KEPT = ("path", "mask", "label")  # paths never leave this machine, labels are known words
SEXES = {"F": "f female w woman 女", "M": "m male man 男", "O": "o other 其他", "": "u unknown n/a na 未知"}
NOT_INSIDE = "not inside the table's folder: relative, without '..'"


def read(root: Path, *, classes: str = "", title: str = "") -> contract.Manifest:
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
    found = contract.Collection("manifest", path.parent)
    if not path.is_file():
        raise found.unlike(path.name, "it is missing")
    header, lines = _lines(path)
    if lacking := [column for column in ("image", "label") if column not in header]:
        came = f"missing: {', '.join(lacking)}; came: {listed(header) or 'an empty table'}"
        raise DatasetError(f"manifest: {path.name} needs the columns image and label; {came}.")
    if personal := [name for name in header if PERSONAL.search(name)]:
        found.note(f"columns that seem to say who a person is are not read: {listed(personal)}")
    alone, hidden, people = 0, set(), {}
    for number, line in lines:
        if len(line) != len(header):
            came = f"{len(header)} cells are expected, {len(line)} came"
            found.leave_out(line[0].strip(), f"row {number}: {came}")
            continue
        cells = {name: value.strip() for name, value in zip(header, line)}
        told = _words(*(cells.pop(name) for name in dict.fromkeys(personal)))
        image = cells["image"].replace("\\", "/")
        where, label = str(path.parent / image) if image else "", contract.lesion_type(cells["label"])
        row = {**cells, "image": image, "path": where, "label": label}
        for name in [name for name in row if name not in KEPT and told & _words(row[name])]:
            if name in ("patient", "group"):
                row[name] = people.setdefault(row[name], f"person {len(people) + 1}")
            else:
                row[name] = f"row {number}" if name == "image" else ""
            hidden.add(name)
        row["row"] = number
        if row.get("mask"):
            row["mask"] = _mask(path.parent, row["mask"])
            if not row["mask"]:
                found.note(f"mask not used: {NOT_INSIDE}", row["image"])
        if "age" in row:
            row["age"] = _number(row["age"])
        if "sex" in row:
            known = (sex for sex, words in SEXES.items() if row["sex"].casefold() in words.split())
            row["sex"] = next(known, row["sex"])
        if not row.get("patient"):
            alone += 1
            row["patient"] = f"row {number}"
        found.rows.append(row)
    if hidden:
        instead = "are replaced by the numbers of rows and persons, or blanked"
        found.note(f"{', '.join(sorted(hidden))}: cells that repeat what a column left out says {instead}")
    if alone:
        found.note(f"{alone} of {len(found.rows)} rows have no patient: {contract.ALONE}")
    keys = contract.class_keys(classes) or contract.in_order({row["label"] for row in found.rows} - {""})
    # numbered: `row` is a row of a table that a person can open
    return found.manifest(title or f"manifest {path.parent.name}", contract.named(keys), numbered=True)


def _words(*texts: str) -> set[str]:
    """Words of texts that can tell a person: of four characters and more, or of two in other than Latin letters."""
    words = {word for text in texts for word in re.findall(r"[^\W_]+", text.casefold())}
    return {word for word in words if len(word) >= (4 if word.isascii() else 2)}


def _lines(path: Path) -> tuple[list[str], list[tuple[int, list[str]]]]:
    """Class keys of the header's names, and (row number, cells) of every row that is not blank."""
    it = f"manifest: {path.name}"
    if path.stat().st_size > MAX_BYTES:
        raise DatasetError(f"{it} is larger than {MAX_BYTES // 2**20} MiB: is it a table? Save it as CSV.")
    data, text = path.read_bytes(), None
    for encoding in ("gb18030", "utf-8-sig"):  # the last that fits
        with contextlib.suppress(UnicodeDecodeError):
            text = data.decode(encoding)
    if text is None:
        raise DatasetError(f"{it} is neither UTF-8 nor GB 18030 text; save it as UTF-8 CSV.")
    if "\0" in text:
        raise DatasetError(f"{it} is no text (a spreadsheet?); save it as UTF-8 CSV.")
    reader = csv.reader(io.StringIO(text), delimiter=max(",;\t", key=text.partition("\n")[0].count))
    try:
        header = [contract.class_key(name) for name in next(reader, [])]
        return header, [(reader.line_num, line) for line in reader if any(cell.strip() for cell in line)]
    except csv.Error as error:
        raise DatasetError(f"{it} breaks off at line {reader.line_num}: {error}.") from error


def _mask(folder: Path, value: str) -> str:
    """The manifest's cell for files of masks, joined with "|", or for JSON; "" where one lies outside the folder."""
    parts = [part.strip() for part in value.split("|")]
    if value.startswith("["):
        try:
            parts = json.loads(value)
        except (ValueError, RecursionError):
            return value  # the check names it
    parts = [part.replace("\\", "/") if isinstance(part, str) else part for part in parts]
    if any(isinstance(part, str) and contract.OUTSIDE.match(part) for part in parts):
        return ""
    return json.dumps([str(folder / part) if isinstance(part, str) else part for part in parts])


def _number(value: str) -> float | str:
    """A number where it is one; other text stays, so that the check can name it."""
    try:
        return float(value or "nan")
    except ValueError:
        return value
