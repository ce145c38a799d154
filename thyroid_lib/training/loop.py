"""Training: one `fit` for pre-training (C8) and fine-tuning (C1, C9), exactly resumable.

The loop is plain: deal the epoch's order into batches, augment, forward, loss, backward, clip, step. What is
random is a function of (seed, epoch, sample), so an interrupted training that is started again ends with the
same bits, and the number of processes changes neither the batches nor the augmentation. Lightning Fabric
places the model on devices, casts and joins ranks; everything else is here to be read. The rules (batches,
learning rate, best epoch) stand in `settings`.
"""

import contextlib
import copy
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from thyroid_lib import losses, network
from thyroid_lib.common.progress import status
from thyroid_lib.data.rows import RowReader
from thyroid_lib.evaluation.calibration import fit_temperature, macro_auroc, operating_points
from thyroid_lib.training import checkpoint
from thyroid_lib.training.augmentation import Augmentation, uniforms
from thyroid_lib.training.auxiliary import Questions
from thyroid_lib.training.engine import gathered, open_fabric
from thyroid_lib.training.identity import identity_of, put_aside
from thyroid_lib.training.settings import Settings, check_rows, epoch_order, learning_rate

__all__ = [
    "Fit",
    "Settings",
    "TrainingError",
    "fit",
    "fit_temperature",
    "macro_auroc",
    "operating_points",
    "predict",
]

_STATUS_EVERY = 1.0  # seconds


class TrainingError(RuntimeError):
    """A training that cannot begin or go on; the message says why and what to do."""


@dataclass(frozen=True)
class Fit:
    """A finished training.

    Attributes:
        history: one row per epoch: epoch (from 1), lr, train_loss, ce, focal (both unweighted, of the
            training part while it learns), val_loss, val_ce, val_focal, val_auroc, val_accuracy, best (bool).
        best_epoch: the epoch whose weights were kept, from 1.
        weights: path of best.safetensors.
        seconds: wall time over all starts.
        images_per_second: training throughput, validation and checkpoints not counted.
        choices: what was chosen for this machine and why.
        load_report: what the initial weights brought (text), "" without any.
        stopped: why training ended.
        settings: what it was asked to do, as plain values.
    """

    history: pd.DataFrame
    best_epoch: int
    weights: Path
    seconds: float
    images_per_second: float
    choices: dict
    load_report: str
    stopped: str
    settings: dict

    def model(self) -> nn.Module:
        """The trained network with the best epoch's weights, in eval mode."""
        tensors, metadata = checkpoint.load_weights(self.weights)
        model = network.build(metadata["model"])
        model.load_state_dict(tensors)
        return model.eval()


def fit(
    settings: Settings,
    crops,
    train: np.ndarray,
    validation: np.ndarray,
    folder: str | Path,
    *,
    initial: str | Path | dict | None = None,
    labels: np.ndarray | None = None,
    title: str = "training",
    on_epoch: Callable[[pd.DataFrame], None] | None = None,
    set_aside: bool = False,
) -> Fit:
    """Trains, or goes on where an interrupted training of the same settings and data stopped.

    Args:
        settings: what to do.
        crops: `crops.Crops`, or anything with `images` uint8 (N, S, S), `labels` int64 (N,) and `hash`.
        train: int (n,), rows to learn from.
        validation: int (m,), rows that choose the epoch; disjoint from `train`.
        folder: for the checkpoints; made where missing. Every epoch ends with an atomic write.
        initial: weights of the same network to start from, a safetensors file or a state dict; a head
            of another number of classes is left out.
        labels: int64 (N,), instead of `crops.labels`.
        title: what the progress line calls it.
        on_epoch: called with the history after each epoch, for a live curve; its `attrs` hold the title.
        set_aside: where the folder holds another training, rename it to <folder>.before (one is kept) and start
            anew, instead of refusing; `Fit.choices` then names the differences.

    Returns:
        The finished training; the same bits on a CPU whether interrupted or not, at one thread count.

    Raises:
        ValueError: rows or labels do not fit.
        CheckpointError: the folder cannot be written or belongs to another training.
        TrainingError: the loss became not a number, or the data vanished.
    """
    folder = Path(folder)
    train, validation = np.asarray(train, np.int64), np.asarray(validation, np.int64)
    labels = np.asarray(crops.labels if labels is None else labels, np.int64)
    if len(labels) != len(crops.images):
        raise ValueError(f"expected a label for each of {len(crops.images)} crops, {len(labels)} came")
    check_rows(settings, labels, train, validation)
    with checkpoint.held(folder):
        identity = identity_of(settings, crops, train, validation, labels, initial)
        aside = put_aside(folder, identity) if set_aside else ""
        training = Training(settings, crops, train, validation, folder, initial, labels, title, identity)
        if aside:
            training.state["choices"]["set_aside"] = aside
        while not training.finished:
            with torch.random.fork_rng(range(torch.cuda.device_count())), _enough_memory(training):
                training.epoch()
            if on_epoch and training.fabric.is_global_zero:
                on_epoch(training.history())
        return training.result()


