"""Kills: a fine-tuning brought down with SIGKILL at random moments ends with the bits of an undisturbed one."""

import json
import math
import os
import shutil
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

PHANTOMS = {
    "pretrain": "open?patients=16",
    "finetune": "clinic?patients=60",
    "external": "external?patients=16",
}
FITS = ("finetuned/fold0", "scratch/fold0")
BEGIN = """
import os, sys
run_dir = sys.argv[1]
print("ready", flush=True)
sys.stdout = open(os.devnull, "w")
"""


@pytest.fixture(scope="module")
def script() -> str:
    """The code of notebook 04, with its stored parameters (the smoke profile) and the run of the command line."""
    lines = []
    for cell in nbformat.read(PROJECT / "notebooks" / "04_finetune.ipynb", 4).cells:
        lines += [cell.source] if cell.cell_type == "code" else []
        lines += [BEGIN] if "parameters" in cell.metadata.get("tags", []) else []
    assert lines.count(BEGIN) == 1
    return "\n".join(lines)


@pytest.fixture(scope="module")
def ready(tmp_path_factory) -> Path:
    """A run with small crops and pre-trained weights, as notebooks 01 and 03 leave it."""
    run = tmp_path_factory.mktemp("ready")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("THYROID_CACHE", str(run.parent / "cache"))
        for role, phantom in PHANTOMS.items():
            frames = datasets.read(f"phantom:{phantom}")
            frames = manifest.split(frames, folds=5) if role == "finetune" else frames
            crops.build(frames, run / "data" / role, size=32, jobs=1)
    seen = crops.Crops.open(run / "data" / "pretrain")
    model = pretraining.model_config(seen, {"width": 0.125, "middle_blocks": 1})
    settings = loop.Settings(model=model, epochs=1, batch_size=16, precision="32", threads=1)
    rows = folds.parts(seen, None, 0.2, 0)
    pretraining.fit(settings, seen, rows, run / "checkpoints" / "pretrain")
    return run


def epochs_done(run: Path) -> int:
    """Epochs of both trainings that are safe on disk."""
    states = [checkpoint.read_state(run / "checkpoints" / name) for name in FITS]
    return sum(state["epoch"] for state in states if state)


def course(script: str, run: Path, until: float = math.inf) -> tuple[bool, dict[int, float]]:
    """Runs it, what a killed one left unfinished swept out; kills it when it has computed for so many seconds.

    Processor time, user's and system's, is changed little by a busy machine.

    Returns:
        Whether it was killed: it may have ended before. Of epochs done -> the processor time at which they were, in
        seconds; 0 epochs: 0 s; -1: when it was last seen.
    """
    runner._sweep(run)
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONHASHSEED": "0"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    process = subprocess.Popen([sys.executable, "-c", script, run], cwd=PROJECT, env=environment, **pipes)
    assert process.stdout.readline() == "ready\n", process.communicate()[1]  # everything is imported
    watched = psutil.Process(process.pid)
    begin, reached = sum(watched.cpu_times()[:2]), {0: 0.0, -1: 0.0}
    while process.poll() is None and (seconds := sum(watched.cpu_times()[:2]) - begin) < until:
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
    for path in run.rglob(checkpoint.STATE):
        state = checkpoint.read_state(path.parent) | {"seconds": 0, "trained": 0}
        content[path.relative_to(run).as_posix()] = json.dumps(state, sort_keys=True).encode()
    return content


@pytest.mark.slow
def test_a_killed_fine_tuning_ends_with_the_same_bits(script, ready, tmp_path, count):
    whole, broken = (shutil.copytree(ready, tmp_path / name) for name in ("whole", "broken"))
    _, reached = course(script, whole)
    seconds = reached.pop(-1)
    random = np.random.default_rng(10)
    for number in range(10):  # one in each equal part of the undisturbed course
        moment = seconds * (number + random.random()) / 10
        kept = max(at for epochs, at in reached.items() if epochs <= epochs_done(broken))
        after = max(0.0, moment - kept)  # it goes on from there
        while not course(script, broken, after)[0]:
            after *= 0.8  # this time it was faster than the undisturbed one
    assert course(script, broken)[0] is False
    a, b = files(whole), files(broken)
    weights = {f"checkpoints/{name}/best.safetensors" for name in FITS}
    assert {*a} == {*b} > {"predictions.csv", "metrics.json", *weights}
    assert [name for name in a if a[name] != b[name]] == []
    count(faults=10)
