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

from collections.abc import Iterator, Sequence

import numpy as np
from scipy import special, stats

LEVEL = 0.95
MINIMUM_PATIENTS = 5
"""Fewer patients than this behind a number, and it is reported as "too few" instead."""

UNBOUNDED = (-np.inf, np.inf)
"""Bounds of a difference."""

_DEFINED_SHARE = 0.95  # share of draws in which a statistic must be defined for its interval to be stated
_BLOCK_ELEMENTS = 2_000_000  # images x draws handled at once; about 50 MB of float64 work space


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
        rows = max(1, _BLOCK_ELEMENTS // max(1, self.patients))
        for start in range(1, draws + 1, rows):
            count = min(rows, draws + 1 - start)
            drawn = rng.integers(0, self.patients, (count, self.patients))
            drawn += np.arange(count)[:, None] * self.patients
            block = np.bincount(drawn.ravel(), minlength=count * self.patients)
            self.multiplicities[start : start + count] = block.reshape(count, self.patients)

    def __len__(self) -> int:
        return len(self.multiplicities)

    def sums(self, values: np.ndarray) -> np.ndarray:
        """Weighted sums over images for the sample and every draw.

        Args:
            values: float (N, K) or (N,), one row per image.

        Returns:
            float64 (draws + 1, K); row 0 is the plain sum.
        """
        values = np.asarray(values, np.float64).reshape(len(self.index), -1)
        by_patient = np.zeros((self.patients, values.shape[1]))
        np.add.at(by_patient, self.index, values)
        rows = max(1, _BLOCK_ELEMENTS // max(1, self.patients))
        blocks = range(0, len(self), rows)
        return np.vstack([self.multiplicities[s : s + rows].astype(np.float64) @ by_patient for s in blocks])

    def weights(self, order: np.ndarray) -> Iterator[tuple[slice, np.ndarray]]:
        """Image weights in blocks of draws.

        Args:
            order: int (M,), images in the order wanted.

        Yields:
            (slice of draws, float64 (block, M) weights).
        """
        rows = max(1, _BLOCK_ELEMENTS // max(1, len(order)))
        for start in range(0, len(self), rows):
            part = slice(start, min(start + rows, len(self)))
            yield part, self.multiplicities[part][:, self.index[order]].astype(np.float64)


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
    scores, positive = np.asarray(scores, np.float64), np.asarray(positive, bool)
    order = np.argsort(-scores, kind="stable")
    ends = np.append(np.flatnonzero(np.diff(scores[order]) != 0), len(scores) - 1)
    tied = len(ends) < len(scores)
    auroc, precision = np.empty(len(clusters)), np.empty(len(clusters))
    for part, weights in clusters.weights(order):
        hits = np.cumsum(weights * positive[order], axis=1)
        called = np.cumsum(weights, axis=1, out=weights)
        if tied:
            hits, called = hits[:, ends], called[:, ends]
        step = np.diff(hits, axis=1, prepend=0.0)
        with np.errstate(invalid="ignore", divide="ignore"):
            precision[part] = np.nansum(step * (hits / called), axis=1) / hits[:, -1]
            false = np.subtract(called, hits, out=called)
            total = hits[:, -1] * false[:, -1]
            # each group of hits outranks every later false alarm and ties with the half of its own
            below = 0.5 * (false + np.hstack([np.zeros((len(false), 1)), false[:, :-1]]))
            auroc[part] = (total - (step * below).sum(axis=1)) / total
    precision[~np.isfinite(precision)] = np.nan
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
    samples: np.ndarray,
    *,
    n_images: int,
    n_patients: int,
    effective: int | Sequence[int] | None = None,
    bounds: tuple[float, float] = UNBOUNDED,
    minimum: int = MINIMUM_PATIENTS,
) -> dict:
    """One reported number: its value, its 95 % interval and what it rests on.

    Args:
        samples: float (draws + 1,), the value first, then the draws; NaN where undefined.
        n_images: images behind the number.
        n_patients: patients behind the number.
        effective: patients of the scarcer side (for example with the lesion type), which limits precision; for a
            mean over classes, those of each class; ``n_patients`` when not given.
        bounds: smallest and largest possible value; both infinite for a difference.
        minimum: fewer effective patients than this give no value.

    Returns:
        {"value", "low", "high", "n_images", "n_patients"} and, where value or interval is None, "reason".
        At a bound (a perfect score) every draw is the same and the bootstrap knows no uncertainty: the exact
        binomial bound over the effective patients takes its place (Clopper & Pearson 1934).
    """
    counts = np.atleast_1d(n_patients if effective is None else effective)
    effective = int(counts.min())
    result = {
        "value": None,
        "low": None,
        "high": None,
        "n_images": int(n_images),
        "n_patients": int(n_patients),
    }
    value, draws = samples[0], samples[1:]
    if effective < minimum:
        who = "patient" + "s" * (effective != 1)
        who += " with the scarcest type" * (effective != n_patients)
        return result | {"reason": f"too few: {effective} {who}, at least {minimum} needed"}
    if not np.isfinite(value):
        return result | {"reason": "undefined: a class or a denominator is empty"}
    defined = draws[np.isfinite(draws)]
    if len(defined) < max(1, _DEFINED_SHARE * len(draws)):
        return result | {"reason": f"too few: defined in only {len(defined)} of {len(draws)} draws"}
    low, high = _interval(float(value), defined, _whole_sample(counts), bounds)
    return result | {"value": _plain(value), "low": _plain(low), "high": _plain(high)}


def _whole_sample(counts: np.ndarray) -> float:
    """The size of one sample with as many degrees of freedom as the mean over samples of these sizes.

    Each class adds a variance of 1 / count, known with count - 1 degrees of freedom (Satterthwaite 1946).
    """
    counts = np.maximum(2, counts)
    return float((1 / counts).sum() ** 2 / (1 / (counts**2 * (counts - 1))).sum() + 1)


def _interval(value: float, draws: np.ndarray, n: float, bounds: tuple[float, float]) -> tuple[float, float]:
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


def _plain(number: float) -> float:
    return float(f"{float(number):.9g}") + 0.0


def delong(scores: np.ndarray, positive: np.ndarray, patients=None) -> dict:
    """AUROC with DeLong's variance, over images or over patients.

    Args:
        scores: float (N,) for one model or (N, 2) for two.
        positive: bool (N,).
        patients: patient per image; None treats every image as independent (DeLong 1988, Biometrics
            44:837, by the midrank method of Sun & Xu 2014), otherwise the clustered variance of Obuchowski
            (1997, Biometrics 53:567).

    Returns:
        {"auroc", "se", "low", "high"}; with two columns {"difference", "se", "low", "high", "p"}; all None
        when a class is absent.
    """
    scores = np.asarray(scores, np.float64).reshape(len(positive), -1)
    positive = np.asarray(positive, bool)
    m, n = int(positive.sum()), int((~positive).sum())
    names = ("auroc",) if scores.shape[1] == 1 else ("difference", "p")
    if m < 2 or n < 2:
        return dict.fromkeys((*names, "se", "low", "high"))
    whole = stats.rankdata(scores, axis=0)
    v10 = (whole[positive] - stats.rankdata(scores[positive], axis=0)) / n
    v01 = 1 - (whole[~positive] - stats.rankdata(scores[~positive], axis=0)) / m
    auroc = v10.mean(axis=0)
    if patients is None:
        covariance = (
            np.atleast_2d(np.cov(v10, rowvar=False)) / m + np.atleast_2d(np.cov(v01, rowvar=False)) / n
        )
    else:
        _, index = np.unique(np.asarray(patients).astype(str), return_inverse=True)
        centred10, centred01 = np.zeros((2, index.max() + 1, scores.shape[1]))
        np.add.at(centred10, index[positive], v10 - auroc)
        np.add.at(centred01, index[~positive], v01 - auroc)
        with10, with01 = len(np.unique(index[positive])), len(np.unique(index[~positive]))
        s10 = with10 / max(1, with10 - 1) * centred10.T @ centred10
        s01 = with01 / max(1, with01 - 1) * centred01.T @ centred01
        both = len(centred10) / max(1, len(centred10) - 1) * centred10.T @ centred01
        covariance = s10 / m**2 + s01 / n**2 + (both + both.T) / (m * n)
    z = stats.norm.ppf((1 + LEVEL) / 2)
    if scores.shape[1] == 1:
        value, variance, limits = auroc[0], covariance[0, 0], (0.0, 1.0)
    else:
        value, limits = auroc[1] - auroc[0], (-1.0, 1.0)
        variance = covariance[0, 0] + covariance[1, 1] - 2 * covariance[0, 1]
    se = float(np.sqrt(max(variance, 0.0)))
    low, high = np.clip([value - z * se, value + z * se], *limits)
    result = {names[0]: _plain(value), "se": _plain(se), "low": _plain(low), "high": _plain(high)}
    if scores.shape[1] == 2:
        result["p"] = _plain(2 * stats.norm.sf(abs(value) / se)) if se > 0 else 1.0
    return result
