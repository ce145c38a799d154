"""The manifest made safe: every problem listed, same-looking frames joined, splits that cannot leak.

``check`` takes a reader's table through the flow from files to analysis; ``split`` and ``partition`` cut
what is left so that no group (patient, or patients joined by shared frames) stands on two sides.
"""

import hashlib

import numpy as np
import pandas as pd
from sklearn.model_selection import StratifiedGroupKFold

from thyroid_lib.common.messages import listed, named
from thyroid_lib.datasets import checks, contract, duplicates
from thyroid_lib.datasets.checks import LEFT_OUT, NOTE, REQUIRED, ManifestError


def check(manifest: pd.DataFrame, *, jobs: int = -1) -> tuple:
    """Finds everything that is wrong with a manifest and leaves what can be used.

    Every file is decoded once: unreadable, truncated, tiny, constant and coloured ones are left out with the
    reason. Identical and near-duplicate frames are joined with their patients into groups; groups that then
    contradict themselves (one group, two labels, and no column `nodule` that tells the nodules apart) are set
    aside whole.

    Args:
        manifest: as `thyroid_lib.datasets.read` gives it.
        jobs: worker processes that decode; -1 for every core.

    Returns:
        (clean, problems). `clean` has the rows that can be used, with `group` joined and the hashes `sha256`
        and `phash`; its attrs also hold `flow` (step, images, patients, left_out) and `duplicates` (image_a,
        image_b, bits, identical, same_patient, same_label, joined). `problems` has one row per finding: row, column,
        problem, image, action ("row left out", "value blanked" or "note").
    """
    attrs = dict(manifest.attrs)
    problems = checks.Problems()
    for name, column, action in (("excluded", "reason", LEFT_OUT), ("notes", "note", NOTE)):
        if name in attrs:
            problems.add(attrs[name], "", attrs[name][column], action)
    if missing := [column for column in REQUIRED if column not in manifest]:
        came = f"missing: {', '.join(missing)}; came: {listed(manifest.columns)}"
        raise ManifestError(f"A manifest has the columns {', '.join(REQUIRED)}; {came}.")
    data = manifest.reset_index(drop=True)
    data.attrs = {}
    data["row"] = data.get("row", range(len(data)))
    flow = [("files found or named", len(data) + len(attrs.get("excluded", ())), None)]

    def step(name: str) -> None:
        flow.append((name, len(data), data["patient"].nunique()))

    step("used by the reader")
    data = checks.schema(data, attrs.get("classes", []), problems)
    step("rows in order")
    data = checks.files(data, problems, jobs)
    step("readable grey frames")
    data, pairs = checks.joined(data, problems)
    data = checks.contradictions(data, problems)
    step("in groups without contradiction")
    problems.add(data[data["label"] == ""], "label", "unlabelled: not used for training", LEFT_OUT)
    data = data[data["label"] != ""]
    step("labelled")
    steps = pd.DataFrame(flow, columns=["step", "images", "patients"]).astype({"patients": "Int64"})
    steps["left_out"] = -steps["images"].diff().fillna(0).astype(int)
    data = data.drop(columns="row").reset_index(drop=True)
    data.attrs = {**attrs, "flow": contract.Listing(steps), "duplicates": contract.Listing(pairs)}
    return data, problems.table()


def ready(manifest: pd.DataFrame, folds: int = 5) -> list[str]:
    """Why a clean manifest could not be studied with so many folds; an empty list where it could."""
    if not len(manifest):
        return ["no usable labelled frame is left"]
    reasons, came = [], sorted(set(manifest["label"]) - {""})
    if len(came) < 2:
        reasons.append(f"at least two classes are needed; came: {listed(came) or 'no label at all'}")
    advice = "collect more, drop the class, or use fewer folds"
    for key in manifest.attrs.get("classes") or came:
        if (count := manifest.loc[manifest["label"] == key, "group"].nunique()) < folds:
            have = f"{count} independent groups (patients), {folds} folds need at least {folds}"
            reasons.append(f"class {named(key)}: {have}; {advice}")
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
    order = manifest.reset_index(drop=True).sort_values(["image", "group"]).index.to_numpy()
    labels, groups = (manifest[column].to_numpy()[order] for column in ("label", "group"))
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
    result["fold"] = fold[np.argsort(order)]
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
    held = counts > 0
    left = held.sum()  # groups of each class that stay in training
    chosen: set[str] = set()
    for key in counts.sum().sort_values(kind="stable").index:  # the rarest class chooses first
        own = counts[key][counts[key] > 0]
        have, free = own[own.index.isin(chosen)].sum(), [g for g in own.index if g not in chosen]
        for group in free:
            if have and have + own[group] / 2 > validation * own.sum():
                break
            if (left[held.loc[group]] == 1).any():
                continue  # the last of a class, this one or another that the patient has too
            left -= held.loc[group]
            chosen.add(group)
            have += own[group]
    part[manifest["group"].isin(chosen) & (part == "train")] = "validation"
    assert_disjoint(part, manifest["group"])
    return part


def assert_disjoint(parts, groups) -> None:
    """Raises AssertionError with the names where a group stands in two parts (folds, or train and test)."""
    table = pd.DataFrame({"part": np.asarray(parts), "group": np.asarray(groups)})
    cut = table.groupby("group")["part"].nunique()
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
    found = found[(found["a"] < len(a)) & (found["b"] >= len(a))].reset_index(drop=True)
    one, other = a["image"].to_numpy()[found["a"]], b["image"].to_numpy()[found["b"] - len(a)]
    return pd.DataFrame({"image_a": one, "image_b": other}).join(found[["bits", "identical"]])
