"""The metrics: one table of them, and the sample of predictions that they are computed on (claim C15).

`METRICS` is the only place that knows a metric: a further metric is a further entry, which the report reads, and, where
it says `compared`, comparisons, subgroups and folds too. The definitions follow Metrics Reloaded (Nat Methods 2024) and
are scikit-learn's wherever it has them; every function gives the value for the sample and for every draw of patients at
once. ``docs/evaluation.md`` lists them.
"""

from collections.abc import Callable
from functools import cached_property, partial
from typing import NamedTuple

import numpy as np
import pandas as pd

from thyroid_lib.evaluation import bootstrap
from thyroid_lib.evaluation.bootstrap import MINIMUM_PATIENTS, UNBOUNDED, Clusters, estimate, ratio
from thyroid_lib.evaluation.predictions import by_patient, classes_of

THRESHOLDS = np.round(np.arange(0.05, 0.951, 0.05), 2)
"""Threshold probabilities of the decision curves."""

MOST_BINS = 10  # bins of equal numbers of images; fewer than 10 images per bin would be noise


class Sample:
    """One model's rows on one set as arrays, with the bootstrap draws that all its metrics share.

    Args:
        predictions: rows of one model and one set of ``read_predictions``.
        draws, seed: of the bootstrap.
        unit: "image", or "patient": probabilities averaged over a patient's images (``by_patient``).
        minimum: fewest patients behind a number.
        prevalence: class key -> share in the population that PPV and NPV speak of; the share among these
            rows when not given.

    Attributes:
        table: the rows, one per image or patient;  seed: of the draws;  clusters: the draws;
        classes: C class keys;  truth: int (N,);  is_class: bool (N, C);  probabilities: float (N, C), calibrated;
        patients: str (N,);  sides: of ``bootstrap.scarcer_sides``;  prevalence: float (C,);
        names: every metric's name -> (its key in `METRICS`, number of the class or None);
        about: {"unit"[, "patients_excluded_mixed": left out of a patient-level analysis]}.

    Raises:
        ValueError: rows of several models or sets, no rows, or an unknown unit.
    """

    def __init__(
        self, predictions, *, draws=2000, seed=0, unit="image", minimum=MINIMUM_PATIENTS, prevalence=None
    ):
        if not len(predictions):
            raise ValueError("evaluate: expected at least one row of predictions, got none")
        for column in ("model", "set"):
            if len(values := sorted({*predictions[column]})) > 1:
                raise ValueError(f"evaluate: expected rows of one {column}, got {values}; select one first")
        if unit not in ("image", "patient"):
            raise ValueError(f"evaluate: expected unit 'image' or 'patient', got {unit!r}")
        self.classes, self.minimum, self.about = classes_of(predictions), minimum, {"unit": unit}
        if unit == "patient":
            predictions, mixed = by_patient(predictions)
            self.about["patients_excluded_mixed"] = len(mixed)
        self.table, self.seed, self._draws = predictions, seed, {}
        self.names = {
            template.format(key): (template, k if "{}" in template else None)
            for template in METRICS
            for k, key in enumerate(self.classes)
        }
        self.truth = predictions["truth"].map(self.classes.index).to_numpy(np.int64)
        self.is_class = self.truth[:, None] == np.arange(len(self.classes))
        self.probabilities = self.columns("p_")
        self.patients = predictions["patient"].to_numpy().astype(str)
        self.sides = bootstrap.scarcer_sides(self.patients, self.is_class)
        self.clusters = Clusters(self.patients, draws, seed)
        shares = [prevalence[key] for key in self.classes] if prevalence else self.is_class.mean(axis=0)
        self.prevalence = np.array(shares, float)

    def columns(self, prefix: str) -> np.ndarray:
        """The class columns with this prefix, float64 (N, C)."""
        return self.table[[prefix + key for key in self.classes]].to_numpy(np.float64)

    def draws(self, name: str) -> np.ndarray:
        """A metric of the sample and of every draw.

        Args:
            name: of `METRICS`, with a class key in place of {}, such as "auroc/papillary_carcinoma".

        Returns:
            float64 (draws + 1,), the value first; NaN where it is undefined.
        """
        template, k = self.names[name]
        if template not in self._draws:
            self._draws[template] = METRICS[template].of(self)
        return self._draws[template] if k is None else self._draws[template][:, k]

    def number(self, name: str) -> dict:
        """A metric with its 95 % interval and what it rests on, as ``bootstrap.estimate`` gives it.

        Args:
            name: as in `draws`.
        """
        template, k = self.names[name]
        metric = METRICS[template]
        return self.estimate(self.draws(name), bounds=metric.bounds, **RESTS_ON[metric.rests_on](self, k))

    def estimate(self, samples, chosen=None, **options) -> dict:
        """``bootstrap.estimate`` with the numbers of images and patients among the chosen images, bool (N,)."""
        chosen = np.ones(len(self.truth), bool) if chosen is None else chosen
        options = {"bounds": (0.0, 1.0), "minimum": self.minimum} | options
        return estimate(samples, n_images=chosen.sum(), n_patients=self.patients_with(chosen), **options)

    def patients_with(self, chosen: np.ndarray) -> int:
        """Number of patients among the chosen images, bool (N,)."""
        return len(np.unique(self.patients[chosen]))

    @cached_property
    def ranks(self) -> tuple[np.ndarray, np.ndarray]:
        """AUROC and average precision of each class against the rest, each float64 (draws + 1, C)."""
        classes = zip(self.probabilities.T, self.is_class.T)
        found = np.array([bootstrap.rank_statistics(p, positive, self.clusters) for p, positive in classes])
        return tuple(found.transpose(1, 2, 0))

    @cached_property
    def confusion(self) -> np.ndarray:
        """Weight of the images by draw, truth and most probable class, float64 (draws + 1, C, C)."""
        c = len(self.classes)
        cells = np.eye(c * c)[self.truth * c + self.probabilities.argmax(axis=1)]
        return self.clusters.sums(cells).reshape(-1, c, c)

    def rates(self) -> tuple[np.ndarray, np.ndarray]:
        """Sensitivity and specificity at the operating points, each float64 (draws + 1, C)."""
        means, positive = self.clusters.means, self.columns("positive_") > 0.5
        return means(positive, self.is_class), means(~positive, ~self.is_class)


