"""Faults of the machine: killed, full, read-only, hanging, out of memory, with a clock that jumps.

A study of two small notebooks is brought down in many ways; then the same command is given again, and must end with
the numbers of an undisturbed run and with no file that such a run would not have.
"""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
import small_jobs
from small_study import child, wait_for, whole, write

from thyroid_lib import datasets
from thyroid_lib.common.files import PROJECT, read_json
from thyroid_lib.common.jobs import run_jobs
from thyroid_lib.data import crops
from thyroid_lib.study import profiles
from thyroid_lib.study import runner as study


@pytest.fixture(autouse=True)
def survived(count):
    """Each test that passes is a fault survived."""
    count(faults=1)


def refused(capsys, *words: str, status: int = 1, options=()) -> None:
    """The study stops with a status and words, and without a traceback."""
    capsys.readouterr()
    assert study.main([*options]) == status
    said = capsys.readouterr().err
    assert all(word in said for word in words) and "Traceback" not in said, said


def said_by(code: str, *arguments) -> subprocess.CompletedProcess:
    """Code in a process of its own, with what it said."""
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=PROJECT)


POINTS = [pytest.param(n, marks=() if n == 9 else pytest.mark.slow) for n in range(1, 13)]


@pytest.mark.parametrize("point", POINTS)
def test_killed_at_any_write_the_same_command_ends_with_the_same_numbers(project, capsys, point, sees):
    runner = child(project, die_at=point)
    runner.communicate(timeout=600)
    assert runner.returncode == -signal.SIGKILL
    assert study.main([]) == 0 and whole(project)
    assert sees in capsys.readouterr().out


def test_a_kernel_that_dies_is_told_and_the_next_run_goes_on(begun, capsys, sees):
    write(begun, second="import os; os.kill(os.getpid(), 9)")
    refused(capsys, sees, "02_second failed")
    run = begun / "reports" / "quick"
    assert (
        set(read_json(run / "run.json")["stages"]) == {"01_first"} and not (run / "02_second.html").exists()
    )
    write(begun)
    assert study.main([]) == 0 and whole(begun)


HANGS = """
import signal, subprocess, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
deaf = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(999)"
subprocess.Popen([sys.executable, "-c", deaf])
while {hang}:
    try:
        time.sleep(999)
    except KeyboardInterrupt:
        pass
"""


def left_running() -> list:
    """Processes that HANGS has started, of this user's."""
    mark = "import signal, time; signal.signal"
    return [p for p in psutil.process_iter(["cmdline"]) if mark in " ".join(p.info["cmdline"] or [])]


def test_a_notebook_that_hangs_is_stopped_with_all_it_started(finished, capsys, sees):
    write(finished, second=HANGS.format(hang=True))
    refused(capsys, sees, "02_second failed after", options=["--time-limit", "0.2"])
    assert not left_running() and (finished / "reports" / "quick" / "01_first.html").exists()


def test_what_a_finished_notebook_left_running_is_ended(begun):
    write(begun, second=HANGS.format(hang=False) + "\ntime.sleep(2)")
    assert study.main([]) == 0 and whole(begun) and not left_running()


@pytest.fixture
def disk(tmp_path):
    """A small file system of its own: mounts it with a size; the test is skipped where that is not allowed."""
    place = tmp_path / "disk"

    def mount(size: str) -> Path:
        place.mkdir()
        command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", place]
        if shutil.which("mount") is None or subprocess.run(command, capture_output=True).returncode:
            pytest.skip("mounting a small file system is not allowed here (it needs root)")
        return place

    yield mount
    if place.is_mount():
        subprocess.run(["umount", "-l", place], check=True)


def test_a_full_disk_is_told_and_with_room_again_the_run_goes_on(finished, disk, monkeypatch, capsys, sees):
    place = disk("3m")
    shutil.copytree(finished / "reports", place / "reports")
    write(finished, second="'a change'")
    monkeypatch.setenv("THYROID_REPORTS", str(place / "reports"))
    page, filler = place / "reports" / "quick" / "01_first.html", place / "filler"
    before = page.read_bytes()
    filler.write_bytes(bytes(shutil.disk_usage(place).free - 8192))
    refused(capsys, sees)
    assert page.read_bytes() == before
    filler.unlink()
    assert study.main([]) == 0 and whole(place)


