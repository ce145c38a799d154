"""Verdicts on the effects that C15 claims, by one rule for all of them.

An effect on the macro AUROC is

* **supported** when it is above 0, its p value, corrected by Holm over all claims, is below 0.05, and its 95 %
  interval reaches the smallest effect worth having (`margin`);
* **not supported** when it is below 0 at that level, or when its whole 95 % interval lies below that smallest effect;
* **undecided with this data** otherwise, and always when the grid cannot tell: too few patients, one training per
  arm, networks that have not learnt, or a control that failed.

Compute is **under control** when the invention costs at most `limit` times what the original costs.
"""

from dataclasses import dataclass

from thyroid_lib.ablation.jobs import CUT
from thyroid_lib.ablation.results import MAIN, Measured, contrast, corrected, per_arm

ALPHA = 0.05
SUPPORTED, NOT_SUPPORTED, UNDECIDED = "supported", "not supported", "undecided with this data"
NOT_TESTED = "not tested"


@dataclass(frozen=True)
class Claim:
    """One claimed effect.

    Attributes:
        text: what is claimed. measured_by: in words.
        contrasts: weights of arms, the first whose arms are all in the grid counts; "<arm>+cut" is an arm with its
            dense connections cut.
        same_networks: the contrast is within one trained network, so that the spread of trainings is no part of it.
    """

    text: str
    measured_by: str
    contrasts: tuple[dict[str, float], ...]
    same_networks: bool = False


_HALF = 0.5
CLAIMS = {
    "shallow_features_help": Claim(
        "Shallow features are kept: the dense connections help",
        "with minus without dense connections",
        (
            {"connected": _HALF, "original": -_HALF, "invention": _HALF, "dilated": -_HALF},
            {"connected": 1.0, "original": -1.0},
            {"invention": 1.0, "dilated": -1.0},
        ),
    ),
    "shallow_features_used": Claim(
        "Shallow features are kept: the trained network uses what its dense connections carry",
        "intact minus cut (their maps replaced by the mean over images)",
        (
            {"invention": _HALF, f"invention{CUT}": -_HALF, "connected": _HALF, f"connected{CUT}": -_HALF},
            {"invention": 1.0, f"invention{CUT}": -1.0},
            {"connected": 1.0, f"connected{CUT}": -1.0},
        ),
        same_networks=True,
    ),
    "learnable_downsampling": Claim(
        "Learnable down-sampling helps",
        "dilated convolutions minus max-pooling",
        (
            {"dilated": _HALF, "original": -_HALF, "invention": _HALF, "connected": -_HALF},
            {"dilated": 1.0, "original": -1.0},
            {"invention": 1.0, "connected": -1.0},
        ),
    ),
    "accuracy": Claim(
        "Accuracy rises", "the invention minus the original", ({"invention": 1.0, "original": -1.0},)
    ),
    "mixed_loss": Claim(
        "The mixed loss helps (C9)",
        "mixed loss minus cross-entropy",
        (
            {"invention": _HALF, "invention_ce": -_HALF, "original": _HALF, "original_ce": -_HALF},
            {"invention": 1.0, "invention_ce": -1.0},
            {"original": 1.0, "original_ce": -1.0},
        ),
    ),
}
"""Claims on accuracy. Where both of an effect's pairs are in the grid it is the mean over both (the main effect of a
2 x 2 design), else the pair that is there."""


def controls(measured: Measured) -> dict[str, dict]:
    """The two broken arms: shuffled labels must come out at chance, the same network again without a difference.

    Returns:
        name -> {"value", "low", "high", ..., "expected", "passed": True, False, or None where there is no number};
        only those in the grid. The interval of the shuffled arm is over patients and over its own trainings: labels
        dealt out anew may favour a feature by luck.
    """
    result = {}
    if "shuffled" in measured.arms:
        result["shuffled"] = _spread(measured, "shuffled") | {"expected": 0.5}
    if {"again", "invention"} <= {*measured.arms}:
        result["again"] = contrast(measured, {"again": 1.0, "invention": -1.0}) | {"expected": 0.0}
    for test in result.values():
        known = test["value"] is not None
        test["passed"] = bool(test["low"] <= test["expected"] <= test["high"]) if known else None
    return result


