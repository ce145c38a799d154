"""The runner: stages are executed once, skipped when unchanged, and never lose a good report."""

import json
import os
import signal
import time

import numpy as np
import pandas as pd
import pytest
import small_study
from bs4 import BeautifulSoup

from thyroid_lib.common.files import read_json
from thyroid_lib.study import profiles, report, runner
from thyroid_lib.study.run import Run, open_run


def test_only_and_from_choose_stages_and_a_second_run_does_nothing(finished, ran, capsys):
    folder, said = ran
    assert said.count("01_first.html") == 1 and said.count("02_second.html") == 1
    assert str(folder / "reports" / "quick" / "index.html") in said
    assert small_study.whole(finished)
    run = finished / "reports" / "quick"
    assert (run / "figures" / "02_line.png").stat().st_size > 1000
    facts = read_json(run / "run.json")
    assert facts["parameters"]["01_first"] == {"factor": 3, "finetune_data": "", "rate": 0.1}
    assert facts["environment"]["packages"]["torch"]
    assert runner.main([]) == 0
    assert capsys.readouterr().out.count("unchanged, skipped") == 2


def test_what_changed_and_what_got_lost_is_made_anew_and_nothing_else(finished, capsys, monkeypatch):
    run = finished / "reports" / "quick"
    assert runner.main(["--set", "02_second.factor=9"]) == 0
    assert "01_first         unchanged, skipped" in capsys.readouterr().out
    assert read_json(run / "metrics.json")["02_second"]["factor"] == 9
    (run / "figures" / "01_line.png").unlink()
    assert runner.main(["--only", "01"]) == 0
    assert "unchanged" not in capsys.readouterr().out and (run / "figures" / "01_line.png").exists()
    monkeypatch.setattr(runner.provenance, "renderer_hash", lambda: "another")
    for news in ("report drawn anew", "skipped"):
        assert runner.main(["--only", "01"]) == 0
        assert f"01_first         unchanged, {news}" in capsys.readouterr().out


def test_a_failing_cell_names_itself_and_keeps_the_last_good_report(finished, capsys):
    run = finished / "reports" / "quick"
    page, numbers = (run / "01_first.html").read_bytes(), (run / "metrics.json").read_bytes()
    small_study.write(finished, first="ratio = factor / (factor - 3)")
    assert runner.main([]) == 1
    told = capsys.readouterr().err
    where = ("01_first failed", "notebooks/01_first.ipynb", "cell  ", "ratio = factor / (factor - 3)")
    for words in (*where, "ZeroDivisionError: division by zero", "the last good report"):
        assert words in told
    partial = run / ".work" / "01_first.ipynb"
    assert partial.exists() and (str(partial) in told or os.path.relpath(partial) in told)
    assert ((run / "01_first.html").read_bytes(), (run / "metrics.json").read_bytes()) == (page, numbers)


def test_a_figure_without_words_fails_the_build(project, capsys):
    bare = "from IPython.display import Image\nImage(run.dir / 'figures' / '01_line.png')"
    small_study.write(project, first=bare)
    assert runner.main(["--only", "01"]) == 1
    assert "a figure has no alt and no caption" in capsys.readouterr().err


def test_everything_wrong_with_the_parameters_is_said_at_once_and_nothing_is_started(project, capsys):
    wrong = ["--set", "02_second.facter=1", "--set", "01_first.factor=many", "--set", "03_third.x=1"]
    assert runner.main([*wrong, "--finetune-data", "ddti:/not/here"]) == 2
    told = capsys.readouterr().err
    assert "02_second has no parameter 'facter'; did you mean 'factor'?" in told
    assert "'factor' expects int, came 'many'" in told
    assert "/not/here is not there" in told and "no notebook '03_third'" in told
    assert not (project / "reports").exists()


@pytest.mark.parametrize("text", ["-1", "nan", "inf", "soon"])
def test_a_time_limit_that_is_none_is_refused(text):
    with pytest.raises(SystemExit, match="2"):
        runner.main(["--time-limit", text])


def test_numbers_that_yaml_reads_as_text_are_numbers(project):
    resolved = profiles.resolve({}, ["01_first.rate=1e-3", "01.factor=5"], {})
    assert resolved["01_first"] == {"rate": 0.001, "factor": 5}


def test_unknown_profiles_and_sources_are_named(project, capsys):
    assert runner.main(["--profile", "quikc"]) == 2
    assert "expected one of quick" in capsys.readouterr().err
    assert profiles.spec_problem("dtdi:somewhere").endswith("did you mean 'ddti'?")
    assert profiles.spec_problem("phantom:clinic?patients=3") == ""


