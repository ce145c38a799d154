"""One job of the ablation: one arm, one seed, one fold; trained, tested, kept in a small folder of its own.

A job's folder is named by everything that its numbers follow from: configuration, crops, split, initial weights,
code and versions. Found there, it is not done again; changed in any of these, it is another job. While it runs,
the training's checkpoints lie beside; killed and started again, it goes on from them and ends with the same bits.
"""

import os
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, fields, replace
from functools import cached_property, lru_cache
from importlib import metadata, util
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import torch
from threadpoolctl import threadpool_limits

from thyroid_lib import network
from thyroid_lib.common import fingerprint
from thyroid_lib.common.files import LIBRARY, read_json, write_json
from thyroid_lib.data.crops import Crops
from thyroid_lib.evaluation.predictions import prediction_table, read_predictions, write_predictions
from thyroid_lib.inspection import probes
from thyroid_lib.layers import peers, weights
from thyroid_lib.training import folds, loop, pretraining, references
from thyroid_lib.training.checkpoint import CODE
from thyroid_lib.training.texture import fit_reference

CUT = "+cut"
"""What is added to an arm's name where its dense connections carry only a mean (`probes.shallow_cut`)."""

GAZED = 16  # test images behind the maps of gradients
_OWN_CODE = (
    "ablation/jobs.py", "layers/peers.py", "inspection/probes.py", "training/folds.py", "training/references.py",
    "training/texture.py", "evaluation/predictions.py", "manifest.py",
)  # fmt: skip
_NO_NUMBER_FOLLOWS_FROM = ("data", "initial", "root")


@dataclass(frozen=True)
class Job:
    """All that defines one job, as plain values, so that any worker can do it; and, once it is done, its result.

    Attributes:
        arm: its name, also the model's in predictions.
        settings: one training each; the validation part chooses among them. They differ in lr alone. Their threads
            are the process's, on a CPU: the bits depend on it, so it is not the machine's to choose.
        shuffled: learn from labels dealt out anew among the training and validation images.
        seed: number of the repetition, from 0. fold: the fold that is tested.
        data: folder of crops. data_hash: theirs. size: px, side at which they are used.
        validation: share of the other patients. split_seed: of that choice.
        initial: where the initial weights come from; "" for random ones. initial_hash: of their values.
        root: folder of all results.
    """

    arm: str
    settings: tuple[loop.Settings, ...]
    shuffled: bool
    seed: int
    fold: int
    data: str
    data_hash: str
    size: int
    validation: float
    split_seed: int
    initial: str
    initial_hash: str | None
    root: str

    @property
    def model(self) -> dict:
        """Configuration for `network.build`; empty for a reference."""
        return self.settings[0].model

    @cached_property
    def identity(self) -> dict:
        """What its numbers follow from."""
        names = [field.name for field in fields(self) if field.name not in _NO_NUMBER_FOLLOWS_FROM]
        versions = ["torch", "numpy", "scikit-learn", *(["timm"] if util.find_spec("timm") else [])]
        return {name: getattr(self, name) for name in names} | {
            "settings": [settings.identity() for settings in self.settings],
            "threads": self.settings[0].threads,
            "code": fingerprint.digest(*(LIBRARY / name for name in (*CODE, *_OWN_CODE))),
            "versions": {name: metadata.version(name) for name in versions},
        }

    @cached_property
    def key(self) -> str:
        """16 hex digits of the identity."""
        return fingerprint.digest(self.identity)

    @property
    def folder(self) -> Path:
        """Where its result lies."""
        return Path(self.root) / "results" / self.arm / f"seed{self.seed}-fold{self.fold}-{self.key}"

    @property
    def done(self) -> bool:
        """Whether its result is there."""
        return (self.folder / "result.json").is_file()

    @cached_property
    def facts(self) -> dict:
        """The result file: choices made on validation, history, costs, what the network looks at."""
        return read_json(self.folder / "result.json")

    @cached_property
    def predictions(self) -> pd.DataFrame:
        """Rows of the tested fold, model "<arm>/seed<k>", and those with cut connections."""
        return read_predictions(self.folder / "predictions.csv")

    @cached_property
    def maps(self) -> dict[str, np.ndarray]:
        """Name -> float32 (S, S), largest 1: "field" (effective receptive field) and "gradient"."""
        with np.load(self.folder / "maps.npz") as file:
            return dict(file)

    def __str__(self) -> str:
        return f"{self.arm}, seed {self.seed}, fold {self.fold}"


