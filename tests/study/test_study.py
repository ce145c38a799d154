"""The runner: stages are executed once, skipped when unchanged, and never lose a good report."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import pandas as pd
import pytest
from bs4 import BeautifulSoup
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from thyroid_lib.common.files import PROJECT, read_json, write_json
from thyroid_lib.study import profiles, runner
from thyroid_lib.study.run import Run, open_run

FIGURE = """import matplotlib.pyplot as plt
figure, axes = plt.subplots()
axes.plot([1, 2], [1, factor])
run.show(figure, "{number}_line", caption="A line.", alt="A line from 1 to 2.")"""


def notebook(path: Path, number: str, *cells: str, parameters: str = "") -> None:
    """A small notebook with the fixed opening of the study's notebooks."""
    tagged = new_code_cell(f'run_dir: str = ""  # the run\nfactor: int = 2  # any number\n{parameters}')
    tagged.metadata["tags"] = ["parameters"]
    opening = [
        new_markdown_cell(f"# {number} A <b>title</b>\n\nA question. More of it.\n\n## A section"),
        new_code_cell("from thyroid_lib.study.run import open_run"),
        tagged,
        new_code_cell("run = open_run(run_dir)"),
        new_code_cell(FIGURE.format(number=number)),
        new_code_cell(f'run.record("{path.stem}", {{"factor": factor}})'),
    ]
    content = new_notebook(cells=opening + [new_code_cell(cell) for cell in cells])
    content.metadata.kernelspec = {"name": "python3", "display_name": "Python 3", "language": "python"}
    nbformat.write(content, path)


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A study of two small notebooks, the second reading from the first."""
    books = tmp_path / "notebooks"
    (books / "profiles").mkdir(parents=True)
    notebook(
        books / "01_first.ipynb",
        "01",
        parameters='finetune_data: str = ""  # data\nrate: float = 0.1  # rate',
    )
    notebook(books / "02_second.ipynb", "02")
    (books / "profiles" / "quick.yaml").write_text("common: {factor: 3}\n02_second: {factor: 4}\n")
    monkeypatch.setattr(profiles, "NOTEBOOKS", books)
    monkeypatch.setattr(profiles, "PROFILES", books / "profiles")
    stages = (profiles.Stage("01_first"), profiles.Stage("02_second", ("01_first",)))
    monkeypatch.setattr(profiles, "STAGES", stages)
    monkeypatch.setenv("THYROID_REPORTS", str(tmp_path / "reports"))
    monkeypatch.setenv("THYROID_STATUS", os.devnull)
    monkeypatch.setattr(
        runner.provenance, "library_hash", lambda: "the library"
    )  # it may be edited meanwhile
    return tmp_path


def test_a_run_leaves_reports_numbers_and_provenance_and_a_second_one_does_nothing(project, capsys):
    assert runner.main([]) == 0
    run = project / "reports" / "quick"
    names = {"01_first.html", "01_first.ipynb", "02_second.html", "index.html", "run.json", "metrics.json"}
    assert names <= {path.name for path in run.iterdir()}
    assert (run / "figures" / "02_line.png").stat().st_size > 1000
    assert not (run / ".work").exists()
    assert read_json(run / "metrics.json") == {"01_first": {"factor": 3}, "02_second": {"factor": 4}}
    facts = read_json(run / "run.json")
    assert facts["parameters"]["01_first"] == {"factor": 3, "finetune_data": "", "rate": 0.1}
    assert set(facts["stages"]) == {"01_first", "02_second"}
    assert facts["environment"]["packages"]["torch"]
    assert str(run / "index.html") in capsys.readouterr().out

    assert runner.main([]) == 0
    assert capsys.readouterr().out.count("unchanged, skipped") == 2

    assert runner.main(["--set", "02_second.factor=9"]) == 0
    said = capsys.readouterr().out
    assert "01_first         unchanged, skipped" in said and "02_second" in said
    assert read_json(run / "metrics.json")["02_second"]["factor"] == 9

    (
        run / "figures" / "01_line.png"
    ).unlink()  # a lost result is made anew, and all that follows from it stays
    assert runner.main(["--set", "02_second.factor=9"]) == 0
    assert "01_first         unchanged" not in capsys.readouterr().out
    assert (run / "figures" / "01_line.png").exists()


def test_from_and_only_choose_stages(project, capsys):
    assert runner.main(["--only", "02"]) == 2
    assert "02_second reads the files of 01_first" in capsys.readouterr().err
    assert runner.main(["--only", "1"]) == 0
    assert runner.main(["--from", "02"]) == 0
    said = capsys.readouterr().out
    assert said.count("01_first.html") == 1 and said.count("02_second.html") == 1


def test_a_failing_cell_names_itself_and_keeps_the_last_good_report(project, capsys):
    assert runner.main(["--only", "01"]) == 0
    run = project / "reports" / "quick"
    page, numbers = (run / "01_first.html").read_bytes(), (run / "metrics.json").read_bytes()
    notebook(project / "notebooks" / "01_first.ipynb", "01", "ratio = factor / (factor - 3)")
    capsys.readouterr()
    assert runner.main([]) == 1
    told = capsys.readouterr().err
    for words in (
        "01_first failed",
        "notebooks/01_first.ipynb",
        "cell      ",
        "ratio = factor / (factor - 3)",
    ):
        assert words in told
    assert "ZeroDivisionError: division by zero" in told and "the last good report" in told
    partial = run / ".work" / "01_first.ipynb"
    assert str(partial) in told or os.path.relpath(partial) in told
    assert partial.exists()
    assert (run / "01_first.html").read_bytes() == page
    assert (run / "metrics.json").read_bytes() == numbers


def test_a_figure_without_words_fails_the_build(project, capsys):
    bare = "from IPython.display import Image\nImage(run.dir / 'figures' / '01_line.png')"
    notebook(project / "notebooks" / "01_first.ipynb", "01", bare)
    assert runner.main(["--only", "01"]) == 1
    assert "a figure has no alt and no caption" in capsys.readouterr().err


def test_everything_wrong_with_the_parameters_is_said_at_once_and_nothing_is_started(project, capsys):
    wrong = [
        "--set",
        "02_second.facter=1",
        "--set",
        "01_first.factor=many",
        "--finetune-data",
        "ddti:/not/here",
    ]
    assert runner.main([*wrong, "--set", "03_third.x=1"]) == 2
    told = capsys.readouterr().err
    assert "02_second has no parameter 'facter'; did you mean 'factor'?" in told
    assert "'factor' expects int, came 'many'" in told
    assert "/not/here is not there" in told
    assert "no notebook '03_third'" in told
    assert not (project / "reports").exists()


def test_numbers_that_yaml_reads_as_text_are_numbers(project):
    resolved = profiles.resolve({}, ["01_first.rate=1e-3", "01.factor=5"], {})
    assert resolved["01_first"] == {"rate": 0.001, "factor": 5}


def test_unknown_profiles_and_sources_are_named(project, capsys):
    assert runner.main(["--profile", "quikc"]) == 2
    assert "expected one of quick" in capsys.readouterr().err
    assert profiles.spec_problem("dtdi:somewhere").endswith("did you mean 'ddti'?")
    assert profiles.spec_problem("phantom:clinic?patients=3") == ""


def test_a_second_run_into_the_same_folder_stops(project, capsys):
    with runner._locked(project / "reports" / "quick"):
        assert runner.main([]) == 2
    assert "another run is writing" in capsys.readouterr().err


def test_ctrl_c_leaves_nothing_half_written_and_the_run_goes_on(project):
    notebook(project / "notebooks" / "02_second.ipynb", "02", "import time; time.sleep(600)")
    code = (
        "import pathlib, signal, sys; from thyroid_lib.study import profiles, runner\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # a background job is born deaf to it
        f"books = pathlib.Path({str(project / 'notebooks')!r})\n"
        "profiles.NOTEBOOKS, profiles.PROFILES = books, books / 'profiles'\n"
        "profiles.STAGES = (profiles.Stage('01_first'), profiles.Stage('02_second', ('01_first',)))\n"
        "sys.exit(runner.main([]))"
    )
    child = subprocess.Popen([sys.executable, "-c", code], cwd=PROJECT, stderr=subprocess.PIPE, text=True)
    run = project / "reports" / "quick"
    for _ in range(6000):
        if (
            "01_first" in read_json(run / "run.json").get("stages", {})
            and (run / ".work/02_second.ipynb").exists()
        ):
            break
        time.sleep(0.1)
    child.send_signal(signal.SIGINT)
    _, told = child.communicate(timeout=600)
    assert child.returncode == 130 and "Stopped." in told
    assert not (run / "02_second.html").exists() and set(read_json(run / "run.json")["stages"]) == {
        "01_first"
    }
    assert read_json(run / "metrics.json") == {"01_first": {"factor": 3}}


def test_text_from_outside_is_inert_in_the_index(project):
    assert (
        runner.main(["--set", "01_first.finetune_data=phantom:<script>alert(1)</script>", "--only", "01"])
        == 0
    )
    page = (project / "reports" / "quick" / "index.html").read_text()
    assert "<script" not in page and "&lt;script&gt;" in page
    assert "default-src 'none'" in page and "simulated" in page


def test_metrics_keep_numbers_as_json_and_merge(tmp_path):
    import numpy as np

    run = Run(tmp_path)
    run.record("05", {"a": {"value": np.float32(0.1), "low": float("nan")}})
    run.record("05", {"a": {"high": np.int64(3)}, "b": [np.bool_(True)]})
    assert json.loads((tmp_path / "metrics.json").read_text()) == {
        "05": {"a": {"value": 0.100000001, "low": None, "high": 3}, "b": [True]}
    }


def test_a_damaged_json_file_is_named(tmp_path):
    write_json(tmp_path / "a.json", {})
    (tmp_path / "a.json").write_text('{"half": ')
    with pytest.raises(ValueError, match=r"a\.json: expected JSON"):
        read_json(tmp_path / "a.json")


def test_the_index_names_every_source_and_how_many_frames_were_used(project):
    assert runner.main(["--only", "01"]) == 0
    run = Run(project / "reports" / "quick")
    facts = {"title": "A <i>hospital</i>", "simulated": True, "crops": 7, "files": 9, "patients": 3}
    run.record("01_preprocess", {"finetune": facts, "sign_reader": {"accuracy": 0.7}})
    from thyroid_lib.study.report import write_index

    page = write_index(run).read_text()
    assert "A &lt;i&gt;hospital&lt;/i&gt;" in page and "7 of 9" in page


def test_a_table_keeps_intervals_whole_lets_long_names_break_and_escapes(tmp_path, monkeypatch):
    shown = []
    monkeypatch.setattr("IPython.display.display", lambda html: shown.append(html.data))
    rows = pd.DataFrame(
        {
            "what": ["<b>", "optimized_xception-4e7c949559f3", "not done"],
            "AUROC": ["0.81 (0.70 to 0.89)", "-0.02 (-0.03 to -0.01)", "–"],
            "values": ["30,814", "41", "1,028"],
        }
    )
    open_run(tmp_path).table(rows, caption="A & B.")
    (html,) = shown
    soup = BeautifulSoup(html, "html.parser")
    assert [cell.get_text() for cell in soup.select("tbody td")] == [str(v) for v in rows.to_numpy().ravel()]
    assert soup.caption.get_text() == "A & B." and not soup.select("b")
    assert [span.get_text() for span in soup.select(".interval")] == ["(0.70 to 0.89)", "(-0.03 to -0.01)"]
    assert "optimized_<wbr/>xception-<wbr/>4e7c949559f3" in str(soup)
    assert [span.get_text() for span in soup.select(".whole:not(.interval)")] == ["not done"]
    assert [cell.get_text() for cell in soup.select("td.number")] == ["30,814", "41", "1,028"]
