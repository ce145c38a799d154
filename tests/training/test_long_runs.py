"""Long runs: nothing grows. Many trainings in a row and a long epoch keep memory, open files and shared memory flat."""

import os
import subprocess
import sys

import numpy as np
import pytest

from thyroid_lib.common.files import PROJECT

MODEL = {"name": "optimized_xception", "num_classes": 4, "in_chans": 1, "width": 0.125, "middle_blocks": 1}
WATCH = """
import gc, json, os, sys
import numpy as np
from types import SimpleNamespace
from thyroid_lib.training import loop as training
def state():
    gc.collect()
    pages = int(open("/proc/self/statm").read().split()[1])
    shared = sum(str(os.getpid()) in name for name in os.listdir("/dev/shm"))  # others' come and go
    shared += sum("/dev/shm/" in line for line in open("/proc/self/maps"))
    return {"mib": pages * os.sysconf("SC_PAGE_SIZE") / 2**20, "files": len(os.listdir("/proc/self/fd")),
            "shared": shared, "threads": len(os.listdir("/proc/self/task"))}
seen = []
MODEL = """ + repr(MODEL)
MANY = (
    WATCH
    + """

import shutil
chance = np.random.default_rng(0)
images, labels = chance.integers(0, 255, (96, 32, 32), dtype=np.uint8), np.arange(96) % 4
np.save(sys.argv[1] + "/crops.npy", images)
for number in range(int(sys.argv[2])):
    crops = SimpleNamespace(images=np.load(sys.argv[1] + "/crops.npy", mmap_mode="r"), labels=labels, hash="x")
    about = dict(model=MODEL, epochs=2, batch_size=16, precision="32", threads=1)
    settings = training.Settings(seed=number, **about)
    folder = sys.argv[1] + "/fit"
    fit = training.fit(settings, crops, np.arange(72), np.arange(72, 96), folder)
    training.predict(fit.model(), crops.images)
    shutil.rmtree(folder)
    seen.append(state())
print(json.dumps(seen))
"""
)
EPOCH = (
    WATCH
    + """

shape = (int(sys.argv[2]), 32, 32)
images = np.lib.format.open_memmap(sys.argv[1] + "/crops.npy", "w+", np.uint8, shape)
for start in range(0, shape[0], 5000):
    part = images[start : start + 5000]
    part[:] = np.random.default_rng(start).integers(0, 255, part.shape, np.uint8)
images.flush()
del images
images = np.load(sys.argv[1] + "/crops.npy", mmap_mode="r")
crops = SimpleNamespace(images=images, labels=np.arange(shape[0]) % 4, hash="x")
about = dict(epochs=1, batch_size=256, precision="32", threads=1)
settings = training.Settings(model=MODEL | {"width": 0.0625}, **about)
batch = training.Training.batch
def watched(self, *arguments):
    seen.append(state()) if len(seen) < 5 or len(watched.calls) % 20 == 0 else None
    watched.calls.append(1)
    return batch(self, *arguments)
watched.calls = []
training.Training.batch = watched
training.fit(settings, crops, np.arange(shape[0] - 500), np.arange(shape[0] - 500, shape[0]), sys.argv[1] + "/fit")
seen.append(state())
print(json.dumps(seen))
"""
)
pytestmark = pytest.mark.skipif(
    sys.platform != "linux", reason="reads memory and files of a process as Linux shows them"
)


def watched(tmp_path, code: str, size: int) -> dict[str, np.ndarray]:
    import json

    environment = os.environ | {"OMP_NUM_THREADS": "1", "THYROID_STATUS": os.devnull}
    done = subprocess.run(
        [sys.executable, "-c", code, tmp_path, str(size)],
        cwd=PROJECT,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    seen = json.loads(done.stdout.splitlines()[-1])
    return {name: np.array([one[name] for one in seen]) for name in seen[0]}


def flat(seen: dict[str, np.ndarray], mib: float) -> None:
    """Asserts that nothing grew between the first third and the last, memory by no more than so many MiB."""
    third = max(1, len(seen["mib"]) // 3)
    for name in ("files", "shared", "threads"):
        assert seen[name][-third:].max() <= seen[name][:third].max(), (name, seen[name].tolist())
    grown = np.median(seen["mib"][-third:]) - np.median(seen["mib"][third : 2 * third])
    assert grown < mib, seen["mib"].round().tolist()


@pytest.mark.parametrize("trainings", [3, pytest.param(200, marks=pytest.mark.slow)])
def test_trainings_in_a_row_leave_nothing_behind(tmp_path, trainings):
    seen = watched(tmp_path, MANY, trainings)
    assert len(seen["mib"]) == trainings
    flat(seen, 40)


@pytest.mark.parametrize("crops", [5_000, pytest.param(100_000, marks=pytest.mark.slow)])
def test_an_epoch_over_many_crops_holds_a_batch_at_a_time(tmp_path, crops):
    seen = watched(tmp_path, EPOCH, crops)
    flat(seen, 40)
    size = crops * 32 * 32 / 2**20
    assert crops < 50_000 or seen["mib"][-1] - seen["mib"][2] < 0.6 * size, "the crops were kept in memory"
