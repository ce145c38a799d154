"""`python -m thyroid_lib train`: one training outside a notebook, on one process or under torchrun.

python -m thyroid_lib train --crops reports/x/data/finetune --fold 0 --folder reports/x/checkpoints/mine
torchrun --nproc-per-node 4 -m thyroid_lib train --crops ... --folder ... --set batch_size=128
"""

import argparse
import os
import sys
from dataclasses import fields
from pathlib import Path

import numpy as np


def main(argv: list[str] | None = None) -> int:
    """Trains, or goes on with an interrupted training.

    Returns:
        0 when the training is finished, 1 when it failed, 2 on wrong usage.
    """
    options = _parser().parse_args(argv)
    from thyroid_lib.data import rows
    from thyroid_lib.training import checkpoint, ranks
    from thyroid_lib.training import loop as training

    try:
        if options.job:
            fit = ranks.run_job(options.job)
        else:
            fit = _train(options, training)
    except (
        checkpoint.CheckpointError,
        training.TrainingError,
        rows.DataVanished,
        ValueError,
        OSError,
    ) as error:
        print(f"train: {error}", file=sys.stderr)
        return 1
    if int(os.environ.get("RANK", 0)) == 0:
        best = fit.history.iloc[fit.best_epoch - 1]
        print(
            f"best epoch {fit.best_epoch} of {len(fit.history)}: validation AUROC {best.val_auroc:.3f}, "
            f"accuracy {best.val_accuracy:.3f}; {fit.images_per_second:.1f} images/s; {fit.weights}"
        )
    return 0


def _train(options: argparse.Namespace, training):
    from thyroid_lib import manifest
    from thyroid_lib.data.crops import Crops
    from thyroid_lib.training import ranks

    crops = Crops.open(options.crops)
    model = {
        "name": options.network,
        "num_classes": len(crops.classes),
        "in_chans": 1,
        "width": options.width,
        "middle_blocks": options.middle_blocks,
    }
    settings = training.Settings(model=model, **dict(_setting(text, training) for text in options.set))
    labelled = crops.index[crops.labels >= 0]
    fold = None if options.fold < 0 else options.fold
    part = manifest.partition(labelled, fold, validation=options.validation, seed=settings.seed)
    train, validation = (np.asarray(part.index[part == name]) for name in ("train", "validation"))
    return ranks.fit(settings, crops, train, validation, options.folder, initial=options.initial or None)


def _setting(text: str, training) -> tuple[str, object]:
    known = {field.name: field.default for field in fields(training.Settings) if field.name != "model"}
    name, _, value = text.partition("=")
    if name not in known or not value:
        raise ValueError(f"--set: expected NAME=VALUE with a name of {', '.join(known)}; {text!r} came")
    kind = type(known[name])
    if kind is bool:
        return name, value.lower() in ("1", "true", "yes")
    return name, kind(value)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m thyroid_lib train", description=__doc__.split("\n")[0])
    parser.add_argument("--crops", type=Path, help="crops folder, as notebook 01 writes it")
    parser.add_argument("--folder", type=Path, help="for the checkpoints; the same command goes on in it")
    parser.add_argument("--fold", type=int, default=-1, help="fold that is left out; -1 leaves none out")
    parser.add_argument(
        "--validation", type=float, default=0.15, help="share of the rest that chooses the epoch"
    )
    parser.add_argument("--initial", help="weights to start from (safetensors)")
    parser.add_argument("--network", default="optimized_xception", help="optimized_xception or xception")
    parser.add_argument("--width", type=float, default=1.0, help="multiplies the network's channels")
    parser.add_argument("--middle-blocks", type=int, default=8, help="blocks of the middle flow")
    parser.add_argument(
        "--set", action="append", default=[], metavar="NAME=VALUE", help="any training setting"
    )
    parser.add_argument("--job", help="a job file that a notebook wrote; the other options are then ignored")
    original = parser.parse_args

    def parse(argv=None):
        options = original(argv)
        if not options.job and not (options.crops and options.folder):
            parser.error("--crops and --folder are needed (or --job)")
        return options

    parser.parse_args = parse
    return parser


if __name__ == "__main__":
    sys.exit(main())
