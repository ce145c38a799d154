"""The reports of a smoke run as a browser and a reader meet them. Run by ./run_tests.sh after that run."""

import json
import os
import re
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pandas as pd
import pytest
from bs4 import BeautifulSoup

from thyroid_lib.common.files import PROJECT, read_json
from thyroid_lib.study import claims, profiles
from thyroid_lib.study.compare import leaves

RUN = Path(os.environ.get("THYROID_REPORTS", PROJECT / "reports")) / "smoke"
NO_RUN = "no smoke run: ./run_tests.sh makes one"
pytestmark = pytest.mark.skipif(not (RUN / "index.html").exists(), reason=NO_RUN)
NAMES = ["index", *(stage.name for stage in profiles.STAGES if stage.default)]


def page(name: str) -> BeautifulSoup:
    return BeautifulSoup((RUN / f"{name}.html").read_text(encoding="utf-8"), "html.parser")


@pytest.mark.parametrize("name", NAMES)
def test_every_link_of_a_report_leads_somewhere(name):
    soup = page(name)
    anchors = {element["id"] for element in soup.select("[id]")}
    for link in soup.select("a[href]"):
        address = urlsplit(link["href"])
        if address.scheme in ("http", "https"):
            assert link.get_text(strip=True), "a link to the web needs words: a reader follows it"
        elif address.path:
            assert (RUN / unquote(address.path)).exists(), link["href"]
        else:
            assert unquote(address.fragment) in anchors, link["href"]


@pytest.mark.parametrize("name", NAMES)
def test_figures_have_an_alternative_text_and_a_caption_and_contents_match_their_sections(name):
    soup = page(name)
    images = soup.select("main img")
    assert all(len(image.get("alt", "").strip()) > 15 for image in images)
    assert all(figure.figcaption.get_text(strip=True) for figure in soup.select("figure"))
    if name != "index":
        assert images, "a report without a figure"
        entries = [entry.get_text(strip=True) for entry in soup.select("nav.contents li.h2")]
        assert entries == [heading.get_text(strip=True) for heading in soup.select("main h2")]
        assert len(entries) >= 2


@pytest.mark.parametrize("name", NAMES)
def test_a_report_loads_nothing_runs_nothing_and_holds_no_error_and_no_path_of_the_machine(name):
    soup = page(name)
    assert not soup.select("script, iframe, object, embed, link[rel=stylesheet]")
    assert all(image["src"].startswith("data:") for image in soup.select("[src]"))
    assert "default-src 'none'" in soup.select_one("meta[http-equiv=Content-Security-Policy]")["content"]
    styles = " ".join(style.get_text() for style in soup.select("style"))
    assert not re.search(r"@import|url\(\s*['\"]?(https?:)?//", styles)
    text, places = soup.get_text(" "), [str(PROJECT), str(RUN.parent.parent)]
    for sign in ("Traceback (most recent call last)", "Warning:", "<Figure size", *places):
        assert sign not in text, sign
    assert "simulated" in text.lower() or name == "02_architecture"  # a network has no data


def test_the_stored_notebooks_and_the_smoke_profile_give_the_same_numbers():
    stored = Path(os.environ.get("THYROID_STORED_RUN", "."))
    if not (stored / "metrics.json").exists():
        pytest.skip("the notebooks were not run as stored: ./run_tests.sh does")
    theirs = read_json(stored / "metrics.json")
    wanted = {name: theirs[name] for name in NAMES[1:]}  # nbval also runs notebooks that wait to be asked for
    assert json.dumps(read_json(RUN / "metrics.json"), sort_keys=True) == json.dumps(wanted, sort_keys=True)
    assert (stored / "predictions.csv").read_bytes() == (RUN / "predictions.csv").read_bytes()


def test_every_number_that_the_readme_gives_of_the_quick_profile_is_one_that_a_run_computes():
    metrics = dict(leaves(read_json(RUN / "metrics.json")))
    (block,) = (block for block in claims.source()["results"] if block["profile"] == "quick")
    assert [row["key"] for row in block["rows"] if row["key"] not in metrics] == []


def test_provenance_is_complete_and_predictions_name_no_file_of_the_machine():
    images = pd.read_csv(RUN / "predictions.csv", dtype=str)["image"]
    assert len(images) and not images.str.startswith(("/", "..")).any()
    facts = read_json(RUN / "run.json")
    assert facts["environment"]["lock_sha256"] and facts["environment"]["library_sha256"]
    assert set(NAMES[1:]) == set(facts["stages"])
    assert all(stage["seconds"] > 0 and stage["outputs"] for stage in facts["stages"].values())
