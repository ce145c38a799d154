"""Which way of training serves a small real set best? Every recipe tried, scored on validation parts only.

    python benchmarks/recipes.py --pretrain-data busi:PATH --finetune-data ddti:PATH             # hours on two cores
    python benchmarks/recipes.py --pretrain-data ... --finetune-data ... --only plain signs --jobs 2

Each fold is held out and never looked at: of the other four, a fifth of the groups is the validation part, the rest
is learnt from. A recipe's score is the mean over folds of the validation part's macro AUROC (and of its AUROC of
the first class against the rest) after the last epoch; nothing is chosen by epoch. Interrupted, it goes on. Writes
benchmarks/results/recipes.json: every recipe, the failed ones too. docs/real-study.md speaks of them.
"""

import argparse
from pathlib import Path

import numpy as np
from joblib import Parallel, delayed
from scipy.special import softmax
from sklearn.metrics import roc_auc_score

from thyroid_lib.common import fingerprint
from thyroid_lib.common.files import read_json, write_json
from thyroid_lib.data import audit, crops
from thyroid_lib.evaluation.calibration import macro_auroc
from thyroid_lib.training import folds as crossvalidation
from thyroid_lib.training import loop, pretraining

RESULTS = Path(__file__).parent / "results" / "recipes.json"
MODEL = {"name": "optimized_xception", "width": 0.5, "middle_blocks": 8}
PRETRAIN = {"epochs": 20, "batch_size": 32, "lr": 1e-3, "ema": 0.98, "mask_weight": 1.0}
FINETUNE = {"epochs": 12, "batch_size": 16, "lr": 3e-4, "ema": 0.98, "augment": 2.0}
QUESTIONS = {"mask_weight": 1.0, "sign_weight": 0.5}
TEXTURE = {"texture_weight": 1.0}
PLAIN = {"lr": 1e-3, "epochs": 15, "augment": 1.0}
RECIPES = {
    "plain": {
        "what": "pre-trained on BUSI, then 15 epochs at 1e-3, ordinary augmentation",
        "finetune": PLAIN,
    },
    "scratch": {"what": "as plain, without pre-training", "pretrain": None, "finetune": PLAIN},
    "gentle": {"what": "as plain, but 12 epochs at 3e-4, augmentation twice as strong"},
    "questions": {
        "what": "as gentle, and asked for masks and signs while it learns",
        "finetune": QUESTIONS,
    },
    "mirror": {
        "what": "as questions, and the mirror image predicted too",
        "finetune": QUESTIONS,
        "mirror": True,
    },
    "larger": {
        "what": "as mirror, at 192 px",
        "size": 192,
        "finetune": QUESTIONS,
        "mirror": True,
    },
    "texture": {
        "what": "as mirror, and asked for texture and shape under the mask, in both stages",
        "pretrain": TEXTURE,
        "finetune": QUESTIONS | TEXTURE,
        "mirror": True,
    },
    "average": {
        "what": "as mirror, the mean of three networks per fold",
        "finetune": QUESTIONS,
        "mirror": True,
        "members": 3,
    },
    "phantoms": {
        "what": "as texture, pre-trained on simulated nodules with drawn signs instead of BUSI",
        "pretrain_data": "phantom:clinic?patients=600",
        "pretrain": QUESTIONS | TEXTURE,
        "finetune": QUESTIONS | TEXTURE,
        "mirror": True,
    },
}
"""Name -> `what` it is, in words, `size` (px), `mirror`, `members` (networks per fold, by seed), `pretrain_data`,
and settings of `pretrain` (None: none) and `finetune` beside `PRETRAIN` and `FINETUNE`."""
TAKEN = "texture"  # what the profile does: the best of those that pre-train on the data asked for


def main() -> None:
    options = _options()
    for name in options.only or RECIPES:
        recipe = RECIPES[name]
        done = {"recipes": {}} | read_json(options.out) | {"taken": TAKEN}
        size, folds = recipe.get("size", 128), list(range(recipe.get("folds", 5)))
        initial = pretrained(recipe, size, options)
        jobs = [delayed(fold_scores)(recipe, size, fold, initial, options) for fold in folds]
        scores = Parallel(n_jobs=options.jobs, pre_dispatch="all")(jobs)
        row = done["recipes"][name] = {
            "what": recipe["what"],
            "size": size,
            "pretrain_data": recipe.get("pretrain_data", "").split("?")[0] or "as asked for",
            "pretrain": None if initial is None else PRETRAIN | recipe.get("pretrain", {}),
            "finetune": FINETUNE | recipe.get("finetune", {}),
            "mirror": recipe.get("mirror", False),
            "members": recipe.get("members", 1),
            "validation_macro_auroc": float(np.mean([score["macro_auroc"] for score in scores])),
            "validation_first_against_rest": float(np.mean([score["first"] for score in scores])),
            "by_fold": scores,
            "images": sum(score["images"] for score in scores),
            "seconds": round(sum(score["seconds"] for score in scores), 1),
        }
        order = {key: done["recipes"][key] for key in RECIPES if key in done["recipes"]}
        write_json(options.out, done | {"recipes": order})
        print(f"{name:<24} macro AUROC {row['validation_macro_auroc']:.3f}", end="  ")
        print(f"first class against rest {row['validation_first_against_rest']:.3f}", flush=True)


