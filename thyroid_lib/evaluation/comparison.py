"""Comparisons: two models on the same images, one model on two sources, on subgroups and across folds.

The metrics and their meaning are those of ``evaluation.metrics``, the intervals those of ``evaluation.bootstrap``.
"""

from itertools import pairwise

import numpy as np
import pandas as pd

from thyroid_lib.evaluation.bootstrap import MINIMUM_PATIENTS, UNBOUNDED, delong, estimate
from thyroid_lib.evaluation.metrics import Sample
from thyroid_lib.evaluation.predictions import classes_of, covariates_of

COMPARED = ("macro_auroc", "balanced_accuracy", "brier")
"""Metrics by which models, sources, folds and subgroups are compared; all but subgroups also by "auroc/<key>"."""

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
        name -> float64 (draws + 1,), the value first: `COMPARED`, and "auroc/<key>" per class.
    """
    return {name: sample.draws(name) for name in (*COMPARED, *(f"auroc/{key}" for key in sample.classes))}


def compare(first: pd.DataFrame, second: pd.DataFrame, **options) -> dict:
    """Paired differences, first minus second, on the images that both models predicted.

    Args:
        first, second: rows of one model and one set each.
        **options: draws, seed and minimum of `Sample`; both models see the same draws.

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
    one, two = (shared.merge(table, on=place, how="left").sort_values(place) for table in (first, second))
    if not (one["truth"].to_numpy() == two["truth"].to_numpy()).all():
        raise ValueError("compare: the two models' rows disagree on the reference standard of an image")
    one.attrs["classes"] = two.attrs["classes"] = classes_of(first)
    a, b = Sample(one, **options), Sample(two, **options)
    ours, theirs = samples(a), samples(b)
    result = {
        name: a.estimate(ours[name] - theirs[name], effective=a.sides, bounds=UNBOUNDED) for name in ours
    }
    for k, key in enumerate(a.classes):
        scores = np.column_stack([b.probabilities[:, k], a.probabilities[:, k]])
        result[f"delong/{key}"] = delong(scores, a.is_class[:, k], a.patients)
    return result | {"images_left_out": len(first) + len(second) - 2 * len(shared)}


def drop(
    internal: pd.DataFrame, external: pd.DataFrame, *, draws=2000, seed=0, minimum=MINIMUM_PATIENTS
) -> dict:
    """How much a model loses on another source: internal minus external testing, two independent samples.

    Args:
        internal, external: rows of one model on each set.
        draws, seed, minimum: of `Sample`.

    Returns:
        name -> {"value", "low", "high", "n_images", "n_patients"} for every name of :func:`samples`.
    """
    a = Sample(internal, draws=draws, seed=seed)
    b = Sample(external, draws=draws, seed=seed + 1)
    here, there = samples(a), samples(b)
    rests = {
        "n_images": len(internal) + len(external),
        "n_patients": a.clusters.patients + b.clusters.patients,
        "effective": [*a.sides, *b.sides],
    }
    return {name: estimate(here[name] - there[name], minimum=minimum, **rests) for name in here}


def levels(values: pd.Series) -> dict[str, pd.Series]:
    """The subgroups that a covariate makes, in order.

    Args:
        values: numbers with more than four distinct values are cut into thirds, anything else is taken as it
            is. Empty values make the last group, "not stated".

    Returns:
        level -> bool per row; empty when there is a single level or more than ``MOST_LEVELS``.
    """
    stated, found = values.notna() & values.astype(str).str.strip().ne(""), {}
    known = np.unique(values[stated] if values.dtype.kind in "ifb" else values[stated].astype(str))
    if values.dtype.kind in "if" and len(known) > 4:
        cuts = np.unique(np.quantile(values[stated], [0, 1 / 3, 2 / 3, 1]))
        if len(cuts) < 3:
            return {}
        for low, high in pairwise(cuts):
            below = values <= high if high == cuts[-1] else values < high
            found[f"{low:.4g} to {high:.4g}"] = (values >= low) & below
    elif values.dtype.kind in "ifb":
        found = {f"{float(value):.4g}": values == value for value in known}
    else:
        found = {value: values.astype(str) == value for value in known}
    if not stated.all():
        found["not stated"] = ~stated
    return found if 1 < len(found) <= MOST_LEVELS else {}


def subgroups(
    predictions: pd.DataFrame, covariates: list[str] | None = None, *, minimum: int = 10, **options
) -> dict:
    """Macro AUROC, balanced accuracy and Brier score within each subgroup.

    Args:
        predictions: rows of one model and one set.
        covariates: columns to split by; those that ``SUBGROUPS`` names when not given.
        minimum: fewest patients in a subgroup, and fewest with each lesion type for a number to be given.
        **options: draws and seed of `Sample`.

    Returns:
        {covariate: {level: {metric: {"value", "low", "high", "n_images", "n_patients"[, "reason"]}}}}.
        Covariates that cannot be split are absent.
    """
    result: dict = {}
    if covariates is None:
        covariates = ["dataset", *(c for c in covariates_of(predictions) if c.startswith(SUBGROUPS))]
    for covariate in covariates:
        for level, chosen in levels(predictions[covariate]).items():
            part = Sample(predictions[chosen], minimum=minimum, **options)
            result.setdefault(covariate, {})[level] = {name: part.number(name) for name in COMPARED}
    return result


def across_folds(predictions: pd.DataFrame) -> dict:
    """Mean and standard deviation over folds (or seeds) of the metrics of :func:`samples`.

    Args:
        predictions: rows of one model and one set with several values in ``fold``.

    Returns:
        name -> {"mean", "sd", "n_folds"}; "sd" is None for one fold, "mean" is None where no fold has it.
    """
    folds = [samples(Sample(part, draws=0)) for _, part in predictions.groupby("fold", sort=True)]
    result = {}
    for name in folds[0]:
        values = np.array([fold[name][0] for fold in folds])
        values = values[np.isfinite(values)]
        result[name] = {
            "mean": float(values.mean()) if len(values) else None,
            "sd": float(values.std(ddof=1)) if len(values) > 1 else None,
            "n_folds": len(values),
        }
    return result
