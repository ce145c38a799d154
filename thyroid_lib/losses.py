"""The mixed loss of claim C9: cross-entropy and focal loss together, for mutually exclusive classes.

With p the softmax probability of the true class and w_y its weight:

    CE = -w_y log p          FL = -w_y (1 - p)^gamma log p          mixed = (1 - f) CE + f FL

References: Lin et al. 2017, "Focal loss for dense object detection" (arXiv 1708.02002), equations 4 and 5
(there sigmoid, here softmax); Cui et al. 2019, "Class-balanced loss" (arXiv 1901.05555), equation 4.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def focal_loss(
    logits: Tensor,
    target: Tensor,
    gamma: float = 2.0,
    weight: Tensor | None = None,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
) -> Tensor:
    """Softmax focal loss.

    Computed in float32 at least. Label smoothing spreads the target as in torch's cross-entropy: the loss is
    the sum over classes of q_c w_c (1 - p_c)^gamma (-log p_c), q the smoothed target, so that gamma = 0 is
    torch's cross-entropy for every smoothing.

    Args:
        logits: float (N, C).
        target: int64 (N,), 0 to C - 1.
        gamma: focusing, at least 0; 0 is cross-entropy.
        weight: float (C,), of each class.
        reduction: "mean" (weighted, as torch: divided by the sum of the targets' weights), "sum" or "none".
        label_smoothing: 0 to 1.

    Returns:
        A number, or (N,) for "none".
    """
    check(logits, target, weight, reduction)
    logits = logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits
    classes = logits.shape[1]
    weight = logits.new_ones(classes) if weight is None else weight.to(logits)
    log_p = F.log_softmax(logits, dim=1)
    q = F.one_hot(target, classes).to(logits) * (1 - label_smoothing) + label_smoothing / classes
    loss = -(q * weight * focus(log_p, gamma) * log_p).sum(1)
    if reduction == "none":
        return loss
    return loss.sum() if reduction == "sum" else loss.sum() / weight[target].sum()


def focus(log_p: Tensor, gamma: float) -> Tensor:
    """(1 - p)^gamma from log p: exact where p is near 1, and with a finite gradient for every gamma."""
    if gamma == 0:
        return torch.ones_like(log_p)
    smallest = torch.finfo(log_p.dtype).tiny  # below it x^gamma has an infinite slope for gamma < 1
    return (-torch.expm1(log_p)).clamp_min(smallest).pow(gamma)


class FocalLoss(nn.Module):
    """`focal_loss` as a module; class weights live in a buffer and move with it."""

    def __init__(
        self,
        gamma: float = 2.0,
        weight: Sequence[float] | Tensor | None = None,
        reduction: str = "mean",
        label_smoothing: float = 0.0,
    ):
        super().__init__()
        if gamma < 0 or not 0 <= label_smoothing < 1:
            raise ValueError(
                f"expected gamma >= 0 and label_smoothing in [0, 1), got {gamma} and {label_smoothing}"
            )
        self.gamma, self.reduction, self.label_smoothing = gamma, reduction, label_smoothing
        weight = None if weight is None else torch.as_tensor(weight, dtype=torch.float32)
        self.register_buffer("weight", weight, persistent=False)

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        return focal_loss(logits, target, self.gamma, self.weight, self.reduction, self.label_smoothing)


class MixedLoss(nn.Module):
    """(1 - focal_weight) * cross-entropy + focal_weight * focal loss (C9).

    Args:
        focal_weight: 0 is cross-entropy alone, 1 focal loss alone.
        gamma, weight, reduction, label_smoothing: as `focal_loss`, for both parts.
    """

    def __init__(
        self,
        focal_weight: float = 0.5,
        gamma: float = 2.0,
        weight: Sequence[float] | Tensor | None = None,
        reduction: str = "mean",
        label_smoothing: float = 0.0,
    ):
        super().__init__()
        if not 0 <= focal_weight <= 1:
            raise ValueError(f"expected focal_weight in [0, 1], got {focal_weight}")
        self.focal_weight = focal_weight
        self.focal = FocalLoss(gamma, weight, reduction, label_smoothing)

    def parts(self, logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """Cross-entropy and focal loss of the same logits, each unmixed."""
        focal = self.focal
        cross_entropy = focal_loss(logits, target, 0.0, focal.weight, focal.reduction, focal.label_smoothing)
        return cross_entropy, focal(logits, target)

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        cross_entropy, focal = self.parts(logits, target)
        return (1 - self.focal_weight) * cross_entropy + self.focal_weight * focal


def class_balanced_weights(counts: Sequence[int], beta: float = 0.999) -> Tensor:
    """Weight of each class from its effective number of samples, (1 - beta^n) / (1 - beta), mean 1.

    Args:
        counts: samples of each class, at least one each.
        beta: 0 weighs classes equally; towards 1 the weight tends to 1 / n.

    Returns:
        float32 (C,), summing to C.

    Raises:
        ValueError: a class has no samples, or beta is not in [0, 1).
    """
    counts = torch.as_tensor(counts, dtype=torch.float64)
    if counts.numel() == 0 or counts.min() < 1 or not 0 <= beta < 1:
        raise ValueError(
            f"expected at least one sample of each class and beta in [0, 1), got counts {counts.tolist()}, "
            f"beta {beta}; drop the empty class or gather samples of it"
        )
    weights = (1 - beta) / (1 - beta**counts)
    return (weights / weights.mean()).float()


def check(logits: Tensor, target: Tensor, weight: Tensor | None, reduction: str) -> None:
    if logits.ndim != 2 or target.shape != logits.shape[:1]:
        raise ValueError(
            f"expected logits (N, C) and target (N,), got {tuple(logits.shape)} and {tuple(target.shape)}"
        )
    if weight is not None and weight.shape != logits.shape[1:]:
        raise ValueError(f"expected a weight for each of {logits.shape[1]} classes, got {weight.numel()}")
    if reduction not in ("mean", "sum", "none"):
        raise ValueError(f"expected reduction 'mean', 'sum' or 'none', got {reduction!r}")
