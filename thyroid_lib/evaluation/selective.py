"""Selective use: refer the least certain cases to a human, or answer with a set of lesion types.

``referral`` asks how accuracy grows when the least certain fraction is referred (Geifman & El-Yaniv 2017,
arXiv 1705.08500). ``conformal`` gives prediction sets that hold the right type with a chosen
probability (least ambiguous set-valued classifiers, Sadinle 2019, JASA 114:223) and checks that promise
per type, because a set can keep it on average and break it for the rare types.
"""

import numpy as np
import pandas as pd

from thyroid_lib.evaluation.metrics import Sample

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
    shares = np.append(1 - FRACTIONS, np.linspace(0.01, 1, 100))
    blocks = sample.clusters.cumulated(certainty, right)
    drawn = ((k, h, shares * k[-1]) for _, kept, hits in blocks for k, h in zip(kept, hits))
    accuracy = np.array([np.interp(n, np.append(0, k), np.append(0, h)) / n for k, h, n in drawn])
    result = {"area": sample.estimate(1 - accuracy[:, len(FRACTIONS) :].mean(axis=1))}
    place = np.argsort(np.argsort(-certainty, kind="stable"))  # 0 for the most certain image
    for column, fraction in enumerate(FRACTIONS):
        chosen = place < round(len(place) * (1 - fraction))
        result[f"accuracy/{fraction:.1f}"] = sample.estimate(accuracy[:, column], chosen=chosen)
    return result


def conformal(sample: Sample, validation: pd.DataFrame, confidence: float = 0.9) -> tuple[dict, pd.DataFrame]:
    """Split-conformal prediction sets, calibrated on the validation part, checked on the tested rows.

    Each fold's rows are calibrated on that fold's validation rows. A fold without any (the mean of several
    models) takes all validation rows. Where there are none at all, the tested patients are cut in two halves
    and each half calibrates the other; ``calibrated_on`` says which it was.

    Args:
        sample: one model on one set.
        validation: the same model's rows with set "validation"; may be empty.
        confidence: wanted probability that the set holds the right type, 0..1.

    Returns:
        (metrics, sets). Metrics: "coverage", "coverage/<key>", "set_size", "single" (share of sets with one
        type), "empty", each with interval; "calibrated_on"; "confidence"; "reason" when nothing could be
        calibrated. Sets: bool columns per class, one row per row of the sample.
    """
    table, metrics = sample.table, {"confidence": confidence, "calibrated_on": "validation part"}
    if len(validation):
        folds = {fold: validation[validation["fold"] == fold] for fold in {*table["fold"]}}
        parts = [(own if len(own) else validation, table["fold"] == fold) for fold, own in folds.items()]
    else:
        metrics["calibrated_on"] = "the other half of the tested patients"
        names = np.unique(table["patient"])
        half = table["patient"].isin(np.random.default_rng(sample.seed).permutation(names)[: len(names) // 2])
        parts = [(table[~half], half), (table[half], ~half)]
    needed = int(np.floor(max(1 / (1 - confidence), 1 / confidence) + 1e-9)) + 1
    if any(len(calibration) < needed for calibration, _ in parts):
        reason = f"too few: at least {needed} images are needed to calibrate"
        return metrics | {"reason": reason}, pd.DataFrame()
    sets, columns = np.zeros(sample.is_class.shape, bool), ["p_" + key for key in sample.classes]
    for calibration, chosen in parts:
        labels = calibration["truth"].map(sample.classes.index)
        limit = threshold(calibration[columns].to_numpy(), labels.to_numpy(), confidence)
        sets[chosen] = 1 - table.loc[chosen, columns] <= limit
    held, size = sets[np.arange(len(sets)), sample.truth], sets.sum(axis=1)
    for name, values in {"coverage": held, "set_size": size, "single": size == 1, "empty": size == 0}.items():
        most = float(len(sample.classes)) if name == "set_size" else 1.0
        metrics[name] = sample.estimate(sample.clusters.means(values), bounds=(0.0, most))
    for key, chosen in zip(sample.classes, sample.is_class.T):
        metrics[f"coverage/{key}"] = sample.estimate(sample.clusters.means(held, chosen), chosen=chosen)
    return metrics, pd.DataFrame(sets, columns=sample.classes)


def threshold(probabilities: np.ndarray, labels: np.ndarray, confidence: float = 0.9) -> float:
    """Split-conformal threshold of 1 - p(right type), fixed on calibration images.

    Args:
        probabilities: float (n, C), calibrated.
        labels: int (n,), columns of the right types.
        confidence: wanted probability that the set of a further image holds the right type, 0..1.

    Returns:
        The set of an image is every type with 1 - p <= threshold; 1 (all types) where n is too small to promise
        anything.

    Source: Sadinle, Lei and Wasserman 2019 (arXiv 1609.00451); quantile at ceil((n + 1) confidence).
    """
    scores = np.sort(1 - np.asarray(probabilities, np.float64)[np.arange(len(labels)), labels])
    rank = int(np.ceil((len(scores) + 1) * confidence))
    return float(scores[rank - 1]) if 0 < rank <= len(scores) else 1.0