def test_crops_meet_a_full_disk_with_an_error_not_a_crash(disk, tmp_path, monkeypatch):
    monkeypatch.setenv("THYROID_CACHE", str(tmp_path / "cache"))
    table, place = datasets.read("phantom:clinic?patients=4&seed=5"), disk("1m")
    built = crops.build(table, place / "crops", size=64, jobs=1)
    table.to_pickle(tmp_path / "table")
    code = (
        "import sys, pandas; from thyroid_lib.data import crops\n"
        "try: crops.build(pandas.read_pickle(sys.argv[1]), sys.argv[2], size=400, jobs=1)\n"
        "except OSError as error: print(error.strerror)"
    )  # in a process of its own: a write into a mapped file that finds no room would kill this one
    done = said_by(code, tmp_path / "table", place / "crops")
    assert (done.returncode, done.stdout) == (0, "No space left on device\n"), done.stderr[-500:]
    assert np.array_equal(crops.Crops.open(place / "crops").images, built.images)
    assert [path.name for path in place.iterdir()] == ["crops"]


def test_a_full_cache_is_told_and_leaves_nothing_half_made(disk, monkeypatch):
    place = disk("256k")
    monkeypatch.setenv("THYROID_CACHE", str(place))
    with pytest.raises(OSError, match=r"is the disk full\?|No space left"):
        datasets.read("phantom:clinic?patients=20&seed=5")
    assert not list(place.rglob("*.png"))


def test_a_read_only_place_is_told_before_anything_runs(project, disk, monkeypatch, capsys, sees):
    place = disk("1m")
    subprocess.run(["mount", "-o", "remount,ro", place], check=True)
    monkeypatch.setenv("THYROID_REPORTS", str(place / "reports"))
    refused(capsys, sees, "Nothing was started", status=2)


def test_a_second_run_stops_and_the_first_is_not_disturbed(begun, capsys, sees):
    go = begun / "go"
    write(begun, second=f"import os, time\nwhile not os.path.exists({str(go)!r}):\n    time.sleep(0.1)")
    first = child(begun)
    assert wait_for((begun / "reports" / "quick" / ".work" / "02_second.ipynb").exists)
    refused(capsys, sees, "Nothing was started", status=2)
    go.touch()
    first.communicate(timeout=600)
    assert first.returncode == 0 and whole(begun)


def test_a_clock_that_jumps_changes_neither_numbers_nor_what_is_skipped(begun, monkeypatch, capsys):
    real, calls = time.time, iter(range(10**9))

    def jumping() -> float:  # a year and more, to and fro, for this project: Jupyter's waits keep the time
        ours = sys._getframe(1).f_globals["__name__"].startswith("thyroid_lib")
        return real() + ours * (-1) ** next(calls) * 40_000_000

    monkeypatch.setattr(time, "time", jumping)
    assert study.main([]) == 0 and whole(begun)
    run = begun / "reports" / "quick"
    assert all(0 < stage["seconds"] < 100_000 for stage in read_json(run / "run.json")["stages"].values())
    for path in run.rglob("*"):
        os.utime(path, (2**33, 2**33))  # files from the year 2242
    capsys.readouterr()
    assert study.main([]) == 0
    assert capsys.readouterr().out.count("unchanged, skipped") == 2


@pytest.mark.parametrize("name", ["run.json", "metrics.json"])
def test_a_damaged_file_of_a_run_is_named(project, name, capsys, sees):
    run = project / "reports" / "quick"
    run.mkdir(parents=True)
    (run / name).write_text('{"half":')
    refused(capsys, sees, name, status=2 if name == "run.json" else 1)
    if name == "run.json":
        (run / name).unlink()
        assert study.main([]) == 0 and whole(project)


