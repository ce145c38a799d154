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


def error_table(found: dict, names: dict) -> pd.DataFrame:
    """:func:`errors` as a table.

    Args:
        found: of :func:`errors`;  names: class key -> (English, Chinese).
    """
    rows = []
    for key, e in found.items():
        taken = ", ".join(f"{english(names, k)} ({n})" for k, n in e["taken_for"].items())
        sure = e["median_probability"]
        rows.append(
            {
                "reference standard": english(names, key),
                "images": e["images"],
                "errors": e["errors"],
                "taken for": taken or "–",
                "median probability of the wrong type": "–" if sure is None else f"{sure:.2f}",
            }
        )
    return pd.DataFrame(rows)


def caption(title: str, found: dict, simulated: bool) -> str:
    """A table's caption: what, on how many, and whether simulated.

    Args:
        title: what the table shows;  found: one model on one set;  simulated: phantoms.
    """
    n = found["image"]["accuracy"]
    kind = "simulated images" if simulated else "images"
    return f"{title}: {n['n_images']} {kind} of {n['n_patients']} patients; in brackets the 95 % interval."


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
    return found


def conformal_rows(result: dict, names: dict) -> list[tuple[str, str, dict]]:
    """Rows of a forest plot: coverage of the prediction sets, overall and per type.

    Args:
        result: of :func:`summarize`;  names: class key -> (English, Chinese).
    """
    rows = []
    for place in ("internal", "external"):
        found = result.get(place, {}).get(OURS, {}).get("conformal", {})
        group = f"{place} testing"
        if "coverage" not in found:
            if found:
                n = result[place][OURS]["image"]["accuracy"]
                rows.append((group, "all", {**n, "value": None, "reason": found["reason"]}))
            continue
        rows.append((group, "all", found["coverage"]))
        rows += [
            (group, english(names, key.partition("/")[2]), metric)
            for key, metric in found.items()
            if key.startswith("coverage/")
        ]
    return rows


def conformal_caption(result: dict) -> str:
    """What the prediction sets were calibrated on, and how large they are.

    Args:
        result: of :func:`summarize`.
    """
    parts = []
    for place in ("internal", "external"):
        found = result.get(place, {}).get(OURS, {}).get("conformal", {})
        if "set_size" in found:
            parts.append(
                f"{place} testing: sets hold {say(found['set_size'])} types, calibrated on "
                f"{found['calibrated_on']}"
            )
    wanted = result.get("internal", {}).get(OURS, {}).get("conformal", {}).get("confidence", 0.9)
    return f"Share of prediction sets that hold the right type; wanted (dotted): {wanted:.0%}. " + "; ".join(
        parts
    )


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
    if simulated:
        lines.append(
            "All images here are **simulated**: the numbers show that the machinery works, nothing else."
        )
    for place in ("internal", "external"):
        lines.append(_testing(metrics.get(place, {}).get(OURS), place, names))
    for place, others in metrics.get("difference", {}).items():
        for other, values in others.items():
            d, who = values["macro_auroc"], other.replace("_", " ")
            if d["value"] is None:
                lines.append(f"{OURS.capitalize()} against {who}, {place} testing: {d['reason']}.")
                continue
            sure = (
                "the interval excludes 0" if d["low"] > 0 or d["high"] < 0 else "no difference can be claimed"
            )
            lines.append(f"{OURS.capitalize()} minus {who}, {place} testing: macro AUROC {say(d)}; {sure}.")
    fall = metrics.get("drop", {}).get(OURS, {}).get("macro_auroc")
    if fall and fall["value"] is not None:
        lines.append(f"Internal minus external testing: macro AUROC {say(fall)}.")
    lines += _trust(metrics)
    return "\n".join(f"* {line}" for line in lines)


def _testing(found: dict | None, place: str, names: dict) -> str:
    if not found:
        return f"**{place.capitalize()} testing** was not done: the run has no {place} predictions of {OURS}."
    image, patient = found["image"], found["patient"]["macro_auroc"]
    n = image["accuracy"]
    text = f"**{place.capitalize()} testing**, {n['n_images']} images of {n['n_patients']} patients: "
    if image["macro_auroc"]["value"] is None:
        return text + f"no macro AUROC can be given ({image['macro_auroc']['reason']})."
    text += (
        f"macro AUROC {say(image['macro_auroc'])} by image, {say(patient)} by patient; balanced accuracy "
        f"{say(image['balanced_accuracy'])}; Brier score {say(image['brier'])}."
    )
    areas = {k.partition("/")[2]: v for k, v in image.items() if k.startswith("auroc/")}
    worst = min(areas, key=lambda key: areas[key]["value"])
    return text + f" The weakest type is {english(names, worst)}, AUROC {say(areas[worst])}."


def _trust(metrics: dict) -> list[str]:
    lines = []
    maps = metrics.get("maps", {})
    if verdicts := maps.get("trained", {}).get("verdicts"):
        failed = [check for check, verdict in verdicts.items() if verdict == "fail"]
        fooled = [
            c for c, v in maps["untrained"]["verdicts"].items() if v == "pass" and verdicts[c] == "pass"
        ]
        passed = sum(verdict == "pass" for verdict in verdicts.values())
        text = f"Heat maps ({maps['method']} at {maps['layer']}) pass {passed} of {len(verdicts)} checks"
        text += f" and fail: {'; '.join(failed)}." if failed else "."
        if fooled:
            text += f" Random weights pass too, so these prove nothing: {'; '.join(fooled)}."
        if failed:
            text += " They should not be shown as an explanation of a single image."
        lines.append(text)
    audit = metrics.get("audit", {})
    printed = audit.get("views", {}).get("full frame, answer printed", {})
    rises = {r: v["difference"] for r, v in printed.items() if v["difference"]["value"] is not None}
    if rises:
        said = ", ".join(f"{reader} {say(rise)}" for reader, rise in rises.items())
        caught = [reader for reader, rise in rises.items() if rise["low"] > 0]
        lines.append(
            f"A printed answer on the full frame changes the macro AUROC by: {said}. "
            + (
                f"The audit catches it ({', '.join(caught)})."
                if caught
                else "The audit does not catch it here."
            )
        )
    source = audit.get("source", {}).get("auroc")
    if source and source["value"] is not None:
        lines.append(f"Frozen features tell the source of an image with AUROC {say(source)} (0.5 is chance).")
    return lines
