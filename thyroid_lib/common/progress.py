"""Progress that is seen by a person and stays out of a report.

In a terminal and in JupyterLab a bar is drawn. Inside a headless run, where the runner sets the
environment variable ``THYROID_STATUS`` to a file, one line of text is kept in that file instead: the
runner shows it, and the report stays silent.
"""

import contextlib
import os
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from tqdm.auto import tqdm

_EVERY = 0.2  # seconds between two updates of the status file
_BAR, _WORDS = "{percentage:3.0f}% {bar} {desc}", "{desc}"
_line: tqdm | None = None
_written = 0.0


def progress(
    iterable: Iterable, description: str, total: int | None = None, size: Callable | None = None
) -> Iterator:
    """Yield the items of ``iterable`` and show how far it is.

    Args:
        iterable: what to go through.
        description: what is being done, in a few words ("cropping frames").
        total: number of items where ``iterable`` has no length.
        size: what an item counts, where items are parts of several; ``total`` is the sum of them.
    """
    if total is None and hasattr(iterable, "__len__"):
        total = len(iterable)
    headless, done = "THYROID_STATUS" in os.environ, 0
    with tqdm(desc=description, total=total, leave=False, dynamic_ncols=True, disable=headless) as bar:
        for item in iterable:
            if headless:
                status(f"{description}: {done} of {total}" if total else f"{description}: {done}")
            yield item
            step = size(item) if size else 1
            done += step
            bar.update(step)
    if headless:
        status(description + ": done", now=True)


def status(text: str, now: bool = False, share: float | None = None) -> None:
    """Say what is being done at the moment; an empty text takes the line away, as the end of a notebook's cell does.

    Args:
        text: one line.
        now: write it even if the last line is younger than a fifth of a second.
        share: how much of it is done, 0 to 1: a bar is drawn beside the text.
    """
    global _line, _written
    target = os.environ.get("THYROID_STATUS")
    if target is not None:
        if now or time.monotonic() - _written > _EVERY:
            _written = time.monotonic()
            with contextlib.suppress(OSError):  # a status line is never worth a failed run
                Path(target).write_text(text.replace("\n", " "), encoding="utf-8")
        return
    if not text:
        _take_away()
        return
    if _line is None:
        _line = tqdm(total=1.0, bar_format=_WORDS, leave=False)
        if shell := _shell():
            shell.events.register("post_run_cell", _take_away)
    _line.bar_format, _line.n = (_WORDS, 0) if share is None else (_BAR, share)
    if hasattr(_line, "container"):  # in a notebook the bar is a widget of its own
        _line.container.children[1].layout.display = "none" if share is None else ""
    _line.set_description_str(text)


def _take_away(*_) -> None:
    global _line
    if _line is None:
        return
    _line.close()
    _line = None
    if shell := _shell():
        shell.events.unregister("post_run_cell", _take_away)


def _shell():
    from IPython import get_ipython

    return get_ipython()
