"""Does pre-training help on real frames (claim C8)? Every source, three seeds, five folds, paired by image.

    python benchmarks/pretraining.py --busi busi:PATH --tg3k tg3k:PATH --ddti ddti:PATH        # hours on two cores
    python benchmarks/pretraining.py --busi ... --tg3k ... --ddti ... --only ddti --seeds 1

The analysis was fixed before the runs: docs/real-study.md. Network and settings are those of the profile
`real_control`; TG3K has no labels, so the network learns its gland masks. Interrupted, it goes on.

Writes benchmarks/results/pretraining.json: the macro AUROC of each arm, out of fold, of the mean of its seeds'
probabilities, and its paired difference from the arm without pre-training, with 95 % intervals over patients (frames
in BUSI).
"""

import argparse
from dataclasses import fields, replace
from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd
from joblib import Parallel, delayed

from thyroid_lib import datasets
from thyroid_lib.common.files import read_json, write_json
from thyroid_lib.data import audit, crops
from thyroid_lib.evaluation import comparison
from thyroid_lib.evaluation.metrics import Sample
from thyroid_lib.evaluation.predictions import prediction_table
from thyroid_lib.study import profiles
from thyroid_lib.training import folds, loop, pretraining

RESULTS = Path(__file__).parent / "results" / "pretraining.json"
PROFILE = profiles.load("real_control")
ARMS = {
    "scratch": (),
    "busi": ("busi",),
    "tg3k": ("tg3k",),
    "phantoms": ("phantoms",),
    "tg3k, then busi": ("tg3k", "busi"),
}
EPOCHS = {"03_pretrain": {"tg3k": 6}, "04_finetune": {"busi": 20, "ddti": 12}}  # else the profile's
FOLDS, VALIDATION, DRAWS, GLAND = 5, 0.2, 2000, "gland"


def main() -> None:
    given = options(__doc__)
    specs, work = given.specs, given.work
    for target in given.only:
        rows = {}
        for arm, sources in ARMS.items():
            if target in sources:
                continue
            for name in (target, *sources):
                cropped(specs, name, work)
            both, seeds = Parallel(n_jobs=2), range(given.seeds)
            both(delayed(pretrained)(specs, sources, seed, work) for seed in seeds)  # folds share it
            jobs = product([specs], [target], [arm], seeds, range(FOLDS), [work])
            rows[arm] = pd.concat(both(delayed(fold)(*job) for job in jobs))
            found = summary(rows)
            write_json(RESULTS, read_json(RESULTS) | {target: found})
            print(target, arm, found[arm], flush=True)


def summary(rows: dict[str, pd.DataFrame]) -> dict:
    """Arm -> {"macro_auroc", "minus_scratch", "by_seed"}, metrics with intervals."""
    found, tables = {}, {arm: averaged(of) for arm, of in rows.items()}
    for arm, table in tables.items():
        each = [Sample(of, draws=0).draws("macro_auroc")[0] for _, of in rows[arm].groupby("model")]
        found[arm] = {"macro_auroc": Sample(table, draws=DRAWS).number("macro_auroc"), "by_seed": each}
        if arm != "scratch":
            pair = comparison.compare(table, tables["scratch"], draws=DRAWS)
            found[arm]["minus_scratch"] = pair["macro_auroc"]
    return found


def averaged(rows: pd.DataFrame) -> pd.DataFrame:
    """One row per image, its probabilities the mean over seeds."""
    columns = [name for name in rows.columns if name.startswith(("p_", "raw_"))]
    means = rows.groupby("image")[columns].mean()
    first = rows.drop_duplicates("image").set_index("image")
    return first.assign(**means).reset_index()


