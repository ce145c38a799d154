"""What a grid shows: numbers per arm and paired differences (C15).

Reads the predictions of all jobs and nothing else. Two things make a difference uncertain: the patients that
happened to be tested, and the trainings that happened to be run. The first is had from the patient-cluster
bootstrap, the same draws for all arms; the second from how trainings of one arm differ, pooled over the arms
(a Student interval, degrees of freedom by Satterthwaite 1946). An interval without the second would call two
trainings of the *same* network different. Tests of one family are corrected by Holm (1979).
"""

from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy import stats

from thyroid_lib.ablation.grid import ARMS
from thyroid_lib.evaluation.bootstrap import LEVEL, MINIMUM_PATIENTS, estimate
from thyroid_lib.evaluation.comparison import COMPARED
from thyroid_lib.evaluation.metrics import Sample
from thyroid_lib.evaluation.predictions import classes_of

MAIN = "macro_auroc"
WATCHED = ("follicular_neoplasm", "medullary_carcinoma")
"""Lesion types whose sensitivity the grid is judged by: those that existing aids miss."""


@dataclass(frozen=True)
class Measured:
    """The draws of every metric of every arm.

    Attributes:
        draws: arm -> metric -> float64 (seeds, draws + 1), the value first.
        rests_on: what every number rests on, for `bootstrap.estimate`: n_images and n_patients that were tested,
            "effective" of the scarcest type, and of these the "minimum" for a number to be given.
        watched: class keys whose sensitivity is among the metrics.
    """

    draws: dict[str, dict[str, np.ndarray]]
    rests_on: dict[str, int]
    watched: list[str]

    @property
    def arms(self) -> list[str]:
        """Names without those of cut connections, in the order of `ARMS`."""
        return [name for name in ARMS if name in self.draws]


def measure(
    predictions: pd.DataFrame, *, draws: int = 2000, seed: int = 0, minimum: int = MINIMUM_PATIENTS
) -> Measured:
    """Draws every metric of every arm on the same patients.

    Args:
        predictions: of `grid.collect`: model "<arm>/seed<k>", one set.
        draws, seed, minimum: of the bootstrap, as in `evaluation.evaluate`.

    Raises:
        ValueError: two arms were not tested on the same images.
    """
    classes, tested, found = classes_of(predictions), [], {}
    watched = [key for key in WATCHED if key in classes] or list(classes)
    for model, rows in predictions.sort_values("image").groupby("model"):
        images = rows[["image", "truth"]].to_numpy().tolist()
        if images != (tested or images):
            raise ValueError(f"measure: expected all arms to be tested on the same images; {model!r} was not")
        tested = images
        sample = Sample(rows, draws=draws, seed=seed)
        found.setdefault(model.partition("/")[0], []).append(sample)
    names = [*COMPARED, *(f"auroc/{key}" for key in classes), "ece_classwise"]
    names += [f"sensitivity/{key}" for key in watched]

    def drawn(trainings: list[Sample]) -> dict[str, np.ndarray]:
        return {name: np.array([one.draws(name) for one in trainings]) for name in names}

    rests_on = {
        "n_images": len(tested),
        "n_patients": sample.clusters.patients,
        "effective": min(sample.sides),
    }
    arms = {arm: drawn(trainings) for arm, trainings in found.items()}
    return Measured(arms, rests_on | {"minimum": minimum}, watched)


def per_arm(measured: Measured, arm: str) -> dict[str, dict]:
    """Every metric of an arm, mean over its trainings, with its 95 % interval over patients.

    Returns:
        metric -> {"value", "low", "high", "n_images", "n_patients", "trainings": value of each[, "reason"]}.
    """
    result = {}
    for name, values in measured.draws[arm].items():
        made = estimate(values.mean(0), bounds=(0.0, 2.0 if name == "brier" else 1.0), **measured.rests_on)
        known = made["value"] is not None
        result[name] = made | {"trainings": [_plain(v) for v in values[:, 0]] if known else []}
    return result


def training_noise(measured: Measured, metric: str = MAIN) -> tuple[float, int]:
    """Variance of a metric between trainings of one arm, pooled over arms, and its degrees of freedom.

    Left out are references, which have no luck of training, and shuffled labels, whose luck is another.

    Args:
        measured: of `measure`. metric: name.

    Returns:
        (variance, degrees of freedom); (0, 0) where every arm was trained once.
    """
    trained = [arm for arm in measured.arms if ARMS[arm].model and not ARMS[arm].shuffled]
    values = [each for arm in trained if np.isfinite(each := measured.draws[arm][metric][:, 0]).all()]
    squares = sum(float(((each - each.mean()) ** 2).sum()) for each in values)
    freedom = sum(len(each) - 1 for each in values)
    return (squares / freedom if freedom else 0.0), freedom


