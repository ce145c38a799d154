"""Selective use: refer the least certain cases to a human, or answer with a set of lesion types.

``referral`` asks how accuracy grows when the least certain fraction is referred (Geifman & El-Yaniv 2017,
arXiv 1705.08500). ``conformal`` gives prediction sets through MAPIE that hold the right type with a chosen
probability (least ambiguous set-valued classifiers, Sadinle 2019, JASA 114:223) and checks that promise
per type, because a set can keep it on average and break it for the rare types.
"""

import warnings

import numpy as np
import pandas as pd

from thyroid_lib.evaluation.bootstrap import MINIMUM_PATIENTS, Clusters, estimate, ratio
from thyroid_lib.evaluation.metrics import Sample
from thyroid_lib.evaluation.predictions import classes_of

FRACTIONS = np.round(np.arange(0.0, 0.81, 0.1), 2)
"""Fractions referred to a human at which accuracy is reported."""


def referral(sample: Sample) -> dict:
    """Accuracy on what is kept when the least certain fraction is referred; certainty = highest probability.

    Args:
        sample: one model on one set.

    Returns:
        ``accuracy/<fraction referred>`` -> {"value", "low", "high", "n_images", "n_patients"} (n of the
        images kept), and ``area`` under the risk-coverage curve, 0 best. Ties in certainty are broken as if
        at random (linear interpolation).
    """
    certainty = sample.probabilities.max(axis=1)
    right = sample.probabilities.argmax(axis=1) == sample.truth
    order = np.argsort(-certainty, kind="stable")
    ends = np.append(np.flatnonzero(np.diff(certainty[order]) != 0), len(order) - 1)
    accuracy = np.empty((len(sample.clusters), len(FRACTIONS)))
    area, shares = np.empty(len(sample.clusters)), np.linspace(0.01, 1, 100)
    for part, weights in sample.clusters.weights(order):
        hits = np.cumsum(weights * right[order], axis=1)[:, ends]
        kept = np.cumsum(weights, axis=1)[:, ends]
        for row, h, k in zip(range(part.start, part.stop), hits, kept):
            h, k = np.append(0, h), np.append(0, k)
            at = k[-1] * (1 - FRACTIONS)
            accuracy[row] = np.interp(at, k, h) / at
            area[row] = 1 - np.mean(np.interp(k[-1] * shares, k, h) / (k[-1] * shares))
    result = {"area": sample.estimate(area)}
    for column, fraction in enumerate(FRACTIONS):
        chosen = np.zeros(len(order), bool)
        chosen[order[: round(len(order) * (1 - fraction))]] = True
        result[f"accuracy/{fraction:.1f}"] = sample.estimate(accuracy[:, column], chosen=chosen)
    return result


