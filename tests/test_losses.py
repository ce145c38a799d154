"""The mixed loss against torch's cross-entropy, closed forms and finite differences."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from thyroid_lib.losses import FocalLoss, MixedLoss


def batch(seed=0, n=6, classes=4, scale=1.0):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(n, classes, generator=generator, dtype=torch.float64) * scale
    return logits, torch.randint(0, classes, (n,), generator=generator)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_focal_loss_with_gamma_zero_is_torchs_cross_entropy(reduction):
    logits, target = batch()
    expected = F.cross_entropy(logits, target, reduction=reduction)
    torch.testing.assert_close(FocalLoss(0.0, reduction)(logits, target), expected)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0, 5.0])
def test_focal_loss_of_equal_logits_is_its_closed_form(gamma):
    loss = FocalLoss(gamma)(torch.zeros(3, 4, dtype=torch.float64), torch.tensor([0, 1, 3]))
    assert loss.item() == pytest.approx(0.75**gamma * math.log(4))


def test_focal_loss_of_two_classes_is_lin_and_others_with_the_difference_of_logits():
    torchvision = pytest.importorskip("torchvision")
    logits, target = batch(classes=2)
    difference, options = logits[:, 1] - logits[:, 0], {"alpha": -1, "gamma": 2.0, "reduction": "mean"}
    expected = torchvision.ops.sigmoid_focal_loss(difference, target.double(), **options)
    torch.testing.assert_close(FocalLoss(2.0)(logits, target), expected)


def test_mixed_loss_at_its_ends_is_its_parts():
    logits, target = batch()
    cross_entropy, focal = FocalLoss(0.0)(logits, target), FocalLoss(2.0)(logits, target)
    assert MixedLoss(0.0)(logits, target) == cross_entropy and MixedLoss(1.0)(logits, target) == focal
    torch.testing.assert_close(MixedLoss(0.3)(logits, target), 0.7 * cross_entropy + 0.3 * focal)


shares = st.floats(0, 1)
numbers = st.one_of(st.floats(-1e4, 1e4), st.sampled_from([-1e30, 1e30, 0.0, 88.7, -103.9, 1e-40]))
row = st.tuples(st.lists(numbers, min_size=4, max_size=4), st.integers(0, 3))
rows = st.lists(row, min_size=1, max_size=5)
gammas = st.one_of(st.sampled_from([0.0, 1e-3, 0.5, 1.0, 2.0]), st.floats(0, 10))


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 10_000), st.integers(2, 6), st.sampled_from([0.0, 0.5, 1.0, 2.0, 3.7]), shares)
def test_gradients_agree_with_finite_differences(seed, classes, gamma, focal_weight):
    logits, target = batch(seed, 3, classes, scale=2.0)
    loss = MixedLoss(focal_weight, gamma)
    assert torch.autograd.gradcheck(lambda z: loss(z, target), logits.requires_grad_())


@settings(deadline=None, max_examples=150)
@given(rows, gammas, shares, st.sampled_from([torch.float64, torch.float32, torch.bfloat16]))
def test_loss_and_gradient_are_never_nan(rows, gamma, focal_weight, dtype):
    logits = torch.tensor([row for row, _ in rows], dtype=dtype, requires_grad=True)
    loss = MixedLoss(focal_weight, gamma)(logits, torch.tensor([label for _, label in rows]))
    loss.backward()
    assert loss >= 0 and not logits.grad.isnan().any()


def test_bfloat16_logits_lose_nothing_to_the_loss():
    rounded, target = batch(scale=5.0)[0].bfloat16(), batch()[1]
    loss = MixedLoss()(rounded, target)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(MixedLoss()(rounded.double(), target).item(), rel=1e-6)
    sure = torch.tensor([[40.0, 0.0]], dtype=torch.bfloat16)  # right, it costs nothing; wrong, its logit
    assert FocalLoss()(sure, torch.tensor([0])).item() < 1e-16
    assert FocalLoss()(sure, torch.tensor([1])).item() == pytest.approx(40.0)


def test_what_does_not_fit_is_refused():
    logits, target = torch.zeros(2, 3), torch.zeros(2).long()
    with pytest.raises(ValueError, match="gamma >= 0"):
        FocalLoss(gamma=-1)
    with pytest.raises(ValueError, match="focal_weight in"):
        MixedLoss(focal_weight=1.2)
    with pytest.raises(ValueError, match="expected logits"):
        FocalLoss()(logits, torch.zeros(3).long())
    with pytest.raises(ValueError, match="expected reduction"):
        FocalLoss(reduction="max")(logits, target)
