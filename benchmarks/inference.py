"""How fast a saved classifier answers, by back-end, beside timm's `legacy_xception` in eager fp32.

    python benchmarks/inference.py           # full-width network, 128 and 299 px: about ten minutes on two cores
    python benchmarks/inference.py --smoke   # seconds; its numbers mean nothing

Contestants take turns, round after round, so that a busy machine disturbs all alike; medians count. Each has a
process of its own, as in use. All get the same uint8 crops and give logits; weights are random, which does not change
the speed (a trained network's close calls are decided again in fp32 and cost bfloat16 a little of its lead).

    single, batch    images a second, one at a time and in batches of 16
    parity           from the export: largest difference of a probability, fraction of crops with the same type
    start            seconds from calling `classify` on one 560 x 360 JPEG to its end, beside a process that only
                     imports torch and OpenCV and runs the same network once, and beside that ratio's limit, 1.6

Needs the extras `deploy` and `peers`. Writes benchmarks/results/inference.json.
"""

import argparse
import contextlib
import json
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
import turns
from PIL import Image

from thyroid_lib import LESION_TYPES, classifier, network, regions
from thyroid_lib.classifier import backends, definition, saving
from thyroid_lib.deploy import export
from thyroid_lib.phantoms import frame as phantoms
from thyroid_lib.training import hardware

