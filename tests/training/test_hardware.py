"""What is chosen for a machine: asked for, probed, and the same the next time."""

import pytest
import torch

from thyroid_lib import network
from thyroid_lib.training import hardware

CPU = torch.device("cpu")


@pytest.fixture
def model(monkeypatch, tmp_path):
    monkeypatch.setenv("THYROID_CACHE", str(tmp_path))
    return network.optimized_xception(4, 1, width=0.0625, middle_blocks=1)


def test_what_is_asked_for_is_taken_without_a_probe(monkeypatch):
    monkeypatch.setattr(hardware, "probe", None)
    assert hardware.choose_precision("32", CPU)[0] == "32-true"
    assert hardware.choose_precision("bf16", CPU)[0] == "bf16-mixed"
    with pytest.raises(ValueError, match="expected one of auto, 32, bf16; 'half' came"):
        hardware.choose_precision("half", CPU)


@pytest.mark.parametrize(("bfloat16", "chosen"), [(0.5, "bf16-mixed"), (0.97, "32-true"), (2.0, "32-true")])
def test_bfloat16_is_taken_only_where_it_is_clearly_faster_and_the_next_run_chooses_the_same(
    model, monkeypatch, tmp_path, bfloat16, chosen
):
    times = {"float32": 1.0, "bfloat16": bfloat16}
    monkeypatch.setattr(hardware, "probe", lambda *_: dict(times))
    first = hardware.choose_precision("auto", CPU, model, 32)
    assert first[0] == chosen and f"{1 / bfloat16:.2f} times as fast" in first[1]
    times["bfloat16"] = 1.0
    assert hardware.choose_precision("auto", CPU, model, 32) == first  # without a probe
    (note,) = tmp_path.glob("precision-*.json")
    note.write_text("{")  # damaged, it is probed again
    assert "1.00 times as fast" in hardware.choose_precision("auto", CPU, model, 32)[1]


def test_a_probe_leaves_the_network_and_the_threads_as_they_were(model):
    before, threads = {k: v.clone() for k, v in model.state_dict().items()}, torch.get_num_threads()
    times = hardware.probe(model, 32, rounds=1)
    assert all(seconds > 0 for seconds in times.values()) and torch.get_num_threads() == threads
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())
