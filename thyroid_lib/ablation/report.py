"""What notebook 06 records, notes and shows of a whole grid: numbers, tables and rows of figures."""

import numpy as np
import pandas as pd
import yaml

from thyroid_lib.ablation import verdicts
from thyroid_lib.ablation.grid import ARMS, configuration
from thyroid_lib.ablation.jobs import Job, threads
from thyroid_lib.ablation.results import MAIN, Measured, differences, per_arm, training_noise
from thyroid_lib.common.messages import english, say
from thyroid_lib.common.templates import TEMPLATES, render
from thyroid_lib.inspection import costs, structure

PUBLISHED_SIZE = 299
"""px: the side of Xception's images, at which costs at full width are told beside the grid's own."""
TITLES = {name: arm.title for name, arm in ARMS.items()}
"""What texts and figures call an arm."""
TABLES = yaml.safe_load((TEMPLATES / "ablation" / "tables.yaml").read_text(encoding="utf-8"))
"""Table -> column of its numbers -> title, and how a number is written."""


def summary(measured: Measured, jobs: list[Job], spent: pd.DataFrame, options: dict) -> dict:
    """Everything notebook 06 records: the same in every run of the same grid.

    Args:
        measured: of `results.measure`. jobs: that are done, of `grid.run`.
        spent: of `computed_costs`. options: margin, limit and classes.
    """
    (noise, freedom), rests = training_noise(measured), measured.rests_on
    trainings = max(len(drawn[MAIN]) for drawn in measured.draws.values())
    return {
        "tested": {"images": rests["n_images"], "patients": rests["n_patients"], "trainings": trainings},
        "arms": {arm: per_arm(measured, arm) for arm in measured.arms},
        "training_noise": {"standard_deviation": noise**0.5, "degrees_of_freedom": freedom},
        "difference": {f"minus_{to}": differences(measured, to) for to in ("original", "invention")},
        "costs": {arm: dict(row) for arm, row in spent.iterrows()},
        "gaze": gaze_numbers(jobs),
        "controls": verdicts.controls(measured),
        "claims": verdicts.claims(measured, margin=options["margin"]) | compute_claims(spent, options),
    }


def compute_claims(spent: pd.DataFrame, options: dict) -> dict:
    """Verdicts on compute: multiplications in this grid and at the published size; {} without both networks."""
    full = {"classes": options["classes"], "width": 1.0, "middle_blocks": 8}
    models = {arm: configuration(arm, **full) for arm in ("original", "invention")}
    published = structure.costs(models, PUBLISHED_SIZE).set_index("variant")["gmacs"]
    costs = {"compute": spent["gmacs"], "compute_published": published.reindex(spent.index)}
    return verdicts.compute(pd.DataFrame(costs), limit=options["limit"])


def throughput_claim(speed: pd.DataFrame, limit: float) -> dict:
    """Verdict on throughput: a note of this machine, not a result that another run must repeat."""
    return verdicts.compute(pd.DataFrame({"throughput": 1 / speed["training"]}), limit=limit)


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
    with threads(settings.threads):
        return _once(jobs, lambda models: costs.throughput(models, job.size, **how))


def _by_arm(jobs: list[Job]) -> dict[str, list[Job]]:
    """Jobs of the networks by arm, in the order of `ARMS`."""
    return {arm: own for arm in ARMS if (own := [job for job in jobs if job.arm == arm and job.model])}


def gaze_numbers(jobs: list[Job]) -> dict[str, dict]:
    """Arm -> mean over its jobs of what `probes` found: field_side_px, evenness, and reach for our networks."""
    found = {}
    for arm, own in _by_arm(jobs).items():
        means = pd.DataFrame([job.facts["gaze"] for job in own], dtype=float).mean().dropna()
        found[arm] = {name: float(f"{mean:.6g}") for name, mean in means.items()}
    return found


def gaze_maps(jobs: list[Job]) -> dict[str, dict[str, np.ndarray]]:
    """Title -> mean maps over the arm's jobs, largest 1; losses and controls are left out: the same networks."""
    found = {}
    for arm, own in _by_arm(jobs).items():
        if ARMS[arm].group not in ("losses", "controls"):
            means = {name: np.mean([job.maps[name] for job in own], axis=0) for name in own[0].maps}
            found[TITLES[arm]] = {name: field / max(field.max(), 1e-12) for name, field in means.items()}
    return found


def notes(jobs: list[Job], failed: dict, speed: pd.DataFrame, claim: dict, seconds: float) -> dict:
    """What differs from run to run, for run.json: times, throughput, devices."""
    trained = [job for job in jobs if job.model]
    measured = ("seconds", "images_per_second", "device")
    origins = {job.arm: job.facts["initial_weights"] for job in trained}
    return {
        "jobs": {str(job): {name: job.facts[name] for name in measured} for job in trained},
        "initial_weights": {arm: origin for arm, origin in origins.items() if origin},
        "failed": failed,
        "seconds_of_this_start": round(seconds, 1),
        "images_per_second": speed.round(1).to_dict("index"),
        "throughput": claim,
    }


