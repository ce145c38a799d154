"""Class activation maps and their checks: closed forms, what must pass, and what must fail."""

import copy

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr
from torch import nn

from thyroid_lib import network
from thyroid_lib.explanation import cam, cam_checks, tested

SIZE = 32


class Small(nn.Module):
    """A network with the study's anatomy in miniature: flows, average, linear layer."""

    def __init__(self):
        super().__init__()
        self.config = {"in_chans": 1}

        def layer(before, after, stride):
            return nn.Conv2d(before, after, 3, stride, 1, bias=False), nn.BatchNorm2d(after), nn.ReLU()

        self.entry_flow = nn.Sequential(*layer(1, 12, 1), *layer(12, 16, 2))
        self.exit_flow = nn.Sequential(*layer(16, 24, 2), *layer(24, 24, 1))
        self.fc = nn.Linear(24, 2)

    def forward_features(self, x):
        return self.exit_flow(self.entry_flow(x))

    def forward(self, x):
        return self.fc(self.forward_features(x).mean((2, 3)))


def scenes(n, seed):
    """Speckle with one textured disc; the class is the disc's texture, the mask its place."""
    rng = np.random.default_rng(seed)
    images = rng.integers(20, 220, (n, SIZE, SIZE)).astype(np.float32)
    labels, (y, x) = np.arange(n) % 2, np.mgrid[:SIZE, :SIZE]
    centres = rng.integers(8, SIZE - 8, (n, 2, 1, 1))
    masks = (y - centres[:, 0]) ** 2 + (x - centres[:, 1]) ** 2 < 36
    stripes = 120 + 50 * np.sign(np.sin(np.stack([y, x])[labels] * 1.6))
    return np.where(masks, stripes, images).astype(np.uint8), labels, masks


def fitted(seed):
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # the same bits on every machine
    torch.manual_seed(seed)
    model, (images, labels, _) = Small(), scenes(256, seed)
    x, y = cam.model_input(model, images), torch.from_numpy(labels)
    optimizer = torch.optim.AdamW(model.parameters(), 5e-3, weight_decay=0.05)
    for step in range(90):
        batch = torch.randperm(256, generator=torch.Generator().manual_seed(step))[:64]
        loss = nn.functional.cross_entropy(model(x[batch]), y[batch])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    torch.set_num_threads(threads)
    return model.eval()


@pytest.fixture(scope="module")
def part(looked):
    """Scenes as tested images of a trained network."""
    model, (images, labels, masks) = fitted(0), scenes(48, 99)
    part = looked(images, labels, [f"p{i // 2}" for i in range(48)], model, masks=masks)
    accuracy = (model(cam.model_input(model, images)).argmax(1).numpy() == labels).mean()
    assert accuracy > 0.9, "the scene must be learnable for these tests to mean anything"
    return part


@pytest.fixture(scope="module")
def checks(part):
    options = {"most": 64, "road_images": 12, "draws": 300, "seed": 0}
    before = copy.deepcopy(part.model.state_dict())
    found = cam_checks.check_maps(part, fitted(1), method="gradcam", layer="exit_flow", **options)
    torch.testing.assert_close(part.model.state_dict(), before, rtol=0, atol=0)  # it is never randomized
    return found


def test_grad_cam_before_average_and_linear_layer_is_the_closed_form(part):
    model, images, labels = part.model, part.images[:6], part.labels[:6]
    cams = cam.cam(model, images, labels)
    with torch.no_grad():
        maps = model.forward_features(cam.model_input(model, images))
        weights = model.fc.weight[torch.from_numpy(labels)] / (maps.shape[2] * maps.shape[3])
        raw = torch.einsum("nk,nkhw->nhw", weights, maps).numpy()
    np.testing.assert_allclose(cams.high, raw.max((1, 2)), rtol=1e-4)
    np.testing.assert_allclose(cams.low, raw.min((1, 2)), rtol=1e-3, atol=1e-6)
    hires = cam.cam(model, images, labels, method="hirescam")
    np.testing.assert_allclose(hires.maps, cams.maps, atol=1e-5)  # equal at this layer, and only here


@pytest.mark.parametrize("method", cam.METHODS)
@pytest.mark.parametrize("layer", ["entry_flow", "exit_flow"])
def test_every_method_gives_a_scaled_map_and_its_raw_range(part, method, layer):
    cams, alone = (part.part(np.arange(*some)).cam(method, layer) for some in ((5,), (2, 3)))
    assert cams.maps.shape == (5, SIZE, SIZE) and cams.maps.dtype == np.float32
    assert cams.maps.min() >= 0 and cams.maps.max() <= 1 and (cams.low <= cams.high).all()
    np.testing.assert_allclose(alone.maps[0], cams.maps[2], atol=1e-4)  # batches do not mix images


@pytest.mark.parametrize("factory", [network.xception, network.optimized_xception])
def test_the_studys_networks_have_maps_at_every_stage(factory):
    model = factory(4, in_chans=1, width=0.125, middle_blocks=1)
    images = np.random.default_rng(0).integers(0, 255, (2, 64, 64), np.uint8)
    for layer in network.STAGES:
        assert cam.cam(model, images, np.array([0, 3]), layer=layer).maps.shape == (2, 64, 64)
    assert cam.choose(model, 64) == ("middle_flow", "hirescam")
    assert cam.choose(model, 128) == ("exit_flow", "gradcam")
    assert cam.choose(model, 128, "entry_flow", "layercam") == ("entry_flow", "layercam")


