"""Every claim has its code, its test and its place in a notebook; every number in the README is a reference's."""

import ast
import pkgutil
import re
import shutil
import xml.etree.ElementTree as ElementTree
from functools import cache

import nbformat
import pytest

from thyroid_lib.common.files import PROJECT, write_json
from thyroid_lib.study import claims

CONTENT = claims.source()
READMES = list(claims.READMES.values())


@cache
def headings(notebook: str) -> set[str]:
    cells = nbformat.read(PROJECT / "notebooks" / f"{notebook}.ipynb", as_version=4).cells
    text = "\n".join(cell.source for cell in cells if cell.cell_type == "markdown")
    return {match[1].strip() for match in re.finditer(r"^#{2,3} (.+)$", text, re.MULTILINE)}


@cache
def functions(file: str) -> set[str]:
    tree = ast.parse((PROJECT / "tests" / file).read_text(encoding="utf-8"))
    return {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}


@pytest.mark.parametrize("number", range(15))
def test_each_claim_of_the_invention_has_code_a_test_and_a_place_that_exist(number):
    claim = CONTENT["claims"][number]
    assert claim["id"] == f"C{number + 1}" and len(CONTENT["claims"]) == 15
    assert claim["code"] and claim["tests"] and claim["says"] and claim["paragraphs"]
    assert all(pkgutil.resolve_name(name) is not None for name in claim["code"])
    for test in claim["tests"]:
        file, _, function = test.partition("::")
        assert function in functions(file), test
    assert claim["section"] in headings(claim["notebook"]), claim["section"]


@pytest.mark.parametrize("block", CONTENT["results"], ids=lambda block: block["profile"])
def test_each_number_of_the_readme_has_a_key_a_section_and_both_languages(block):
    keys = [row["key"] for row in block["rows"]]
    assert len(set(keys)) == len(keys) and block["en"] and block["zh"]
    for row in block["rows"]:
        assert row["en"] and row["zh"] and row["section"] in headings(row["notebook"]), row
    metrics = claims.reference_of(block["profile"])
    if metrics is not None:
        assert [key for key in keys if key not in metrics] == []
    assert (PROJECT / "notebooks" / "profiles" / f"{block['profile']}.yaml").is_file()


@pytest.mark.parametrize("name", READMES)
def test_no_result_is_typed_into_a_readme_and_its_links_lead_somewhere(name):
    text = (PROJECT / name).read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", text):
        assert target.startswith(("https://", "../../actions/")) or (PROJECT / target).exists(), target
    before, _, rest = text.partition(claims.BEGIN)
    outside = before + rest.partition(claims.END)[2]
    outside = re.sub(r"```.*?```|`[^`]*`|\(https?:[^)]*\)", "", outside, flags=re.DOTALL)
    found = re.findall(r"(?<![\d.])[01]\.\d+|\d+(?:\.\d+)? ?%|AUROC[^|.]{0,20}\d", outside)
    assert [number for number in found if not number.startswith("3.1")] == []


def test_both_readmes_are_up_to_date_and_have_the_same_parts_commands_and_numbers():
    assert claims.write(check=True) == [], "run: python -m thyroid_lib claims"
    english, chinese = ((PROJECT / name).read_text(encoding="utf-8") for name in READMES)
    for pattern in (r"^## ", r"^\| ", r"^!\[", r"^\./|^python -m"):
        count = [len(re.findall(pattern, text, re.MULTILINE)) for text in (english, chinese)]
        assert count[0] == count[1], pattern
    inside = [text.partition(claims.BEGIN)[2].partition(claims.END)[0] for text in (english, chinese)]
    numbers = [re.findall(r"-?\d\.\d{3}", text) for text in inside]
    assert numbers[0] == numbers[1]


def metric(value):
    return {"value": value, "low": value - 0.0521, "high": value + 0.0519, "n_images": 276, "n_patients": 238}


