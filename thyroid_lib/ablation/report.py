"""What notebook 06 records and notes: results, differences, costs, gazes, controls and verdicts of a whole grid."""

import numpy as np
import pandas as pd

from thyroid_lib.ablation import verdicts
from thyroid_lib.ablation.grid import ARMS, configuration
from thyroid_lib.ablation.jobs import Job, Result
from thyroid_lib.ablation.results import Measured, differences, per_arm, training_noise
from thyroid_lib.ablation.words import title
from thyroid_lib.inspection import costs, structure

PUBLISHED_SIZE = 299
"""px: the side of Xception's images, at which costs at full width are told beside the grid's own."""


def summary(measured: Measured, results: list[Result], spent: pd.DataFrame, options: dict) -> dict:
    """Everything notebook 06 records: the same in every run of the same grid.

    Args:
        measured: of `ablation_results.measure`. results: of `ablation.run`.
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
    if not {"original", "invention"} <= {*spent.index}:
        return {}
    limit, own = options["limit"], spent["gmacs"]
    found = {
        "compute": verdicts.compute(
            own["invention"], own["original"], limit=limit, what="multiplications, as in this grid"
        )
    }
    full = {
        arm: configuration(arm, classes=options["classes"], width=1.0, middle_blocks=8)
        for arm in ("original", "invention")
    }
    gmacs = structure.costs(full, PUBLISHED_SIZE).set_index("variant")["gmacs"]
    found["compute_published"] = verdicts.compute(
        gmacs["invention"],
        gmacs["original"],
        limit=limit,
        what=f"multiplications at full width and {PUBLISHED_SIZE} px",
    )
    return found


def throughput_claim(speed: pd.DataFrame, limit: float) -> dict:
    """Verdict on throughput: a note of this machine, not a result that another run must repeat."""
    if not {"original", "invention"} <= {*speed.index}:
        return {}
    rate = 1 / speed["training"]
    what = "training time per image, on this machine"
    return {"throughput": verdicts.compute(rate["invention"], rate["original"], limit=limit, what=what)}


def _networks(jobs: list[Job]) -> dict[str, dict]:
    return {job.arm: job.model for job in jobs if job.model}


def _once(jobs: list[Job], measure) -> pd.DataFrame:
    """A table over arms of what depends on the network alone; networks that several arms share are measured once."""
    models, first = _networks(jobs), {}
    for arm, model in models.items():
        first.setdefault(repr(sorted(model.items())), arm)
    owner = {arm: first[repr(sorted(model.items()))] for arm, model in models.items()}
    table = measure({arm: models[arm] for arm in dict.fromkeys(owner.values())})
    table = table.loc[list(owner.values())]
    table.index = pd.Index(owner, name="arm")
    return table


def computed_costs(jobs: list[Job]) -> pd.DataFrame:
    """`costs.table` of the arms' networks as the jobs train them."""
    job = jobs[0]
    return _once(jobs, lambda models: costs.table(models, job.size, job.settings[0].batch_size))


def measured_speed(jobs: list[Job], rounds: int = 3) -> pd.DataFrame:
    """`costs.throughput` of the arms' networks, with the jobs' batch, threads and precision."""
    job = jobs[0]
    settings = job.settings[0]
    return _once(
        jobs,
        lambda models: costs.throughput(
            models,
            job.size,
            batch_size=settings.batch_size,
            threads=job.threads,
            precision=settings.precision,
            rounds=rounds,
        ),
    )


def gaze_numbers(results: list[Result]) -> dict[str, dict]:
    """Arm -> mean over its jobs of what `probes` found: field_side_px, evenness, and reach for our networks."""
    found: dict[str, dict] = {}
    for arm in ARMS:
        own = [result.facts["gaze"] for result in results if result.job.arm == arm and "gaze" in result.facts]
        if own:
            names = [name for name in own[0] if own[0][name] is not None]
            found[arm] = {name: float(f"{np.mean([g[name] for g in own]):.6g}") for name in names}
    return found


def gaze_maps(results: list[Result]) -> dict[str, dict[str, np.ndarray]]:
    """Title -> mean maps over the arm's jobs, largest 1; losses and controls are left out: the same networks."""
    found = {}
    for arm in ARMS:
        own = [result.maps for result in results if result.job.arm == arm and result.maps]
        if own and ARMS[arm].group not in ("losses", "controls"):
            means = {name: np.mean([maps[name] for maps in own], axis=0) for name in own[0]}
            found[title(arm)] = {name: field / max(field.max(), 1e-12) for name, field in means.items()}
    return found


def notes(results: list[Result], failed: dict, speed: pd.DataFrame, claim: dict, seconds: float) -> dict:
    """What differs from run to run, for run.json: times, throughput, devices."""
    per_job = {
        str(result.job): {
            "seconds": round(result.facts["seconds"], 1),
            "images_per_second": round(result.facts["images_per_second"], 1),
            "device": result.facts["device"],
        }
        for result in results
        if "seconds" in result.facts
    }
    origins = {r.job.arm: r.facts["initial_weights"] for r in results if r.facts.get("initial_weights")}
    return {
        "jobs": per_job,
        "initial_weights": origins,
        "failed": failed,
        "seconds_of_this_start": round(seconds, 1),
        "images_per_second": {arm: {k: round(v, 1) for k, v in row.items()} for arm, row in speed.iterrows()},
        "throughput": claim,
    }
