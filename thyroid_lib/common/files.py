"""Files: written whole or not at all, read with a reason where they are damaged; the project's folders."""

import json
import math
import os
import re
import stat
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import platformdirs

PROJECT = Path(__file__).resolve().parents[2]
LIBRARY = PROJECT / "thyroid_lib"
REPORTS = PROJECT / "reports"
# How the name of a file ends that is still being written; what a killed process leaves of them may be deleted.
PART = ".part"
_UMASK = os.umask(0o022)
os.umask(_UMASK)
FILE_MODE, FOLDER_MODE = 0o666 & ~_UMASK, 0o777 & ~_UMASK  # what any program gives; temporary files get less


@contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """A file to write beside ``path``, which takes its place at the end: a reader sees the old one or the new one.

    Raises:
        OSError: the folder cannot be written to, or the disk is full; the old file is untouched.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=PART)
    os.close(handle)
    try:
        yield Path(name)
        with open(name, "rb+") as file:
            os.fsync(file.fileno())
        os.chmod(name, FILE_MODE)
        os.replace(name, path)
        if os.name == "posix":  # the new name too shall outlive a loss of power
            handle = os.open(path.parent, os.O_RDONLY)
            os.fsync(handle)
            os.close(handle)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def write_text(path: Path, text: str) -> None:
    """Write a text file, whole or not at all; raises OSError as `written_whole` does."""
    with written_whole(path) as part:
        part.write_text(text, encoding="utf-8")


def write_json(path: Path, content: Mapping) -> None:
    """Write ``content`` as readable JSON, atomically; numbers that are not finite become null."""
    write_text(path, json.dumps(_plain(content), indent=1, ensure_ascii=False, allow_nan=False) + "\n")


def _plain(value):
    """``value`` in JSON's own types; floats keep nine significant digits, which any float32 survives."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, set)):
        return [_plain(item) for item in value]
    if hasattr(value, "tolist"):  # numpy's arrays and numbers
        return _plain(value.tolist())
    if isinstance(value, float):
        return float(f"{value:.9g}") if math.isfinite(value) else None
    return value if isinstance(value, int | None) else str(value)


class DamagedFile(ValueError):
    """A file of a run that is not what this project wrote there."""


def read_json(path: Path) -> dict:
    """The JSON object in ``path``; an empty one where there is no such file.

    Raises:
        DamagedFile: the file is there and is no JSON object.
    """
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise DamagedFile(f"{path}: expected JSON, came {error}; remove the file to start afresh") from None
    if not isinstance(content, dict):
        raise DamagedFile(f"{path}: expected a JSON object, came {type(content).__name__}")
    return content


def merge(old: Mapping, new: Mapping) -> dict:
    """``old`` with ``new`` laid over it, dictionary by dictionary."""
    merged = dict(old)
    for key, value in new.items():
        both = isinstance(value, Mapping) and isinstance(merged.get(key), Mapping)
        merged[key] = merge(merged[key], value) if both else value
    return merged


def natural(text: str) -> list:
    """Sort key under which frame 10 follows frame 9."""
    parts = re.split(r"(\d+)", str(text))
    return [(1, int(part), "") if part.isdecimal() else (0, 0, part) for part in parts]


def cache_folder() -> Path:
    """``$THYROID_CACHE``, else ``thyroid_lib`` in the user's cache folder, else one of the user's own in /tmp.

    The last is for a home folder that is missing or cannot be written to; its content lasts as long as /tmp's.
    """
    if os.environ.get("THYROID_CACHE"):
        return Path(os.environ["THYROID_CACHE"]).expanduser()
    try:
        folder = platformdirs.user_cache_path("thyroid_lib", False, opinion=False).expanduser()
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return folder
    except (OSError, RuntimeError):  # RuntimeError: a user without a home
        return _temporary()


def _temporary() -> Path:
    """A folder that nobody else has made or can look into: /tmp is everybody's, and a key may lie there."""
    user = os.getuid() if hasattr(os, "getuid") else 0
    folder = Path(tempfile.gettempdir()) / f"thyroid_lib-{user}"
    folder.mkdir(mode=0o700, exist_ok=True)
    about = folder.lstat()
    if stat.S_ISDIR(about.st_mode) and about.st_uid == user and not about.st_mode & 0o077:
        return folder
    return Path(tempfile.mkdtemp(prefix=f"thyroid_lib-{user}-"))
