"""More than one process: ranks that share each batch, and independent jobs side by side.

Ranks are PyTorch's own: `fit` starts `torchrun` on this machine with the `train` command, exactly what a
cluster's launcher does, follows it, and carries on with its checkpoint. Independent jobs (folds, seeds, arms)
go through joblib; a Dask cluster takes them over by a setting.
"""

import contextlib
import json
import logging
import multiprocessing
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pandas as pd

from thyroid_lib import checkpoint, training
from thyroid_lib.identity import identity_of, put_aside
from thyroid_lib.progress import progress, status

PARENT = "THYROID_PARENT"  # set for workers that must not outlive the process which started them
JOB, LOG = "job.json", "workers.log"


def fit(
    settings, crops, train, validation, folder, initial, labels, title, on_epoch, set_aside
) -> "training.Fit":
    """`training.fit` on `settings.devices` processes of this machine; arguments and result as there.

    The crops must lie in a folder, which the workers open themselves.

    Raises:
        TrainingError: a worker failed; the end of its log is in the message.
    """
    folder = Path(folder)
    if set_aside:
        put_aside(folder, identity_of(settings, crops, train, validation, labels, initial))
    checkpoint.prepare(folder)
    job = write_job(settings, crops, train, validation, folder, initial, labels, title)
    said = folder / ".status"
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += [f"--nproc-per-node={settings.devices}", "-m", "thyroid_lib", "train", "--job", str(job)]
    threads = settings.threads or max(1, (os.cpu_count() or 1) // settings.devices)
    environment = os.environ | {"THYROID_STATUS": str(said), "OMP_NUM_THREADS": str(threads), PARENT: "stdin"}
    with open(folder / LOG, "w", encoding="utf-8") as log:
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=log, stderr=subprocess.STDOUT, env=environment
        )
        try:
            _follow(process, folder, said, on_epoch, title)
        finally:
            if process.poll() is None:
                process.terminate()
                process.wait(30)
            process.stdin.close()
            said.unlink(missing_ok=True)
    if process.returncode:
        raise training.TrainingError(
            f"{settings.devices} worker processes were started and one failed (exit status "
            f"{process.returncode}): {_reason(folder / LOG)}"
        )
    return training.fit(
        replace(settings, devices=1),
        crops,
        train,
        validation,
        folder,
        initial=initial,
        labels=labels,
        title=title,
    )


def write_job(settings, crops, train, validation, folder, initial, labels, title) -> Path:
    """Writes a fit's arguments as one JSON file for `python -m thyroid_lib train --job`."""
    if not hasattr(crops, "folder"):
        raise ValueError("several processes need crops that lie in a folder (crops.build), an array came")
    if isinstance(initial, dict):
        checkpoint.save_weights(Path(folder) / "initial.safetensors", initial, {})
        initial = Path(folder) / "initial.safetensors"
    job = {
        "settings": asdict(settings),
        "crops": str(Path(crops.folder).resolve()),
        "train": np.asarray(train).tolist(),
        "validation": np.asarray(validation).tolist(),
        "labels": None if labels is None else np.asarray(labels).tolist(),
        "initial": None if initial is None else str(Path(initial).resolve()),
        "title": title,
        "folder": str(Path(folder).resolve()),
    }
    checkpoint.write_json(Path(folder) / JOB, job)
    return Path(folder) / JOB


def run_job(path: str | Path) -> "training.Fit":
    """Does what `write_job` wrote; under torchrun each rank calls it."""
    from thyroid_lib.crops import Crops

    if os.environ.get(PARENT) == "stdin":
        threading.Thread(target=_end_with_parent, daemon=True).start()
    job = json.loads(Path(path).read_text(encoding="utf-8"))
    return training.fit(
        training.Settings(**job["settings"]),
        Crops.open(job["crops"]),
        np.array(job["train"], np.int64),
        np.array(job["validation"], np.int64),
        job["folder"],
        initial=job["initial"],
        labels=None if job["labels"] is None else np.array(job["labels"], np.int64),
        title=job["title"],
    )


def _end_with_parent() -> None:
    """Ends this process when the one that asked for it is gone, however it went: the pipe between them closes."""
    with contextlib.suppress(OSError):
        while os.read(0, 1):
            pass
    os._exit(1)


def run_jobs(
    function: Callable, jobs: list[dict], *, parallel: int = 1, cluster: str = "", title: str = "jobs"
) -> list:
    """Calls a function once per job, side by side, and gives the results in the jobs' order.

    Args:
        function: of an importable module; its results must be picklable.
        jobs: keyword arguments of each call.
        parallel: processes at a time on this machine; 1 runs the jobs here, one after another.
        cluster: "" for this machine; "local:N" for a Dask cluster of N workers on this machine, or the
            address of a Dask scheduler ("tcp://head:8786") whose workers see the same folders.
        title: for the progress line.
    """
    from joblib import Parallel, delayed

    if parallel == 1 and not cluster:
        return [function(**job) for job in jobs]
    with backend(cluster) as workers:
        calls = (delayed(_tied)(function, job) for job in jobs)
        results = Parallel(n_jobs=workers or parallel, return_as="generator")(calls)
        return list(progress(results, title, len(jobs)))


def _tied(function: Callable, job: dict):
    exit_with_parent()
    return function(**job)


_watching = False


def exit_with_parent() -> None:
    """Lets this worker process end when the process that started it is gone.

    joblib's workers would finish what they have begun, hold its folder meanwhile, and be in the way of whoever
    starts the same command again. Called within a job; a second call does nothing.
    """
    global _watching
    if _watching or multiprocessing.parent_process() is None:
        return
    _watching, parent = True, os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


@contextlib.contextmanager
def backend(cluster: str) -> Iterator[int]:
    """Joblib on a Dask cluster while a with statement lasts; yields its number of workers, 0 without one.

    Raises:
        ImportError: Dask is not installed.
        OSError: nobody answers at the address.
    """
    if not cluster:
        yield 0
        return
    import joblib

    try:
        from dask.distributed import Client, LocalCluster
    except ImportError as error:
        raise ImportError(
            f"cluster={cluster!r} needs Dask, which is not installed: install the extra `dask` or leave it "
            "empty"
        ) from error
    local = None
    if cluster.startswith("local:"):
        count = int(cluster.partition(":")[2])
        quiet = logging.ERROR  # that a worker took seconds to end is no news for a report
        local = LocalCluster(
            n_workers=count, threads_per_worker=1, dashboard_address=None, silence_logs=quiet
        )
    try:
        with Client(local or cluster, timeout=60) as client, joblib.parallel_config(backend="dask"):
            yield len(client.scheduler_info(n_workers=-1)["workers"])
    finally:
        if local is not None:
            local.close()


def _reason(log: Path) -> str:
    """What the workers themselves said, or else the end of their log."""
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    said = dict.fromkeys(line.removeprefix("train: ") for line in lines if line.startswith("train: "))
    return " ".join(said) or f"see {log}, which ends with\n" + "\n".join(lines[-25:])


def _follow(process: subprocess.Popen, folder: Path, said: Path, on_epoch, title: str) -> None:
    """Passes on what rank 0 says, and each new epoch, until the processes end."""
    line, epochs = "", 0
    while process.poll() is None:
        time.sleep(0.2)
        with contextlib.suppress(OSError):
            if (now := said.read_text(encoding="utf-8")) and now != line:
                status(line := now)
        state = checkpoint.read_state(folder) if on_epoch else None
        if state and state["epoch"] > epochs:
            epochs = state["epoch"]
            history = pd.DataFrame(state["history"])
            history.attrs["title"] = title
            on_epoch(history)
