"""Verdicts on the effects that C15 claims, by one rule for all of them.

An effect on the macro AUROC is

* **supported** when it is above 0, its p value, corrected by Holm over all claims, is below 0.05, and its 95 %
  interval reaches the smallest effect worth having (`margin`);
* **not supported** when it is below 0 at that level, or when its whole 95 % interval lies below that smallest effect;
* **undecided with this data** otherwise, and always when the grid cannot tell: too few patients, one training per
  arm, networks that have not learnt, or a control that failed.

Compute is **under control** when the invention costs at most `limit` times what the original costs.
"""

import pandas as pd
import yaml
from scipy import stats

from thyroid_lib.ablation.jobs import CUT
from thyroid_lib.ablation.results import MAIN, Measured, added, contrast, corrected, per_arm
from thyroid_lib.common.templates import TEMPLATES
from thyroid_lib.evaluation.bootstrap import LEVEL

ALPHA = 0.05
SUPPORTED, NOT_SUPPORTED, UNDECIDED = "supported", "not supported", "undecided with this data"
NOT_TESTED = "not tested"
_CLAIMS = yaml.safe_load((TEMPLATES / "ablation" / "claims.yaml").read_text(encoding="utf-8"))
CLAIMS, COMPUTE = _CLAIMS["accuracy"], _CLAIMS["compute"]
"""Claims in words; those on accuracy with the pairs of arms by which each is measured."""


def controls(measured: Measured) -> dict[str, dict]:
    """The two broken arms: shuffled labels must come out at chance, the same network again without a difference.

    Returns:
        name -> {"value", "low", "high", ..., "expected", "passed": True, False, or None where there is no number};
        only those in the grid. The interval of the shuffled arm is over patients and over its own trainings: labels
        dealt out anew may favour a feature by luck.
    """
    result = {}
    if "shuffled" in measured.arms:
        result["shuffled"] = _shuffled(measured) | {"expected": 0.5}
    if {"again", "invention"} <= {*measured.arms}:
        result["again"] = contrast(measured, {"again": 1.0, "invention": -1.0}) | {"expected": 0.0}
    for test in result.values():
        known = test["value"] is not None
        test["passed"] = bool(test["low"] <= test["expected"] <= test["high"]) if known else None
    return result


def _shuffled(measured: Measured) -> dict:
    made = per_arm(measured, "shuffled")[MAIN]
    values, tail = pd.Series(made.pop("trainings")), (1 - LEVEL) / 2
    if len(values) < 2:
        return made
    n, error = len(values), max(1e-9, (made["high"] - made["low"]) / 2 / stats.norm.isf(tail))
    error, df = added((values.var() / n, n - 1), (error**2, max(1, measured.rests_on["effective"] - 1)))
    reach = stats.t.isf(tail, df) * error
    return made | {"low": max(0.0, made["value"] - reach), "high": min(1.0, made["value"] + reach)}


def claims(measured: Measured, *, margin: float) -> dict[str, dict]:
    """Every claim on accuracy with its contrast, corrected by Holm, and its verdict.

    Args:
        measured: of `results.measure`. margin: smallest effect worth having, in macro AUROC.

    Returns:
        claim -> {"claim", "measured_by", "weights", contrast..., "p_holm", "verdict", "why"}.
    """
    tests = {}
    for key, claim in CLAIMS.items():
        pairs = [pair for pair in claim["pairs"] if {*pair} <= {*measured.draws}]
        weights = {arm: sign / len(pairs) for pair in pairs for arm, sign in zip(pair, (1.0, -1.0))}
        tests[key] = {name: claim[name] for name in ("claim", "measured_by")} | {"weights": weights}
        if weights:
            tests[key] |= contrast(measured, weights, trainings=not claim.get("same_networks"))
    tested, broken = corrected(tests), [n for n, c in controls(measured).items() if c["passed"] is False]
    for key, test in tested.items():
        lows = [per_arm(measured, arm)[MAIN]["low"] for arm in test["weights"] if not arm.endswith(CUT)]
        test["verdict"], test["why"] = verdict(
            test,
            margin=margin,
            learnt=any(low is not None and low > 0.5 for low in lows),
            single=not CLAIMS[key].get("same_networks") and not test.get("trainings_counted"),
            broken_controls=broken,
        )
    return tested


def verdict(
    test: dict, *, margin: float, learnt: bool = True, single: bool = False, broken_controls=()
) -> tuple[str, str]:
    """The rule for an effect on accuracy.

    Args:
        test: a contrast with "p_holm"; without weights where its arms are not in the grid.
        margin: smallest effect worth having. learnt: whether an intact arm of the contrast is above chance.
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


def compute(costs: pd.DataFrame, *, limit: float) -> dict[str, dict]:
    """The rule for compute: what the invention costs, as a multiple of what the original costs.

    Args:
        costs: index arm, columns of `COMPUTE`; more is dearer.
        limit: largest multiple that counts as under control.

    Returns:
        Column -> {"claim", "measured_by", "multiple", "verdict", "why"}; no interval: it is no estimate. {} without
        both networks.
    """
    if not {"invention", "original"} <= {*costs.index}:
        return {}
    found = {}
    for key, multiple in (costs.loc["invention"] / costs.loc["original"]).items():
        verdict, most = (SUPPORTED, "at most") if multiple <= limit else (NOT_SUPPORTED, "more than")
        why = f"{most} {limit:g} times the original's"
        found[key] = COMPUTE[key] | {"multiple": float(f"{multiple:.6g}"), "verdict": verdict, "why": why}
    return found
