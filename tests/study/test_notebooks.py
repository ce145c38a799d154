"""The notebooks as they are stored: clean, small, tagged, and able to fail."""

import ast
import json

import nbformat
import pytest
import yaml

from thyroid_lib.study import profiles

BOOKS = sorted(profiles.NOTEBOOKS.glob("*.ipynb"))
MARK = "# NBVAL_CHECK_OUTPUT"
every_notebook = pytest.mark.parametrize("path", BOOKS, ids=lambda path: path.stem)


def cells(path, kind):
    return [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == kind]


@every_notebook
def test_nothing_of_a_run_or_a_machine_is_stored_but_outputs_that_nbval_compares(path):
    for cell in cells(path, "code"):
        checked = cell.source.startswith(MARK)  # nbval takes one that was never run for a mistake
        assert bool(cell.outputs) == checked == (cell.execution_count is not None), cell.source[:60]
        assert all(output.output_type in ("stream", "execute_result") for output in cell.outputs)
    content = json.loads(path.read_text())
    assert content["metadata"]["kernelspec"]["name"] == "python3"
    assert "papermill" not in content["metadata"] and "widgets" not in content["metadata"]
    assert len({cell["id"] for cell in content["cells"]}) == len(content["cells"])


@every_notebook
def test_logic_lives_in_the_library_and_something_in_a_notebook_can_fail(path):
    found = 0
    for cell in cells(path, "code"):
        tree = ast.parse(cell.source)
        nodes = list(ast.walk(tree))
        found += cell.source.startswith(MARK) + any(isinstance(node, ast.Assert) for node in nodes)
        assert not any(isinstance(node, ast.ClassDef | ast.FunctionDef) for node in nodes), cell.source
        imports = all(isinstance(node, ast.Import | ast.ImportFrom) for node in tree.body)
        long = imports or "parameters" in cell.metadata.get("tags", [])
        assert long or len(cell.source.splitlines()) <= 16, cell.source
    assert found


@every_notebook
def test_a_notebook_opens_with_its_title_and_one_paragraph_and_ends_with_what_was_found(path):
    texts = [cell.source for cell in cells(path, "markdown")]
    assert texts[0].startswith(f"# {path.stem[:2]}") and len(texts[0].split("\n\n")[1]) > 100
    assert any(text.startswith("## What was found") for text in texts)


@every_notebook
def test_parameters_are_typed_and_each_says_what_it_is(path):
    assert profiles.declared(path.stem)
    cell = next(cell for cell in cells(path, "code") if "parameters" in cell.metadata.get("tags", []))
    lines = cell.source.splitlines()
    assert lines[0].startswith('run_dir: str = ""')
    assert all("#" in lines[parameter.end_lineno - 1] for parameter in ast.parse(cell.source).body)


@pytest.mark.parametrize("path", sorted(profiles.PROFILES.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_profile_fits_the_notebooks_and_says_what_it_is_for(path):
    profile = profiles.load(path.stem)
    data = {"pretrain_data": "", "finetune_data": ""} if path.stem.startswith("open_data") else {}
    profiles.resolve(profile, [], data)
    opening = path.read_text().splitlines()[0]
    assert opening.startswith(f"# {path.stem}:") and len(opening) > 40


def test_the_stored_defaults_are_the_smoke_profile_and_the_runner_knows_every_notebook():
    assert not yaml.safe_load((profiles.PROFILES / "smoke.yaml").read_text())
    assert [path.stem for path in BOOKS] == [stage.name for stage in profiles.STAGES]
