"""A study of two small notebooks, the second reading what the first wrote: to be run, brought down and run again."""

import itertools
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import nbformat
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from thyroid_lib.common.files import PROJECT, read_json
from thyroid_lib.study import profiles, runner

FIGURE = """import matplotlib.pyplot as plt
figure, axes = plt.subplots()
axes.plot([1, 2], [1, factor])
run.show(figure, "{number}_line", caption="A line.", alt="A line from 1 to 2.")"""
WORK = """
import numpy as np
values = np.arange(5) * factor
np.save(run.path("data", "values.npy"), values)
run.path("checkpoints", "a", "x.json").write_text("{}")
"""
READ = """
import numpy as np
values = np.load(run.dir / "data" / "values.npy")
run.record("02_second", {"sum": int(values.sum())})
"""
PARAMETERS = """run_dir: str = ""  # the run
factor: int = 2  # any number
rate: float = 0.1  # rate
finetune_data: str = ""  # data"""
PAGES = [f"{name}.{kind}" for name in ("01_first", "02_second") for kind in ("html", "ipynb")]
NAMES = {*PAGES, "index.html", "run.json", "metrics.json", "figures/01_line.png", "figures/02_line.png"}
NAMES |= {"data/values.npy", "checkpoints/a/x.json", ".lock"}
"""Every file of an undisturbed run."""
NUMBERS = {"01_first": {"factor": 3}, "02_second": {"factor": 4, "sum": 30}}
STAGES = (profiles.Stage("01_first"), profiles.Stage("02_second", ("01_first",)))
BEGIN = "import sys; sys.path.append('tests'); import small_study; sys.exit(small_study.begin(*sys.argv[1:]))"


def notebook(path: Path, *cells: str) -> None:
    """A small notebook with the fixed opening of the study's notebooks."""
    number, opening = path.stem[:2], ["from thyroid_lib.study.run import open_run", PARAMETERS]
    opening += ["run = open_run(run_dir)", FIGURE.format(number=number)]
    opening += [f'run.record("{path.stem}", {{"factor": factor}})']
    title = new_markdown_cell(f"# {number} A <b>title</b>\n\nA question. More of it.\n\n## A section")
    content = new_notebook(cells=[title, *(new_code_cell(cell) for cell in (*opening, *cells) if cell)])
    content.cells[2].metadata["tags"] = ["parameters"]
    for place, cell in enumerate(content.cells):
        cell.id = f"cell{place}"  # the same notebook has the same bytes
    content.metadata.kernelspec = {"name": "python3", "display_name": "Python 3", "language": "python"}
    nbformat.write(content, path)


def write(folder: Path, first: str = "", second: str = "") -> None:
    """Writes the study into a folder; ``first``, ``second``: one more cell of each notebook."""
    books = folder / "notebooks"
    (books / "profiles").mkdir(parents=True, exist_ok=True)
    notebook(books / "01_first.ipynb", WORK, first)
    notebook(books / "02_second.ipynb", READ, second)
    (books / "profiles" / "quick.yaml").write_text("common: {factor: 3}\n02_second: {factor: 4}\n")


def point(books: Path, patch=setattr) -> None:
    """Points this process at the notebooks in a folder."""
    patch(profiles, "NOTEBOOKS", books)
    patch(profiles, "PROFILES", books / "profiles")
    patch(profiles, "STAGES", STAGES)
    patch(runner, "against_reference", lambda run, profile: None)  # two small notebooks have no reference
    patch(runner.provenance, "library_hash", lambda: "the library")  # it may change meanwhile


def make(folder: Path, monkeypatch) -> Path:
    """The study in a folder, and this process pointed at it."""
    write(folder)
    point(folder / "notebooks", monkeypatch.setattr)
    monkeypatch.setenv("THYROID_REPORTS", str(folder / "reports"))
    monkeypatch.setenv("THYROID_STATUS", os.devnull)
    return folder


def child(project: Path, die_at: int = 0, **options) -> subprocess.Popen:
    """The study in a process of its own, which kills itself at its n-th file that is moved into place."""
    command = [sys.executable, "-c", BEGIN, str(project / "notebooks"), str(die_at)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, cwd=PROJECT, **pipes, **options)


def begin(books: str, die_at: str) -> int:
    """What that process does."""
    point(Path(books))
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job is born deaf to it
    moves, replace = itertools.count(1), os.replace

    def dying(source, target):
        if next(moves) == int(die_at):
            os.kill(os.getpid(), signal.SIGKILL)
        replace(source, target)

    os.replace = dying
    return runner.main([])


def whole(project: Path) -> bool:
    """Whether a run has all numbers and files of an undisturbed one, and no other."""
    run = project / "reports" / "quick"
    assert {path.relative_to(run).as_posix() for path in run.rglob("*") if path.is_file()} == NAMES
    assert read_json(run / "metrics.json") == NUMBERS
    return set(read_json(run / "run.json")["stages"]) == {"01_first", "02_second"}


def wait_for(condition, seconds: float = 600) -> bool:
    """Whether a condition came true in time."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if condition():
            return True
        time.sleep(0.05)
    return False