def conformal(
    predictions: pd.DataFrame,
    validation: pd.DataFrame,
    *,
    confidence: float = 0.9,
    draws: int = 2000,
    seed: int = 0,
    minimum: int = MINIMUM_PATIENTS,
) -> tuple[dict, pd.DataFrame]:
    """Split-conformal prediction sets, calibrated on the validation part, checked on the tested rows.

    Each fold's rows are calibrated on that fold's validation rows. A fold without any (the mean of several
    models) takes all validation rows. Where there are none at all, the tested patients are cut in two halves
    and each half calibrates the other; ``calibrated_on`` says which it was.

    Args:
        predictions: rows of one model and one set.
        validation: the same model's rows with set "validation"; may be empty.
        confidence: wanted probability that the set holds the right type, 0..1.
        draws, seed, minimum: as in ``evaluation.evaluate``.

    Returns:
        (metrics, sets). Metrics: "coverage", "coverage/<key>", "set_size", "single" (share of sets with one
        type), "empty", each with interval; "calibrated_on"; "confidence"; "reason" when nothing could be
        calibrated. Sets: bool columns per class, one row per row of ``predictions``.
    """
    classes = classes_of(predictions)
    table = predictions.reset_index(drop=True)
    sets = np.full((len(table), len(classes)), np.nan)
    calibrated_on = "validation part"
    if len(validation):
        for fold in sorted({*table["fold"]}):
            own = validation[validation["fold"] == fold]
            rows = np.flatnonzero(table["fold"] == fold)
            sets[rows] = _sets(own if len(own) else validation, table.iloc[rows], classes, confidence)
    else:
        calibrated_on = "the other half of the tested patients"
        names = np.unique(table["patient"])
        first = np.random.default_rng(seed).permutation(names)[: len(names) // 2]
        half = table["patient"].isin(first).to_numpy()
        for chosen in (half, ~half):
            sets[chosen] = _sets(table[~chosen], table[chosen], classes, confidence)
    metrics = {"confidence": confidence, "calibrated_on": calibrated_on}
    known = np.isfinite(sets).all(axis=1)
    if not known.all():
        needed = _needed(confidence)
        return metrics | {
            "reason": f"too few: at least {needed} images are needed to calibrate"
        }, pd.DataFrame()
    truth = table["truth"].map({key: k for k, key in enumerate(classes)}).to_numpy()
    held, size = sets[np.arange(len(sets)), truth], sets.sum(axis=1)
    is_class = truth[:, None] == np.arange(len(classes))
    clusters = Clusters(table["patient"], draws, seed)
    columns = [held, size, size == 1, size == 0, np.ones(len(sets))]
    sums = clusters.sums(np.column_stack([*columns, is_class * held[:, None], is_class]))
    everyone = {"n_images": len(sets), "n_patients": clusters.patients, "minimum": minimum}
    for column, name in enumerate(("coverage", "set_size", "single", "empty")):
        bounds = (0.0, float(len(classes)) if name == "set_size" else 1.0)
        metrics[name] = estimate(ratio(sums[:, column], sums[:, 4]), bounds=bounds, **everyone)
    for k, key in enumerate(classes):
        metrics[f"coverage/{key}"] = estimate(
            ratio(sums[:, 5 + k], sums[:, 5 + len(classes) + k]),
            n_images=int(is_class[:, k].sum()),
            n_patients=int(table["patient"][is_class[:, k]].nunique()),
            bounds=(0.0, 1.0),
            minimum=minimum,
        )
    return metrics, pd.DataFrame(sets.astype(bool), columns=classes)


def _sets(
    calibration: pd.DataFrame, tested: pd.DataFrame, classes: list[str], confidence: float
) -> np.ndarray:
    """Membership (N, C) as 0/1 floats; NaN when the calibration rows are too few for this confidence."""
    from mapie.classification import SplitConformalClassifier

    if not len(tested) or len(calibration) < _needed(confidence):
        return np.full((len(tested), len(classes)), np.nan)
    columns = ["p_" + key for key in classes]
    truth = calibration["truth"].map({key: k for k, key in enumerate(classes)}).to_numpy()
    conformal = SplitConformalClassifier(_given(len(classes)), confidence_level=confidence, prefit=True)
    with warnings.catch_warnings():  # a type absent from the calibration rows shows in its own coverage
        warnings.filterwarnings("ignore", "WARNING: your conformalization dataset has less labels")
        conformal.conformalize(_proper(calibration[columns]), truth)
    return conformal.predict_set(_proper(tested[columns]))[1][:, :, 0].astype(float)


def _needed(confidence: float) -> int:
    return int(np.floor(max(1 / (1 - confidence), 1 / confidence) + 1e-9)) + 1


def _proper(frame: pd.DataFrame) -> np.ndarray:
    values = frame.to_numpy(np.float64)
    return values / values.sum(axis=1, keepdims=True)


def _given(count: int):
    """A scikit-learn classifier whose features are the probabilities themselves."""
    from sklearn.base import BaseEstimator, ClassifierMixin

    class Given(ClassifierMixin, BaseEstimator):
        classes_ = np.arange(count)

        def fit(self, X, y):
            return self

        def predict_proba(self, X):
            return X

        def predict(self, X):
            return np.argmax(X, axis=1)

    return Given()
