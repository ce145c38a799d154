"""What the tests of the command line share: the command, run on a small classifier."""

import pytest

from thyroid_lib.deploy import command


@pytest.fixture
def classify(classifier_folder, capsys):
    """classify(*arguments): exit status, and what was printed and said, of the command in this process."""

    def classify(*arguments):
        arguments = [str(argument) for argument in arguments]
        status = command.main([*arguments, "--classifier", str(classifier_folder), "--backend", "torch"])
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return classify
