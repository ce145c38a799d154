"""Curves with bands over patients: ROC, precision-recall, and stated against observed probability."""

from itertools import islice

import numpy as np
import pandas as pd

from thyroid_lib.evaluation.bootstrap import ratio
from thyroid_lib.evaluation.metrics import Sample, bins

BAND = (0.025, 0.975)
DRAWS = 500
"""Bootstrap draws behind a band at most: it needs fewer than a reported number."""


def curves(sample: Sample) -> dict[str, dict]:
    """ROC and precision-recall curves with pointwise 95 % bands.

    Args:
        sample: one model on one set.

    Returns:
        class key -> {"x", "sensitivity", "sensitivity_low", "sensitivity_high", "precision", ...}, float
        arrays of length 101, and "prevalence"; x, from 0 to 1, is 1 - specificity for the ROC and recall for
        precision. Classes without a positive or a negative image are absent.
    """
    grid, result = np.linspace(0, 1, 101), {}
    for key, scores, positive in zip(sample.classes, sample.probabilities.T, sample.is_class.T):
        if not 0 < positive.sum() < len(positive):
            continue
        drawn = (
            _curve(c, h, grid)
            for _, called, hits in sample.clusters.cumulated(scores, positive)
            for c, h in zip(called, hits)
            if 0 < h[-1] < c[-1]
        )
        result[key] = {"x": grid, "prevalence": float(positive.mean())}
        for name, values in zip(("sensitivity", "precision"), zip(*islice(drawn, DRAWS + 1))):
            low, high = np.quantile(values[1:] or values, BAND, axis=0)
            result[key] |= {name: values[0], f"{name}_low": low, f"{name}_high": high}
    return result


def _curve(called: np.ndarray, hits: np.ndarray, grid: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    recall, false = hits / hits[-1], (called - hits) / (called[-1] - hits[-1])
    precision = np.divide(hits, called, out=np.ones_like(hits), where=called > 0)
    at = np.searchsorted(recall, grid - 1e-12).clip(max=len(hits) - 1)
    return np.interp(grid, np.append(0, false), np.append(0, recall)), precision[at]


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
    pairs = dict(zip(sample.classes, zip(p.T, sample.is_class.T)))
    pairs["top label"] = (p.max(axis=1), p.argmax(axis=1) == sample.truth)
    result = {}
    for name, (stated, happened) in pairs.items():
        bin_of = bins(stated)
        chosen = bin_of[:, None] == np.unique(bin_of)
        observed = sample.clusters.means(happened[:, None] & chosen, chosen)
        low, high = np.nanquantile(observed[1:], BAND, axis=0)
        count = chosen.sum(axis=0)
        columns = {"stated": ratio(stated @ chosen, count), "observed": observed[0], "low": low, "high": high}
        result[name] = pd.DataFrame(columns | {"n_images": count})
    return result
