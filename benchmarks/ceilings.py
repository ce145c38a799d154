"""What can be had from DDTI's frames? Everything that was tried, on the same folds, chosen on validation parts only.

    python benchmarks/ceilings.py --busi busi:PATH --tg3k tg3k:PATH --ddti ddti:PATH   # after benchmarks/pretraining.py

Every way of answering is fitted on the training parts and scored on the validation parts of the five folds; of those
that need no outline and no reader at test time the best is the one taken. The networks are those of
benchmarks/pretraining.py, averaged over their seeds, and two that learn otherwise from the same start: with an ordinal
loss, and with features pooled under the mask that the network itself predicts. Logistic regression has texture and
ImageNet features, under true outlines and under predicted ones. Interrupted, it goes on.

Writes benchmarks/results/ceilings.json: for every way, the mean macro AUROC of the validation parts, that of the folds,
and that of all out-of-fold probabilities together with its 95 % interval over patients.
"""

from contextlib import ExitStack
from dataclasses import replace
from itertools import product
from pathlib import Path
from unittest import mock

import cv2
import numpy as np
import pandas as pd
import pretraining as study
import torch
from joblib import Parallel, delayed
from scipy.special import softmax
from torch import nn
from torch.nn.functional import adaptive_avg_pool2d, interpolate

from thyroid_lib import losses, network
from thyroid_lib.common.files import write_json
from thyroid_lib.data.crops import Crops
from thyroid_lib.evaluation.calibration import macro_auroc
from thyroid_lib.evaluation.metrics import Sample
from thyroid_lib.evaluation.predictions import prediction_table
from thyroid_lib.training import auxiliary, checkpoint, folds, loop, references, texture

RESULTS = Path(__file__).parent / "results" / "ceilings.json"
START = "phantoms"  # pre-training of the two that learn otherwise: the best of the study's sources on DDTI


class FocusedXception(network.Xception):
    """The network with half of its pooled features taken under the mask that it predicts itself."""

    def __init__(self, *switches, **more):
        super().__init__(*switches, **more)
        self.attention = nn.Conv2d(self.middle_flow[-1].body[-1].num_features, 1, 1)

    def pooled(self, maps: dict[str, torch.Tensor]) -> torch.Tensor:
        """Named maps of `forward_maps` -> (N, C)."""
        features, mask = maps["features"], self.attention(maps["F2"]).float().sigmoid()
        # a little everywhere: a frame without a nodule has features too
        weight = adaptive_avg_pool2d(mask, features.shape[2:]) + 0.01
        focused = (features * weight).sum((2, 3)) / weight.sum((2, 3))
        return 0.5 * features.mean((2, 3)) + 0.5 * focused

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(self.drop(self.pooled(self.forward_maps(x))))


class FocusedPupil(nn.Module):
    """`auxiliary.Pupil` for it: the mask that is asked for is the one that it pools under."""

    def __init__(self, model: FocusedXception, *, mask: bool, signs: dict, texture: int):
        super().__init__()
        self.model, self.texture = model, nn.Linear(model.fc.in_features, texture)

    def forward(self, x: torch.Tensor) -> tuple:
        maps = self.model.forward_maps(x)
        pooled = self.model.drop(self.model.pooled(maps))
        return self.model.fc(pooled), self.model.attention(maps["F2"])[:, 0], [], self.texture(pooled)


