"""Tables and sentences of notebooks 03 and 04, computed from the run's own numbers."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd

from thyroid_lib import LESION_TYPES, network
from thyroid_lib.common import fingerprint
from thyroid_lib.common.files import PROJECT, read_json
from thyroid_lib.evaluation import comparison, task
from thyroid_lib.evaluation.metrics import Sample
from thyroid_lib.training import checkpoint, hardware
from thyroid_lib.training.folds import FINETUNED, SCRATCH, SIGNS, TEXTURE, FoldResult
from thyroid_lib.training.loop import Fit

PARTS = ("entry_flow", "middle_flow", "exit_flow", "transition1", "transition2", "project1", "project2", "fc")


def part_table(crops, rows: Mapping[str, np.ndarray]) -> pd.DataFrame:
    """Images / patients of each class in each part.

    Args:
        crops: `crops.Crops`. rows: part -> int (n,); an empty part gets no column.
    """
    table = {}
    for name, chosen in rows.items():
        if not len(chosen):  # pre-training tests nothing
            continue
        index = crops.index.iloc[chosen]
        counts = [index[index["label"] == key] for key in crops.classes]
        table[name] = [f"{len(of)} / {of['patient'].nunique()}" for of in counts]
        table[name].append(f"{len(index)} / {index['patient'].nunique()}")
    names = [crops.names[key][0] for key in crops.classes]
    return pd.DataFrame(table, index=pd.Index([*names, "all"], name="images / patients"))


def carry_over(fit: Fit, classes: list[str]) -> tuple[network.LoadReport, pd.DataFrame]:
    """What the pre-trained network hands to one with other classes (C8): every entry is accounted for.

    Args:
        fit: the pre-training. classes: keys of the clinical data.

    Returns:
        The load report, and a table by part of the network: entries, parameters, what became of them.
    """
    tensors, metadata = checkpoint.load_weights(fit.weights)
    model = network.build(metadata["model"] | {"num_classes": len(classes)})
    report = network.load_pretrained_body(model, tensors)
    loaded, rows = set(report.loaded), []
    for part in PARTS:
        entries = {name: value for name, value in model.state_dict().items() if name.split(".")[0] == part}
        taken = [name for name in entries if name in loaded]
        if entries:
            rows.append(
                {
                    "part": part,
                    "entries": len(entries),
                    "values": f"{sum(value.numel() for value in entries.values()):,}",
                    "carried over": len(taken),
                    "starts anew": len(entries) - len(taken),
                }
            )
    return report, pd.DataFrame(rows)


def target_classes(run) -> list[str]:
    """Class keys of the clinical data of the run; the four lesion types where there is none yet."""
    from thyroid_lib.data.crops import Crops

    folder = run.path("data", "finetune")
    return Crops.open(folder).classes if (folder / "crops.json").is_file() else list(LESION_TYPES)


def cost(fits: Mapping[str, Fit]) -> pd.DataFrame:
    """Epochs, time and throughput of each training, and what was chosen for the machine."""
    return pd.DataFrame(
        [
            {
                "training": name,
                "epochs": len(fit.history),
                "time": duration(fit.seconds),
                "images/s": f"{fit.images_per_second:,.1f}",
                "processor time": duration(fit.seconds * fit.choices["threads"] * fit.choices["processes"]),
                "precision": fit.choices["precision"],
                "ended": fit.stopped,
            }
            for name, fit in fits.items()
        ]
    )


def duration(seconds: float) -> str:
    """A time in the unit that it is counted in: 4.2 s, 12.5 min, 3.1 h."""
    for unit, name in ((3600, "h"), (60, "min")):
        if seconds >= unit:
            return f"{seconds / unit:.1f} {name}"
    return f"{seconds:.1f} s"


def choices(fit: Fit) -> pd.DataFrame:
    """What was chosen for this machine and why, as a table."""
    return pd.DataFrame(
        {"choice": list(fit.choices), "value": [str(value) for value in fit.choices.values()]}
    )


def notes(fits: Mapping[str, Fit]) -> dict:
    """Times, throughput, hardware and choices, for run.json."""
    per_fit = {
        name: {
            "seconds": round(fit.seconds, 2),
            "images_per_second": round(fit.images_per_second, 2),
            "choices": fit.choices,
            "weights_sha256_16": fingerprint.digest(fit.weights),
        }
        for name, fit in fits.items()
    }
    return {
        "trainings": per_fit,
        "peak_memory_mib": hardware.peak_memory_mib(),
        "hardware": hardware.describe(),
    }


def metrics_of_fit(fit: Fit) -> dict:
    """What of a training belongs in metrics.json: the best epoch and its validation metrics."""
    best = fit.history.iloc[fit.best_epoch - 1]
    names = ("train_loss", "val_loss", "val_ce", "val_focal", "val_auroc", "val_accuracy")
    return {
        "epochs": len(fit.history),
        "best_epoch": fit.best_epoch,
        **{name: float(best[name]) for name in names},
    }


def scores(predictions: pd.DataFrame, *, draws: int, seed: int) -> dict[str, dict[str, dict]]:
    """Macro AUROC with 95 % intervals over patients: set -> model -> metric."""
    found: dict[str, dict[str, dict]] = {}
    for place in ("internal", "external"):
        for model in (FINETUNED, SCRATCH, TEXTURE, SIGNS):
            rows = predictions[(predictions["set"] == place) & (predictions["model"] == model)]
            if len(rows):
                sample = Sample(rows, draws=draws, seed=seed)
                found.setdefault(place, {})[model] = sample.number("macro_auroc")
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
        [
            {
                "model": result.model,
                "fold": result.fold,
                "temperature": result.temperature,
                **{names[key][0]: point for key, point in result.operating_points.items()},
            }
            for result in results
        ]
    )


def pretraining_found(fit: Fit, crops, report: network.LoadReport) -> str:
    """What notebook 03 found, in Markdown."""
    best = fit.history.iloc[fit.best_epoch - 1]
    *most, last = (crops.names[key][0] for key in crops.classes)
    people = "patients" if crops.index["patient"].nunique() < len(crops) else "images"
    text = (
        f"On {'**simulated** ' if crops.simulated else ''}open data ({crops.title}) the network learnt to tell "
        f"{', '.join(most)} and {last} in {_count(len(fit.history), 'epoch')}; the best was epoch {fit.best_epoch}, "
        f"with a macro AUROC of {best.val_auroc:.3f} and an accuracy of {best.val_accuracy:.3f} on {people} it had not "
        "learnt from. These "
        "numbers chose the epoch, so they flatter it a little; they are no test.\n\n"
        f"{len(report.loaded)} of {len(report.loaded) + len(report.kept)} entries carry over to the clinical task; the "
        f"fully connected layer starts anew. Training took {duration(fit.seconds)} at "
        f"{fit.images_per_second:.0f} images/s."
    )
    return text


def finetuning_found(
    results: list[FoldResult], found: dict, effect: dict | None, crops, classifier: Path
) -> str:
    """What notebook 04 found, in Markdown."""
    simulated = "**simulated** " if crops.simulated else ""
    internal, folds = found["internal"], len([r for r in results if r.model == FINETUNED])
    held_out, classes = "held out in turn" if folds > 1 else "held out", task.of(crops.names).plural
    lines = [
        f"{_count(folds, 'fold')} of {simulated}data ({crops.title}) {held_out}: macro AUROC of the "
        f"{len(crops.classes)} {classes} on patients never seen, {_say(internal[FINETUNED])}."
    ]
    beside = {
        TEXTURE: "logistic regression on texture and shape of the true mask",
        SIGNS: "a reader who sees the drawn signs, the ceiling for phantoms",
    }
    lines += [f"* {words}: {_say(internal[model])}" for model, words in beside.items() if model in internal]
    if effect is not None:
        lines.append(
            f"* pre-trained minus from scratch, same images, same budget: {_say(effect, signed=True)}"
        )
    if FINETUNED in found.get("external", {}):
        lines.append(f"* external testing, everything frozen: {_say(found['external'][FINETUNED])}")
    made = f"{folds} networks" if folds > 1 else "network"
    lines.append(
        f"\nThe {made} became the classifier in `{classifier.name}/` (C12). Notebook 05 examines these predictions."
    )
    return "\n".join([lines[0], "", *lines[1:]])


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'s' * (number != 1)}"


def _say(metric: dict, signed: bool = False) -> str:
    if metric["value"] is None:
        return metric.get("reason", "not computable")
    sign = "+" if signed else ""
    return (
        f"{metric['value']:{sign}.3f} (95 % interval {metric['low']:{sign}.3f} to {metric['high']:{sign}.3f}; "
        f"{metric['n_images']} images, {metric['n_patients']} patients)"
    )


def name_of(result: FoldResult) -> str:
    """What tables and figures call it, such as "finetuned, fold 0"."""
    return f"{result.model}, fold {result.fold}"


def fixed(results: list[FoldResult]) -> dict:
    """Temperatures and operating points by model and fold, for metrics.json."""
    return {
        "fixed_on_validation": {
            f"{result.model}/fold{result.fold}": {
                "temperature": result.temperature,
                "operating_points": result.operating_points,
                "images": {part: len(rows) for part, rows in result.rows.items()},
            }
            for result in results
        }
    }


def recipe_table(path: str | Path) -> pd.DataFrame:
    """Every way of training that was tried on the data before this one was taken, the failed ones too.

    Args:
        path: what `benchmarks/recipes.py` wrote, relative to the project.

    Returns:
        One row per recipe in the order tried: what it is, side of the crops in px, epochs of pre-training and
        fine-tuning, mean macro AUROC and AUROC of the first class against the rest over the folds' validation
        parts, minutes of fine-tuning over all folds, and whether it was taken.

    Raises:
        FileNotFoundError: there is no such file.
    """
    file = PROJECT / path
    if not file.is_file():
        raise FileNotFoundError(
            f"recipes: expected a JSON file of benchmarks/recipes.py, there is none at {path}; "
            'set recipes="" to leave the table out'
        )
    content = read_json(file)
    return pd.DataFrame(
        [
            {
                "recipe": name,
                "what it is": row["what"],
                "px": row["size"],
                "epochs": f"{(row['pretrain'] or {}).get('epochs', 0)} + {row['finetune']['epochs']}",
                "macro AUROC, validation": row["validation_macro_auroc"],
                "first class against the rest": row["validation_first_against_rest"],
                "minutes, fine-tuning": row["seconds"] / 60,
                "taken": "taken" if name == content["taken"] else "",
            }
            for name, row in content["recipes"].items()
        ]
    )


def folder_table(folder: Path) -> pd.DataFrame:
    """Files of a folder and their sizes."""
    files = sorted(path for path in Path(folder).iterdir() if path.is_file())
    return pd.DataFrame(
        {
            "file": [path.name for path in files],
            "KiB": [f"{path.stat().st_size / 1024:,.1f}" for path in files],
        }
    )
