"""Model determination (C12): the networks of the folds become the classifier folder."""

from pathlib import Path

import pandas as pd

from thyroid_lib import manifest
from thyroid_lib.classifier.saving import conformal_threshold, save
from thyroid_lib.training.checkpoint import digest_of
from thyroid_lib.training.folds import FINETUNED, FoldResult, open_crops


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
    labelled = crops.index[crops.labels >= 0]
    rows = mine[0].rows
    return save(
        folder,
        members=[network.state_dict() for network in networks],
        model_config=networks[0].config,
        names={key: crops.names[key] for key in crops.classes},
        recipe=crops.recipe,
        size=crops.size,
        temperature=[result.temperature for result in mine],
        operating_points=[result.operating_points for result in mine],
        training={
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
        conformal=conformal_threshold(probabilities, pd.Index(crops.classes).get_indexer(chosen["truth"])),
        novelty_crops=(crops.images[rows["train"]], crops.images[rows["validation"]]),
    )
