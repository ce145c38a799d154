"""The machine's part of a training: devices, ranks and arithmetic, probed and not assumed.

Ranks are PyTorch's own processes that share each batch: `launch` starts `torchrun` on this machine with the `train`
command, exactly what a cluster's launcher does, and follows it; `loop.fit` then carries on with its checkpoint.

A probe times the network that is to be trained, in float32 and under bfloat16 autocast. Because a later run
must choose the same, the outcome is kept per network, machine and PyTorch version in the cache folder, and in
every checkpoint.
"""

import contextlib
import copy
import inspect
import json
import logging
import os
import platform
import re
import subprocess
import sys
import threading
import time
from dataclasses import asdict, replace
from pathlib import Path

import torch
from torch import nn

from thyroid_lib.common.files import cache_folder, read_json, write_json, write_text
from thyroid_lib.common.fingerprint import digest
from thyroid_lib.common.memory import keep_memory
from thyroid_lib.common.progress import status
from thyroid_lib.data.rows import RowReader
from thyroid_lib.training import checkpoint
from thyroid_lib.training.settings import PRECISIONS, Settings, TrainingError

GAIN = 1.05  # bfloat16 is chosen where it is at least this much faster: below, the probe's noise decides
PARENT = "THYROID_PARENT"  # set for workers that must not outlive the process which started them


