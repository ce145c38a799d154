"""What notebook 06 records, notes and shows of a whole grid: numbers, tables and rows of figures."""

import numpy as np
import pandas as pd

from thyroid_lib.ablation import verdicts
from thyroid_lib.ablation.grid import ARMS, configuration
from thyroid_lib.ablation.jobs import Job, Result, threads
from thyroid_lib.ablation.results import MAIN, Measured, differences, per_arm, training_noise
from thyroid_lib.common.messages import english, say
from thyroid_lib.common.templates import render
from thyroid_lib.inspection import costs, structure

PUBLISHED_SIZE = 299
"""px: the side of Xception's images, at which costs at full width are told beside the grid's own."""
TITLES = {name: arm.title for name, arm in ARMS.items()}
"""What texts and figures call an arm."""


def summary(measured: Measured, results: list[Result], spent: pd.DataFrame, options: dict) -> dict:
    """Everything notebook 06 records: the same in every run of the same grid.

    Args:
        measured: of `results.measure`. results: of `grid.run`.
        spent: of `computed_costs`. options: margin, limit and classes.
    """
    noise, freedom = training_noise(measured)
    return {
        "tested": {"images": measured.images, "patients": measured.patients, "trainings": measured.seeds},
        "arms": {arm: per_arm(measured, arm) for arm in measured.arms},
        "training_noise": {"standard_deviation": noise**0.5, "degrees_of_freedom": freedom},
        "difference": {f"minus_{to}": differences(measured, to) for to in ("original", "invention")},
        "costs": {arm: dict(row) for arm, row in spent.iterrows()},
        "gaze": gaze_numbers(results),
        "controls": verdicts.controls(measured),
        "claims": verdicts.claims(measured, margin=options["margin"]) | compute_claims(spent, options),
    }


def compute_claims(spent: pd.DataFrame, options: dict) -> dict:
    """Verdicts on compute: multiplications in this grid and at the published size; {} without both networks."""
    both, limit = ["original", "invention"], options["limit"]
    if not {*both} <= {*spent.index}:
        return {}
    full = {arm: configuration(arm, classes=options["classes"], width=1.0, middle_blocks=8) for arm in both}
    published = structure.costs(full, PUBLISHED_SIZE).set_index("variant")["gmacs"]
    there = f"multiplications at full width and {PUBLISHED_SIZE} px"
    return {
        "compute": verdicts.compute(spent["gmacs"], limit=limit, what="multiplications, as in this grid"),
        "compute_published": verdicts.compute(published, limit=limit, what=there),
    }


def throughput_claim(speed: pd.DataFrame, limit: float) -> dict:
    """Verdict on throughput: a note of this machine, not a result that another run must repeat."""
    if not {"original", "invention"} <= {*speed.index}:
        return {}
    what = "training time per image, on this machine"
    return {"throughput": verdicts.compute(1 / speed["training"], limit=limit, what=what)}


def _once(jobs: list[Job], measure) -> pd.DataFrame:
    """A table over arms of what depends on the network alone; networks that several arms share are measured once."""
    models = {job.arm: job.model for job in jobs if job.model}
    like = {arm: next(first for first in models if models[first] == models[arm]) for arm in models}
    table = measure({arm: models[arm] for arm in like.values()})
    return table.loc[[*like.values()]].set_axis([*like]).rename_axis("arm")


def computed_costs(jobs: list[Job]) -> pd.DataFrame:
    """`costs.table` of the arms' networks as the jobs train them."""
    size, batch_size = jobs[0].size, jobs[0].settings[0].batch_size
    return _once(jobs, lambda models: costs.table(models, size, batch_size))


def measured_speed(jobs: list[Job], rounds: int = 3) -> pd.DataFrame:
    """`costs.throughput` of the arms' networks, with the jobs' batch, threads and precision."""
    job, settings = jobs[0], jobs[0].settings[0]
    how = {"batch_size": settings.batch_size, "precision": settings.precision, "rounds": rounds}
    with threads(job.threads):
        return _once(jobs, lambda models: costs.throughput(models, job.size, **how))


def _by_arm(results: list[Result]) -> dict[str, list[Result]]:
    """Results of the networks by arm, in the order of `ARMS`."""
    return {arm: own for arm in ARMS if (own := [r for r in results if r.job.arm == arm and r.job.model])}


