"""Folds: train on some patients, fix everything on others, predict the rest once (C1, C9, C12).

A fold's model learns on the training part, its epoch, temperature and operating points are chosen on the
validation part, and the fold itself is predicted with all of that frozen, as is the external set.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.special import softmax

from thyroid_lib import manifest
from thyroid_lib.common.jobs import run_jobs
from thyroid_lib.data.crops import Crops
from thyroid_lib.evaluation.calibration import fit_temperature, operating_points
from thyroid_lib.evaluation.predictions import mean_predictions, prediction_table
from thyroid_lib.training import loop

FINETUNED, SCRATCH = "finetuned", "scratch"


@dataclass(frozen=True)
class FoldResult:
    """One model of one fold.

    Attributes:
        model: "finetuned", "scratch" or one of `references.REFERENCES`.
        fold: the fold that was held out.
        rows: part -> int (n,), rows of the crops.
        temperature: fitted on validation. operating_points: class key -> threshold, fixed on validation.
        tables: prediction tables by set: "internal" (the fold), "validation", and "external" where there is one.
        fit: the training; None for a reference.
    """

    model: str
    fold: int
    rows: dict[str, np.ndarray]
    temperature: float
    operating_points: dict[str, float]
    tables: dict[str, pd.DataFrame]
    fit: loop.Fit | None = None

    def __str__(self) -> str:
        return f"{self.model}, fold {self.fold}"


def run(
    settings: loop.Settings,
    data: Path,
    folder: Path,
    *,
    folds: int,
    initial: Path | None,
    scratch: bool = True,
    parallel: int = 1,
    cluster: str = "",
    validation: float = 0.15,
    on_epoch=None,
) -> list[FoldResult]:
    """Fine-tunes on the first `folds` folds, and once from scratch on the first.

    Interrupted, it goes on: each fold has its own checkpoints and a finished one is read, not trained again.

    Args:
        settings: of every fold.
        data: the run's folder of crops, with "finetune" and, if there is an external set, "external".
        folder: for checkpoints: <model>/fold<k>.
        folds: how many of the manifest's folds to hold out in turn.
        initial: weights of the pre-trained network.
        scratch: train fold 0 from random weights too, with the same settings.
        parallel: folds at a time on this machine. cluster: a Dask cluster, as `common.jobs.run_jobs`.
        validation: share of the remaining patients that chooses epoch, temperature and operating points.
        on_epoch: called with the history after each epoch where folds run one after another.

    Returns:
        Results in the order finetuned folds, then scratch.
    """
    arms = [(FINETUNED, fold, initial, folds) for fold in range(folds)] + [(SCRATCH, 0, None, 1)] * scratch
    shared = {"settings": settings, "data": data, "validation": validation}
    if parallel == 1 and not cluster:
        shared["on_epoch"] = on_epoch
    jobs = []
    for model, fold, start, count in arms:
        place, title = Path(folder) / model / f"fold{fold}", f"{model}, fold {fold + 1} of {count}"
        about = {"model": model, "fold": fold, "initial": start, "folder": place, "title": title}
        jobs.append(shared | about)
    return run_jobs(run_fold, jobs, parallel=parallel, cluster=cluster, title="folds")


def run_fold(settings, data, folder, model, fold, initial, validation, title, on_epoch=None) -> FoldResult:
    """Trains one fold and predicts with it; arguments as `run`."""
    crops, _ = sources = open_crops(data)
    rows = parts(crops, fold, validation, settings.seed)
    options = {"initial": initial, "title": title, "on_epoch": on_epoch, "set_aside": True}
    fit = loop.fit(settings, crops, rows["train"], rows["validation"], folder, **options)
    network = fit.model()
    return fold_result(model, fold, rows, sources, lambda of, at: loop.predict(network, of.images, at), fit)


def tables(results: list[FoldResult]) -> list[pd.DataFrame]:
    """What goes into predictions.csv: every held-out fold, and the external set once per model.

    The external set is predicted by the mean of the folds' models, as the classifier does. The fine-tuned
    models' validation parts come along, set "validation": prediction sets are calibrated on them.
    """
    out = [result.tables["internal"] for result in results]
    out += [result.tables["validation"] for result in results if result.model == FINETUNED]
    for model in dict.fromkeys(result.model for result in results):
        mine = [result for result in results if result.model == model and "external" in result.tables]
        if len(mine) == 1:
            out.append(mine[0].tables["external"])
        elif mine:
            points = pd.DataFrame([result.operating_points for result in mine]).mean().to_dict()
            out.append(mean_predictions([result.tables["external"] for result in mine], points))
    return out


def parts(crops: Crops, fold: int | None, validation: float, seed: int) -> dict[str, np.ndarray]:
    """Rows of the training, validation and (with a fold) test part; unlabelled images are in none."""
    labelled = crops.index[crops.labels >= 0]
    part = manifest.partition(labelled, fold, validation=validation, seed=seed)
    return {name: part.index[part == name].to_numpy(np.int64) for name in ("train", "validation", "test")}


def open_crops(data: Path) -> tuple[Crops, Crops | None]:
    """The run's crops to fine-tune on, and the external ones where there are any.

    Raises:
        ValueError: the external set has other classes.
    """
    crops = Crops.open(Path(data) / "finetune")
    if not (Path(data) / "external" / "crops.json").is_file():
        return crops, None
    external = Crops.open(Path(data) / "external")
    if external.classes != crops.classes:
        raise ValueError(
            f"external data: expected the classes {', '.join(crops.classes)}; {', '.join(external.classes)} "
            "came. Map its labels to these, or run without external data"
        )
    return crops, external


def fold_result(model: str, fold: int, rows: dict, sources: tuple, logits: Callable, fit=None) -> FoldResult:
    """Fixes temperature and operating points on the validation part, then makes the table of every set.

    Args:
        model, fold: as in `FoldResult`. rows: of `parts`. sources: of `open_crops`.
        logits: (crops, rows int (n,)) -> float (n, C). fit: the training, where there was one.
    """
    crops, external = sources
    sets = {"internal": (crops, rows["test"]), "validation": (crops, rows["validation"])}
    if external is not None:
        sets["external"] = external, np.flatnonzero(external.labels >= 0)
    raw = {name: logits(source, chosen) for name, (source, chosen) in sets.items()}
    truth = crops.labels[rows["validation"]]
    temperature = fit_temperature(raw["validation"], truth)
    points = operating_points(softmax(raw["validation"] / temperature, axis=1), truth, crops.classes)
    made = {}
    for name, (source, chosen) in sets.items():
        about = {"model": model, "set": name, "fold": fold}
        index = source.index.iloc[chosen]
        made[name] = prediction_table(index, crops.classes, raw[name], temperature, points, **about)
    return FoldResult(model, fold, rows, temperature, points, made, fit)
