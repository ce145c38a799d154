"""Runs tests on copies of the library that each have one error: the heavy packages are imported once for all.

    python tests/mutation.py FOLDER

FOLDER holds a copy of the project. Each line of the standard input is a JSON object: `file` of the library, `old` text
to replace by `new`, `tests` as pytest takes them, and `first`, words in the names of the tests to begin with, in order.
Each is answered by a line with pytest's exit `status`, the first test that `failed` ("" for none) and the end of the
`output`. A process forked before the library was ever imported does the work, so it sees the error wherever it
reaches, and so do the processes that its tests start.
"""

import importlib
import json
import os
import signal
import sys
import time
from pathlib import Path

import pytest

HEAVY = (
    "cv2 hypothesis lightning_fabric matplotlib.pyplot pandera.pandas safetensors.torch scipy.ndimage scipy.stats "
    "sklearn.metrics sklearn.model_selection torch"
).split()
SECONDS = 900
"""Longest run of the tests on one error."""


class Watch:
    """Begins with the tests that guard the changed place, and notes the first that fails."""

    def __init__(self, first: list[str]):
        self.first = first
        self.failed = ""

    def pytest_collection_modifyitems(self, items):
        def rank(item):
            return next((i for i, word in enumerate(self.first) if word in item.name), len(self.first))

        items.sort(key=rank)

    def pytest_runtest_logreport(self, report):
        if report.failed and not self.failed:
            self.failed = report.nodeid


def work(tests: list[str], first: list[str], note: Path):
    """The forked process: never returns."""
    os.setsid()  # so that what the tests leave behind can be ended with it
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    with open(note.with_suffix(".out"), "wb") as output, open(os.devnull, "rb") as nothing:
        for stream, target in ((nothing, 0), (output, 1), (output, 2)):
            os.dup2(stream.fileno(), target)
        watch = Watch(first)
        status = pytest.main(["-x", "-q", "-p", "no:cacheprovider", *tests], plugins=[watch])
        sys.stdout.flush()
        note.write_text(json.dumps({"status": int(status), "failed": watch.failed}), encoding="utf-8")
        os._exit(0)


def answer(folder: Path, file: str, old: str, new: str, tests: list[str], first: list[str]) -> dict:
    """Runs the tests on the copy with one place changed, and changes it back."""
    path, note = folder / "thyroid_lib" / file, folder / "answer.json"
    sound = path.read_text(encoding="utf-8")
    note.unlink(missing_ok=True)
    path.write_text(sound.replace(old, new), encoding="utf-8")
    child = os.fork()
    if not child:
        work(tests, first, note)
    end = time.monotonic() + SECONDS
    try:
        while os.waitpid(child, os.WNOHANG) == (0, 0) and time.monotonic() < end:
            time.sleep(0.02)
    finally:
        try:
            os.killpg(child, signal.SIGKILL)
        except ProcessLookupError:
            pass  # nothing is left
        path.write_text(sound, encoding="utf-8")
    found = json.loads(note.read_text(encoding="utf-8")) if note.is_file() else {"status": -1, "failed": ""}
    return found | {"output": note.with_suffix(".out").read_text(encoding="utf-8", errors="replace")[-2000:]}


if __name__ == "__main__":
    for name in HEAVY:
        try:
            importlib.import_module(name)
        except ImportError:
            pass  # only time is lost
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # no child is left behind
    for line in sys.stdin:
        print(json.dumps(answer(Path(sys.argv[1]), **json.loads(line))), flush=True)
