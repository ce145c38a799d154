"""How fast training is, beside the plain way of doing it and beside what the machine could do at most.

    python benchmarks/training.py                       # two CPU cores: three minutes at 128 px
    python benchmarks/training.py --size 224 --size 299 # with a GPU
    python benchmarks/training.py --smoke               # seconds; its numbers mean nothing

Contestants take turns, round after round, so that a busy machine disturbs all alike; medians count. Each has a
process of its own, as in use: our loop's way with memory is not lent to the others.

    ours         our loop and the optimized network: crops from one file, augmentation on batches, channels last,
                 the probed precision, clipping, fused optimizer
    plain        the same network as one would write it down: frames decoded one by one, float32, contiguous
    timm_plain   timm's legacy_xception, the same plain way
    timm_best    timm's legacy_xception, channels last and the probed precision, data already on the device
    matrix       the machine's bfloat16 matrix rate, measured after every turn: shares are of that one, medians of them

After them our network's processor time by operator, as PyTorch's profiler sees it (`profile`).

Writes benchmarks/results/training-<device>.json.
"""

import argparse
import contextlib
import json
import os
import platform
import statistics
import sys
import tempfile
import time
from pathlib import Path

import cv2
import numpy as np
import psutil
import torch
import turns
from torch import nn

from thyroid_lib import network
from thyroid_lib.inspection.structure import gmacs
from thyroid_lib.training import hardware, loop
from thyroid_lib.training.checkpoint import identity_of

CLASSES = 4
MODEL = {"name": "optimized_xception", "num_classes": CLASSES, "in_chans": 1}


class Crops:
    """Random crops in one file, as notebook 01 leaves them."""

    hash = "benchmark"

    def __init__(self, folder: Path, count: int, size: int, sparse: bool = False):
        path = Path(folder) / f"crops-{count}-{size}.npy"
        array = np.lib.format.open_memmap(path, "w+", np.uint8, (count, size, size))
        if not sparse:
            array[:] = np.random.default_rng(0).integers(0, 256, array.shape, np.uint8)
        array.flush()
        self.images = np.load(path, mmap_mode="r")
        self.labels = np.arange(count) % CLASSES


class Ours:
    """Our loop: epochs of `steps` batches; `loop` is the share of the last turn that was not the network's."""

    def __init__(self, folder: Path, size: int, batch: int, steps: int, model: dict, precision: str = "auto"):
        crops = Crops(folder, batch * steps + CLASSES, size)
        rows = np.arange(len(crops.labels))
        settings = loop.Settings(model=model, epochs=10_000, batch_size=batch, precision=precision)
        train, validation = rows[:-CLASSES], rows[-CLASSES:]
        identity = identity_of(settings, crops, train, validation, crops.labels, None)
        target = Path(folder) / f"ours-{size}"
        self.run = loop.Training(
            settings, crops, train, validation, target, None, crops.labels, "benchmark", identity
        )
        self.seconds = {"forward": 0.0, "backward": 0.0, "optimizer": 0.0}
        self.run.wrapped = _Timed(self.run.wrapped, self.seconds, "forward")
        self.run.fabric.backward = _timed(self.run.fabric.backward, self.seconds, "backward")
        self.run.stepper.step = _timed(self.run.stepper.step, self.seconds, "optimizer")
        self.images, self.loop, self.epoch = len(train), None, 0

    def __call__(self) -> float:
        self.seconds.update(dict.fromkeys(self.seconds, 0.0))
        begin = time.perf_counter()
        self.run.learn(self.epoch)
        seconds = time.perf_counter() - begin
        self.epoch += 1
        if self.run.fabric.device.type == "cpu":  # calls return before their work is done elsewhere
            self.loop = 1 - sum(self.seconds.values()) / seconds
        return seconds / self.images


class Plain:
    """Frames decoded, cut and resized one by one, then float32, contiguous, a step."""

    def __init__(self, folder: Path, size: int, batch: int, steps: int, model: nn.Module, chans: int, device):
        self.files, rng = [], np.random.default_rng(1)
        for i in range(batch):
            frame = cv2.GaussianBlur(rng.integers(0, 256, (360, 560), np.uint8), (0, 0), 2)
            self.files.append(str(Path(folder) / f"frame-{i}.png"))
            cv2.imwrite(self.files[-1], frame)
        self.size, self.steps, self.chans, self.device = size, steps, chans, device
        self.model = model.to(device).train()
        self.optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=False, foreach=False)
        self.loss = nn.CrossEntropyLoss()

    def __call__(self) -> float:
        begin = time.perf_counter()
        for _ in range(self.steps):
            images = []
            for path in self.files:
                frame = cv2.imread(path, cv2.IMREAD_GRAYSCALE)
                image = cv2.resize(frame[8:312, 60:500], (self.size, self.size), interpolation=cv2.INTER_AREA)
                images.append(torch.from_numpy(image)[None].float() / 127.5 - 1)
            x = torch.stack(images).expand(-1, self.chans, -1, -1).contiguous().to(self.device)
            y = (torch.arange(len(x)) % CLASSES).to(self.device)
            self.optimizer.zero_grad()
            loss = self.loss(self.model(x), y)
            loss.backward()
            self.optimizer.step()
            loss.item()  # as the plain loop prints it
        return (time.perf_counter() - begin) / (self.steps * len(self.files))