def gaze_numbers(results: list[Result]) -> dict[str, dict]:
    """Arm -> mean over its jobs of what `probes` found: field_side_px, evenness, and reach for our networks."""
    found = {}
    for arm, own in _by_arm(results).items():
        known = [name for name, value in own[0].facts["gaze"].items() if value is not None]
        means = {name: np.mean([result.facts["gaze"][name] for result in own]) for name in known}
        found[arm] = {name: float(f"{mean:.6g}") for name, mean in means.items()}
    return found


def gaze_maps(results: list[Result]) -> dict[str, dict[str, np.ndarray]]:
    """Title -> mean maps over the arm's jobs, largest 1; losses and controls are left out: the same networks."""
    found = {}
    for arm, own in _by_arm(results).items():
        if ARMS[arm].group not in ("losses", "controls"):
            means = {name: np.mean([result.maps[name] for result in own], axis=0) for name in own[0].maps}
            found[TITLES[arm]] = {name: field / max(field.max(), 1e-12) for name, field in means.items()}
    return found


def notes(results: list[Result], failed: dict, speed: pd.DataFrame, claim: dict, seconds: float) -> dict:
    """What differs from run to run, for run.json: times, throughput, devices."""
    trained = [result for own in _by_arm(results).values() for result in own]
    measured = ("seconds", "images_per_second", "device")
    origins = {result.job.arm: result.facts["initial_weights"] for result in trained}
    return {
        "jobs": {str(result.job): {name: result.facts[name] for name in measured} for result in trained},
        "initial_weights": {arm: origin for arm, origin in origins.items() if origin},
        "failed": failed,
        "seconds_of_this_start": round(seconds, 1),
        "images_per_second": speed.round(1).to_dict("index"),
        "throughput": claim,
    }


def metric_table(found: dict, watched: list[str], names: dict) -> pd.DataFrame:
    """Per arm: discrimination, sensitivity for the watched types, calibration; mean over trainings.

    Args:
        found: arm -> metrics. watched: class keys. names: class key -> (English, Chinese).
    """
    columns = {"macro AUROC": MAIN}
    columns |= {f"sensitivity, {english(names, key)}": f"sensitivity/{key}" for key in watched}
    columns |= {"calibration error": "ece_classwise", "Brier score": "brier"}
    table = pd.DataFrame(found).T.apply(lambda metrics: metrics.map(say))[[*columns.values()]]
    each = [", ".join(f"{value:.2f}" for value in own[MAIN]["trainings"]) or "–" for own in found.values()]
    table.columns = [*columns]
    table.insert(1, "each training", each)
    return table.rename(index=TITLES).rename_axis("arm")


def arm_rows(found: dict) -> list[dict]:
    """Rows of `plots.ablation.arms`."""
    return [
        {"title": TITLES[arm], "group": ARMS[arm].group, "metric": own[MAIN]} for arm, own in found.items()
    ]


def difference_rows(found: dict) -> list[tuple[str, str, dict]]:
    """Rows of `plots.evaluation.forest`: differences in macro AUROC to the original and to the invention.

    Args:
        found: "minus_<arm>" -> metric -> arm -> contrast.
    """
    return [
        (f"minus the {to.removeprefix('minus_')}", TITLES[arm], test)
        for to, metrics in found.items()
        for arm, test in metrics.get(MAIN, {}).items()
    ]


def difference_table(found: dict) -> pd.DataFrame:
    """`difference_rows` as a table, with p values corrected by Holm."""
    columns: dict[str, dict] = {}
    for to, title, test in difference_rows(found):
        columns.setdefault(to, {})[title] = came(test)
        columns.setdefault(f"p (Holm), {to.removeprefix('minus the ')}", {})[title] = p_value(test["p_holm"])
    table = pd.DataFrame(columns).fillna("–").rename_axis("arm")
    return table.loc[[title for title in TITLES.values() if title in table.index]]