class OrdinalLoss(nn.Module):
    """Cross-entropy with targets that fall with the distance of the grades (Diaz and Marathe 2019, SORD)."""

    def __init__(self, *_):
        super().__init__()

    def forward(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        apart = (torch.arange(logits.shape[1]) - labels[:, None]).abs()
        return -((-2.0 * apart).softmax(1) * logits.log_softmax(1)).sum(1)


CHANGES = {
    "ordinal": [(losses, "MixedLoss", OrdinalLoss)],
    "focused": [
        (network, "build", lambda config: FocusedXception(**config)),
        (auxiliary, "Pupil", FocusedPupil),
    ],
}
"""Way -> what stands in the library's place while it learns; it brought nothing, so the library does not have it."""


def main() -> None:
    options = study.options(__doc__)
    crops = study.cropped(options.specs, "ddti", options.work)
    rows = [folds.parts(crops, number, study.VALIDATION, 0) for number in range(study.FOLDS)]
    seeds, ways = range(options.seeds), {}
    for arm in study.ARMS:
        of = [[trained(arm, seed, number, crops, options) for number in range(study.FOLDS)] for seed in seeds]
        ways[f"network, {arm}"] = np.mean(of, axis=0)
    ways["network, mean of all these"] = np.mean([*ways.values()], axis=0)
    for way in CHANGES:
        jobs = [
            delayed(otherwise)(way, seed, number, options)
            for seed, number in product(seeds, range(study.FOLDS))
        ]
        answers, masks = map(np.stack, zip(*Parallel(n_jobs=2)(jobs)))
        ways[f"network, {way}"] = answers.reshape(len(seeds), study.FOLDS, *answers.shape[1:]).mean(axis=0)
    ways |= regressions(crops, rows, masks[: study.FOLDS])
    without = ("network, focused", "ImageNet features, predicted outline", "texture, predicted outline")
    ways["mean of the focused network and both under its outline"] = np.mean(
        [ways[name] for name in without], axis=0
    )
    found = {name: scores(crops, rows, answers) for name, answers in ways.items()}
    write_json(RESULTS, found)
    print(
        pd.DataFrame({name: of | {"macro_auroc": of["macro_auroc"]["value"]} for name, of in found.items()}).T
    )


def trained(arm: str, seed: int, number: int, crops: Crops, options) -> np.ndarray:
    """Probabilities, float (N, C), of all images by a network of benchmarks/pretraining.py."""
    folder = study.place("ddti", arm, seed, number, options.work)
    tensors, about = checkpoint.load_weights(folder / "best.safetensors")
    model = network.build(about["model"])
    model.load_state_dict(tensors)
    return softmax(loop.predict(model.eval(), crops.images), axis=1)


def otherwise(way: str, seed: int, number: int, options) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities, float (N, C), and predicted masks, bool (N, S, S), of a network that learns in another way."""
    crops = study.cropped(options.specs, "ddti", options.work)
    rows = folds.parts(crops, number, study.VALIDATION, 0)
    settings = study.asked("04_finetune", "ddti", crops, seed)
    start, masks = study.weights((START,), seed, options.work), np.zeros(0)
    with ExitStack() as changed:
        for change in CHANGES[way]:
            changed.enter_context(mock.patch.object(*change))
        if way == "focused":
            start, _ = checkpoint.load_weights(start)
            channels = network.build(settings.model).attention.in_channels
            start |= {"attention.weight": torch.zeros(1, channels, 1, 1), "attention.bias": torch.zeros(1)}
        folder = study.place("ddti", way, seed, number, options.work)
        model = loop.fit(settings, crops, rows["train"], rows["validation"], folder, initial=start).model()
        if way == "focused":
            with torch.inference_mode():
                maps = model.forward_maps(network.normalize(torch.from_numpy(np.array(crops.images)), 1))
                drawn = interpolate(model.attention(maps["F2"]), crops.size, mode="bilinear")
            masks = drawn[:, 0].numpy() > 0
        return softmax(loop.predict(model, crops.images), axis=1), masks


def regressions(crops: Crops, rows: list[dict], masks: np.ndarray) -> dict[str, np.ndarray]:
    """Logistic regressions: name -> probabilities, float (folds, N, C).

    Args:
        masks: bool (folds, N, S, S), predicted, of each fold by a network that did not learn from its test part.
    """
    signs, sector = references.signs_of_readers(crops), references.imagenet_features(crops)
    tables = {"signs that readers described": [signs], "ImageNet features, sector": [sector]}
    for outline, of in (("true", [crops.masks]), ("predicted", masks)):
        cuts = [replace(crops, images=cut(crops.images, mask)) for mask in of]
        tables[f"ImageNet features, {outline} outline"] = [references.imagenet_features(one) for one in cuts]
        tables[f"texture, {outline} outline"] = [texture.texture_features(crops.images, mask) for mask in of]
    found = {}
    for name, of in tables.items():
        reference = "reference_imagenet" if name.startswith("ImageNet") else "reference_texture"
        strength, fitted = references.REFERENCES[reference][1], []
        for table, parts in zip(of * (len(rows) // len(of)), rows):
            learnt = table.iloc[parts["train"]], crops.labels[parts["train"]]
            answers = texture.fit_reference(*learnt, len(crops.classes), 0, strength)
            fitted.append(softmax(answers(table), axis=1))
        found[name] = np.stack(fitted)
    return found


def cut(images: np.ndarray, masks: np.ndarray) -> np.ndarray:
    """Each image cut to the square around its mask, uint8 (N, S, S); whole where the mask is empty."""
    pictures, side = [], images.shape[1]
    for image, mask in zip(images, masks):
        x, y, width, height = cv2.boundingRect(np.uint8(mask)) if mask.any() else (0, 0, side, side)
        half = max(width, height, 16) // 2 + 4
        top, left = (max(0, min(at - half, side - 2 * half)) for at in (y + height // 2, x + width // 2))
        part = np.array(image[top : top + 2 * half, left : left + 2 * half])
        pictures.append(cv2.resize(part, (side, side), interpolation=cv2.INTER_LINEAR))
    return np.stack(pictures)


def scores(crops: Crops, rows: list[dict], answers: np.ndarray) -> dict:
    """How well probabilities, float (folds, N, C), do on validation parts and out of fold."""
    each = {
        part: [macro_auroc(of[at[part]], crops.labels[at[part]]) for of, at in zip(answers, rows)]
        for part in ("validation", "test")
    }
    even = dict.fromkeys(crops.classes, 1 / len(crops.classes))
    tables = []
    for number, (of, at) in enumerate(zip(answers, rows)):
        about = {"model": "ceiling", "set": "internal", "fold": number}
        logits = np.log(np.maximum(of[at["test"]], 1e-12))
        tables.append(
            prediction_table(crops.index.iloc[at["test"]], crops.classes, logits, 1.0, even, **about)
        )
    return {
        "validation": round(float(np.mean(each["validation"])), 4),
        "mean_of_folds": round(float(np.mean(each["test"])), 4),
        "macro_auroc": Sample(pd.concat(tables), draws=study.DRAWS).number("macro_auroc"),
    }


if __name__ == "__main__":
    main()