def at_size(crops: Crops, size: int) -> Crops:
    """The crops at a smaller side, in memory, each pixel the mean of those it covers; at their own, they themselves.

    Raises:
        ValueError: they are smaller than asked for.
    """
    if size == crops.size:
        return crops
    if size > crops.size:
        raise ValueError(
            f"size: expected at most {crops.size} px, the side of the crops in {crops.folder.name}; came {size}. "
            "Run notebook 01 with a larger size"
        )

    def small(stack, how):
        return np.stack([cv2.resize(np.asarray(image), (size, size), interpolation=how) for image in stack])

    masks = None if crops.masks is None else small(crops.masks, cv2.INTER_NEAREST)
    images, name = small(crops.images, cv2.INTER_AREA), f"{crops.hash} at {size} px"
    return replace(crops, images=images, masks=masks, hash=name)


def run_job(job: Job, title: str, silent: bool = False) -> str:
    """Does a job.

    Args:
        job: what to do. title: what the status line calls it. silent: say nothing; for worker processes, of
            which only the caller speaks.

    Returns:
        "", or why its training could not be finished; anything else that goes wrong is raised.
    """
    if silent:
        os.environ["THYROID_STATUS"] = os.devnull
    work, problem = Path(job.root) / ".work" / job.key, ""
    try:
        with threads(job.settings[0].threads):
            _do(job, work, title)
    except loop.TrainingError as error:
        problem = str(error)
    shutil.rmtree(work, ignore_errors=True)
    return problem


def shuffled_labels(labels: np.ndarray, rows: np.ndarray, seed: int) -> np.ndarray:
    """The labels with those of some rows dealt out among these rows at random; counts stay, meaning goes.

    Args:
        labels: (N,), any values. rows: int (n,). seed: of the dealing.

    Source: Zhang et al. 2017 (arXiv 1611.03530), section 2.2.
    """
    dealt = labels.copy()
    dealt[rows] = np.random.default_rng([seed, len(rows)]).permutation(labels[rows])
    return dealt


def initial_weights(model: dict, source: str) -> tuple[dict[str, torch.Tensor] | None, dict]:
    """ImageNet weights for a network of the grid, and their origin; (None, {}) where training starts from scratch.

    Args:
        model: configuration. source: "", "hub", or a folder with a file for every timm network.

    Raises:
        ValueError: there are no weights for this network, though all arms must start alike.
    """
    if not source or not model:
        return None, {}
    blocks = model.get("middle_blocks", 8)  # a peer has none
    if model["width"] != 1 or blocks != 8:
        raise ValueError(
            f"initial_weights: ImageNet weights are for width 1 and 8 middle blocks, came width {model['width']:g} "
            f"and {blocks}; leave it empty to train every arm from scratch"
        )
    if model["name"] == "peer":
        return peers.imagenet_weights(model, source)
    file = weights.HUB if source == "hub" else peers.weights_file(source, "legacy_xception")
    return pretraining.imagenet_weights(model, str(file))


@lru_cache(maxsize=2)
def described(arm: str, data: str, size: int, data_hash: str) -> tuple[pd.DataFrame, float]:
    """A reference's features of all crops and the strength of its penalty; made once, for every seed and fold.

    Raises:
        TrainingError: these crops have none, or nothing that is installed here makes them.
    """
    describe, strength = references.REFERENCES[f"reference_{arm}"]
    features = describe(at_size(Crops.open(data), size))
    if features is None:
        raise loop.TrainingError("expected real images, and for ImageNet features the extra `imagenet`")
    return features, strength


