"""The clinic's path of docs/clinic.md, walked on two phantom hospitals exported as DICOM."""

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import hospital
import numpy as np
import pandas as pd
import pytest

from thyroid_lib import LESION_TYPES, datasets, regions
from thyroid_lib.common.files import PROJECT, read_json
from thyroid_lib.data import check_data
from thyroid_lib.deploy import command as classify_command
from thyroid_lib.study import reference


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Two hospitals with labels, a third whose new patients are to be classified; caches and reports of their own."""
    room = tmp_path_factory.mktemp("clinic")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("THYROID_CACHE", str(room / "cache"))
        patch.setenv("THYROID_HASH_KEY", "sixteen characters and more")
        patch.delenv("THYROID_RUN", raising=False)
        hospital.export(room / "first", "phantom:clinic?patients=24&seed=5")
        hospital.export(room / "second", "phantom:external?patients=8&seed=6", scanner="Mindray")
        hospital.export(room / "new", "phantom:clinic?patients=2&seed=7", labels=False)
        yield room


def spec(place: Path, name: str, labels: str | Path = "labels.csv") -> str:
    return f"dicom:{place / name}?labels={labels}"


def quiet(text: str) -> bool:
    return not any(secret in text for secret in hospital.SECRETS)


def run(place: Path, *arguments: str) -> subprocess.CompletedProcess:
    """The study's command in a process of its own."""
    environment = os.environ | {"THYROID_REPORTS": str(place / "reports"), "PYTHONPATH": str(PROJECT)}
    command = [sys.executable, "-m", "thyroid_lib", *arguments]
    return subprocess.run(command, env=environment, cwd=place, capture_output=True, text=True, timeout=900)


def study(place: Path, *options: str) -> Path:
    """A run of the study on both hospitals; gives its folder."""
    fixed = "--profile smoke --run clinic --pretrain-data phantom:open?patients=12 --set 01_preprocess.folds=3".split()
    data = ["--finetune-data", spec(place, "first"), "--external-data", spec(place, "second")]
    done = run(place, "run", *fixed, *data, *options)
    assert done.returncode == 0, done.stdout + done.stderr
    return place / "reports" / "clinic"


def test_what_is_exported_is_what_the_study_reads(place):
    row = next(datasets.read("phantom:clinic?patients=24&seed=5").itertuples())
    phantom = datasets.load_frame(row.path)
    read = datasets.load_frame(min((place / "first").rglob("*.dcm")))
    x, y, width, height = regions.largest_region(phantom).box
    sector = np.s_[y : y + height, x : x + width]
    assert read.shape == phantom.shape and np.array_equal(read[sector], phantom[sector])
    outside = np.ones(read.shape, bool)
    outside[sector] = False
    assert not read[outside].any(), "what is printed beside the sector stays in the hospital"


def test_check_data_says_what_the_hospital_sent_and_names_nobody(place, capsys):
    assert check_data.main([spec(place, "first"), "--folds", "3"]) == 0
    said = capsys.readouterr().out
    assert "24" in said and all(key in said for key in LESION_TYPES)
    assert quiet(said)


def test_check_data_finds_what_is_wrong_before_anything_runs(place, tmp_path, capsys):
    labels = list(csv.reader((place / "first" / "labels.csv").open(encoding="utf-8")))
    few = [row for row in labels if row[1] != "medullary_carcinoma"] + [["MRN-nobody", "medullary_carcinoma"]]
    table = tmp_path / "few.csv"
    table.write_text("".join(f"{','.join(row)}\n" for row in few), encoding="utf-8")
    assert check_data.main([f"{spec(place, 'first', table)}&classes={','.join(LESION_TYPES)}"]) == 1
    said = capsys.readouterr()
    assert "medullary_carcinoma" in said.out + said.err and "unlabelled" in said.out
    assert quiet(said.out + said.err)


@pytest.mark.slow
def test_the_hospitals_become_crops_folds_and_an_external_set(place):
    folder = study(place, "--only", "01")
    found = read_json(folder / "metrics.json")["01_preprocess"]
    assert found["finetune"]["patients"] == 24 and found["external"]["patients"] == 8
    real, drawn = found["finetune"], found["pretrain"]
    assert drawn["simulated"] and not real["simulated"], "a DICOM file is taken for real"
    assert set(found["finetune"]["images_per_class"]) == set(LESION_TYPES)
    index = pd.read_csv(folder / "data" / "finetune" / "index.csv", dtype=str)
    assert index.groupby("patient")["fold"].nunique().max() == 1
    paths = [path for path in folder.rglob("*") if path.suffix in (".csv", ".html", ".json")]
    written = [path.read_text("utf-8") for path in paths]
    assert written and all(quiet(text) for text in written)
    page = (folder / "01_preprocess.html").read_text(encoding="utf-8")
    assert "of 24 patients" in page and "of 8 patients" in page


def test_new_dicom_frames_are_classified_one_object_per_frame(place, classifier_folder, capsys):
    frames = sorted((place / "new").rglob("*.dcm"))
    arguments = [str(place / "new"), "--classifier", str(classifier_folder), "--json"]
    assert classify_command.main(arguments) == 0
    answers = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert len(answers) == len(frames)
    for answer in answers:
        assert answer["lesion_type"] in LESION_TYPES
        assert sum(answer["probabilities"].values()) == pytest.approx(1)


@pytest.mark.slow
def test_the_whole_walk_from_dicom_to_a_publishable_report(place, tmp_path):
    folder = study(place, "--set", "04_finetune.folds_to_run=3")
    metrics = read_json(folder / "metrics.json")["05_evaluate"]
    for where, patients in (("internal", 24), ("external", 8)):
        accuracy = metrics[where]["finetuned"]["image"]["accuracy"]
        assert accuracy["n_patients"] == patients and accuracy["low"] <= accuracy["value"] <= accuracy["high"]
    assert metrics["audit"]["views"]["full frame, answer printed"], "real frames get a printed answer too"
    text = (folder / "05_evaluate.html").read_text(encoding="utf-8")
    assert "Frames and lesion types are" not in text and "as the data label them" in text

    answers = run(place, "classify", "new", "--classifier", str(folder / "classifier"), "--json")
    assert answers.returncode == 0, answers.stderr
    assert all("lesion_type" in json.loads(line) for line in answers.stdout.splitlines())

    published, about = reference.Reference(folder).write(tmp_path / "published")
    assert "05_maps" in about["left_out"] and "01_examples" in about["left_out"]
    assert all(quiet(path.read_text(encoding="utf-8")) for path in published.iterdir())
    names = set(pd.read_csv(folder / "predictions.csv", dtype=str)["image"])
    assert not names & set(pd.read_csv(published / "predictions.csv", dtype=str)["image"])
