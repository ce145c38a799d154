"""The mixed loss of claim C9: cross-entropy and focal loss together, for mutually exclusive classes.

With p the softmax probability of the true class:

    CE = -log p          FL = -(1 - p)^gamma log p          mixed = (1 - f) CE + f FL

Reference: Lin et al. 2017, "Focal loss for dense object detection" (arXiv 1708.02002), equation 4 (there sigmoid,
here softmax).
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def focal_loss(logits: Tensor, target: Tensor, gamma: float = 2.0, reduction: str = "mean") -> Tensor:
    """Softmax focal loss, computed in float32 at least.

    Args:
        logits: float (N, C).
        target: int64 (N,), 0 to C - 1.
        gamma: focusing, at least 0; 0 is cross-entropy.
        reduction: "mean", "sum" or "none".

    Returns:
        A number, or (N,) for "none".

    Raises:
        ValueError: the shapes do not fit, or there is no such reduction.
    """
    if logits.ndim != 2 or target.shape != logits.shape[:1]:
        raise ValueError(
            f"expected logits (N, C) and target (N,), got {tuple(logits.shape)} and {tuple(target.shape)}"
        )
    if reduction not in ("mean", "sum", "none"):
        raise ValueError(f"expected reduction 'mean', 'sum' or 'none', got {reduction!r}")
    logits = logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits
    log_p = F.log_softmax(logits, dim=1).gather(1, target[:, None])[:, 0]
    loss = -focus(log_p, gamma) * log_p
    return loss if reduction == "none" else getattr(loss, reduction)()


def focus(log_p: Tensor, gamma: float) -> Tensor:
    """(1 - p)^gamma from log p: exact where p is near 1, and with a finite gradient for every gamma."""
    if gamma == 0:
        return torch.ones_like(log_p)
    smallest = torch.finfo(log_p.dtype).tiny  # below it x^gamma has an infinite slope for gamma < 1
    return (-torch.expm1(log_p)).clamp_min(smallest).pow(gamma)


class FocalLoss(nn.Module):
    """`focal_loss` as a module."""

    def __init__(self, gamma: float = 2.0, reduction: str = "mean"):
        super().__init__()
        if gamma < 0:
            raise ValueError(f"expected gamma >= 0, got {gamma}")
        self.gamma, self.reduction = gamma, reduction

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        return focal_loss(logits, target, self.gamma, self.reduction)


class MixedLoss(nn.Module):
    """(1 - focal_weight) * cross-entropy + focal_weight * focal loss (C9).

    Args:
        focal_weight: 0 is cross-entropy alone, 1 focal loss alone.
        gamma, reduction: as `focal_loss`.
    """

    def __init__(self, focal_weight: float = 0.5, gamma: float = 2.0, reduction: str = "mean"):
        super().__init__()
        if not 0 <= focal_weight <= 1:
            raise ValueError(f"expected focal_weight in [0, 1], got {focal_weight}")
        self.focal_weight, self.focal = focal_weight, FocalLoss(gamma, reduction)

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        cross_entropy = focal_loss(logits, target, 0.0, self.focal.reduction)
        return (1 - self.focal_weight) * cross_entropy + self.focal_weight * self.focal(logits, target)
