"""Statistics on saved predictions: reads predictions.csv and nothing else (claim C15).

``evaluate`` gives every metric of one model on one set with its patient-level interval; ``compare`` gives
paired differences between two models; ``subgroups`` and ``across_folds`` repeat a few metrics on parts. The
definitions follow Metrics Reloaded (Nat Methods 2024) and are scikit-learn's wherever it has them;
``docs/evaluation.md`` lists them.
"""

import numpy as np
import pandas as pd

from thyroid_lib.evaluation.bootstrap import (
    MINIMUM_PATIENTS,
    UNBOUNDED,
    Clusters,
    delong,
    estimate,
    rank_statistics,
    ratio,
    scarcer_sides,
)
from thyroid_lib.evaluation.predictions import (
    classes_of,
)

THRESHOLDS = np.round(np.arange(0.05, 0.951, 0.05), 2)
"""Threshold probabilities of the decision curves."""

MOST_BINS = 10  # bins of equal numbers of images; fewer than 10 images per bin would be noise


def evaluate(
    predictions: pd.DataFrame,
    *,
    draws: int = 2000,
    seed: int = 0,
    unit: str = "image",
    prevalence: dict[str, float] | None = None,
    ordered: bool = False,
    minimum: int = MINIMUM_PATIENTS,
) -> dict:
    """Every metric of one model on one set, with 95 % patient-cluster bootstrap intervals.

    Args:
        predictions: rows of one model and one set of :func:`read_predictions`.
        draws: bootstrap draws.
        seed: seed of the draws.
        unit: "image", or "patient": probabilities averaged over a patient's images (:func:`by_patient`).
        prevalence: class key -> share in the population that PPV and NPV speak of; the share among these
            rows when not given.
        ordered: the classes are ordered; adds the quadratic weighted kappa.
        minimum: fewest patients behind a number.

    Returns:
        Flat dict. Metrics are {"value", "low", "high", "n_images", "n_patients"[, "reason"]}; their keys are
        ``macro_auroc``, ``auroc/<key>``, ``average_precision/<key>``, ``sensitivity/<key>`` (and specificity,
        ppv, npv, recall), ``accuracy``, ``balanced_accuracy``, ``mcc``, ``weighted_kappa``, ``brier``,
        ``log_loss``, ``ece_top_label``, ``ece_classwise``, the same before temperature under ``raw/``,
        and ``net_benefit/<key>/<threshold>``. Plain numbers: ``prevalence/<key>``, ``images/<key>``,
        ``patients/<key>``, ``confusion/<truth>/<predicted>``, ``delong/<key>``.

    Raises:
        ValueError: rows of several models or sets, no rows, or an unknown unit.
    """
    sample = Sample(predictions, draws=draws, seed=seed, unit=unit, minimum=minimum)
    prevalence = prevalence or {
        key: float(sample.is_class[:, k].mean()) for k, key in enumerate(sample.classes)
    }
    metrics = {"unit": unit, "draws": draws} | sample.excluded
    for k, key in enumerate(sample.classes):
        metrics[f"prevalence/{key}"] = float(f"{prevalence[key]:.9g}")
        metrics[f"images/{key}"] = int(sample.is_class[:, k].sum())
        metrics[f"patients/{key}"] = sample.patients_with(sample.is_class[:, k])
    metrics |= _discrimination(sample) | _decisions(sample, ordered) | _operating_points(sample, prevalence)
    metrics |= _calibration(sample, "p_", "") | _calibration(sample, "raw_", "raw/")
    return metrics | _net_benefit(sample)


