"""Security: nothing unpickled, evaluated or handed to a shell; texts of others are inert; files, licences, audit."""

import ast
import functools
import http.server
import json
import os
import re
import shutil
import stat
import subprocess
import sys
import threading
from pathlib import Path

import licences
import nbformat
import pytest
import small_classifier as small
import yaml
from bs4 import BeautifulSoup
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output
from PIL import Image

from thyroid_lib.common import files
from thyroid_lib.common.files import PROJECT, write_json, write_text
from thyroid_lib.deploy import command
from thyroid_lib.study import checklists, report, runner
from thyroid_lib.study.run import Run

ATTACKS, DANGERS = (
    yaml.safe_load(Path(__file__).with_name(f"{name}.yaml").read_text(encoding="utf-8"))
    for name in ("attacks", "dangers")
)
ATTACK = " ".join(ATTACKS)
DOT = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAAAAAA6fptVAAAACklEQVR4nGNgAAAAAgABSK+kcQAAAABJRU5ErkJggg=="


def active(html: str) -> list[str]:
    """Everything in a page that a browser would run, load from elsewhere or submit; [] for a sound page."""
    page = BeautifulSoup(html, "html.parser")
    running = "script, iframe, frame, object, embed, form, base, video, audio, applet"
    other = "meta[http-equiv]:not([http-equiv=Content-Security-Policy])"
    found = [str(element)[:80] for element in page.select(f"{running}, {other}")]
    for element in page.find_all(True):
        for name, value in element.attrs.items():
            address = re.sub(r"\s", "", str(value)).lower()
            runs = name.startswith("on") or name in ("srcdoc", "srcset", "formaction")
            loads = name in ("src", "poster", "data") and not address.startswith("data:image/")
            scheme = re.match(r"(?!https?:|mailto:)[a-z][a-z0-9+.-]*:", address)
            inline = address.startswith("data:") and element.name in ("image", "link")
            if runs or loads or (name in ("href", "xlink:href") and scheme and not inline):
                found.append(f"{element.name} {name}={value}")
    policies = [m["content"] for m in page.select("meta[http-equiv=Content-Security-Policy]")]
    rules = ("default-src 'none'", "base-uri 'none'", "form-action 'none'")
    if len(policies) != 1 or not all(rule in policies[0] for rule in rules) or "script-src" in policies[0]:
        found.append(f"content policy {policies}")
    if "1337" in page.get_text():
        found.append("a template inside a text was evaluated")
    return found


@functools.cache
def sources() -> list[tuple[str, ast.Module]]:
    """Every Python source that a user runs: library, benchmarks, and the code of the notebooks."""
    paths = sorted(path for name in ("thyroid_lib", "benchmarks") for path in (PROJECT / name).rglob("*.py"))
    texts = {path.relative_to(PROJECT).as_posix(): path.read_text(encoding="utf-8") for path in paths}
    for path in sorted((PROJECT / "notebooks").glob("*.ipynb")):
        cells = nbformat.read(path, as_version=4).cells
        code = "\n".join(cell.source for cell in cells if cell.cell_type == "code")
        texts[f"notebooks/{path.name}"] = re.sub(r"(?m)^\s*[%!].*$", "", code)
    return [(name, ast.parse(text)) for name, text in texts.items()]


def dotted(node) -> str:
    if isinstance(node, ast.Attribute):
        return f"{dotted(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else ""


def dangers(tree: ast.Module) -> list[str]:
    """Lines of a source that could run what somebody else wrote."""
    found = []
    for node in ast.walk(tree):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        found += [
            f"{node.lineno}: import {name}" for name in names if name.split(".")[0] in DANGERS["modules"]
        ]
        if not isinstance(node, ast.Call):
            continue
        name, given = dotted(node.func), {keyword.arg: keyword.value for keyword in node.keywords}
        if name == "torch.load" and getattr(given.get("weights_only"), "value", None) is True:
            continue  # reads tensors and plain containers, and nothing that could be called
        if re.fullmatch("|".join(DANGERS["calls"]), name):
            found.append(f"{node.lineno}: {name}()")
        safe_values = {"shell": False, "allow_pickle": False, "trust_remote_code": False, "verify": True}
        for option, safe in safe_values.items():
            if option in given and getattr(given[option], "value", None) is not safe:
                found.append(f"{node.lineno}: {name}({option}=...)")
    return found


