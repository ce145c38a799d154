"""Folds: nothing of the held-out patients is used before they are predicted."""

import hashlib
import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy.special import softmax

from thyroid_lib.classifier import Classifier
from thyroid_lib.classifier.determination import determine
from thyroid_lib.evaluation.calibration import fit_temperature, operating_points
from thyroid_lib.evaluation.predictions import classes_of, read_predictions, write_predictions
from thyroid_lib.training import folds, loop, pretraining, references, summary


@pytest.fixture(scope="module")
def clinic(data):
    return folds.open_crops(data)[0]


@pytest.fixture(scope="module")
def settings(clinic):
    config = pretraining.model_config(clinic, {"width": 0.0625, "middle_blocks": 1})
    return loop.Settings(model=config, epochs=1, batch_size=16, precision="32", threads=1)


def run(settings, data) -> list[folds.FoldResult]:
    return folds.run(settings, data, data.parent / "checkpoints", folds=2, initial=None, scratch=False)


@pytest.fixture(scope="module")
def results(data, settings):
    return run(settings, data)


def test_no_group_is_in_two_parts_and_every_labelled_image_in_one(clinic):
    for fold in (0, 1):
        rows = folds.parts(clinic, fold, 0.2, 0)
        groups = [set(clinic.index["group"].iloc[chosen]) for chosen in rows.values()]
        assert len(set.union(*groups)) == sum(map(len, groups))
        assert sorted(np.concatenate(list(rows.values()))) == list(np.flatnonzero(clinic.labels >= 0))
        assert (clinic.index["fold"].iloc[rows["test"]] == fold).all()


def test_each_image_is_tested_once_by_the_network_that_never_saw_its_patient(clinic, results):
    internal = pd.concat([result.tables["internal"] for result in results])
    assert sorted(internal["image"]) == sorted(clinic.index["image"][clinic.labels >= 0])
    for result in results:
        learnt = np.concatenate([result.rows["train"], result.rows["validation"]])
        patients = set(clinic.index["patient"].iloc[learnt])
        assert not patients & set(result.tables["internal"]["patient"])


def test_temperature_and_operating_points_come_from_the_validation_part_alone(clinic, results):
    first = results[0]
    rows = first.rows["validation"]
    logits = loop.predict(first.fit.model(), clinic.images, rows)
    assert first.temperature == pytest.approx(fit_temperature(logits, clinic.labels[rows]))
    probabilities = softmax(logits / first.temperature, axis=1)
    points = operating_points(probabilities, clinic.labels[rows], clinic.classes)
    assert first.operating_points == pytest.approx(points)
    external = first.tables["external"]
    for key in clinic.classes:
        expected = external[f"p_{key}"] >= first.operating_points[key]
        assert (external[f"positive_{key}"].astype(bool) == expected).all()


def test_the_tables_make_a_predictions_file_with_the_mean_of_the_folds_outside(data, results, tmp_path):
    write_predictions(folds.tables(results) + references.sign_reader(data, 2), tmp_path / "predictions.csv")
    read = read_predictions(tmp_path / "predictions.csv")
    assert not read.duplicated(["model", "set", "image"]).any()
    outside = read[(read["model"] == "finetuned") & (read["set"] == "external")].set_index("image")
    each = [result.tables["external"].set_index("image").loc[outside.index] for result in results]
    for ours, theirs in zip(results, references.run(data, 2)):
        assert ours.tables["internal"]["image"].equals(theirs.tables["internal"]["image"])
    key = classes_of(read)[0]
    np.testing.assert_allclose(outside[f"p_{key}"], np.mean([t[f"p_{key}"] for t in each], axis=0), rtol=1e-8)
    assert set(read["model"]) == {"finetuned", "reference_signs"}


def test_what_was_found_is_told_without_phantoms_external_set_or_comparison(clinic, results):
    one = {"value": 0.7, "low": 0.6, "high": 0.8, "n_images": 10, "n_patients": 5}
    scores = {"internal": {"finetuned": one}}
    said = summary.finetuning_found(results, scores, None, clinic, Path("classifier"))
    assert "0.700 (95 % interval 0.600 to 0.800" in said and "external" not in said


def test_a_second_call_reads_the_finished_folds(data, settings, results, monkeypatch):
    monkeypatch.setattr(loop.Training, "epoch", None)  # nothing is trained again
    for a, b in zip(run(settings, data), results):
        pd.testing.assert_frame_equal(a.tables["internal"], b.tables["internal"])


def test_the_folds_become_a_classifier_that_gives_the_same_probabilities(data, results, tmp_path):
    clinic, outside = folds.open_crops(data)
    loaded = Classifier.load(determine(results, data, tmp_path / "classifier", None), backend="torch")
    assert loaded.classes == clinic.classes
    each = [result.tables["external"].set_index("image")[f"p_{clinic.classes[0]}"] for result in results]
    mean = np.mean([column.loc[outside.index["image"]] for column in each], axis=0)
    np.testing.assert_allclose(loaded.probabilities(outside.images)[:, 0], mean, atol=1e-5)


def test_an_external_set_with_other_classes_is_refused(data, tmp_path):
    shutil.copytree(data, tmp_path / "data")
    path = tmp_path / "data/external/crops.json"
    about = json.loads(path.read_text())
    path.write_text(json.dumps(about | {"classes": about["classes"][:2]}))
    with pytest.raises(ValueError, match="expected the classes nodular_goiter"):
        folds.open_crops(tmp_path / "data")


def test_other_settings_set_a_pretraining_aside_and_its_origin_is_told(clinic, settings, tmp_path):
    folder, rows = tmp_path / "fit", folds.parts(clinic, 0, 0.2, 0)
    first, origin = pretraining.fit(settings, clinic, rows, folder)
    assert origin == {} and "set_aside" not in first.choices
    start = tmp_path / "start.safetensors"
    shutil.copy(first.weights, start)
    second, origin = pretraining.fit(replace(settings, lr=5e-4), clinic, rows, folder, str(start))
    assert "settings.lr: 0.001 there, 0.0005 asked for" in second.choices["set_aside"]
    assert (tmp_path / "fit.before" / "best.safetensors").is_file()
    assert origin["sha256"] == hashlib.sha256(start.read_bytes()).hexdigest()
    assert origin["source"] == "start.safetensors" and origin["licence"]
