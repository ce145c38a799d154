"""Kills: a fine-tuning brought down with SIGKILL at random moments ends with the bits of an undisturbed one."""

import json
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

from thyroid_lib import checkpoint, crops, crossvalidation, datasets, manifest, pretraining, training
from thyroid_lib.runfolder import PROJECT

FITS = ("finetuned/fold0", "scratch/fold0")
CHILD = """
import sys
cells, run_dir = open(sys.argv[1]).read().split("# --- parameters end here\\n"), sys.argv[2]
space = {}
exec(cells[0], space)
space["run_dir"] = run_dir
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
    model = pretraining.model_config(seen, "optimized_xception", 0.125, 1)
    settings = training.Settings(model=model, epochs=1, batch_size=16, precision="32", threads=1)
    rows = crossvalidation.parts(seen, None, 0.2, 0)
    pretraining.fit(settings, seen, rows, run / "checkpoints" / "pretrain")
    return run


def start(script: Path, run: Path) -> subprocess.Popen:
    command = [sys.executable, "-c", CHILD, str(script), str(run)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONHASHSEED": "0"}
    return subprocess.Popen(
        command, cwd=PROJECT, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )


def copy(ready: Path, to: Path) -> Path:
    """A run of its own on the same data."""
    (to / "checkpoints").mkdir(parents=True)
    os.symlink(ready / "data", to / "data")
    os.symlink(ready / "checkpoints" / "pretrain", to / "checkpoints" / "pretrain")
    return to


def epochs_done(run: Path) -> int:
    """Epochs of both trainings that are safe on disk; -1 before the first has begun."""
    folders = [run / "checkpoints" / name for name in FITS]
    if not folders[0].is_dir():
        return -1
    return sum((checkpoint.read_state(folder) or {"epoch": 0})["epoch"] for folder in folders)


def processor_time(process: psutil.Process) -> float:
    """Seconds that it has computed: a busy machine does not change them."""
    times = process.cpu_times()
    return times.user + times.system


def undisturbed(script: Path, run: Path) -> tuple[float, dict[int, float]]:
    """Runs it once.

    Returns:
        Its processor time, and of epochs done (0: training begins) -> the processor time at which they were.
    """
    process, reached, spent = start(script, run), {}, 0.0
    watched = psutil.Process(process.pid)
    while process.poll() is None:
        try:
            spent = max(spent, processor_time(watched))
        except psutil.Error:
            break
        if (done := epochs_done(run)) >= 0:
            reached.setdefault(done, spent)
        time.sleep(0.005)
    _, said = process.communicate()
    assert process.returncode == 0, said
    return spent, reached


def killed(script: Path, run: Path, at: float) -> None:
    """Starts it and kills it when it has computed for so many seconds, in the middle of whatever it does."""
    process = start(script, run)
    watched = psutil.Process(process.pid)
    while process.poll() is None and processor_time(watched) < at:
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    _, said = process.communicate()
    assert process.returncode == -signal.SIGKILL, f"it had ended before it was killed: {said}"


def files(run: Path) -> dict[str, bytes]:
    """Path in the run -> content of every file that a fine-tuning writes, without the times that it took."""
    found = {path.relative_to(run).as_posix(): path for path in run.rglob("*") if path.is_file()}
    content = {name: path.read_bytes() for name, path in found.items() if name != "run.json"}
    for name in [name for name in content if name.endswith("state.json")]:
        state = json.loads(content[name])
        content[name] = json.dumps(
            {k: v for k, v in state.items() if k not in ("seconds", "trained")}
        ).encode()
    return content


@pytest.mark.parametrize("times", [2, pytest.param(10, marks=pytest.mark.slow)])
def test_a_fine_tuning_killed_at_random_moments_ends_with_the_same_bits(
    script, ready, tmp_path, times, count
):
    whole, broken = copy(ready, tmp_path / "whole"), copy(ready, tmp_path / "broken")
    seconds, reached = undisturbed(script, whole)
    begin, random, log = reached[0], np.random.default_rng(times), []
    for number in range(times):  # one in each equal part of the undisturbed course, from the first batch on
        moment = begin + 0.95 * (seconds - begin) * (number + random.random()) / times
        done = max(0, epochs_done(broken))
        killed(script, broken, at=moment - reached[done] + begin)
        log.append(f"{moment - begin:.2f} s: {max(0, epochs_done(broken))} epochs kept")
    print(f"{seconds - begin:.2f} s undisturbed; killed at", "; ".join(log))
    process = start(script, broken)
    _, said = process.communicate()
    assert process.returncode == 0, said
    a, b = files(whole), files(broken)
    weights = {f"checkpoints/{name}/best.safetensors" for name in FITS}
    assert {*a} == {*b} > {"predictions.csv", "metrics.json", *weights}
    assert [name for name in a if a[name] != b[name]] == []
    count(faults=times)
