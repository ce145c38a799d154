"""Progress: one line for the runner, a bar for a person, nothing left behind."""

from types import SimpleNamespace

import matplotlib.pyplot as plt
import pandas as pd
import pytest

from thyroid_lib import plots
from thyroid_lib.common import progress


@pytest.fixture
def person(monkeypatch):
    """Somebody looks on: no runner has asked for a status file."""
    monkeypatch.delenv("THYROID_STATUS")
    yield
    progress.status("")


def test_parts_count_what_is_in_them(monkeypatch, tmp_path):
    monkeypatch.setenv("THYROID_STATUS", str(tmp_path / "line"))
    monkeypatch.setattr(progress, "_EVERY", -1)
    said = []
    for _ in progress.progress(iter(["abc", "de"]), "reading letters", 5, size=len):
        said.append((tmp_path / "line").read_text())
    assert said == ["reading letters: 0 of 5", "reading letters: 3 of 5"]
    assert (tmp_path / "line").read_text() == "reading letters: done"


def test_a_person_sees_a_bar_that_counts_what_is_in_the_parts_or_stands_at_a_share_and_words(person, capsys):
    assert list(progress.progress(iter(["abc", "de"]), "reading letters", 5, size=len)) == ["abc", "de"]
    said = capsys.readouterr().err
    assert "reading letters" in said and "0/5" in said and "/2" not in said
    progress.status("training: epoch 2 of 4", share=0.25)
    assert " 25% " in (said := capsys.readouterr().err) and "epoch 2 of 4" in said
    progress.status("writing")
    assert "%" not in (said := capsys.readouterr().err.split("\r")[-1]) and "writing" in said


def test_the_line_goes_with_the_cell_that_it_stood_under(person, monkeypatch):
    ends = {}
    events = SimpleNamespace(register=ends.__setitem__, unregister=lambda event, _: ends.pop(event))
    monkeypatch.setattr("IPython.get_ipython", lambda: SimpleNamespace(events=events))
    progress.status("training", share=0.5)
    progress.status("training", share=0.6)
    assert [*ends] == ["post_run_cell"]
    ends["post_run_cell"](None)
    assert ends == {}


def test_the_live_curve_keeps_every_training_of_the_cell(monkeypatch):
    drawn = []
    plt.close(plt.figure())  # pyplot looks for a shell once, and the one below is none
    monkeypatch.delenv("THYROID_STATUS")
    monkeypatch.setattr("IPython.get_ipython", lambda: SimpleNamespace(kernel=True))
    handle = SimpleNamespace(display=drawn.append, update=drawn.append)
    monkeypatch.setattr("IPython.display.DisplayHandle", lambda: handle)
    row = {"epoch": [1], "train_loss": 1.0, "val_loss": 1.1, "val_auroc": 0.6, "best": True}
    draw = plots.live_curve("training", "cross-entropy")
    for title in ("finetuned, fold 1 of 1", "scratch, fold 1 of 1"):
        history = pd.DataFrame(row)
        history.attrs["title"] = title
        draw(history)
    assert "scratch" not in drawn[0].alt
    assert "finetuned, fold 1 of 1" in drawn[1].alt and "scratch, fold 1 of 1" in drawn[1].alt
    assert drawn[1].axes[0].get_ylabel() == "cross-entropy"
