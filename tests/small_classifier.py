"""A small classifier and frames to give it, drawn without the study's other parts."""

import functools
from dataclasses import asdict

import cv2
import numpy as np
import torch

from thyroid_lib import LESION_TYPES, classifier, network, regions

SIZE = 64
CLASSES = list(LESION_TYPES)


def sector_frame(seed: int, shape=(180, 280)) -> np.ndarray:
    """A grey frame with a fan of speckle on black, a dark nodule in it, and a ruler beside it."""
    rng = np.random.default_rng(seed)
    height, width = shape
    y, x = np.mgrid[:height, :width].astype(float)
    radius = np.hypot(x - width / 2, y + height * 0.25)
    angle = np.arctan2(x - width / 2, y + height * 0.25)
    fan = (radius > height * 0.35) & (radius < height * 1.15) & (np.abs(angle) < rng.uniform(0.55, 0.7))
    noise = cv2.GaussianBlur(rng.rayleigh(1, shape), (0, 0), 1.6, sigmaY=0.8)
    tissue = noise * rng.uniform(70, 95) * np.exp(-0.4 * y / height)
    across, down = x - width * rng.uniform(0.4, 0.6), y - height * rng.uniform(0.4, 0.6)
    tissue[(across / 32) ** 2 + (down / 20) ** 2 < 1] *= rng.uniform(0.3, 0.8)
    frame = np.where(fan, np.clip(tissue, 12, 255), 0)
    frame[20:160:10, 8:14] = 180
    return frame.astype(np.uint8)


def crops_of(seeds) -> np.ndarray:
    return np.stack([crop_of(seed) for seed in seeds])


@functools.cache
def crop_of(seed: int) -> np.ndarray:
    return regions.extract(sector_frame(seed), SIZE, regions.RECIPE)[0]


def make(folder, members: int = 2, mirror: bool = False, names: dict = LESION_TYPES, **changes):
    """Writes a classifier of small random networks whose BatchNorm has seen crops, and gives its folder."""
    states = []
    train = crops_of(range(60))
    for seed in range(members):
        torch.manual_seed(seed)
        size = {"width": 0.0625, "middle_blocks": 1}
        model = network.optimized_xception(len(CLASSES), 1, mirror=mirror, **size).train()
        torch.nn.init.normal_(model.fc.weight, std=2.0)
        with torch.no_grad():
            for _ in range(6):
                model(network.normalize(torch.from_numpy(train[::4])))
        states.append(model.eval().state_dict())
    definition = {
        "architecture": model.config,
        "classes": [{"key": key, "english": names[key][0], "chinese": names[key][1]} for key in names],
        "recipe": asdict(regions.RECIPE),
        "size": SIZE,
        "temperature": [1.5, 0.8, 1.0][:members],
        "operating_points": dict.fromkeys(names, 0.25),
        "training": {"simulated": True, "title": "drawn by the tests", "images": 60, "patients": 60},
        "conformal": {"coverage": 0.9, "threshold": 0.7, "n": 40},
    }
    crops = (train, crops_of(range(100, 140)))
    return classifier.save(folder, definition | changes, members=states, novelty_crops=crops)
