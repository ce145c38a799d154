"""One job of the ablation: one arm, one seed, one fold; trained, tested, kept in a small folder of its own.

A job's folder is named by everything that its numbers follow from: configuration, crops, split, initial weights,
code and versions. Found there, it is not done again; changed in any of these, it is another job. While it runs,
the training's checkpoints lie beside; killed and started again, it goes on from them and ends with the same bits.
"""

import os
import shutil
import tempfile
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from importlib import metadata
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import torch
from scipy.special import softmax

from thyroid_lib import network
from thyroid_lib.common import fingerprint
from thyroid_lib.common.files import LIBRARY, read_json, write_json
from thyroid_lib.common.jobs import exit_with_parent
from thyroid_lib.data.crops import Crops
from thyroid_lib.evaluation.predictions import prediction_table, read_predictions, write_predictions
from thyroid_lib.inspection import probes
from thyroid_lib.layers import peers
from thyroid_lib.training import folds, loop, pretraining, ranks, texture
from thyroid_lib.training.identity import CODE

CUT = "+cut"
"""What is added to an arm's name where its dense connections carry only a mean (`probes.shallow_cut`)."""

GAZED = 16  # test images behind the maps of gradients
_OWN_CODE = (
    "ablation/jobs.py",
    "layers/peers.py",
    "inspection/probes.py",
    "training/texture.py",
    "evaluation/predictions.py",
    "manifest.py",
)