def _table(name: str, numbers: pd.DataFrame, **words) -> pd.DataFrame:
    """The columns of a table of `TABLES` that there are, titled and written as it says; words stand in titles."""
    shown = {column: how for column, how in TABLES[name].items() if column in numbers}
    return pd.DataFrame(
        {
            title.format(**words): numbers[column].map(text.format, na_action="ignore")
            for column, (title, text) in shown.items()
        }
    )


def arm_table(jobs: list[Job]) -> pd.DataFrame:
    """The arms of a grid: what is special about each, its loss, and how many jobs it has."""
    counts = pd.Series([job.arm for job in jobs]).value_counts(sort=False)
    arms = pd.DataFrame([vars(ARMS[arm]) for arm in counts.index]).assign(arm=counts.index, jobs=counts.array)
    losses = arms["loss"].replace("ce", "cross-entropy").where(arms["model"].astype(bool), "–")
    return _table("arms", arms.assign(loss=losses))


def metric_table(found: dict, watched: list[str], names: dict) -> pd.DataFrame:
    """Per arm: discrimination, sensitivity for the watched types, calibration; mean over trainings.

    Args:
        found: arm -> metrics. watched: class keys. names: class key -> (English, Chinese).
    """
    columns = {"macro AUROC": MAIN}
    columns |= {f"sensitivity, {english(names, key)}": f"sensitivity/{key}" for key in watched}
    columns |= {"calibration error": "ece_classwise", "Brier score": "brier"}
    said = {title: [say(own[name]) for own in found.values()] for title, name in columns.items()}
    table = pd.DataFrame(said, index=pd.Index([TITLES[arm] for arm in found], name="arm"))
    each = [", ".join(f"{value:.2f}" for value in own[MAIN]["trainings"]) or "–" for own in found.values()]
    table.insert(1, "each training", each)
    return table


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


def _candidates(spent: pd.DataFrame, speed: pd.DataFrame) -> pd.DataFrame:
    """Computed and measured costs, with title and group; without the controls, which cost what they copy."""
    table = spent.join(speed)
    table = table.assign(title=table.index.map(TITLES), group=[ARMS[arm].group for arm in table.index])
    return table[table["group"] != "controls"]


def cost_table(spent: pd.DataFrame, speed: pd.DataFrame, batch_size: int) -> pd.DataFrame:
    """Parameters, multiplications, memory and images per second of every network; controls are left out.

    Args:
        spent: of `computed_costs`. speed: of `measured_speed`. batch_size: of the training step.
    """
    both = _candidates(spent, speed).assign(millions=spent["parameters"] / 1e6)
    return _table("costs", both, batch_size=batch_size).rename(index=TITLES)


def cost_points(found: dict, spent: pd.DataFrame, speed: pd.DataFrame) -> pd.DataFrame:
    """Rows of `plots.ablation.accuracy_against_cost`; controls are left out."""
    metrics = pd.DataFrame({arm: own[MAIN] for arm, own in found.items()}).T[["value", "low", "high"]]
    return _candidates(spent, speed).join(metrics.astype(float), how="inner")


def references(found: dict) -> dict[str, dict]:
    """Title -> metric of the arms that are no networks: lines in the figure of costs."""
    known = [arm for arm in found if ARMS[arm].group == "reference" and found[arm][MAIN]["value"] is not None]
    return {TITLES[arm]: found[arm][MAIN] for arm in known}


def gaze_table(numbers: dict[str, dict]) -> pd.DataFrame:
    """What each trained network looks at, in numbers.

    Args:
        numbers: of `gaze_numbers`.
    """
    return _table("gaze", pd.DataFrame(numbers).T.rename(index=TITLES).rename_axis("arm"))


def control_table(found: dict) -> pd.DataFrame:
    """The controls: what came, what must come, and whether it did."""
    table = pd.DataFrame(found.values()).assign(title=[TITLES[arm] for arm in found])
    outcome = table["passed"].map({True: "passed", False: "failed", None: "no number"})
    return _table("controls", table.assign(came=[*map(came, found.values())], outcome=outcome))


def claim_table(found: dict) -> pd.DataFrame:
    """Every claimed effect with what was measured and the verdict."""
    tests = [claim | {"came": came(claim), "p": p_value(claim.get("p_holm"))} for claim in found.values()]
    return _table("claims", pd.DataFrame(tests))


def findings(found: dict, throughput: dict, failed: dict, jobs: list[Job], simulated: bool) -> str:
    """What notebook 06 found, in Markdown, every number from what it recorded or noted.

    Args:
        found: of `summary`. throughput: of `throughput_claim`. failed: job -> reason.
        jobs: of `grid.grid`. simulated: phantoms.
    """
    found = found | {"claims": found["claims"] | throughput, "failed": failed, "simulated": simulated}
    return render("ablation/findings.md.j2", **found, jobs=jobs, titles=TITLES, came=came)


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
