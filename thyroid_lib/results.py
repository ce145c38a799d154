"""All statistics of a run from its predictions.csv, as one nested dict, as tables, and as sentences.

The dict is what notebook 05 records in metrics.json: every number of its report has its key here.
"""

import numpy as np
import pandas as pd

from thyroid_lib import comparison, selective
from thyroid_lib.evaluation import Sample, evaluate
from thyroid_lib.plots.evaluation import english, say
from thyroid_lib.predictions import classes_of

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


def type_table(metrics: dict, names: dict) -> pd.DataFrame:
    """Per lesion type: discrimination and the operating point, as text with intervals.

    Args:
        metrics: of ``evaluate``;  names: class key -> (English, Chinese).
    """
    keys = [name.partition("/")[2] for name in metrics if name.startswith("images/")]
    columns = {
        "AUROC": "auroc", "average precision": "average_precision", "sensitivity": "sensitivity",
        "specificity": "specificity", "PPV": "ppv", "NPV": "npv",
    }  # fmt: skip
    rows = []
    for key in keys:
        row = {"lesion type": english(names, key)}
        row |= {"images / patients": f"{metrics[f'images/{key}']} / {metrics[f'patients/{key}']}"}
        row |= {title: say(metrics[f"{name}/{key}"]) for title, name in columns.items()}
        rows.append(row | {"prevalence for PPV, NPV": f"{metrics[f'prevalence/{key}']:.2f}"})
    return pd.DataFrame(rows)


def overall_table(found: dict) -> pd.DataFrame:
    """Overall metrics of one model, by image and by patient.

    Args:
        found: {"image": metrics, "patient": metrics[, "folds"]} of :func:`summarize`.
    """
    titles = {
        "macro_auroc": "macro AUROC", "macro_average_precision": "macro average precision",
        "accuracy": "accuracy", "balanced_accuracy": "balanced accuracy", "mcc": "Matthews correlation",
        "weighted_kappa": "weighted kappa (quadratic)", "brier": "Brier score (0 to 2)", "log_loss": "log loss",
        "ece_top_label": "calibration error, top label", "ece_classwise": "calibration error, classwise",
    }  # fmt: skip
    rows = []
    for name, title in titles.items():
        if name not in found["image"]:
            continue
        row = {"metric": title} | {f"by {unit}": say(found[unit][name], 3) for unit in ("image", "patient")}
        if "folds" in found:
            fold = found["folds"].get(name)
            known = fold and fold["mean"] is not None and fold["sd"] is not None
            row["mean ± SD over folds"] = f"{fold['mean']:.3f} ± {fold['sd']:.3f}" if known else "–"
        rows.append(row)
    return pd.DataFrame(rows)


def error_table(table: pd.DataFrame, names: dict) -> pd.DataFrame:
    """Errors per type: how many, what they were taken for, and how sure the classifier was.

    Args:
        table: predictions with a column "predicted";  names: class key -> (English, Chinese).
    """
    rows = []
    for key in classes_of(table):
        own = table[table["truth"] == key]
        wrong = own[own["predicted"] != key]
        taken = wrong["predicted"].value_counts()
        sure = (
            wrong.apply(lambda row: row["p_" + row["predicted"]], axis=1)
            if len(wrong)
            else pd.Series(dtype=float)
        )
        rows.append(
            {
                "reference standard": english(names, key),
                "images": len(own),
                "errors": len(wrong),
                "taken for": ", ".join(f"{english(names, k)} ({n})" for k, n in taken.items()) or "–",
                "median probability of the wrong type": f"{sure.median():.2f}" if len(sure) else "–",
            }
        )
    return pd.DataFrame(rows)


def subgroup_rows(found: dict, metric: str = "macro_auroc") -> list[tuple[str, str, dict]]:
    """Rows of a forest plot: the whole set, then every subgroup.

    Args:
        found: one model on one set of :func:`summarize`;  metric: which of ``comparison.COMPARED``.
    """
    rows = [("", "all", found["image"][metric])]
    for covariate, groups in found["subgroups"].items():
        rows += [(covariate.replace("_", " "), level, values[metric]) for level, values in groups.items()]
    return rows


def difference_rows(result: dict, metric: str = "macro_auroc") -> list[tuple[str, str, dict]]:
    """Rows of a forest plot: paired differences to the other models, then internal minus external.

    Args:
        result: of :func:`summarize`;  metric: a name of ``comparison.samples``.
    """
    rows = [
        (f"{place} testing, {OURS} minus", other.replace("_", " "), values[metric])
        for place, others in result["difference"].items()
        for other, values in others.items()
    ]
    return rows + [
        ("internal minus external", model.replace("_", " "), values[metric])
        for model, values in result["drop"].items()
    ]


def findings(metrics: dict, names: dict, simulated: bool) -> str:
    """What notebook 05 found, in Markdown, every number from ``metrics``.

    Args:
        metrics: what the notebook recorded;  names: class key -> (English, Chinese);  simulated: whether the
            images are phantoms.
    """
    lines = []
    kind = "simulated " if simulated else ""
    for place in ("internal", "external"):
        found = metrics.get(place, {}).get(OURS)
        if not found:
            lines.append(
                f"{place.capitalize()} testing was not done: the run has no {place} predictions of {OURS}."
            )
            continue
        image = found["image"]
        areas = {k.partition("/")[2]: v for k, v in image.items() if k.startswith("auroc/")}
        known = {k: v for k, v in areas.items() if v["value"] is not None}
        text = (
            f"**{place.capitalize()} testing** ({image['accuracy']['n_images']} {kind}images of "
            f"{image['accuracy']['n_patients']} patients): macro AUROC {say(image['macro_auroc'])} by image and "
            f"{say(found['patient']['macro_auroc'])} by patient, balanced accuracy {say(image['balanced_accuracy'])}."
        )
        if known:
            worst = min(known, key=lambda key: known[key]["value"])
            text += f" The weakest type is {english(names, worst)}, AUROC {say(known[worst])}."
        lines.append(text)
    for place, others in metrics.get("difference", {}).items():
        for other, values in others.items():
            d = values["macro_auroc"]
            sure = d["value"] is not None and (d["low"] > 0 or d["high"] < 0)
            lines.append(
                f"{OURS.capitalize()} minus {other.replace('_', ' ')}, {place} testing: macro AUROC {say(d)}"
                + (": the interval excludes 0." if sure else ": no difference can be claimed.")
            )
    if drop := metrics.get("drop", {}).get(OURS):
        lines.append(f"On the external source the macro AUROC falls by {say(drop['macro_auroc'])}.")
    return "\n".join(f"* {line}" for line in lines)
