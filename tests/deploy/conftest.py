"""What the tests of the command line share: a small classifier, and the command run on it."""

import pytest
import small_classifier as small

from thyroid_lib.deploy import command


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    """A small classifier's folder."""
    return small.make(tmp_path_factory.mktemp("run") / "classifier")


@pytest.fixture
def classify(folder, capsys):
    """classify(*arguments): exit status, and what was printed and said, of the command in this process."""

    def classify(*arguments):
        arguments = [str(argument) for argument in arguments]
        status = command.main([*arguments, "--classifier", str(folder), "--backend", "torch"])
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return classify
