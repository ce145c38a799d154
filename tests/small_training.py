"""Small trainings: a narrow network, and crops whose class is where the bright spot lies."""

import contextlib
import itertools
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors.torch import load_file

from thyroid_lib.training import loop

MODEL = {"name": "optimized_xception", "num_classes": 4, "in_chans": 1, "width": 0.0625, "middle_blocks": 1}
TRAIN, VALIDATION = np.arange(26), np.arange(26, 40)


@dataclass
class Spots:
    """As `crops.Crops`, in memory."""

    images: np.ndarray
    labels: np.ndarray
    hash: str = "spots"


def spots() -> Spots:
    random, labels = np.random.default_rng(0), np.arange(40) % 4
    images = random.integers(0, 80, (40, 32, 32), dtype=np.uint8)
    for image, label in zip(images, labels):
        y, x = divmod(int(label), 2)
        image[4 + 12 * y : 14 + 12 * y, 4 + 12 * x : 14 + 12 * x] += 120
    return Spots(images, labels)


def asked(**changes) -> loop.Settings:
    plain = {"model": MODEL, "epochs": 2, "batch_size": 9, "lr": 2e-3, "precision": "32", "threads": 1}
    return loop.Settings(**plain | changes)


def trained(folder, crops=None, train=TRAIN, validation=VALIDATION, *, options=None, **changes) -> loop.Fit:
    return loop.fit(asked(**changes), crops or spots(), train, validation, folder, **options or {})


def interrupted(*arguments, **changes) -> tuple[loop.Fit, int]:
    """`trained`, interrupted after each epoch and started again; and how often it was started."""

    def stop(history):
        raise KeyboardInterrupt

    for starts in itertools.count(1):
        with contextlib.suppress(KeyboardInterrupt):
            return trained(*arguments, options={"on_epoch": stop}, **changes), starts


def largest_difference(a: Path, b: Path) -> float:
    """Between the values of two files of weights, which have the same entries."""
    first, second = load_file(a), load_file(b)
    assert first.keys() == second.keys()
    return max(float((first[name].double() - second[name].double()).abs().max()) for name in first)
