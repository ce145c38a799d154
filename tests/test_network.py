"""The network against timm's `legacy_xception`, the paper's numbers and the claims' wiring."""

import copy
from itertools import product

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from thyroid_lib import network
from thyroid_lib.inspection import probes, structure

SMALL = {"width": 0.02, "middle_blocks": 1}  # 8 to 40 channels


def small(**switches):
    return network.optimized_xception(4, 1, **{**SMALL, **switches})


def grey(*size, batch=2, seed=0):
    return torch.randn(batch, 1, *size, generator=torch.Generator().manual_seed(seed))


def meta(factory, *args, **switches):
    with torch.device("meta"):
        return factory(*args, **switches)


@pytest.fixture(scope="module")
def timms():
    """timm's network with random weights, its BatchNorm made uneven so that no mix-up can hide."""
    timm = pytest.importorskip("timm")
    torch.manual_seed(0)
    reference = timm.create_model("legacy_xception")
    for module in reference.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.8, 1.2)
            nn.init.normal_(module.bias, std=0.1)
            nn.init.normal_(module.running_mean, std=0.1)
            nn.init.uniform_(module.running_var, 0.8, 1.2)
    return reference


# The original against the paper and timm


def test_original_has_the_papers_parameters_and_multiplications():
    model = meta(network.xception, 1000)
    assert structure.parameters(model) == 22_855_952
    assert structure.gmacs(model, 299) == pytest.approx(8.36, abs=0.01)
    assert structure.gmacs(model, 224) == pytest.approx(4.55, abs=0.01)


@pytest.mark.parametrize("size", [(299, 299), (160, 200)], ids=str)
@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
def test_original_with_timms_weights_gives_timms_logits(timms, size, training):
    model = network.xception(1000)
    report = network.load_timm_weights(model, timms.state_dict())
    assert len(report.loaded) == len(model.state_dict()) and not report.kept and not report.unused
    x = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected, logits = (net.train(training)(x) for net in (copy.deepcopy(timms), model))
    torch.testing.assert_close(logits, expected, rtol=0, atol=1e-5)


def test_original_with_timms_weights_gives_timms_gradients(timms):
    model, expected = network.xception(1000), network.xception(1000)
    network.load_timm_weights(model, timms.state_dict())
    x, timms = torch.randn(2, 3, 96, 128, generator=torch.Generator().manual_seed(1)), copy.deepcopy(timms)
    for net in (timms.train(), model.train()):
        nn.functional.cross_entropy(net(x), torch.tensor([3, 700])).backward()
    gradients = timms.state_dict() | {name: p.grad for name, p in timms.named_parameters()}
    network.load_timm_weights(expected, gradients)  # the same map of names carries gradients
    for (name, p), q in zip(model.named_parameters(), expected.parameters()):
        torch.testing.assert_close(p.grad, q, rtol=1e-4, atol=1e-4, msg=name)


def test_a_grey_image_gives_the_same_logits_through_one_channel_as_repeated_over_three(timms):
    one, three = network.xception(1000, in_chans=1).eval(), network.xception(1000).eval()
    report = network.load_timm_weights(one, timms.state_dict())
    network.load_timm_weights(three, timms.state_dict())
    assert list(report.converted) == ["entry_flow.stem.0.weight"]
    images = torch.randint(0, 256, (2, 96, 96), dtype=torch.uint8)
    with torch.no_grad():
        logits, expected = one(network.normalize(images)), three(network.normalize(images, 3))
    torch.testing.assert_close(logits, expected, rtol=0, atol=1e-4)


def test_timms_weights_reach_the_optimized_network_and_what_has_no_counterpart_is_listed(timms):
    model = network.optimized_xception(4)
    report = network.load_timm_weights(model, timms.state_dict())
    assert set(report.unused) == {"fc.weight", "fc.bias"}
    new = {"transition1", "project1", "transition2", "project2", "fc", "entry_flow", "exit_flow"}
    assert {name.split(".")[0] for name in report.kept} == new
    assert all(".down." in name for name in report.kept if "flow" in name)
    assert sorted(report.loaded + report.kept) == sorted(model.state_dict())
    assert (probes.unread_pixels(model, 96)["unread"] == 0).all()
    ours, theirs = model.middle_flow[7].body[4].pointwise.weight, timms.block11.rep[4].pointwise.weight
    assert torch.equal(ours, theirs)


