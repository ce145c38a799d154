"""Kills: a fine-tuning brought down with SIGKILL at random moments ends with the bits of an undisturbed one."""

import contextlib
import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import numpy as np
import psutil
import pytest

from thyroid_lib import datasets, manifest
from thyroid_lib.common.files import PROJECT
from thyroid_lib.data import crops
from thyroid_lib.study import runner
from thyroid_lib.training import checkpoint, folds, loop, pretraining

FITS = ("finetuned/fold0", "scratch/fold0")
CHILD = """
import os, sys
cells, run_dir = open(sys.argv[1]).read().split("# --- parameters end here\\n"), sys.argv[2]
space = {}
exec(cells[0], space)
space["run_dir"] = run_dir
print("ready", file=sys.__stdout__, flush=True)
sys.stdout = open(os.devnull, "w")
exec(cells[1], space)
"""


@pytest.fixture(scope="module")
def script(tmp_path_factory) -> Path:
    """The code of notebook 04, its stored parameters (the smoke profile) first."""
    cells = nbformat.read(PROJECT / "notebooks" / "04_finetune.ipynb", 4).cells
    code = [cell for cell in cells if cell.cell_type == "code"]
    (last,) = (i for i, cell in enumerate(code) if "parameters" in cell.metadata.get("tags", []))
    parts = ("\n".join(cell.source for cell in part) for part in (code[: last + 1], code[last + 1 :]))
    path = tmp_path_factory.mktemp("script") / "04.py"
    path.write_text("\n# --- parameters end here\n".join(parts), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def ready(tmp_path_factory) -> Path:
    """A run with small crops and pre-trained weights, as notebooks 01 and 03 leave it."""
    run = tmp_path_factory.mktemp("ready")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("THYROID_CACHE", str(run.parent / "cache"))
        for role in ("pretrain", "finetune", "external"):
            kind = {"pretrain": "open", "finetune": "clinic"}.get(role, role)
            frames = datasets.read(f"phantom:{kind}?patients={60 if role == 'finetune' else 16}")
            frames = manifest.split(frames, folds=5) if role == "finetune" else frames
            crops.build(frames, run / "data" / role, size=32, jobs=1)
    seen = crops.Crops.open(run / "data" / "pretrain")
    model = pretraining.model_config(seen, {"width": 0.125, "middle_blocks": 1})
    settings = loop.Settings(model=model, epochs=1, batch_size=16, precision="32", threads=1)
    rows = folds.parts(seen, None, 0.2, 0)
    pretraining.fit(settings, seen, rows, run / "checkpoints" / "pretrain")
    return run


def start(script: Path, run: Path) -> subprocess.Popen:
    """Starts it, what a killed one left unfinished swept out; returns when everything is imported."""
    runner._sweep(run)
    command = [sys.executable, "-c", CHILD, str(script), str(run)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONHASHSEED": "0"}
    process = subprocess.Popen(
        command, cwd=PROJECT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "ready\n", process.communicate()[1]
    return process


def copy(ready: Path, to: Path) -> Path:
    """A run of its own on the same data."""
    (to / "checkpoints").mkdir(parents=True)
    os.symlink(ready / "data", to / "data")
    os.symlink(ready / "checkpoints" / "pretrain", to / "checkpoints" / "pretrain")
    return to


def epochs_done(run: Path) -> int:
    """Epochs of both trainings that are safe on disk."""
    states = [checkpoint.read_state(run / "checkpoints" / name) for name in FITS]
    return sum(state["epoch"] for state in states if state)


def spent(process: psutil.Process) -> float:
    """Seconds that it has computed, which a busy machine changes little; inf when it has ended."""
    with contextlib.suppress(psutil.Error):
        if process.status() != psutil.STATUS_ZOMBIE:
            times = process.cpu_times()
            return times.user + times.system
    return math.inf


def course(script: Path, run: Path, until: float = math.inf) -> tuple[bool, dict[int, float]]:
    """Runs it, and kills it in the middle of whatever it does when it has computed for so many seconds.

    Returns:
        Whether it was killed: it may have ended before. Of epochs done -> the processor time at which they were, in
        seconds; 0 epochs: 0 s; -1: when it was last seen.
    """
    process = start(script, run)
    watched = psutil.Process(process.pid)
    begin, reached = spent(watched), {0: 0.0, -1: 0.0}
    while (seconds := spent(watched) - begin) < until:
        reached[-1] = seconds
        if until == math.inf:
            reached.setdefault(epochs_done(run), seconds)
        time.sleep(0.004)
    process.send_signal(signal.SIGKILL)
    _, said = process.communicate()
    killed = process.returncode == -signal.SIGKILL
    assert process.returncode == 0 or (killed and until < math.inf), said
    return killed, reached


def files(run: Path) -> dict[str, bytes]:
    """Path in the run -> content of every file that a fine-tuning writes, without the times that it took."""
    paths = (path for path in run.rglob("*") if path.is_file() and path.name != "run.json")
    content = {path.relative_to(run).as_posix(): path.read_bytes() for path in paths}
    for name in [name for name in content if name.endswith(checkpoint.STATE)]:
        state = checkpoint.read_state((run / name).parent) | {"seconds": 0, "trained": 0}
        content[name] = json.dumps(state, sort_keys=True).encode()
    return content


@pytest.mark.parametrize("times", [2, pytest.param(10, marks=pytest.mark.slow)])
def test_a_fine_tuning_killed_at_random_moments_ends_with_the_same_bits(
    script, ready, tmp_path, times, count
):
    whole, broken = copy(ready, tmp_path / "whole"), copy(ready, tmp_path / "broken")
    _, reached = course(script, whole)
    seconds = reached.pop(-1)
    random = np.random.default_rng(times)
    for number in range(times):  # one in each equal part of the undisturbed course
        moment = seconds * (number + random.random()) / times
        kept = max(at for epochs, at in reached.items() if epochs <= epochs_done(broken))
        after = max(0.0, moment - kept)  # it goes on from there
        while not course(script, broken, after)[0]:
            after *= 0.8  # this time it was faster than the undisturbed one
    assert course(script, broken)[0] is False
    a, b = files(whole), files(broken)
    weights = {f"checkpoints/{name}/best.safetensors" for name in FITS}
    assert {*a} == {*b} > {"predictions.csv", "metrics.json", *weights}
    assert [name for name in a if a[name] != b[name]] == []
    count(faults=times)
