"""Mutation: small errors put into the five most critical functions are each noticed by the tests that guard them.

A mutant is a copy of the library in which one place of one function is changed. A test of the named file must fail on
it, and the same test must pass on the copy without the change. Slow: every mutant is a run of tests (see mutation.py).
"""

import functools
import json
import os
import shutil
import subprocess
import sys

import mutation
import pytest
import yaml

from thyroid_lib.common.files import PROJECT

SOUND = ("", "")  # nothing is replaced
MUTANTS = yaml.safe_load((PROJECT / "tests" / "project" / "mutants.yaml").read_text(encoding="utf-8"))
CASES = [
    pytest.param(what, old, new, id=f"{what}-{number}")
    for what, mutant in MUTANTS.items()
    for number, (old, new) in enumerate(mutant["changes"])
]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """run(file, (old, new), tests, first): what the tests say of a copy of the project with one place changed."""
    folder = tmp_path_factory.mktemp("mutation") / "project"
    ignore = shutil.ignore_patterns("__pycache__")
    shutil.copytree(PROJECT / "thyroid_lib", folder / "thyroid_lib", ignore=ignore)
    for name in "tests notebooks benchmarks docs pyproject.toml requirements.lock README.md".split():
        (folder / name).symlink_to(PROJECT / name)
    foreign = ("COV", "PYTEST", "THYROID_SUMMARY")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(foreign)}
    environment |= {"PYTHONPATH": str(folder), "PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1"}
    command, pipe = [sys.executable, mutation.__file__, str(folder)], subprocess.PIPE
    server = subprocess.Popen(
        command, cwd=folder, env=environment, stdin=pipe, stdout=pipe, text=True, encoding="utf-8"
    )

    def run(file, change, tests, first=()):
        old, new = change
        asked = {"file": file, "old": old, "new": new, "tests": tests, "first": first}
        server.stdin.write(json.dumps(asked) + "\n")
        server.stdin.flush()
        return json.loads(server.stdout.readline())

    yield run
    server.terminate()
    server.wait()


@pytest.fixture(scope="module")
def sound(run):
    """sound(file, test): what one test says of the unchanged copy; each is asked once."""
    return functools.cache(lambda file, test: run(file, SOUND, [test]))


def test_every_place_to_change_is_there_once():
    for what, old, new in (case.values for case in CASES):
        text = (PROJECT / "thyroid_lib" / MUTANTS[what]["file"]).read_text(encoding="utf-8")
        assert text.count(old) == 1, (what, old)
        compile(text.replace(old, new), what, "exec")


@pytest.mark.slow
@pytest.mark.parametrize("what, old, new", CASES)
def test_a_mutant_is_noticed(run, sound, what, old, new):
    about = MUTANTS[what]
    mutant = run(about["file"], (old, new), [f"tests/{about['tests']}"], about["first"])
    assert mutant["status"] == pytest.ExitCode.TESTS_FAILED, mutant["output"]
    unchanged = sound(about["file"], mutant["failed"])
    assert unchanged["status"] == pytest.ExitCode.OK, unchanged["output"]


@pytest.mark.slow
def test_what_cannot_even_be_imported_is_not_called_noticed(run):
    change = ("import torch\n", "import torch, nothing_of_this_name\n")
    broken = run("losses.py", change, ["tests/test_losses.py"])
    assert broken["status"] == pytest.ExitCode.INTERRUPTED and "nothing_of_this_name" in broken["output"]
