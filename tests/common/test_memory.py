"""Freed memory stays with the process where the C library lets it."""

import importlib
import resource
import subprocess
import sys
import warnings

import pytest

from thyroid_lib.common import memory

CODE = """
import resource, sys
from thyroid_lib.common import memory
kept = memory.keep_memory() if sys.argv[1] == "keep" else False
size, times = int(sys.argv[2]), int(sys.argv[3])
def touch():
    for _ in range(times):
        bytearray(b"x") * size
touch()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
touch()
print(kept, resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="speaks to Linux's C library")
@pytest.mark.parametrize("size, times", [(40_000_000, 10), (2_300_000_000, 1)])  # a large batch exceeds 2 GiB
def test_memory_that_is_used_again_is_not_asked_of_the_kernel_again(size, times):
    def run(word):
        command = [sys.executable, "-c", CODE, word, str(size), str(times)]
        kept, faults = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
        return kept == "True", int(faults)

    kept, faults = run("keep")
    if not kept:
        pytest.skip("another C library than glibc")
    pages = times * size // resource.getpagesize()
    assert faults < pages / 100 < pages / 2 < run("as it is")[1]


def test_elsewhere_nothing_is_done(monkeypatch):
    monkeypatch.setattr(memory.ctypes, "CDLL", lambda name: memory.ctypes.c_int)  # another C library
    assert memory.keep_memory() is False


def test_a_worker_that_joblib_replaces_is_no_news_and_other_warnings_are():
    texts = ["A worker stopped while some jobs were given to the executor. This can be caused by", "another"]
    with warnings.catch_warnings(record=True) as said:
        warnings.resetwarnings()
        importlib.reload(memory)
        for text in texts:
            warnings.warn(text, UserWarning, stacklevel=1)
    assert [str(one.message) for one in said] == texts[1:]