def fold(specs: dict, target: str, arm: str, seed: int, number: int, work: Path) -> pd.DataFrame:
    """Out-of-fold predictions of one fold and seed: rows as in predictions.csv, model the seed."""
    data, initial = cropped(specs, target, work), weights(ARMS[arm], seed, work)
    rows = folds.parts(data, number, VALIDATION, 0)
    settings = asked("04_finetune", target, data, seed)
    folder = place(target, arm, seed, number, work)
    fit = loop.fit(settings, data, rows["train"], rows["validation"], folder, initial=initial, set_aside=True)
    logits = loop.predict(fit.model(), data.images, rows["test"])
    even = dict.fromkeys(data.classes, 1 / len(data.classes))
    about = {"model": f"seed{seed}", "set": "internal", "fold": number}
    return prediction_table(data.index.iloc[rows["test"]], data.classes, logits, 1.0, even, **about)


def place(target: str, arm: str, seed: int, number: int, work: Path) -> Path:
    """Where a fold's checkpoints lie."""
    return work / "finetune" / target / arm.replace(", ", "-") / f"seed{seed}-fold{number}"


def weights(sources: tuple[str, ...], seed: int, work: Path) -> Path | None:
    """Where `pretrained` leaves its weights; None where there are no sources."""
    return work / "pretrain" / f"{'-'.join(sources)}-seed{seed}" / "best.safetensors" if sources else None


def pretrained(specs: dict, sources: tuple[str, ...], seed: int, work: Path) -> Path | None:
    """Learns from the sources, one after the other, and says where the weights are."""
    if not sources:
        return None
    initial, data = pretrained(specs, sources[:-1], seed, work), cropped(specs, sources[-1], work)
    folder = weights(sources, seed, work).parent
    settings = asked("03_pretrain", sources[-1], data, seed)
    rows = folds.parts(data, None, VALIDATION, seed)
    if not len(rows["validation"]):  # one group: nothing is measured on it, so any frames will do
        shuffled = np.random.default_rng(seed).permutation(len(data))
        rows = {"validation": shuffled[:100], "train": shuffled[100:]}
    return loop.fit(
        settings, data, rows["train"], rows["validation"], folder, initial=initial, set_aside=True
    ).weights


def asked(stage: str, name: str, data: crops.Crops, seed: int) -> loop.Settings:
    """The profile's settings of a stage, for these data."""
    given = PROFILE["common"] | PROFILE[stage]
    values = {field.name: given[field.name] for field in fields(loop.Settings) if field.name in given}
    values |= {"seed": seed, "threads": 1, "loss": "ce" if stage == "03_pretrain" else "mixed"}
    values |= {"epochs": EPOCHS[stage].get(name, values["epochs"])}
    values |= {"texture_weight": 0.0} if data.classes == [GLAND] else {}
    switches = PROFILE["common"]["network"] | (given["network"] if stage == "04_finetune" else {})
    return loop.Settings(model=pretraining.model_config(data, switches), **values)


def cropped(specs: dict, name: str, work: Path) -> crops.Crops:
    """A source's crops, cut now or before; frames without labels get one class, from which nothing is learnt."""
    folder, size = work / "crops" / name, PROFILE["common"]["size"]
    unlabelled = specs[name].startswith("tg3k")
    if not (folder / "crops.json").is_file():
        frames = datasets.read(specs[name])
        if not unlabelled:
            frames = audit.prepare({"finetune": specs[name]}, folds=FOLDS, seed=0)["finetune"].clean
        crops.build(frames, folder, size=size)
    opened = crops.Crops.open(folder)
    return replace(opened, classes=[GLAND], index=opened.index.assign(label=GLAND)) if unlabelled else opened


def options(about: str) -> argparse.Namespace:
    """Of the command line; `specs` are the sources by name."""
    parser = argparse.ArgumentParser(description=about.partition("\n")[0])
    for name in ("busi", "tg3k", "ddti"):
        parser.add_argument(f"--{name}", required=True, metavar="SPEC")
    parser.add_argument("--only", nargs="+", choices=("ddti", "busi"), default=["ddti", "busi"])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--work", type=Path, default=Path("reports/pretraining"), help="kept, to go on")
    given = parser.parse_args()
    given.specs = {"busi": given.busi, "tg3k": given.tg3k, "ddti": given.ddti}
    given.specs["phantoms"] = PROFILE["01_preprocess"]["pretrain_data"]
    return given


if __name__ == "__main__":
    main()
