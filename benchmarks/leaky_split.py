"""What a split that lets near-duplicates cross is worth: a run's images, network and settings, dealt by image.

    python benchmarks/leaky_split.py reports/real_control       # as long as the run's notebook 04

Reads a finished run of notebook 04. Its images are dealt into folds again, as if every frame stood for itself, and each
fold is trained and predicted as in the run. BUSI has frames that show the same under two names: dealt so, many a test
image has its twin in the training part, as in studies that split by image. Interrupted, it goes on.

Writes benchmarks/results/leaky_split.json: macro AUROC of both splits, of all images, of those that had a twin to learn
from, and of the others.
"""

import argparse
from dataclasses import replace
from pathlib import Path

import numpy as np
import turns
from joblib import Parallel, delayed
from scipy.special import softmax

from thyroid_lib import manifest
from thyroid_lib.common.files import read_json
from thyroid_lib.data.crops import Crops
from thyroid_lib.evaluation.calibration import macro_auroc
from thyroid_lib.evaluation.predictions import OURS, read_predictions, select
from thyroid_lib.training import checkpoint, folds, loop, pretraining


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("run", type=Path, help="folder of a finished run")
    parser.add_argument("--jobs", type=int, default=2, help="folds at a time")
    options = parser.parse_args()
    asked = read_json(options.run / "run.json")["parameters"]["04_finetune"]
    jobs = [delayed(fold)(options.run, number, asked) for number in range(asked["folds_to_run"])]
    images, scores, twins = map(np.concatenate, zip(*Parallel(n_jobs=options.jobs)(jobs)))
    crops = Crops.open(options.run / "data" / "finetune")
    names = [f"raw_{key}" for key in crops.classes]
    own = select(read_predictions(options.run / "predictions.csv"), OURS, "internal").set_index("image")
    by_group, labels = own.loc[crops.index["image"].iloc[images], names].to_numpy(), crops.labels[images]
    parts = {"all": np.ones_like(twins), "with_a_twin_in_training": twins, "without": ~twins}
    result = {
        name: {
            "images": int(part.sum()),
            "by_group": round(macro_auroc(by_group[part], labels[part]), 4),
            "by_image": round(macro_auroc(scores[part], labels[part]), 4),
        }
        for name, part in parts.items()
    }
    turns.report("leaky_split", result, smoke=asked["epochs"] < 5)


def fold(run: Path, number: int, asked: dict) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Trains one fold of the split by image; tested rows, probabilities (n, C), whether a twin was learnt from."""
    crops = Crops.open(run / "data" / "finetune")
    groups = crops.index["group"].to_numpy()
    apart = crops.index.assign(patient=crops.index["image"], group=crops.index["image"])
    dealt = manifest.split(apart).set_index("image")["fold"]
    crops = replace(crops, index=apart.assign(fold=apart["image"].map(dealt)))
    rows = folds.parts(crops, number, asked["validation"], asked["seed"])
    state = checkpoint.read_state(run / "checkpoints" / OURS / f"fold{number}")
    settings = loop.Settings(**state["identity"]["settings"])
    initial = pretraining.weights_of(run / "checkpoints" / "pretrain") if asked["pretrained"] else None
    folder = run / "checkpoints" / "by-image" / f"fold{number}"
    fit = loop.fit(
        settings, crops, rows["train"], rows["validation"], folder, initial=initial, title="by image"
    )
    logits = loop.predict(fit.model(), crops.images, rows["test"])
    learnt = np.isin(groups[rows["test"]], groups[rows["train"]])
    return rows["test"], softmax(logits, axis=1), learnt


if __name__ == "__main__":
    main()
