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

from thyroid_lib.common.files import PROJECT

SOUND = ("", "")  # nothing is replaced
FIRST = {  # words of the names of the tests that are tried before the rest of the file
    "split": ("split", "validation", "partition", "fold"),
    "largest region": ("region", "inverted", "letterbox", "margin"),
    "mixed loss": ("mixed", "reductions", "equal", "zero", "gradient", "nan"),
    "bootstrap": ("draw", "one_patient", "lower_bound", "every_metric", "students"),
    "restored tensors": ("interrupted",),
    "checkpoint restore": ("interrupted", "twice", "finished", "refused"),
}
MUTANTS = {
    "split": (
        "manifest.py",
        "test_manifest.py",
        [
            (
                "shuffle=True, random_state=seed + 1_000_003 * attempt",
                "shuffle=True, random_state=1_000_003 * attempt",
            ),
            ("folder.split(labels, labels, groups)", "folder.split(labels, labels, np.arange(len(labels)))"),
            ('result["fold"] = fold[np.argsort(order)]', 'result["fold"] = fold'),
            ("if all(len(set(fold[labels == key])) == folds for key in set(labels)):", "if True:"),
            ("if have and have + own[group] / 2 > validation * own.sum():", "if have:"),
            ('part[manifest["fold"] == test_fold] = "test"', 'part[manifest["fold"] != test_fold] = "test"'),
            ("if (left[held.loc[group]] == 1).any():", "if False:"),
        ],
    ),
    "largest region": (
        "regions.py",
        "test_regions.py",
        [
            ("np.argsort(-stats[", "np.argsort(stats["),
            ("area < recipe.min_area * binary.size", "area > recipe.min_area * binary.size"),
            ("return regions[0]\n", "return regions[-1]\n"),
            ("connectivity=recipe.connectivity", "connectivity=8"),
            ("round((x + w) * scale_x + margin)", "round((x + w) * scale_x)"),
            ("x, y, width, height = region.box\n    cut", "y, x, width, height = region.box\n    cut"),
            ("return 255 - cut if region.inverted else cut", "return cut"),
            ("recipe.threshold, 1, cv2.THRESH_BINARY", "2 * recipe.threshold + 9, 1, cv2.THRESH_BINARY"),
        ],
    ),
    "mixed loss": (
        "losses.py",
        "test_losses.py",
        [
            (
                "return (1 - self.focal_weight) * cross_entropy + self.focal_weight * self.focal",
                "return self.focal_weight * cross_entropy + (1 - self.focal_weight) * self.focal",
            ),
            (".clamp_min(smallest).pow(gamma)", ".clamp_min(smallest).pow(2.0)"),
            ("-torch.expm1(log_p)", "torch.exp(log_p)"),
            ("-focus(log_p, gamma) * log_p", "-log_p"),
        ],
    ),
    "bootstrap": (
        "evaluation/bootstrap.py",
        "evaluation/test_evaluation.py",
        [
            ("np.bincount(drawn, minlength=self.patients)", "1"),
            ("rng.integers(0, self.patients, self.patients)", "rng.integers(0, 1, self.patients)"),
            ("np.add.at(by_patient, self.index, values)", "by_patient[self.index] = values"),
            ("reach = np.sqrt(n / (n - 1)) * stats.t.isf(tail, n - 1)", "reach = stats.norm.isf(tail)"),
            ("missed = (most - least) * (1 - tail ** (1 / n))", "missed = 0.0"),
            ("if effective < minimum:", "if effective <= 0:"),
        ],
    ),
    "restored tensors": (
        "training/checkpoint.py",
        "training/test_training.py",
        [
            ("if not name.startswith(OPTIMIZER)})", 'if name.startswith("average")}, strict=False)'),
            ("optimizer.load_state_dict(saved)", "pass"),
            ("if not name.startswith(OPTIMIZER)})", 'if name.startswith("learner")}, strict=False)'),
        ],
    ),
    "checkpoint restore": (
        "training/loop.py",
        "training/test_training.py",
        [
            ("checkpoint.restore(folder", "(lambda *_: None)(folder"),
            ('checkpoint.refuse_another(folder, self.state["identity"], identity)', "pass"),
        ],
    ),
}
CASES = [
    pytest.param(what, old, new, id=f"{what}-{number}")
    for what, (_, _, changes) in MUTANTS.items()
    for number, (old, new) in enumerate(changes)
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
    for file, _, changes in MUTANTS.values():
        text = (PROJECT / "thyroid_lib" / file).read_text(encoding="utf-8")
        for old, new in changes:
            assert text.count(old) == 1, (file, old)
            compile(text.replace(old, new), file, "exec")


@pytest.mark.slow
@pytest.mark.parametrize("what, old, new", CASES)
def test_a_mutant_is_noticed(run, sound, what, old, new):
    file, tests, _ = MUTANTS[what]
    mutant = run(file, (old, new), [f"tests/{tests}"], FIRST[what])
    assert mutant["status"] == pytest.ExitCode.TESTS_FAILED, mutant["output"]
    unchanged = sound(file, mutant["failed"])
    assert unchanged["status"] == pytest.ExitCode.OK, unchanged["output"]


@pytest.mark.slow
def test_what_cannot_even_be_imported_is_not_called_noticed(run):
    broken = run(
        "losses.py", ("import torch\n", "import torch, nothing_of_this_name\n"), ["tests/test_losses.py"]
    )
    assert broken["status"] == pytest.ExitCode.INTERRUPTED and "nothing_of_this_name" in broken["output"]
