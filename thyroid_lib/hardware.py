"""What this machine is and which arithmetic it is fast at: probed, not assumed.

A probe times the network's typical block (a separable convolution with BatchNorm, forward and backward)
in float32 and under bfloat16 autocast. Because a later run must choose the same, the outcome is kept per
machine, PyTorch version and thread count in the cache folder, and in every checkpoint.
"""

import contextlib
import json
import os
import platform
import statistics
import sys
import tempfile
import time
from pathlib import Path

import torch
from torch import nn

from thyroid_lib.provenance import digest

PRECISIONS = ("auto", "32", "bf16")
GAIN = 1.15  # bfloat16 is chosen where it is at least this much faster: it also costs accuracy
_ROUNDS = 7


def describe() -> dict:
    """Processor, threads, memory and accelerators, as plain values for run.json."""
    import psutil

    cuda = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {
        "processor": processor(),
        "threads": torch.get_num_threads(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "cuda": cuda,
        "torch": torch.__version__,
    }


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
    name, flags = platform.processor() or platform.machine(), ""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                name = line.split(":", 1)[1].strip()
            if line.startswith("flags"):
                flags = line
                break
    units = [unit for unit in ("avx512_bf16", "amx_bf16", "avx2") if f" {unit}" in flags]
    return f"{name} ({', '.join(units)})" if units else name


def choose_precision(asked: str, device: torch.device) -> tuple[str, str]:
    """Chooses between float32 and bfloat16 autocast.

    Args:
        asked: "32", "bf16", or "auto" for whatever is faster here.
        device: where the training runs.

    Returns:
        Fabric's name of the precision ("32-true" or "bf16-mixed"), and the reason in words.

    Raises:
        ValueError: `asked` is none of the three.
    """
    if asked not in PRECISIONS:
        raise ValueError(f"precision: expected one of {', '.join(PRECISIONS)}; {asked!r} came")
    if asked == "32":
        return "32-true", "float32 was asked for"
    if asked == "bf16":
        return "bf16-mixed", "bfloat16 autocast was asked for"
    if device.type == "cuda":
        if torch.cuda.is_bf16_supported(including_emulation=False):
            return "bf16-mixed", f"{torch.cuda.get_device_name(device)} has bfloat16 units"
        return "32-true", f"{torch.cuda.get_device_name(device)} has no bfloat16 units"
    if device.type != "cpu":
        return "32-true", f"bfloat16 is not probed on {device.type}"
    times = _probed()
    gain = times["float32"] / times["bfloat16"]
    words = f"bfloat16 autocast ran the probe block {gain:.2f} times as fast as float32"
    if gain >= GAIN:
        return "bf16-mixed", words
    return "32-true", f"{words}, less than {GAIN} times"


def probe(rounds: int = _ROUNDS) -> dict[str, float]:
    """Times the typical block, the two precisions in turn.

    Args:
        rounds: measurements of each; the fastest counts, which a busy machine disturbs least.

    Returns:
        Seconds per forward and backward pass: {"float32", "bfloat16"}.
    """
    with torch.random.fork_rng():
        torch.manual_seed(0)
        block = nn.Sequential(
            nn.ReLU(),
            nn.Conv2d(256, 256, 3, padding=1, groups=256, bias=False),
            nn.Conv2d(256, 256, 1, bias=False),
            nn.BatchNorm2d(256),
        ).to(memory_format=torch.channels_last)
        x = torch.randn(8, 256, 16, 16).to(memory_format=torch.channels_last).requires_grad_()
    times = {"float32": [], "bfloat16": []}
    for _ in range(rounds + 2):
        for name, seconds in times.items():
            begin = time.perf_counter()
            with torch.autocast("cpu", torch.bfloat16, enabled=name == "bfloat16"):
                y = block(x)
            y.float().sum().backward()
            seconds.append(time.perf_counter() - begin)
    return {name: min(seconds[2:]) for name, seconds in times.items()}


def matrix_rate(dtype: torch.dtype = torch.bfloat16, size: int = 2048, rounds: int = 5) -> float:
    """FLOP/s of a square matrix product on the CPU, the median of several rounds; 2 size³ per product."""
    a, b = torch.randn(2, size, size).to(dtype)
    seconds = []
    for _ in range(rounds + 1):
        begin = time.perf_counter()
        torch.mm(a, b)
        seconds.append(time.perf_counter() - begin)
    return 2 * size**3 / statistics.median(seconds[1:])


def cache_folder() -> Path:
    """Where what is worth keeping between runs lies: $THYROID_CACHE, or the system's cache folder."""
    if os.environ.get("THYROID_CACHE"):
        return Path(os.environ["THYROID_CACHE"])
    base = os.environ.get("XDG_CACHE_HOME") or os.environ.get("LOCALAPPDATA") or Path.home() / ".cache"
    return Path(base) / "thyroid_lib"


def _probed() -> dict[str, float]:
    key = digest(processor(), torch.__version__, str(torch.get_num_threads()))[:16]
    path = cache_folder() / f"precision-{key}.json"
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        times = json.loads(path.read_text())
        return {"float32": float(times["float32"]), "bfloat16": float(times["bfloat16"])}
    times = probe()
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=path.parent, delete=False) as file:
            json.dump(times, file)
        os.replace(file.name, path)
    return times
