"""The ablation: which parts of the invention help (C15), and what the obvious alternatives give.

An arm is a network with a loss. Everything else (crops, folds, validation part, seeds, schedule, learning rates
tried, initialization) is the same for all arms. Arm x seed x fold is a job of its own (`ablation.jobs`); jobs run
side by side, on this machine or on a Dask cluster, and what they find does not depend on where.
`ablation.results` reads what they leave.
"""

from collections import Counter
from dataclasses import dataclass, field, replace
from itertools import product
from pathlib import Path

import joblib
import pandas as pd
import torch
import yaml

from thyroid_lib import network
from thyroid_lib.ablation.jobs import Job, initial_weights, run_job
from thyroid_lib.common import fingerprint
from thyroid_lib.common.jobs import run_jobs
from thyroid_lib.common.templates import TEMPLATES
from thyroid_lib.data.crops import Crops
from thyroid_lib.evaluation.predictions import read_predictions, write_predictions
from thyroid_lib.training import hardware, loop


@dataclass(frozen=True)
class Arm:
    """One arm of the grid.

    Attributes:
        title: in texts. group: "parts", "losses", "peers", "reference" or "controls".
        model: for `network.build`, without what all arms share; empty for a reference that is no network.
        loss: "mixed", "ce" or "focal".
        shuffled: learns from shuffled labels. seed_offset: added to its seeds.
    """

    title: str
    group: str
    model: dict = field(default_factory=dict)
    loss: str = "mixed"
    shuffled: bool = False
    seed_offset: int = 0


_FILE = TEMPLATES / "ablation" / "arms.yaml"
ARMS = {name: Arm(**about) for name, about in yaml.safe_load(_FILE.read_text(encoding="utf-8")).items()}
"""Every arm by name, in the order of tables and figures."""


def chosen(names: list[str]) -> list[str]:
    """Names of arms, groups ("parts", "peers", ...) or "all" as names of arms, in the order of `ARMS`.

    Raises:
        ValueError: a name is none of them, or there is no arm.
    """
    known = {word for name, arm in ARMS.items() for word in ("all", arm.group, name)}
    if strangers := [name for name in names if name not in known]:
        raise ValueError(
            f"arms: expected names among {', '.join(sorted(known))}; came {', '.join(map(repr, strangers))}"
        )
    if not names:
        raise ValueError("arms: expected at least one arm, came an empty list")
    return [name for name, arm in ARMS.items() if {"all", arm.group, name} & {*names}]


def configuration(name: str, *, classes: int, width: float, middle_blocks: int) -> dict:
    """An arm's network, complete, for `network.build`; {} for one that is no network."""
    arm = ARMS[name]
    if not arm.model:
        return {}
    shared = {"num_classes": classes, "in_chans": 1, "width": width}
    if arm.model["name"] != "peer":
        shared["middle_blocks"] = middle_blocks
    with torch.device("meta"):
        return network.build(shared | arm.model).config


