"""The ablation in tables, rows of figures, captions and sentences; nothing is computed here."""

import pandas as pd

from thyroid_lib.ablation import verdicts
from thyroid_lib.ablation.grid import ARMS
from thyroid_lib.ablation.jobs import Job
from thyroid_lib.ablation.results import MAIN, Measured
from thyroid_lib.common.messages import english, say


def title(arm: str) -> str:
    """What texts and figures call an arm."""
    return ARMS[arm].title


def protocol(jobs: list[Job]) -> str:
    """What all arms share, in a sentence."""
    job = next((job for job in jobs if job.model), jobs[0])
    settings = job.settings
    seeds, folds = len({job.seed for job in jobs}), len({job.fold for job in jobs})
    start = "from ImageNet weights" if job.initial else "from scratch"
    rates = ", ".join(f"{s.lr:g}" for s in settings)
    blocks = next(
        (f", {j.model['middle_blocks']} middle blocks" for j in jobs if "middle_blocks" in j.model), ""
    )
    width = f"at width {job.model['width']:g}{blocks}, " if job.model else ""
    return (
        f"Trained {start}, {width}{job.size} px, {settings[0].epochs} epochs in batches of "
        f"{settings[0].batch_size}, peak learning rate {rates}; {seeds} seed{'s' * (seeds > 1)} on {folds} "
        f"fold{'s' * (folds > 1)}."
    )


def metric_table(found: dict, watched: list[str], names: dict) -> pd.DataFrame:
    """Per arm: discrimination, sensitivity for the watched types, calibration; mean over trainings.

    Args:
        found: arm -> metrics. watched: class keys. names: class key -> (English, Chinese).
    """
    rows = []
    for arm, metrics in found.items():
        each = metrics[MAIN]["trainings"]
        row = {"arm": title(arm), "macro AUROC": say(metrics[MAIN])}
        row["each training"] = ", ".join(f"{value:.2f}" for value in each) or "–"
        row |= {f"sensitivity, {english(names, key)}": say(metrics[f"sensitivity/{key}"]) for key in watched}
        rows.append(
            row | {"calibration error": say(metrics["ece_classwise"]), "Brier score": say(metrics["brier"])}
        )
    return pd.DataFrame(rows)


def metric_caption(measured: Measured) -> str:
    """Caption of `metric_table`."""
    tested = f"tested on {measured.images} images of {measured.patients} patients"
    return f"Each arm, mean over its trainings, {tested}; in brackets the 95 % interval over patients."


def arm_rows(found: dict) -> list[dict]:
    """Rows of `plots.ablation.arms`."""
    return [
        {"title": title(arm), "group": ARMS[arm].group, "metric": metrics[MAIN]}
        for arm, metrics in found.items()
    ]


def difference_table(found: dict) -> pd.DataFrame:
    """Macro AUROC minus that of the original and of the invention, with p values corrected by Holm.

    Args:
        found: "minus_<arm>" -> metric -> arm -> contrast.
    """
    rows: dict[str, dict] = {}
    for to, metrics in found.items():
        name = to.removeprefix("minus_")
        for arm, test in metrics.get(MAIN, {}).items():
            row = rows.setdefault(arm, {"arm": title(arm)})
            row[f"minus the {name}"] = signed(test)
            row[f"p (Holm), {name}"] = p_value(test.get("p_holm"))
    table = pd.DataFrame([rows[arm] for arm in ARMS if arm in rows])
    names = [to.removeprefix("minus_") for to, metrics in found.items() if metrics]
    columns = [column for name in names for column in (f"minus the {name}", f"p (Holm), {name}")]
    return table[["arm", *columns]].fillna("–")


def difference_rows(found: dict) -> list[tuple[str, str, dict]]:
    """Rows of `plots.evaluation.forest`: differences in macro AUROC to the original and to the invention."""
    return [
        (f"minus the {to.removeprefix('minus_')}", title(arm), test)
        for to, metrics in found.items()
        for arm, test in metrics.get(MAIN, {}).items()
    ]


def cost_table(spent: pd.DataFrame, speed: pd.DataFrame, batch_size: int) -> pd.DataFrame:
    """Parameters, multiplications, memory and images per second of every network; controls cost what they copy.

    Args:
        spent: of `computed_costs`. speed: of `measured_speed`. batch_size: of the training step.
    """
    both = spent.join(speed)
    both = both[[ARMS[arm].group != "controls" for arm in both.index]]
    table = pd.DataFrame(
        {
            "arm": [title(arm) for arm in both.index],
            "parameters, millions": [f"{value / 1e6:.2f}" for value in both["parameters"]],
            "GMACs per image": [f"{value:.3g}" for value in both["gmacs"]],
            f"memory of a step of {batch_size}, MiB": [f"{value:.0f}" for value in both["training_mib"]],
            "training, images/s": [f"{value:.0f}" for value in both["training"]],
            "classifying, images/s": [f"{value:.0f}" for value in both["classifying"]],
        }
    )
    if "gpu_mib" in both:
        table["GPU memory at most, MiB"] = [f"{value:.0f}" for value in both["gpu_mib"]]
    return table


def cost_caption(jobs: list[Job]) -> str:
    """Caption of `cost_table`."""
    job = jobs[0]
    low = "bfloat16 autocast" if job.settings[0].precision == "bf16" else "float32"
    threads = f"{job.threads} thread{'s' * (job.threads > 1)} per job"
    return f"Costs of the networks as trained here: {job.size} px; images/s in {low}, {threads}."


