"""The ablation: which parts of the invention help (C15), and what the obvious alternatives give.

An arm is a network with a loss. Everything else (crops, folds, validation part, seeds, schedule, learning rates
tried, initialization) is the same for all arms. Arm x seed x fold is a job of its own (`ablation_jobs`); jobs run
side by side, on this machine or on a Dask cluster, and what they find does not depend on where. `ablation_results`
reads what they leave.
"""

import math
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import pandas as pd
import torch

from thyroid_lib import network
from thyroid_lib.ablation.jobs import Job, Result, initial_weights, load, run_job
from thyroid_lib.common import fingerprint
from thyroid_lib.common.jobs import backend
from thyroid_lib.common.progress import status
from thyroid_lib.data.crops import Crops
from thyroid_lib.evaluation.predictions import read_predictions, write_predictions
from thyroid_lib.layers import peers
from thyroid_lib.training import hardware, loop

OTHER_SEED = 1000
"""Added to the seeds of the arm that repeats the invention under another name."""


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


_ORIGINAL, _INVENTION = {"name": "xception"}, {"name": "optimized_xception"}
_DILATED = _INVENTION | {"dense_connections": False}
_CONNECTED = _INVENTION | {"downsampling": "max_pool"}

ARMS = {
    "original": Arm("Xception, the original", "parts", _ORIGINAL),
    "dilated": Arm("+ dilated down-sampling", "parts", _DILATED),
    "dilated_2": Arm("+ dilated, dilation 2", "parts", _DILATED | {"dilation": 2}),
    "dilated_depthwise": Arm("+ dilated, depthwise", "parts", _DILATED | {"downsampling": "depthwise"}),
    "dilated_dense": Arm("+ dilated, dense", "parts", _DILATED | {"downsampling": "dense"}),
    "connected": Arm("+ dense connections", "parts", _CONNECTED),
    "connected_three_way": Arm(
        "+ dense connections, three-way", "parts", _CONNECTED | {"second_connection": "three_way"}
    ),
    "invention": Arm("both: the invention", "parts", _INVENTION),
    "original_ce": Arm("Xception, cross-entropy", "losses", _ORIGINAL, "ce"),
    "original_focal": Arm("Xception, focal loss", "losses", _ORIGINAL, "focal"),
    "invention_ce": Arm("invention, cross-entropy", "losses", _INVENTION, "ce"),
    "invention_focal": Arm("invention, focal loss", "losses", _INVENTION, "focal"),
    **{
        name: Arm(facts.title, "peers", {"name": "peer", "architecture": name})
        for name, facts in peers.PEERS.items()
    },
    "texture": Arm("logistic regression on texture", "reference"),
    "shuffled": Arm("invention, shuffled labels", "controls", _INVENTION, shuffled=True),
    "again": Arm("invention, other seeds", "controls", _INVENTION, seed_offset=OTHER_SEED),
}
"""Every arm by name. The loss is the mixed one where the title names no other."""

GROUPS = tuple(dict.fromkeys(arm.group for arm in ARMS.values()))


def chosen(names: list[str]) -> list[str]:
    """Names of arms, groups ("parts", "peers", ...) or "all" as names of arms, in the order of `ARMS`.

    Raises:
        ValueError: a name is none of them, or there is no arm.
    """
    known = {"all": list(ARMS)} | {g: [n for n, arm in ARMS.items() if arm.group == g] for g in GROUPS}
    known |= {name: [name] for name in ARMS}
    if strangers := [name for name in names if name not in known]:
        raise ValueError(
            f"arms: expected names among {', '.join(known)}; came {', '.join(map(repr, strangers))}"
        )
    wanted = {arm for name in names for arm in known[name]}
    if not wanted:
        raise ValueError("arms: expected at least one arm, came an empty list")
    return [name for name in ARMS if name in wanted]


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
    models = {
        name: configuration(name, classes=len(crops.classes), width=width, middle_blocks=middle_blocks)
        for name in arms
    }
    if base.precision == "auto":
        base = replace(base, precision=decide_precision(models, size))
    hashes = {}
    for name, model in models.items():
        start, _ = initial_weights(model, initial)
        hashes[name] = "none" if start is None else fingerprint.digest(start)
    jobs = []
    for seed in range(seeds):
        for fold in there[:folds]:
            for name, model in models.items():
                arm = ARMS[name]
                own = replace(base, model=model, loss=arm.loss, seed=base.seed + seed + arm.seed_offset)
                job = Job(
                    arm=name,
                    model=model,
                    settings=tuple(replace(own, lr=float(lr)) for lr in lrs),
                    shuffled=arm.shuffled,
                    seed=seed,
                    fold=int(fold),
                    data=str(Path(data).resolve()),
                    data_hash=crops.hash,
                    size=size,
                    validation=validation,
                    split_seed=base.seed,
                    initial=initial if model else "",
                    initial_hash=hashes[name],
                    threads=max(1, base.threads),
                    root=str(Path(folder).resolve()),
                )
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


