"""Checkpoints: tensors as safetensors with what they are as JSON in the header, never a pickle.

A folder of checkpoints holds

    best.safetensors    the weights of the best epoch so far; what the study carries on with
    state.safetensors   position, history and identity of the training (what was trained, on what) in the header;
                        weights, optimizer and averaged weights after its last epoch, until all is done

Each is written beside its place and renamed into it, the state last: whenever the process dies, the folder holds
one complete older or newer state.
"""

import contextlib
import errno
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from thyroid_lib.common import fingerprint
from thyroid_lib.common.files import LIBRARY, PART, written_whole
from thyroid_lib.common.messages import MORE, NAMES, named, quoted

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

BEST, STATE, ABOUT = "best.safetensors", "state.safetensors", "about"
OPTIMIZER = "optimizer."
FORMAT = 4
CODE = [LIBRARY / "network.py", LIBRARY / "losses.py", LIBRARY / "evaluation" / "calibration.py"]
CODE += [LIBRARY / "layers" / f"{name}.py" for name in ("inputs", "depthwise", "pointwise")]
CODE += [LIBRARY / "training" / f"{name}.py" for name in ("augmentation", "auxiliary", "settings", "loop")]
"""What the numbers of a training follow from: a checkpoint of other code is another training's."""


class CheckpointError(RuntimeError):
    """A checkpoint that cannot be written, read or continued; the message says what to do."""


def save_weights(path: Path, tensors: dict[str, Tensor], metadata: dict) -> None:
    """Writes tensors to one safetensors file, whole or not at all.

    Args:
        path: the file; replaced atomically if it is there.
        tensors: name -> tensor, of any device and memory format.
        metadata: plain JSON values, kept in the header as one text: equal weights and metadata make equal files,
            which safetensors does not promise of several entries.

    Raises:
        CheckpointError: the disk is full or the folder cannot be written; the old file is untouched.
    """
    plain = {name: tensor.detach().to("cpu").contiguous() for name, tensor in tensors.items()}
    text = {ABOUT: json.dumps(metadata)} if metadata else {}
    size = sum(tensor.nbytes for tensor in plain.values())
    with _explained(path, size), written_whole(path) as part:
        save_file(plain, part, metadata=text)


def load_weights(path: Path, tensors: bool = True) -> tuple[dict[str, Tensor], dict]:
    """Reads what `save_weights` wrote.

    Args:
        path: the file. tensors: False reads the metadata alone.

    Returns:
        The tensors on the CPU by name, and the metadata.

    Raises:
        CheckpointError: the file is missing, cut short or no safetensors file.
    """
    try:
        # for tensors, safetensors opens the file a second time: another may have been moved to its place meanwhile
        with safe_open(path, framework="pt" if tensors else "np") as file:
            metadata = json.loads((file.metadata() or {}).get(ABOUT, "{}"))
            return {name: file.get_tensor(name) for name in file.offset_keys() if tensors}, metadata
    except (OSError, SafetensorError, ValueError) as error:
        raise CheckpointError(
            f"Expected complete weights in {path}; they cannot be read ({error}). Delete the folder "
            f"{Path(path).parent} to train again from the start."
        ) from error


def read_state(folder: Path) -> dict | None:
    """The state of a training, without its tensors; None where none was begun.

    Raises:
        CheckpointError: the file is there and cannot be read.
    """
    path = Path(folder) / STATE
    if not path.exists():
        return None
    state = load_weights(path, tensors=False)[1]
    version = state.get("format") if isinstance(state, dict) else None
    if version != FORMAT:
        raise CheckpointError(
            f"Expected a checkpoint of format {FORMAT} in {path}; format {quoted(version)} came, written "
            f"by another version. Delete the folder {folder} to train again."
        )
    return state


def save_state(folder: Path, tensors: dict[str, Tensor], state: dict) -> None:
    """Commits the state after an epoch.

    Args:
        folder: the checkpoint folder.
        tensors: all that is needed to go on; empty when the training is finished.
        state: plain JSON values with "epoch", the number of epochs done.

    Raises:
        CheckpointError: as `save_weights`.
    """
    save_weights(Path(folder) / STATE, tensors, {**state, "format": FORMAT})


