"""The manifest made safe: every problem listed, same-looking frames joined, splits that cannot leak.

``check`` takes a reader's table through the flow from files to analysis; ``split`` and ``partition`` cut
what is left so that no group (patient, or patients joined by shared frames) stands on two sides.
"""

import hashlib
import itertools
import re

import numpy as np
import pandas as pd
import pandera.pandas as pa
from joblib import Parallel, delayed
from sklearn.model_selection import StratifiedGroupKFold

from thyroid_lib import duplicates, frames
from thyroid_lib.datasets import contract
from thyroid_lib.progress import progress

LEFT_OUT, BLANKED, NOTE = "row left out", "value blanked", "note"
BATCH = 32  # frames a worker decodes before it reports
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
OUTSIDE = re.compile(r"[/\\~]|\w:[/\\]|(.*[/\\])?\.\.([/\\]|$)")  # absolute, or up and out of the folder


class ManifestError(ValueError):
    """A manifest that cannot be used as asked; the message lists every reason."""


def _text(*checks, **options) -> pa.Column:
    return pa.Column(str, checks=list(checks), coerce=True, **options)


def _is(rule, problem: str) -> pa.Check:
    return pa.Check(rule, element_wise=True, error=problem)


FILLED = _is(lambda value: bool(value.strip()), "empty; a value is expected")
SCHEMA = pa.DataFrameSchema(
    {
        "image": _text(
            FILLED,
            _is(lambda v: not OUTSIDE.match(v), "not inside the data set's folder: relative, without '..'"),
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


def check(manifest: pd.DataFrame, *, jobs: int = -1, keep_unlabelled: bool = False) -> tuple:
    """Finds everything that is wrong with a manifest and leaves what can be used.

    Every file is decoded once: unreadable, truncated, tiny, constant and coloured ones are left out with the
    reason. Identical and near-duplicate frames are joined with their patients into groups; groups that then
    contradict themselves (one group, two labels, and no column `nodule` that tells the nodules apart) are set
    aside whole.

    Args:
        manifest: as `thyroid_lib.datasets.read` gives it.
        jobs: worker processes that decode; -1 for every core.
        keep_unlabelled: keep rows without a label (for audits of the crop; training needs labels).

    Returns:
        (clean, problems). `clean` has the rows that can be used, with `group` joined and the hashes `sha256`
        and `phash`; its attrs also hold `flow` (step, images, patients, left_out) and `duplicates` (image_a,
        image_b, bits, identical, same_patient, same_label, joined). `problems` has one row per finding: row, column,
        problem, image, action ("row left out", "value blanked" or "note").
    """
    attrs = dict(manifest.attrs)
    problems = [
        *_listed(attrs.get("excluded"), "reason", LEFT_OUT),
        *_listed(attrs.get("notes"), "note", NOTE),
    ]
    flow = [("files found or named", len(manifest) + len(problems_of(problems, LEFT_OUT)), None)]
    data = manifest.reset_index(drop=True)
    data.attrs = {}
    if "row" not in data:
        data["row"] = range(len(data))
    missing = [column for column in REQUIRED if column not in data]
    if missing:
        raise ManifestError(
            f"A manifest has the columns {', '.join(REQUIRED)}; missing: {', '.join(missing)}; "
            f"came: {', '.join(map(str, data.columns))}."
        )
    flow.append(("used by the reader", len(data), data["patient"].nunique()))
    data = _schema(data, attrs.get("classes", []), problems)
    flow.append(("rows in order", len(data), data["patient"].nunique()))
    data = _files(data, problems, jobs)
    flow.append(("readable grey frames", len(data), data["patient"].nunique()))
    data, found = _joined(data, problems)
    data = _contradictions(data, problems)
    flow.append(("in groups without contradiction", len(data), data["patient"].nunique()))
    if not keep_unlabelled:
        bare = data["label"] == ""
        problems += [
            _problem(r, "label", "unlabelled: not used for training", LEFT_OUT) for r in _rows(data[bare])
        ]
        data = data[~bare]
        flow.append(("labelled", len(data), data["patient"].nunique()))
    listing = pd.DataFrame(problems, columns=["row", "column", "problem", "image", "action"])
    listing["row"] = listing["row"].astype("Int64")
    steps = pd.DataFrame(flow, columns=["step", "images", "patients"])
    steps["patients"] = steps["patients"].astype("Int64")
    steps["left_out"] = -steps["images"].diff().fillna(0).astype(int)
    data = data.drop(columns="row").reset_index(drop=True)
    data.attrs = {**attrs, "flow": contract.Listing(steps), "duplicates": contract.Listing(found)}
    return data, listing.reset_index(drop=True)


def ready(manifest: pd.DataFrame, folds: int = 5) -> list[str]:
    """Why a clean manifest could not be studied with so many folds; an empty list where it could."""
    classes = manifest.attrs.get("classes") or sorted(set(manifest["label"]) - {""})
    if not len(manifest):
        return ["no usable labelled frame is left"]
    labelled = manifest[manifest["label"] != ""]
    reasons = []
    if labelled["label"].nunique() < 2:
        came = ", ".join(sorted(set(labelled["label"]))) or "no label at all"
        reasons.append(f"at least two classes are needed; came: {came}")
    for key in classes:
        count = labelled.loc[labelled["label"] == key, "group"].nunique()
        if count < folds:
            reasons.append(
                f"class {key}: {count} independent groups (patients), {folds} folds need at least {folds}; "
                "collect more, drop the class, or use fewer folds"
            )
    return reasons


def split(manifest: pd.DataFrame, folds: int = 5, seed: int = 0) -> pd.DataFrame:
    """Cuts a clean manifest into folds that share no group, each with every class in about equal parts.

    Stratified by label with scikit-learn's StratifiedGroupKFold; the result depends on the images, labels,
    groups and the seed, not on the order of the rows.

    Args:
        manifest: as `check` leaves it.
        folds: number of folds, at least 2.
        seed: of the shuffle.

    Returns:
        The manifest with an int column `fold`, 0 to folds - 1.

    Raises:
        ManifestError: unlabelled rows, or a class with fewer groups than folds.
    """
    if folds < 2:
        raise ManifestError(f"A split needs at least 2 folds; {folds} came.")
    reasons = ready(manifest, folds)
    if (manifest["label"] == "").any():
        reasons.append(f"{(manifest['label'] == '').sum()} rows have no label; check() leaves them out")
    if reasons:
        raise ManifestError(f"This manifest cannot be split into {folds} folds: " + "; ".join(reasons) + ".")
    order = manifest.sort_values(["image", "group"]).index
    labels, groups = manifest.loc[order, "label"].to_numpy(), manifest.loc[order, "group"].to_numpy()
    fold = np.empty(len(order), np.int64)
    for attempt in range(50):  # groups of unequal size can leave a fold without a class: shuffle anew
        folder = StratifiedGroupKFold(folds, shuffle=True, random_state=seed + 1_000_003 * attempt)
        for number, (_, test) in enumerate(folder.split(labels, labels, groups)):
            fold[test] = number
        if all(len(set(fold[labels == key])) == folds for key in set(labels)):
            break
    else:
        raise ManifestError(f"No split into {folds} folds puts every class into every fold; use fewer folds.")
    result = manifest.copy()
    result["fold"] = pd.Series(fold, index=order)
    assert_disjoint(result["fold"], result["group"])
    return result


def partition(
    manifest: pd.DataFrame, test_fold: int | None, validation: float = 0.15, seed: int = 0
) -> pd.Series:
    """Train, validation and test parts for one fold; no group is in two of them.

    Args:
        manifest: with the columns `image`, `label`, `group` and, for a test part, `fold`.
        test_fold: the fold that is tested on; None for none (pre-training).
        validation: share of each class's remaining frames to validate on; whole groups are taken, at least
            one per class and never a class's last.
        seed: of the choice.

    Returns:
        "train", "validation" or "test" for each row of the manifest.

    Raises:
        ManifestError: there is no such fold.
    """
    part = pd.Series("train", index=manifest.index, name="part")
    if test_fold is not None:
        if "fold" not in manifest or test_fold not in set(manifest["fold"]):
            there = sorted(set(manifest["fold"])) if "fold" in manifest else "no column fold"
            raise ManifestError(f"partition: expected a test fold among {there}; {test_fold!r} came.")
        part[manifest["fold"] == test_fold] = "test"
    rest = manifest[part == "train"].sort_values(["image", "group"])
    random = np.random.default_rng([seed, 0 if test_fold is None else 1 + int(test_fold)])
    shuffled = random.permutation(sorted(set(rest["group"])))
    counts = rest.groupby(["group", "label"]).size().unstack(fill_value=0).loc[shuffled]
    chosen: set[str] = set()
    for key in counts.sum().sort_values(kind="stable").index:  # the rarest class chooses first
        own = counts[key][counts[key] > 0]
        have, free = own[own.index.isin(chosen)].sum(), [g for g in own.index if g not in chosen]
        for group in free[:-1]:
            if have and have + own[group] / 2 > validation * own.sum():
                break
            chosen.add(group)
            have += own[group]
    part[manifest["group"].isin(chosen) & (part == "train")] = "validation"
    assert_disjoint(part, manifest["group"])
    return part


def assert_disjoint(parts, groups) -> None:
    """Raises AssertionError with the names where a group stands in two parts (folds, or train and test)."""
    cut = (
        pd.DataFrame({"part": np.asarray(parts), "group": np.asarray(groups)})
        .groupby("group")["part"]
        .nunique()
    )
    split_groups = list(cut.index[cut > 1])
    assert not split_groups, f"{len(split_groups)} groups stand on both sides of a split: {split_groups[:5]}"


def split_hash(manifest: pd.DataFrame) -> str:
    """SHA-256 over image, label, group and fold of every row, whatever the order of the rows."""
    columns = [c for c in ("image", "label", "group", "fold") if c in manifest]
    lines = sorted("\t".join(map(str, row)) for row in manifest[columns].itertuples(index=False))
    return hashlib.sha256("\n".join([*columns, *lines]).encode()).hexdigest()


def overlap(a: pd.DataFrame, b: pd.DataFrame) -> pd.DataFrame:
    """Frames of one checked manifest that show the same as frames of another: leaks between data sets.

    Args:
        a, b: with the columns `image`, `sha256` and `phash`, as `check` gives them.

    Returns:
        Columns `image_a`, `image_b`, `bits`, `identical`.
    """
    found = duplicates.pairs([*a["sha256"], *b["sha256"]], [*a["phash"], *b["phash"]])
    found = found[(found["a"] < len(a)) & (found["b"] >= len(a))]
    return pd.DataFrame(
        {
            "image_a": a["image"].to_numpy()[found["a"]],
            "image_b": b["image"].to_numpy()[found["b"] - len(a)],
            "bits": found["bits"].to_numpy(),
            "identical": found["identical"].to_numpy(),
        }
    )


def problems_of(problems: list[dict], action: str) -> list[dict]:
    """The problems that had one consequence."""
    return [p for p in problems if p["action"] == action]


def _problem(row: dict, column: str, problem: str, action: str) -> dict:
    image = row["image"]
    if OUTSIDE.match(image):  # no path of this machine in a list that is shown
        image = "…/" + re.split(r"[/\\]", image)[-1]
    return {"row": row["row"], "column": column, "problem": problem, "image": image, "action": action}


def _rows(data: pd.DataFrame):
    return data[["row", "image"]].to_dict("records")


def _listed(table: pd.DataFrame | None, column: str, action: str) -> list[dict]:
    if table is None:
        return []
    return [
        {"row": pd.NA, "column": "", "problem": reason, "image": image, "action": action}
        for image, reason in zip(table["image"], table[column])
    ]


def _schema(data: pd.DataFrame, classes: list[str], problems: list[dict]) -> pd.DataFrame:
    try:
        SCHEMA.validate(data, lazy=True)
        cases = []
    except pa.errors.SchemaErrors as errors:
        cases = errors.failure_cases.to_dict("records")
    bad, blank = set(), []
    for case in cases:
        index, column = case["index"], case["column"]
        if index is None or pd.isna(index):
            raise ManifestError(f"Column {column}: {case['check']}; came {case['failure_case']!r}.")
        came = "" if column in ("image", "path") else f"; came {case['failure_case']!r}"
        problem = f"{case['check']}{came}"
        if column in REQUIRED:
            bad.add(int(index))
        else:
            blank.append((int(index), column))
        action = LEFT_OUT if column in REQUIRED else BLANKED
        problems.append(_problem(data.loc[int(index)], column, problem, action))
    unknown = data.index[~data["label"].isin([*classes, ""])] if classes else []
    for index in unknown:
        problem = f"not one of {', '.join(classes)}; came {data.at[index, 'label']!r}"
        problems.append(_problem(data.loc[index], "label", problem, LEFT_OUT))
    twice = data.index[data["image"].duplicated()]
    for index in twice:
        problems.append(_problem(data.loc[index], "image", "named twice; the first row is used", LEFT_OUT))
    data = data.copy()
    for index, column in blank:
        data.loc[index, column] = None if column == "age" else ""
    if "age" in data:
        data["age"] = pd.to_numeric(data["age"])
    return data.drop(index=bad | set(unknown) | set(twice))


def _files(data: pd.DataFrame, problems: list[dict], jobs: int) -> pd.DataFrame:
    """Decodes every frame once, in parallel; keeps the readable ones with their hashes."""
    records = data[["path", *(["mask"] if "mask" in data else [])]].to_dict("records")
    batches = [records[start : start + BATCH] for start in range(0, len(records), BATCH)]
    jobs = 1 if len(records) <= BATCH else jobs
    work = Parallel(n_jobs=jobs, return_as="generator")(delayed(_inspect)(batch) for batch in batches)
    results = list(itertools.chain.from_iterable(progress(work, "checking frames", total=len(batches))))
    data = data.copy()
    for index, row, found in zip(data.index, _rows(data), results):
        if found["reason"]:
            problems.append(_problem(row, "image", found["reason"], LEFT_OUT))
        if found["mask"]:
            problems.append(_problem(row, "mask", found["mask"], BLANKED))
            data.at[index, "mask"] = ""
        problems += [_problem(row, "image", note, NOTE) for note in found["notes"]]
    data["sha256"] = [found["sha256"] for found in results]
    data["phash"] = [found["phash"] for found in results]
    return data[[not found["reason"] for found in results]]


def _inspect(batch: list[dict]) -> list[dict]:
    """Why a frame must be left out or its mask blanked ("" for neither), notes, and the two hashes."""
    results = []
    for row in batch:
        found = {"reason": "", "mask": "", "notes": [], "sha256": "", "phash": ""}
        results.append(found)
        try:
            frame = contract.open_frame(row)
        except (frames.FrameError, contract.DatasetError) as error:
            found["reason"] = str(error)
            if getattr(error, "kind", "") == "not_an_image":
                found["reason"] += _look(row["path"])
            continue
        found["notes"] = list(frame.warnings)
        found["sha256"], found["phash"] = duplicates.fingerprint(frame.gray)
        try:
            mask = contract.load_mask(row, frame.gray.shape)
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


def _joined(data: pd.DataFrame, problems: list[dict]) -> tuple[pd.DataFrame, pd.DataFrame]:
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
    joined = duplicates.join(value["group"], a, b)
    table["joined"] = value["group"][a] != value["group"][b]
    for row in table[table["joined"]].itertuples():
        for image, position in ((row.image_a, a[row.Index]), (row.image_b, b[row.Index])):
            where = {"row": data["row"].iloc[position], "image": image}
            kind = "identical to" if row.identical else "a near duplicate of"
            problems.append(_problem(where, "group", f"{kind} a frame of another group: joined", NOTE))
    data = data.assign(group=joined)
    if len(data):
        people = data.groupby("group")["patient"].nunique()
        if people.max() > max(3, GIANT * data["patient"].nunique()):
            where = {"row": pd.NA, "image": ""}
            problem = (
                f"group {people.idxmax()!r} joins {people.max()} of {data['patient'].nunique()} patients by "
                "frames that look alike: look at the duplicates table before trusting it"
            )
            problems.append(_problem(where, "group", problem, NOTE))
    return data, table


def _contradictions(data: pd.DataFrame, problems: list[dict]) -> pd.DataFrame:
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
        aside[aside["label"] != ""]
        .groupby("group")["label"]
        .agg(lambda column: ", ".join(sorted(set(column))))
    )
    for row in aside[["row", "image", "group"]].to_dict("records"):
        problem = (
            f"group {row['group']!r} has contradicting labels ({seen[row['group']]}): set aside; if these "
            "are different nodules of one person, name them in a column nodule"
        )
        problems.append(_problem(row, "label", problem, LEFT_OUT))
    return data[~data["group"].isin(bad)]


def _same_frame_two_labels(labelled: pd.DataFrame) -> set[str]:
    found = duplicates.pairs(labelled["sha256"], labelled["phash"])
    label, group = labelled["label"].to_numpy(), labelled["group"].to_numpy()
    return set(group[found["a"]][label[found["a"]] != label[found["b"]]])
