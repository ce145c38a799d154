"""`python -m thyroid_lib train`: one training outside a notebook, on one process or under torchrun.

python -m thyroid_lib train --crops reports/x/data/finetune --fold 0 --folder reports/x/checkpoints/mine
torchrun --nproc-per-node 4 -m thyroid_lib train --crops ... --folder ... --set batch_size=128
"""

import argparse
import json
import os
import sys
from dataclasses import fields
from pathlib import Path

import yaml

from thyroid_lib.data.crops import Crops
from thyroid_lib.data.rows import DataVanished
from thyroid_lib.training import checkpoint, folds, hardware, loop, pretraining


def main(argv: list[str] | None = None) -> int:
    """Trains, or goes on with an interrupted training.

    Returns:
        0 when the training is finished, 1 when it failed, 2 on wrong usage.
    """
    options = _options(argv)
    try:
        fit = run_job(options.job) if options.job else run_options(options)
    except (checkpoint.CheckpointError, loop.TrainingError, DataVanished, ValueError, OSError) as error:
        print(f"train: {error}", file=sys.stderr)
        return 1
    if int(os.environ.get("RANK", 0)) == 0:
        best = fit.history.iloc[fit.best_epoch - 1]
        print(
            f"best epoch {fit.best_epoch} of {len(fit.history)}: validation AUROC {best.val_auroc:.3f}, "
            f"accuracy {best.val_accuracy:.3f}; {fit.images_per_second:.1f} images/s; {fit.weights}"
        )
    return 0


def run_options(options: argparse.Namespace) -> loop.Fit:
    """Trains what the command line asks for."""
    crops = Crops.open(options.crops)
    try:
        switches = yaml.safe_load(options.network)
    except yaml.YAMLError:
        switches = options.network
    known = {field.name: type(field.default) for field in fields(loop.Settings) if field.name != "model"}
    asked = {}
    for text in options.set:
        name, _, value = text.partition("=")
        if name not in known or not value:
            raise ValueError(f"--set: expected NAME=VALUE with a name of {', '.join(known)}; {text!r} came")
        asked[name] = value.lower() == "true" if known[name] is bool else known[name](value)
    settings = loop.Settings(model=pretraining.model_config(crops, switches), **asked)
    rows = folds.parts(crops, options.fold, options.validation, settings.seed)
    return loop.fit(
        settings, crops, rows["train"], rows["validation"], options.folder, initial=options.initial
    )


def run_job(path: str | Path) -> loop.Fit:
    """Does what `hardware.launch` wrote; under torchrun each rank calls it."""
    hardware.end_with_parent()
    job = json.loads(Path(path).read_text(encoding="utf-8"))
    return loop.fit(loop.Settings(**job.pop("settings")), Crops.open(job.pop("crops")), **job)


def _options(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m thyroid_lib train", description=__doc__.split("\n")[0])
    add = parser.add_argument
    add("--crops", type=Path, help="crops folder, as notebook 01 writes it")
    add("--folder", type=Path, help="for the checkpoints; the same command goes on in it")
    add("--fold", type=int, help="fold that is left out; none without it")
    add("--validation", type=float, default=0.15, help="share of the rest that chooses the epoch")
    add("--initial", help="weights to start from (safetensors)")
    add("--network", default="{}", help="switches of the network, as in '{width: 0.5, middle_blocks: 4}'")
    add("--set", action="append", default=[], metavar="NAME=VALUE", help="any training setting")
    add("--job", help="a job file that a notebook wrote; the other options are then ignored")
    options = parser.parse_args(argv)
    if not options.job and not (options.crops and options.folder):
        parser.error("--crops and --folder are needed (or --job)")
    return options
