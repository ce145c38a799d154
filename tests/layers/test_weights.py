"""Weights from elsewhere: everything accounted for, nothing loaded silently."""

import hashlib

import pytest
import torch
from safetensors.torch import save_file

from thyroid_lib import network
from thyroid_lib.layers import weights

SMALL = {"width": 0.02, "middle_blocks": 1}


def test_a_body_is_carried_over_and_a_head_of_another_size_left_out():
    source, target = network.optimized_xception(3, 1, **SMALL), network.optimized_xception(4, 1, **SMALL)
    head = target.fc.weight.clone()
    report = network.load_pretrained_body(target, source.state_dict())
    assert set(report.unused) == set(report.kept) == {"fc.weight", "fc.bias"}
    assert torch.equal(target.fc.weight, head)
    assert torch.equal(target.exit_flow.tail[3].pointwise.weight, source.exit_flow.tail[3].pointwise.weight)
    assert all("another number of classes" in reason for reason in report.unused.values())
    same = network.optimized_xception(3, 1, **SMALL)
    assert not network.load_pretrained_body(same, source.state_dict()).kept
    assert torch.equal(same.fc.weight, source.fc.weight)


OWN = network.xception(4, 1, **SMALL).state_dict()
MISSING = "middle_flow.0.body.2.weight"


@pytest.mark.parametrize("load", [network.load_pretrained_body, network.load_timm_weights])
@pytest.mark.parametrize("source, said", [
    ({}, "not in the source"),
    ({"encoder.weight": torch.zeros(3)}, "do not fit"),
    (network.xception(4, 1, width=0.05, middle_blocks=1).state_dict(), "do not fit"),
    ({name: tensor for name, tensor in OWN.items() if name != MISSING}, MISSING),
    (network.optimized_xception(4, 1, **SMALL).state_dict(), "not in the model"),
], ids=["nothing", "a stranger", "another width", "a layer missing", "a layer too many"])  # fmt: skip
def test_weights_that_do_not_fit_are_refused_and_the_model_stays_as_it_was(load, source, said):
    model = network.xception(4, 1, **SMALL)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    with pytest.raises(ValueError, match="these weights do not fit this network") as refusal:
        load(model, source)
    assert said in str(refusal.value) or load is network.load_timm_weights
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())


@pytest.mark.parametrize("kind", ["separable", "depthwise", "dense"])
def test_replaced_poolings_can_start_by_passing_on_every_second_pixel(kind):
    torch.manual_seed(0)
    model = network.optimized_xception(4, 1, **SMALL, downsampling=kind).eval()
    changed = weights.start_as_subsampling(model)
    assert len(changed) == (8 if kind == "separable" else 4)
    x = torch.randn(1, model.entry_flow.block3.down[1].num_features, 15, 15)
    with torch.no_grad():
        y = model.entry_flow.block3.down(x)
    assert torch.corrcoef(torch.stack([y.flatten(), x[:, :, ::2, ::2].flatten()]))[0, 1] > 0.95
    assert not weights.start_as_subsampling(network.xception(4, 1, **SMALL))


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_weights_come_from_a_local_file_with_its_hash(tmp_path, suffix):
    state, path = {"a": torch.arange(3.0)}, tmp_path / f"weights{suffix}"
    save_file(state, path) if suffix == ".safetensors" else torch.save({"state_dict": state}, path)
    read, source = weights.read_weights(path)
    assert torch.equal(read["a"], state["a"])
    assert source["source"] == path.name
    assert source["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()


def test_weights_from_the_hub_carry_their_licence_and_without_a_network_say_what_to_do(tmp_path, monkeypatch):
    pytest.importorskip("timm")
    asked = []

    def download(url, path, prefix, **_):
        asked.append((url.rsplit("/")[-1], prefix))
        torch.save({"a": torch.ones(1)}, path)

    def unreachable(*_, **__):
        raise OSError("name or service not known")

    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", unreachable)
    with pytest.raises(ConnectionError, match="give its path instead of timm:"):
        weights.read_weights("timm:legacy_xception.tf_in1k")
    monkeypatch.setattr(torch.hub, "download_url_to_file", download)
    for _ in range(2):  # the second time from the cache
        state, source = weights.read_weights("timm:legacy_xception.tf_in1k")
        assert state["a"] == 1
        assert source["licence"] == "apache-2.0" and source["source"] == "legacy_xception.tf_in1k"
    assert asked == [("xception-43020ad28.pth", "43020ad28")]


def test_a_file_without_weights_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such file"):
        weights.read_weights(tmp_path / "none.pth")
    torch.save({"epoch": 3}, tmp_path / "other.pth")
    with pytest.raises(ValueError, match="expected a dictionary of tensors"):
        weights.read_weights(tmp_path / "other.pth")