def tensors_of(networks: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """All tensors that a training needs to go on: of what learns and its moving average, of the optimizer."""
    slots = optimizer.state_dict()["state"].items()
    of_optimizer = {f"{OPTIMIZER}{i}.{name}": x for i, own in slots for name, x in own.items()}
    return networks.state_dict() | of_optimizer


def restore(folder: Path, networks: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Puts the tensors of the state back where `tensors_of` found them.

    Raises:
        CheckpointError: they are lost.
    """
    tensors, saved = load_weights(Path(folder) / STATE)[0], optimizer.state_dict()
    networks.load_state_dict({name: x for name, x in tensors.items() if not name.startswith(OPTIMIZER)})
    for i, parameter in enumerate(p for group in optimizer.param_groups for p in group["params"]):
        slots, prefix = saved["state"].setdefault(i, {}), f"{OPTIMIZER}{i}."
        for name in (name for name in tensors if name.startswith(prefix)):
            # the fused optimizer walks memory: the state must lie as its parameter does
            x = tensors[name]
            slots[name.removeprefix(prefix)] = torch.empty_like(parameter).copy_(x) if x.ndim else x
    optimizer.load_state_dict(saved)


def history_of(state: dict, title: str) -> pd.DataFrame:
    """The epochs that a state tells of, a row each; its `attrs` hold the title."""
    history = pd.DataFrame(state["history"])
    history["best"] = history["epoch"] == state["best_epoch"]
    history.attrs["title"] = title
    return history


def prepare(folder: Path, identity: dict | None = None) -> str:
    """Makes the folder and tries to write in it, before an hour of training is put at stake.

    Leftovers of a write that was cut off are removed.

    Args:
        folder: the checkpoint folder.
        identity: of the training to come; where the folder holds another one, it is renamed to <folder>.before.

    Returns:
        In what that other one differs, "" where none was set aside.

    Raises:
        CheckpointError: the folder cannot be made or written.
    """
    state = read_state(folder) if identity else None
    different = differences(state["identity"], identity) if state else []
    with _explained(folder):
        if different and not int(os.environ.get("RANK", 0)):
            before = folder.with_name(folder.name + ".before")
            shutil.rmtree(before, ignore_errors=True)
            folder.rename(before)
        folder.mkdir(parents=True, exist_ok=True)
        for left in folder.glob(f".*{PART}"):
            left.unlink(missing_ok=True)
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b"0")
    return "; ".join(different)


@contextlib.contextmanager
def held(folder: Path) -> Iterator[None]:
    """Keeps other processes of this machine from training in the same folder; gone when the process is.

    Raises:
        CheckpointError: another process trains there.
    """
    if fcntl is None or int(os.environ.get("RANK", 0)):
        yield
        return
    path = Path(folder).with_name(f".{Path(folder).name}.lock")
    with _explained(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        file = open(path, "w")
    with file:
        with contextlib.suppress(OSError):  # a file system without locks
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                said = (
                    f"Another process is training in {folder}. Wait for it, end it, or give another folder."
                )
                raise CheckpointError(said) from None
        try:
            yield
        finally:
            path.unlink(missing_ok=True)


def identity_of(settings, crops, train, validation, labels, initial) -> dict:
    """What a training is: its settings, data, initial weights and code; arguments as `loop.fit`."""
    arrays = {"training rows": train, "validation rows": validation, "labels": labels}
    data = {"crops": str(crops.hash)} | {name: fingerprint.digest(rows) for name, rows in arrays.items()}
    start, code = digest_of(initial), fingerprint.digest(*CODE)
    return {"settings": settings.identity(), "data": data, "initial weights": start, "code": code}


def digest_of(initial: str | Path | dict | None) -> str:
    """A short hash of initial weights, by their values; "none" without any.

    Raises:
        FileNotFoundError: there is no such file.
    """
    if initial is None:
        return "none"
    if not isinstance(initial, dict):
        if not Path(initial).is_file():
            raise FileNotFoundError(
                f"Expected the weights to start from in {initial}; there is no such file."
            )
        initial = load_weights(Path(initial))[0]
    return fingerprint.digest(initial)


def refuse_another(folder: Path, found: dict, asked: dict) -> None:
    """Refuses to continue a training that is not the one asked for.

    Args:
        folder: named in the message.
        found: the identity in the checkpoint, nested plain values.
        asked: the identity of the training asked for.

    Raises:
        CheckpointError: they differ; the differences are named with both values.
    """
    different = differences(found, asked)
    if different:
        more = f"; and {len(different) - NAMES} more" if len(different) > NAMES else ""
        raise CheckpointError(
            f"The checkpoint in {folder} belongs to another training: {'; '.join(different[:NAMES])}{more}. Give "
            "another folder, or delete this one to train again."
        )


def differences(found: dict, asked: dict) -> list[str]:
    """Every value in which two nested identities differ, as "name: a there, b asked for"."""
    first, second = _flat(found), _flat(asked)
    both = {name: (first.get(name, "nothing"), second.get(name, "nothing")) for name in {**first, **second}}
    return [
        f"{named(name)}: {named(a, MORE)} there, {named(b, MORE)} asked for"
        for name, (a, b) in sorted(both.items())
        if a != b
    ]


def _flat(value, prefix: str = "") -> dict:
    if not isinstance(value, dict):
        return {prefix: list(value) if isinstance(value, tuple) else value}
    flat = {}
    for name, inner in value.items():
        flat |= _flat(inner, f"{prefix}.{name}" if prefix else str(name))
    return flat


@contextlib.contextmanager
def _explained(path: Path, size: int = 0) -> Iterator[None]:
    """Turns a failure to write `path`, of `size` bytes, into a CheckpointError that says what to do."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT) or "os error 28" in str(error):
            free = shutil.disk_usage(Path(path).parent).free
            said = (
                f"The disk is full: {size / 2**20:.0f} MiB are to be written to {path}, {free / 2**20:.0f} MiB "
                "are free. The checkpoint before it is whole; make room"
            )
        else:
            said = (
                f"Expected to write {path}, and cannot: {error}. The checkpoint before it is untouched; choose a "
                "folder that can be written, or mend this one,"
            )
        raise CheckpointError(f"{said} and start the same command again.") from error
