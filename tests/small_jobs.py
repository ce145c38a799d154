"""Jobs for worker processes, in a module that imports little."""

import os
import resource
import signal


def greedy(size: int) -> int:
    """Asks for memory under a limit."""
    resource.setrlimit(resource.RLIMIT_AS, (2**33, resource.RLIM_INFINITY))
    return len(bytearray(size))


def killed() -> None:
    """Is killed, as the system does for want of memory."""
    os.kill(os.getpid(), signal.SIGKILL)
