"""Tables and findings of notebooks 03 and 04, from the run's own numbers."""

from collections.abc import Mapping
from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd

from thyroid_lib import LESION_TYPES, network
from thyroid_lib.common import fingerprint
from thyroid_lib.common.templates import MODELS, render
from thyroid_lib.evaluation import comparison, task
from thyroid_lib.evaluation.metrics import Sample
from thyroid_lib.evaluation.predictions import PLACES
from thyroid_lib.training import checkpoint, hardware
from thyroid_lib.training.folds import FINETUNED, SCRATCH, FoldResult
from thyroid_lib.training.loop import Fit


def part_table(crops, rows: Mapping[str, np.ndarray]) -> pd.DataFrame:
    """Images / patients of each class in each part.

    Args:
        crops: `crops.Crops`. rows: part -> int (n,); an empty part gets no column.
    """
    table = {}
    for name, chosen in rows.items():
        index = crops.index.iloc[chosen]
        groups = [index[index["label"] == key] for key in crops.classes] + [index]
        if len(index):
            table[name] = [f"{len(of)} / {of['patient'].nunique()}" for of in groups]
    names = [crops.names[key][0] for key in crops.classes]
    return pd.DataFrame(table, index=pd.Index([*names, "all"], name="images / patients"))


def carry_over(fit: Fit, run) -> tuple[network.LoadReport, pd.DataFrame]:
    """What the pre-trained network hands to one with other classes (C8): every entry is accounted for.

    Args:
        fit: the pre-training. run: whose clinical data say the classes; the four lesion types without any.

    Returns:
        The load report, and a table by part of the network: entries, values, what became of them.
    """
    from thyroid_lib.data.crops import Crops

    clinic = run.source / "data" / "finetune"
    classes = Crops.open(clinic).classes if (clinic / "crops.json").is_file() else LESION_TYPES
    tensors, metadata = checkpoint.load_weights(fit.weights)
    model = network.build(metadata["model"] | {"num_classes": len(classes)})
    report = network.load_pretrained_body(model, tensors)
    state = pd.Series({name: value.numel() for name, value in model.state_dict().items()})
    entries = pd.DataFrame({"values": state, "carried over": state.index.isin(report.loaded)})
    parts = entries.groupby(state.index.str.partition(".").get_level_values(0).rename("part"), sort=False)
    table = parts.agg(entries=("values", "size"), values=("values", "sum"), taken=("carried over", "sum"))
    table["starts anew"] = table["entries"] - table["taken"]
    table["values"] = table["values"].map("{:,}".format)
    return report, table.rename(columns={"taken": "carried over"}).reset_index()


def cost(fits: Mapping[str, Fit]) -> pd.DataFrame:
    """Size of the network, epochs, time and throughput of each training, and what was chosen for the machine."""
    return pd.DataFrame(
        {
            "training": name,
            "width": f"{fit.settings['model']['width']:g}",
            "middle blocks": fit.settings["model"]["middle_blocks"],
            "epochs": len(fit.history),
            "time": duration(fit.seconds),
            "images/s": f"{fit.images_per_second:,.1f}",
            "processor time": duration(fit.seconds * fit.choices["threads"] * fit.choices["processes"]),
            "precision": fit.choices["precision"],
        }
        for name, fit in fits.items()
    )


def duration(seconds: float) -> str:
    """A time in the unit that it is counted in: 4.2 s, 12.5 min, 3.1 h."""
    for unit, name in ((3600, "h"), (60, "min")):
        if seconds >= unit:
            return f"{seconds / unit:.1f} {name}"
    return f"{seconds:.1f} s"


def notes(fits: Mapping[str, Fit]) -> dict:
    """Times, throughput, hardware and choices, for run.json."""
    trainings = {}
    for name, fit in fits.items():
        speed = {"seconds": round(fit.seconds, 2), "images_per_second": round(fit.images_per_second, 2)}
        weights = {"weights_sha256_16": fingerprint.digest(fit.weights)}
        trainings[name] = speed | {"choices": fit.choices} | weights
    about = {"peak_memory_mib": hardware.peak_memory_mib(), "hardware": hardware.describe()}
    return {"trainings": trainings} | about


def metrics_of_fit(fit: Fit) -> dict:
    """What of a training belongs in metrics.json: the best epoch and its validation metrics."""
    best = fit.history.iloc[fit.best_epoch - 1]
    names = ["train_loss", "val_loss", "val_ce", "val_focal", "val_auroc", "val_accuracy"]
    return {"epochs": len(fit.history), "best_epoch": fit.best_epoch} | best[names].astype(float).to_dict()


def scores(predictions: pd.DataFrame, *, draws: int, seed: int) -> dict[str, dict[str, dict]]:
    """Macro AUROC with 95 % intervals over patients: set -> model -> metric."""
    found: dict[str, dict[str, dict]] = {}
    rows_of = dict(iter(predictions.groupby(["set", "model"])))
    for key in product(PLACES, MODELS):
        if key in rows_of:
            sample = Sample(rows_of[key], draws=draws, seed=seed)
            found.setdefault(key[0], {})[key[1]] = sample.number("macro_auroc")
    return found


def effect_of_pretraining(predictions: pd.DataFrame, *, draws: int, seed: int) -> dict | None:
    """Macro AUROC of the fine-tuned minus the from-scratch model on the images both were tested on.

    Returns:
        {"value", "low", "high", "n_images", "n_patients"}; None where there is no training from scratch.
    """
    internal = predictions[predictions["set"] == "internal"]
    first, second = (internal[internal["model"] == model] for model in (FINETUNED, SCRATCH))
    if not len(second):
        return None
    return comparison.compare(first, second, draws=draws, seed=seed)["macro_auroc"]


def calibration_table(results: list[FoldResult], names: Mapping[str, tuple[str, str]]) -> pd.DataFrame:
    """Temperature and operating points of each model and fold."""
    return pd.DataFrame(
        {"model": result.model, "fold": result.fold, "temperature": result.temperature}
        | {names[key][0]: point for key, point in result.operating_points.items()}
        for result in results
    )


def fixed(results: list[FoldResult]) -> dict:
    """Temperatures and operating points by model and fold, for metrics.json."""
    fixed = {}
    for result in results:
        images = {part: len(rows) for part, rows in result.rows.items()}
        chosen = {"temperature": result.temperature, "operating_points": result.operating_points}
        fixed[f"{result.model}/fold{result.fold}"] = chosen | {"images": images}
    return fixed


def pretraining_found(fit: Fit, crops, report: network.LoadReport) -> str:
    """What notebook 03 found, in Markdown."""
    about = {"fit": fit, "crops": crops, "report": report, "duration": duration}
    return render("training/pretraining.md.j2", **about)


def finetuning_found(
    results: list[FoldResult], found: dict, effect: dict | None, crops, classifier: Path
) -> str:
    """What notebook 04 found, in Markdown; arguments as `scores` and `effect_of_pretraining` give them."""
    about = {"found": found, "effect": effect, "crops": crops, "classifier": classifier, "models": MODELS}
    folds, classes = sum(result.model == FINETUNED for result in results), task.of(crops.names).plural
    return render("training/finetuning.md.j2", folds=folds, classes=classes, **about)
