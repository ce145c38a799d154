"""A run made fit to be published: what stays, what must not, and that it can be compared with."""

import base64
import io
import re

import matplotlib.pyplot as plt
import nbformat
import numpy as np
import pandas as pd
import pytest
from bs4 import BeautifulSoup
from PIL import Image
from small_images import encoded

from thyroid_lib.common.files import read_json, write_json
from thyroid_lib.evaluation.predictions import prediction_table, read_predictions, write_predictions
from thyroid_lib.study import compare, profiles, reference
from thyroid_lib.study.run import Run

CLASSES = ["2-3", "4a"]
NAMES = [f"{case}_{n}.jpg" for case in (7, 12, 30, 41) for n in (1, 2)]
FIGURES = {"steps": True, "audit": False, "old": None}  # whether it shows patients; None: it does not say
KEY = "THYROID_HASH_KEY", "a key of sixteen and more"
PIXELS = np.random.default_rng(1).integers(0, 3, (60, 90), np.uint8) * 90


def figure(name, patient):
    words = {"alt": f"alt text of {name}", "caption": f"caption of {name}", "name": name, "share": 100}
    words |= {} if patient is None else {"patient": patient}
    picture = base64.b64encode(encoded(PIXELS)).decode()
    return nbformat.v4.new_output("display_data", {"image/png": picture}, metadata={"image/png": words})


def make(place):
    """A run on real data with one figure of each kind, and image names in a table and in a parameter."""
    folder = place / "reports" / "mine"
    spec = "ddti:../../somewhere/private/ddti?labels=groups"
    text = nbformat.v4.new_output("display_data", {"text/html": "<p>12_1.jpg = 30_2.jpg, 112_1.jpg</p>"})
    pages = {
        "01_preprocess": [
            nbformat.v4.new_markdown_cell("# 01 Preprocess\n\nWhich frames?\n\n## Frames"),
            nbformat.v4.new_code_cell(f'finetune_data = "{spec}"'),
            nbformat.v4.new_code_cell(outputs=[figure(f"01_{kind}", FIGURES[kind]) for kind in FIGURES]),
            nbformat.v4.new_code_cell(outputs=[text, nbformat.v4.new_output("stream", text="7_1.jpg\n")]),
        ],
        "05_evaluate": [nbformat.v4.new_markdown_cell("# 05 Evaluate\n\nHow good?\n\n## Found")],
    }
    folder.mkdir(parents=True)
    for name, cells in pages.items():
        nbformat.write(nbformat.v4.new_notebook(cells=cells), folder / f"{name}.ipynb")
    describe(folder, simulated=False)
    index = pd.DataFrame({
        "image": NAMES, "patient": [n.partition("_")[0] for n in NAMES], "dataset": "ddti", "group": NAMES,
        "label": np.repeat(CLASSES, 4), "age": [93, 93, 40, 40, 41, 41, 50, 50], "sex": "F", "tirads": "2",
        "margins": "well defined",
    })  # fmt: skip
    index.to_csv(folder / "data" / "finetune" / "index.csv", index=False)
    logits = np.random.default_rng(0).normal(size=(8, 2))
    points = dict.fromkeys(CLASSES, 0.5)
    table = prediction_table(index, CLASSES, logits, 1.0, points, model="finetuned", set="internal", fold=0)
    write_predictions([table], folder / "predictions.csv")
    value = {"value": 0.8, "low": 0.7, "high": 0.9, "n_images": 8, "n_patients": 4}
    write_json(folder / "metrics.json", {"05_evaluate": {"auroc": value}})
    stage = {"seconds": 3.0, "finished": "2026-01-02T03:04:05+00:00", "outputs": {"figures/x.png": 3}}
    facts = {"run": "mine", "profile": "open_data", "stages": dict.fromkeys(pages, stage)}
    facts["parameters"] = {"01_preprocess": {"finetune_data": spec, "folds": 5}}
    facts["environment"] = {"packages": {"torch": "2.9"}}
    write_json(folder / "run.json", facts)
    return folder


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    """A run and its reference, which no test changes: their folders, and what was said of the reference."""
    place = tmp_path_factory.mktemp("shared")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(*KEY)
        run = make(place)
        return run, *published(run, place)


@pytest.fixture
def run(tmp_path, monkeypatch):
    """A run of its own."""
    monkeypatch.setenv(*KEY)
    return make(tmp_path)


def describe(folder, *, simulated):
    about = {"simulated": simulated, "classes": CLASSES, "names": {}, "title": "DDTI"}
    write_json(folder / "data" / "finetune" / "crops.json", about)


def published(run, tmp_path):
    return reference.Reference(run).write(tmp_path / "reference" / "open_data")


def page(folder, name="01_preprocess"):
    return BeautifulSoup((folder / f"{name}.html").read_text(encoding="utf-8"), "html.parser")


def test_figures_of_patients_stay_at_home_and_a_sentence_says_so(shared):
    _, folder, about = shared
    soup = page(folder)
    assert about["left_out"] == ["01_steps", "01_old"], "a figure that does not say is kept at home too"
    assert [image["alt"] for image in soup.select("main img")] == ["alt text of 01_audit"]
    places = [place.get_text(" ") for place in soup.select("figure.left-out")]
    assert len(places) == 2 and all("real patients" in text for text in places)
    assert "caption of 01_steps" in places[0] and "alt text of 01_steps" in places[0]
    assert "2 figures" in soup.select_one("blockquote").get_text(" ")
    assert all("iVBOR" not in path.read_text() for path in folder.iterdir()), "no PNG is left in any file"
    source = soup.select_one("main img")["src"]  # what stays keeps every pixel
    kept = Image.open(io.BytesIO(base64.b64decode(source.partition("base64,")[2])))
    assert np.array_equal(np.asarray(kept.convert("L")), PIXELS)


