"""References that any network must beat to be worth its weights, on the same parts as the networks.

Logistic regression on texture and shape under the true mask: whoever has the mask already knows where to look, so
it is no weak one. For real images two more: on the signs that a reader described, the ceiling of grades that are made
of them; and on features of a small network that has seen nothing but photographs (ImageNet) and sees what ours sees.
For phantoms a reader of the drawn signs, the ceiling of any classifier.
"""

from itertools import combinations
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import torch
from sklearn.metrics import roc_auc_score

from thyroid_lib.data.crops import Crops
from thyroid_lib.evaluation.predictions import prediction_table
from thyroid_lib.layers import peers
from thyroid_lib.layers.inputs import normalize
from thyroid_lib.training.auxiliary import PREFIX
from thyroid_lib.training.folds import FoldResult, fold_result, open_crops, parts
from thyroid_lib.training.texture import fit_reference, texture_features

SIGNS = "reference_signs"
SIDE = 224  # px, of the photographs that the ImageNet network learnt from


def signs_of_readers(crops: Crops) -> pd.DataFrame | None:
    """float64, a column of 0 and 1 for each value of each sign that a reader described; None without readers."""
    columns = [name for name in crops.index.columns if name.startswith(PREFIX)]
    if crops.simulated or not columns:
        return None
    return pd.get_dummies(crops.index[columns].fillna("").astype(str), dtype=float)


def imagenet_features(crops: Crops) -> pd.DataFrame | None:
    """float32 (N, 1280), pooled features of EfficientNet-Lite0; None for phantoms and where it is not installed."""
    network, found = None if crops.simulated else peers.lite0(), []
    if network is None:
        return None
    with torch.inference_mode():
        for begin in range(0, len(crops), 32):
            part = [cv2.resize(np.asarray(image), (SIDE, SIDE)) for image in crops.images[begin : begin + 32]]
            found.append(network(normalize(torch.from_numpy(np.stack(part)), 3)).numpy())
    return pd.DataFrame(np.concatenate(found))


REFERENCES = {
    "reference_texture": (lambda crops: texture_features(crops.images, crops.masks), 0.3),
    "reference_described": (signs_of_readers, 0.3),
    "reference_imagenet": (imagenet_features, 0.003),
}
"""Model's name in predictions.csv -> its features of crops, a row each, and the inverse strength of its penalty."""


def run(data: Path, count: int, *, validation: float = 0.15, seed: int = 0) -> list[FoldResult]:
    """Fits every reference that the data have features for.

    Args:
        data: the run's folder of crops. count: how many folds are held out in turn.
        validation: share of the remaining patients. seed: of that choice.

    Returns:
        Results, reference by reference, in the order of the folds.
    """
    crops, _ = sources = open_crops(data)
    results = []
    for model, (describe, strength) in REFERENCES.items():
        features = {id(of): describe(of) for of in sources if of is not None}
        if any(table is None for table in features.values()):
            continue
        known = features[id(crops)]  # a sign's value that only the external set has was not learnt
        features = {key: of.reindex(columns=known.columns, fill_value=0) for key, of in features.items()}
        for fold in range(count):
            rows = parts(crops, fold, validation, seed)
            learnt = known.iloc[rows["train"]], crops.labels[rows["train"]]
            reference = fit_reference(*learnt, len(crops.classes), seed, strength)

            def logits(of: Crops, at: np.ndarray, reference=reference, features=features) -> np.ndarray:
                return reference(features[id(of)].iloc[at])

            results.append(fold_result(model, fold, rows, sources, logits))
    return results


def telling(crops: Crops, most: int = 3) -> pd.DataFrame:
    """For each two classes, the single measures under the true mask that tell them apart best.

    A mask that was drawn in another way for each class, or by someone who knew it, tells the class by itself.

    Returns:
        A row for each pair: "classes", "measures" (name and AUROC, 0.5 to 1, on all their images, best first).
    """
    measured, rows = texture_features(crops.images, crops.masks), []
    for pair in combinations(range(len(crops.classes)), 2):
        chosen = np.isin(crops.labels, pair)
        second = crops.labels[chosen] == pair[1]
        areas = measured[chosen].apply(lambda values, second=second: roc_auc_score(second, values))
        best = np.maximum(areas, 1 - areas).nlargest(most)
        names = " / ".join(crops.names[crops.classes[k]][0] for k in pair)
        said = ", ".join(f"{name.replace('_', ' ')} {area:.3f}" for name, area in best.items())
        rows.append({"classes": names, "measures": said})
    return pd.DataFrame(rows)


def sign_reader(data: Path, count: int) -> list[pd.DataFrame]:
    """The ceiling, on phantoms only: predictions of a reader who sees the drawn signs; [] for real images."""
    from thyroid_lib.phantoms import signs

    crops, external = open_crops(data)
    tables = []
    for source, name in ((crops, "internal"), (external, "external")):
        if source is None or not source.simulated or f"{PREFIX}{next(iter(signs.SIGNS))}" not in source.index:
            continue
        index = source.index[source.labels >= 0]
        if name == "internal":
            index = index[index["fold"].isin(range(count))]
        kind = index["dataset"].iloc[0].partition(":")[2]
        logits = np.log(np.maximum(signs.sign_reader(index, kind), 1e-12))
        even = dict.fromkeys(source.classes, 1 / len(source.classes))
        about = {"model": SIGNS, "set": name, "fold": -1}
        tables.append(prediction_table(index, source.classes, logits, 1.0, even, **about))
    return tables