@pytest.mark.parametrize("name, tree", sources(), ids=[name for name, _ in sources()])
def test_no_source_can_run_what_somebody_else_wrote(name, tree):
    assert dangers(tree) == []


def test_the_scan_finds_each_danger():
    found = [int(line.partition(":")[0]) for line in dangers(ast.parse(DANGERS["found"]))]
    assert found == [*range(1, 11)]
    assert dangers(ast.parse(DANGERS["sound"])) == []


def test_templates_escape_and_let_through_nothing_but_our_own_style():
    for path in (PROJECT / "thyroid_lib" / "templates").rglob("*.j2"):
        for passed in re.findall(r"\{\{[^}]*\|\s*safe\b", path.read_text(encoding="utf-8")):
            assert passed == "{{ css|safe", path
    markdown = {"thyroid_lib/study/checklists.py"}  # writes Markdown, with "<" escaped by a filter of its own
    made = 0
    for name, tree in sources():
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and dotted(node.func).endswith("Environment"):
                given = {
                    keyword.arg: getattr(keyword.value, "value", keyword.value) for keyword in node.keywords
                }
                assert given.get("autoescape", False) is not False or name in markdown
                made += 1
    assert made


@pytest.mark.parametrize(
    "text", ["!!python/object/apply:os.system ['touch here']", "[!!python/name:os.system ]"]
)
def test_a_profile_cannot_run_code_and_is_named(tmp_path, monkeypatch, sees, capsys, text):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("THYROID_CALLER", str(tmp_path))
    (tmp_path / "p.yaml").write_text(f"common:\n  epochs: {text}\n")
    assert runner.main(["--profile", "p.yaml"]) == 2
    said = capsys.readouterr().err
    assert "Nothing was started" in said and sees in said and "Traceback" not in said
    assert not (tmp_path / "here").exists()


@pytest.mark.parametrize("name", ["../escape", "/tmp/escape", "a/b", "..", ".", "x y", "reference", "a\0b"])
def test_a_run_cannot_be_written_outside_the_reports(tmp_path, monkeypatch, capsys, name):
    monkeypatch.setenv("THYROID_REPORTS", str(tmp_path / "reports"))
    assert runner.main(["--profile", "smoke", "--run", name]) == 2
    assert "expected a plain folder name" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def hostile_notebook():
    """A notebook as it is after a run on data whose every text was written by an attacker."""
    own = "P. [paper](https://doi.org/10.1/x), [there](#a)\n\n| a |\n|---|\n| 1 |"
    cells = [new_markdown_cell(f"# 01 Title\n\n{own}\n\nA paragraph. {ATTACK}\n\n## A section {ATTACK}")]
    table = f"<div class='table'><table><caption>{ATTACK}</caption><td>{ATTACK}</td></table></div>"
    marked = f"**finetune** ({ATTACK}): 7 crops\n\n* {ATTACK}\n\n| a |\n|---|\n| {ATTACK} |"
    shown = [{"text/markdown": marked}, {"text/html": table}, {"text/plain": ATTACK}]
    shown += [{"image/svg+xml": f"<svg onload='alert(1)'>{ATTACK}</svg>"}]
    shown += [{"application/javascript": "alert(1)", "text/plain": "x"}]
    shown += [{"text/latex": "$\\href{javascript:alert(1)}{x}$"}]
    words = {"image/png": {"alt": f'a"{ATTACK}', "caption": ATTACK, "share": 50}}
    outputs = [new_output("display_data", data) for data in shown]
    outputs += [new_output("display_data", {"image/png": DOT}, metadata=words)]
    outputs += [new_output("stream", name="stdout", text=ATTACK)]
    cells += [new_code_cell(f"print({ATTACK!r})", outputs=[output]) for output in outputs]
    return new_notebook(cells=cells)