class Bare:
    """A network under its best settings with the data at hand: forward, backward, optimizer, nothing else."""

    def __init__(
        self, size: int, batch: int, steps: int, model: nn.Module, chans: int, device, precision: str
    ):
        self.model = model.to(device, memory_format=torch.channels_last).train()
        self.optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True)
        self.x = torch.randn(batch, chans, size, size, device=device).to(memory_format=torch.channels_last)
        self.y = torch.arange(batch, device=device) % CLASSES
        self.steps, self.device, self.bf16 = steps, device, precision == "bf16-mixed"

    def __call__(self) -> float:
        begin = time.perf_counter()
        for _ in range(self.steps):
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16):
                loss = nn.functional.cross_entropy(self.model(self.x).float(), self.y)
            loss.backward()
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)
        _wait(self.device)
        return (time.perf_counter() - begin) / (self.steps * len(self.x))


class _Timed(nn.Module):
    def __init__(self, module: nn.Module, seconds: dict, name: str):
        super().__init__()
        self.module, self.call = module, _timed(module, seconds, name)

    def forward(self, *arguments):
        return self.call(*arguments)


def _timed(function, seconds: dict, name: str):
    def call(*arguments, **options):
        begin = time.perf_counter()
        result = function(*arguments, **options)
        seconds[name] += time.perf_counter() - begin
        return result

    return call


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def matrix_rate(device: torch.device, size: int = 2048, rounds: int = 5) -> float:
    """FLOP/s of a square bfloat16 matrix product, the median of several rounds; 2 size³ per product."""
    a, b = torch.randn(2, size, size, device=device).to(torch.bfloat16)
    repeats, seconds = 1 if device.type == "cpu" else 50, []
    for _ in range(rounds + 1):
        begin = time.perf_counter()
        for _ in range(repeats):
            torch.mm(a, b)
        _wait(device)
        seconds.append((time.perf_counter() - begin) / repeats)
    return 2 * size**3 / statistics.median(seconds[1:])


def race(size: int, batch: int, steps: int, rounds: int, width: float, folder: Path) -> dict:
    """One table: images/s of every contestant at one size.

    Returns:
        Plain values, ready for JSON.
    """
    device = _device()
    model = MODEL | {"width": width}
    precision, why = hardware.choose_precision("auto", device, network.build(model), size)
    macs = {"ours": gmacs(network.build(model), size)}
    macs["plain"] = macs["ours"]
    try:
        macs["timm_plain"] = macs["timm_best"] = gmacs(peer(), size)
    except ImportError:
        print("timm is not installed: its rows are left out", file=sys.stderr)
    times, rates, shares = {name: [] for name in macs}, {name: [] for name in macs}, []
    asked = [size, batch, steps, width, precision, str(folder)]
    with contextlib.ExitStack() as stack:
        contestants = {
            name: stack.enter_context(turns.Contestant(__file__, "--contestant", json.dumps([name, *asked])))
            for name in macs
        }
        for name, found in turns.take(contestants, rounds):
            times[name].append(found["seconds"])
            rate = matrix_rate(device)  # at the clock the contestant had
            rates[name].append(rate)
            if found["loop"] is not None:
                shares.append(found["loop"])
    table = {}
    for name, seconds in times.items():
        per_second = 1 / statistics.median(seconds)
        table[name] = {
            "images_per_second": round(per_second, 2),
            "lowest_and_highest": [round(1 / max(seconds), 2), round(1 / min(seconds), 2)],
            "gmacs_forward": round(macs[name], 3),
            "images_per_second_times_gmacs": round(per_second * macs[name], 2),
            "share_of_matrix_rate": round(
                statistics.median(6e9 * macs[name] / s / rate for s, rate in zip(seconds, rates[name])), 4
            ),
        }
    return {
        "size": size,
        "batch": batch,
        "rounds": rounds,
        "precision": precision,
        "precision_why": why,
        "matrix_gflops": round(statistics.median(rate for each in rates.values() for rate in each) / 1e9, 1),
        "contestants": table,
        "ours_over_plain": round(table["ours"]["images_per_second"] / table["plain"]["images_per_second"], 3),
        "loop_overhead": round(statistics.median(shares), 4) if shares else None,
    }


def contest(name: str, size: int, batch: int, steps: int, width: float, precision: str, folder: str) -> None:
    """What a contestant does in its turn; gives seconds per image, and the loop's share or None."""
    device, model = _device(), MODEL | {"width": width}
    folder = Path(folder) / name
    folder.mkdir()
    if name == "ours":
        contestant = Ours(folder, size, batch, steps, model)
    elif name == "plain":
        contestant = Plain(folder, size, batch, 1, network.build(model), 1, device)
    elif name == "timm_plain":
        contestant = Plain(folder, size, batch, 1, peer(), 3, device)
    else:
        contestant = Bare(size, batch, steps, peer(), 3, device, precision)

    def turn(_: str) -> dict:
        contestant()  # warm after the others have had the processor
        return {"seconds": contestant(), "loop": getattr(contestant, "loop", None)}

    turns.serve(turn)