# The optimized network: claims C2 to C7


class Operations(TorchDispatchMode):
    """Collects the names of all tensor operations that run."""

    def __init__(self):
        super().__init__()
        self.names = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.add(str(func))
        return func(*args, **(kwargs or {}))


def test_each_replacement_of_pooling_has_the_computed_costs():
    computed = {"dense": (37.39, 13.2), "separable": (24.13, 9.44), "depthwise": (22.47, 9.0)}
    for kind, (millions, gmacs) in computed.items():
        model = meta(network.optimized_xception, 4, downsampling=kind)
        assert structure.parameters(model) / 1e6 == pytest.approx(millions, abs=0.01)
        assert structure.gmacs(model, 299) == pytest.approx(gmacs, abs=0.05)


def test_four_max_poolings_are_replaced_in_place_and_none_is_left():
    original, optimized = network.xception(4, 1, **SMALL), small()
    pools = [name for name, module in original.named_modules() if isinstance(module, nn.MaxPool2d)]
    assert pools == [f"entry_flow.block{i}.down" for i in (1, 2, 3)] + ["exit_flow.block.down"]
    for name in pools:
        conv = optimized.get_submodule(name)[0].depthwise
        assert (conv.stride, conv.dilation, conv.groups) == ((2, 2), (3, 3), conv.in_channels)
    for model, pooled in ((optimized, False), (original, True)):
        with Operations() as seen:
            model(grey(64, 64))
        assert any("max_pool" in name for name in seen.names) == pooled


@pytest.mark.parametrize("kind", ["separable", "depthwise", "dense"])
@pytest.mark.parametrize("size", [(71, 71), (96, 128), (128, 128), (224, 224)], ids=str)
def test_every_pixel_of_each_replaced_pools_input_gets_gradient(kind, size):
    table = probes.unread_pixels(small(downsampling=kind), size)
    assert len(table) == 4 and (table.unread == 0).all()


def test_parts_run_in_the_order_of_the_claims():
    order = probes.execution_order(small(), grey(64, 64))
    flows = ["entry_flow", "dense1", "middle_flow", "dense2", "exit_flow", "fc"]
    assert [name for name in order if name in flows] == flows
    original = probes.execution_order(network.xception(4, 1, **SMALL), grey(64, 64))
    assert original == ["entry_flow", "middle_flow", "exit_flow", "drop", "fc"]


@pytest.mark.parametrize("switches", [{}, {"fusion": "widen"}, {"second_connection": "three_way"}], ids=str)
def test_disturbing_a_map_changes_exactly_the_maps_after_it(switches):
    table = probes.wiring(small(**switches), grey(64, 64))
    changed = {place: set(table.columns[row.astype(bool)]) for place, row in table.iterrows()}
    t2 = set() if "second_connection" in switches else {"T2"}
    assert changed == {
        "x (to T1)": {"T1", "G1", "F2", "G2", "features"} | t2,
        "F1": {"F1", "G1", "F2", "G2", "features"} | t2,
        "F2": {"F2", "G2", "features"},
    }
    assert {*table.columns} == {"F1", "T1", "G1", "F2", "G2", "features"} | t2


def test_dense_modules_concatenate_over_channels_in_the_order_of_the_claims():
    model = small().eval()
    maps = model.forward_maps(grey(64, 96))
    assert torch.equal(maps["G1"], torch.cat([maps["F1"], maps["T1"]], 1))
    assert torch.equal(maps["G2"], torch.cat([maps["F2"], maps["T2"]], 1))
    assert torch.equal(maps["T1"], model.transition1(maps["x"], maps["F1"].shape[2:]))
    assert torch.equal(maps["T2"], model.transition2(maps["G1"], maps["G1"].shape[2:]))
    literal = small(second_connection="three_way").eval().forward_maps(grey(64, 96))
    assert torch.equal(literal["G2"], torch.cat([literal["F2"], literal["F1"], literal["T1"]], 1))