def added(*parts: tuple[float, float]) -> tuple[float, float]:
    """Standard error of a sum of independent parts, and its degrees of freedom (Satterthwaite 1946).

    Args:
        parts: (variance, degrees of freedom) of each; at least one variance above 0.
    """
    variance = sum(part for part, _ in parts)
    return np.sqrt(variance), variance**2 / sum(part**2 / freedom for part, freedom in parts)


def contrast(
    measured: Measured, weights: dict[str, float], metric: str = MAIN, *, trainings: bool = True
) -> dict:
    """A weighted sum of arms, such as one minus another, with a 95 % interval and a p value against 0.

    Args:
        measured: of `measure`. weights: arm -> factor. metric: name.
        trainings: whether the interval speaks of trainings to come; else of these trained networks alone.

    Returns:
        {"value", "low", "high", "p", "n_images", "n_patients", "sd_trainings", "trainings_counted"[, "reason"]};
        "trainings_counted" says whether the spread of trainings is in the interval: it is not where every arm was
        trained once.
    """
    of = {arm: measured.draws[arm][metric] for arm in weights}
    values = sum(factor * of[arm].mean(0) for arm, factor in weights.items())
    result = estimate(values, **measured.rests_on) | {
        "p": None,
        "sd_trainings": None,
        "trainings_counted": False,
    }
    if result["value"] is None:
        return result
    n, draws = max(2, measured.rests_on["effective"]), values[1:][np.isfinite(values[1:])]
    noise, freedom = training_noise(measured, metric) if trainings else (0.0, 0)
    networks = [arm for arm in weights if arm in ARMS and ARMS[arm].model]
    over_trainings = sum(weights[arm] ** 2 * noise / len(of[arm]) for arm in networks)
    over_patients = float(draws.var()) * n / (n - 1)
    if over_patients + over_trainings == 0:
        return result | {"low": result["value"], "high": result["value"], "p": float(result["value"] == 0)}
    error, df = added((over_patients, n - 1), (over_trainings, max(1, freedom)))
    reach = stats.t.isf((1 - LEVEL) / 2, df) * error
    return result | {
        "low": _plain(result["value"] - reach),
        "high": _plain(result["value"] + reach),
        "p": _plain(2 * stats.t.sf(abs(result["value"]) / error, df)),
        "sd_trainings": _plain(np.sqrt(noise)) if freedom else None,
        "trainings_counted": bool(freedom),
    }


def corrected(tests: dict[str, dict]) -> dict[str, dict]:
    """Contrasts of one family with "p_holm" added: p values by Holm's step-down method, None where there is none.

    The i-th smallest of m is multiplied by m - i + 1, never falling, at most 1; a contrast without a p value does
    not count as a test.

    Source: Holm 1979, Scand J Stat 6:65.
    """
    p = pd.Series({name: test.get("p") for name, test in tests.items()}, dtype=float).dropna().sort_values()
    adjusted = (p * np.arange(len(p), 0, -1)).cummax().clip(upper=1)
    return {
        name: test | {"p_holm": _plain(adjusted[name]) if name in adjusted else None}
        for name, test in tests.items()
    }


def differences(measured: Measured, to: str) -> dict[str, dict[str, dict]]:
    """Every other arm minus one: metric -> arm -> contrast; the main metric's family is corrected by Holm.

    The controls are left out: they are no candidates, and each further test costs the others power.

    Args:
        measured: of `measure`. to: the arm that is subtracted; {} where it is not in the grid.
    """
    if to not in measured.arms:
        return {}
    others = [arm for arm in measured.arms if arm != to and ARMS[arm].group != "controls"]
    metrics = [name for name in measured.draws[to] if not name.startswith("auroc/")]
    result = {
        name: {arm: contrast(measured, {arm: 1.0, to: -1.0}, name) for arm in others} for name in metrics
    }
    return result | {MAIN: corrected(result[MAIN])}


def _plain(number: float) -> float:
    return float(f"{float(number):.9g}") + 0.0
