"""Model determination (C12): the networks of the folds become the classifier folder."""

from dataclasses import asdict
from pathlib import Path

import pandas as pd

from thyroid_lib import manifest
from thyroid_lib.classifier.saving import save
from thyroid_lib.evaluation.selective import threshold
from thyroid_lib.training.checkpoint import digest_of
from thyroid_lib.training.folds import FINETUNED, FoldResult, open_crops

COVERAGE = 0.9  # fraction of future images whose prediction set should hold the right type


def determine(results: list[FoldResult], data: Path, folder: Path, initial: Path | None) -> Path:
    """Model determination (C12): the trained networks of the folds become the classifier folder.

    Args:
        results: of `run`; the fine-tuned ones are taken.
        data: the run's folder of crops. folder: of the classifier, replaced as a whole.
        initial: weights of the pre-trained network they started from, if any.

    Returns:
        The folder.
    """
    crops, _ = open_crops(data)
    mine = [result for result in results if result.model == FINETUNED]
    networks = [result.fit.model() for result in mine]
    chosen = pd.concat([result.tables["validation"] for result in mine])
    probabilities = chosen[[f"p_{key}" for key in crops.classes]].to_numpy()
    limit = threshold(probabilities, chosen["truth"].map(crops.classes.index).to_numpy(), COVERAGE)
    points = pd.DataFrame([result.operating_points for result in mine]).mean(skipna=False)
    labelled = crops.index[crops.labels >= 0]
    definition = {
        "architecture": networks[0].config,
        "classes": [dict(zip(("key", "english", "chinese"), (k, *crops.names[k]))) for k in crops.classes],
        "recipe": asdict(crops.recipe),
        "size": crops.size,
        "temperature": [float(result.temperature) for result in mine],
        "operating_points": points.to_dict(),
        "conformal": {"coverage": COVERAGE, "threshold": limit, "n": len(chosen)},
        "training": {
            "simulated": crops.simulated,
            "title": crops.title,
            "images": len(labelled),
            "patients": int(labelled["patient"].nunique()),
            "images_of": labelled["label"].value_counts(sort=False).to_dict(),
            "crops_sha256": crops.hash,
            "split_sha256": manifest.split_hash(labelled),
            "folds": [result.fold for result in mine],
            "best_epochs": [result.fit.best_epoch for result in mine],
            "pretrained_weights": digest_of(initial),
            "settings": mine[0].fit.settings,
        },
    }
    members = [network.state_dict() for network in networks]
    of_novelty = tuple(crops.images[mine[0].rows[part]] for part in ("train", "validation"))
    return save(folder, definition, members=members, novelty_crops=of_novelty)