@pytest.mark.parametrize("zero", [True, False])
def test_zero_initialized_residual_blocks_of_the_middle_flow_start_as_identities(zero):
    maps = small(middle_blocks=3, zero_init_residual=zero).train().forward_maps(grey(64, 64))
    assert torch.equal(maps["F2"], maps["F1"]) == zero  # the projections start as identities too


def test_maps_have_the_computed_shapes_at_299():
    model = meta(network.optimized_xception, 4).eval()
    maps = model.forward_maps(torch.empty(1, 3, 299, 299, device="meta"))
    assert {name: tuple(m.shape[1:]) for name, m in maps.items()} == {
        "x": (3, 299, 299), "F1": (728, 19, 19), "T1": (32, 19, 19), "G1": (760, 19, 19),
        "F2": (728, 19, 19), "T2": (364, 19, 19), "G2": (1092, 19, 19), "features": (2048, 10, 10),
    }  # fmt: skip


@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize("second", ["transition", "three_way"])
def test_identity_projections_leave_the_unfused_networks_logits_exactly(training, second):
    fused = small(second_connection=second, width=0.125)
    plain = small(dense_connections=False, width=0.125)
    plain.load_state_dict({k: v for k, v in fused.state_dict().items() if k in plain.state_dict()})
    x = grey(71, 64)
    assert torch.equal(fused.train(training)(x), plain.train(training)(x))
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(fused(x), plain(x))


def test_projections_learn_from_the_first_step_and_transitions_from_the_second():
    model = small()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    seen = []
    for _ in range(2):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(grey(64, 64)), torch.tensor([0, 1])).backward()
        project = model.project1.weight.grad[:, model.project1.out_channels :]
        seen.append((bool(project.any()), bool(model.transition1.reduce[0].weight.grad.any())))
        optimizer.step()
    assert seen == [(True, False), (True, True)]


def test_first_transition_reads_every_pixel_of_the_image():
    model = small().eval()
    model.transition1.reduce = nn.Identity()
    for size in (*range(32, 80), 96, 128, 224, 299):
        x = torch.zeros(1, 1, size, size, requires_grad=True)
        (grad,) = torch.autograd.grad(model.transition1(x, model.entry_flow(x).shape[2:]).sum(), x)
        assert (grad > 0).all(), size


# Every setting


SECOND = ({}, {"transition2_stride": 2}, {"second_connection": "three_way"})
READINGS = product(SECOND, ("project", "widen"), ("average", "max"), ("conv_first", "norm_first"))
NAMES = ("fusion", "transition_pooling", "transition_order")
COMBINATIONS = [{"dense_connections": False}, {"dense_connections": False, "downsampling_norm": False}]
COMBINATIONS += [dict(zip(NAMES, reading)) | second for second, *reading in READINGS]


@pytest.mark.parametrize("downsampling", network.DOWNSAMPLINGS)
@pytest.mark.parametrize("switches", COMBINATIONS, ids=lambda s: "-".join(map(str, s.values())))
def test_every_setting_runs_forward_and_backward_and_survives_saving(downsampling, switches, tmp_path):
    torch.manual_seed(0)
    model = small(downsampling=downsampling, **switches)
    x = grey(48, 64)
    logits = model.to(memory_format=torch.channels_last)(x.to(memory_format=torch.channels_last))
    assert logits.shape == (2, 4) and logits.isfinite().all()
    nn.functional.cross_entropy(logits, torch.tensor([0, 1])).backward()
    gradients = {name: p.grad for name, p in model.named_parameters()}
    assert all(g is not None and g.isfinite().all() for g in gradients.values())
    save_file({k: v.contiguous() for k, v in model.state_dict().items()}, tmp_path / "weights.safetensors")
    again = network.build(model.config)
    again.load_state_dict(load_file(tmp_path / "weights.safetensors"))
    with torch.no_grad():
        torch.testing.assert_close(again.eval()(x), model.eval()(x))