def _do(job: Job, work: Path, title: str) -> None:
    """Trains, fixes on the validation part what is to be fixed, predicts the tested fold once, writes the result."""
    crops = at_size(Crops.open(job.data), job.size)
    rows = folds.parts(crops, job.fold, job.validation, job.split_seed)
    index = crops.index[["image", "patient", "group", "dataset", "label"]]  # no covariates
    if job.shuffled:
        learnt = np.concatenate([rows["train"], rows["validation"]])
        index = index.assign(label=shuffled_labels(index["label"].to_numpy(), learnt, job.settings[0].seed))
    crops = replace(crops, index=index)
    facts, maps = {}, {}
    if job.model:
        model, facts, maps = _train(job, crops, rows, work, title)
    else:
        features, strength = described(job.arm, job.data, job.size, job.data_hash)
        learnt = features.iloc[rows["train"]], crops.labels[rows["train"]]
        reference = fit_reference(*learnt, len(crops.classes), job.split_seed, strength)

    def logits(_: Crops, chosen: np.ndarray) -> np.ndarray:
        return loop.predict(model, crops.images, chosen) if job.model else reference(features.iloc[chosen])

    found = folds.fold_result(f"{job.arm}/seed{job.seed}", job.fold, rows, (crops, None), logits)
    tables, test = [found.tables["internal"]], rows["test"]
    if job.model.get("dense_connections"):
        parts = np.array_split(test, -(-len(test) // 64))
        about = {"model": f"{job.arm}{CUT}/seed{job.seed}", "set": "internal", "fold": job.fold}
        with probes.shallow_cut(model, (_inputs(model, crops, part) for part in parts)):
            how = logits(crops, test), found.temperature, found.operating_points
        tables.append(prediction_table(crops.index.iloc[test], crops.classes, *how, **about))
    job.folder.mkdir(parents=True, exist_ok=True)
    write_predictions(tables, job.folder / "predictions.csv")
    np.savez_compressed(job.folder / "maps.npz", **maps)
    facts |= {"temperature": found.temperature, "operating_points": found.operating_points}
    write_json(job.folder / "result.json", {"identity": job.identity} | facts)  # last: it makes the result


def _train(job: Job, crops: Crops, rows: dict, work: Path, title: str):
    """The network of the learning rate that does best on the validation part, on its device; facts and maps of it."""
    start, origin = initial_weights(job.model, job.initial)
    options = {"initial": start, "title": title, "set_aside": True}
    fits = [
        loop.fit(settings, crops, rows["train"], rows["validation"], work / f"lr{number}", **options)
        for number, settings in enumerate(job.settings)
    ]
    scores = [fit.history.iloc[fit.best_epoch - 1] for fit in fits]
    chosen = max(range(len(fits)), key=lambda k: (scores[k].val_auroc, -scores[k].val_loss, -k))
    best = fits[chosen]
    model = best.model()
    reach = probes.gradient_reach(model, job.size)
    model = model.to("cuda" if torch.cuda.is_available() else "cpu", memory_format=torch.channels_last)
    few = np.unique(np.linspace(0, len(rows["test"]) - 1, GAZED).astype(int))
    seen = _inputs(model, crops, rows["test"][few])
    field, gradient = probes.effective_receptive_field(model, seen), probes.gradient_map(model, seen)
    gaze = {"field_side_px": probes.field_side(field), "evenness": probes.evenness(gradient), "reach": reach}
    facts = {
        "lr": job.settings[chosen].lr,
        "tried": [{"lr": s.lr, "val_auroc": float(row.val_auroc)} for s, row in zip(job.settings, scores)],
        "best_epoch": best.best_epoch,
        "history": best.history.to_dict("list"),
        "gaze": gaze,
        "initial_weights": origin,
        "seconds": sum(fit.seconds for fit in fits),
        "images_per_second": best.images_per_second,
        "device": best.choices["device"],
    }
    return model, facts, {"field": field.astype(np.float32), "gradient": gradient.astype(np.float32)}


def _inputs(model, crops: Crops, rows: np.ndarray) -> torch.Tensor:
    images = torch.from_numpy(np.array(crops.images[rows])).to(next(model.parameters()).device)
    x = network.normalize(images, model.config["in_chans"])
    return x.contiguous(memory_format=torch.channels_last)


@contextmanager
def threads(count: int) -> Iterator[None]:
    """PyTorch's and the linear algebra's threads while it lasts: sums in another order are other bits."""
    with ExitStack() as afterwards, threadpool_limits(count):
        afterwards.callback(torch.set_num_threads, torch.get_num_threads())
        torch.set_num_threads(count)
        yield
