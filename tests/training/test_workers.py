"""More processes than one: the same result, and errors that can be read."""

import os
import socket
import subprocess
import sys

import numpy as np
import psutil
import pytest
from safetensors.torch import load_file
from small_study import wait_for
from small_training import MODEL, largest_difference, spots, trained

from thyroid_lib.common import fingerprint
from thyroid_lib.common.files import PROJECT
from thyroid_lib.common.jobs import run_jobs
from thyroid_lib.data.crops import Crops
from thyroid_lib.training import checkpoint, loop
from thyroid_lib.training.command import main

ROWS = np.arange(23), np.arange(23, 32)  # neither can be dealt evenly to two
SMALL = {"model": MODEL | {"num_classes": 2}, "batch_size": 8}
OPTIONS = "--fold 0 --set epochs=1 --set precision=32 --set batch_size=8 --set threads=1 --network".split()
OPTIONS.append("{width: 0.0625, middle_blocks: 1}")


def test_two_ranks_with_frozen_batchnorm_give_one_ranks_result(crops, tmp_path):
    same = SMALL | {"frozen_batchnorm": True, "ema": 0.9}
    same |= {"mask_weight": 1.0, "sign_weight": 0.5, "texture_weight": 0.5}  # shared out too
    epochs = []
    follow = {"on_epoch": lambda history: epochs.append(len(history))}
    one = trained(tmp_path / "one", crops, *ROWS, **same)
    two = trained(tmp_path / "two", crops, *ROWS, devices=2, options=follow, **same)
    assert two.choices["processes"] == 2
    assert largest_difference(one.weights, two.weights) < 1e-5
    for column in ("lr", "train_loss", "ce", "focal", "val_loss", "val_auroc"):
        np.testing.assert_allclose(two.history[column], one.history[column], atol=1e-5)
    assert epochs == sorted(epochs)
    assert trained(tmp_path / "two", crops, *ROWS, **same).best_epoch == two.best_epoch


@pytest.mark.slow
def test_a_worker_that_fails_is_reported_with_its_last_lines(crops, tmp_path):
    with pytest.raises(loop.TrainingError, match=r"2 worker processes .* start again with a lower lr"):
        trained(tmp_path, crops, *ROWS, **SMALL, devices=2, lr=1e30, clip=0, warmup_epochs=0)


def test_arrays_in_memory_cannot_go_to_other_processes(tmp_path):
    with pytest.raises(ValueError, match="lie in a folder"):
        trained(tmp_path, spots(), devices=2)


def test_the_train_command_trains_and_goes_on(crops, tmp_path, capsys):
    command = ["--crops", str(crops.folder), "--folder", str(tmp_path / "out"), *OPTIONS]
    assert main(command) == 0 and "best epoch 1 of 1" in (said := capsys.readouterr().out)
    assert main(command) == 0 and capsys.readouterr().out == said
    refused = {"lr=0.5": "settings.lr: 0.001 there, 0.5 asked for", "speed=2": "--set: expected NAME=VALUE"}
    for setting, words in refused.items():
        assert main([*command, "--set", setting]) == 1 and words in capsys.readouterr().err


@pytest.mark.slow
def test_two_nodes_meet_and_train(crops, tmp_path):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, *"-m torch.distributed.run --nnodes 2 --nproc-per-node 1".split()]
    command += ["--rdzv-backend", "c10d", "--rdzv-id", "test", "--rdzv-endpoint", f"127.0.0.1:{port}"]
    command += ["-m", "thyroid_lib", "train", "--crops", crops.folder, "--folder", tmp_path / "out", *OPTIONS]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    nodes = [subprocess.Popen(command, env=os.environ | {"OMP_NUM_THREADS": "1"}, **pipes) for _ in range(2)]
    said = [node.communicate(timeout=900)[0] for node in nodes]
    assert [node.returncode for node in nodes] == [0, 0], "\n".join(said)
    assert sum("best epoch 1 of 1" in text for text in said) == 1
    assert checkpoint.read_state(tmp_path / "out")["environment"]["processes"] == 2


@pytest.mark.slow
@pytest.mark.parametrize("where", [{"parallel": 2}, {"cluster": "local:2"}])
def test_jobs_on_several_workers_give_the_results_of_one(crops, tmp_path, where):
    if "cluster" in where:
        pytest.importorskip("distributed")
    jobs = [{"folder": crops.folder, "out": str(tmp_path / f"{seed}"), "seed": seed} for seed in range(3)]
    found = run_jobs(one_job, jobs, **where)
    assert found == [one_job(**job | {"out": job["out"] + "-alone"}) for job in jobs]
    assert len(set(found)) == 3


def one_job(folder, out, seed) -> str:
    """Trains one seed and gives the hash of its weights; at module level, so that workers can import it."""
    fit = trained(out, Crops.open(folder), *ROWS, **SMALL, epochs=1, seed=seed)
    return fingerprint.digest(load_file(fit.weights))


def test_workers_end_with_the_process_that_started_them(tmp_path):
    jobs = [{"folder": str(tmp_path), "name": str(n)} for n in range(2)]
    code = "import small_jobs; from thyroid_lib.common import jobs\n"
    code += f"jobs.run_jobs(small_jobs.sleeper, {jobs!r}, parallel=2)"
    path = os.pathsep.join([str(PROJECT / "tests"), *sys.path])
    parent = subprocess.Popen([sys.executable, "-c", code], env=os.environ | {"PYTHONPATH": path})
    try:
        wait_for(lambda: len(list(tmp_path.iterdir())) == 2 or parent.poll() is not None)
        workers = [psutil.Process(int(path.read_text())) for path in tmp_path.iterdir()]
        assert len(workers) == 2
    finally:
        parent.kill()
        parent.wait()
    assert wait_for(lambda: not any(w.is_running() and w.status() != "zombie" for w in workers), 120)


def test_a_cluster_without_dask_is_explained(monkeypatch, sees):
    monkeypatch.setitem(sys.modules, "dask.distributed", None)
    with pytest.raises(ImportError, match=sees):
        run_jobs(dict, [{}], cluster="local:1")