def run(jobs: list[Job], *, parallel: int = 1, cluster: str = "") -> tuple[list[Result], dict[str, str]]:
    """Does what is left of a grid and reads it all.

    Args:
        jobs: of `grid`.
        parallel: jobs at a time on this machine; -1 for as many as the cores allow with the jobs' threads. The
            results do not depend on it.
        cluster: "" for this machine; "local:N" or a Dask scheduler's address, whose workers see the same folders.

    Returns:
        The results in the order of the jobs, and jobs that could not be finished with the reason.
    """
    waiting = [job for job in jobs if not job.done]
    shown = Progress(len(jobs), waiting)
    failed = {}
    for job, problem in _done(waiting, parallel, cluster, shown):
        if problem:
            failed[str(job)] = problem
        shown.finished(job)
    return [load(job) for job in jobs if job.done], failed


def _done(jobs: list[Job], parallel: int, cluster: str, shown: "Progress") -> Iterator[tuple[Job, str]]:
    """Jobs with what `run_job` says, as they end."""
    from joblib import Parallel, delayed

    if not jobs:
        return
    with backend(cluster) as count:
        count = count or processes(parallel, jobs[0].threads)
        shown.workers = min(count, len(jobs))
        shown.say()
        if count == 1 and not cluster:
            for job in jobs:
                yield job, run_job(job, title=f"{shown}; {job}")
            return
        calls = (delayed(_numbered)(number, job) for number, job in enumerate(jobs))
        for number, problem in Parallel(n_jobs=count, return_as="generator_unordered", batch_size=1)(calls):
            yield jobs[number], problem


def _numbered(number: int, job: Job) -> tuple[int, str]:
    return number, run_job(job, silent=True)


def processes(parallel: int, threads: int) -> int:
    """Jobs at a time: what was asked for, but no more threads than this machine has cores.

    Args:
        parallel: asked for; -1 for as many as possible. threads: of each job.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    possible = max(1, cores // max(1, threads))
    return possible if parallel < 1 else min(parallel, possible)


class Progress:
    """Says how far a grid is: jobs done, running, left, and the time that is left.

    Args:
        total: jobs of the grid. waiting: those that are not done yet.
    """

    def __init__(self, total: int, waiting: list[Job]):
        self.total, self.workers, self.begin = total, 1, time.monotonic()
        self.before, self.left, self.ended = total - len(waiting), list(waiting), []

    def finished(self, job: Job) -> None:
        """Counts a job that has ended."""
        self.left.remove(job)
        self.ended.append(job)
        self.say()

    def say(self) -> None:
        """Puts it on the status line."""
        status(str(self), now=True)

    def __str__(self) -> str:
        running = min(self.workers, len(self.left))
        text = f"ablation: {self.before + len(self.ended)} of {self.total} jobs done"
        text += f" ({self.before} before)" if self.before else ""
        text += f", {running} running, {len(self.left) - running} left"
        work = sum(map(_work, self.ended))
        if self.left and work:
            seconds = (time.monotonic() - self.begin) * sum(map(_work, self.left)) / work
            text += f", about {math.ceil(seconds / 60)} min"
        return text


def _work(job: Job) -> float:
    """A job's rough share of the time: trainings count, the reference hardly does."""
    return float(len(job.settings)) if job.model else 0.02


def arm_table(jobs: list[Job]) -> pd.DataFrame:
    """The arms of a grid: what is special about each, its loss, and how many jobs it has."""
    rows = []
    for name in dict.fromkeys(job.arm for job in jobs):
        arm, own = ARMS[name], [job for job in jobs if job.arm == name]
        loss = {"ce": "cross-entropy"}.get(arm.loss, arm.loss) if arm.model else "–"
        rows.append(
            {"arm": name, "what it is": arm.title, "group": arm.group, "loss": loss, "jobs": len(own)}
        )
    return pd.DataFrame(rows)


def collect(results: list[Result], path: Path) -> pd.DataFrame:
    """Writes the predictions of all jobs as one file and reads it back: statistics start from there.

    Arms that lack a job are left out: their rows would not be comparable.

    Args:
        results: of `run`. path: of the file, in the form of predictions.csv, model "<arm>/seed<k>".

    Raises:
        ValueError: no arm is complete.
    """
    jobs = {(result.job.arm, result.job.seed, result.job.fold) for result in results}
    places = {(seed, fold) for _, seed, fold in jobs}
    whole = {arm for arm, _, _ in jobs if all((arm, *place) in jobs for place in places)}
    tables = [result.predictions for result in results if result.job.arm in whole]
    if not tables:
        raise ValueError("collect: expected at least one arm with all of its jobs done, there is none")
    return read_predictions(write_predictions(tables, path))