TRAIN = """
import resource, sys, numpy as np
from types import SimpleNamespace
from thyroid_lib.training import command, loop
command.run_options = lambda options: loop.fit(
    loop.Settings(model=MODEL, epochs=2, batch_size=256, precision="32", threads=1),
    SimpleNamespace(images=np.zeros((600, 96, 96), np.uint8), labels=np.arange(600) % 2, hash="x"),
    np.arange(576), np.arange(576, 600), sys.argv[1])
import lightning_fabric, torch  # what the training imports anyway takes address space too
from thyroid_lib import network
from thyroid_lib.training import hardware
torch.randn(4, 4, requires_grad=True).sum().backward()
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + 400 * 2**20,) * 2)
sys.exit(command.main(["--crops", "x", "--folder", sys.argv[1]]))
"""
MODEL = {"name": "xception", "num_classes": 2, "in_chans": 1, "width": 0.25, "middle_blocks": 1}


@pytest.mark.skipif(sys.platform != "linux", reason="limits memory as Linux does")
def test_out_of_memory_in_a_training_process_is_told_with_what_to_do(tmp_path, sees):
    done = said_by(TRAIN.replace("MODEL", repr(MODEL)), tmp_path / "fit")
    assert done.returncode == 1, done.stderr[-500:]
    assert sees in done.stderr and "smaller batch_size" in done.stderr and "Traceback" not in done.stderr


def test_a_worker_that_is_killed_or_short_of_memory_stops_the_jobs_with_a_reason(sees, count):
    with pytest.raises(Exception, match=sees):
        run_jobs(small_jobs.killed, [{}, {}], parallel=2)
    with pytest.raises(MemoryError):
        run_jobs(small_jobs.greedy, [{"size": 10}, {"size": 2**34}], parallel=2)
    assert run_jobs(small_jobs.greedy, [{"size": 1}, {"size": 2}], parallel=2) == [1, 2]  # the next jobs run
    count(faults=1)  # two


ORPHANS = """
import sys, numpy as np
from thyroid_lib import datasets
from thyroid_lib.data import crops
from thyroid_lib.training import loop
table = datasets.read("phantom:clinic?patients=8&seed=5")
built = crops.build(table, sys.argv[1] + "/crops", size=32, jobs=1)
rows = np.arange(len(built))
settings = loop.Settings(model=MODEL, epochs=100_000, batch_size=8, devices=2, precision="32")
loop.fit(settings, built, rows[:-4], rows[-4:], sys.argv[1] + "/fit")
"""


@pytest.mark.slow
def test_workers_end_when_the_process_that_started_them_is_killed(tmp_path, monkeypatch):
    monkeypatch.setenv("THYROID_CACHE", str(tmp_path / "cache"))
    code = ORPHANS.replace("MODEL", repr(MODEL | {"num_classes": 4}))
    parent = subprocess.Popen([sys.executable, "-c", code, tmp_path], cwd=PROJECT)
    assert wait_for((tmp_path / "fit" / "state.safetensors").exists)
    family = psutil.Process(parent.pid).children(recursive=True)
    assert len(family) >= 3  # torchrun and its two ranks
    parent.kill()
    parent.wait()
    assert wait_for(lambda: not any(p.is_running() and p.status() != "zombie" for p in family))


@pytest.mark.slow
def test_killed_in_every_real_stage_the_study_ends_with_the_same_numbers(tmp_path, monkeypatch, count):
    monkeypatch.delenv("THYROID_STATUS", raising=False)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    command = [sys.executable, *"-m thyroid_lib run --profile smoke".split()]
    names = [stage.name for stage in profiles.STAGES if stage.default]
    for place, name in [("a", None), *(("b", name) for name in names), ("b", None)]:
        monkeypatch.setenv("THYROID_REPORTS", str(tmp_path / place))
        runner = subprocess.Popen(command, cwd=PROJECT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        if name:
            assert wait_for((tmp_path / "b" / "smoke" / ".work" / f"{name}.ipynb").exists), name
            time.sleep(1 + 1.5 * (names.index(name) % 3))
            runner.send_signal(signal.SIGKILL)
        _, said = runner.communicate(timeout=1800)
        assert name or runner.returncode == 0, said.decode()
    a, b = tmp_path / "a" / "smoke", tmp_path / "b" / "smoke"
    listed = [{p.relative_to(x).as_posix() for p in x.rglob("*") if p.is_file()} for x in (a, b)]
    assert listed[0] == listed[1]
    for name in ("metrics.json", "predictions.csv"):
        assert (a / name).read_bytes() == (b / name).read_bytes()
    count(faults=len(names) - 1)
