"""All statistics of a run from its predictions.csv, as one nested dict.

The dict is what notebook 05 records in metrics.json: every number of its report has its key here.
``findings`` puts it into tables and sentences.
"""

import numpy as np
import pandas as pd

from thyroid_lib.evaluation import comparison, selective
from thyroid_lib.evaluation.metrics import Sample, evaluate
from thyroid_lib.evaluation.predictions import classes_of

OURS = "finetuned"
GRID = np.linspace(0, 1, 21)
"""Points at which ROC and precision-recall curves are recorded."""


def select(predictions: pd.DataFrame, model: str, set: str) -> pd.DataFrame:
    """Rows of one model and one set, with the classes kept.

    Args:
        predictions: of ``read_predictions``;  model, set: which rows.
    """
    part = predictions[(predictions["model"] == model) & (predictions["set"] == set)].reset_index(drop=True)
    part.attrs["classes"] = classes_of(predictions)
    return part


def is_ordered(classes: list[str], ordered: str = "auto") -> bool:
    """Whether the classes are ordered: "yes", "no", or "auto" (keys that are TI-RADS groups are).

    Args:
        classes: class keys;  ordered: the wish.

    Raises:
        ValueError: another wish.
    """
    if ordered not in ("yes", "no", "auto"):
        raise ValueError(f"ordered: expected 'auto', 'yes' or 'no', got {ordered!r}")
    grades = all(key.lower().removeprefix("tirads").lstrip("_ -")[:1].isdigit() for key in classes)
    return grades if ordered == "auto" else ordered == "yes"


def summarize(
    predictions: pd.DataFrame,
    *,
    draws: int = 2000,
    seed: int = 0,
    minimum: int = 5,
    subgroup_minimum: int = 10,
    confidence: float = 0.9,
    prevalence: dict[str, float] | None = None,
    ordered: bool = False,
) -> dict:
    """Every statistic on saved predictions.

    Args:
        predictions: of ``read_predictions``.
        draws, seed, minimum: of the bootstrap.
        subgroup_minimum: fewest patients per type in a subgroup.
        confidence: wanted coverage of the prediction sets.
        prevalence: class key -> share that PPV and NPV speak of; observed share when not given.
        ordered: adds the weighted kappa.

    Returns:
        set ("internal", "external") -> model -> {"image", "patient": of ``evaluate``; "folds"; and for the
        study's own model "referral", "conformal", "subgroups", "curves"}; "difference" -> set -> other model
        -> paired differences; "drop" -> model -> internal minus external.
    """
    options = {"draws": draws, "seed": seed, "minimum": minimum}
    result: dict = {"draws": draws, "difference": {}, "drop": {}}
    models = sorted({*predictions["model"]}, key=lambda name: (name != OURS, name))
    for place in ("internal", "external"):
        for model in models:
            rows = select(predictions, model, place)
            if not len(rows):
                continue
            found = {
                unit: evaluate(rows, unit=unit, prevalence=prevalence, ordered=ordered, **options)
                for unit in ("image", "patient")
            }
            for unit in ("image", "patient"):
                if model != models[0] or unit == "patient":
                    found[unit] = {k: v for k, v in found[unit].items() if not k.startswith("net_benefit/")}
            if rows["fold"].nunique() > 1:
                found["folds"] = comparison.across_folds(rows)
            if model == models[0]:
                sample = Sample(rows, **options)
                tuned = select(predictions, model, "validation")
                found["referral"] = selective.referral(sample)
                found["conformal"] = selective.conformal(rows, tuned, confidence=confidence, **options)[0]
                found["subgroups"] = comparison.subgroups(
                    rows, draws=draws, seed=seed, minimum=subgroup_minimum
                )
                found["curves"] = _recorded(comparison.curves(sample))
            else:
                ours = select(predictions, models[0], place)
                if len(ours):
                    pair = comparison.compare(ours, rows, **options)
                    result["difference"].setdefault(place, {})[model] = pair
            result.setdefault(place, {})[model] = found
    for model in models:
        parts = [select(predictions, model, place) for place in ("internal", "external")]
        if all(map(len, parts)):
            result["drop"][model] = comparison.drop(*parts, **options)
    return result


def _recorded(curves: dict) -> dict:
    return {
        key: {
            name: [float(f"{v:.6g}") for v in np.interp(GRID, curve["x"], curve[name])]
            for name in curve
            if name not in ("x", "prevalence")
        }
        for key, curve in curves.items()
    }


def errors(table: pd.DataFrame) -> dict:
    """Errors per type: how many, what they were taken for, and how sure the classifier was.

    Args:
        table: predictions with a column "predicted".

    Returns:
        class key -> {"images", "errors", "taken_for": {key: images}, "median_probability"}, the last being
        the median probability of the wrong type, None without errors.
    """
    result = {}
    for key in classes_of(table):
        own = table[table["truth"] == key]
        wrong = own[own["predicted"] != key]
        sure = [row["p_" + row["predicted"]] for _, row in wrong.iterrows()]
        result[key] = {
            "images": len(own),
            "errors": len(wrong),
            "taken_for": {str(k): int(n) for k, n in wrong["predicted"].value_counts().items()},
            "median_probability": float(f"{np.median(sure):.9g}") if sure else None,
        }
    return result


def headline(result: dict, simulated: bool) -> dict:
    """The numbers an index opens with.

    Args:
        result: of :func:`summarize`;  simulated: phantoms.

    Returns:
        key -> {"label", "metric", "simulated"}; only numbers that exist.
    """
    wanted = [
        (place, unit, name, title)
        for place in ("internal", "external")
        for unit, name, title in (
            ("image", "macro_auroc", "Macro AUROC"),
            ("patient", "macro_auroc", "Macro AUROC by patient"),
            ("image", "balanced_accuracy", "Balanced accuracy"),
        )
    ]
    found = {}
    for place, unit, name, title in wanted:
        metric = result.get(place, {}).get(OURS, {}).get(unit, {}).get(name)
        if metric and metric["value"] is not None:
            label = f"{title}, {place} testing"
            found[f"{place}_{unit}_{name}"] = {"label": label, "metric": metric, "simulated": simulated}
    for place in ("internal", "external"):
        image = result.get(place, {}).get(OURS, {}).get("image", {})
        first = next((name for name in image if name.startswith("auroc/")), None)
        if "weighted_kappa" in image and first and image[first]["value"] is not None:  # ordered classes
            lowest = first.partition("/")[2]
            label = f"AUROC, lowest group ({lowest}) against all above, {place} testing"
            found[f"{place}_image_lowest"] = {"label": label, "metric": image[first], "simulated": simulated}
    return found


def complete(metrics) -> bool:
    """Whether every number with an uncertainty has its interval, its n, or a reason why not.

    Args:
        metrics: any part of metrics.json.
    """
    if isinstance(metrics, list):
        return all(complete(item) for item in metrics)
    if not isinstance(metrics, dict):
        return True
    if "value" in metrics:
        known = all(metrics.get(name) is not None for name in ("value", "low", "high"))
        return {"n_images", "n_patients"} <= {*metrics} and (known or bool(metrics.get("reason")))
    return all(complete(value) for value in metrics.values())
