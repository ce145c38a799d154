"""Uncertainty by patient: the cluster bootstrap, its intervals, and DeLong as a cross-check.

Images of one patient resemble each other, so patients are resampled, not images (Field & Welsh 2007,
JRSS B 69:369). A draw is a vector of patient multiplicities; every statistic is computed for all draws at
once, either from per-patient sums (counts, Brier, calibration bins, net benefit) or, for rank statistics,
from weighted cumulative sums over the images sorted once by score.

A number between two bounds (an AUROC, a sensitivity) gets a Student interval on the logit scale with the
bootstrap's standard error: it stays inside the bounds, and near them it is not too narrow, as percentiles
are with few patients. A number without bounds (a difference, a net benefit) gets the expanded percentile
interval of Hesterberg (2015, Am Stat 69:371, section 4.3). Degrees of freedom come from the patients of the
scarcer side; for a mean over classes, from those of every class (Satterthwaite 1946, Biometrics 2:110).
``benchmarks/bootstrap_coverage.py`` measures the coverage.
"""

from collections.abc import Iterator

import numpy as np
from scipy import special, stats

LEVEL = 0.95
MINIMUM_PATIENTS = 5
"""Fewer patients than this behind a number, and it is reported as "too few" instead."""

UNBOUNDED = (-np.inf, np.inf)
"""Bounds of a difference."""

_DEFINED_SHARE = 0.95  # share of draws in which a statistic must be defined for its interval to be stated
_BLOCK_ELEMENTS = 200_000  # images x draws handled at once: what a processor's cache holds


