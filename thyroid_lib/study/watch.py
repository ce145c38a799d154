"""A stage watched from outside: what it is doing, for how long, and which processes it has started."""

import contextlib
import shutil
import sys
import threading
import time
from pathlib import Path

import psutil

GRACE = 3.0  # seconds that a left-over process has to end by itself


class Watch:
    """One stage under way; a context manager.

    Shows its time and what it is doing: one live line in a terminal, plain lines elsewhere. Ends its processes
    when it has taken longer than its limit, and whatever it leaves behind when it is over, however it ended.

    Args:
        stage: its name.
        status: file in which its notebook says what it is doing.
        limit: seconds it may take; 0 for any time.

    Attributes:
        late: it was stopped because its time was up.
    """

    def __init__(self, stage: str, status: Path, limit: float = 0):
        self.stage, self.status, self.limit, self.late = stage, status, limit, False
        self._started, self._over = time.monotonic(), threading.Event()
        self._ours, self._seen = _descendants(), set()
        self._thread = threading.Thread(target=self._follow, daemon=True)

    @property
    def seconds(self) -> float:
        """Time since it began, by a clock that nobody sets."""
        return time.monotonic() - self._started

    def __enter__(self) -> "Watch":
        self.status.unlink(missing_ok=True)
        if not sys.stdout.isatty():
            print(f"{self.stage:<16} started", flush=True)
        self._thread.start()
        return self

    def __exit__(self, *_) -> None:
        self._over.set()
        self._thread.join()
        self._seen |= _descendants() - self._ours
        end(self._seen)

    def _follow(self) -> None:
        terminal, said, spoken, looked = sys.stdout.isatty(), "", 0.0, 0.0
        while not self._over.wait(0.25 if terminal else 0.5):
            if self.seconds - looked > 1:
                looked = self.seconds
                self._seen |= _descendants() - self._ours
            if self.limit and self.seconds > self.limit and not self.late:
                self.late = True
                end(self._seen, grace=0)  # the runner learns of it as of any notebook that died
            text = ""
            with contextlib.suppress(OSError, UnicodeDecodeError):
                text = self.status.read_text(encoding="utf-8")
            line = f"{self.stage:<16} {clock(self.seconds):>7}  {text}"
            if terminal:
                print(f"\r\x1b[K{line[: shutil.get_terminal_size().columns - 1]}", end="", flush=True)
            elif text and text != said and self.seconds - spoken > 30:
                print(line, flush=True)
                said, spoken = text, self.seconds
        if terminal:
            print("\r\x1b[K", end="", flush=True)


def _descendants() -> set[psutil.Process]:
    return set(psutil.Process().children(recursive=True))


def end(processes, grace: float = GRACE) -> None:
    """Ends processes that still run: asks first, kills after the grace (seconds). Others with their numbers stay."""
    for process in processes:
        with contextlib.suppress(psutil.Error):
            process.terminate() if grace else process.kill()
    for process in psutil.wait_procs(processes, timeout=grace or GRACE)[1]:
        with contextlib.suppress(psutil.Error):
            process.kill()


def clock(seconds: float) -> str:
    """Seconds as minutes and seconds: 1:05."""
    minutes, seconds = divmod(max(0, round(seconds)), 60)
    return f"{minutes}:{seconds:02d}"
