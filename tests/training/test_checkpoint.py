"""Checkpoints: whole or not at all, and never of something else."""

from unittest.mock import Mock

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from thyroid_lib.common import fingerprint
from thyroid_lib.training import checkpoint


def test_weights_come_back_bit_for_bit_and_equal_ones_make_equal_files(tmp_path):
    weights = {"a": torch.randn(3, 4, 2, 2).to(memory_format=torch.channels_last), "n": torch.tensor(7)}
    about = {name: f'{name}: "é"\n\x1f' for name in "fedcba"} | {"model": {"width": 0.5}}
    for number in range(8):
        checkpoint.save_weights(tmp_path / f"{number}", weights, about)
    assert len({(tmp_path / f"{number}").read_bytes() for number in range(8)}) == 1
    tensors, metadata = checkpoint.load_weights(tmp_path / "0")
    assert all(torch.equal(tensors[name], value) for name, value in weights.items())
    assert metadata == about
    assert torch.equal(load_file(tmp_path / "0")["a"], weights["a"])  # any safetensors reader


def test_a_state_replaces_the_older_one_and_leaves_no_other_file(tmp_path, monkeypatch):
    for epoch in (1, 2):
        checkpoint.save_state(tmp_path, {"x": torch.full((2,), float(epoch))}, {"epoch": epoch, "lr": [1e-3]})
    tensors, state = checkpoint.load_weights(tmp_path / checkpoint.STATE)
    assert tensors["x"].tolist() == [2, 2] and state["lr"] == [1e-3]
    monkeypatch.setattr(torch.UntypedStorage, "from_file", None)  # opened again, it may be another file
    assert checkpoint.read_state(tmp_path)["epoch"] == 2 and checkpoint.read_state(tmp_path / "none") is None
    assert [p.name for p in tmp_path.iterdir()] == ["state.safetensors"]


@pytest.mark.parametrize("damage", [lambda whole: whole[:-8], lambda whole: b"no tensors"])
def test_a_damaged_checkpoint_is_named_and_not_used(tmp_path, damage, sees):
    checkpoint.save_state(tmp_path, {"x": torch.zeros(100)}, {"epoch": 1})
    path = tmp_path / checkpoint.STATE
    path.write_bytes(damage(path.read_bytes()))
    for read, what in ((checkpoint.load_weights, path), (checkpoint.read_state, tmp_path)):
        with pytest.raises(checkpoint.CheckpointError, match=r"state\.safetensors.*" + sees):
            read(what)


def test_two_cannot_train_in_one_folder(tmp_path, sees):
    for _ in range(2):  # free again after the first
        with checkpoint.held(tmp_path / "fit"):
            with pytest.raises(checkpoint.CheckpointError, match=sees), checkpoint.held(tmp_path / "fit"):
                pass
    assert list(tmp_path.iterdir()) == []


def test_a_write_that_cannot_finish_keeps_the_old_state_and_leaves_nothing_behind(tmp_path):
    checkpoint.save_state(tmp_path, {"x": torch.ones(10)}, {"epoch": 1})
    resource = pytest.importorskip("resource", reason="file-size limits are POSIX")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))
    try:
        with pytest.raises(checkpoint.CheckpointError, match="checkpoint before it is untouched"):
            checkpoint.save_state(tmp_path, {"x": torch.zeros(100_000)}, {"epoch": 2})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert [p.name for p in tmp_path.iterdir()] == ["state.safetensors"]
    assert checkpoint.load_weights(tmp_path / checkpoint.STATE)[0]["x"].sum() == 10


def test_a_full_disk_is_called_so_with_the_room_it_needs_and_an_unwritable_folder_before(
    tmp_path, monkeypatch
):
    full = Mock(side_effect=OSError(28, "No space left on device"))
    monkeypatch.setattr(checkpoint, "save_file", full)
    with pytest.raises(checkpoint.CheckpointError, match=r"disk is full: 4 MiB are to be written.*whole"):
        checkpoint.save_weights(tmp_path / "w.safetensors", {"x": torch.zeros(2**20)}, {})
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "file").write_text("")
    with pytest.raises(checkpoint.CheckpointError, match="Expected to write"):
        checkpoint.prepare(tmp_path / "file" / "inside")


def test_the_digest_sees_values_shapes_and_types():
    rows = np.arange(6)
    digests = [rows, rows[::-1], rows.reshape(2, 3), rows.astype(np.int32), {"a": 1}, {"a": 2}]
    digests += [{"w": torch.zeros(2)}, {"w": torch.ones(2)}, {"v": torch.zeros(2)}]
    assert len({fingerprint.digest(x) for x in digests}) == len(digests)
    assert fingerprint.digest({"a": 1, "b": 2}) == fingerprint.digest({"b": 2, "a": 1})
