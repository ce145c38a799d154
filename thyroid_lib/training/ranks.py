"""More than one process: ranks that share each batch.

Ranks are PyTorch's own: `fit` starts `torchrun` on this machine with the `train` command, exactly what a
cluster's launcher does, follows it, and carries on with its checkpoint.
"""

import contextlib
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pandas as pd

from thyroid_lib.common.progress import status
from thyroid_lib.training import checkpoint, loop
from thyroid_lib.training.identity import identity_of, put_aside
from thyroid_lib.training.settings import check_rows

PARENT = "THYROID_PARENT"  # set for workers that must not outlive the process which started them
JOB, LOG = "job.json", "workers.log"


def fit(
    settings: loop.Settings,
    crops,
    train: np.ndarray,
    validation: np.ndarray,
    folder: str | Path,
    *,
    initial: str | Path | dict | None = None,
    labels: np.ndarray | None = None,
    title: str = "training",
    on_epoch: Callable[[pd.DataFrame], None] | None = None,
    set_aside: bool = False,
) -> loop.Fit:
    """`loop.fit` on `settings.devices` processes of this machine; arguments, result and errors as there.

    With more than one, the crops must lie in a folder, which the workers open themselves.

    Raises:
        TrainingError: a worker failed; the end of its log is in the message.
    """
    options = {"initial": initial, "labels": labels, "title": title}
    if settings.devices == 1 or "LOCAL_RANK" in os.environ:
        return loop.fit(
            settings, crops, train, validation, folder, on_epoch=on_epoch, set_aside=set_aside, **options
        )
    check_rows(settings, np.asarray(crops.labels if labels is None else labels), train, validation)
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
        raise loop.TrainingError(
            f"{settings.devices} worker processes were started and one failed (exit status "
            f"{process.returncode}): {_reason(folder / LOG)}"
        )
    return loop.fit(replace(settings, devices=1), crops, train, validation, folder, **options)


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


def run_job(path: str | Path) -> loop.Fit:
    """Does what `write_job` wrote; under torchrun each rank calls it."""
    from thyroid_lib.data.crops import Crops

    if os.environ.get(PARENT) == "stdin":
        threading.Thread(target=_end_with_parent, daemon=True).start()
    job = json.loads(Path(path).read_text(encoding="utf-8"))
    return loop.fit(
        loop.Settings(**job["settings"]),
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