class Clusters:
    """The draws of one bootstrap over patients, shared by every statistic so that differences are paired.

    Args:
        patients: length-N sequence of patient identifiers, one per image.
        draws: number of bootstrap draws, >= 1.
        seed: the same seed, patients and draws give the same multiplicities.

    Attributes:
        index: int64 (N,), patient number of each image; patients are numbered in sorted order.
        multiplicities: uint16 (draws + 1, P); row 0 is the sample itself (all ones).
    """

    def __init__(self, patients, draws: int = 2000, seed: int = 0):
        _, self.index = np.unique(np.asarray(patients).astype(str), return_inverse=True)
        self.patients = int(self.index.max()) + 1 if len(self.index) else 0
        self.multiplicities = np.ones((draws + 1, self.patients), np.uint16)
        rng = np.random.default_rng(seed)
        for draw in self.multiplicities[1:]:
            drawn = rng.integers(0, self.patients, self.patients)
            draw[:] = np.bincount(drawn, minlength=self.patients)

    def __len__(self) -> int:
        return len(self.multiplicities)

    def _blocks(self, width: int) -> Iterator[slice]:
        rows = max(1, _BLOCK_ELEMENTS // max(1, width))
        for start in range(0, len(self), rows):
            yield slice(start, min(start + rows, len(self)))

    def sums(self, values: np.ndarray) -> np.ndarray:
        """Weighted sums over images for the sample and every draw.

        Args:
            values: float or bool (N, K) or (N,), one row per image.

        Returns:
            float64 (draws + 1, K); row 0 is the plain sum.
        """
        values = np.asarray(values, np.float64).reshape(len(self.index), -1)
        by_patient = np.zeros((self.patients, values.shape[1]))
        np.add.at(by_patient, self.index, values)
        blocks = self._blocks(self.patients)
        return np.vstack([self.multiplicities[block].astype(np.float64) @ by_patient for block in blocks])

    def means(self, values: np.ndarray, chosen: np.ndarray | None = None) -> np.ndarray:
        """Weighted means over the chosen images for the sample and every draw.

        Args:
            values: float or bool (N, K) or (N,), one row per image.
            chosen: bool of the same shape; all images when not given.

        Returns:
            float64 (draws + 1, K), or (draws + 1,) for values (N,); NaN where a draw has none of the chosen.
        """
        sums, weight = (values, np.ones(len(values))) if chosen is None else (values * chosen, chosen)
        means = ratio(self.sums(sums), self.sums(weight))
        return means.reshape(len(self), *np.shape(values)[1:])

    def cumulated(
        self, scores: np.ndarray, happened: np.ndarray
    ) -> Iterator[tuple[slice, np.ndarray, np.ndarray]]:
        """Weighted counts from the highest score down, in blocks of draws; images of equal score count at once.

        Args:
            scores: float (N,).
            happened: bool (N,), what is counted beside the images themselves.

        Yields:
            (draws, images, hits): a slice of the rows of `multiplicities`, and float64 (block, T) for the T
            different scores: the weight of all images with at least that score, and of those that happened.
        """
        order = np.argsort(-scores, kind="stable")
        last = np.append(np.diff(scores[order]) != 0, True)  # of its score
        for block in self._blocks(len(order)):
            images = self.multiplicities[block][:, self.index[order]].astype(np.int32)
            counts = (np.cumsum(count, axis=1) for count in (images, images * happened[order]))
            yield block, *(count[:, last].astype(np.float64) for count in counts)


def rank_statistics(scores: np.ndarray, positive: np.ndarray, clusters: Clusters):
    """AUROC and average precision of the sample and every draw, ties counted as scikit-learn counts them.

    Args:
        scores: float (N,), higher means more likely positive.
        positive: bool (N,), the reference standard.
        clusters: the draws.

    Returns:
        (AUROC, average precision), each float64 (draws + 1,), in 0..1, NaN where a draw has no positive or
        no negative image (AUROC) or no positive image (average precision).
    """
    auroc, precision = np.empty((2, len(clusters)))
    for block, called, hits in clusters.cumulated(np.asarray(scores, float), np.asarray(positive, bool)):
        step, false = np.diff(hits, axis=1, prepend=0.0), called - hits
        found = np.einsum("dt,dt->d", step, hits / np.maximum(called, 1))
        # each group of false alarms is outranked by every earlier hit and ties with the half of its own
        above = np.einsum("dt,dt->d", np.diff(false, axis=1, prepend=0.0), hits - 0.5 * step)
        precision[block] = ratio(found, hits[:, -1])
        auroc[block] = ratio(above, hits[:, -1] * false[:, -1])
    return auroc, precision


def scarcer_sides(patients: np.ndarray, is_class: np.ndarray) -> list[int]:
    """Patients on the scarcer side of each class against the rest: what the precision of a mean over classes rests on.

    Args:
        patients: (N,), who each image is of. is_class: bool (N, C).

    Returns:
        C numbers; for two classes one, for both have the same sides.
    """
    sides = [min(len(np.unique(patients[k])), len(np.unique(patients[~k]))) for k in is_class.T]
    return sides[:1] if len(sides) == 2 else sides


def ratio(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    """Division that is NaN, without a warning, where the denominator is 0.

    Args:
        numerator: float array.
        denominator: float array of the same shape.

    Returns:
        float64 array.
    """
    numerator, denominator = np.broadcast_arrays(np.asarray(numerator, float), np.asarray(denominator, float))
    return np.divide(numerator, denominator, out=np.full(numerator.shape, np.nan), where=denominator != 0)


def estimate(
    samples: np.ndarray, *, n_images, n_patients, effective=None, bounds=UNBOUNDED, minimum=MINIMUM_PATIENTS
) -> dict:
    """One reported number: its value, its 95 % interval and what it rests on.

    Args:
        samples: float (draws + 1,), the value first, then the draws; NaN where undefined.
        n_images: int, images behind the number.
        n_patients: int, patients behind the number.
        effective: int, patients of the scarcer side (for example with the lesion type), which limits precision; for
            a mean over classes, int (C,), those of each class; ``n_patients`` when not given.
        bounds: (float, float), smallest and largest possible value; both infinite for a difference.
        minimum: int; fewer effective patients than this give no value.

    Returns:
        {"value", "low", "high", "n_images", "n_patients"} and, where value or interval is None, "reason".
        At a bound (a perfect score) every draw is the same and the bootstrap knows no uncertainty: the exact
        binomial bound over the effective patients takes its place (Clopper & Pearson 1934).
    """
    counts = np.atleast_1d(n_patients if effective is None else effective)
    effective, value, draws = int(counts.min()), samples[0], samples[1:]
    about = {"n_images": int(n_images), "n_patients": int(n_patients)}
    result = dict.fromkeys(("value", "low", "high")) | about
    if effective < minimum:
        who = "patient" + "s" * (effective != 1)
        who += " with the scarcest type" * (effective != n_patients)
        return result | {"reason": f"too few: {effective} {who}, at least {minimum} needed"}
    if not np.isfinite(value):
        return result | {"reason": "undefined: a class or a denominator is empty"}
    defined = draws[np.isfinite(draws)]
    if len(defined) < max(1, _DEFINED_SHARE * len(draws)):
        return result | {"reason": f"too few: defined in only {len(defined)} of {len(draws)} draws"}
    numbers = zip(result, (value, *_interval(float(value), defined, np.maximum(2, counts), bounds)))
    return result | {name: float(f"{number:.9g}") + 0.0 for name, number in numbers}  # + 0.0: never -0.0


def _interval(value: float, draws: np.ndarray, counts: np.ndarray, bounds) -> tuple[float, float]:
    # The size of one sample with as many degrees of freedom as the mean over samples of these sizes: each
    # class adds a variance of 1 / count, known with count - 1 degrees of freedom (Satterthwaite 1946).
    n = (1 / counts).sum() ** 2 / (1 / (counts**2 * (counts - 1))).sum() + 1
    (least, most), tail = bounds, (1 - LEVEL) / 2
    reach = np.sqrt(n / (n - 1)) * stats.t.isf(tail, n - 1)
    if np.isfinite(most) and np.isclose(value, bounds, rtol=0, atol=1e-12).any():
        missed = (most - least) * (1 - tail ** (1 / n))
        return (value, value + missed) if np.isclose(value, least) else (value - missed, value)
    if np.isfinite(most):
        share = (value - least) / (most - least)
        step = reach * draws.std() / ((most - least) * share * (1 - share))
        low, high = special.expit(special.logit(share) + np.array([-step, step]))
        return least + (most - least) * low, least + (most - least) * high
    if np.isfinite(least) and value > least:
        step = reach * draws.std() / (value - least)
        return least + (value - least) * np.exp(-step), least + (value - least) * np.exp(step)
    outer = stats.norm.sf(reach)
    return tuple(np.quantile(draws, [outer, 1 - outer]))


def delong(scores: np.ndarray, positive: np.ndarray, patients) -> dict:
    """AUROC with DeLong's variance (1988, Biometrics 44:837), clustered by patient (Obuchowski 1997, Biometrics
    53:567), from midranks (Sun & Xu 2014).

    Args:
        scores: float (N,) for one model, or (N, 2) for the second minus the first.
        positive: bool (N,).
        patients: (N,), patient of each image; all different where images are independent.

    Returns:
        {"auroc", "se", "low", "high"}; with two columns {"difference", "se", "low", "high", "p"}; all None
        when a class has fewer than two images.
    """
    scores, positive = np.asarray(scores, np.float64).reshape(len(positive), -1), np.asarray(positive, bool)
    alone, (m, n) = scores.shape[1] == 1, (positive.sum(), (~positive).sum())
    names = ("auroc", "se", "low", "high") if alone else ("difference", "se", "low", "high", "p")
    if min(m, n) < 2:
        return dict.fromkeys(names)
    whole = stats.rankdata(scores, axis=0)
    v10 = (whole[positive] - stats.rankdata(scores[positive], axis=0)) / n
    v01 = 1 - (whole[~positive] - stats.rankdata(scores[~positive], axis=0)) / m
    auroc, (_, index) = v10.mean(axis=0), np.unique(np.asarray(patients).astype(str), return_inverse=True)
    of10, of01 = np.zeros((2, index.max() + 1, scores.shape[1]))
    np.add.at(of10, index[positive], (v10 - auroc) / m)
    np.add.at(of01, index[~positive], (v01 - auroc) / n)
    pairs = ((of10, of10, positive), (of01, of01, ~positive), (of10, of01, positive | True))
    clusters = [len(np.unique(index[chosen])) for *_, chosen in pairs]
    of_10, of_01, both = (c / max(1, c - 1) * a.T @ b for c, (a, b, _) in zip(clusters, pairs))
    contrast, least = (np.ones(1), 0.0) if alone else (np.array([-1.0, 1.0]), -1.0)
    value, variance = contrast @ auroc, contrast @ (of_10 + of_01 + both + both.T) @ contrast
    se = np.sqrt(max(0.0, variance))
    low, high = np.clip(stats.norm.interval(LEVEL, value, se) if se else (value, value), least, 1.0)
    p = 2 * stats.norm.sf(abs(value) / se) if se else 1.0
    return dict(zip(names, map(float, (value, se, low, high, p))))
