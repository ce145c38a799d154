"""The results of a run as tables, rows of figures and captions; nothing is computed here.

Sentences stand in ``templates/evaluation``.
"""

import re

import pandas as pd

from thyroid_lib.common.messages import english, number, say
from thyroid_lib.common.templates import MODELS, render
from thyroid_lib.evaluation import task
from thyroid_lib.evaluation.metrics import METRICS
from thyroid_lib.evaluation.predictions import OURS, PLACES

Rows = list[tuple[str, str, dict]]
"""Of a forest plot: group, name, metric."""


def type_table(metrics: dict, names: dict) -> pd.DataFrame:
    """Per class: discrimination and the operating point, as text with intervals.

    Args:
        metrics: of ``evaluate``;  names: class key -> (English, Chinese).
    """
    keys = [name.partition("/")[2] for name in metrics if name.startswith("images/")]
    table = pd.DataFrame({task.of(names).noun: [english(names, key) for key in keys]})
    counts = ((metrics[f"images/{key}"], metrics[f"patients/{key}"]) for key in keys)
    table["images / patients"] = [f"{images} / {patients}" for images, patients in counts]
    for name in ("auroc/{}", "average_precision/{}", "sensitivity/{}", "specificity/{}", "ppv/{}", "npv/{}"):
        table[METRICS[name].title] = [say(metrics[name.format(key)]) for key in keys]
    table["prevalence for PPV, NPV"] = [f"{metrics[f'prevalence/{key}']:.2f}" for key in keys]
    return table


def overall_table(found: dict) -> pd.DataFrame:
    """Overall metrics of one model, by image and by patient.

    Args:
        found: {"image": metrics, "patient": metrics[, "folds"]} of ``summarize``.
    """
    shown = [name for name in METRICS if name in found["image"] and not name.startswith("raw/")]
    table = pd.DataFrame({"metric": [METRICS[name].title for name in shown]})
    for unit in ("image", "patient"):
        table[f"by {unit}"] = [say(found[unit][name], 3) for name in shown]
    if "folds" in found:
        folds = [found["folds"].get(name, {"sd": None}) for name in shown]
        spread = ["–" if fold["sd"] is None else "{mean:.3f} ± {sd:.3f}".format(**fold) for fold in folds]
        table["mean ± SD over folds"] = spread
    return table


def error_table(found: dict, names: dict) -> pd.DataFrame:
    """``summary.errors`` as a table.

    Args:
        found: of ``summary.errors``;  names: class key -> (English, Chinese).
    """
    return pd.DataFrame(
        {
            "reference standard": english(names, key),
            "images": e["images"],
            "errors": e["errors"],
            "taken for": ", ".join(f"{english(names, k)} ({n})" for k, n in e["taken_for"].items()) or "–",
            "median probability of the wrong type": number(e["median_probability"], 2),
        }
        for key, e in found.items()
    )


def caption(title: str, found: dict, simulated: bool) -> str:
    """A table's caption: what, on how many, and whether simulated.

    Args:
        title: what the table shows;  found: one model on one set;  simulated: phantoms.
    """
    n = found["image"]["accuracy"]
    kind = "simulated images" if simulated else "images"
    return f"{title}: {n['n_images']} {kind} of {n['n_patients']} patients; in brackets the 95 % interval."


def conformal_rows(result: dict, names: dict) -> Rows:
    """Coverage of the prediction sets, overall and per type.

    Args:
        result: of ``summarize``;  names: class key -> (English, Chinese).
    """
    rows = []
    for place, sets in _conformal(result).items():
        if "reason" in sets:
            n = result[place][OURS]["image"]["accuracy"]
            sets = {"coverage": n | {"value": None, "reason": sets["reason"]}}
        metrics = {name: metric for name, metric in sets.items() if name.startswith("coverage")}
        for name, metric in metrics.items():
            rows.append((f"{place} testing", english(names, name.partition("/")[2]) or "all", metric))
    return rows


def conformal_caption(result: dict) -> str:
    """What the prediction sets were calibrated on, and how large they are.

    Args:
        result: of ``summarize``.
    """
    return " ".join(render("evaluation/conformal.md.j2", sets=_conformal(result)).split())


def _conformal(result: dict) -> dict[str, dict]:
    return {place: result[place][OURS]["conformal"] for place in PLACES if OURS in result.get(place, {})}


def subgroup_rows(found: dict, metric: str = "macro_auroc") -> Rows:
    """The whole set, then every subgroup.

    Args:
        found: one model on one set of ``summarize``;  metric: which of ``comparison.COMPARED``.
    """
    rows = [("", "all", found["image"][metric])]
    for covariate, groups in found["subgroups"].items():
        words = {"0": "no", "1": "yes"} if {*groups} <= {"0", "1"} else {}
        name = re.sub(r" (mm|px)$", r", \1", covariate.replace("_", " "))
        rows += [(name, words.get(level, level), values[metric]) for level, values in groups.items()]
    return rows


def difference_rows(result: dict, metric: str = "macro_auroc") -> Rows:
    """Paired differences to the other models, then internal minus external.

    Args:
        result: of ``summarize``;  metric: a name of ``comparison.samples``.
    """
    groups = {
        f"{place} testing, {MODELS[OURS]} minus": others for place, others in result["difference"].items()
    }
    return [
        (group, MODELS.get(model, model), values[metric])
        for group, models in (groups | {"internal minus external": result["drop"]}).items()
        for model, values in models.items()
    ]


def findings(metrics: dict, names: dict, simulated: bool) -> str:
    """What notebook 05 found, in Markdown, every number from ``metrics``.

    Args:
        metrics: what the notebook recorded;  names: class key -> (English, Chinese);  simulated: whether the
            images are phantoms.
    """
    tested = {place: metrics.get(place, {}).get(OURS) for place in PLACES}
    areas = {
        place: {name[6:]: metric for name, metric in found["image"].items() if name.startswith("auroc/")}
        for place, found in tested.items()
        if found
    }
    about = {"names": names, "task": task.of(names), "simulated": simulated, "ours": OURS, "models": MODELS}
    return render("evaluation/findings.md.j2", metrics=metrics, tested=tested, areas=areas, **about)