def predict(
    model: nn.Module,
    images: np.ndarray,
    rows: np.ndarray | None = None,
    *,
    batch_size: int = 64,
    precision: str = "32",
) -> np.ndarray:
    """Logits of crops, the mean over the network's `views`, in eval mode, the model left in the mode it came in.

    Args:
        model: of `network.build`.
        images: uint8 (N, S, S).
        rows: int (n,), which of them; None is all, in order.
        batch_size: images at a time; the logits do not depend on the others in the batch.
        precision: "32" or "bf16".

    Returns:
        float32 (n, C).
    """
    rows = np.arange(len(images)) if rows is None else np.asarray(rows)
    device = next(model.parameters()).device
    reader, mode, parts = RowReader(images), model.training, []
    model.eval()
    try:
        with torch.inference_mode(), torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
            for begin in range(0, len(rows), batch_size):
                x = reader.tensor(rows[begin : begin + batch_size], device)
                logits = [model(view).float() for view in network.views(_input(x, model), model.config)]
                parts.append(torch.stack(logits).mean(0).cpu())
    finally:
        model.train(mode)
    return torch.cat(parts).numpy() if parts else np.zeros((0, model.config["num_classes"]), np.float32)


class Training:
    """One training in one process: what it needs, how an epoch goes, how it is kept."""

    def __init__(self, settings, crops, train, validation, folder, initial, labels, title, identity):
        self.settings, self.train, self.validation = settings, train, validation
        self.labels, self.folder, self.title = labels, folder, title
        if settings.threads:
            torch.set_num_threads(settings.threads)
        checkpoint.prepare(folder)
        self.state = checkpoint.read_state(folder) or {
            "epoch": 0,
            "history": [],
            "seconds": 0.0,
            "trained": 0.0,
        }
        if self.state["epoch"]:
            checkpoint.refuse_another(folder, self.state["identity"], identity)
        self.state["identity"] = identity
        self.finished = bool(self.state.get("finished"))
        if self.finished:
            return
        self.questions = None
        weights = (settings.mask_weight, settings.sign_weight, settings.texture_weight)
        if any(weights):
            self.questions = Questions(crops, train, *weights)
        with torch.random.fork_rng():
            torch.manual_seed(settings.seed)
            self.model = network.build(settings.model)
        self.fabric = open_fabric(settings, self.state, self.model, crops.images.shape[1])
        self.reader = RowReader(crops.images)
        if self.fabric.device.type == "cuda":
            self.reader.keep_on(self.fabric.device)
        self.state["choices"]["data"] = (
            f"uint8 crops {self.reader.where}; augmentation on batches on the device"
        )
        self._build(initial)
        if self.state["epoch"]:
            self._restore()
        self.steps = math.ceil(len(train) / settings.batch_size)
        self.augmentation = Augmentation().scaled(settings.augment) if settings.augment else None
        self.phase = None

    def _build(self, initial) -> None:
        settings, device = self.settings, self.fabric.device
        report = ""
        if initial is not None:
            tensors = initial if isinstance(initial, dict) else checkpoint.load_weights(Path(initial))[0]
            report = str(network.load_pretrained_body(self.model, tensors))
        self.state["load_report"] = report
        self.model.to(device, memory_format=torch.channels_last)
        if device.type == "cuda" and self.fabric.world_size > 1:
            self.model = nn.SyncBatchNorm.convert_sync_batchnorm(self.model)
        self.learner = self.model
        if self.questions:
            with torch.random.fork_rng():
                torch.manual_seed(settings.seed)
                self.learner = self.questions.pupil(self.model)
            self.learner.to(device, memory_format=torch.channels_last)
        decayed = [p for p in self.learner.parameters() if p.ndim > 1]
        plain = [p for p in self.learner.parameters() if p.ndim <= 1]
        self.optimizer = torch.optim.AdamW(
            [
                {"params": decayed, "weight_decay": settings.weight_decay},
                {"params": plain, "weight_decay": 0.0},
            ],
            lr=settings.lr,
            fused=device.type in ("cpu", "cuda"),
        )
        self.average = copy.deepcopy(self.model).requires_grad_(False).eval() if settings.ema else None
        counts = np.bincount(self.labels[self.train], minlength=settings.model["num_classes"])
        weight = (
            losses.class_balanced_weights(counts, settings.class_weights) if settings.class_weights else None
        )
        share = {"mixed": settings.focal_weight, "ce": 0.0, "focal": 1.0}[settings.loss]
        smoothing = settings.label_smoothing
        self.loss = losses.MixedLoss(share, settings.gamma, weight, "none", smoothing).to(device)
        self.weight = np.ones(len(counts)) if weight is None else weight.numpy().astype(np.float64)

    def epoch(self) -> None:
        """Trains one epoch, evaluates, and commits the checkpoint."""
        begin, number = time.perf_counter(), self.state["epoch"]
        self.wrap("head" if number < self.settings.frozen_epochs else "all")
        sums, lr = self.learn(number)
        row = {"epoch": number + 1, "lr": lr, **sums, **self._evaluate()}
        if not all(math.isfinite(row[k]) for k in ("train_loss", "val_loss")):
            raise TrainingError(
                f"{self.title}: the loss is not a finite number in epoch {number + 1} (training "
                f"{row['train_loss']}, validation {row['val_loss']}). The checkpoint of epoch {number} is "
                f"kept; start again with a lower lr than {self.settings.lr} or with clip > 0."
            )
        score = {
            "auroc": [row["val_auroc"], -row["val_loss"]],
            "loss": [-row["val_loss"]],
            "last": [float(row["epoch"])],
        }[self.settings.monitor]
        score = [x if math.isfinite(x) else -math.inf for x in score]
        row["best"] = not self.state["history"] or score > self.state["score"]
        self._commit(row, score, time.perf_counter() - begin)

    def wrap(self, phase: str) -> None:
        """Sets what learns; distributed wrappers must know it beforehand, so they are made per phase."""
        if phase == self.phase:
            return
        self.phase = phase
        for name, parameter in self.model.named_parameters():
            parameter.requires_grad_(phase == "all" or name.startswith("fc."))
        module = torch.compile(self.learner) if self.settings.compile else self.learner
        self.wrapped = self.fabric.setup_module(module)
        self.stepper = self.fabric.setup_optimizers(self.optimizer)

    def learn(self, epoch: int) -> tuple[dict[str, float], float]:
        settings, fabric = self.settings, self.fabric
        rows, occurrences = epoch_order(settings, self.labels, self.train, epoch)
        learning = [p for p in self.learner.parameters() if p.requires_grad]
        totals = torch.zeros(3, dtype=torch.float64, device=fabric.device)
        self.wrapped.train()
        for module in self.model.modules():
            if isinstance(module, nn.BatchNorm2d) and (settings.frozen_batchnorm or self.phase == "head"):
                module.eval()
        torch.manual_seed(_number(settings.seed, epoch, fabric.global_rank))  # dropout
        said = begin = time.perf_counter()
        for step, part in enumerate(np.array_split(np.arange(len(rows)), self.steps)):
            lr = learning_rate(settings, epoch * self.steps + step, self.steps)
            for group in self.optimizer.param_groups:
                group["lr"] = lr
            mine = np.array_split(part, fabric.world_size)[fabric.global_rank]
            x, y, masks = self.batch(rows[mine], occurrences[mine], epoch)
            # Ranks' gradients are averaged: a rank's share of the global mean is taken times their number.
            whole = float(self.weight[self.labels[rows[part]]].sum()) / fabric.world_size
            logits, *answers = self.wrapped(x) if self.questions else (self.wrapped(x),)
            logits = logits.float()
            loss = self.loss(logits, y).sum() / whole
            objective = loss
            if answers:
                asked = self.questions.loss(*answers, masks, rows[mine], rows[part])
                objective = loss + asked * fabric.world_size
            fabric.backward(objective)
            if settings.clip:
                nn.utils.clip_grad_norm_(learning, settings.clip, foreach=True)
            self.stepper.step()
            self.optimizer.zero_grad(set_to_none=True)
            self._follow(epoch * self.steps + step)
            with torch.no_grad():
                ce = cross_entropy(logits, y, reduction="sum")
                focal = losses.focal_loss(logits, y, settings.gamma, reduction="sum")
                totals += torch.stack((loss * len(part) / fabric.world_size, ce, focal)).to(totals)
            if time.perf_counter() - said > _STATUS_EVERY and fabric.is_global_zero:
                said = time.perf_counter()
                self._say(epoch, step + 1)
        if fabric.world_size > 1:
            totals = fabric.all_reduce(totals, reduce_op="sum")
        names = ("train_loss", "ce", "focal")
        sums = dict(zip(names, (totals / len(rows)).tolist()))
        self.state["trained"] += time.perf_counter() - begin
        return sums, lr

    def batch(
        self, rows: np.ndarray, occurrences: np.ndarray, epoch: int
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
        device = self.fabric.device
        images, masks = self.reader.tensor(rows, device), None
        if self.questions and self.questions.masks:
            masks = self.questions.masks.tensor(rows, device)
        if self.augmentation:
            images = self.augmentation(
                images, rows, seed=self.settings.seed, epoch=epoch, occurrences=occurrences, masks=masks
            )
            images, masks = images if masks is not None else (images, None)
        labels = torch.from_numpy(self.labels[rows]).to(device, non_blocking=True)
        return _input(images, self.model), labels, None if masks is None else masks.float()

    @torch.no_grad()
    def _follow(self, step: int) -> None:
        """Exponential moving average of the weights; it forgets faster in the first steps."""
        if self.average is None:
            return
        share = 1 - min(self.settings.ema, (1 + step) / (10 + step))
        ours, theirs = self.average.state_dict(), self.model.state_dict()
        moving = [name for name, value in ours.items() if value.is_floating_point()]
        torch._foreach_lerp_([ours[n] for n in moving], [theirs[n].detach() for n in moving], share)
        for name in ours.keys() - set(moving):
            ours[name].copy_(theirs[name])

    def _evaluate(self) -> dict[str, float]:
        """Validation metrics of the weights that would be kept; each rank takes its share, none is padded."""
        fabric, model = self.fabric, self.average or self.model
        mine = np.array_split(self.validation, fabric.world_size)[fabric.global_rank]
        precision = "bf16" if self.state["environment"]["precision"] == "bf16-mixed" else "32"
        logits = predict(
            model, self.reader.images, mine, batch_size=2 * self.settings.batch_size, precision=precision
        )
        logits = torch.from_numpy(np.concatenate(gathered(fabric, logits)))
        y = torch.from_numpy(self.labels[self.validation])
        each = self.loss.cpu()(logits, y)
        self.loss.to(fabric.device)
        probabilities = torch.softmax(logits.double(), 1).numpy()
        return {
            "val_loss": float(each.double().sum() / self.weight[y.numpy()].sum()),
            "val_ce": float(cross_entropy(logits.double(), y)),
            "val_focal": float(losses.focal_loss(logits.double(), y, self.settings.gamma)),
            "val_auroc": macro_auroc(probabilities, y.numpy()),
            "val_accuracy": float((logits.argmax(1) == y).double().mean()),
        }

    def _commit(self, row: dict, score: list[float], seconds: float) -> None:
        state = self.state
        state["epoch"] = row["epoch"]
        state["seconds"] += seconds
        if row["best"]:
            state |= {"score": score, "best_epoch": row["epoch"]}
            for older in state["history"]:
                older["best"] = False
        state["history"].append(row)
        waited = row["epoch"] - state["best_epoch"]
        if row["epoch"] == self.settings.epochs:
            state["finished"] = "all epochs done"
        elif self.settings.patience and waited >= self.settings.patience:
            state["finished"] = f"no better epoch for {waited} epochs"
        self.finished = bool(state.get("finished"))
        if self.fabric.is_global_zero:
            if row["best"]:
                kept = (self.average or self.model).state_dict()
                about = {"model": self.settings.model, "epoch": row["epoch"], "identity": state["identity"]}
                checkpoint.save_weights(self.folder / checkpoint.BEST, kept, about)
            checkpoint.save_state(self.folder, {} if self.finished else self._tensors(), state)
            self._say(row["epoch"], 0)
        if self.fabric.world_size > 1:
            self.fabric.barrier()

    def _tensors(self) -> dict[str, torch.Tensor]:
        tensors = {f"model.{name}": value for name, value in self.model.state_dict().items()}
        if self.questions:
            heads = self.learner.state_dict().items()
            tensors |= {f"heads.{name}": value for name, value in heads if not name.startswith("model.")}
        if self.average is not None:
            tensors |= {f"average.{name}": value for name, value in self.average.state_dict().items()}
        for i, slots in self.optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{i}.{name}": value for name, value in slots.items()}
        return tensors

    def _restore(self) -> None:
        tensors = checkpoint.load_state_tensors(self.folder, self.state)
        part = {key: {} for key in ("model", "heads", "average", "optimizer")}
        for name, value in tensors.items():
            kind, rest = name.split(".", 1)
            part[kind][rest] = value
        self.model.load_state_dict(part["model"])
        if self.questions:
            self.learner.load_state_dict(part["heads"], strict=False)
        if self.average is not None:
            self.average.load_state_dict(part["average"])
        saved = self.optimizer.state_dict()
        parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        for name, value in part["optimizer"].items():
            i, slot = name.split(".", 1)
            if value.ndim:  # the fused optimizer walks memory: the state must lie as its parameter does
                value = torch.empty_like(parameters[int(i)]).copy_(value)
            saved["state"].setdefault(int(i), {})[slot] = value
        self.optimizer.load_state_dict(saved)

    def _say(self, epoch: int, step: int) -> None:
        if self.fabric.is_global_zero:
            done = f"epoch {epoch + (step > 0)} of {self.settings.epochs}"
            done += f", batch {step} of {self.steps}" if step else ""
            last = self.state["history"][-1] if self.state["history"] else None
            loss = (
                f", loss {last['train_loss']:.3f}, validation AUROC {last['val_auroc']:.3f}" if last else ""
            )
            share = (epoch + step / self.steps) / self.settings.epochs
            status(f"{self.title}: {done}{loss}", share=share)

    def history(self) -> pd.DataFrame:
        history = pd.DataFrame(self.state["history"])
        history.attrs["title"] = self.title
        return history

    def result(self) -> Fit:
        state = self.state
        if not (self.folder / checkpoint.BEST).is_file():
            raise checkpoint.CheckpointError(
                f"Expected {self.folder / checkpoint.BEST} beside a finished training; it is gone. Delete "
                f"the folder {self.folder} to train again."
            )
        images = state["epoch"] * len(self.train)
        return Fit(
            history=self.history(),
            best_epoch=state["best_epoch"],
            weights=self.folder / checkpoint.BEST,
            seconds=state["seconds"],
            images_per_second=images / max(state["trained"], 1e-9),
            choices=state["choices"],
            load_report=state.get("load_report", ""),
            stopped=state["finished"],
            settings=self.settings.identity(),
        )


@contextlib.contextmanager
def _enough_memory(training: Training):
    """Says what to do where memory runs out, on a GPU or on the machine."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not isinstance(error, MemoryError) and "memory" not in str(error):
            raise
        images = training.reader.images
        raise TrainingError(
            f"{training.title}: out of memory in epoch {training.state['epoch'] + 1}, with batches of "
            f"{training.settings.batch_size} images of {images.shape[1]} px on {training.fabric.device}. The "
            "checkpoint before it is kept; start again with a smaller batch_size."
        ) from error


def _input(images: torch.Tensor, model: nn.Module) -> torch.Tensor:
    x = network.normalize(images, model.config["in_chans"])
    return x.contiguous(memory_format=torch.channels_last)


def _number(*keys: int) -> int:
    return int(uniforms(keys[0], keys[1], np.array([keys[2]]), np.zeros(1, np.int64), 1)[0, 0] * 2**53)