def recall(sample: Sample) -> np.ndarray:
    """Share of the images of each class whose most probable class is right, (draws + 1, C)."""
    return ratio(np.diagonal(sample.confusion, axis1=1, axis2=2), sample.confusion.sum(axis=2))


def matthews(sample: Sample) -> np.ndarray:
    """Correlation of truth and most probable class (Gorodkin 2004); 0 for a constant prediction."""
    matrix, total = sample.confusion, sample.confusion.sum((1, 2))
    hits, of_truth, of_predicted = np.trace(matrix, axis1=1, axis2=2), matrix.sum(2), matrix.sum(1)
    spread = (total**2 - (of_truth**2).sum(1)) * (total**2 - (of_predicted**2).sum(1))
    return np.nan_to_num(ratio(hits * total - (of_truth * of_predicted).sum(1), np.sqrt(spread)))


def weighted_kappa(sample: Sample) -> np.ndarray:
    """Quadratic weighted kappa (Cohen 1968) of ordered classes."""
    matrix, place = sample.confusion, np.arange(len(sample.classes))
    distance = (place[:, None] - place) ** 2
    chance = matrix.sum(2)[:, :, None] * matrix.sum(1)[:, None, :] / matrix.sum((1, 2))[:, None, None]
    return 1 - ratio((matrix * distance).sum((1, 2)), (chance * distance).sum((1, 2)))


def predictive_value(sample: Sample, *, negative: bool = False) -> np.ndarray:
    """PPV, or NPV, by Bayes at the stated prevalence, (draws + 1, C)."""
    (right, others), share = sample.rates(), sample.prevalence
    if negative:
        right, others, share = others, right, 1 - share
    return ratio(right * share, right * share + (1 - others) * (1 - share))


def brier(sample: Sample, prefix: str = "p_") -> np.ndarray:
    """Brier score of all classes together, 0 to 2."""
    return sample.clusters.means(((sample.columns(prefix) - sample.is_class) ** 2).sum(axis=1))


def log_loss(sample: Sample, prefix: str = "p_") -> np.ndarray:
    """Mean of -ln p of the right class, p at least 1e-12."""
    own = sample.columns(prefix)[np.arange(len(sample.truth)), sample.truth]
    return sample.clusters.means(-np.log(np.clip(own, 1e-12, 1.0)))


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
    gaps = np.eye(MOST_BINS)[bins(confidence)] * (correct - confidence)[:, None]
    return np.abs(clusters.sums(gaps)).sum(axis=1) / clusters.sums(np.ones(len(correct)))[:, 0]


def top_label_error(sample: Sample, prefix: str = "p_") -> np.ndarray:
    """:func:`bin_error` of the highest probability."""
    p = sample.columns(prefix)
    return bin_error(p.max(axis=1), p.argmax(axis=1) == sample.truth, sample.clusters)


def classwise_error(sample: Sample, prefix: str = "p_") -> np.ndarray:
    """:func:`bin_error` of every class's probability, mean over the classes."""
    pairs = zip(sample.columns(prefix).T, sample.is_class.T)
    return np.mean([bin_error(p, positive, sample.clusters) for p, positive in pairs], axis=0)


def net_benefit(sample: Sample, threshold: float) -> np.ndarray:
    """Net benefit of acting on each class's probability from a threshold on, (draws + 1, C) (Vickers & Elkin 2006)."""
    called = sample.probabilities >= threshold
    return sample.clusters.means(called * np.where(sample.is_class, 1.0, -threshold / (1 - threshold)))


RESTS_ON = {
    "images": lambda sample, k: {},
    "a class": lambda sample, k: {"chosen": sample.is_class[:, k]},
    "the others": lambda sample, k: {"chosen": ~sample.is_class[:, k]},
    "scarcer side": lambda sample, k: {"effective": sample.sides[k % len(sample.sides)]},
    "scarcer sides": lambda sample, k: {"effective": sample.sides},
    "each class": lambda sample, k: {"effective": [sample.patients_with(of) for of in sample.is_class.T]},
}
"""What a metric rests on -> options of `Sample.estimate`: its images, and the patients that limit its precision."""