def open_fabric(asked: str, state: dict, model: nn.Module, reader: RowReader):
    """Fabric for this process, alone or one of torchrun's.

    Args:
        asked: the precision: "auto", "32" or "bf16".
        state: of the checkpoint; "environment" is kept from its first start, "choices", what was chosen for this
            machine and why, is written.
        model: to probe precisions with.
        reader: of the crops, which are kept on a GPU that has room for them.

    Returns:
        lightning_fabric.Fabric, launched.
    """
    from lightning_fabric import Fabric

    accelerator = "cuda" if torch.cuda.is_available() else "cpu"
    world = int(os.environ.get("WORLD_SIZE", 1)) if "LOCAL_RANK" in os.environ else 1
    local = int(os.environ.get("LOCAL_WORLD_SIZE", world)) if world > 1 else 1
    if "environment" in state and asked == "auto":
        precision, why = state["environment"]["precision"], "as the checkpoint began"
    else:
        precision, why = choose_precision(asked, torch.device(accelerator), model, reader.images.shape[1])
    logging.getLogger("lightning_fabric").setLevel(logging.WARNING)  # the precision is told with the choices
    place = {"accelerator": accelerator, "devices": local, "num_nodes": world // local}
    fabric = Fabric(**place, strategy="ddp" if world > 1 else "auto", precision=precision)
    fabric.launch()
    if accelerator == "cuda":
        reader.keep_on(fabric.device)
    now = {"precision": precision, "device": accelerator, "processes": world}
    now |= {"threads": torch.get_num_threads(), "torch": torch.__version__}
    state["choices"] = now | {
        "precision_why": why,
        "memory_format": "channels-last",
        "optimizer": "fused AdamW",
        "memory": "freed memory is kept for the next step" if keep_memory() else "as the system does it",
        "data": f"uint8 crops {reader.where}; augmentation on batches on the device",
    }
    different = checkpoint.differences(state.setdefault("environment", now), now)
    if different:
        state["choices"]["resumed_elsewhere"] = "; ".join(different) + ": bits may differ"
    return fabric


def launch(settings, crops, train, validation, folder, initial, labels, title, on_epoch) -> Settings:
    """Trains on `settings.devices` processes of this machine until they end; arguments as `loop.fit`.

    They are told in one JSON file, for `python -m thyroid_lib train --job`. Nothing is done for one device, nor in a
    process that is one of torchrun's.

    Returns:
        The settings of what is left to do here, with one device.

    Raises:
        ValueError: the crops do not lie in a folder.
        TrainingError: a worker failed; the end of its log is in the message.
    """
    if settings.devices == 1 or "LOCAL_RANK" in os.environ:
        return settings
    if not hasattr(crops, "folder"):
        raise ValueError("several processes need crops that lie in a folder (crops.build), an array came")
    if isinstance(initial, dict):
        checkpoint.save_weights(folder / "initial.safetensors", initial, {})
        initial = folder / "initial.safetensors"
    rows = {"train": train.tolist(), "validation": validation.tolist(), "labels": labels.tolist()}
    places = {"crops": crops.folder, "folder": folder, "initial": initial}
    job = {"settings": asdict(settings), "title": title} | rows
    job |= {name: place and str(Path(place).resolve()) for name, place in places.items()}
    path, said, log = (folder / name for name in ("job.json", ".status", "workers.log"))
    write_text(path, json.dumps(job))
    launcher = ["torch.distributed.run", "--standalone", f"--nproc-per-node={settings.devices}"]
    command = [sys.executable, "-m", *launcher, "-m", "thyroid_lib", "train", "--job", path]
    threads = settings.threads or max(1, (os.cpu_count() or 1) // settings.devices)
    environment = os.environ | {"THYROID_STATUS": str(said), "OMP_NUM_THREADS": str(threads), PARENT: "stdin"}
    with open(log, "w", encoding="utf-8") as file:
        streams = {"stdin": subprocess.PIPE, "stdout": file, "stderr": subprocess.STDOUT}
        with subprocess.Popen(command, env=environment, **streams) as process:
            try:
                _follow(process, folder, said, on_epoch, title)
            finally:
                process.terminate()
                process.wait(30)
                said.unlink(missing_ok=True)
    if process.returncode:
        lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
        told = dict.fromkeys(line.removeprefix("train: ") for line in lines if line.startswith("train: "))
        raise TrainingError(
            f"{settings.devices} worker processes were started and one failed (exit status {process.returncode}): "
            + (" ".join(told) or f"see {log}, which ends with\n" + "\n".join(lines[-25:]))
        )
    return replace(settings, devices=1)


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


def describe() -> dict:
    """Processor, threads, memory and accelerators, as plain values for run.json."""
    import psutil

    memory = round(psutil.virtual_memory().total / 2**30, 1)
    cuda = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    about = {"processor": processor(), "threads": torch.get_num_threads(), "memory_gib": memory}
    return about | {"cuda": cuda, "torch": torch.__version__}


def peak_memory_mib() -> int | None:
    """The largest resident memory of this process so far; None where the system does not tell."""
    try:
        import resource
    except ImportError:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(peak / (2**20 if sys.platform == "darwin" else 2**10))


def processor() -> str:
    """The processor's model name and whether it has bfloat16 instructions."""
    about = {}
    with contextlib.suppress(OSError):
        about = dict(re.findall(r"^(model name|flags)\s*: (.*)$", Path("/proc/cpuinfo").read_text(), re.M))
    name = about.get("model name", platform.processor() or platform.machine())
    units = [unit for unit in ("avx512_bf16", "amx_bf16", "avx2") if unit in about.get("flags", "").split()]
    return f"{name} ({', '.join(units)})" if units else name


def choose_precision(
    asked: str, device: torch.device, model: nn.Module | None = None, size: int = 96
) -> tuple[str, str]:
    """Chooses between float32 and bfloat16 autocast.

    Args:
        asked: "32", "bf16", or "auto" for whatever is faster here.
        device: where the training runs.
        model: the network to be trained, with its `config`; for "auto" on a CPU.
        size: side of its images, px.

    Returns:
        Fabric's name of the precision ("32-true" or "bf16-mixed"), and the reason in words.

    Raises:
        ValueError: `asked` is none of the three.
    """
    if asked not in PRECISIONS:
        raise ValueError(f"precision: expected one of {', '.join(PRECISIONS)}; {asked!r} came")
    if asked != "auto":
        fast = asked == "bf16"
        why = f"{'bfloat16 autocast' if fast else 'float32'} was asked for"
    elif device.type == "cuda":
        fast = torch.cuda.is_bf16_supported(including_emulation=False)
        why = f"{torch.cuda.get_device_name(device)} has {'' if fast else 'no '}bfloat16 units"
    else:
        times = _probed(model, size)
        gain = times["float32"] / times["bfloat16"]
        fast = gain >= GAIN
        why = f"this network, probed on one thread, learns {gain:.2f} times as fast in bfloat16 as in float32"
        why += "" if fast else f"; {GAIN} times is asked for"
    return "bf16-mixed" if fast else "32-true", why


def probe(model: nn.Module, size: int, rounds: int = 6) -> dict[str, float]:
    """Times forward and backward passes of a network, the two precisions in turn.

    On one thread and in processor time, so that whatever else the machine is doing disturbs it little. The
    network is copied and left as it is.

    Args:
        model: with `config["in_chans"]`.
        size: side of the images, px.
        rounds: measurements of each after one that does not count; the fastest counts.

    Returns:
        Seconds per pass of a small batch, 16 images: {"float32", "bfloat16"}.
    """
    threads, times = torch.get_num_threads(), {"float32": [], "bfloat16": []}
    model = copy.deepcopy(model).to(memory_format=torch.channels_last).train()
    x = torch.linspace(-1, 1, 16 * size * size).reshape(16, 1, size, size)
    x = x.expand(-1, model.config["in_chans"], -1, -1).contiguous(memory_format=torch.channels_last)
    torch.set_num_threads(1)
    try:
        for _ in range(rounds + 1):
            for name, seconds in times.items():
                begin = time.thread_time()
                with torch.autocast("cpu", torch.bfloat16, enabled=name == "bfloat16"):
                    y = model(x)
                y.float().sum().backward()
                seconds.append(time.thread_time() - begin)
    finally:
        torch.set_num_threads(threads)
    return {name: min(seconds[1:]) for name, seconds in times.items()}


def _probed(model: nn.Module, size: int) -> dict[str, float]:
    what = json.dumps([model.config, size, torch.__version__, processor(), inspect.getsource(probe)])
    path = cache_folder() / f"precision-{digest(what)[:16]}.json"
    with contextlib.suppress(OSError, ValueError):  # a damaged note is probed again
        if times := read_json(path):
            return times
    times = probe(model, size)
    with contextlib.suppress(OSError):
        write_json(path, times)
    return times