def peer() -> nn.Module:
    """timm's `legacy_xception`."""
    import timm

    model = timm.create_model("legacy_xception", num_classes=CLASSES)
    model.config = {"in_chans": 3}
    return model


def _device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def profile(
    size: int, batch: int, width: float, precision: str, steps: int = 3, most: int = 20
) -> list[dict]:
    """Where a step of our network spends its time: processor time by operator, its own without what it calls."""
    device = _device()
    bare = Bare(size, batch, steps, network.build(MODEL | {"width": width}), 1, device, precision)
    bare()
    activity = torch.profiler.ProfilerActivity
    with torch.profiler.profile(
        activities=[activity.CUDA if device.type == "cuda" else activity.CPU]
    ) as found:
        bare()
    clock = "self_device_time_total" if device.type == "cuda" else "self_cpu_time_total"
    rows = {row.key: row for row in found.key_averages()}
    times = {name: getattr(row, clock) for name, row in rows.items()}
    return [
        {
            "operator": name,
            "share": round(times[name] / sum(times.values()), 4),
            "milliseconds_per_image": round(times[name] / 1e3 / steps / batch, 4),
            "calls_per_step": rows[name].count // steps,
        }
        for name in sorted(times, key=times.get, reverse=True)[:most]
    ]


def flatness(size: int, batch: int, counts: list[int], folder: Path) -> list[dict]:
    """Whether an image costs the same in time and memory however many crops there are.

    The loop around the network alone: order, reading, augmentation, normalization of 100 batches.
    """
    rows = []
    process = psutil.Process()
    for count in counts:
        crops = Crops(folder, count, size, sparse=True)
        model = MODEL | {"width": 0.0625, "middle_blocks": 1}
        settings = loop.Settings(model=model, batch_size=batch, precision="32")
        train, validation = np.arange(count - CLASSES), np.arange(count - CLASSES, count)
        identity = identity_of(settings, crops, train, validation, crops.labels, None)
        target = Path(folder) / f"flat-{count}"
        run = loop.Training(
            settings, crops, train, validation, target, None, crops.labels, "benchmark", identity
        )
        order = np.resize(loop.epoch_order(settings.seed, train, 0), 100 * batch)
        run.batch(order[:batch], 0)
        before, seconds = process.memory_info().rss, []
        for start in range(0, len(order), batch):
            begin = time.perf_counter()
            run.batch(order[start : start + batch], 0)
            seconds.append(time.perf_counter() - begin)
        rows.append(
            {
                "crops": count,
                "milliseconds_per_image": round(1e3 * statistics.median(seconds) / batch, 4),
                "resident_mib": round(process.memory_info().rss / 2**20),
                "grown_mib": round((process.memory_info().rss - before) / 2**20),
            }
        )
    return rows


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--size", type=int, action="append", help="px; may be given several times (128)")
    parser.add_argument("--batch", type=int, default=0, help="images of a batch (32; 64 on a GPU)")
    parser.add_argument("--steps", type=int, default=2, help="batches of a turn")
    parser.add_argument("--rounds", type=int, default=9, help="turns of each contestant that count")
    parser.add_argument("--width", type=float, default=1.0, help="of our network")
    parser.add_argument("--smoke", action="store_true", help="a narrow network at 32 px, one round")
    parser.add_argument("--contestant", type=json.loads, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.contestant:
        contest(*options.contestant)
        return 0
    cuda = torch.cuda.is_available()
    batch = options.batch or (64 if cuda else 32)
    sizes, steps, rounds, width = options.size or [128], options.steps, options.rounds, options.width
    counts = [1_000, 10_000, 100_000]
    if options.smoke:
        sizes, batch, steps, rounds, width, counts = [32], 4, 1, 1, 0.0625, [100, 1000]
    with tempfile.TemporaryDirectory() as folder:
        tables = [race(size, batch, steps, rounds, width, Path(folder)) for size in sizes]
        operators = profile(sizes[0], batch, width, tables[0]["precision"])
        flat = flatness(sizes[0], batch, counts, Path(folder))
    content = {
        "hardware": hardware.describe(),
        "python": platform.python_version(),
        "load_before": round(os.getloadavg()[2], 2) if hasattr(os, "getloadavg") else None,
        "command": " ".join(["python benchmarks/training.py", *sys.argv[1:]]),
        "width": width,
        "tables": tables,
        "profile": operators,
        "flatness": flat,
    }
    turns.report(f"training-{'cuda' if cuda else 'cpu'}", content, options.smoke)
    return 0


if __name__ == "__main__":
    sys.exit(main())
