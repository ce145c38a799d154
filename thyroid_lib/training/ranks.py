"""More than one process: ranks that share each batch.

Ranks are PyTorch's own: `launch` starts `torchrun` on this machine with the `train` command, exactly what a
cluster's launcher does, and follows it; `loop.fit` then carries on with its checkpoint.
"""

import contextlib
import json
import os
import subprocess
import sys
import threading
import time
from dataclasses import asdict
from pathlib import Path

from thyroid_lib.common.files import write_text
from thyroid_lib.common.progress import status
from thyroid_lib.training import checkpoint
from thyroid_lib.training.settings import TrainingError

PARENT = "THYROID_PARENT"  # set for workers that must not outlive the process which started them
JOB, LOG = "job.json", "workers.log"


def launch(settings, crops, train, validation, folder, initial, labels, title, on_epoch) -> None:
    """Trains on `settings.devices` processes of this machine until they end; arguments as `loop.fit`.

    Raises:
        ValueError: the crops do not lie in a folder.
        TrainingError: a worker failed; the end of its log is in the message.
    """
    said, log = folder / ".status", folder / LOG
    write_job(settings, crops, train, validation, folder, initial, labels, title)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += [f"--nproc-per-node={settings.devices}", "-m", "thyroid_lib", "train", "--job", folder / JOB]
    threads = settings.threads or max(1, (os.cpu_count() or 1) // settings.devices)
    environment = os.environ | {"THYROID_STATUS": str(said), "OMP_NUM_THREADS": str(threads), PARENT: "stdin"}
    with open(log, "w", encoding="utf-8") as file:
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=file, stderr=subprocess.STDOUT, env=environment
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
        lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
        told = dict.fromkeys(line.removeprefix("train: ") for line in lines if line.startswith("train: "))
        raise TrainingError(
            f"{settings.devices} worker processes were started and one failed (exit status {process.returncode}): "
            + (" ".join(told) or f"see {log}, which ends with\n" + "\n".join(lines[-25:]))
        )


def write_job(settings, crops, train, validation, folder, initial, labels, title) -> None:
    """Writes a fit's arguments as one JSON file for `python -m thyroid_lib train --job`."""
    if not hasattr(crops, "folder"):
        raise ValueError("several processes need crops that lie in a folder (crops.build), an array came")
    if isinstance(initial, dict):
        checkpoint.save_weights(folder / "initial.safetensors", initial, {})
        initial = folder / "initial.safetensors"
    job = {
        "settings": asdict(settings),
        "crops": str(Path(crops.folder).resolve()),
        "train": train.tolist(),
        "validation": validation.tolist(),
        "labels": labels.tolist(),
        "initial": None if initial is None else str(Path(initial).resolve()),
        "title": title,
        "folder": str(folder.resolve()),
    }
    write_text(folder / JOB, json.dumps(job))


def end_with_parent() -> None:
    """Lets a worker end when the process that asked for it is gone, however it went: the pipe between them closes."""

    def watch() -> None:
        with contextlib.suppress(OSError):
            while os.read(0, 1):
                pass
        os._exit(1)

    if os.environ.get(PARENT) == "stdin":
        threading.Thread(target=watch, daemon=True).start()


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
            on_epoch(checkpoint.history_of(state, title))