class Metric(NamedTuple):
    """One metric.

    Attributes:
        title: its name in tables.
        of: function of a `Sample`, gives float64 (draws + 1,), or (draws + 1, C) for one number per class.
        rests_on: key of `RESTS_ON`.
        bounds: smallest and largest possible value.
        compared: whether models, sources and folds are held against each other by it, and subgroups too where it is
            one number.
    """

    title: str
    of: Callable[[Sample], np.ndarray]
    rests_on: str = "images"
    bounds: tuple[float, float] = (0.0, 1.0)
    compared: bool = False


METRICS = {
    "auroc/{}": Metric("AUROC", lambda s: s.ranks[0], "scarcer side", compared=True),
    "average_precision/{}": Metric("average precision", lambda s: s.ranks[1], "scarcer side"),
    "sensitivity/{}": Metric("sensitivity", lambda s: s.rates()[0], "a class"),
    "specificity/{}": Metric("specificity", lambda s: s.rates()[1], "the others"),
    "ppv/{}": Metric("PPV", predictive_value, "scarcer side"),
    "npv/{}": Metric("NPV", partial(predictive_value, negative=True), "scarcer side"),
    "recall/{}": Metric("recall", recall, "a class"),
    "macro_auroc": Metric("macro AUROC", lambda s: s.ranks[0].mean(1), "scarcer sides", compared=True),
    "macro_average_precision": Metric(
        "macro average precision", lambda s: s.ranks[1].mean(1), "scarcer sides"
    ),
    "accuracy": Metric("accuracy", lambda s: s.clusters.means(s.probabilities.argmax(axis=1) == s.truth)),
    "balanced_accuracy": Metric(
        "balanced accuracy", lambda s: recall(s).mean(1), "each class", compared=True
    ),
    "mcc": Metric("Matthews correlation", matthews, bounds=(-1.0, 1.0)),
    "weighted_kappa": Metric("weighted kappa (quadratic)", weighted_kappa, bounds=(-1.0, 1.0)),
    "brier": Metric("Brier score (0 to 2)", brier, bounds=(0.0, 2.0), compared=True),
    "log_loss": Metric("log loss", log_loss, bounds=(0.0, np.inf)),
    "ece_top_label": Metric("calibration error, top label", top_label_error),
    "ece_classwise": Metric("calibration error, classwise", classwise_error),
}
"""Name in metrics.json -> metric; {} stands for a class key."""

METRICS |= {
    f"raw/{name}": Metric(f"raw {metric.title}", partial(metric.of, prefix="raw_"), bounds=metric.bounds)
    for name, metric in METRICS.items()
    if metric.of in (brier, log_loss, top_label_error, classwise_error)
}
for t in THRESHOLDS:
    title, of = f"net benefit at {t:.2f}", partial(net_benefit, threshold=t)
    METRICS[f"net_benefit/{{}}/{t:.2f}"] = Metric(title, of, "scarcer side", UNBOUNDED)


def evaluate(predictions: pd.DataFrame, *, ordered: bool = False, decisions: bool = True, **options) -> dict:
    """Every metric of one model on one set, with 95 % patient-cluster bootstrap intervals.

    Args:
        predictions: rows of one model and one set of ``read_predictions``.
        ordered: the classes are ordered; adds the quadratic weighted kappa.
        decisions: adds net benefit at every threshold.
        **options: unit, draws, seed, minimum and prevalence of `Sample`.

    Returns:
        Flat dict: the names of `METRICS`, a class key in place of {}, -> {"value", "low", "high", "n_images",
        "n_patients"[, "reason"]}. Plain numbers: ``prevalence/<key>``, ``images/<key>``, ``patients/<key>``,
        ``confusion/<truth>/<predicted>``, ``delong/<key>``, ``net_benefit/<key>/<threshold>/all``.

    Raises:
        ValueError: as `Sample` does.
    """
    sample = Sample(predictions, **options)
    result = {"draws": len(sample.clusters) - 1} | sample.about
    skipped = ("weighted_kappa",) * (not ordered) + ("net_benefit/",) * (not decisions)
    result |= {name: sample.number(name) for name in sample.names if not name.startswith(skipped)}
    for k, key in enumerate(sample.classes):
        own = sample.is_class[:, k]
        result[f"prevalence/{key}"] = float(sample.prevalence[k])
        result[f"images/{key}"], result[f"patients/{key}"] = int(own.sum()), sample.patients_with(own)
        result[f"delong/{key}"] = bootstrap.delong(sample.probabilities[:, k], own, sample.patients)
        counts = zip(sample.classes, sample.confusion[0, k])
        result |= {f"confusion/{key}/{other}": int(count) for other, count in counts}
        for t in THRESHOLDS if decisions else ():
            result[f"net_benefit/{key}/{t:.2f}/all"] = float(own.mean() - (1 - own.mean()) * t / (1 - t))
    return result
