"""Environment: project, lock, conda and the public workflows agree, and hold what the study's owner named."""

import re
import shutil
import subprocess
import sys
import tomllib
from importlib.metadata import version

import pytest
import yaml
from packaging.requirements import Requirement

from thyroid_lib.common.files import PROJECT

# opencv-python-headless stands for opencv-python: the same cv2 without the system libraries of a desktop.
NAMED = {"jupyterlab", "papermill", "torch", "torchvision", "opencv-python-headless", "matplotlib", "seaborn"}
NAMED |= {"scikit-learn", "grad-cam", "nbval"}

project = tomllib.loads((PROJECT / "pyproject.toml").read_text())["project"]
lock = (PROJECT / "requirements.lock").read_text()
conda = yaml.safe_load((PROJECT / "environment.yml").read_text())


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", re.match(r"[A-Za-z0-9._-]+", name).group()).lower()


WORKFLOWS = sorted((PROJECT / ".github" / "workflows").glob("*.yml"))
locked = {normal(line) for line in lock.splitlines() if re.match(r"[a-z0-9]", line)}
asked = {normal(name) for name in project["dependencies"]}
optional = {normal(name) for names in project["optional-dependencies"].values() for name in names}


def test_every_dependency_is_locked_with_a_hash_and_no_address_and_so_is_what_the_owner_named():
    assert NAMED <= asked | optional <= locked
    assert not {"opencv-python", "opencv-contrib-python"} & locked, "two OpenCV wheels overwrite each other"
    blocks = re.split(r"\n(?=[a-z0-9])", re.sub(r"(?m)^\s*#.*\n?", "", lock).strip())
    assert len(blocks) > 100 and all("--hash=sha256:" in block for block in blocks)
    assert not re.search(r"://|--index-url|--find-links", lock)


def test_conda_points_at_the_same_lock():
    pip = next(entry["pip"] for entry in conda["dependencies"] if isinstance(entry, dict))
    assert pip == ["--require-hashes", "-r requirements.lock"] and conda["name"] == "thyroid"
    version = next(entry for entry in conda["dependencies"] if str(entry).startswith("python="))
    assert version.split("=")[1] in ("3.11", "3.12", "3.13") and project["requires-python"] == ">=3.11,<3.14"


def test_the_lock_resolves_for_this_python_and_is_what_is_installed():
    lines = [line.rstrip("\\ ") for line in lock.splitlines() if re.match(r"[a-z0-9]", line)]
    pinned = [Requirement(line) for line in lines]
    here = [need for need in pinned if need.marker is None or need.marker.evaluate()]
    assert len(here) > 100
    if sys.prefix != str(PROJECT / ".venv"):
        pytest.skip("the interpreter was brought by the user, not made from the lock")
    assert [need.name for need in here if version(need.name) not in need.specifier] == []


def bootstrap(folder, **environment):
    """Source the bootstrap in ``folder`` with nothing but the given environment."""
    command = ["bash", "-c", '. .ci/bootstrap.sh; echo "python: $PYTHON"']
    environment = {"HOME": str(folder), **environment}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)


@pytest.fixture
def empty_project(tmp_path):
    (tmp_path / ".ci").mkdir()
    for name in ("requirements.lock", "pyproject.toml", ".ci/bootstrap.sh"):
        shutil.copy(PROJECT / name, tmp_path / name)
    return tmp_path


def test_a_python_named_by_the_user_and_our_active_conda_environment_are_used_as_they_are(empty_project):
    done = bootstrap(empty_project, THYROID_PYTHON=sys.executable, PATH="/usr/bin:/bin")
    assert done.returncode == 0 and done.stdout == f"python: {sys.executable}\n"
    assert not (empty_project / ".venv").exists()
    done = bootstrap(empty_project, THYROID_PYTHON="/no/such/python", PATH="/usr/bin:/bin")
    assert done.returncode == 2 and "/no/such/python does not start" in done.stderr
    (empty_project / "conda" / "bin").mkdir(parents=True)
    (empty_project / "conda" / "bin" / "python").symlink_to(sys.executable)
    prefix = str(empty_project / "conda")
    done = bootstrap(empty_project, CONDA_DEFAULT_ENV="thyroid", CONDA_PREFIX=prefix, PATH="/usr/bin:/bin")
    assert done.stdout == f"python: {prefix}/bin/python\n"


def tools(folder, **fakes: str) -> str:
    """A folder of commands for the PATH: a few of the system's, and fake ones by their shell code."""
    (folder / "bin").mkdir()
    for name in ("cksum", "cat", "cut", "awk", "dirname", "bash", "rm"):
        (folder / "bin" / name).symlink_to(shutil.which(name))
    for name, code in fakes.items():
        (folder / "bin" / name).write_text(f"#!/bin/sh\n{code}\n")
        (folder / "bin" / name).chmod(0o755)
    return str(folder / "bin")


def test_a_python_that_is_too_old_is_told_plainly(empty_project, sees):
    old = 'case "$1" in --version) echo Python 3.9.2;; *) echo 3 9;; esac'
    done = bootstrap(empty_project, PATH=tools(empty_project, python3=old))
    assert done.returncode == 2
    assert f"{sees}; found: Python 3.9.2" in done.stderr


def test_a_disk_that_is_too_small_is_told_before_anything_is_installed(empty_project, sees):
    full = "echo Filesystem; echo /dev/x 100 50 3145728 9% /"
    done = bootstrap(empty_project, PATH=tools(empty_project, python3="echo 3 12", df=full))
    assert done.returncode == 2 and f"{sees}, 3 GB are free" in done.stderr
    assert not (empty_project / ".venv").exists() and not (empty_project / ".uv").exists()


def test_nothing_is_done_while_the_lock_is_unchanged(empty_project):
    (empty_project / ".venv" / "bin").mkdir(parents=True)
    names = "requirements.lock pyproject.toml .ci/bootstrap.sh"
    stamp = subprocess.check_output(f"cat {names} | cksum", shell=True, cwd=empty_project, text=True)
    (empty_project / ".venv" / ".synced").write_text(stamp)
    done = bootstrap(empty_project, PATH=tools(empty_project))
    assert done.returncode == 0 and done.stdout == f"python: {empty_project}/.venv/bin/python\n"


def test_the_test_command_runs_on_every_python_that_the_project_allows():
    strategy = yaml.safe_load((PROJECT / ".github/workflows/tests.yml").read_text())["jobs"]["tests"]
    allowed = re.search(r">=3\.(\d+),<3\.(\d+)", project["requires-python"])
    expected = [f"3.{minor}" for minor in range(int(allowed[1]), int(allowed[2]))]
    assert strategy["strategy"]["matrix"]["python"] == expected
    assert any("./run_tests.sh" in step.get("run", "") for step in strategy["steps"])


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_actionlint_finds_nothing(path):
    if not shutil.which("actionlint"):
        pytest.skip("actionlint is not installed")
    done = subprocess.run(["actionlint", str(path)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