class Sample:
    """One model's rows on one set as arrays, with the bootstrap draws that all its metrics share.

    Args:
        predictions, draws, seed, unit, minimum: as in :func:`evaluate`.

    Attributes:
        classes: C class keys;  table: the N rows;  truth: int (N,);  is_class: bool (N, C);
        probabilities: float (N, C), calibrated;  positive: bool (N, C), verdicts;  clusters: the draws;
        excluded: {"patients_excluded_mixed": number of patients left out of a patient-level analysis}.
    """

    def __init__(self, predictions, *, draws=2000, seed=0, unit="image", minimum=MINIMUM_PATIENTS):
        if not len(predictions):
            raise ValueError("evaluate: expected at least one row of predictions, got none")
        for column in ("model", "set"):
            if len(values := sorted({*predictions[column]})) > 1:
                raise ValueError(f"evaluate: expected rows of one {column}, got {values}; select one first")
        if unit not in ("image", "patient"):
            raise ValueError(f"evaluate: expected unit 'image' or 'patient', got {unit!r}")
        self.classes, self.minimum, self.excluded = classes_of(predictions), minimum, {}
        if unit == "patient":
            predictions, mixed = by_patient(predictions)
            self.excluded = {"patients_excluded_mixed": len(mixed)}
        self.table = predictions.reset_index(drop=True)
        self.truth = (
            self.table["truth"].map({key: k for k, key in enumerate(self.classes)}).to_numpy(np.int64)
        )
        self.is_class = self.truth[:, None] == np.arange(len(self.classes))
        self.probabilities = self.columns("p_")
        self.positive = self.columns("positive_") > 0.5
        self.patients = self.table["patient"].to_numpy().astype(str)
        self.clusters = Clusters(self.patients, draws, seed)

    def columns(self, prefix: str) -> np.ndarray:
        """The class columns with this prefix, float64 (N, C)."""
        return self.table[[prefix + key for key in self.classes]].to_numpy(np.float64)

    def patients_with(self, chosen: np.ndarray) -> int:
        """Number of patients among the chosen images, bool (N,)."""
        return len(np.unique(self.patients[chosen]))

    def estimate(self, samples, chosen=None, effective=None, **options) -> dict:
        """:func:`bootstrap.estimate` with the numbers of images and patients among the chosen images."""
        chosen = np.ones(len(self.truth), bool) if chosen is None else chosen
        patients = self.patients_with(chosen)
        options = {"bounds": (0.0, 1.0), "minimum": self.minimum} | options
        return estimate(
            samples,
            n_images=int(chosen.sum()),
            n_patients=patients,
            effective=patients if effective is None else effective,
            **options,
        )

    def scarcer(self, k: int) -> int:
        """Patients on the scarcer side of class k against the rest."""
        return min(self.patients_with(self.is_class[:, k]), self.patients_with(~self.is_class[:, k]))

    def scarcer_sides(self) -> list[int]:
        """:func:`bootstrap.scarcer_sides` of the images."""
        return scarcer_sides(self.patients, self.is_class)


def by_patient(predictions: pd.DataFrame) -> tuple[pd.DataFrame, list[str]]:
    """One row per patient: probabilities averaged over images, verdict positive when at least half are.

    Args:
        predictions: rows of one model and one set.

    Returns:
        (table in the form of predictions with ``image`` = patient, patients left out because their images
        have different reference standards).
    """
    classes = classes_of(predictions)
    mixed = predictions.groupby("patient")["truth"].nunique()
    mixed = sorted(mixed.index[mixed > 1])
    kept = predictions[~predictions["patient"].isin(mixed)]
    means = [prefix + key for prefix in ("p_", "raw_", "positive_") for key in classes]
    rules = {c: ("mean" if c in means else "first") for c in kept.columns if c != "patient"}
    table = kept.groupby("patient", as_index=False, sort=True).agg(rules)
    for key in classes:
        table["positive_" + key] = (table["positive_" + key] >= 0.5).astype(np.int64)
    table["image"] = table["patient"]
    table = table[list(predictions.columns)]
    table.attrs["classes"] = classes
    return table, mixed


def _discrimination(sample: Sample) -> dict:
    metrics, every = {}, []
    for k, key in enumerate(sample.classes):
        positive = sample.is_class[:, k]
        auroc, precision = rank_statistics(sample.probabilities[:, k], positive, sample.clusters)
        every.append((auroc, precision))
        metrics[f"auroc/{key}"] = sample.estimate(auroc, effective=sample.scarcer(k))
        metrics[f"average_precision/{key}"] = sample.estimate(precision, effective=sample.scarcer(k))
        metrics[f"delong/{key}"] = delong(sample.probabilities[:, k], positive, sample.patients)
    for name, draws in zip(("macro_auroc", "macro_average_precision"), zip(*every)):
        metrics[name] = sample.estimate(np.mean(draws, axis=0), effective=sample.scarcer_sides())
    return metrics


def _decisions(sample: Sample, ordered: bool) -> dict:
    c = len(sample.classes)
    predicted = sample.probabilities.argmax(axis=1)
    cells = np.eye(c * c)[sample.truth * c + predicted]
    matrix = sample.clusters.sums(cells).reshape(-1, c, c)  # draw, truth, predicted
    total, hits = matrix.sum((1, 2)), np.trace(matrix, axis1=1, axis2=2)
    of_truth, of_predicted = matrix.sum(2), matrix.sum(1)
    recall = ratio(np.diagonal(matrix, axis1=1, axis2=2), of_truth)
    spread = (total**2 - (of_truth**2).sum(1)) * (total**2 - (of_predicted**2).sum(1))
    # Gorodkin 2004; 0 for a constant prediction, as scikit-learn has it
    mcc = np.nan_to_num(ratio(hits * total - (of_truth * of_predicted).sum(1), np.sqrt(spread)))
    of_class = [sample.patients_with(chosen) for chosen in sample.is_class.T]
    metrics = {
        "accuracy": sample.estimate(ratio(hits, total)),
        "balanced_accuracy": sample.estimate(recall.mean(1), effective=of_class),
        "mcc": sample.estimate(mcc, bounds=(-1.0, 1.0)),
    }
    if ordered:
        distance = (np.arange(c)[:, None] - np.arange(c)) ** 2
        chance = of_truth[:, :, None] * of_predicted[:, None, :] / total[:, None, None]
        kappa = 1 - ratio((matrix * distance).sum((1, 2)), (chance * distance).sum((1, 2)))
        metrics["weighted_kappa"] = sample.estimate(kappa, bounds=(-1.0, 1.0))
    for k, key in enumerate(sample.classes):
        metrics[f"recall/{key}"] = sample.estimate(recall[:, k], chosen=sample.is_class[:, k])
        for j, other in enumerate(sample.classes):
            metrics[f"confusion/{key}/{other}"] = int(matrix[0, k, j])
    return metrics


