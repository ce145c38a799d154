"""The single checks that `thyroid_lib.manifest.check` runs: schema, files, frames that show the same, contradictions.

Each takes the table and the problems found so far, adds its own, and gives back the rows that are left.
"""

import itertools
import re

import numpy as np
import pandas as pd
import pandera.pandas as pa
from joblib import Parallel, delayed

from thyroid_lib import frames
from thyroid_lib.common.messages import listed, quoted
from thyroid_lib.common.progress import progress
from thyroid_lib.datasets import contract, duplicates, pixels

LEFT_OUT, BLANKED, NOTE = "row left out", "value blanked", "note"
BATCH = 32  # frames a worker decodes before it reports
WORTH_WORKERS = 256  # frames below which starting processes costs more than it saves
GIANT = 0.2  # of the patients in one joined group: more likely one template than one person
LOOKS = {
    b"<!doctype html": "a web page: an error page of a download?",
    b"<html": "a web page: an error page of a download?",
    b"<?xml": "an XML or SVG text",
    b"<svg": "an XML or SVG text",
    b"version https://git-lfs": "a Git LFS pointer: fetch the files with git lfs pull",
    b"pk\x03\x04": "a ZIP archive: unpack it first",
    b"\x1f\x8b": "a gzip archive: unpack it first",
    b"%pdf": "a PDF",
    b"riff": "a film or sound: save its frames as images",
}  # first bytes, lower case -> what the file is


class ManifestError(ValueError):
    """A manifest that cannot be used as asked; the message lists every reason."""


class Problems(list):
    """What was found: dicts of row, column, problem, image and action."""

    def add(self, row, column: str, text: str, action: str) -> None:
        """Notes one finding of `row`, a mapping with `row` and `image`; no path of this machine is kept."""
        image = row["image"]
        if contract.OUTSIDE.match(image):
            image = "…/" + re.split(r"[/\\]", image)[-1]
        self.append({"row": row["row"], "column": column, "problem": text, "image": image, "action": action})

    def table(self) -> pd.DataFrame:
        """One row per finding."""
        table = pd.DataFrame(self, columns=["row", "column", "problem", "image", "action"])
        return table.astype({"row": "Int64"})


def rows(data: pd.DataFrame) -> list[dict]:
    """Where the rows of a table stand: mappings with `row` and `image`."""
    return data[["row", "image"]].to_dict("records")


def _text(*checks, **options) -> pa.Column:
    return pa.Column(str, checks=list(checks), coerce=True, **options)


def _is(rule, problem: str) -> pa.Check:
    return pa.Check(rule, element_wise=True, error=problem)


FILLED = _is(lambda value: bool(value.strip()), "empty; a value is expected")
SCHEMA = pa.DataFrameSchema(
    {
        "image": _text(
            FILLED,
            _is(
                lambda v: not contract.OUTSIDE.match(v),
                "not inside the data set's folder: relative, without '..'",
            ),
        ),
        "path": _text(FILLED),
        "label": _text(),
        "patient": _text(FILLED),
        "group": _text(FILLED),
        "dataset": _text(FILLED),
        "age": pa.Column(
            None,
            _is(lambda v: isinstance(v, (int, float)) and 0 <= v <= 120, "not an age in years from 0 to 120"),
            nullable=True,
            required=False,
        ),
        "sex": _text(_is(lambda v: v in ("F", "M", "O", ""), "not F, M, O or empty"), required=False),
        "box": _text(
            _is(
                lambda v: not v or (len(v.split()) == 4 and all(n.isdigit() for n in v.split())),
                "not four whole numbers 'x y width height'",
            ),
            required=False,
        ),
    }
)
"""What a manifest must hold. Rows that fail in the first six columns are left out, other values blanked."""
REQUIRED = list(SCHEMA.columns)[:6]


