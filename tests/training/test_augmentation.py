"""Augmentation: the same numbers wherever a sample goes, and changes that ultrasound can have."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from thyroid_lib.training.augmentation import Augmentation, uniforms

PLAIN = Augmentation()
NONE = PLAIN.scaled(0)


def changed(images, samples, change=PLAIN, *, seed=0, epoch=0, **only) -> torch.Tensor:
    """By `change`, or by the ranges of `only` alone."""
    change = replace(NONE, **only) if only else change
    return change(images, samples, seed=seed, epoch=epoch)[0]


def pictures(n=6, side=32):
    return torch.from_numpy(np.random.default_rng(3).integers(0, 256, (n, side, side), dtype=np.uint8))


def test_a_sample_is_changed_alike_in_every_company_and_otherwise_by_another_seed_or_epoch():
    images, samples = pictures(), np.arange(10, 16)
    together = changed(images, samples, seed=5, epoch=2)
    for order in ([4, 0, 5], *([i] for i in range(6))):
        assert torch.equal(together[order], changed(images[order], samples[order], seed=5, epoch=2))
    for other in ({"seed": 6, "epoch": 2}, {"seed": 5, "epoch": 3}):
        assert all(not torch.equal(a, b) for a, b in zip(together, changed(images, samples, **other)))
    assert torch.equal(changed(images, samples, NONE), images)


def test_a_flip_is_left_to_right_only():
    images = pictures(64)
    flipped = changed(images, np.arange(64), flip=0.5)
    same = (flipped == images).flatten(1).all(1)
    mirrored = (flipped == images.flip(2)).flatten(1).all(1)
    assert (same | mirrored).all() and 20 < mirrored.sum() < 44


def test_a_shift_brings_in_black_and_no_more_than_its_range():
    white = torch.full((50, 100, 100), 255, dtype=torch.uint8)
    moved = changed(white, np.arange(50), seed=1, shift=0.06)
    lost = 1 - (moved > 250).float().mean((1, 2))
    assert 0.06 < lost.max() <= 1 - 0.93**2
    assert (moved[:, 8:-8, 8:-8] == 255).all()


def test_a_shadow_only_darkens_and_deepens_downwards():
    white = torch.full((200, 64, 64), 200, dtype=torch.uint8)
    shaded = changed(white, np.arange(200), seed=1, shadow=0.5, shadow_depth=1.0)
    assert shaded.max() == 200
    with_shadow = (shaded < 200).flatten(1).any(1)
    assert 70 < with_shadow.sum() < 130
    assert (shaded.int().diff(dim=1) <= 0).all()  # never lighter with depth
    assert (shaded[:, 0] == 200).all()


def test_gain_and_gamma_keep_black_and_the_order_of_grey_levels():
    ramp = torch.arange(256, dtype=torch.uint8).reshape(1, 16, 16).expand(40, -1, -1)
    levels = changed(ramp, np.arange(40), seed=1, gain=0.2, gamma=0.3).flatten(1).int()
    assert (levels[:, 0] == 0).all() and (levels.diff(dim=1) >= 0).all()


def test_speckle_is_multiplicative_of_the_stated_size():
    grey = torch.full((400, 32, 32), 100, dtype=torch.uint8)
    grey[:, :16] = 0
    noisy = changed(grey, np.arange(400), seed=1, speckle=0.1).float()
    assert (noisy[:, :16] == 0).all()
    spread = noisy[:, 16:].flatten(1).std(1) / 100
    assert spread.max() < 0.12  # the largest is 0.1, give or take a sample's deviation
    assert spread.mean() == pytest.approx(0.05, abs=0.01)  # uniform between 0 and 0.1
    assert noisy[:, 16:].mean() == pytest.approx(100, abs=0.5)


def test_the_hashed_numbers_are_uniform_and_independent():
    u = uniforms(0, 0, np.arange(20000), 4)
    assert u.min() >= 0 and u.max() < 1
    assert np.histogram(u, 20, (0, 1))[0] / u.size == pytest.approx(1 / 20, abs=0.002)
    assert np.abs(np.corrcoef(u.T) - np.eye(4)).max() < 0.03
    assert abs(np.corrcoef(u[1:, 0], u[:-1, 0])[0, 1]) < 0.03
    assert len(np.unique(u)) == u.size


def test_wrong_input_is_refused():
    with pytest.raises(ValueError, match="uint8"):
        changed(torch.zeros(2, 8, 8), np.arange(2))
    with pytest.raises(ValueError, match="strength"):
        PLAIN.scaled(-1)
