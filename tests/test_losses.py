import pytest
import torch
import torch.nn.functional as F

from thyroid_lib.losses import FocalLoss, MixedLoss, class_balanced_weights


def batch(seed=0, n=6, classes=4):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(n, classes, generator=generator, dtype=torch.float64)
    return logits, torch.randint(0, classes, (n,), generator=generator)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("weight", [None, [0.5, 1.0, 2.0, 4.0]])
def test_focal_loss_with_gamma_zero_is_torchs_cross_entropy(reduction, smoothing, weight):
    logits, target = batch()
    tensor = None if weight is None else torch.tensor(weight, dtype=torch.float64)
    expected = F.cross_entropy(logits, target, tensor, reduction=reduction, label_smoothing=smoothing)
    torch.testing.assert_close(FocalLoss(0.0, weight, reduction, smoothing)(logits, target), expected)


def test_mixed_loss_at_its_ends_is_its_parts():
    logits, target = batch()
    assert MixedLoss(0.0)(logits, target) == FocalLoss(0.0)(logits, target)
    assert MixedLoss(1.0)(logits, target) == FocalLoss(2.0)(logits, target)


def test_class_balanced_weights_tend_to_inverse_frequency():
    weights = class_balanced_weights([10, 20, 40], beta=1 - 1e-9)
    torch.testing.assert_close(weights / weights[0], torch.tensor([1.0, 0.5, 0.25]))
