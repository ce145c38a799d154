"""Comparisons: two models on the same images, one model on two sources, on subgroups and across folds.

All read predictions.csv only, and all intervals are patient-cluster bootstrap intervals
(``thyroid_lib.evaluation.bootstrap``). ``thyroid_lib.evaluation.metrics`` holds the metrics themselves.
"""

import numpy as np
import pandas as pd

from thyroid_lib.evaluation.bootstrap import (
    MINIMUM_PATIENTS,
    UNBOUNDED,
    delong,
    estimate,
    rank_statistics,
    ratio,
)
from thyroid_lib.evaluation.metrics import Sample, bins
from thyroid_lib.evaluation.predictions import classes_of, covariates_of

COMPARED = ("macro_auroc", "balanced_accuracy", "brier")
SUBGROUPS = (
    "age", "sex", "device", "nodule_size", "size", "caliper", "coloured_marks", "printed_text", "view", "source",
    "site", "dataset",
)  # fmt: skip
"""A covariate whose name starts with one of these is a subgroup unless others are asked for; every further
one would be a further chance finding."""

MOST_LEVELS = 8  # a covariate with more values than this is an identifier, not a subgroup


def samples(sample: Sample) -> dict[str, np.ndarray]:
    """The draws of the metrics that comparisons use.

    Args:
        sample: one model on one set.

    Returns:
        name -> float (draws + 1,), the value first: "macro_auroc", "balanced_accuracy", "brier" and
        "auroc/<key>" per class.
    """
    result = {}
    for k, key in enumerate(sample.classes):
        ranks = rank_statistics(sample.probabilities[:, k], sample.is_class[:, k], sample.clusters)
        result[f"auroc/{key}"] = ranks[0]
    right = sample.is_class & (sample.probabilities.argmax(1) == sample.truth)[:, None]
    squares = ((sample.probabilities - sample.is_class) ** 2).sum(1)
    sums = sample.clusters.sums(np.column_stack([right, sample.is_class, squares]))
    c = len(sample.classes)
    recall = ratio(sums[:, :c], sums[:, c : 2 * c])
    return {
        "macro_auroc": np.mean([*result.values()], axis=0),
        "balanced_accuracy": recall.mean(1),
        "brier": sums[:, -1] / sums[:, c : 2 * c].sum(1),
    } | result


def compare(
    first: pd.DataFrame,
    second: pd.DataFrame,
    *,
    draws: int = 2000,
    seed: int = 0,
    minimum: int = MINIMUM_PATIENTS,
) -> dict:
    """Paired differences, first minus second, on the images that both models predicted.

    Args:
        first, second: rows of one model and one set each.
        draws, seed, minimum: as in ``evaluation.evaluate``; both models see the same draws.

    Returns:
        name -> {"value", "low", "high", "n_images", "n_patients"} for every name of :func:`samples`,
        ``delong/<key>`` -> difference by DeLong with the clustered variance, and ``images_left_out``: the
        images that only one of the two predicted.

    Raises:
        ValueError: the two have no image in common, or disagree on an image's reference standard.
    """
    place = ["set", "image"]
    shared = first[place].merge(second[place]).drop_duplicates()
    if not len(shared):
        raise ValueError(
            f"compare: expected images that both {first['model'].iloc[0]!r} and {second['model'].iloc[0]!r} "
            "predicted, got none"
        )
    classes = classes_of(first)
    one, two = (shared.merge(table, on=place, how="left").sort_values(place) for table in (first, second))
    if not (one["truth"].to_numpy() == two["truth"].to_numpy()).all():
        raise ValueError("compare: the two models' rows disagree on the reference standard of an image")
    for table in (one, two):
        table.attrs["classes"] = classes
    a, b = (Sample(table, draws=draws, seed=seed, minimum=minimum) for table in (one, two))
    b.clusters = a.clusters
    scarcer = a.scarcer_sides()
    left, right = samples(a), samples(b)
    result = {
        name: a.estimate(left[name] - right[name], effective=scarcer, bounds=UNBOUNDED) for name in left
    }
    for k, key in enumerate(classes):
        scores = np.column_stack([b.probabilities[:, k], a.probabilities[:, k]])
        result[f"delong/{key}"] = delong(scores, a.is_class[:, k], a.patients)
    result["images_left_out"] = len(first) + len(second) - 2 * len(shared)
    return result


