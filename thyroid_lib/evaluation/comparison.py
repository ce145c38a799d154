"""Comparisons: two models on the same images, one model on two sources, on subgroups and across folds.

The metrics and their meaning are those of ``evaluation.metrics``, the intervals those of ``evaluation.bootstrap``.
"""

from itertools import pairwise

import numpy as np
import pandas as pd

from thyroid_lib.evaluation.bootstrap import UNBOUNDED, delong, estimate
from thyroid_lib.evaluation.metrics import METRICS, Sample
from thyroid_lib.evaluation.predictions import covariates_of

COMPARED = tuple(name for name, metric in METRICS.items() if metric.compared and "{}" not in name)
"""Metrics of one number by which models, sources, folds and subgroups are compared; all but subgroups also by class."""

SUBGROUPS = (
    "age", "sex", "device", "nodule_size", "size", "caliper", "coloured_marks", "printed_text", "view", "source",
    "site", "dataset",
)  # fmt: skip
"""A covariate whose name starts with one of these is a subgroup; every further one would be a chance finding more."""

MOST_LEVELS = 8  # a covariate with more values than this is an identifier, not a subgroup


def samples(sample: Sample) -> dict[str, np.ndarray]:
    """The draws of the metrics that comparisons use.

    Args:
        sample: one model on one set.

    Returns:
        name -> float64 (draws + 1,), the value first: `COMPARED`, and "auroc/<key>" per class.
    """
    return {name: sample.draws(name) for name, (of, _) in sample.names.items() if METRICS[of].compared}


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
        ValueError: the two have no image in common (as `Sample` says), or disagree on an image's reference standard.
    """
    place, pair = ["set", "image"], ((first, second), (second, first))
    one, two = (table.merge(other[place]).sort_values(place) for table, other in pair)
    if list(one["truth"]) != list(two["truth"]):
        raise ValueError("compare: the two models' rows disagree on the reference standard of an image")
    a, b = Sample(one, **options), Sample(two, **options)
    theirs, about = samples(b), {"effective": a.sides, "bounds": UNBOUNDED}
    result = {name: a.estimate(ours - theirs[name], **about) for name, ours in samples(a).items()}
    for k, key in enumerate(a.classes):
        scores = np.column_stack([b.probabilities[:, k], a.probabilities[:, k]])
        result[f"delong/{key}"] = delong(scores, a.is_class[:, k], a.patients)
    return result | {"images_left_out": len(first) + len(second) - 2 * len(one)}


def drop(internal: pd.DataFrame, external: pd.DataFrame, *, seed: int = 0, **options) -> dict:
    """How much a model loses on another source: internal minus external testing, two independent samples.

    Args:
        internal, external: rows of one model on each set.
        seed: of the first set's draws; the second's are others. **options: draws and minimum of `Sample`.

    Returns:
        name -> {"value", "low", "high", "n_images", "n_patients"} for every name of :func:`samples`.
    """
    a, b = Sample(internal, seed=seed, **options), Sample(external, seed=seed + 1, **options)
    about = {
        "n_images": len(internal) + len(external),
        "n_patients": a.clusters.patients + b.clusters.patients,
    }
    about |= {"effective": [*a.sides, *b.sides], "minimum": a.minimum}
    there = samples(b)
    return {name: estimate(here - there[name], **about) for name, here in samples(a).items()}


def levels(values: pd.Series) -> dict[str, pd.Series]:
    """The subgroups that a covariate makes, in order.

    Args:
        values: numbers with more than four distinct values are cut into thirds, anything else is taken as it
            is. Empty values make the last group, "not stated".

    Returns:
        level -> bool per row; empty when there is a single level or more than ``MOST_LEVELS``.
    """
    stated, kind = values.notna() & values.astype(str).str.strip().ne(""), values.dtype.kind
    values = values if kind in "ifb" else values.astype(str)
    known = np.unique(values[stated])
    if kind in "if" and len(known) > 4:
        cuts = np.unique(np.quantile(values[stated], [0, 1 / 3, 2 / 3, 1]))
        if len(cuts) < 3:
            return {}
        third = np.searchsorted(cuts[1:-1], values, side="right")
        spans = [f"{low:.4g} to {high:.4g}" for low, high in pairwise(cuts)]
        found = {span: stated & (third == k) for k, span in enumerate(spans)}
    else:
        found = {f"{float(v):.4g}" if kind in "ifb" else v: values == v for v in known}
    if not stated.all():
        found["not stated"] = ~stated
    return found if 1 < len(found) <= MOST_LEVELS else {}


def subgroups(predictions: pd.DataFrame, *, minimum: int = 10, **options) -> dict:
    """Macro AUROC, balanced accuracy and Brier score within each subgroup that ``SUBGROUPS`` names.

    Args:
        predictions: rows of one model and one set.
        minimum: fewest patients in a subgroup, and fewest with each lesion type for a number to be given.
        **options: draws and seed of `Sample`.

    Returns:
        {covariate: {level: {metric: {"value", "low", "high", "n_images", "n_patients"[, "reason"]}}}}.
        Covariates that cannot be split are absent.
    """
    result: dict = {}
    for covariate in ["dataset", *(c for c in covariates_of(predictions) if c.startswith(SUBGROUPS))]:
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
    folds = [samples(Sample(part, draws=0)) for _, part in predictions.groupby("fold")]
    result = {}
    for name in folds[0]:
        values = pd.Series([fold[name][0] for fold in folds]).dropna()
        spread = {"mean": values.mean(), "sd": values.std()}
        known = {key: None if np.isnan(value) else float(value) for key, value in spread.items()}
        result[name] = known | {"n_folds": len(values)}
    return result