def test_the_model_stays_as_it_was_and_a_map_without_evidence_is_flat(part):
    model = cam_checks.untrained(part.model, part.images, 3).train()
    model.fc.eval()
    model.entry_flow.requires_grad_(False)
    model.fc.weight.data.zero_()
    model.fc.weight.grad = torch.ones_like(model.fc.weight)
    before = copy.deepcopy(model.state_dict())
    cams = cam.cam(model, part.images[:4], part.labels[:4])
    assert cams.flat.all() and not cams.maps.any(), "noise is not scaled up to confidence"
    assert model.training and not model.fc.training and model.exit_flow[0].training
    assert not any(p.requires_grad for p in model.entry_flow.parameters())
    assert all(p.requires_grad for p in model.exit_flow.parameters())
    assert (model.fc.weight.grad == 1).all() and model.exit_flow[0].weight.grad is None
    torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=0)
    assert not model.exit_flow._forward_hooks


@pytest.mark.parametrize("targets, options, said", [
    (48, {"method": "magic"}, "expected a method"), (48, {"layer": "exit"}, "exit_flow"), (3, {}, "n targets"),
])  # fmt: skip
def test_unknown_methods_layers_and_shapes_are_refused(part, targets, options, said):
    with pytest.raises(ValueError, match=said):
        cam.cam(part.model, part.images, part.labels[:targets], **options)


def test_localization_and_rank_correlation_of_known_maps_and_baselines_that_know_nothing(part):
    mask = np.zeros((4, 10, 10), bool)
    mask[:, :5, :5] = True
    maps = np.stack([mask[0], ~mask[0], np.ones((10, 10)), np.zeros((10, 10))]).astype(float)
    found = cam_checks.localization(maps, mask)
    assert list(found["share"]) == [0.25] * 4
    assert list(found["energy"]) == pytest.approx([1, 0, 0.25, 0.25])  # flat maps get the share
    assert list(found["pointing"]) == pytest.approx([1, 0, 0.25, 0.25])
    a, b = np.random.default_rng(0).random((2, 3, 8, 8))
    expected = [spearmanr(x.ravel(), y.ravel()).statistic for x, y in zip(a, b)]
    np.testing.assert_allclose(cam_checks.rank_correlation(a, b), expected)
    assert cam_checks.rank_correlation(a, np.ones_like(a)).tolist() == [0, 0, 0]
    one, again, two = (cam_checks.baseline_maps(part.images, "random", seed) for seed in (1, 1, 2))
    assert np.array_equal(one, again) and not np.array_equal(one, two)
    for name in cam_checks.BASELINES:
        maps = cam_checks.baseline_maps(part.images, name)
        assert maps.shape == part.images.shape and maps.min() >= 0 and maps.max() <= 1


def test_road_is_repeatable_and_rewards_the_true_place(part):
    model, images, labels, truth = part.model, part.images[:10], part.labels[:10], part.masks[:10] * 1.0
    state = torch.random.get_rng_state()
    first, again = (cam_checks.road(model, images, truth, labels, 5) for _ in range(2))
    assert np.array_equal(first, again) and torch.equal(state, torch.random.get_rng_state())
    assert first.mean() > 0.1 > cam_checks.road(model, images, 1 - truth, labels, 0).mean()


def test_a_trained_network_passes_every_check_and_an_untrained_one_or_a_map_that_survives_it_fails(checks):
    table = cam_checks.verdict_table(checks)
    assert (table["verdict"] == "pass").all(), table.to_string()
    failed = {check for check, verdict in checks["untrained"]["verdicts"].items() if verdict == "fail"}
    assert failed >= {"energy in the nodule above random weights'", "deletion (ROAD) above a random map",
                      "two trainings agree on the place"}, table.to_string()  # fmt: skip
    found = checks["trained"]["randomization"]
    assert found["order"] == ["fc", "exit_flow", "entry_flow"], "from the last to the first"
    for low, high, verdict in ((0.8, 0.95, "fail"), (0.3, 0.55, "fail"), (0.1, 0.3, "pass")):
        survived = found | {"correlation/entry_flow": {"value": (low + high) / 2, "low": low, "high": high}}
        lines = cam_checks.verdicts(checks["trained"] | {"randomization": survived}).set_index("check")
        assert lines.loc["map changes when the weights are random", "verdict"] == verdict


def test_what_was_not_done_is_said_with_its_reason(part, looked):
    empty = looked(part.images, part.labels, part.patients, part.model, masks=np.zeros_like(part.masks))
    none = cam_checks.check_against_masks(empty, empty.cam(), draws=50, seed=0)
    assert none["images_without_mask"] == 48
    lines = cam_checks.verdicts({"masks": none, "deletion": {}, "randomization": {}, "agreement": {}})
    assert (lines["verdict"] == "not done").all() and "no image has a nodule mask" in set(lines["measured"])


def test_methods_are_compared_at_every_stage_and_shown_side_by_side(looked):
    model = network.xception(2, in_chans=1, width=0.125, middle_blocks=1).eval()
    images, labels, masks = scenes(16, 3)
    part = looked(images, labels, [f"p{i}" for i in range(16)], model, masks=masks)
    compared = cam_checks.compare_maps(part, most=12, draws=50)
    assert [*compared] == [*network.STAGES][::-1]
    assert all([*row] == [*cam.METHODS] for row in compared.values())
    few, columns, titles = tested.gallery(part, 3, {}, "gradcam", "exit_flow")
    assert len(columns) == len(cam.METHODS) + 2 and len(titles) == len(few.rows) == 3
