"""What the tests of the study share."""

import contextlib
import io
import shutil

import pytest
import small_study

from thyroid_lib.study import runner


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A study of two small notebooks, the second reading what the first wrote."""
    return small_study.make(tmp_path, monkeypatch)


@pytest.fixture(scope="session")
def ran(tmp_path_factory):
    """That study run one notebook after the other: its folder, where `begun` is as after the first; what was said."""
    folder = tmp_path_factory.mktemp("ran")
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(io.StringIO()) as said:
        small_study.make(folder, patch)
        assert runner.main(["--only", "1"]) == 0
        shutil.copytree(folder / "reports", folder / "begun")
        assert runner.main(["--from", "02"]) == 0
    return folder, said.getvalue()


@pytest.fixture
def begun(project, ran):
    """A project of its own whose first notebook has run."""
    shutil.copytree(ran[0] / "begun", project / "reports")
    return project


@pytest.fixture
def finished(project, ran):
    """A project of its own whose run is finished."""
    shutil.copytree(ran[0] / "reports", project / "reports")
    return project
