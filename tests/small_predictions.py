"""Predictions of simulated models: patients share part of their error, as real ones do."""

import numpy as np
import pandas as pd

from thyroid_lib.evaluation.predictions import prediction_table

KEYS = ["nodular_goiter", "follicular_neoplasm", "papillary_carcinoma", "medullary_carcinoma"]


def study(patients=60, seed=0, model="finetuned", place="internal", signal=1.5, folds=5, images=4):
    """Rows of one model on one set; the larger the signal, the better the model. One seed, the same patients."""
    rng = np.random.default_rng(seed)
    owner = np.repeat(np.arange(patients), rng.integers(1, images + 1, patients))
    lesion = rng.permutation(np.arange(patients) % len(KEYS))[owner]
    index = pd.DataFrame(
        {"image": [f"{place}/{p:04d}_{i}.png" for i, p in enumerate(owner)], "dataset": place}
    )
    index["patient"], index["group"] = ([f"{letter}{p:04d}" for p in owner] for letter in "pg")
    index["label"], index["age"] = np.array(KEYS)[lesion], rng.integers(20, 80, patients)[owner]
    index["sex"], index["text"] = np.array(["F", "M"])[owner % 2], ""
    own = rng.normal(size=(patients, len(KEYS)))[owner]
    logits = signal * np.eye(len(KEYS))[lesion] + own + 0.5 * rng.normal(size=own.shape)
    points, tables = dict.fromkeys(KEYS, 0.3), []
    for fold in range(folds):
        of, about = owner % folds == fold, {"model": model, "set": place, "fold": fold}
        tables.append(prediction_table(index[of], KEYS, logits[of], 1.3, points, **about))
    return pd.concat(tables, ignore_index=True)