def test_of_phantoms_everything_stays(run, tmp_path):
    describe(run, simulated=True)
    folder, about = published(run, tmp_path)
    assert about["left_out"] == [] and len(page(folder).select("main img")) == 3
    assert (folder / "predictions.csv").read_text() == (run / "predictions.csv").read_text()
    assert "12_1.jpg" in page(folder).get_text() and not page(folder).select("figure.left-out")


def test_no_file_names_an_image_a_patient_or_a_place(shared):
    _, folder, _ = shared
    text = "\n".join(path.read_text(encoding="utf-8") for path in folder.iterdir())
    for name in NAMES:
        assert not re.search(rf"(?<!\d){re.escape(name)}", text)
    assert "112_1.jpg" in text, "what only ends like a name of an image is left alone"
    assert "somewhere" not in text and 'finetune_data = "ddti:ddti?labels=groups"' in page(folder).get_text()
    facts = read_json(folder / "run.json")
    assert facts["parameters"]["01_preprocess"]["finetune_data"] == "ddti:ddti?labels=groups"
    assert "outputs" not in facts["stages"]["01_preprocess"]


def test_a_run_agrees_with_its_reference_and_predictions_keep_their_numbers_under_keyed_names(
    shared, tmp_path, monkeypatch, capsys
):
    run, folder, _ = shared
    assert compare.main([str(run), str(folder)]) == 0
    assert "same data, parameters and environment" in capsys.readouterr().out
    ours, theirs = read_predictions(run / "predictions.csv"), read_predictions(folder / "predictions.csv")
    assert sorted(ours["p_4a"]) == sorted(theirs["p_4a"])
    assert ours["p_4a"].tolist() != theirs["p_4a"].tolist(), "the order of the file names would tell them"
    for column in ("image", "patient", "group"):
        assert theirs[column].str.fullmatch("[0-9a-f]{16}").all()
        assert theirs[column].nunique() == ours[column].nunique()
    assert set(theirs.columns) & {"tirads", "margins"} == set() and {"age", "sex"} <= set(theirs.columns)
    assert theirs["age"].max() == 90
    monkeypatch.setenv("THYROID_HASH_KEY", "another key of sixteen")
    other, _ = published(run, tmp_path)
    assert set(read_predictions(other / "predictions.csv")["patient"]).isdisjoint(theirs["patient"])


def test_a_path_or_a_name_that_slipped_through_stops_the_publication(run, tmp_path):
    (run / "STUDY_CARD.md").write_text("weights in /home/somebody/weights.safetensors\n")
    with pytest.raises(reference.NotPublishable, match=r"STUDY_CARD.md.*/home/somebody"):
        published(run, tmp_path)
    assert not list((tmp_path / "reference").iterdir())
    (run / "STUDY_CARD.md").unlink()
    write_json(run / "metrics.json", {"worst": "30_2.jpg"})
    with pytest.raises(reference.NotPublishable, match=r"metrics.json.*30_2.jpg"):
        published(run, tmp_path)


def test_a_folder_that_is_no_finished_run_or_no_reference_is_refused(run, tmp_path, capsys):
    target = tmp_path / "reference" / "open_data"
    target.mkdir(parents=True)
    (target / "mine.txt").write_text("keep me")
    with pytest.raises(reference.NotPublishable, match="something else"):
        reference.Reference(run).write(target)
    assert (target / "mine.txt").exists()
    (run / "05_evaluate.ipynb").unlink()
    with pytest.raises(reference.NotPublishable, match="05_evaluate"):
        reference.Reference(run)
    assert reference.main([str(tmp_path)]) == 2 and "expected a finished run" in capsys.readouterr().err


def test_of_a_path_the_last_part_is_published():
    given = {
        "external_data": "",
        "initial_weights": "/srv/weights/w.safetensors",
        "monitor": "auroc",
        "folds": 5,
    }
    public = given | {"initial_weights": "w.safetensors"}
    assert {name: profiles.public_value(name, value) for name, value in given.items()} == public
    for spec, published in {
        "ddti:../../data/ddti?labels=two": "ddti:ddti?labels=two",
        "dicom:/srv/x?labels=/srv/y/labels.csv&frames=1": "dicom:x?labels=labels.csv&frames=1",
        "phantom:clinic?patients=9": "phantom:clinic?patients=9",
    }.items():
        assert profiles.public_value("finetune_data", spec) == published


def test_a_figure_says_if_it_shows_patients_and_a_picture_does_where_silent(tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr("IPython.display.display", lambda *args, **kwargs: seen.append(kwargs["metadata"]))
    for side, words, patient in (
        (64, {}, True),
        (4, {}, False),  # a matrix is no picture
        (64, {"simulated": True}, False),
        (64, {"simulated": True, "patient": True}, True),  # one real frame is enough
        (64, {"patient": False}, False),
    ):
        fig, (left, right) = plt.subplots(1, 2)
        left.imshow(np.zeros((side, 64)))
        right.imshow(np.zeros((4, 4)))
        Run(tmp_path).show(fig, "01_x", caption="A figure.", alt="What it shows.", **words)
        assert seen.pop()["image/png"]["patient"] is patient, (side, words)
