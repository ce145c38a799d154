"""Mutation: small errors put into the five most critical functions are each noticed by the tests that guard them.

A mutant is a copy of the library in which one place of one function is changed; the named test file, run on the copy,
must fail. Slow: each mutant is a run of tests.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from thyroid_lib.runfolder import PROJECT

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
            ("for group in free[:-1]:", "for group in free:"),
        ],
    ),
    "largest region": (
        "regions.py",
        "test_regions.py",
        [
            (
                "key=lambda component: (-component[0], component[1])",
                "key=lambda component: component[:2]",
            ),
            ("if area < recipe.min_area * binary.size:", "if area > recipe.min_area * binary.size:"),
            ("return regions[0]\n", "return regions[-1]\n"),
            ("connectivity=connectivity)\n    if count", "connectivity=8)\n    if count"),
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
                "return (1 - self.focal_weight) * cross_entropy + self.focal_weight * focal",
                "return self.focal_weight * cross_entropy + (1 - self.focal_weight) * focal",
            ),
            ("loss.sum() / weight[target].sum()", "loss.mean()"),
            (".clamp_min(smallest).pow(gamma)", ".clamp_min(smallest).pow(2.0)"),
            ("-torch.expm1(log_p)", "torch.exp(log_p)"),
            ("+ label_smoothing / classes", "+ label_smoothing"),
            ("(q * weight * focus", "(q * focus"),
        ],
    ),
    "bootstrap": (
        "bootstrap.py",
        "test_evaluation.py",
        [
            ("drawn += np.arange(count)[:, None] * self.patients", "drawn += np.arange(count)[:, None]"),
            (
                "rng.integers(0, self.patients, (count, self.patients))",
                "rng.integers(0, 1, (count, self.patients))",
            ),
            ("np.add.at(by_patient, self.index, values)", "by_patient[self.index] = values"),
            ("reach = np.sqrt(n / (n - 1)) * stats.t.isf(tail, n - 1)", "reach = stats.norm.isf(tail)"),
            ("missed = (most - least) * (1 - tail ** (1 / n))", "missed = 0.0"),
            ("if effective < minimum:", "if effective <= 0:"),
        ],
    ),
    "checkpoint restore": (
        "training.py",
        "test_training.py",
        [
            ('self.model.load_state_dict(part["model"])', "pass"),
            ("self.optimizer.load_state_dict(saved)", "pass"),
            ('self.average.load_state_dict(part["average"])', "pass"),
            (
                'if self.state["epoch"]:\n            self._restore()',
                "if False:\n            self._restore()",
            ),
            ('checkpoint.refuse_another(folder, self.state["identity"], identity)', "pass"),
        ],
    ),
}
CASES = [
    pytest.param(file, tests, old, new, id=f"{what}-{number}")
    for what, (file, tests, changes) in MUTANTS.items()
    for number, (old, new) in enumerate(changes)
]


def copy_of_project(folder: Path) -> Path:
    """A project whose library is a copy and whose other parts are links."""
    shutil.copytree(
        PROJECT / "thyroid_lib", folder / "thyroid_lib", ignore=shutil.ignore_patterns("__pycache__")
    )
    for name in (
        "tests",
        "notebooks",
        "benchmarks",
        "docs",
        "pyproject.toml",
        "requirements.lock",
        "README.md",
    ):
        (folder / name).symlink_to(PROJECT / name)
    return folder


def run_tests(project: Path, tests: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", f"tests/{tests}"]
    environment = os.environ | {
        "PYTHONPATH": str(project),
        "OMP_NUM_THREADS": "1",
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    return subprocess.run(command, cwd=project, env=environment, capture_output=True, text=True, timeout=280)


def test_every_place_to_change_is_there_once():
    for file, _, changes in MUTANTS.values():
        text = (PROJECT / "thyroid_lib" / file).read_text(encoding="utf-8")
        for old, new in changes:
            assert text.count(old) == 1, (file, old)
            compile(text.replace(old, new), file, "exec")


@pytest.mark.slow
@pytest.mark.parametrize("file, tests, old, new", CASES)
def test_a_mutant_is_noticed(tmp_path, file, tests, old, new):
    project = copy_of_project(tmp_path)
    path = project / "thyroid_lib" / file
    path.write_text(path.read_text(encoding="utf-8").replace(old, new), encoding="utf-8")
    done = run_tests(project, tests)
    assert done.returncode == 1, done.stdout[-800:]
    assert "thyroid_lib" in done.stdout or "assert" in done.stdout or "Error" in done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("tests", sorted({tests for _, tests, _ in MUTANTS.values()}))
def test_the_unchanged_copy_passes(tmp_path, tests):
    done = run_tests(copy_of_project(tmp_path), tests)
    assert done.returncode == 0, done.stdout[-800:]
    assert str(tmp_path) not in done.stderr