def schema(data: pd.DataFrame, classes: list[str], problems: Problems) -> pd.DataFrame:
    """Holds every value against SCHEMA and the classes, all at once; bad rows go, other bad values are blanked."""
    try:
        SCHEMA.validate(data, lazy=True)
        cases = []
    except pa.errors.SchemaErrors as errors:
        cases = errors.failure_cases.to_dict("records")
    bad, blank = set(), []
    for case in cases:
        index, column = case["index"], case["column"]
        if index is None or pd.isna(index):
            raise ManifestError(f"Column {column}: {case['check']}; came {quoted(case['failure_case'])}.")
        came = "" if column in ("image", "path") else f"; came {quoted(case['failure_case'])}"
        text = f"{case['check']}{came}"
        if column in REQUIRED:
            bad.add(int(index))
        else:
            blank.append((int(index), column))
        action = LEFT_OUT if column in REQUIRED else BLANKED
        problems.add(data.loc[int(index)], column, text, action)
    unknown = data.index[~data["label"].isin([*classes, ""])] if classes else []
    for index in unknown:
        text = f"not one of {listed(classes)}; came {quoted(data.at[index, 'label'])}"
        problems.add(data.loc[index], "label", text, LEFT_OUT)
    twice = data.index[data["image"].duplicated()]
    for index in twice:
        problems.add(data.loc[index], "image", "named twice; the first row is used", LEFT_OUT)
    data = data.copy()
    for index, column in blank:
        data.loc[index, column] = None if column == "age" else ""
    if "age" in data:
        data["age"] = pd.to_numeric(data["age"])
    return data.drop(index=bad | set(unknown) | set(twice))


def files(data: pd.DataFrame, problems: Problems, jobs: int) -> pd.DataFrame:
    """Decodes every frame once, in parallel; keeps the readable ones with their hashes."""
    records = data[["path", *(["mask"] if "mask" in data else [])]].to_dict("records")
    batches = [records[start : start + BATCH] for start in range(0, len(records), BATCH)]
    jobs = 1 if len(records) < WORTH_WORKERS else jobs
    work = Parallel(n_jobs=jobs, return_as="generator")(delayed(_inspect)(batch) for batch in batches)
    results = list(itertools.chain.from_iterable(progress(work, "checking frames", len(records), size=len)))
    data = data.copy()
    for index, row, found in zip(data.index, rows(data), results):
        if found["reason"]:
            problems.add(row, "image", found["reason"], LEFT_OUT)
        if found["mask"]:
            problems.add(row, "mask", found["mask"], BLANKED)
            data.at[index, "mask"] = ""
        for note in found["notes"]:
            problems.add(row, "image", note, NOTE)
    data["sha256"] = [found["sha256"] for found in results]
    data["phash"] = [found["phash"] for found in results]
    marked = [any(note.startswith(frames.MARKS) for note in found["notes"]) for found in results]
    if any(marked):
        data["coloured_marks"] = marked
    return data[np.array([not found["reason"] for found in results], bool)]


def _inspect(batch: list[dict]) -> list[dict]:
    """Why a frame must be left out or its mask blanked ("" for neither), notes, and the two hashes."""
    results = []
    for row in batch:
        found = {"reason": "", "mask": "", "notes": [], "sha256": "", "phash": ""}
        results.append(found)
        try:
            frame = pixels.open_frame(row)
        except (frames.FrameError, contract.DatasetError) as error:
            found["reason"] = str(error)
            if getattr(error, "kind", "") == "not_an_image":
                found["reason"] += _look(row["path"])
            continue
        found["notes"] = list(frame.warnings)
        found["sha256"], found["phash"] = duplicates.fingerprint(frame.gray)
        try:
            mask = pixels.load_mask(row, frame.gray.shape)
            if mask is not None and not mask.any():
                found["notes"].append("its mask is empty")
        except (frames.FrameError, contract.DatasetError, ValueError, TypeError) as error:
            found["mask"] = f"mask not used: {error}"
    return results


