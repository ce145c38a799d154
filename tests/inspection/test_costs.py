"""Costs and gazes of networks: closed forms, and what the networks of the study must show."""

import numpy as np
import pytest
import torch
from torch import nn

from thyroid_lib import network
from thyroid_lib.inspection import costs, probes

SMALL = {"num_classes": 4, "in_chans": 1, "width": 0.125, "middle_blocks": 1}
CONFIGS = {"a": {"name": "xception", **SMALL}, "b": {"name": "optimized_xception", **SMALL}}


def test_memory_of_one_layer_is_what_its_tensors_hold(monkeypatch):
    side, classes, batch = 32, 10, 64
    linear = {"in_features": side**2, "out_features": classes, "bias": False}
    monkeypatch.setattr(costs.network, "build", lambda _: nn.Sequential(nn.Flatten(), nn.Linear(**linear)))
    held = costs.training_memory({"in_chans": 1}, side, batch)
    weights, images = 4 * side * side * classes, 4 * batch * side * side
    labels, small = 8 * batch, 4 * batch * classes
    least = 4 * weights + images + labels  # weights, two moments, gradients; the images
    assert least <= held <= least + 6 * small + 1024


def test_memory_grows_with_the_batch_by_the_activations_and_is_no_less_than_weights_need():
    one, two, three = (costs.training_memory(CONFIGS["b"], 64, batch) for batch in (8, 16, 24))
    assert three - two == pytest.approx(two - one, rel=0.05) and two > one
    assert one > 3 * 4 * sum(p.numel() for p in network.build(CONFIGS["b"]).parameters())


def test_memory_counted_without_arithmetic_is_that_of_a_real_step():
    counted, model = costs.training_memory(CONFIGS["a"], 64, 4), network.build(CONFIGS["a"]).train()
    with costs._Living(model.state_dict().values()) as living:
        images, labels = torch.zeros(4, 1, 64, 64), torch.zeros(4, dtype=torch.long)
        torch.nn.functional.cross_entropy(model(images), labels).backward()
    state = sum(t.numel() * t.element_size() for t in model.state_dict().values())
    assert counted == state + 2 * sum(4 * p.numel() for p in model.parameters()) + living.most


def test_costs_and_rates_have_a_row_per_network():
    table = costs.table(CONFIGS, 64, 8)
    assert (table.loc["b"] > table.loc["a"]).all()
    rates = costs.throughput(CONFIGS, 64, batch_size=4, rounds=1, precision="bf16")
    assert (rates > 0).all(axis=None) and list(rates.index) == ["a", "b"]


class Window(nn.Module):
    """Each output is the sum of a 3x3 window."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 1, 3, padding=1, bias=False)
        nn.init.ones_(self.conv.weight)

    def forward_features(self, x):
        return self.conv(x)

    def forward(self, x):
        return x[..., ::2, ::2].sum((2, 3)).repeat(1, 2)


def test_the_field_of_a_window_is_the_window_and_every_second_pixel_is_a_quarter_even():
    field = probes.effective_receptive_field(Window(), torch.randn(3, 1, 15, 15))
    assert np.array_equal(field, np.pad(np.ones((3, 3)), 6))
    assert probes.field_side(field) == 3 and probes.evenness(field) == pytest.approx(9 / 225)
    field = probes.gradient_map(Window(), torch.randn(2, 1, 16, 16))
    assert probes.evenness(field) == pytest.approx(0.25) and probes.evenness(np.ones((8, 8))) == 1


def test_dilation_3_reaches_every_value_dilation_2_a_quarter_and_max_pooling_the_winners():
    def reach(**switches):
        return probes.gradient_reach(network.build({"name": "optimized_xception", **SMALL, **switches}), 96)

    assert reach(dilation=3) == 1
    assert reach(dilation=2) == pytest.approx(0.25, abs=0.02)
    assert 0.05 < reach(downsampling="max_pool") < 0.45
    assert probes.gradient_reach(Window(), 96) is None


@pytest.fixture
def connected():
    torch.manual_seed(0)
    model = network.optimized_xception(**SMALL).eval()
    for projection in (model.project1, model.project2):
        nn.init.normal_(projection.weight, std=0.1)
    return model


def test_cutting_the_dense_connections_changes_a_network_that_uses_them(connected):
    images = torch.randn(6, 1, 64, 64)
    with torch.inference_mode():
        before = connected(images)
        with probes.shallow_cut(connected, [images[:2], images[2:]]):
            cut = connected(images)
        assert torch.equal(connected(images), before), "the network is whole again"
    assert not torch.allclose(cut, before)


def test_cutting_changes_nothing_where_nothing_is_used_or_all_images_are_one_and_needs_connections(connected):
    images = torch.randn(6, 1, 64, 64)
    fresh = network.optimized_xception(**SMALL).eval()  # its projections still ignore what is joined
    for model, x in ((fresh, images), (connected, images[:1].expand(6, -1, -1, -1))):
        with torch.inference_mode():
            before = model(x)
            with probes.shallow_cut(model, [x]):
                assert torch.allclose(model(x), before, atol=1e-5)
    with pytest.raises(ValueError, match="dense connections"):
        probes.shallow_cut(network.xception(**SMALL), []).__enter__()
