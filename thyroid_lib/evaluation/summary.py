"""All statistics of a run from its predictions.csv, as one nested dict.

The dict is what notebook 05 records in metrics.json: every number of its report has its key here.
``report`` puts it into tables and sentences.
"""

import pandas as pd

from thyroid_lib.evaluation import comparison, selective
from thyroid_lib.evaluation.curves import curves
from thyroid_lib.evaluation.metrics import Sample, evaluate
from thyroid_lib.evaluation.predictions import OURS, PLACES, classes_of, select

EVERY = 5
"""One point in this many of the ROC and precision-recall curves is recorded."""


def summarize(
    predictions, *, subgroup_minimum=10, confidence=0.9, prevalence=None, ordered=False, **options
) -> dict:
    """Every statistic on saved predictions.

    Args:
        predictions: DataFrame of ``read_predictions``.
        subgroup_minimum: int, fewest patients per type in a subgroup.
        confidence: float, 0..1, wanted coverage of the prediction sets.
        prevalence: dict, class key -> share that PPV and NPV speak of; observed share when not given.
        ordered: bool, adds the weighted kappa.
        **options: draws, seed and minimum of ``metrics.Sample``.

    Returns:
        set ("internal", "external") -> model -> {"image", "patient": of ``evaluate``; "folds"; and for the
        study's own model "referral", "conformal", "subgroups", "curves"}; "difference" -> set -> other model
        -> paired differences; "drop" -> model -> internal minus external.
    """
    options = {"draws": 2000} | options
    result: dict = {"draws": options["draws"], "difference": {}, "drop": {}}
    first, *others = sorted({*predictions["model"]}, key=lambda name: (name != OURS, name))
    for model in (first, *others):
        parts = {place: rows for place in PLACES if len(rows := select(predictions, model, place))}
        for place, rows in parts.items():
            asked = {"prevalence": prevalence, "ordered": ordered, **options}
            found = {
                "image": evaluate(rows, decisions=model == first, **asked),
                "patient": evaluate(rows, decisions=False, unit="patient", **asked),
            }
            if rows["fold"].nunique() > 1:
                found["folds"] = comparison.across_folds(rows)
            result.setdefault(place, {})[model] = found
            if model == first:
                sample, validation = Sample(rows, **options), select(predictions, model, "validation")
                found["referral"] = selective.referral(sample)
                found["conformal"], _ = selective.conformal(sample, validation, confidence)
                found["curves"] = {key: _recorded(curve) for key, curve in curves(sample).items()}
                found["subgroups"] = comparison.subgroups(rows, **options | {"minimum": subgroup_minimum})
            elif len(ours := select(predictions, first, place)):
                pair = comparison.compare(ours, rows, **options)
                result["difference"].setdefault(place, {})[model] = pair
        if len(parts) == len(PLACES):
            result["drop"][model] = comparison.drop(*parts.values(), **options)
    return result


def _recorded(curve: dict) -> dict[str, list[float]]:
    points = pd.DataFrame(curve).iloc[::EVERY, 2:]
    return points.map("{:.6g}".format).astype(float).to_dict("list")


def errors(table: pd.DataFrame) -> dict:
    """Errors per type: how many, what they were taken for, and how sure the classifier was.

    Args:
        table: predictions with a column "predicted".

    Returns:
        class key -> {"images", "errors", "taken_for": {key: images}, "median_probability"}, the last being
        the median probability of the wrong type, None without errors.
    """
    columns, result = {key: "p_" + key for key in classes_of(table)}, {}
    for key in columns:
        own = table[table["truth"] == key]
        wrong = own[own["predicted"] != key]
        sure = wrong[[*columns.values()]].max(axis=1)
        result[key] = {
            "images": len(own),
            "errors": len(wrong),
            "taken_for": wrong["predicted"].value_counts().to_dict(),
            "median_probability": float(sure.median()) if len(wrong) else None,
        }
    return result


def headline(result: dict, simulated: bool) -> dict:
    """The numbers an index opens with.

    Args:
        result: of :func:`summarize`;  simulated: phantoms.

    Returns:
        key -> {"label", "metric", "simulated"}; only numbers that exist.
    """
    found = {}
    for place, ours in ((place, result[place][OURS]) for place in PLACES if OURS in result.get(place, {})):
        image = ours["image"]
        wanted = {
            "image_macro_auroc": ("Macro AUROC", image["macro_auroc"]),
            "patient_macro_auroc": ("Macro AUROC by patient", ours["patient"]["macro_auroc"]),
            "image_balanced_accuracy": ("Balanced accuracy", image["balanced_accuracy"]),
        }
        if "weighted_kappa" in image:  # ordered classes
            lowest = next(name for name in image if name.startswith("auroc/"))
            title = f"AUROC, lowest group ({lowest.partition('/')[2]}) against all above"
            wanted["image_lowest"] = (title, image[lowest])
        for name, (title, metric) in wanted.items():
            if metric["value"] is not None:
                about = {"label": f"{title}, {place} testing", "metric": metric, "simulated": simulated}
                found[f"{place}_{name}"] = about
    return found


def complete(metrics) -> bool:
    """Whether every number with an uncertainty has its interval, its n, or a reason why not.

    Args:
        metrics: any part of metrics.json.
    """
    if isinstance(metrics, list):
        return all(map(complete, metrics))
    if not isinstance(metrics, dict):
        return True
    if "value" in metrics:
        known = None not in (metrics.get(name) for name in ("value", "low", "high"))
        return {"n_images", "n_patients"} <= {*metrics} and (known or bool(metrics.get("reason")))
    return all(map(complete, metrics.values()))
