"""The single checks that `thyroid_lib.manifest.check` runs: schema, files, frames that show the same, contradictions.

Each takes the table and the problems found so far, adds its own, and gives back the rows that are left.
"""

import itertools
import re
from collections.abc import Callable, Iterable, Mapping

import numpy as np
import pandas as pd
import pandera.pandas as pa
import yaml
from joblib import Parallel, delayed

from thyroid_lib import frames
from thyroid_lib.common.messages import listed, quoted
from thyroid_lib.common.progress import progress
from thyroid_lib.common.templates import TEMPLATES
from thyroid_lib.datasets import contract, duplicates, pixels

LEFT_OUT, BLANKED, NOTE = "row left out", "value blanked", "note"
BATCH = 32  # frames a worker decodes before it reports
WORTH_WORKERS = 256  # frames below which starting processes costs more than it saves
GIANT = 0.2  # of the patients in one joined group: more likely one template than one person
LOOKS = yaml.safe_load((TEMPLATES / "data" / "looks.yaml").read_text(encoding="utf-8"))
WHOLE = {"image": [""]}  # where a finding stands that speaks of the whole set


class ManifestError(ValueError):
    """A manifest that cannot be used as asked; the message lists every reason."""


class Problems(list):
    """What was found: dicts of row, column, problem, image and action."""

    def add(self, where: Mapping, column: str, text: str | Iterable[str], action: str) -> None:
        """Notes a finding for each row of a table with `row` and `image`; no path of this machine is kept.

        Args:
            where: the rows: a table, or anything with these two columns; `row` may be missing.
            text: one for all of them, or one for each.
        """
        texts = itertools.repeat(text) if isinstance(text, str) else text
        rows = where["row"] if "row" in where else itertools.repeat(pd.NA)
        for image, row, problem in zip(where["image"], rows, texts):
            if contract.OUTSIDE.match(image):
                image = "…/" + re.split(r"[/\\]", image)[-1]
            self.append({"row": row, "column": column, "problem": problem, "image": image, "action": action})

    def table(self) -> pd.DataFrame:
        """One row per finding."""
        table = pd.DataFrame(self, columns=["row", "column", "problem", "image", "action"])
        return table.astype({"row": "Int64"})


def _is(rule: Callable[[object], bool], problem: str) -> pa.Check:
    return pa.Check(rule, element_wise=True, error=problem)


FILLED = _is(lambda v: bool(v.strip()), "empty; a value is expected")
OUTSIDE = "not inside the data set's folder: relative, without '..'"
INSIDE = _is(lambda v: not contract.OUTSIDE.match(v), OUTSIDE)
AGE = _is(lambda v: isinstance(v, (int, float)) and 0 <= v <= 120, "not an age in years from 0 to 120")
SEX = _is(lambda v: v in ("F", "M", "O", ""), "not F, M, O or empty")
BOX = _is(lambda v: bool(re.fullmatch(r"(\d+ \d+ \d+ \d+)?", v)), "not four whole numbers 'x y width height'")
REQUIRED = {name: [FILLED] for name in contract.COLUMNS} | {"image": [FILLED, INSIDE], "label": []}
# What a manifest must hold. Rows that fail in what is required are left out, other values blanked.
COLUMNS = {name: pa.Column(str, checks, coerce=True) for name, checks in REQUIRED.items()}
COLUMNS["age"] = pa.Column(None, AGE, nullable=True, required=False)
COLUMNS["sex"] = pa.Column(str, SEX, coerce=True, required=False)
COLUMNS["box"] = pa.Column(str, BOX, coerce=True, required=False)
SCHEMA = pa.DataFrameSchema(COLUMNS)


def schema(data: pd.DataFrame, classes: list[str], problems: Problems) -> pd.DataFrame:
    """Holds every value against SCHEMA and the classes, all at once; bad rows go, other bad values are blanked."""
    cases, bad = pd.DataFrame(columns=["column", "check"]), set()
    try:
        SCHEMA.validate(data, lazy=True)
    except pa.errors.SchemaErrors as errors:
        cases = errors.failure_cases
    checked = data.copy()
    for (column, check), found in cases.groupby(["column", "check"], sort=False):
        rows, required = data.loc[found["index"]], column in REQUIRED
        texts = [
            check + ("" if column in ("image", "path") else f"; came {quoted(v)}")
            for v in found["failure_case"]
        ]
        problems.add(rows, column, texts, LEFT_OUT if required else BLANKED)
        if required:
            bad.update(rows.index)
        else:
            checked.loc[rows.index, column] = None if column == "age" else ""
    unknown = data[~data["label"].isin([*classes, ""])] if classes else data[:0]
    texts = [f"not one of {listed(classes)}; came {quoted(label)}" for label in unknown["label"]]
    problems.add(unknown, "label", texts, LEFT_OUT)
    twice = data[data["image"].duplicated()]
    problems.add(twice, "image", "named twice; the first row is used", LEFT_OUT)
    if "age" in checked:
        checked["age"] = pd.to_numeric(checked["age"])
    return checked.drop(index=bad.union(unknown.index, twice.index))