@pytest.fixture
def project(tmp_path):
    """A checkout with the documents, and with references where a test writes them."""
    for name in [claims.SOURCE, *READMES]:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(PROJECT / name, tmp_path / name)
    return tmp_path


def rows_of(profile):
    return next(block["rows"] for block in CONTENT["results"] if block["profile"] == profile)


def publish(project, profile, **changes):
    """A reference with a metric for each row of the README; ``changes``: key -> another metric, None for none."""
    metrics: dict = {}
    for place, row in enumerate(rows_of(profile)):
        notebook, _, key = row["key"].partition("/")
        if value := changes.get(row["key"], metric(0.6 + 0.041 * place)):
            metrics.setdefault(notebook, {})[key] = value
    write_json(project / "reports" / "reference" / profile / "metrics.json", metrics)


def test_every_number_of_a_reference_stands_with_its_interval_and_without_one_the_readme_says_so(project):
    for language in claims.READMES:
        text = claims.results(language, project)
        assert not re.search(r"\d\.\d{3}", text) and "./run_all.sh" in text and "open_data" in text
    assert claims.drawing(project) is None
    claims.write(project)
    assert claims.write(project, check=True) == []
    for profile in ("quick", "open_data"):
        publish(project, profile)
    drawing_fits(claims.drawing(project))
    assert set(claims.write(project)) >= {*READMES, claims.TABLE, claims.DRAWING}
    assert claims.write(project, check=True) == []
    for name in READMES:
        text = (project / name).read_text(encoding="utf-8")
        assert "0.600 (0.548 to 0.652) | 276 / 238" in text and f"]({claims.DRAWING})" in text
        assert "reports/reference/open_data" in text
    table = (project / claims.TABLE).read_text(encoding="utf-8")
    for block in CONTENT["results"]:
        assert all(f"`{row['key']}`" in table for row in block["rows"])


def test_a_changed_reference_a_typed_number_and_missing_markers_are_noticed(project, capsys, monkeypatch):
    publish(project, "quick")
    claims.write(project)
    publish(project, "quick", **{rows_of("quick")[0]["key"]: metric(0.777)})
    assert claims.DRAWING in claims.write(project, check=True)
    claims.write(project)
    path = project / "README.md"
    path.write_text(path.read_text(encoding="utf-8").replace("0.777", "0.877"), encoding="utf-8")
    assert claims.write(project, check=True) == ["README.md"]
    monkeypatch.setattr(claims.write, "__defaults__", (project, False))
    assert claims.main(["--check"]) == 1 and "README.md: out of date" in capsys.readouterr().out
    assert claims.main([]) == 0 and claims.main(["--check"]) == 0
    path.write_text("# Nothing here\n")
    assert claims.main([]) == 2 and "README.md: expected" in capsys.readouterr().err


def test_what_a_reference_did_not_compute_is_said(project):
    first, second, *_ = rows_of("open_data")
    few = {"value": None, "low": None, "high": None, "n_images": 3, "n_patients": 2}
    few["reason"] = "too few: 2 patients"
    publish(project, "open_data", **{first["key"]: few, second["key"]: None})
    text = claims.results("en", project)
    assert f"| {first['en']} | too few: 2 patients | – |" in text
    assert f"| {second['en']} | not computed in this reference | – |" in text


def drawing_fits(text):
    """The drawing is valid, says its numbers, and fits dark pages."""
    root, space = ElementTree.fromstring(text), {"svg": "http://www.w3.org/2000/svg"}
    drawn = sum(row.get("drawn", False) for row in rows_of("quick"))
    assert drawn > 2 and root.find("svg:desc", space).text.count("0.") >= 3 * drawn
    assert "simulated" in text and "prefers-color-scheme:dark" in text
    assert len(root.findall("svg:circle", space)) == drawn
    for line in root.findall("svg:line", space):
        assert 0 <= float(line.get("x1")) <= float(line.get("x2")) <= 900
