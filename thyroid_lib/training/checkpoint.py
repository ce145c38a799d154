"""Checkpoints: weights and state as safetensors, position and history as JSON, never a pickle.

A folder of checkpoints holds

    best.safetensors    the weights of the best epoch so far; what the study carries on with
    state.json          position, history and identity of the training: what was trained, on what
    state-<n>.safetensors   weights, optimizer and averaged weights after epoch n; gone when all is done

Every file is written beside its place and renamed into it, and ``state.json`` comes last: whenever the
process dies, the folder holds one complete older or newer state.
"""

import contextlib
import errno
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file

from thyroid_lib.common.messages import MORE, NAMES, named, quoted

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

BEST, STATE = "best.safetensors", "state.json"
FORMAT = 1


class CheckpointError(RuntimeError):
    """A checkpoint that cannot be written, read or continued; the message says what to do."""


def save_weights(path: Path, tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, Any]) -> None:
    """Writes tensors to one safetensors file, whole or not at all.

    Args:
        path: the file; replaced atomically if it is there.
        tensors: name -> tensor, of any device and memory format.
        metadata: plain JSON values, kept in the header under their own names, sorted: equal weights and
            metadata make equal files.

    Raises:
        CheckpointError: the disk is full or the folder cannot be written; the old file is untouched.
    """
    plain = {name: tensor.detach().to("cpu").contiguous() for name, tensor in tensors.items()}
    text = {name: json.dumps(value, sort_keys=True) for name, value in metadata.items()}
    size = sum(tensor.numel() * tensor.element_size() for tensor in plain.values())

    def write(temporary: str) -> None:
        save_file(plain, temporary, metadata=text)
        _sort_metadata(temporary)

    _replace(path, write, size)


def load_weights(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Reads what `save_weights` wrote.

    Returns:
        The tensors on the CPU by name, and the metadata.

    Raises:
        CheckpointError: the file is missing, cut short or no safetensors file.
    """
    try:
        with safe_open(path, framework="pt") as file:
            metadata = {name: json.loads(value) for name, value in (file.metadata() or {}).items()}
        return load_file(path), metadata
    except (OSError, SafetensorError, ValueError) as error:
        raise CheckpointError(
            f"Expected complete weights in {path}; they cannot be read ({error}). Delete the folder "
            f"{Path(path).parent} to train again from the start."
        ) from error


def write_json(path: Path, content: Any) -> None:
    """Writes JSON, whole or not at all; raises CheckpointError as `save_weights` does."""
    data = json.dumps(content, indent=1, ensure_ascii=False).encode()
    _replace(path, lambda temporary: Path(temporary).write_bytes(data), len(data))


def read_state(folder: Path) -> dict | None:
    """The content of state.json, or None where no training was begun.

    Raises:
        CheckpointError: the file is there and cannot be read.
    """
    path = Path(folder) / STATE
    try:
        state = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"Expected the state of a training in {path}; it cannot be read ({error}). Delete the folder "
            f"{folder} to train again from the start."
        ) from error
    version = state.get("format") if isinstance(state, dict) else None
    if version != FORMAT:
        raise CheckpointError(
            f"Expected a checkpoint of format {FORMAT} in {path}; format {quoted(version)} came, written "
            f"by another version. Delete the folder {folder} to train again."
        )
    return state


def save_state(folder: Path, tensors: Mapping[str, torch.Tensor], state: Mapping[str, Any]) -> None:
    """Commits the state after an epoch: tensors first, then state.json, then the older tensors go.

    Args:
        folder: the checkpoint folder.
        tensors: all that is needed to go on; empty when the training is finished.
        state: plain JSON values with "epoch", the number of epochs done.
    """
    name = f"state-{state['epoch']}.safetensors" if tensors else ""
    if tensors:
        save_weights(Path(folder) / name, tensors, {})
    write_json(Path(folder) / STATE, {**state, "format": FORMAT, "tensors": name})
    for old in Path(folder).glob("state-*.safetensors"):
        if old.name != name:
            old.unlink(missing_ok=True)


def load_state_tensors(folder: Path, state: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    """The tensors that belong to `state`, on the CPU; raises CheckpointError where they are lost."""
    return load_weights(Path(folder) / state["tensors"])[0]


def prepare(folder: Path) -> None:
    """Makes the folder and tries to write in it, before an hour of training is put at stake.

    Leftovers of a write that was cut off are removed.

    Raises:
        CheckpointError: the folder cannot be made or written.
    """
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for left in folder.glob(".*.part"):
            left.unlink(missing_ok=True)
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b"0")
    except OSError as error:
        raise CheckpointError(_why(folder, error, 0)) from error


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
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = open(path, "w")
    except OSError as error:
        raise CheckpointError(_why(path, error, 0)) from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise CheckpointError(
                f"Another process is training in {folder}. Wait for it, end it, or give another folder."
            ) from error
        except OSError:
            pass  # a file system without locks
        try:
            yield
        finally:
            path.unlink(missing_ok=True)


def refuse_another(folder: Path, found: Mapping[str, Any], asked: Mapping[str, Any]) -> None:
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


def differences(found: Mapping[str, Any], asked: Mapping[str, Any]) -> list[str]:
    """Every value in which two nested identities differ, as "name: a there, b asked for"."""
    first, second = _flat(found), _flat(asked)
    lines = []
    for name in sorted({**first, **second}):
        a, b = first.get(name, "nothing"), second.get(name, "nothing")
        if a != b:
            lines.append(f"{named(name)}: {named(a, MORE)} there, {named(b, MORE)} asked for")
    return lines


def _flat(value: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(value, Mapping):
        return {prefix: list(value) if isinstance(value, tuple) else value}
    flat = {}
    for name, inner in value.items():
        flat |= _flat(inner, f"{prefix}.{name}" if prefix else str(name))
    return flat


def _sort_metadata(path: str) -> None:
    """Puts the metadata of a safetensors file in order: the library writes them in another one each time."""
    with open(path, "rb+") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
        header["__metadata__"] = dict(sorted(header.get("__metadata__", {}).items()))
        text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
        if len(header["__metadata__"]) > 1 and len(text) <= length:
            file.seek(8)
            file.write(text.ljust(length))


def _replace(path: Path, write: Callable[[str], object], size: int) -> None:
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        write(str(temporary))
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
        _sync_folder(path.parent)
    except (OSError, SafetensorError) as error:
        temporary.unlink(missing_ok=True) if path.parent.is_dir() else None
        raise CheckpointError(_why(path, error, size)) from error


def _sync_folder(folder: Path) -> None:
    if os.name == "posix":
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _why(path: Path, error: BaseException, size: int) -> str:
    text = str(error)
    if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT) or "os error 28" in text:
        free = shutil.disk_usage(path.parent).free
        return (
            f"The disk is full: {size / 2**20:.0f} MiB are to be written to {path}, {free / 2**20:.0f} MiB "
            "are free. The checkpoint before it is whole; make room and start the same command again."
        )
    return (
        f"Expected to write {path}, and cannot: {text}. The checkpoint before it is untouched; choose a "
        "folder that can be written, or mend this one, and start the same command again."
    )
