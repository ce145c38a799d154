"""Where a result comes from: fingerprints of code and data, versions, machine."""

import os
import platform
import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path

from thyroid_lib.common.files import LIBRARY, PROJECT
from thyroid_lib.common.fingerprint import digest, sha256

_CODE = (".py", ".j2", ".yaml")
# What runs, renders and compares notebooks; they import nothing of it, and a change in it leaves results as they are.
_AROUND = re.compile(r"study/(?!checklists)|templates/(study|report|index|claims)/")
_VERSIONS = (
    "torch torchvision numpy scipy pandas scikit-learn opencv-python-headless matplotlib grad-cam papermill "
    "nbconvert jupyterlab lightning-fabric pydicom safetensors pandera"
).split()


def library_hash() -> str:
    """Fingerprint of the code and the texts of ``thyroid_lib`` that notebooks run."""
    names = [path.relative_to(LIBRARY).as_posix() for path in LIBRARY.rglob("*") if path.suffix in _CODE]
    ours = [name for name in sorted(names) if not _AROUND.match(name)]
    return digest(*(part for name in ours for part in (name, LIBRARY / name)))


def renderer_hash() -> str:
    """Fingerprint of what turns an executed notebook into HTML."""
    templates = (path for path in (LIBRARY / "templates" / "report").iterdir() if path.is_file())
    return digest(LIBRARY / "study" / "report.py", *sorted(templates))


def data_fingerprint(path: Path | None) -> str:
    """Of names, sizes and times of all files of a data set; the contents are hashed by notebook 01."""
    if path is None:
        return ""
    files = [path] if path.is_file() else sorted(file for file in path.rglob("*") if file.is_file())
    stats = [(os.path.relpath(file, path), file.stat()) for file in files]
    return digest([[name, stat.st_size, stat.st_mtime_ns] for name, stat in stats])


def environment() -> dict:
    """The code, the packages and the machine, for ``run.json``; nothing that names a person or a folder."""
    import psutil

    commit, installed = _git("rev-parse", "HEAD"), {one.name: one.version for one in metadata.distributions()}
    return {
        "git_commit": commit,
        "git_clean": None if commit is None else _git("status", "--porcelain") == "",
        "library_sha256": library_hash(),
        "lock_sha256": sha256(PROJECT / "requirements.lock"),
        "python": platform.python_version(),
        "packages": {name: installed.get(name) for name in _VERSIONS},
        "platform": f"{platform.system()} {platform.machine()}",
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "executable_is_venv": sys.prefix != sys.base_prefix,
    }


def _git(*arguments: str) -> str | None:
    options = {"cwd": PROJECT, "capture_output": True, "text": True, "timeout": 20, "check": True}
    try:
        return subprocess.run(["git", *arguments], **options).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None


def _processor() -> str:
    about = Path("/proc/cpuinfo")
    named = about.is_file() and re.search(r"^model name\s*: *(.*)", about.read_text(), re.MULTILINE)
    return named[1].strip() if named else platform.processor()
