"""The mixed loss against torch's cross-entropy, closed forms and finite differences."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from thyroid_lib.losses import FocalLoss, MixedLoss, class_balanced_weights


def batch(seed=0, n=6, classes=4, scale=1.0):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(n, classes, generator=generator, dtype=torch.float64) * scale
    return logits, torch.randint(0, classes, (n,), generator=generator)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("weight", [None, [0.5, 1.0, 2.0, 4.0]])
def test_focal_loss_with_gamma_zero_is_torchs_cross_entropy(reduction, smoothing, weight):
    logits, target = batch()
    tensor = None if weight is None else torch.tensor(weight, dtype=torch.float64)
    expected = F.cross_entropy(logits, target, tensor, reduction=reduction, label_smoothing=smoothing)
    torch.testing.assert_close(FocalLoss(0.0, weight, reduction, smoothing)(logits, target), expected)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0, 5.0])
def test_focal_loss_of_equal_logits_is_its_closed_form(gamma):
    loss = FocalLoss(gamma)(torch.zeros(3, 4, dtype=torch.float64), torch.tensor([0, 1, 3]))
    assert loss.item() == pytest.approx(0.75**gamma * math.log(4))


def test_focal_loss_of_two_classes_is_lin_and_others_with_the_difference_of_logits():
    torchvision = pytest.importorskip("torchvision")
    logits, target = batch(classes=2)
    expected = torchvision.ops.sigmoid_focal_loss(
        logits[:, 1] - logits[:, 0], target.double(), alpha=-1, gamma=2.0, reduction="mean"
    )
    torch.testing.assert_close(FocalLoss(2.0)(logits, target), expected)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("weight", [None, [0.5, 1.0, 2.0, 4.0]])
def test_mixed_loss_at_its_ends_is_its_parts(weight, smoothing):
    logits, target = batch()
    others = {"weight": weight, "label_smoothing": smoothing}
    assert MixedLoss(0.0, **others)(logits, target) == FocalLoss(0.0, **others)(logits, target)
    assert MixedLoss(1.0, **others)(logits, target) == FocalLoss(2.0, **others)(logits, target)
    cross_entropy, focal = MixedLoss(0.3, **others).parts(logits, target)
    torch.testing.assert_close(MixedLoss(0.3, **others)(logits, target), 0.7 * cross_entropy + 0.3 * focal)


@pytest.mark.parametrize("reduction", ["sum", "mean"])
def test_reductions_are_torchs(reduction):
    logits, target = batch()
    weight = torch.tensor([1.0, 2.0, 3.0, 4.0], dtype=torch.float64)
    single = MixedLoss(weight=weight, reduction="none")(logits, target)
    expected = single.sum() / (weight[target].sum() if reduction == "mean" else 1)
    torch.testing.assert_close(MixedLoss(weight=weight, reduction=reduction)(logits, target), expected)


@settings(deadline=None, max_examples=25)
@given(
    seed=st.integers(0, 10_000),
    classes=st.integers(2, 6),
    gamma=st.sampled_from([0.0, 0.5, 1.0, 2.0, 3.7]),
    focal_weight=st.floats(0, 1),
    smoothing=st.sampled_from([0.0, 0.1]),
    weighted=st.booleans(),
)
def test_gradients_agree_with_finite_differences(seed, classes, gamma, focal_weight, smoothing, weighted):
    logits, target = batch(seed, 3, classes, scale=2.0)
    weight = torch.linspace(0.5, 2.0, classes) if weighted else None
    loss = MixedLoss(focal_weight, gamma, weight, label_smoothing=smoothing)
    assert torch.autograd.gradcheck(lambda z: loss(z, target), logits.requires_grad_())


numbers = st.one_of(st.floats(-1e4, 1e4), st.sampled_from([-1e30, 1e30, 0.0, 88.7, -103.9, 1e-40]))


@settings(deadline=None, max_examples=150)
@given(
    rows=st.integers(2, 5).flatmap(
        lambda classes: st.lists(
            st.tuples(st.lists(numbers, min_size=classes, max_size=classes), st.integers(0, classes - 1)),
            min_size=1,
            max_size=5,
        )
    ),
    gamma=st.one_of(st.sampled_from([0.0, 1e-3, 0.5, 1.0, 2.0]), st.floats(0, 10)),
    focal_weight=st.floats(0, 1),
    smoothing=st.sampled_from([0.0, 0.1]),
    dtype=st.sampled_from([torch.float64, torch.float32, torch.bfloat16]),
    scale=st.floats(0.01, 100),
)
def test_loss_and_gradient_are_never_nan(rows, gamma, focal_weight, smoothing, dtype, scale):
    logits = torch.tensor([row for row, _ in rows], dtype=dtype, requires_grad=True)
    target = torch.tensor([label for _, label in rows])
    weight = torch.full((logits.shape[1],), scale)
    loss = MixedLoss(focal_weight, gamma, weight, label_smoothing=smoothing)(logits, target)
    loss.backward()
    assert not loss.isnan() and not logits.grad.isnan().any()
    assert loss >= 0


def test_a_confident_right_answer_costs_nothing_and_a_confident_wrong_one_its_logit():
    logits = torch.tensor([[40.0, 0.0]], dtype=torch.bfloat16)
    assert FocalLoss()(logits, torch.tensor([0])).item() < 1e-16
    assert FocalLoss()(logits, torch.tensor([1])).item() == pytest.approx(40.0)


def test_bfloat16_logits_lose_nothing_to_the_loss():
    logits, target = batch(scale=5.0)
    rounded = logits.bfloat16()
    expected = MixedLoss()(rounded.double(), target)
    loss = MixedLoss()(rounded, target)
    assert loss.dtype == torch.float32 and loss.item() == pytest.approx(expected.item(), rel=1e-6)


def test_class_balanced_weights_follow_cui_and_others():
    weights = class_balanced_weights([10, 1000], beta=0.99)
    effective = [(1 - 0.99**n) / (1 - 0.99) for n in (10, 1000)]
    assert (weights[0] / weights[1]).item() == pytest.approx(effective[1] / effective[0])
    assert weights.sum().item() == pytest.approx(2.0)


def test_class_balanced_weights_run_from_equal_to_inverse_frequency():
    assert class_balanced_weights([10, 20, 40], beta=0.0).tolist() == [1.0, 1.0, 1.0]
    weights = class_balanced_weights([10, 20, 40], beta=1 - 1e-9)
    torch.testing.assert_close(weights / weights[0], torch.tensor([1.0, 0.5, 0.25]))


def test_weights_move_with_the_loss_and_stay_out_of_its_state():
    loss = MixedLoss(weight=[1.0, 2.0])
    assert not loss.state_dict() and not list(loss.parameters())
    assert loss.to(torch.float64).focal.weight.dtype == torch.float64


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: FocalLoss(gamma=-1), "gamma >= 0"),
        (lambda: MixedLoss(focal_weight=1.2), "focal_weight in"),
        (lambda: MixedLoss(label_smoothing=1.0), "label_smoothing in"),
        (lambda: class_balanced_weights([3, 0]), "at least one sample"),
        (lambda: class_balanced_weights([3, 4], beta=1.0), "beta in"),
        (lambda: FocalLoss()(torch.zeros(2, 3), torch.zeros(3, dtype=torch.long)), "expected logits"),
        (lambda: FocalLoss(reduction="max")(torch.zeros(2, 3), torch.zeros(2).long()), "expected reduction"),
        (lambda: FocalLoss(weight=[1.0])(torch.zeros(2, 3), torch.zeros(2).long()), "a weight for each"),
    ],
)
def test_what_does_not_fit_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
