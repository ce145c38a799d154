"""Progress that is seen by a person and stays out of a report.

In a terminal and in JupyterLab a bar is drawn. Inside a headless run, where the runner sets the
environment variable ``THYROID_STATUS`` to a file, one line of text is kept in that file instead: the
runner shows it, and the report stays silent.
"""

import os
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TypeVar

from tqdm.auto import tqdm

T = TypeVar("T")
_EVERY = 0.2  # seconds between two updates of the status file
_line: tqdm | None = None
_written = 0.0


def progress(iterable: Iterable[T], description: str, total: int | None = None) -> Iterator[T]:
    """Yield the items of ``iterable`` and show how far it is.

    Args:
        iterable: what to go through.
        description: what is being done, in a few words ("cropping frames").
        total: number of items where ``iterable`` has no length.
    """
    if total is None and hasattr(iterable, "__len__"):
        total = len(iterable)
    if "THYROID_STATUS" not in os.environ:
        yield from tqdm(iterable, desc=description, total=total, leave=False, dynamic_ncols=True)
        return
    for done, item in enumerate(iterable):
        status(f"{description}: {done} of {total}" if total else f"{description}: {done}")
        yield item
    status(description + ": done", now=True)


def status(text: str, now: bool = False) -> None:
    """Say what is being done at the moment; an empty text takes the line away.

    Args:
        text: one line.
        now: write it even if the last line is younger than a fifth of a second.
    """
    global _line, _written
    target = os.environ.get("THYROID_STATUS")
    if target is not None:
        if now or time.monotonic() - _written > _EVERY:
            _written = time.monotonic()
            try:
                Path(target).write_text(text.replace("\n", " "), encoding="utf-8")
            except OSError:
                pass  # a status line is never worth a failed run
        return
    if not text:
        if _line is not None:
            _line.close()
            _line = None
        return
    if _line is None:
        _line = tqdm(bar_format="{desc}", leave=False)
    _line.set_description_str(text)
