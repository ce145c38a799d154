"""What defines a training: its settings, the order of its images and its learning rate, all plain functions.

Rules that a reader will ask for:

* A global batch holds `batch_size` images however many processes share it. An epoch of n images has
  ceil(n / batch_size) batches whose sizes differ by at most one, so there is no small last batch.
* `lr` is meant for a global batch of 32; another batch size B uses lr * sqrt(B / 32), the rule for Adam of
  Malladi et al. 2022 (arXiv 2205.10287). It rises linearly over `warmup_epochs`, then falls on a cosine to 0.
* The best epoch has the highest validation macro AUROC (`monitor="auroc"`), between equals the lower
  validation loss, then the earlier epoch; `monitor="last"` takes the last epoch whatever it scores: where the
  validation part is small, its best epoch is mostly luck.
* Weight decay acts on convolution and linear weights, not on biases and BatchNorm.
"""

import math
from dataclasses import asdict, dataclass

import numpy as np

PRECISIONS = ("auto", "32", "bf16")
CHOICES = {"loss": ("mixed", "ce", "focal"), "monitor": ("auroc", "last"), "precision": PRECISIONS}
AT_LEAST = {"epochs": 1, "batch_size": 2, "devices": 1} | dict.fromkeys(
    ("threads", "warmup_epochs", "clip", "ema", "weight_decay", "mask_weight", "sign_weight", "texture_weight"), 0
)  # fmt: skip


class TrainingError(RuntimeError):
    """A training that cannot begin or go on; the message says why and what to do."""


@dataclass(frozen=True)
class Settings:
    """Everything that defines a fit.

    Attributes:
        model: configuration for `network.build`, with "num_classes".
        epochs: passes over the training part, at least 1.
        batch_size: images of one global batch.
        lr: peak learning rate at a global batch of 32.
        weight_decay: AdamW's.
        warmup_epochs: length of the linear rise, may be a fraction.
        frozen_batchnorm: keep BatchNorm's statistics as they are.
        loss: "mixed", "ce" or "focal".
        focal_weight: share of the focal loss in the mixed loss, 0 to 1.
        gamma: focusing of the focal loss.
        ema: decay of the averaged weights that are evaluated and kept; 0 is none.
        augment: strength of `Augmentation`; 0 is none.
        clip: largest gradient norm; 0 is none.
        monitor: which epoch is kept: the best "auroc" of the validation part, or the "last".
        mask_weight: of the auxiliary loss that asks where the nodule is; 0 does not ask.
        sign_weight: of the auxiliary loss that asks for the described signs; 0 does not ask.
        texture_weight: of the auxiliary loss that asks for texture and shape under the mask; 0 does not ask.
        seed: of everything random.
        devices: processes that share each batch.
        precision: "auto" (probed), "32" or "bf16".
        threads: CPU threads per process; 0 leaves PyTorch's number. Bits depend on it.

    Raises:
        ValueError: a value that does not exist or is out of range.
    """

    model: dict
    epochs: int = 10
    batch_size: int = 32
    lr: float = 1e-3
    weight_decay: float = 0.05
    warmup_epochs: float = 1.0
    frozen_batchnorm: bool = False
    loss: str = "mixed"
    focal_weight: float = 0.5
    gamma: float = 2.0
    ema: float = 0.0
    augment: float = 1.0
    clip: float = 1.0
    monitor: str = "auroc"
    mask_weight: float = 0.0
    sign_weight: float = 0.0
    texture_weight: float = 0.0
    seed: int = 0
    devices: int = 1
    precision: str = "auto"
    threads: int = 0

    def __post_init__(self):
        for name, allowed in CHOICES.items():
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name}: expected one of {allowed}, {getattr(self, name)!r} came")
        for name, least in AT_LEAST.items():
            if getattr(self, name) < least:
                raise ValueError(f"{name}: expected at least {least}, {getattr(self, name)!r} came")
        if not self.lr > 0 or self.ema >= 1:
            raise ValueError(f"expected lr above 0 and ema below 1, lr={self.lr!r} and ema={self.ema!r} came")

    def identity(self) -> dict:
        """What a checkpoint must agree in; what belongs to the machine is left out."""
        return {name: value for name, value in asdict(self).items() if name not in ("devices", "threads")}


def epoch_order(seed: int, train: np.ndarray, epoch: int) -> np.ndarray:
    """The rows int (n,) of the training part in the order in which an epoch, from 0, visits them."""
    return np.random.Generator(np.random.Philox(key=[seed % 2**64, epoch])).permutation(train)


def learning_rate(settings: Settings, step: int, steps_per_epoch: int) -> float:
    """The learning rate of a step, from 0: linear warm-up, then a cosine down to 0 after the last."""
    peak = settings.lr * math.sqrt(settings.batch_size / 32)
    total = settings.epochs * steps_per_epoch
    warmup = min(round(settings.warmup_epochs * steps_per_epoch), total - 1)
    if step < warmup:
        return peak * (step + 1) / (warmup + 1)
    return peak * 0.5 * (1 + math.cos(math.pi * (step - warmup) / (total - warmup)))


def check_rows(settings: Settings, labels: np.ndarray, train: np.ndarray, validation: np.ndarray) -> None:
    """Raises ValueError where rows or labels do not fit each other or the settings."""
    last, classes = len(labels) - 1, settings.model["num_classes"]
    for name, rows in (("train", train), ("validation", validation)):
        if not len(rows) or rows.min() < 0 or rows.max() > last:
            raise ValueError(f"{name}: expected rows between 0 and {last}, at least one; {len(rows)} came")
        wrong = rows[(labels[rows] < 0) | (labels[rows] >= classes)]
        if len(wrong):
            raise ValueError(
                f"{name}: expected labels from 0 to {classes - 1}; row {wrong[0]} has {labels[wrong[0]]}. "
                "Leave unlabelled images out, or set num_classes"
            )
    both = np.intersect1d(train, validation)
    if len(both):
        raise ValueError(
            f"train and validation share {len(both)} rows, the first {both[0]}: split them apart"
        )
    smallest = len(train) // math.ceil(len(train) / settings.batch_size) // settings.devices
    if smallest < 2:
        raise ValueError(
            f"{len(train)} training images in batches of {settings.batch_size} leave {smallest} to each of "
            f"{settings.devices} processes; BatchNorm needs 2. Use fewer processes or larger batches"
        )
