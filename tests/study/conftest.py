"""What the tests of the study share."""

import shutil

import pytest
import small_study

from thyroid_lib.study import runner


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A study of two small notebooks, the second reading what the first wrote."""
    return small_study.make(tmp_path, monkeypatch)


@pytest.fixture(scope="session")
def done(tmp_path_factory):
    """That study when it has run."""
    folder = tmp_path_factory.mktemp("done")
    with pytest.MonkeyPatch.context() as patch:
        small_study.make(folder, patch)
        assert runner.main([]) == 0
    return folder


@pytest.fixture
def finished(project, done):
    """A project of its own whose run is finished."""
    shutil.copytree(done / "reports", project / "reports")
    return project