def test_a_report_is_inert_whatever_the_texts_in_it_say():
    html = report.to_html(hostile_notebook(), "01_preprocess")
    assert active(html) == []
    assert "7 crops" in html and "alert(1)" in html  # shown as words, where they can do nothing
    page = BeautifulSoup(html, "html.parser")
    assert len(page.select("main figure img")) == 1
    assert {a["href"] for a in page.select("main p a[href]")} == {"https://doi.org/10.1/x", "#a"}
    assert page.select_one("main td").text == "1" and page.select_one("main img")["src"].startswith("data:")
    assert page.select_one("head style") and page.select_one("head link[rel=icon]")["href"] == "data:,"


def test_the_index_is_inert_whatever_the_run_says(tmp_path):
    run = Run(tmp_path / "reports" / "quick")
    metric = {"value": 0.5, "low": 0.4, "high": 0.6, "n_images": ATTACK, "n_patients": 3}
    stage = {"fingerprint": ATTACK, "finished": "2026-01-01T00:00:00+00:00", "seconds": 3, "outputs": {}}
    facts = {"run": ATTACK, "profile": ATTACK, "stages": {"01_preprocess": stage}}
    facts["environment"] = {"processor": ATTACK, "packages": {ATTACK: ATTACK}}
    facts["parameters"] = {"01_preprocess": {"finetune_data": f"phantom:{ATTACK}", ATTACK: [ATTACK]}}
    write_json(run.path("run.json"), facts)
    run.record("05_evaluate", {"headline": {"a": {"label": ATTACK, "metric": metric, "simulated": True}}})
    about = {"title": ATTACK, "simulated": False, "crops": 1, "files": 2, "patients": 1}
    run.record("01_preprocess", {"finetune": about})
    write_text(run.dir / "01_preprocess.html", report.to_html(hostile_notebook(), "01_preprocess"))
    write_json(run.dir / "classifier" / "classifier.json", {"id": ATTACK})
    for card in checklists.write_cards(run, {"a": (ATTACK, ATTACK)}):  # Markdown for reviewers
        assert "<" not in card.read_text(encoding="utf-8")
    assert "&lt;script>" in (run.dir / "STUDY_CARD.md").read_text(encoding="utf-8")
    for page in (report.write_index(run), run.dir.parent / "index.html"):
        html = page.read_text(encoding="utf-8")
        assert active(html) == [] and "alert(1)" in html


def test_pages_of_classify_are_inert_whatever_the_classifier_and_the_files_say(tmp_path, capsys):
    names = {key: (ATTACK, ATTACK) for key in small.CLASSES}
    training = {"simulated": False, "title": ATTACK, "images": 60, "patients": 60}
    folder = small.make(tmp_path / "classifier", members=1, names=names, training=training)
    images = tmp_path / "images"
    images.mkdir()
    for number, attack in enumerate(ATTACKS[:6]):
        Image.fromarray(small.sector_frame(number)).save(images / (attack.replace("/", "") + ".png"), "PNG")
    (images / "<script>alert(9).png").write_bytes(b"<script>alert(9)</script>")
    options = ["--classifier", str(folder), "--backend", "torch", "--out", str(tmp_path / "o")]
    assert command.main([str(images), *options]) == 1
    pages = [path.read_text(encoding="utf-8") for path in (tmp_path / "o").glob("*.html")]
    assert len(pages) == 8 and all(active(html) == [] for html in pages)
    for path in [folder, *folder.iterdir()]:  # nobody else may run or change a result
        assert stat.S_IMODE(path.stat().st_mode) == (files.FOLDER_MODE if path.is_dir() else files.FILE_MODE)
    card = (folder / "MODEL_CARD.md").read_text(encoding="utf-8")
    assert "<script" not in card and "<img" not in card and not re.search(r"(?<!\\)\]\(javascript", card)


