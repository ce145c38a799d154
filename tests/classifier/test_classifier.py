"""The classifier folder: what is saved is what is loaded, and anything else is refused with its reason."""

import itertools
import json
import pickle
import shutil
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest
import small_classifier as small
import torch
import yaml
from PIL import Image

from thyroid_lib import LESION_TYPES, classifier, datasets, frames, network, regions
from thyroid_lib.classifier import Classifier, ClassifierError, networks, novelty
from thyroid_lib.classifier.definition import identity
from thyroid_lib.data import crops

BROKEN = yaml.safe_load(Path(__file__).with_name("broken_definitions.yaml").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def loaded(classifier_folder):
    return Classifier.load(classifier_folder, backend="torch")


@pytest.fixture
def copy(classifier_folder, tmp_path):
    return shutil.copytree(classifier_folder, tmp_path / "classifier")


def edit(classifier_folder, **changes):
    path = classifier_folder / "classifier.json"
    definition = json.loads(path.read_text(encoding="utf-8")) | changes
    path.write_text(json.dumps(definition), encoding="utf-8")


def test_probabilities_are_the_mean_of_the_members_softmax_at_their_temperature(loaded):
    crop = regions.extract(small.sector_frame(300), small.SIZE, regions.RECIPE)[0]
    expected = 0
    for member, temperature in zip(loaded.members(), (1.5, 0.8)):
        with torch.no_grad():
            logits = member(network.normalize(torch.from_numpy(crop[None])))
        expected = expected + torch.softmax(logits.double() / temperature, 1).numpy()[0] / 2
    found = loaded.classify(small.sector_frame(300))
    np.testing.assert_allclose(list(found.probabilities.values()), expected, atol=1e-5)
    assert sum(found.probabilities.values()) == pytest.approx(1, abs=1e-12)
    assert found.lesion_type == small.CLASSES[int(expected.argmax())]
    np.testing.assert_allclose(loaded.probabilities(crop[None])[0], expected, atol=1e-5)


def test_the_input_is_the_training_crop_byte_for_byte(loaded, tmp_path):
    paths = [tmp_path / f"{seed}.png" for seed in range(4)]
    for seed, path in enumerate(paths):
        Image.fromarray(small.sector_frame(200 + seed)).save(path)
    rows = pd.DataFrame({"image": [p.name for p in paths], "path": [str(p) for p in paths]})
    rows = rows.assign(label="nodular_goiter", patient=rows.image, group=rows.image, dataset="drawn")
    rows.attrs = {"classes": small.CLASSES, "names": LESION_TYPES, "simulated": True, "title": "drawn"}
    rows.attrs["excluded"] = pd.DataFrame({"image": [], "reason": []})
    built = crops.build(rows, tmp_path / "crops", size=small.SIZE, recipe=loaded.recipe, jobs=1)
    for path, image, row in zip(paths, built.images, built.index.itertuples()):
        found = loaded.classify(path)
        np.testing.assert_array_equal(found.crop, image)
        np.testing.assert_array_equal(found.frame, datasets.load_frame(path))
        assert found.box == (row.box_x, row.box_y, row.box_width, row.box_height)


def test_path_bytes_array_and_pillow_image_give_one_answer(loaded, tmp_path):
    frame = small.sector_frame(301)
    path = tmp_path / "frame.png"
    Image.fromarray(frame).save(path)
    colour = np.repeat(frame[:, :, None], 3, 2)
    expected = loaded.classify(frame).probabilities
    for image in (path, str(path), path.read_bytes(), Image.fromarray(frame), colour):
        assert loaded.classify(image).probabilities == expected
    assert loaded.classify(path).image == str(path)


def test_a_batch_gives_the_answers_of_single_frames_and_goes_on_after_bad_ones(loaded):
    images = [small.sector_frame(seed) for seed in range(310, 315)]
    images[2:2] = b"", np.zeros((200, 200), np.uint8)
    results = list(loaded.classify_many(images, batch_size=4))
    assert [getattr(found, "kind", "") for found in results] == ["", "", "empty", "constant", "", "", ""]
    with pytest.raises(frames.FrameError, match=str(results[3])):
        loaded.classify(images[3])
    for number in (0, 1, 4, 5, 6):
        alone = loaded.classify(images[number]).probabilities
        assert results[number].probabilities == pytest.approx(alone, abs=1e-6)
    taken = []  # and from a generator they are taken batch by batch
    endless = (taken.append(seed) or small.sector_frame(seed % 3) for seed in itertools.count())
    next(loaded.classify_many(endless, batch_size=4))
    assert len(taken) == 4


def test_verdicts_and_prediction_set_follow_their_thresholds(loaded):
    found = loaded.classify(small.sector_frame(302))
    for key, probability in found.probabilities.items():
        assert found.positive[key] == (probability >= 0.25)  # the mean of 0.2 and 0.3
        assert (key in found.prediction_set) == (probability >= 0.3 or key == found.lesion_type)


@pytest.mark.parametrize("unlike", ["white noise", "smooth noise", "photograph", "CT slice", "stripes"])
def test_images_that_are_no_ultrasound_get_a_warning(loaded, unlike):
    rng = np.random.default_rng(5)
    y, x = np.mgrid[:240, :320]
    disc = ((x - 160) / 120) ** 2 + ((y - 120) / 85) ** 2 < 1
    organs = 110 + 60 * (np.hypot(x - 120, y - 110) < 35) - 90 * (np.hypot(x - 205, y - 120) < 30)
    blurred = cv2.GaussianBlur(rng.normal(0, 1, (240, 320)), (0, 0), 12)
    near, far = np.hypot(x - 140, y - 120) < 9, np.hypot(x - 160, y - 130) < 60
    image = {
        "white noise": rng.integers(0, 256, (240, 320)),
        "smooth noise": np.clip(128 + 900 * blurred, 1, 255),
        "photograph": 90 + 0.5 * y + 60 * far - 50 * near,
        "CT slice": np.where(disc, organs + rng.normal(0, 3, (240, 320)), 0),
        "stripes": 120 + 100 * np.sin(x / 4),
    }[unlike]  # fmt: skip
    found = loaded.classify(np.clip(image, 0, 255).astype(np.uint8))
    assert any("unlike the training images" in warning for warning in found.warnings), found.novelty


def test_new_frames_of_the_training_kind_get_no_warning(loaded):
    results = loaded.classify_many(small.sector_frame(seed) for seed in range(400, 520))
    warned = [found for found in results if any("unlike" in warning for warning in found.warnings)]
    assert len(warned) <= 12  # with 40 validation frames the limit is their largest distance


def test_novelty_distance_of_gaussian_data_is_mahalanobis_like():
    rng = np.random.default_rng(0)
    mixing = rng.normal(size=(6, 6))
    train, new = rng.normal(size=(4000, 6)) @ mixing, rng.normal(size=(2000, 6)) @ mixing
    model = novelty.fit(train, new)
    centred = (new - train.mean(0)) @ np.linalg.inv(np.cov(train.T)) * (new - train.mean(0))
    exact = np.sqrt(centred.sum(1) / 6)
    assert np.corrcoef(novelty.distance(model, new), exact)[0, 1] > 0.97
    assert (novelty.distance(model, new) > model["limit"][0]).mean() <= 0.005


def test_a_small_region_and_one_that_is_dark_on_bright_are_said(loaded):
    little = np.zeros((300, 400), np.uint8)
    little[100:150, 100:160] = np.random.default_rng(0).integers(60, 160, (50, 60))
    assert any("covers only" in warning for warning in loaded.classify(little).warnings)
    dark = np.full((200, 320), 255, np.uint8)
    dark[20:180, 40:280] = 255 - small.sector_frame(3)[10:170, 20:260] // 3
    found = loaded.classify(dark)
    assert any("dark on bright" in warning for warning in found.warnings)
    assert found.crop[small.SIZE // 2].mean() < 128  # read upright


def test_saving_the_same_parts_again_gives_the_same_bytes(classifier_folder, tmp_path):
    again = small.make(tmp_path / "again")
    for path in sorted(classifier_folder.iterdir()):
        assert (again / path.name).read_bytes() == path.read_bytes(), path.name


def test_metrics_can_be_added_to_the_card_and_leave_the_id(copy):
    before = Classifier.load(copy, backend="torch").id
    metric = {"value": 0.81, "low": 0.75, "high": 0.86, "n_images": 100, "n_patients": 40}
    classifier.add_metrics(copy, {"macro_auroc": metric, "note": "a|b <script>"})
    assert Classifier.load(copy, backend="torch").id == before
    card = (copy / "MODEL_CARD.md").read_text(encoding="utf-8")
    assert "0.810 (0.750 to 0.860), 100 images, 40 patients" in card
    assert "<script>" not in card
    for text in ("Research use only", "simulated", "medullary carcinoma", "甲状腺髓样癌"):
        assert text in card
    names = {key: (f"TI-RADS {key}", f"TI-RADS {key} 类") for key in ("2-3", "4a", "4b", "4c-5")}
    graded = small.make(copy, 1, names=names)
    assert "No pathology stands behind" in (graded / "MODEL_CARD.md").read_text(encoding="utf-8")


def test_no_pickle_is_read(copy):
    class Trap:
        def __reduce__(self):
            return (open, (str(copy / "trapped"), "w"))

    (copy / "model.safetensors").write_bytes(pickle.dumps(Trap()))
    with pytest.raises(ClassifierError, match="damaged"):
        Classifier.load(copy, backend="torch")
    assert not (copy / "trapped").exists()


@pytest.mark.parametrize("name", ["model.safetensors", "novelty.safetensors", "classifier.json"])
def test_changed_cut_and_missing_files_are_named(copy, name):
    data = (copy / name).read_bytes()
    flipped = bytes([data[len(data) // 2] ^ 1]).join((data[: len(data) // 2], data[len(data) // 2 + 1 :]))
    for content in [data[:-200], b""] + [flipped] * name.endswith("safetensors"):
        (copy / name).write_bytes(content)
        with pytest.raises(ClassifierError, match=f"{name}.*damaged"):
            Classifier.load(copy, backend="torch")
    (copy / name).unlink()
    with pytest.raises(ClassifierError, match=f"{name} is missing"):
        Classifier.load(copy, backend="torch")


@pytest.mark.parametrize("changes, said", BROKEN)
def test_a_definition_that_breaks_the_schema_says_where(copy, changes, said):
    edit(copy, **changes)
    with pytest.raises(ClassifierError, match=said):
        Classifier.load(copy, backend="torch")


@pytest.mark.parametrize("text", ["", "[", "[]", "null", "1", '"text"', "{}", "[" * 100_000, '{"size": NaN}'])
def test_any_other_json_is_refused(copy, text):
    (copy / "classifier.json").write_text(text, encoding="utf-8")
    with pytest.raises(ClassifierError):
        Classifier.load(copy, backend="torch")


def test_the_class_activation_map_averages_to_the_logit(loaded):
    crops = small.crops_of([7, 8])
    outputs = loaded.run(crops)
    bias = np.mean([member.fc.bias.detach().numpy() for member in loaded.members()], 0)
    np.testing.assert_allclose(outputs.maps.mean((2, 3)) + bias, outputs.logits.mean(0), atol=1e-4)


def test_folding_batch_norm_leaves_no_norm_behind_and_the_same_logits(loaded):
    folded = networks.Ensemble(networks.load_members(loaded.folder, loaded.definition))
    networks.fold_batch_norm(folded)
    assert "BatchNorm2d" not in {type(module).__name__ for module in folded.modules()}
    crops = small.crops_of([9, 10])
    with torch.no_grad():
        expected = [m(network.normalize(torch.from_numpy(crops))).numpy() for m in loaded.members()]
    np.testing.assert_allclose(loaded.run(crops).logits, expected, atol=1e-4)


def test_weights_of_another_architecture_and_a_recipe_of_another_release_are_refused(copy):
    sound = json.loads((copy / "classifier.json").read_text(encoding="utf-8"))
    for field, change, said in (
        ("architecture", {"width": 0.125}, "size mismatch for 0"),
        ("recipe", {"watershed": 3}, "watershed"),
    ):
        definition = sound | {field: sound[field] | change}
        edit(copy, **definition | {"id": identity(definition)})
        with pytest.raises(ClassifierError, match=said):
            Classifier.load(copy, backend="torch")


def test_on_real_thyroid_frames_photographs_and_noise_are_told_and_new_frames_are_not(real_data):
    """Appearance alone, so without training; DDTI by case number: 4 of 6 fit, 1 of 6 sets the limit."""
    data = pytest.importorskip("skimage.data")
    paths = sorted((real_data / "ddti").rglob("*.jpg"), key=lambda path: int(path.stem.split("_")[0]))
    vectors = novelty.appearance(np.stack([classifier.prepare(p, 128, regions.RECIPE)[2] for p in paths]))
    third = np.array([int(path.stem.split("_")[0]) % 6 for path in paths])
    model = novelty.fit(vectors[third < 4], vectors[third == 4])
    rng = np.random.default_rng(0)
    blurred = [cv2.GaussianBlur(rng.normal(size=(360, 560)), (0, 0), s) for s in (0.1, 1, 2, 4, 8, 16)]
    noises = [np.clip(60 + 35 * noise / noise.std(), 0, 255).astype(np.uint8) for noise in blurred]
    photographs = [cv2.cvtColor(data.chelsea(), cv2.COLOR_RGB2GRAY), data.camera(), data.coins(), data.moon()]
    foreign = [classifier.prepare(image, 128, regions.RECIPE)[2] for image in photographs + noises]
    limit = model["limit"][0]
    assert (novelty.distance(model, novelty.appearance(np.stack(foreign))) > limit).all()
    assert (novelty.distance(model, vectors[third == 5]) > limit).mean() < 0.06


def test_an_answer_that_is_no_number_is_an_error_of_that_frame_only(classifier_folder):
    broken = Classifier.load(classifier_folder, backend="torch")
    run, poison = broken.run, np.array([0, np.nan, 0], np.float32)[:, None]
    broken.run = lambda crops: (outputs := run(crops))._replace(logits=outputs.logits + poison)
    results = list(broken.classify_many([small.sector_frame(seed) for seed in range(3)]))
    assert [getattr(found, "kind", "") for found in results] == ["", "not_finite", ""]