def _spread(measured: Measured, arm: str) -> dict:
    from scipy import stats

    made = per_arm(measured, arm)[MAIN]
    values = made.pop("trainings")
    if made["value"] is None or len(values) < 2:
        return made
    n, mean = len(values), made["value"]
    over_trainings = sum((v - mean) ** 2 for v in values) / (n - 1) / n
    over_patients = ((made["high"] - made["low"]) / 2 / stats.norm.isf(0.025)) ** 2
    total = over_trainings + over_patients
    freedom = total**2 / (
        over_trainings**2 / (n - 1) + over_patients**2 / max(1, measured.scarcest - 1) + 1e-300
    )
    reach = stats.t.isf(0.025, freedom) * total**0.5
    return made | {"low": max(0.0, mean - reach), "high": min(1.0, mean + reach)}


def claims(measured: Measured, *, margin: float) -> dict[str, dict]:
    """Every claim on accuracy with its contrast, corrected by Holm, and its verdict.

    Args:
        measured: of `ablation_results.measure`. margin: smallest effect worth having, in macro AUROC.

    Returns:
        claim -> {"claim", "measured_by", "weights", contrast..., "p_holm", "verdict", "why"}.
    """
    tests = {}
    for key, claim in CLAIMS.items():
        weights = next((w for w in claim.contrasts if set(w) <= {*measured.draws}), None)
        found = contrast(measured, weights, trainings=not claim.same_networks) if weights else {}
        tests[key] = {
            "claim": claim.text,
            "measured_by": claim.measured_by,
            "weights": weights or {},
            **found,
        }
    tested, broken = corrected(tests), [n for n, c in controls(measured).items() if c["passed"] is False]
    for key, test in tested.items():
        learnt = _learnt(measured, test["weights"])
        single = not CLAIMS[key].same_networks and not test.get("trainings_counted")
        test["verdict"], test["why"] = verdict(
            test, margin=margin, learnt=learnt, single=single, broken_controls=broken
        )
    return tested


def verdict(
    test: dict, *, margin: float, learnt: bool = True, single: bool = False, broken_controls=()
) -> tuple[str, str]:
    """The rule for an effect on accuracy.

    Args:
        test: a contrast with "p_holm"; without weights where its arms are not in the grid.
        margin: smallest effect worth having. learnt: whether an arm of the contrast is above chance.
        single: whether every arm was trained once only. broken_controls: names of controls that failed.

    Returns:
        (verdict, why).
    """
    if not test.get("weights"):
        return NOT_TESTED, "its arms are not in this grid"
    if test["value"] is None:
        return UNDECIDED, test.get("reason", "no number")
    if broken_controls:
        return UNDECIDED, f"a control failed: {', '.join(broken_controls)}"
    if not learnt:
        return UNDECIDED, "no network of this comparison is above chance"
    if single:
        return UNDECIDED, "one training per arm: luck of training cannot be told from an effect"
    sure = test["p_holm"] < ALPHA
    if sure and test["value"] < 0:
        return NOT_SUPPORTED, "the effect is the opposite"
    if test["high"] < margin:
        return NOT_SUPPORTED, f"{'above 0, but ' if sure else ''}an effect of {margin:g} is ruled out"
    if sure:
        return SUPPORTED, "above 0"
    return UNDECIDED, "the interval holds 0 and effects worth having"


def _learnt(measured: Measured, weights: dict[str, float]) -> bool:
    """Whether an intact arm of a contrast has an interval above 0.5."""
    arms = [arm for arm in weights if not arm.endswith(CUT)]
    lows = [per_arm(measured, arm)[MAIN]["low"] for arm in arms]
    return any(low is not None and low > 0.5 for low in lows)


def compute(ours: float, originals: float, *, limit: float, what: str) -> dict:
    """The rule for compute: what the invention costs, as a multiple of what the original costs.

    Args:
        ours, originals: the cost, more is dearer. limit: largest multiple that counts as under control.
        what: is measured.

    Returns:
        {"claim", "measured_by", "value" (the multiple), "verdict", "why"}; no interval: it is no estimate.
    """
    multiple = ours / originals
    good = multiple <= limit
    return {
        "claim": "Compute stays under control",
        "measured_by": what,
        "multiple": float(f"{multiple:.6g}"),
        "verdict": SUPPORTED if good else NOT_SUPPORTED,
        "why": f"{'at most' if good else 'more than'} {limit:g} times the original's",
    }
