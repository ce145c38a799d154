"""Where a result comes from: hashes of code and data, versions, machine."""

import hashlib
import os
import platform
import subprocess
import sys
from importlib import metadata
from pathlib import Path

from thyroid_lib.common.files import LIBRARY, PROJECT

# What notebooks import of the room that runs and renders them; a change in the rest leaves results as they are.
_IMPORTED = {"checklists.py"}
_VERSIONS = (
    "torch torchvision numpy scipy pandas scikit-learn opencv-python-headless matplotlib grad-cam papermill "
    "nbconvert jupyterlab lightning-fabric pydicom safetensors pandera"
).split()


def digest(*parts: bytes | str) -> str:
    """SHA-256 over ``parts``, each with its length, as hexadecimal."""
    total = hashlib.sha256()
    for part in parts:
        part = part.encode() if isinstance(part, str) else part
        total.update(len(part).to_bytes(8, "little") + part)
    return total.hexdigest()


def hash_file(path: Path) -> str:
    """SHA-256 of a file as hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def library_hash() -> str:
    """Hash over the code of ``thyroid_lib`` that notebooks run."""
    files = sorted(
        path for path in LIBRARY.rglob("*.py") if path.parent.name != "study" or path.name in _IMPORTED
    )
    return digest(
        *(part for path in files for part in (path.relative_to(PROJECT).as_posix(), path.read_bytes()))
    )


def renderer_hash() -> str:
    """Hash over what turns an executed notebook into HTML."""
    folder = LIBRARY
    files = [folder / "study" / "report.py", *sorted((folder / "templates" / "report").iterdir())]
    return digest(*(path.read_bytes() for path in files if path.is_file()))


def lock_hash() -> str:
    """Hash of ``requirements.lock``."""
    return hash_file(PROJECT / "requirements.lock")


def data_fingerprint(path: Path | None) -> str:
    """Names, sizes and times of all files of a data set; the contents are hashed by notebook 01."""
    if path is None:
        return ""
    files = [path] if path.is_file() else sorted(file for file in path.rglob("*") if file.is_file())
    stats = [(file, file.stat()) for file in files]
    names = (f"{os.path.relpath(file, path)} {stat.st_size} {stat.st_mtime_ns}" for file, stat in stats)
    return digest("\n".join(names))


def environment() -> dict:
    """The code, the packages and the machine, for ``run.json``; nothing that names a person or a folder."""
    import psutil

    return {
        "git_commit": _git("rev-parse", "HEAD"),
        "git_clean": None if _git("rev-parse", "HEAD") is None else _git("status", "--porcelain") == "",
        "library_sha256": library_hash(),
        "lock_sha256": lock_hash(),
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in _VERSIONS},
        "platform": f"{platform.system()} {platform.machine()}",
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "executable_is_venv": sys.prefix != sys.base_prefix,
    }


def _git(*arguments: str) -> str | None:
    try:
        done = subprocess.run(["git", *arguments], cwd=PROJECT, capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor()