def cost_table(spent: pd.DataFrame, speed: pd.DataFrame, batch_size: int) -> pd.DataFrame:
    """Parameters, multiplications, memory and images per second of every network; controls cost what they copy.

    Args:
        spent: of `computed_costs`. speed: of `measured_speed`. batch_size: of the training step.
    """
    both = spent.join(speed)
    both = both[[ARMS[arm].group != "controls" for arm in both.index]].rename(index=TITLES)
    shown = {
        "parameters": ("parameters, millions", lambda value: f"{value / 1e6:.2f}"),
        "gmacs": ("GMACs per image", "{:.3g}".format),
        "training_mib": (f"memory of a step of {batch_size}, MiB", "{:.0f}".format),
        "training": ("training, images/s", "{:.0f}".format),
        "classifying": ("classifying, images/s", "{:.0f}".format),
        "gpu_mib": ("GPU memory at most, MiB", "{:.0f}".format),
    }
    return pd.DataFrame({title: both[name].map(how) for name, (title, how) in shown.items() if name in both})


def cost_points(found: dict, spent: pd.DataFrame, speed: pd.DataFrame) -> pd.DataFrame:
    """Rows of `plots.ablation.accuracy_against_cost`; controls are left out."""
    rows = [
        {"title": TITLES[arm], "group": ARMS[arm].group, **found[arm][MAIN], **row}
        for arm, row in spent.join(speed).iterrows()
        if arm in found and ARMS[arm].group != "controls"
    ]
    return pd.DataFrame(rows).astype({"value": float, "low": float, "high": float})


def references(found: dict) -> dict[str, dict]:
    """Title -> metric of the arms that are no networks: lines in the figure of costs."""
    known = [arm for arm in found if ARMS[arm].group == "reference" and found[arm][MAIN]["value"] is not None]
    return {TITLES[arm]: found[arm][MAIN] for arm in known}


def gaze_table(numbers: dict[str, dict]) -> pd.DataFrame:
    """What each trained network looks at, in numbers.

    Args:
        numbers: of `gaze_numbers`.
    """
    shown = {
        "field_side_px": ("effective receptive field, px a side", "{:.0f}".format),
        "evenness": ("evenness of the gradient", "{:.2f}".format),
        "reach": ("reached by a gradient at the down-samplings", "{:.0%}".format),
    }
    table = pd.DataFrame(numbers).T.rename(index=TITLES).rename_axis("arm")
    return pd.DataFrame(
        {title: table[name].map(how, na_action="ignore") for name, (title, how) in shown.items()}
    )


def control_table(found: dict) -> pd.DataFrame:
    """The controls: what came, what must come, and whether it did."""
    words = {True: "passed", False: "failed", None: "no number"}
    return pd.DataFrame(
        {
            "control": [TITLES[arm] for arm in found],
            "what came": map(came, found.values()),
            "must hold": [f"{test['expected']:g}" for test in found.values()],
            "outcome": [words[test["passed"]] for test in found.values()],
        }
    )


def claim_table(found: dict) -> pd.DataFrame:
    """Every claimed effect with what was measured and the verdict."""
    return pd.DataFrame(
        {
            "claimed effect": claim["claim"],
            "measured by": claim["measured_by"],
            "what came": came(claim),
            "p (Holm)": p_value(claim.get("p_holm")),
            "verdict": claim["verdict"],
            "because": claim["why"],
        }
        for claim in found.values()
    )


def findings(found: dict, throughput: dict, failed: dict, jobs: list[Job], simulated: bool) -> str:
    """What notebook 06 found, in Markdown, every number from what it recorded or noted.

    Args:
        found: of `summary`. throughput: of `throughput_claim`. failed: job -> reason.
        jobs: of `grid.grid`. simulated: phantoms.
    """
    known = {arm: own[MAIN] for arm, own in found["arms"].items() if own[MAIN]["value"] is not None}
    first = max(known, key=lambda arm: known[arm]["value"], default=None)
    best = dict.fromkeys(arm for arm in (first, "invention", "original", "texture") if arm in known)
    return render(
        "ablation/findings.md.j2",
        **found | {"claims": found["claims"] | throughput},
        best=[(TITLES[arm], known[arm]) for arm in best],
        failed=failed,
        jobs=jobs,
        simulated=simulated,
        titles=TITLES,
        came=came,
    )


def came(test: dict) -> str:
    """What a contrast, a control or a cost came to, in words, or why there is no number."""
    if "multiple" in test:
        return f"{test['multiple']:.2f} times"
    if test.get("value") is None or test.get("expected"):
        return say(test, 3)
    return "{value:+.3f} ({low:+.3f} to {high:+.3f})".format(**test)


def p_value(p: float | None) -> str:
    """A p value in words; "–" where there is none."""
    if p is None:
        return "–"
    return "< 0.001" if p < 0.001 else f"{p:.3f}"