def _look(path: str) -> str:
    """What a file that is no image looks like, for the reason why it is left out."""
    try:
        with open(path, "rb") as file:
            start = file.read(1024)
    except OSError:
        return ""
    for mark, words in LOOKS.items():
        if start.lstrip().lower().startswith(mark):
            return f"; it looks like {words}"
    if not start.strip(b"\0"):
        return "; it holds only zeros: a copy that broke off?"
    return "; it looks like plain text" if start.isascii() and b"\0" not in start else ""


def joined(data: pd.DataFrame, problems: Problems) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Joins the groups of frames that show the same; also gives the table of such pairs."""
    found = duplicates.pairs(data["sha256"], data["phash"])
    a, b = found["a"].to_numpy(), found["b"].to_numpy()
    value = {name: data[name].to_numpy() for name in ("image", "patient", "label", "group")}
    table = pd.DataFrame(
        {
            "image_a": value["image"][a],
            "image_b": value["image"][b],
            "bits": found["bits"],
            "identical": found["identical"],
            "same_patient": value["patient"][a] == value["patient"][b],
            "same_label": value["label"][a] == value["label"][b],
        }
    )
    order = np.argsort(pd.factorize(value["patient"])[0], kind="stable")  # frames of a patient stand together
    person = value["patient"][order]
    same = np.nonzero(person[1:] == person[:-1])[0]
    joined = duplicates.join(
        value["group"], np.concatenate([a, order[same]]), np.concatenate([b, order[same + 1]])
    )
    table["joined"] = value["group"][a] != value["group"][b]
    across = table["joined"].to_numpy()
    for position in sorted({*a[across], *b[across]}):
        where = {"row": data["row"].iloc[position], "image": value["image"][position]}
        problems.add(
            where, "group", "shows the same as a frame of another group: the groups are joined", NOTE
        )
    data = data.assign(group=joined)
    if len(data):
        people = data.groupby("group")["patient"].nunique()
        if people.max() > max(3, GIANT * data["patient"].nunique()):
            where = {"row": pd.NA, "image": ""}
            text = (
                f"group {quoted(people.idxmax())} joins {people.max()} of {data['patient'].nunique()} patients by "
                "frames that look alike: look at the duplicates table before trusting it"
            )
            problems.add(where, "group", text, NOTE)
    return data, table


def contradictions(data: pd.DataFrame, problems: Problems) -> pd.DataFrame:
    """Sets aside groups with two labels; but one person may have two types in two `nodule`s."""
    labelled = data[data["label"] != ""]
    keys = labelled["group"]
    if "nodule" in labelled:
        nodule = labelled["nodule"].fillna("").astype(str)
        keys = keys.where(nodule == "", keys + "\0" + labelled["patient"] + "\0" + nodule)
    labels = labelled.groupby(keys)["label"].agg(lambda column: sorted(set(column)))
    mixed = labels[labels.map(len) > 1]
    bad = set(labelled.loc[keys.isin(mixed.index), "group"])
    if "nodule" in labelled:
        bad |= _same_frame_two_labels(labelled)
    aside = data[data["group"].isin(bad)]
    seen = (
        aside[aside["label"] != ""].groupby("group")["label"].agg(lambda column: listed(sorted(set(column))))
    )
    for row in aside[["row", "image", "group"]].to_dict("records"):
        text = (
            f"group {quoted(row['group'])} has contradicting labels ({seen[row['group']]}): set aside; if these "
            "are different nodules of one person, name them in a column nodule"
        )
        problems.add(row, "label", text, LEFT_OUT)
    return data[~data["group"].isin(bad)]


def _same_frame_two_labels(labelled: pd.DataFrame) -> set[str]:
    found = duplicates.pairs(labelled["sha256"], labelled["phash"])
    label, group = labelled["label"].to_numpy(), labelled["group"].to_numpy()
    return set(group[found["a"]][label[found["a"]] != label[found["b"]]])