CONTESTANTS = ("openvino bf16", "openvino fp32", "onnxruntime fp32", "torch bf16", "torch fp32")
PEER = "timm legacy_xception eager fp32"
BATCH = 16
TURN = 0.5  # seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--smoke", action="store_true")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument(
        "--threads", type=int, default=0, help="CPU threads of every contestant; 0: all cores"
    )
    parser.add_argument("--contestant", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--turn", type=float, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    if options.contestant:
        contest(options.contestant, options.folder, options.threads, options.turn)
        return
    rounds, width, blocks = (2, 0.125, 1) if options.smoke else (options.rounds, 1.0, 8)
    frames = [
        phantoms.render(patient).image for patient in phantoms.patients("clinic", 4 if options.smoke else 32)
    ]
    result = {
        "machine": hardware.describe(),
        "smoke": options.smoke,
        "command": " ".join(["python benchmarks/inference.py", *sys.argv[1:]]),
        "versions": definition.versions(*saving.PACKAGES),
        "sizes": {},
    }
    with tempfile.TemporaryDirectory() as place:
        for size in (64,) if options.smoke else (128, 299):
            folder = make(Path(place) / str(size), size, width, blocks, frames)
            result["sizes"][size] = measure(
                folder, size, frames, rounds, options.threads, 0.0 if options.smoke else TURN
            )
            if size in (64, 128):
                result["start"] = start(folder, Path(place), frames[0], rounds)
    turns.report("inference", result, options.smoke)


def make(folder: Path, size: int, width: float, blocks: int, frames) -> Path:
    """A classifier of random weights, exported."""
    torch.manual_seed(0)
    model = network.optimized_xception(len(LESION_TYPES), 1, width=width, middle_blocks=blocks)
    torch.nn.init.constant_(
        model.fc.bias[:1].detach(), 4.0
    )  # a sure answer: no close calls for fp32 to decide
    crops = np.stack([regions.extract(frame, size, regions.RECIPE)[0] for frame in frames])
    with torch.no_grad():  # BatchNorm learns the crops' statistics, so that the answers are no constant
        for _ in range(3):
            model.train()(network.normalize(torch.from_numpy(crops[:BATCH])))
    about = {
        "architecture": model.config,
        "classes": [
            {"key": key, "english": english, "chinese": chinese}
            for key, (english, chinese) in LESION_TYPES.items()
        ],
        "recipe": asdict(regions.RECIPE),
        "size": size,
        "temperature": [1.0],
        "operating_points": dict.fromkeys(LESION_TYPES, 0.5),
        "training": {"simulated": True, "title": "random weights, for timing only"},
        "conformal": {"coverage": 0.9, "threshold": 1.0, "n": 0},
    }
    members, pair = [model.eval().state_dict()], (np.repeat(crops, 4, 0), crops)
    classifier.save(folder, about, members=members, novelty_crops=pair)
    export.export(classifier.Classifier.load(folder, backend="torch"), crops, source="simulated frames")
    return folder


def measure(folder: Path, size: int, frames, rounds: int, threads: int, turn: float) -> dict:
    """Images a second of every contestant and of timm, and how they compare; a turn lasts `turn` seconds."""
    crops = np.stack([regions.extract(frame, size, regions.RECIPE)[0] for frame in frames])
    np.save(folder / "crops.npy", np.resize(crops, (BATCH, size, size)))
    options = ["--threads", str(threads), "--folder", str(folder), "--turn", str(turn)]
    found = {}
    with contextlib.ExitStack() as stack:
        workers = {
            name: stack.enter_context(turns.Contestant(__file__, "--contestant", name, *options))
            for name in (*CONTESTANTS, PEER)
        }
        for what in ("single", "batch"):
            times = {name: [] for name in workers}
            for name, seconds in turns.take(workers, rounds, what):
                times[name].append(seconds)
            found[what] = {name: round(1 / statistics.median(t), 2) for name, t in times.items()}
            fastest = max(CONTESTANTS, key=found[what].get)
            ratios = [peer / ours for peer, ours in zip(times[PEER], times[fastest])]
            found[f"{what}_fastest"] = {
                "backend": fastest,
                "times_timm": round(found[what][fastest] / found[what][PEER], 2),
                "lowest_and_highest_of_a_round": [round(min(ratios), 2), round(max(ratios), 2)],
            }
    found["parity"] = json.loads((folder / definition.ONNX_RECORD).read_text(encoding="utf-8"))["parity"]
    return found


def contest(name: str, folder: Path, threads: int, seconds: float) -> None:
    """What a contestant does in its turn, "single" or "batch": images for some seconds; gives seconds per image."""
    crops = np.load(folder / "crops.npy")
    if name == PEER:
        run = eager()
    else:
        backend, precision = name.split()
        run = backends.open_backend(folder, definition.read(folder), backend, precision, threads)

    def turn(what: str) -> float:
        count = {"single": 1, "batch": BATCH}[what]
        run(crops[:count])  # warm after the others have had the processor
        done, began = 0, time.perf_counter()
        while not done or time.perf_counter() - began < seconds:
            first = done % BATCH
            run(crops[first : first + count])
            done += count
        return (time.perf_counter() - began) / done

    turns.serve(turn)


def eager():
    """timm's `legacy_xception` as its users run it."""
    import timm

    peer = timm.create_model("legacy_xception", num_classes=len(LESION_TYPES)).eval()

    def run(images):
        with torch.inference_mode():
            return peer(network.normalize(torch.from_numpy(images), 3).contiguous()).numpy()

    return run


def start(folder: Path, place: Path, frame: np.ndarray, rounds: int) -> dict:
    """Seconds of whole commands, medians; `classify` by back-end against the bare imports and one pass."""
    Image.fromarray(frame).resize((560, 360)).save(place / "frame.jpg", quality=95)
    config = json.dumps(definition.read(folder)["architecture"])
    size = definition.read(folder)["size"]
    bare = "import torch, cv2"
    once = (
        f"{bare}; from thyroid_lib import network; import json\n"
        f"model = network.build(json.loads('''{config}''')).eval()\n"
        f"with torch.inference_mode(): model(torch.zeros(1, 1, {size}, {size}))"
    )
    classify = [sys.executable, "-m", "thyroid_lib", "classify", str(place / "frame.jpg"), "--json"]
    commands = {
        "import torch, cv2": [sys.executable, "-c", bare],
        "the same and one pass": [sys.executable, "-c", once],
    }
    for name in ("torch", "onnxruntime", "openvino"):
        commands[f"classify, {name}"] = [*classify, "--classifier", str(folder), "--backend", name]
    times = {name: [] for name in commands}
    for turn in range(min(rounds, 7) + 1):
        for name, command in commands.items():
            began = time.perf_counter()
            subprocess.run(command, check=True, capture_output=True)
            if turn:  # the first turn fills the disk's cache
                times[name].append(time.perf_counter() - began)
    seconds = {name: round(statistics.median(t), 3) for name, t in times.items()}
    ratio = seconds["classify, torch"] / seconds["the same and one pass"]
    return {"seconds": seconds, "torch_against_one_pass": round(ratio, 2), "limit": 1.6}


if __name__ == "__main__":
    main()