def drop(
    internal: pd.DataFrame, external: pd.DataFrame, *, draws=2000, seed=0, minimum=MINIMUM_PATIENTS
) -> dict:
    """How much a model loses on another source: internal minus external testing, two independent samples.

    Args:
        internal, external: rows of one model on each set.
        draws, seed, minimum: as in ``evaluation.evaluate``.

    Returns:
        name -> {"value", "low", "high", "n_images", "n_patients"} for every name of :func:`samples`.
    """
    a = Sample(internal, draws=draws, seed=seed, minimum=minimum)
    b = Sample(external, draws=draws, seed=seed + 1, minimum=minimum)
    here, there = samples(a), samples(b)
    scarcer = [*a.scarcer_sides(), *b.scarcer_sides()]
    patients = a.clusters.patients + b.clusters.patients
    return {
        name: estimate(
            here[name] - there[name],
            n_images=len(internal) + len(external),
            n_patients=patients,
            effective=scarcer,
            minimum=minimum,
        )
        for name in here
    }


def levels(values: pd.Series) -> pd.Series:
    """Names the subgroup of each row.

    Args:
        values: a covariate; numbers with more than four distinct values are cut into thirds, anything else
            is taken as it is. Empty values get "not stated".

    Returns:
        str per row; empty Series when the covariate has a single value or more than ``MOST_LEVELS``.
    """
    stated = values.notna() & values.astype(str).str.strip().ne("")
    names = pd.Series("not stated", index=values.index)
    if values.dtype.kind in "if" and values[stated].nunique() > 4:
        cuts = np.unique(np.quantile(values[stated], [0, 1 / 3, 2 / 3, 1]))
        if len(cuts) < 3:
            return pd.Series(dtype=str)
        place = np.clip(np.searchsorted(cuts, values[stated], side="right") - 1, 0, len(cuts) - 2)
        names[stated] = [f"{cuts[i]:.4g} to {cuts[i + 1]:.4g}" for i in place]
    elif values.dtype.kind in "ifb":
        names[stated] = [f"{value:.4g}" for value in values[stated].astype(float)]
    else:
        names[stated] = values[stated].astype(str)
    return names if 1 < names.nunique() <= MOST_LEVELS else pd.Series(dtype=str)


def subgroups(
    predictions: pd.DataFrame,
    covariates: list[str] | None = None,
    *,
    draws: int = 2000,
    seed: int = 0,
    minimum: int = 10,
) -> dict:
    """Macro AUROC, balanced accuracy and Brier score within each subgroup.

    Args:
        predictions: rows of one model and one set.
        covariates: columns to split by; those that ``SUBGROUPS`` names when not given.
        draws, seed: as in ``evaluation.evaluate``.
        minimum: fewest patients in a subgroup, and fewest with each lesion type for a number to be given.

    Returns:
        {covariate: {level: {metric: {"value", "low", "high", "n_images", "n_patients"[, "reason"]}}}}.
        Covariates that cannot be split are absent.
    """
    result: dict = {}
    if covariates is None:
        covariates = ["dataset", *(c for c in covariates_of(predictions) if c.startswith(SUBGROUPS))]
    for covariate in covariates:
        if covariate not in predictions:
            continue
        names = levels(predictions[covariate])
        for level in _in_order(names):
            part = Sample(predictions[names == level], draws=draws, seed=seed, minimum=minimum)
            scarcer = part.scarcer_sides()
            effective = {"brier": part.clusters.patients}
            found = samples(part)
            result.setdefault(covariate, {})[level] = {
                name: part.estimate(
                    found[name],
                    effective=effective.get(name, scarcer),
                    bounds=(0.0, 2.0 if name == "brier" else 1.0),
                )
                for name in COMPARED
            }
    return result


def _in_order(names: pd.Series) -> list[str]:
    def first_number(name: str):
        try:
            return (name == "not stated", float(name.split(" to ")[0]), name)
        except ValueError:
            return (name == "not stated", 0.0, name)

    return sorted({*names}, key=first_number)


