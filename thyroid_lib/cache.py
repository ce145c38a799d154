"""The one folder for what is worth keeping between runs: simulated frames, probes, the key of the pseudonyms."""

import os
import stat
import sys
import tempfile
from pathlib import Path


def cache_folder() -> Path:
    """``$THYROID_CACHE``, else ``thyroid_lib`` in the user's cache folder, else one of the user's own in /tmp.

    The last is for a home folder that is missing or cannot be written to; its content lasts as long as /tmp's.
    """
    if os.environ.get("THYROID_CACHE"):
        return Path(os.environ["THYROID_CACHE"]).expanduser()
    try:
        folder = _system() / "thyroid_lib"
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return folder
    except (OSError, RuntimeError):  # RuntimeError: a user without a home
        return _temporary()


def _system() -> Path:
    if sys.platform == "win32" and os.environ.get("LOCALAPPDATA"):
        return Path(os.environ["LOCALAPPDATA"])
    if os.environ.get("XDG_CACHE_HOME"):
        return Path(os.environ["XDG_CACHE_HOME"])
    return Path.home() / ("Library/Caches" if sys.platform == "darwin" else ".cache")


def _temporary() -> Path:
    """A folder that nobody else has made or can look into: /tmp is everybody's, and a key may lie there."""
    user = os.getuid() if hasattr(os, "getuid") else 0
    folder = Path(tempfile.gettempdir()) / f"thyroid_lib-{user}"
    folder.mkdir(mode=0o700, exist_ok=True)
    about = folder.lstat()
    if stat.S_ISDIR(about.st_mode) and about.st_uid == user and not about.st_mode & 0o077:
        return folder
    return Path(tempfile.mkdtemp(prefix=f"thyroid_lib-{user}-"))
