"""A crops folder on which a tiny network learns in seconds: the class is where the bright spot lies."""

import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pandas as pd

from thyroid_lib import LESION_TYPES
from thyroid_lib.ablation import grid as ablation
from thyroid_lib.regions import RECIPE
from thyroid_lib.training import loop

CLASSES = [*LESION_TYPES]


def spots(folder: Path, patients: int = 48, side: int = 32, folds: int = 2, simulated: bool = True) -> Path:
    """Two images of each patient; patients are dealt to classes and folds in turn."""
    random = np.random.default_rng(0)
    patient = np.repeat(np.arange(patients), 2)
    labels = patient % len(CLASSES)
    images = random.integers(0, 80, (len(patient), side, side), dtype=np.uint8)
    half = side // 2
    for image, label in zip(images, labels):
        y, x = divmod(int(label), 2)
        image[half * y + 3 : half * (y + 1) - 3, half * x + 3 : half * (x + 1) - 3] += 120
    index = pd.DataFrame({"patient": [f"p{n:02d}" for n in patient], "dataset": "spots", "mask_inside": 1.0})
    index["image"], index["group"] = [f"{n:03d}.png" for n in range(len(patient))], index["patient"]
    index["label"], index["fold"] = np.array(CLASSES)[labels], patient // len(CLASSES) % folds
    folder.mkdir(parents=True)
    for name in ("crops", "frames"):
        np.save(folder / f"{name}.npy", images)
    index.to_csv(folder / "index.csv", index=False)
    names = {key: [key, key] for key in CLASSES}
    about = {"classes": CLASSES, "names": names, "simulated": simulated, "title": "spots"}
    about |= {"recipe": asdict(RECIPE), "size": side, "hash": f"spots {side}"}
    (folder / "crops.json").write_text(json.dumps(about))
    return folder


def grid(data: Path, root: Path, arms: list[str], **changes) -> list:
    """Jobs of tiny networks; changes are of the grid or of the settings of its trainings."""
    own = {"size": 32, "width": 0.0625, "middle_blocks": 1, "folds": 1, "seeds": 1}
    own |= {"lrs": [4e-3], "validation": 0.25}
    own |= {name: changes.pop(name) for name in list(changes) if name in (*own, "initial")}
    plain = {"model": {}, "epochs": 2, "batch_size": 8, "precision": "32", "threads": 1, "augment": 0.0}
    base = loop.Settings(**plain | changes)
    return ablation.grid(ablation.chosen(arms), base, data=data, folder=root, **own)
