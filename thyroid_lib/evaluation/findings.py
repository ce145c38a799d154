"""The results of a run as tables, rows of figures, captions and sentences; nothing is computed here."""

import re

import pandas as pd

from thyroid_lib.common.messages import english, say
from thyroid_lib.evaluation import task
from thyroid_lib.evaluation.results import OURS

BESIDE = {
    "scratch": "the same network from scratch",
    "reference_texture": "logistic regression on texture and shape",
    "reference_signs": "a reader of the drawn signs",
}
"""The models that stand beside the network, in sentences."""

WEAK = 0.8
"""Macro AUROC below which a failed map check may lie in the network rather than in the map."""


def type_table(metrics: dict, names: dict) -> pd.DataFrame:
    """Per class: discrimination and the operating point, as text with intervals.

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
        row = {task.of(names).noun: english(names, key)}
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
                f"{place} testing: sets hold {say(found['set_size'])} types, calibrated on the "
                f"{found['calibrated_on'].removeprefix('the ')}"
            )
    wanted = result.get("internal", {}).get(OURS, {}).get("conformal", {}).get("confidence", 0.9)
    head = f"Share of prediction sets that hold the right type; wanted (dotted): {wanted:.0%}."
    return " ".join([head, *(f"{part[0].upper()}{part[1:]}." for part in parts)])


def subgroup_rows(found: dict, metric: str = "macro_auroc") -> list[tuple[str, str, dict]]:
    """Rows of a forest plot: the whole set, then every subgroup.

    Args:
        found: one model on one set of :func:`summarize`;  metric: which of ``comparison.COMPARED``.
    """
    rows = [("", "all", found["image"][metric])]
    for covariate, groups in found["subgroups"].items():
        words = {"0": "no", "1": "yes"} if {*groups} <= {"0", "1"} else {}
        name = re.sub(r" (mm|px)$", r", \1", covariate.replace("_", " "))
        rows += [(name, words.get(level, level), values[metric]) for level, values in groups.items()]
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
    else:
        lines.append(task.of(names).statement)
    for place in ("internal", "external"):
        lines.append(_testing(metrics.get(place, {}).get(OURS), place, names))
    for place, others in metrics.get("difference", {}).items():
        for other, values in others.items():
            d, who = values["macro_auroc"], BESIDE.get(other, other.replace("_", " "))
            if d["value"] is None:
                lines.append(f"The network against {who}, {place} testing: {d['reason']}.")
                continue
            sure = (
                "the interval excludes 0" if d["low"] > 0 or d["high"] < 0 else "no difference can be claimed"
            )
            lines.append(f"The network minus {who}, {place} testing: macro AUROC {say(d)}; {sure}.")
    fall = metrics.get("drop", {}).get(OURS, {}).get("macro_auroc")
    if fall and fall["value"] is not None:
        lines.append(f"Internal minus external testing: macro AUROC {say(fall)}.")
    lines += _trust(metrics, names)
    return "\n".join(f"* {line}" for line in lines)


def _testing(found: dict | None, place: str, names: dict) -> str:
    if not found:
        return f"**{place.capitalize()} testing** was not done: the run has no {place} data."
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
    noun = task.of(names).noun
    text += f" The weakest {noun} is {english(names, worst)}, AUROC {say(areas[worst])}."
    if (
        "weighted_kappa" in image
    ):  # the classes are ordered, so the first against the rest is a question of its own
        first = next(iter(areas))
        text += f" {english(names, first)} against all the others: AUROC {say(areas[first])}."
    return text


def _trust(metrics: dict, names: dict) -> list[str]:
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
            score = metrics.get("internal", {}).get(OURS, {}).get("image", {}).get("macro_auroc", {})
            if score.get("value") is not None and score["value"] < WEAK:
                text += (
                    f" The network itself is weak here (macro AUROC {say(score)}): it has little to point at."
                )
        lines.append(text)
    audit = metrics.get("audit", {})
    printed = audit.get("views", {}).get("full frame, answer printed", {})
    rises = {r: v["difference"] for r, v in printed.items() if v["difference"]["value"] is not None}
    if rises:
        said = ", ".join(f"{reader} {say(rise)}" for reader, rise in rises.items())
        caught = [reader for reader, rise in rises.items() if rise["low"] > 0]
        lines.append(
            f"The answer, printed on every full frame for the audit, changes the macro AUROC by: {said}. "
            + (
                f"The audit catches it ({', '.join(caught)})."
                if caught
                else "The audit does not catch it here."
            )
        )
    text = audit.get("text", {})
    for frames in ("all frames", "with text"):
        found = text.get(frames, {})
        if found.get("difference", {}).get("value") is not None:
            rise = found["difference"]
            on = "all frames" if frames == "all frames" else "the frames that carry print"
            few = set(names) - set(found["classes"])
            but = (
                f" ({', '.join(english(names, key) for key in names if key in few)} left out: too few)"
                if few
                else ""
            )
            lines.append(
                f"Real print, {on}{but}: a reader of pixels scores {say(found['full frame'])} on whole frames and "
                f"{say(found['crop'])} on crops; difference {say(rise)}"
                + (
                    ": what stands around the sector tells, and crops leave it out."
                    if rise["low"] > 0
                    else "."
                )
            )
    source = audit.get("source", {}).get("auroc")
    if source and source["value"] is not None:
        lines.append(f"Frozen features tell the source of an image with AUROC {say(source)} (0.5 is chance).")
    return lines