def _operating_points(sample: Sample, prevalence: dict[str, float]) -> dict:
    metrics = {}
    for k, key in enumerate(sample.classes):
        truth, called, share = sample.is_class[:, k], sample.positive[:, k], prevalence[key]
        tp, fn, fp, tn = sample.clusters.sums(
            np.stack([truth & called, truth & ~called, ~truth & called, ~truth & ~called], axis=1)
        ).T
        sensitivity, specificity = ratio(tp, tp + fn), ratio(tn, tn + fp)
        found, cleared = sensitivity * share, specificity * (1 - share)
        metrics[f"sensitivity/{key}"] = sample.estimate(sensitivity, chosen=truth)
        metrics[f"specificity/{key}"] = sample.estimate(specificity, chosen=~truth)
        scarcer = sample.scarcer(k)
        ppv = ratio(found, found + (1 - specificity) * (1 - share))
        npv = ratio(cleared, cleared + (1 - sensitivity) * share)
        metrics[f"ppv/{key}"] = sample.estimate(ppv, effective=scarcer)
        metrics[f"npv/{key}"] = sample.estimate(npv, effective=scarcer)
    return metrics


def bins(values: np.ndarray) -> np.ndarray:
    """Bin of each value, bins of (nearly) equal numbers of values, equal values never parted.

    Args:
        values: float (N,).

    Returns:
        int64 (N,), numbered from 0; at most ``MOST_BINS`` bins and at least 10 values per bin on average.
    """
    count = int(np.clip(len(values) // 10, 1, MOST_BINS))
    edges = np.unique(np.quantile(values, np.linspace(0, 1, count + 1)[1:-1]))
    return np.searchsorted(edges, values, side="right")


def bin_error(confidence: np.ndarray, correct: np.ndarray, clusters: Clusters) -> np.ndarray:
    """Expected calibration error of the sample and every draw: mean absolute gap over :func:`bins`, by images.

    Args:
        confidence: float (N,), stated probability.
        correct: bool (N,), whether it happened.
        clusters: the draws.

    Returns:
        float64 (draws + 1,), 0 to 1.
    """
    chosen = np.eye(MOST_BINS)[bins(confidence)]
    gaps = clusters.sums(chosen * (correct.astype(float) - confidence)[:, None])
    return np.abs(gaps).sum(1) / clusters.sums(np.ones(len(correct)))[:, 0]


def _calibration(sample: Sample, prefix: str, name: str) -> dict:
    p, clusters = sample.columns(prefix), sample.clusters
    own = np.clip(p[np.arange(len(p)), sample.truth], 1e-12, 1.0)
    per_image = np.stack([((p - sample.is_class) ** 2).sum(1), -np.log(own), np.ones(len(p))], axis=1)
    brier, loss, total = clusters.sums(per_image).T
    top = bin_error(p.max(axis=1), p.argmax(axis=1) == sample.truth, clusters)
    classwise = np.mean(
        [bin_error(p[:, k], sample.is_class[:, k], clusters) for k in range(p.shape[1])], axis=0
    )
    return {
        name + "brier": sample.estimate(brier / total, bounds=(0.0, 2.0)),
        name + "log_loss": sample.estimate(loss / total, bounds=(0.0, np.inf)),
        name + "ece_top_label": sample.estimate(top),
        name + "ece_classwise": sample.estimate(classwise),
    }


def _net_benefit(sample: Sample) -> dict:
    metrics = {}
    odds = THRESHOLDS / (1 - THRESHOLDS)
    for k, key in enumerate(sample.classes):
        truth = sample.is_class[:, k, None]
        called = sample.probabilities[:, k, None] >= THRESHOLDS
        worth = np.where(called, np.where(truth, 1.0, -odds), 0.0)
        everyone = np.where(truth, 1.0, -odds)
        sums = sample.clusters.sums(np.hstack([worth, everyone, np.ones((len(truth), 1))]))
        benefit = sums[:, :-1] / sums[:, -1:]
        for t, threshold in enumerate(THRESHOLDS):
            place = f"net_benefit/{key}/{threshold:.2f}"
            metrics[place] = sample.estimate(benefit[:, t], bounds=UNBOUNDED, effective=sample.scarcer(k))
            metrics[place + "/all"] = float(f"{benefit[0, len(THRESHOLDS) + t]:.9g}")
    return metrics