def grid(
    arms: list[str],
    base: loop.Settings,
    *,
    data: Path,
    folder: Path,
    size: int,
    width: float,
    middle_blocks: int,
    folds: int,
    seeds: int,
    lrs: list[float],
    validation: float,
    initial: str = "",
) -> list[Job]:
    """The jobs of a grid; only what differs between arms differs between jobs.

    Args:
        arms: names of `ARMS`.
        base: settings of every training; model, loss, lr and seed are set by the job. A precision of "auto" is
            decided once, for all.
        data: folder of crops with folds. folder: for results.
        size: px, side at which the crops are used. width, middle_blocks: of the networks.
        folds: how many of the folds to test in turn. seeds: trainings per arm and fold.
        lrs: learning rates that every network tries.
        validation: share of the other patients that chooses epoch, learning rate and operating points.
        initial: "" for random weights; "hub" or a folder for ImageNet weights, for all networks or for none.

    Returns:
        Jobs in the order seed, fold, arm.

    Raises:
        ValueError: there are not that many folds, or no ImageNet weights for an arm.
    """
    crops = Crops.open(data)
    there = sorted(crops.index["fold"].unique()) if "fold" in crops.index else []
    if not 1 <= folds <= len(there) or seeds < 1 or not lrs:
        raise ValueError(
            f"expected 1 to {len(there)} folds, at least one seed and one learning rate; came folds={folds}, "
            f"seeds={seeds}, lrs={lrs}"
        )
    shape = {"classes": len(crops.classes), "width": width, "middle_blocks": middle_blocks}
    models = {name: configuration(name, **shape) for name in arms}
    if base.precision == "auto":
        base = replace(base, precision=decide_precision(models, size))
    base = replace(base, threads=max(1, base.threads))
    hashes = {}
    for name, model in models.items():
        start, _ = initial_weights(model, initial)
        hashes[name] = start and fingerprint.digest(start)
    jobs = []
    for seed, fold, (name, model) in product(range(seeds), there[:folds], models.items()):
        arm = ARMS[name]
        own = replace(base, model=model, loss=arm.loss, seed=base.seed + seed + arm.seed_offset)
        job = Job(
            arm=name, settings=tuple(replace(own, lr=float(lr)) for lr in lrs), shuffled=arm.shuffled, seed=seed,
            fold=int(fold), data=str(Path(data).resolve()), data_hash=crops.hash, size=size, validation=validation,
            split_seed=base.seed, initial=initial, initial_hash=hashes[name], root=str(Path(folder).resolve()),
        )  # fmt: skip
        jobs.append(job)
    return jobs


def decide_precision(models: dict[str, dict], size: int) -> str:
    """ "32" or "bf16" for all arms alike: what `hardware.choose_precision` says of the first network."""
    config = next((model for model in models.values() if model), None)
    if config is None:
        return "32"
    with torch.random.fork_rng():
        model = network.build(config)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return "bf16" if hardware.choose_precision("auto", device, model, size)[0].startswith("bf16") else "32"


def run(jobs: list[Job], *, parallel: int = 1, cluster: str = "") -> tuple[list[Job], dict[str, str]]:
    """Does what is left of a grid.

    Args:
        jobs: of `grid`.
        parallel: jobs at a time on this machine, no more than the cores allow with the jobs' threads; -1 for as
            many as these. The results do not depend on it.
        cluster: "" for this machine; "local:N" or a Dask scheduler's address, whose workers see the same folders.

    Returns:
        The jobs that are done, in their order, and those that could not be finished with the reason.
    """
    waiting = [job for job in jobs if not job.done]
    possible = max(1, joblib.cpu_count() // jobs[0].settings[0].threads)
    count = min(parallel, possible) if parallel > 0 else possible
    silent = count > 1 or bool(cluster)
    calls = [
        {"job": job, "title": f"ablation: job {number} of {len(waiting)}, {job}", "silent": silent}
        for number, job in enumerate(waiting, 1)
    ]
    where = {"parallel": count, "cluster": cluster if waiting else ""}
    problems = run_jobs(run_job, calls, title="ablation, jobs", **where)
    failed = {str(job): problem for job, problem in zip(waiting, problems) if problem}
    return [job for job in jobs if job.done], failed


def collect(jobs: list[Job], path: Path) -> pd.DataFrame:
    """Writes the predictions of all jobs as one file and reads it back: statistics start from there.

    Arms that lack a job are left out: their rows would not be comparable.

    Args:
        jobs: that are done, of `run`. path: of the file, in the form of predictions.csv, model "<arm>/seed<k>".

    Raises:
        ValueError: no arm is complete.
    """
    counts = Counter(job.arm for job in jobs)
    whole = len({(job.seed, job.fold) for job in jobs})
    tables = [job.predictions for job in jobs if counts[job.arm] == whole]
    if not tables:
        raise ValueError("collect: expected at least one arm with all of its jobs done, there is none")
    return read_predictions(write_predictions(tables, path))