@pytest.mark.parametrize("factory", [network.xception, network.optimized_xception])
def test_all_sizes_from_32_px_give_the_flows_the_stated_sizes(factory):
    model = meta(factory, 4, 1, **SMALL).eval()
    for height, width in [(32, 32), (32, 300), (33, 47), (64, 65), (127, 96), (299, 299), (511, 40)]:
        maps = model.forward_maps(torch.empty(1, 1, height, width, device="meta"))
        f1 = tuple(-(-((n - 5) // 2) // 8) for n in (height, width))
        assert maps["F1"].shape[2:] == f1 and maps["F2"].shape[2:] == f1
        assert maps["features"].shape[2:] == tuple(-(-n // 2) for n in f1)


def test_outputs_of_the_stages_are_not_changed_by_what_follows():
    model, seen = small().eval(), {}
    for stage in network.STAGES:
        model.get_submodule(stage).register_forward_hook(
            lambda _m, _a, y, stage=stage: seen.update({stage: (y, y.clone())})
        )
    model(grey(64, 64))
    assert all(torch.equal(kept, copy) for kept, copy in seen.values())


def test_drop_rate_acts_in_training_only():
    model, x = small(drop_rate=0.9), grey(64, 64)
    assert not torch.equal(model(x), model(x))
    model.eval()
    assert torch.equal(model(x), model(x))


def test_forward_is_head_of_features():
    model, x = small().eval(), grey(64, 64)
    assert torch.equal(model(x), model.forward_head(model.forward_features(x)))


def test_exported_network_gives_the_same_logits():
    model, x = small().to(memory_format=torch.channels_last).eval(), grey(64, 64)
    x = x.to(memory_format=torch.channels_last)
    exported = torch.export.export(model, (x,), dynamic_shapes=({0: torch.export.Dim("batch", min=2)},))
    with torch.no_grad():
        torch.testing.assert_close(exported.module()(x), model(x))


def test_normalize_takes_black_to_minus_one_and_white_to_one():
    images = torch.tensor([[[0, 255]]], dtype=torch.uint8)
    normal = network.normalize(images)
    assert normal.tolist() == [[[[-1.0, 1.0]]]] and normal.dtype == torch.float32
    assert network.normalize(images[:, None], in_chans=3).shape == (1, 3, 1, 2)


def test_layer_table_has_the_receptive_field_that_the_gradient_reaches_and_adds_up_to_the_network():
    model = small().eval()
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.ones_(module.weight)
    x = torch.ones(1, 1, 319, 319, requires_grad=True)
    f1 = model.entry_flow(x / 1e4)
    (grad,) = torch.autograd.grad(f1[0, 0, 10, 10], x)
    rows = grad[0, 0].any(1).nonzero()
    extent = int(rows.max() - rows.min()) + 1
    table = structure.layer_table(model, 319).set_index("part")
    assert table["receptive field"]["entry_flow.block3"] == extent
    model = meta(network.optimized_xception, 4, 1)
    table = structure.layer_table(model, (128, 160))
    assert table.parameters.sum() == structure.parameters(model)
    assert table.MMACs.sum() / 1e3 == pytest.approx(structure.gmacs(model, (128, 160)))


# Errors


@pytest.mark.parametrize("ask, message", [
    (lambda: small(downsampling="stride"), "downsampling: expected one of"),
    (lambda: small(fusion="add"), "fusion: expected one of"),
    (lambda: small(second_connection="three_way", transition2_stride=2), "has no T2"),
    (lambda: small(width=0), "width: expected a positive number"),
    (lambda: small(dilation=1.5), "dilation: expected a whole number"),
    (lambda: small(drop_rate=1.5), "drop_rate: expected"),
    (lambda: small()(grey(31, 64)), r"at least 32 px a side, got \(31, 64\)"),
    (lambda: small()(torch.zeros(2, 3, 64, 64)), r"of shape \(N, 1, H, W\), got \(2, 3, 64, 64\)"),
    (lambda: network.normalize(torch.zeros(1, 64, 64)), "expected uint8"),
    (lambda: network.normalize(torch.zeros(1, 3, 64, 64, dtype=torch.uint8)), "expected uint8"),
    (lambda: network.build({"name": "resnet"}), "expected a network named xception or optimized_xception"),
])  # fmt: skip
def test_what_does_not_exist_or_does_not_fit_is_refused(ask, message):
    with pytest.raises(ValueError, match=message):
        ask()