def across_folds(predictions: pd.DataFrame) -> dict:
    """Mean and standard deviation over folds (or seeds) of the metrics of :func:`samples`.

    Args:
        predictions: rows of one model and one set with several values in ``fold``.

    Returns:
        name -> {"mean", "sd", "n_folds"}; "sd" is None for one fold, "mean" is None where no fold has it.
    """
    folds = []
    for _, part in predictions.groupby("fold", sort=True):
        part.attrs["classes"] = classes_of(predictions)
        folds.append({name: values[0] for name, values in samples(Sample(part, draws=1)).items()})
    result = {}
    for name in folds[0]:
        values = np.array([fold[name] for fold in folds])
        values = values[np.isfinite(values)]
        result[name] = {
            "mean": float(f"{values.mean():.9g}") if len(values) else None,
            "sd": float(f"{values.std(ddof=1):.9g}") if len(values) > 1 else None,
            "n_folds": len(values),
        }
    return result


def curves(sample: Sample, points: int = 101, draws: int = 500) -> dict:
    """ROC and precision-recall curves with pointwise 95 % bands.

    Args:
        sample: one model on one set.
        points: number of points on the horizontal axis, 0..1.
        draws: bootstrap draws behind the bands (a band needs fewer than a reported number).

    Returns:
        class key -> {"x", "sensitivity", "sensitivity_low", "sensitivity_high", "precision", ...}, float
        arrays of length ``points``; x is 1 - specificity for the ROC and recall for precision. Classes
        without a positive or a negative image are absent.
    """
    grid, result = np.linspace(0, 1, points), {}
    for k, key in enumerate(sample.classes):
        positive = sample.is_class[:, k]
        if not 0 < positive.sum() < len(positive):
            continue
        order = np.argsort(-sample.probabilities[:, k], kind="stable")
        ends = np.append(np.flatnonzero(np.diff(sample.probabilities[order, k]) != 0), len(order) - 1)
        rows = {"sensitivity": [], "precision": []}
        for part, weights in sample.clusters.weights(order):
            if part.start > draws:
                break
            hits = np.cumsum(weights * positive[order], axis=1)[:, ends]
            called = np.cumsum(weights, axis=1)[:, ends]
            for h, c in zip(hits, called):
                if h[-1] == 0 or c[-1] == h[-1]:
                    continue
                recall, fpr = h / h[-1], (c - h) / (c[-1] - h[-1])
                rows["sensitivity"].append(np.interp(grid, np.append(0, fpr), np.append(0, recall)))
                precision = np.divide(h, c, out=np.ones_like(h), where=c > 0)
                rows["precision"].append(
                    precision[np.searchsorted(recall, grid - 1e-12).clip(max=len(h) - 1)]
                )
                if len(rows["precision"]) > draws:
                    break
        result[key] = {"x": grid, "prevalence": float(positive.mean())}
        for name, values in rows.items():
            band = np.array(values[1:] or values[:1])
            result[key] |= {
                name: values[0],
                f"{name}_low": np.quantile(band, 0.025, axis=0),
                f"{name}_high": np.quantile(band, 0.975, axis=0),
            }
    return result


def reliability(sample: Sample, prefix: str = "p_") -> dict[str, pd.DataFrame]:
    """Observed frequency against stated probability, in bins of equal numbers of images.

    Args:
        sample: one model on one set.
        prefix: "p_" for calibrated probabilities, "raw_" for those before temperature.

    Returns:
        class key, and "top label" for the highest probability, -> DataFrame with columns "stated",
        "observed", "low", "high" (0..1) and "n_images", one row per bin; the 95 % interval is the
        patient-cluster bootstrap's.
    """
    p = sample.columns(prefix)
    pairs = {key: (p[:, k], sample.is_class[:, k]) for k, key in enumerate(sample.classes)}
    pairs["top label"] = (p.max(axis=1), p.argmax(axis=1) == sample.truth)
    result = {}
    for name, (stated, happened) in pairs.items():
        bin_of = bins(stated)
        chosen = bin_of[:, None] == np.unique(bin_of)
        sums = sample.clusters.sums(np.hstack([chosen * happened[:, None], chosen * stated[:, None], chosen]))
        events, total, count = np.split(sums, 3, axis=1)
        observed = ratio(events, count)
        low, high = np.nanquantile(observed[1:], [0.025, 0.975], axis=0)
        result[name] = pd.DataFrame(
            {
                "stated": total[0] / count[0],
                "observed": observed[0],
                "low": low,
                "high": high,
                "n_images": count[0].astype(int),
            }
        )
    return result