def test_ctrl_c_leaves_nothing_half_written_and_the_run_goes_on(finished):
    small_study.write(finished, second="import time; time.sleep(600)")
    run = finished / "reports" / "quick"
    child = small_study.child(finished)
    assert small_study.wait_for((run / ".work/02_second.ipynb").exists)
    child.send_signal(signal.SIGINT)
    _, told = child.communicate(timeout=600)
    assert child.returncode == 130 and "Stopped." in told
    assert set(read_json(run / "run.json")["stages"]) == {"01_first"}
    assert read_json(run / "metrics.json") == small_study.NUMBERS


def test_the_index_names_every_source_and_text_from_outside_is_inert_in_it(tmp_path):
    run, data = Run(tmp_path / "reports" / "quick"), "phantom:<script>alert(1)</script>"
    run.tell({"profile": "quick", "parameters": {"01_preprocess": {"finetune_data": data}}})
    facts = {"title": "A <i>hospital</i>", "simulated": True, "crops": 7, "files": 9, "patients": 3}
    run.record("01_preprocess", {"finetune": facts, "sign_reader": {"accuracy": 0.7}})
    page = report.write_index(run).read_text()
    assert "A &lt;i&gt;hospital&lt;/i&gt;" in page and "7 of 9" in page and "simulated" in page
    assert "<script" not in page and "&lt;script&gt;" in page and "default-src 'none'" in page
    assert not report.is_simulated({"parameters": {"": {"finetune_data": "busi:", "pretrain_data": data}}})


def test_metrics_keep_numbers_as_json_and_merge(tmp_path):
    run = Run(tmp_path)
    run.record("05", {"a": {"value": np.float32(0.1), "low": float("nan")}})
    run.record("05", {"a": {"high": np.int64(3)}, "b": [np.bool_(True)]})
    assert json.loads((tmp_path / "metrics.json").read_text()) == {
        "05": {"a": {"value": 0.100000001, "low": None, "high": 3}, "b": [True]}
    }


def test_a_notebook_in_jupyterlab_reads_the_newest_run_and_writes_beside_it(tmp_path, monkeypatch, capsys):
    for name in ("THYROID_RUN", "THYROID_SOURCE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("THYROID_REPORTS", str(tmp_path))
    with pytest.raises(FileNotFoundError, match=r"classifier.*run_all\.sh makes one"):
        open_run("", "classifier")
    for name, age in (("old", 200), ("new", 100), ("unfinished", 0)):
        made = tmp_path / name / ("crops" if name == "unfinished" else "classifier")
        made.mkdir(parents=True)
        os.utime(made, (time.time() - age,) * 2)
        Run(made.parent).record("05", {"a": name, "b": 1})
    run = open_run("", "classifier")
    assert run.dir == tmp_path / "explore" and run.source == tmp_path / "new"
    assert "Markdown" in capsys.readouterr().out, "it says which run was opened"
    run.record("05", {"a": "mine"})
    assert run.metrics == {"05": {"a": "mine", "b": 1}} and Run(run.source).metrics["05"]["a"] == "new"
    monkeypatch.setenv("THYROID_SOURCE", "old")
    assert open_run("", "classifier").source == tmp_path / "old"
    monkeypatch.setenv("THYROID_SOURCE", "unfinished")
    with pytest.raises(FileNotFoundError, match="none in the run unfinished"):
        open_run("", "classifier")
    assert open_run(tmp_path / "old", "classifier").source == tmp_path / "old"


def test_a_table_keeps_intervals_whole_lets_long_names_break_and_escapes(tmp_path, monkeypatch):
    shown = []
    monkeypatch.setattr("IPython.display.display", lambda html: shown.append(html.data))
    rows = pd.DataFrame({
        "what": ["<b>", "optimized_xception-4e7c949559f3", "not done"],
        "AUROC": ["0.81 (0.70 to 0.89)", "-0.02 (-0.03 to -0.01)", "–"],
        "values": ["30,814", "41", "1,028"],
    })  # fmt: skip
    open_run(tmp_path).table(rows, caption="A & B.")
    (html,) = shown
    soup = BeautifulSoup(html, "html.parser")
    assert [cell.get_text() for cell in soup.select("tbody td")] == [str(v) for v in rows.to_numpy().ravel()]
    assert soup.caption.get_text() == "A & B." and not soup.select("b")
    assert [span.get_text() for span in soup.select(".interval")] == ["(0.70 to 0.89)", "(-0.03 to -0.01)"]
    assert "optimized_<wbr/>xception-<wbr/>4e7c949559f3" in str(soup)
    assert [span.get_text() for span in soup.select(".whole:not(.interval)")] == ["not done"]
    assert [cell.get_text() for cell in soup.select("td.number")] == ["30,814", "41", "1,028"]