def pretrained(recipe: dict, size: int, options) -> Path | None:
    """Weights of the recipe's pre-training, trained now or before; None where it has none."""
    if recipe.get("pretrain", {}) is None:
        return None
    data = cropped("pretrain", recipe.get("pretrain_data", options.pretrain_data), size, options)
    settings = loop.Settings(
        model=pretraining.model_config(data, MODEL),
        loss="ce",
        monitor="last",
        **PRETRAIN | recipe.get("pretrain", {}),
    )
    rows = crossvalidation.parts(data, None, 0.15, settings.seed)
    folder = options.work / f"pretrain-{_name(settings)}-{size}-{data.hash[:8]}"
    fit = loop.fit(settings, data, rows["train"], rows["validation"], folder, set_aside=True)
    return fit.weights


def fold_scores(recipe: dict, size: int, fold: int, initial: Path | None, options) -> dict:
    """Trains on a fold's training part and scores the last epoch on its validation part."""
    data = cropped("finetune", options.finetune_data, size, options)
    rows = crossvalidation.parts(data, fold, 0.2, 0)
    start = "none" if initial is None else initial.parent.name
    probabilities, seconds = [], 0.0
    for seed in range(recipe.get("members", 1)):
        settings = loop.Settings(
            model=pretraining.model_config(data, MODEL),
            monitor="last",
            seed=seed,
            **FINETUNE | recipe.get("finetune", {}),
        )
        folder = options.work / f"finetune-{_name(settings)}-{size}-{start}" / f"fold{fold}"
        fit = loop.fit(
            settings, data, rows["train"], rows["validation"], folder, initial=initial, set_aside=True
        )
        network = fit.model()
        network.config["mirror"] = recipe.get("mirror", False)  # of predictions only: nothing is trained anew
        probabilities.append(softmax(loop.predict(network, data.images, rows["validation"]), axis=1))
        seconds += fit.seconds
    probabilities, truth = np.mean(probabilities, axis=0), data.labels[rows["validation"]]
    return {
        "fold": fold,
        "images": len(truth),
        "macro_auroc": macro_auroc(probabilities, truth),
        "first": float(roc_auc_score(truth == 0, probabilities[:, 0])),
        "seconds": round(seconds, 1),  # of one process on its share of the cores
    }


def cropped(role: str, spec: str, size: int, options) -> crops.Crops:
    """The role's crops, cut now or before."""
    name = "phantom-" if spec.startswith("phantom") and role == "pretrain" else ""
    folder = options.work / f"{name}{role}-{size}"
    if not (folder / "crops.json").is_file():
        prepared = audit.prepare({role: spec}, folds=5, seed=0, jobs=options.jobs)
        crops.build(prepared[role].clean, folder, size=size, jobs=options.jobs)
    return crops.Crops.open(folder)


def _name(settings: loop.Settings) -> str:
    return fingerprint.digest(settings.identity())[:12]


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pretrain-data", required=True, metavar="SPEC")
    parser.add_argument("--finetune-data", required=True, metavar="SPEC")
    parser.add_argument("--only", nargs="+", choices=list(RECIPES), help="recipes to run; all without it")
    parser.add_argument("--jobs", type=int, default=2, help="folds at a time, each on its share of the cores")
    parser.add_argument(
        "--work", type=Path, default=Path("reports/recipes"), help="crops and checkpoints, kept"
    )
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument(
        "--smoke", action="store_true", help="a tiny network for one epoch, to test this script"
    )
    options = parser.parse_args()
    if options.smoke:
        MODEL.update(width=0.125, middle_blocks=1)
        for recipe in RECIPES.values():
            recipe.update(size=32, folds=2)
            for stage in ("pretrain", "finetune"):
                if recipe.get(stage, {}) is not None:
                    recipe[stage] = recipe.get(stage, {}) | {"epochs": 1, "precision": "32"}
    return options


if __name__ == "__main__":
    main()