def files(data: pd.DataFrame, problems: Problems, jobs: int) -> pd.DataFrame:
    """Decodes every frame once, in parallel; keeps the readable ones with their hashes."""
    records = data.filter(["path", "mask"]).to_dict("records")
    jobs = 1 if len(records) < WORTH_WORKERS else jobs
    workers = Parallel(n_jobs=jobs, return_as="generator", batch_size=BATCH)
    work = workers(delayed(_inspect)(record) for record in records)
    results = list(progress(work, "checking frames", len(records)))
    data = data.copy()
    for index, (_, _, findings) in zip(data.index, results):
        for column, text, action in findings:
            problems.add({name: [data.at[index, name]] for name in ("image", "row")}, column, text, action)
            if action == BLANKED:
                data.at[index, column] = ""
    data["sha256"], data["phash"] = ([found[place] for found in results] for place in (0, 1))
    marked = [any(text.startswith(frames.MARKS) for _, text, _ in found[2]) for found in results]
    if any(marked):
        data["coloured_marks"] = marked
    return data[data["sha256"] != ""]


def _inspect(row: dict) -> tuple[str, str, list[tuple[str, str, str]]]:
    """The two hashes of a frame, "" where it must be left out, and what was found: (column, text, action)."""
    try:
        frame = pixels.open_frame(row)
    except (frames.FrameError, contract.DatasetError) as error:
        looks = _look(row["path"]) if getattr(error, "kind", "") == "not_an_image" else ""
        return "", "", [("image", f"{error}{looks}", LEFT_OUT)]
    findings = [("image", note, NOTE) for note in frame.warnings]
    try:
        mask = pixels.load_mask(row, frame.gray.shape)
        if mask is not None and not mask.any():
            findings.append(("image", "its mask is empty", NOTE))
    except (ValueError, TypeError) as error:  # FrameError and DatasetError among them
        findings.insert(0, ("mask", f"mask not used: {error}", BLANKED))
    return *duplicates.fingerprint(frame.gray), findings


def _look(path: str) -> str:
    """What a file that is no image looks like, for the reason why it is left out."""
    try:
        with open(path, "rb") as file:
            start = file.read(1024)
    except OSError:
        return ""
    found = (words for marks, words in LOOKS.items() if re.match(marks.encode(), start, re.IGNORECASE))
    return f"; {words}" if (words := next(found, "")) else ""


def joined(data: pd.DataFrame, problems: Problems) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Joins the groups of frames that show the same; also gives the table of such pairs."""
    found = duplicates.pairs(data["sha256"], data["phash"])
    one, other = (data.iloc[found[end]].reset_index(drop=True) for end in "ab")
    pairs = pd.DataFrame({"image_a": one["image"], "image_b": other["image"]})
    pairs = pairs.join(found[["bits", "identical"]])
    pairs["same_patient"] = one["patient"] == other["patient"]
    pairs["same_label"] = one["label"] == other["label"]
    pairs["joined"] = one["group"] != other["group"]
    across = sorted(set(found.loc[pairs["joined"], ["a", "b"]].to_numpy().ravel()))
    text = "shows the same as a frame of another group: the groups are joined"
    problems.add(data.iloc[across], "group", text, NOTE)
    own = pd.Series(np.arange(len(data)))  # each frame with the first of its patient
    links = [own, own.groupby(data["patient"].to_numpy()).transform("first")]
    ends = [np.r_[found[end], link] for end, link in zip("ab", links)]
    data = data.assign(group=duplicates.join(data["group"], *ends))
    people, patients = data.groupby("group")["patient"].nunique(), data["patient"].nunique()
    if len(data) and people.max() > max(3, GIANT * patients):
        text = f"group {quoted(people.idxmax())} joins {people.max()} of {patients} patients by frames that look alike"
        problems.add(WHOLE, "group", f"{text}: look at the duplicates table before trusting it", NOTE)
    return data, pairs


def contradictions(data: pd.DataFrame, problems: Problems) -> pd.DataFrame:
    """Sets aside groups with two labels; but one person may have two types in two `nodule`s."""
    labelled = data[data["label"] != ""]
    person, bad = labelled["group"], set()
    if "nodule" in labelled:
        nodule = labelled["nodule"].fillna("").astype(str)
        person = person.where(nodule == "", person + "\0" + labelled["patient"] + "\0" + nodule)
        # one frame, two labels: whatever nodule
        found = duplicates.pairs(labelled["sha256"], labelled["phash"])
        one, other = (labelled.iloc[found[end]] for end in "ab")
        bad = set(one["group"][one["label"].to_numpy() != other["label"].to_numpy()])
    bad |= set(labelled["group"][labelled.groupby(person)["label"].transform("nunique") > 1])
    aside = data[data["group"].isin(bad)]
    seen = {group: listed(sorted(set(labels))) for group, labels in labelled.groupby("group")["label"]}
    advice = "set aside; if these are different nodules of one person, name them in a column nodule"
    texts = [f"group {quoted(g)} has contradicting labels ({seen[g]}): {advice}" for g in aside["group"]]
    problems.add(aside, "label", texts, LEFT_OUT)
    return data.drop(index=aside.index)