@dataclass(frozen=True)
class Job:
    """All that defines one job; plain values, so that any worker can do it.

    Attributes:
        arm: its name, also the model's in predictions.
        model: configuration for `network.build`; empty for the texture reference.
        settings: one training each; the validation part chooses among them. They differ in lr alone.
        shuffled: learn from labels dealt out anew among the training and validation images.
        seed: number of the repetition, from 0. fold: the fold that is tested.
        data: folder of crops. data_hash: theirs. size: px, side at which they are used.
        validation: share of the other patients. split_seed: of that choice.
        initial: where the initial weights come from; "" for random ones. initial_hash: of their values.
        threads: of the process, on a CPU. The bits depend on it, so it is not the machine's to choose.
        root: folder of all results.
    """

    arm: str
    model: dict
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
    initial_hash: str
    threads: int
    root: str

    @cached_property
    def identity(self) -> dict:
        """What its numbers follow from."""
        return {
            "model": self.model,
            "settings": [settings.identity() for settings in self.settings],
            "shuffled": self.shuffled,
            "seed": self.seed,
            "fold": self.fold,
            "crops": self.data_hash,
            "size": self.size,
            "validation": self.validation,
            "split_seed": self.split_seed,
            "initial_weights": self.initial_hash,
            "threads": self.threads,
            "code": fingerprint.digest(*(LIBRARY / name for name in (*CODE, *_OWN_CODE))),
            "versions": {name: _version(name) for name in ("torch", "timm", "numpy", "scikit-learn")},
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

    def __str__(self) -> str:
        return f"{self.arm}, seed {self.seed}, fold {self.fold}"


@dataclass(frozen=True)
class Result:
    """What a job found.

    Attributes:
        job: which.
        predictions: rows of the tested fold, model "<arm>/seed<k>", and those with cut connections.
        facts: the result file: choices made on validation, history, costs, what the network looks at.
        maps: name -> float32 (S, S), largest 1: "field" (effective receptive field) and "gradient".
    """

    job: Job
    predictions: pd.DataFrame
    facts: dict
    maps: dict[str, np.ndarray]


@dataclass(frozen=True)
class Resized:
    """Crops at another size, in memory; as much of `crops.Crops` as a training reads."""

    images: np.ndarray
    masks: np.ndarray | None
    index: pd.DataFrame
    labels: np.ndarray
    classes: list[str]
    hash: str


def at_size(crops: Crops, size: int) -> Crops | Resized:
    """The crops at a smaller side, each pixel the mean of those it covers; at their own, they themselves.

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
    images = small(crops.images, cv2.INTER_AREA)
    name = f"{crops.hash} at {size} px"
    return Resized(images, masks, crops.index, crops.labels, crops.classes, name)


def run_job(job: Job, title: str = "", silent: bool = False) -> str:
    """Does a job, or finds it done.

    Args:
        job: what to do. title: what the status line calls it. silent: say nothing; for worker processes, of
            which only the caller speaks.

    Returns:
        "", or why its training could not be finished; anything else that goes wrong is raised.
    """
    if job.done:
        return ""
    if silent:
        os.environ["THYROID_STATUS"] = os.devnull
        exit_with_parent()
    work = Path(job.root) / ".work" / job.key
    with _threads(job.threads):
        try:
            found = _network(job, work, title or str(job)) if job.model else _texture(job)
        except loop.TrainingError as error:
            shutil.rmtree(work, ignore_errors=True)
            return str(error)
    _commit(job, *found)
    shutil.rmtree(work, ignore_errors=True)
    return ""


def load(job: Job) -> Result:
    """Reads a finished job."""
    with np.load(job.folder / "maps.npz") as file:
        maps = {name: file[name] for name in file.files}
    return Result(
        job, read_predictions(job.folder / "predictions.csv"), read_json(job.folder / "result.json"), maps
    )


def shuffled_labels(labels: np.ndarray, rows: np.ndarray, seed: int) -> np.ndarray:
    """The labels with those of some rows dealt out among these rows at random; counts stay, meaning goes.

    Args:
        labels: int64 (N,). rows: int (n,). seed: of the dealing.

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
    if model["name"] == "peer":
        return peers.imagenet_weights(model, source)
    if model["width"] != 1 or model["middle_blocks"] != 8:
        raise ValueError(
            "initial_weights: ImageNet weights are for width 1 and 8 middle blocks, came width "
            f"{model['width']:g} and {model['middle_blocks']}; leave it empty to train every arm from scratch"
        )
    file = source if source == "hub" else peers.weights_file(source, "legacy_xception")
    return pretraining.imagenet_weights(model, str(file))


def _network(job: Job, work: Path, title: str):
    crops = at_size(Crops.open(job.data), job.size)
    rows = folds.parts(crops, job.fold, job.validation, job.split_seed)
    labels = crops.labels
    if job.shuffled:
        learnt = np.concatenate([rows["train"], rows["validation"]])
        labels = shuffled_labels(labels, learnt, job.settings[0].seed)
    start, origin = initial_weights(job.model, job.initial)
    fits = []
    for number, settings in enumerate(job.settings):
        fit = ranks.fit(
            replace(settings, threads=job.threads), crops, rows["train"], rows["validation"], work / f"lr{number}",
            initial=start, labels=labels, title=title, set_aside=True,
        )  # fmt: skip
        fits.append(fit)
    scores = [fit.history.iloc[fit.best_epoch - 1] for fit in fits]
    best = max(range(len(fits)), key=lambda k: (scores[k].val_auroc, -scores[k].val_loss, -k))
    model = fits[best].model()
    reach = probes.gradient_reach(model, job.size)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = model.to(device, memory_format=torch.channels_last)

    def logits(part: str) -> np.ndarray:
        return loop.predict(model, crops.images, rows[part])

    fixed = _fixed_on_validation(logits("validation"), labels[rows["validation"]], crops.classes)
    tables = [_table(job, job.arm, crops, rows["test"], logits("test"), fixed)]
    if job.model.get("dense_connections"):
        parts = np.array_split(rows["test"], -(-len(rows["test"]) // 64))
        with probes.shallow_cut(model, (_inputs(model, crops, part) for part in parts)):
            tables.append(_table(job, job.arm + CUT, crops, rows["test"], logits("test"), fixed))
    chosen = rows["test"][np.unique(np.linspace(0, len(rows["test"]) - 1, GAZED).astype(int))]
    seen = _inputs(model, crops, chosen)
    maps = {
        "field": probes.effective_receptive_field(model, seen),
        "gradient": probes.gradient_map(model, seen),
    }
    facts = {
        **fixed,
        "lr": job.settings[best].lr,
        "tried": [{"lr": s.lr, "val_auroc": float(row.val_auroc)} for s, row in zip(job.settings, scores)],
        "best_epoch": fits[best].best_epoch,
        "history": fits[best].history.to_dict("list"),
        "images": {part: len(chosen) for part, chosen in rows.items()},
        "gaze": {
            "field_side_px": probes.field_side(maps["field"]),
            "evenness": probes.evenness(maps["gradient"]),
            "reach": reach,
        },
        "initial_weights": origin,
        "seconds": sum(fit.seconds for fit in fits),
        "images_per_second": fits[best].images_per_second,
        "device": fits[best].choices["device"],
        "precision": fits[best].choices["precision"],
    }
    return tables, facts, maps


def _texture(job: Job):
    crops = at_size(Crops.open(job.data), job.size)
    rows = folds.parts(crops, job.fold, job.validation, job.split_seed)
    features = texture.texture_features(crops.images, crops.masks)
    logits_of = texture.fit_reference(
        features.iloc[rows["train"]], crops.labels[rows["train"]], len(crops.classes), job.split_seed
    )
    raw = logits_of(features.iloc[rows["validation"]])
    fixed = _fixed_on_validation(raw, crops.labels[rows["validation"]], crops.classes)
    table = _table(job, job.arm, crops, rows["test"], logits_of(features.iloc[rows["test"]]), fixed)
    return [table], {**fixed, "images": {part: len(chosen) for part, chosen in rows.items()}}, {}


def _fixed_on_validation(logits: np.ndarray, labels: np.ndarray, classes: list[str]) -> dict:
    temperature = loop.fit_temperature(logits, labels)
    points = loop.operating_points(softmax(logits / temperature, axis=1), labels, classes)
    return {"temperature": temperature, "operating_points": points}


def _table(job: Job, name: str, crops, rows: np.ndarray, logits: np.ndarray, fixed: dict) -> pd.DataFrame:
    index = crops.index.iloc[rows][
        ["image", "patient", "group", "dataset", "label"]
    ]  # covariates stay where they are
    return prediction_table(
        index, crops.classes, logits, fixed["temperature"], fixed["operating_points"],
        model=f"{name}/seed{job.seed}", set="internal", fold=job.fold,
    )  # fmt: skip


def _inputs(model, crops, rows: np.ndarray) -> torch.Tensor:
    device = next(model.parameters()).device
    images = torch.from_numpy(np.array(crops.images[rows])).to(device)
    x = network.normalize(images, model.config["in_chans"])
    return x.contiguous(memory_format=torch.channels_last)


def _commit(job: Job, tables: list[pd.DataFrame], facts: dict, maps: dict[str, np.ndarray]) -> None:
    """Writes a result beside its place and renames it into it, so that it is there whole or not at all."""
    job.folder.parent.mkdir(parents=True, exist_ok=True)
    part = Path(tempfile.mkdtemp(prefix=f".{job.folder.name}-", dir=job.folder.parent))
    try:
        write_predictions(tables, part / "predictions.csv")
        np.savez_compressed(
            part / "maps.npz", **{name: field.astype(np.float32) for name, field in maps.items()}
        )
        about = {"arm": job.arm, "key": job.key, "identity": job.identity}
        write_json(part / "result.json", about | facts)
        part.chmod(0o755)
        if job.folder.exists():  # without its result file: not ours to keep
            shutil.rmtree(job.folder)
        os.replace(part, job.folder)
    finally:
        shutil.rmtree(part, ignore_errors=True)


@contextmanager
def _threads(count: int):
    """PyTorch's and the linear algebra's threads while a job lasts: sums in another order are other bits."""
    from threadpoolctl import threadpool_limits

    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        with threadpool_limits(count):
            yield
    finally:
        torch.set_num_threads(before)


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "not installed"
