"""Training: one `fit` for pre-training (C8) and fine-tuning (C1, C9), exactly resumable.

The loop is plain: deal the epoch's order into batches, augment, forward, loss, backward, clip, step. What is
random is a function of (seed, epoch, sample), so an interrupted training that is started again ends with the
same bits, and the number of processes changes neither the batches nor the augmentation. Lightning Fabric
places the model on devices, casts and joins ranks; everything else is here to be read. The rules (batches,
learning rate, best epoch) stand in `settings`.
"""

import copy
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from thyroid_lib import losses, network
from thyroid_lib.common.progress import status
from thyroid_lib.data.rows import RowReader
from thyroid_lib.evaluation.calibration import macro_auroc
from thyroid_lib.training import checkpoint, hardware
from thyroid_lib.training.augmentation import Augmentation, uniforms
from thyroid_lib.training.auxiliary import Questions
from thyroid_lib.training.settings import Settings, TrainingError, check_rows, epoch_order, learning_rate

_STATUS_EVERY = 1.0  # seconds


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
        choices: what was chosen for this machine and why, and what the initial weights brought where there are any.
        settings: what it was asked to do, as plain values.
    """

    history: pd.DataFrame
    best_epoch: int
    weights: Path
    seconds: float
    images_per_second: float
    choices: dict
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
        settings: what to do. With several `devices`, the crops must lie in a folder, which the processes open.
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
        TrainingError: the loss became not a number, memory ran out, or a worker process failed.
        DataVanished: the crops are no longer what they were.
    """
    folder = Path(folder)
    train, validation = np.asarray(train, np.int64), np.asarray(validation, np.int64)
    labels = np.asarray(crops.labels if labels is None else labels, np.int64)
    check_rows(settings, labels, train, validation)
    identity = checkpoint.identity_of(settings, crops, train, validation, labels, initial)
    with checkpoint.held(folder):
        aside = checkpoint.prepare(folder, identity if set_aside else None)
    settings = hardware.launch(settings, crops, train, validation, folder, initial, labels, title, on_epoch)
    with checkpoint.held(folder):
        training = Training(settings, crops, train, validation, folder, initial, labels, title, identity)
        if aside:
            training.state["choices"]["set_aside"] = aside
        while not training.finished:
            training.epoch()
            if on_epoch and training.fabric.is_global_zero:
                on_epoch(checkpoint.history_of(training.state, title))
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
        precision: "32" or "bf16", or as Fabric calls them.

    Returns:
        float32 (n, C).
    """
    rows = np.arange(len(images)) if rows is None else np.asarray(rows)
    device = next(model.parameters()).device
    reader, mode, parts = RowReader(images), model.training, []
    model.eval()
    try:
        with torch.inference_mode(), torch.autocast(device.type, torch.bfloat16, enabled="bf16" in precision):
            for begin in range(0, len(rows), batch_size):
                x = reader.tensor(rows[begin : begin + batch_size], device)
                logits = [model(view).float() for view in network.views(_input(x, model), model.config)]
                parts.append(torch.stack(logits).mean(0).cpu())
    finally:
        model.train(mode)
    return torch.cat(parts).numpy() if parts else np.zeros((0, model.config["num_classes"]), np.float32)


class Training:
    """One training in one process: what it needs, how an epoch goes, how it is kept; arguments as `fit`."""

    def __init__(self, settings, crops, train, validation, folder, initial, labels, title, identity):
        self.settings, self.train, self.validation = settings, train, validation
        self.labels, self.folder, self.title = labels, folder, title
        self.steps = math.ceil(len(train) / settings.batch_size)
        if settings.threads:
            torch.set_num_threads(settings.threads)
        new = {"epoch": 0, "history": [], "seconds": 0.0, "trained": 0.0, "identity": identity}
        self.state = checkpoint.read_state(folder) or new
        checkpoint.refuse_another(folder, self.state["identity"], identity)
        if self.finished:
            return
        self.reader = RowReader(crops.images)
        self.augmentation = Augmentation().scaled(settings.augment) if settings.augment else None
        share = {"mixed": settings.focal_weight, "ce": 0.0, "focal": 1.0}[settings.loss]
        self.loss = losses.MixedLoss(share, settings.gamma, "none")
        asked = settings.mask_weight or settings.sign_weight or settings.texture_weight
        self.questions = Questions(crops, train, settings) if asked else None
        with torch.random.fork_rng():
            torch.manual_seed(settings.seed)
            self.model = network.build(settings.model)
        self.fabric = hardware.open_fabric(settings.precision, self.state, self.model, self.reader)
        if initial is not None:
            tensors = initial if isinstance(initial, dict) else checkpoint.load_weights(Path(initial))[0]
            brought = network.load_pretrained_body(self.model, tensors)
            left = "; ".join(f"{name}: {why}" for name, why in brought.unused.items()) or "nothing"
            self.state["choices"]["initial_weights"] = (
                f"{len(brought.loaded)} entries taken, left out: {left}"
            )
        if self.fabric.device.type == "cuda" and self.fabric.world_size > 1:
            self.model = nn.SyncBatchNorm.convert_sync_batchnorm(self.model)
        self.learner = self.model
        if self.questions:
            with torch.random.fork_rng():
                torch.manual_seed(settings.seed)
                self.learner = self.questions.pupil(self.model)
        self.learner.to(self.fabric.device, memory_format=torch.channels_last)
        decayed = [p for p in self.learner.parameters() if p.ndim > 1]
        plain = [p for p in self.learner.parameters() if p.ndim <= 1]
        groups = [{"params": decayed}, {"params": plain, "weight_decay": 0.0}]
        options = {"lr": settings.lr, "weight_decay": settings.weight_decay, "fused": True}
        self.optimizer = torch.optim.AdamW(groups, **options)
        self.average = copy.deepcopy(self.model).requires_grad_(False).eval() if settings.ema else None
        self.networks = nn.ModuleDict({"learner": self.learner, "average": self.average or nn.Identity()})
        self.wrapped = self.fabric.setup_module(self.learner)
        self.stepper = self.fabric.setup_optimizers(self.optimizer)
        if self.state["epoch"]:
            checkpoint.restore(folder, self.networks, self.optimizer)

    @property
    def finished(self) -> bool:
        """Whether all epochs are done."""
        return self.state["epoch"] == self.settings.epochs

    def epoch(self) -> None:
        """Trains one epoch, evaluates, and commits the checkpoint."""
        begin, number = time.perf_counter(), self.state["epoch"]
        try:
            with torch.random.fork_rng(range(torch.cuda.device_count())):
                row = {"epoch": number + 1, **self.learn(number), **self._evaluate()}
        except (MemoryError, RuntimeError) as error:
            if not isinstance(error, MemoryError) and "memory" not in str(error):
                raise
            raise TrainingError(
                f"{self.title}: out of memory in epoch {number + 1}, with batches of {self.settings.batch_size} "
                f"images of {self.reader.images.shape[1]} px on {self.fabric.device}. The checkpoint before it is "
                "kept; start again with a smaller batch_size."
            ) from error
        if not all(math.isfinite(row[k]) for k in ("train_loss", "val_loss")):
            raise TrainingError(
                f"{self.title}: the loss is not a finite number in epoch {number + 1} (training "
                f"{row['train_loss']}, validation {row['val_loss']}). The checkpoint of epoch {number} is "
                f"kept; start again with a lower lr than {self.settings.lr} or with clip > 0."
            )
        self._commit(row, time.perf_counter() - begin)

    def learn(self, epoch: int) -> dict[str, float]:
        """One pass over the training part: the last learning rate, and means of the losses while it learnt."""
        settings, fabric = self.settings, self.fabric
        rows = epoch_order(settings.seed, self.train, epoch)
        totals = torch.zeros(3, dtype=torch.float64, device=fabric.device)
        self.wrapped.train()
        for module in self.model.modules():
            if isinstance(module, nn.BatchNorm2d) and settings.frozen_batchnorm:
                module.eval()
        own = uniforms(settings.seed, epoch, np.array([fabric.global_rank]), 1).item()
        torch.manual_seed(int(own * 2**53))  # dropout
        said = begin = time.perf_counter()
        for step, part in enumerate(np.array_split(rows, self.steps)):
            lr = learning_rate(settings, epoch * self.steps + step, self.steps)
            for group in self.optimizer.param_groups:
                group["lr"] = lr
            mine = np.array_split(part, fabric.world_size)[fabric.global_rank]
            x, y, masks = self.batch(mine, epoch)
            logits, *answers = self.wrapped(x) if self.questions else (self.wrapped(x),)
            logits = logits.float()
            # Ranks' gradients are averaged: a rank's share of the global mean is taken times their number.
            loss = self.loss(logits, y).sum() / (len(part) / fabric.world_size)
            asked = self.questions.loss(answers, masks, mine, part) if answers else 0.0
            fabric.backward(loss + asked * fabric.world_size)
            if settings.clip:
                nn.utils.clip_grad_norm_(self.learner.parameters(), settings.clip, foreach=True)
            self.stepper.step()
            self.optimizer.zero_grad(set_to_none=True)
            self._follow(epoch * self.steps + step)
            with torch.no_grad():
                ce = cross_entropy(logits, y, reduction="sum")
                focal = losses.focal_loss(logits, y, settings.gamma, reduction="sum")
                totals += torch.stack((loss * len(part) / fabric.world_size, ce, focal)).to(totals)
            if time.perf_counter() - said > _STATUS_EVERY:
                said = time.perf_counter()
                self._say(epoch, step + 1)
        totals = fabric.all_reduce(totals, reduce_op="sum")
        self.state["trained"] += time.perf_counter() - begin
        return {"lr": lr, **dict(zip(("train_loss", "ce", "focal"), (totals / len(rows)).tolist()))}

    def batch(self, rows: np.ndarray, epoch: int) -> tuple[Tensor, Tensor, Tensor | None]:
        """The network's input (n, in_chans, S, S), labels (n,), and masks (n, S, S) where they are asked for."""
        device, asked = self.fabric.device, self.questions and self.questions.masks
        images, masks = self.reader.tensor(rows, device), asked.tensor(rows, device) if asked else None
        if self.augmentation:
            images, masks = self.augmentation(images, rows, seed=self.settings.seed, epoch=epoch, masks=masks)
        labels = torch.from_numpy(self.labels[rows]).to(device, non_blocking=True)
        return _input(images, self.model), labels, masks

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
        fabric = self.fabric
        mine = np.array_split(self.validation, fabric.world_size)[fabric.global_rank]
        size, precision = 2 * self.settings.batch_size, self.state["choices"]["precision"]
        model = self.average or self.model
        own = predict(model, self.reader.images, mine, batch_size=size, precision=precision)
        shares = [own] * fabric.world_size
        if fabric.world_size > 1:  # of unequal length, which `fabric.all_gather` does not take
            torch.distributed.all_gather_object(shares, own)
        logits, y = torch.from_numpy(np.concatenate(shares)), torch.from_numpy(self.labels[self.validation])
        return {
            "val_loss": float(self.loss(logits, y).double().sum() / len(y)),
            "val_ce": float(cross_entropy(logits.double(), y)),
            "val_focal": float(losses.focal_loss(logits.double(), y, self.settings.gamma)),
            "val_auroc": macro_auroc(torch.softmax(logits.double(), 1).numpy(), y.numpy()),
            "val_accuracy": float((logits.argmax(1) == y).double().mean()),
        }

    def _commit(self, row: dict, seconds: float) -> None:
        state = self.state
        state["epoch"] = row["epoch"]
        state["seconds"] += seconds
        score = [float(np.nan_to_num(row["val_auroc"], nan=-np.inf)), -row["val_loss"]]
        best = self.settings.monitor == "last" or not state["history"] or score > state["score"]
        if best:
            state |= {"score": score, "best_epoch": row["epoch"]}
        state["history"].append(row)
        if self.fabric.is_global_zero:
            if best:
                kept = (self.average or self.model).state_dict()
                about = {"model": self.settings.model, "epoch": row["epoch"], "identity": state["identity"]}
                checkpoint.save_weights(self.folder / checkpoint.BEST, kept, about)
            tensors = checkpoint.tensors_of(self.networks, self.optimizer)
            checkpoint.save_state(self.folder, {} if self.finished else tensors, state)
            self._say(row["epoch"], 0)
        self.fabric.barrier()

    def _say(self, epoch: int, step: int) -> None:
        if not self.fabric.is_global_zero:
            return
        done = f"epoch {epoch + (step > 0)} of {self.settings.epochs}"
        done += f", batch {step} of {self.steps}" if step else ""
        for last in self.state["history"][-1:]:
            done += f", loss {last['train_loss']:.3f}, validation AUROC {last['val_auroc']:.3f}"
        status(f"{self.title}: {done}", share=(epoch + step / self.steps) / self.settings.epochs)

    def result(self) -> Fit:
        """The finished training, as its checkpoint tells it."""
        state, weights = self.state, self.folder / checkpoint.BEST
        history, settings = checkpoint.history_of(state, self.title), self.settings.identity()
        rate = state["epoch"] * len(self.train) / max(state["trained"], 1e-9)
        return Fit(history, state["best_epoch"], weights, state["seconds"], rate, state["choices"], settings)


def _input(images: Tensor, model: nn.Module) -> Tensor:
    x = network.normalize(images, model.config["in_chans"])
    return x.contiguous(memory_format=torch.channels_last)