WRITE = """
import os, sys
from pathlib import Path
os.umask(int(sys.argv[2], 8))
from thyroid_lib.common import files
files.write_json(Path(sys.argv[1]) / "run" / "metrics.json", {})
print(oct(files.FILE_MODE))
"""


@pytest.mark.parametrize("umask, expected", [("022", 0o644), ("077", 0o600), ("000", 0o666), ("027", 0o640)])
def test_files_get_the_permissions_that_the_users_umask_gives(tmp_path, umask, expected):
    done = subprocess.run([sys.executable, "-c", WRITE, str(tmp_path), umask], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert stat.S_IMODE((tmp_path / "run" / "metrics.json").stat().st_mode) == expected
    assert done.stdout.strip() == oct(expected)


def test_text_with_escape_sequences_reaches_no_terminal_raw(classifier_folder, tmp_path, capsys):
    folder = shutil.copytree(classifier_folder, tmp_path / "classifier")
    definition = json.loads((folder / "classifier.json").read_text(encoding="utf-8"))
    (folder / "classifier.json").write_text(json.dumps(definition | {"id": "\x1b]0;owned\x07"}))
    assert command.main([str(tmp_path / "\x1b[2Jx.png"), "--classifier", str(folder)]) == 2
    said = "".join(capsys.readouterr())
    assert "\x1b" not in said and "\x07" not in said


def test_every_dependency_has_a_licence_that_we_may_use_and_is_on_the_page():
    names = licences.locked()
    assert [why for name in names if (why := licences.refused(name, licences.licence(name)))] == []
    rows = [line.split(" | ") for line in licences.PAGE.read_text(encoding="utf-8").splitlines()]
    listed = {name for row in rows if len(row) == 2 for name in row[1].rstrip(" |").split(", ")}
    assert set(names) <= listed, "the lock has changed: python tests/licences.py"
    for text in ("", "AGPL-3.0", "GPL-3.0", "MIT AND SSPL-1.0"):
        assert licences.refused("x", text).startswith("x: ")


def audit(database: str, **environment):
    environment = os.environ | {"THYROID_PYTHON": sys.executable, "AUDIT_DATABASE": database} | environment
    command = PROJECT / ".ci/audit"
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)


def test_the_audit_says_when_it_cannot_be_made(sees):
    assert ".ci/audit\n" in (PROJECT / ".ci" / "run").read_text(encoding="utf-8")
    done = audit("http://127.0.0.1:9")
    assert done.returncode == 0 and sees in done.stderr


@pytest.mark.parametrize("finding", [0, 1])
def test_the_audit_fails_on_a_finding_where_the_database_answers(tmp_path, finding):
    version = re.search(r"UV_VERSION=(\S+)", (PROJECT / ".ci" / "bootstrap.sh").read_text())[1]
    audited = f'*"--requirement requirements.lock"*) exit {finding}'
    cases = f"--version) echo uv {version};; *--version) ;; {audited};; *) exit 9;;"
    (tmp_path / "uv").write_text(f'#!/bin/sh\ncase "$*" in {cases} esac\n')
    (tmp_path / "uv").chmod(0o755)
    server = http.server.HTTPServer(("127.0.0.1", 0), http.server.BaseHTTPRequestHandler)  # answers 501
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        address = f"http://127.0.0.1:{server.server_port}"
        done = audit(address, PATH=f"{tmp_path}{os.pathsep}{os.environ['PATH']}", no_proxy="127.0.0.1")
    finally:
        server.shutdown()
        server.server_close()
    assert done.returncode == finding, done.stderr


def test_no_tracked_file_is_an_archive_a_pickle_or_a_key():
    done = subprocess.run(["git", "ls-files"], cwd=PROJECT, capture_output=True, text=True)
    if done.returncode:
        pytest.skip("no git here")
    endings = {Path(name).suffix for name in done.stdout.splitlines()}
    assert not endings & set(".zip .tar .gz .pkl .pt .pth .pem .key .npy .dcm .env".split())
    assert "reports/quick" not in done.stdout
