"""Jobs for worker processes, in a module that imports little."""

import os
import resource
import signal
import time
from pathlib import Path


def greedy(size: int) -> int:
    """Asks for memory under a limit."""
    resource.setrlimit(resource.RLIMIT_AS, (2**33, resource.RLIM_INFINITY))
    return len(bytearray(size))


def killed() -> None:
    """Is killed, as the system does for want of memory."""
    os.kill(os.getpid(), signal.SIGKILL)


def sleeper(folder: str, name: str) -> None:
    """Says who it is and sleeps longer than any test waits."""
    part = Path(folder).with_name(f"part{name}")
    part.write_text(str(os.getpid()))
    part.rename(Path(folder) / name)
    time.sleep(3000)
