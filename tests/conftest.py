"""What several tests share."""

import os
from pathlib import Path

import hardening
import pytest

os.environ.setdefault("THYROID_STATUS", os.devnull)  # no progress bars among the test results
os.environ.setdefault("MPLBACKEND", "Agg")


@pytest.fixture(scope="session")
def classifier_folder(tmp_path_factory) -> Path:
    """A small classifier's folder, which no test changes."""
    import small_classifier  # PyTorch takes its time

    return small_classifier.make(tmp_path_factory.mktemp("run") / "classifier")


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real ultrasound images; the test is skipped where there is none."""
    folder = os.environ.get("THYROID_DATA", "")
    if not folder or not Path(folder).is_dir():
        pytest.skip("real images are not here: set THYROID_DATA to a folder with ddti/ and busi/")
    return Path(folder).resolve()


def pytest_addoption(parser):
    parser.addoption("--slow", action="store_true", help="run the tests marked slow too")


def pytest_collection_modifyitems(config, items):
    if not config.getoption("--slow"):
        skip = pytest.mark.skip(reason="slow: ./run_tests.sh --slow runs it")
        for item in items:
            if item.get_closest_marker("slow"):
                item.add_marker(skip)


@pytest.fixture
def sees(request) -> str:
    """The words that the page "What can go wrong" promises for the failure that a test brings about."""
    return hardening.SEES[request.node.originalname]


@pytest.fixture
def count(record_property):
    """Adds to the lines that close the tests: count(faults=1), count(inputs=200), count(searched=9_000)."""

    def count(**numbers):
        for name, number in numbers.items():
            record_property(name, number)

    return count


def pytest_terminal_summary(terminalreporter):
    lines = hardening.summary(terminalreporter.getreports("passed"), terminalreporter.getreports("failed"))
    for line in lines:
        terminalreporter.write_line(line)
    if path := os.environ.get("THYROID_SUMMARY"):  # run_tests.sh ends with them
        Path(path).write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
