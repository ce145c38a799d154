"""Long runs: nothing grows. Many trainings in a row and a long epoch keep memory, open files and shared memory flat."""

import gc
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import psutil
import pytest
from small_training import MODEL, Spots, trained

from thyroid_lib.training import loop

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="reads what a process holds as Linux shows it"),
]


def state() -> dict[str, float]:
    """What this process holds now."""
    gc.collect()
    me = psutil.Process()
    shared = sum(str(me.pid) in name for name in os.listdir("/dev/shm"))  # others' come and go
    shared += sum(part.path.startswith("/dev/shm/") for part in me.memory_maps())
    mib, files, threads = me.memory_info().rss / 2**20, me.num_fds(), me.num_threads()
    return {"mib": mib, "files": files, "threads": threads, "shared": shared}


def crops_on_disk(folder: str, count: int) -> Spots:
    images = np.lib.format.open_memmap(f"{folder}/crops.npy", "w+", np.uint8, (count, 32, 32))
    for start in range(0, count, 5000):
        part = images[start : start + 5000]
        part[:] = np.random.default_rng(start).integers(0, 255, part.shape, np.uint8)
    images.flush()
    return Spots(np.load(f"{folder}/crops.npy", mmap_mode="r"), np.arange(count) % 4)


def many(folder: str, trainings: int) -> list[dict]:
    seen, wider = [], {"model": MODEL | {"width": 0.125}, "batch_size": 16}
    for number in range(trainings):
        crops = crops_on_disk(folder, 96)
        fit = trained(f"{folder}/fit", crops, np.arange(72), np.arange(72, 96), seed=number, **wider)
        loop.predict(fit.model(), crops.images)
        shutil.rmtree(f"{folder}/fit")
        seen.append(state())
    return seen


def epoch(folder: str, count: int) -> list[dict]:
    crops, seen, calls, batch = crops_on_disk(folder, count), [], [], loop.Training.batch

    def watched(self, *arguments):
        if len(seen) < 5 or len(calls) % 20 == 0:
            seen.append(state())
        calls.append(1)
        return batch(self, *arguments)

    loop.Training.batch = watched
    split = np.split(np.arange(count), [count - 500])
    trained(f"{folder}/fit", crops, *split, epochs=1, batch_size=256)
    return [*seen, state()]


def watched(folder, what: str, size: int) -> dict[str, np.ndarray]:
    """Runs `many` or `epoch` in a process of its own; nothing may grow from its first third to the last."""
    code = f"import json, test_long_runs as t; print(json.dumps(t.{what}({str(folder)!r}, {size})))"
    path = os.pathsep.join([str(Path(__file__).parent), str(Path(__file__).parents[1]), *sys.path])
    environment = os.environ | {"OMP_NUM_THREADS": "1", "THYROID_STATUS": os.devnull, "PYTHONPATH": path}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    told = json.loads(done.stdout.splitlines()[-1])
    seen = {name: np.array([one[name] for one in told]) for name in told[0]}
    third = max(1, len(told) // 3)
    for name in ("files", "shared", "threads"):
        assert seen[name][-third:].max() <= seen[name][:third].max(), (name, seen[name].tolist())
    grown = np.median(seen["mib"][-third:]) - np.median(seen["mib"][third : 2 * third])
    assert grown < 40, seen["mib"].round().tolist()
    return seen


def test_trainings_in_a_row_leave_nothing_behind(tmp_path):
    assert len(watched(tmp_path, "many", 200)["mib"]) == 200


def test_an_epoch_over_many_crops_holds_a_batch_at_a_time(tmp_path):
    crops = 100_000
    seen = watched(tmp_path, "epoch", crops)
    size = crops * 32 * 32 / 2**20
    assert seen["mib"][-1] - seen["mib"][2] < 0.6 * size, "the crops were kept in memory"