def cost_points(found: dict, spent: pd.DataFrame, speed: pd.DataFrame) -> pd.DataFrame:
    """Rows of `plots.ablation.accuracy_against_cost`; controls are left out."""
    rows = []
    for arm, row in spent.join(speed).iterrows():
        if arm in found and ARMS[arm].group != "controls":
            metric = {name: found[arm][MAIN][name] for name in ("value", "low", "high")}
            rows.append({"title": title(arm), "group": ARMS[arm].group, **metric, **row})
    return pd.DataFrame(rows).astype({"value": float, "low": float, "high": float})


def references(found: dict) -> dict[str, dict]:
    """Title -> metric of the arms that are no networks: lines in the figure of costs."""
    return {
        title(arm): metrics[MAIN]
        for arm, metrics in found.items()
        if ARMS[arm].group == "reference" and metrics[MAIN]["value"] is not None
    }


def gaze_table(numbers: dict[str, dict]) -> pd.DataFrame:
    """What each trained network looks at, in numbers.

    Args:
        numbers: of `gaze_numbers`.
    """
    return pd.DataFrame(
        [
            {
                "arm": title(arm),
                "effective receptive field, px a side": f"{own['field_side_px']:.0f}",
                "evenness of the gradient": f"{own['evenness']:.2f}",
                "reached by a gradient at the down-samplings": f"{own['reach']:.0%}"
                if "reach" in own
                else "–",
            }
            for arm, own in numbers.items()
        ]
    )


def control_table(found: dict) -> pd.DataFrame:
    """The controls: what came, what must come, and whether it did."""
    words = {True: "passed", False: "failed", None: "no number"}
    return pd.DataFrame(
        [
            {
                "control": title(arm),
                "what came": say(test, 3) if arm == "shuffled" else signed(test),
                "must hold": f"{test['expected']:g}",
                "outcome": words[test["passed"]],
            }
            for arm, test in found.items()
        ]
    )


def claim_table(found: dict) -> pd.DataFrame:
    """Every claimed effect with what was measured and the verdict."""
    rows = []
    for claim in found.values():
        known = claim.get("value") is not None
        came = f"{claim['multiple']:.2f} times" if "multiple" in claim else signed(claim) if known else "–"
        rows.append(
            {
                "claimed effect": claim["claim"],
                "measured by": claim["measured_by"],
                "what came": came,
                "p (Holm)": p_value(claim.get("p_holm")),
                "verdict": claim["verdict"],
                "because": claim["why"],
            }
        )
    return pd.DataFrame(rows)


def findings(found: dict, throughput: dict, failed: dict, scope: str, simulated: bool) -> str:
    """What notebook 06 found, in Markdown, every number from what it recorded or noted.

    Args:
        found: of `summary`. throughput: of `throughput_claim`. failed: job -> reason.
        scope: of `protocol`. simulated: phantoms.
    """
    tested, lines = found["tested"], []
    if simulated:
        lines.append(
            "All images here are **simulated**: what helps on phantoms need not help on patients, and the reverse."
        )
    lines.append(
        f"{len(found['arms'])} arms, {tested['trainings']} training{'s' * (tested['trainings'] > 1)} per arm and "
        f"fold, tested on {tested['images']} images of {tested['patients']} patients. {scope} What follows speaks of "
        "networks like these."
    )
    lines += [f"{job} was not finished and its arm is left out: {reason}" for job, reason in failed.items()]
    lines.append(_best(found["arms"]))
    lines += [_control(arm, test) for arm, test in found["controls"].items()]
    for claim in (found["claims"] | throughput).values():
        if claim["verdict"] == verdicts.NOT_TESTED:
            continue
        number = f"{claim['multiple']:.2f} times" if "multiple" in claim else signed(claim)
        lines.append(
            f"{claim['claim']}: **{claim['verdict']}** ({claim['measured_by']}: {number}; {claim['why']})."
        )
    left = [c["claim"] for c in found["claims"].values() if c["verdict"] == verdicts.NOT_TESTED]
    if left:
        lines.append(f"Not tested, because this grid lacks the arms: {'; '.join(left)}.")
    if found["training_noise"]["degrees_of_freedom"]:
        lines.append(
            "Two trainings of one arm differ by chance: standard deviation of the macro AUROC "
            f"{found['training_noise']['standard_deviation']:.3f}. It is part of every interval of a difference."
        )
    return "\n".join(f"* {line}" for line in lines)


def _best(arms: dict) -> str:
    known = {arm: m[MAIN] for arm, m in arms.items() if m[MAIN]["value"] is not None}
    if not known:
        reason = next(iter(arms.values()))[MAIN].get("reason", "no number")
        return f"No arm gets a number: {reason}."
    best = max(known, key=lambda arm: known[arm]["value"])
    text = f"Highest macro AUROC: {title(best)}, {say(known[best])}"
    beside = [arm for arm in ("invention", "original", "texture") if arm in known and arm != best]
    return "; ".join([text, *(f"{title(arm)}, {say(known[arm])}" for arm in beside)]) + "."


def _control(arm: str, test: dict) -> str:
    if test["passed"] is None:
        return f"Control, {title(arm)}: no number ({test.get('reason', 'undefined')})."
    came = say(test, 3) if arm == "shuffled" else signed(test)
    if test["passed"]:
        return f"Control, {title(arm)}: {came}; it holds {test['expected']:g}, as it must."
    return f"Control, {title(arm)}: **failed**, {came} does not hold {test['expected']:g}; no verdict below counts."


def signed(test: dict) -> str:
    """A difference with its interval and signs, or why there is none."""
    if test.get("value") is None:
        return say(test)
    return f"{test['value']:+.3f} ({test['low']:+.3f} to {test['high']:+.3f})"


def p_value(p: float | None) -> str:
    """A p value in words; "–" where there is none."""
    if p is None:
        return "–"
    return "< 0.001" if p < 0.001 else f"{p:.3f}"
