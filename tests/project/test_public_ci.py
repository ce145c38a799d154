"""The public workflows run what the README says, on every Python that the project allows."""

import re
import shutil
import subprocess

import pytest
import yaml

from thyroid_lib.common.files import PROJECT

WORKFLOWS = sorted((PROJECT / ".github" / "workflows").glob("*.yml"))


def test_the_test_command_runs_on_every_python_that_the_project_allows():
    strategy = yaml.safe_load((PROJECT / ".github/workflows/tests.yml").read_text())["jobs"]["tests"]
    allowed = re.search(r'requires-python = ">=3\.(\d+),<3\.(\d+)"', (PROJECT / "pyproject.toml").read_text())
    expected = [f"3.{minor}" for minor in range(int(allowed[1]), int(allowed[2]))]
    assert strategy["strategy"]["matrix"]["python"] == expected
    assert any("./run_tests.sh" in step.get("run", "") for step in strategy["steps"])


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_actionlint_finds_nothing(path):
    if not shutil.which("actionlint"):
        pytest.skip("actionlint is not installed")
    done = subprocess.run(["actionlint", str(path)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
