"""Notebook 07's steps and callbacks, without a browser."""

import re
from datetime import datetime
from itertools import pairwise

import cv2
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import small_classifier as small
import torch

from thyroid_lib import frames, plots, regions
from thyroid_lib.classifier import Classifier, networks
from thyroid_lib.data import crops
from thyroid_lib.explanation import cam, explore, robustness


@pytest.fixture(scope="module")
def classifier(classifier_folder):
    return Classifier.load(classifier_folder, backend="torch")


@pytest.fixture(scope="module")
def manifest(tmp_path_factory):
    folder, mask = tmp_path_factory.mktemp("data"), np.zeros((180, 280), np.uint8)
    mask[70:110, 110:170] = 255
    (folder / "mask.png").write_bytes(png(mask))
    table = pd.DataFrame({"image": [f"{seed}.png" for seed in range(3)], "label": small.CLASSES[:3]})
    for seed, name in enumerate(table["image"]):
        (folder / name).write_bytes(png(small.sector_frame(seed)))
    return table.assign(path=f"{folder}/" + table["image"], mask=["", *[f"{folder}/mask.png"] * 2])


@pytest.fixture
def explorer(classifier, manifest):
    explorer = explore.Explorer(classifier, manifest)
    explorer.open("1.png")
    return explorer


@pytest.fixture
def panel(explorer):
    return explore.Panel(explorer, explorer.choice())


def png(gray) -> bytes:
    return cv2.imencode(".png", gray)[1].tobytes()


def upload(panel, name: str, content: bytes) -> None:
    about = {"type": "image/png", "size": len(content), "last_modified": datetime(2024, 1, 1)}
    panel.controls["upload"].value = ({"name": name, "content": memoryview(content), **about},)


def test_the_first_image_offered_has_a_known_nodule_and_without_any_one_is_asked_for(classifier, manifest):
    for rows, expected in ((manifest, "1.png"), (manifest.drop(columns="mask"), "0.png")):
        explorer = explore.Explorer(classifier, rows)
        explorer.open()
        assert explorer.name == expected and explorer.truth == small.CLASSES[int(expected[0])]
    explorer = explore.Explorer(classifier)
    with pytest.raises(ValueError, match="open first"):
        explorer.look(explorer.choice())
    with pytest.raises(frames.FrameError):
        explorer.open("missing.png")


def test_with_the_settings_of_training_the_view_is_the_classifiers_answer(explorer, classifier):
    view, expected = explorer.look(explorer.choice()), classifier.classify(explorer.frame)
    assert view.answer.probabilities == expected.probabilities
    assert view.found[0].box == expected.box
    np.testing.assert_array_equal(view.changed, expected.crop)
    assert view.after == pytest.approx(view.answer.probabilities, abs=1e-6)
    assert view.choice.explain == view.answer.lesion_type and view.truth == small.CLASSES[1]
    table, numbers = explore.answer_table(view, classifier), explore.summary(view)
    assert list(table["probability"]) == list(expected.probabilities.values())
    assert numbers["probabilities"] == expected.probabilities


def test_threshold_and_closing_move_the_binary_image_the_region_and_the_crop(explorer):
    base, strict = (explorer.look(explorer.choice(*chosen)) for chosen in ((), (70, 0)))
    assert strict.binary.sum() < base.binary.sum()
    assert strict.answer.box != base.answer.box or len(strict.found) != len(base.found)
    recipe = regions.Recipe(threshold=70, closing=0)
    assert strict.answer.box == regions.largest_region(explorer.frame, recipe).box
    assert explorer.choice() == explore.Choice(regions.RECIPE.threshold, regions.RECIPE.closing)


def test_gain_and_cover_change_the_crop_and_the_answer_is_that_of_the_changed_crop(explorer, classifier):
    view = explorer.look(explorer.choice(gain=1.7, cover=True))
    covered = view.changed != robustness.change(view.answer.crop[None], "gain", 1.7)[0]
    assert covered.any() and not covered.all() and len(np.unique(view.changed[covered])) == 1
    expected = dict(zip(classifier.classes, classifier.probabilities(view.changed[None])[0]))
    assert view.after == pytest.approx(expected, abs=1e-9)
    explorer.open("0.png")  # without a mask nothing is covered, and that is said
    view = explorer.look(explorer.choice(cover=True))
    np.testing.assert_array_equal(view.changed, view.answer.crop)
    assert "no nodule mask" in view.words("change.md.j2")


def test_maps_follow_method_layer_and_class(explorer):
    crop, asked = small.crops_of([4])[0], ((0, "gradcam", "exit_flow"), (1, "gradcam", "exit_flow"),
                                           (0, "gradcam", "middle_flow"), (0, "layercam", "middle_flow"))  # fmt: skip
    heats = [explorer.heat(crop, small.CLASSES[k], *place)[0] for k, *place in asked]
    assert all(heat.shape == crop.shape and 0 <= heat.min() <= heat.max() <= 1 for heat in heats)
    assert not any(np.array_equal(first, second) for first, second in pairwise(heats))


def test_the_quick_map_of_the_reports_is_grad_cam_at_the_exit_flow(classifier):
    """Zhou 2016 and Selvaraju 2017 agree where average and linear layer follow the map."""
    crop, member, count = small.crops_of([4]), classifier.members()[0], len(small.CLASSES)
    with torch.no_grad():
        maps = networks.Ensemble([member])(torch.from_numpy(crop))[2][0].flatten(1)
    maps = maps / maps.shape[1]
    found = cam.cam(member, np.repeat(crop, count, axis=0), np.arange(count))
    np.testing.assert_allclose(found.high, maps.amax(1), rtol=0.02, atol=1e-5)
    np.testing.assert_allclose(found.low, maps.amin(1), rtol=0.02, atol=1e-5)


def test_the_crop_of_a_run_is_recognised_pixel_by_pixel(explorer, classifier, manifest, tmp_path):
    run = crops.build(manifest, tmp_path / "crops", size=classifier.size, recipe=classifier.recipe, jobs=1)
    assert explorer.differing_pixels(run) == 0
    explorer.frame = explorer.frame[:, ::-1].copy()
    assert explorer.differing_pixels(run) > 0
    explorer.name = "elsewhere.png"
    assert explorer.differing_pixels(run) == -1


def test_findings_and_figures_hold_the_numbers_and_no_markup_of_a_hostile_name(explorer, classifier):
    explorer.name = "`<script>alert(1)</script>\x1b[0m`"
    view = explorer.look(explorer.choice(gain=1.3, cover=True))
    text = view.words("view.md.j2", names=classifier.names, differing=0)
    assert f"{view.answer.probabilities[view.answer.lesion_type]:.2f}" in text
    assert "\x1b" not in text and re.search(r"`'<script>[^`]*'`", text)
    heat = explorer.heat(view.answer.crop, small.CLASSES[0], "gradcam", "exit_flow")
    figures = [plots.steps_to_answer(view, classifier.names),
               plots.map_methods(view.answer.crop, {"gradcam": heat}, "exit_flow", "nodular goiter"),
               plots.gain_curve([0.5, 1.0, 2.0], np.eye(4)[:3], classifier.classes, classifier.names)]  # fmt: skip
    assert all(re.search(r"\d", figure.alt) and len(figure.alt) > 60 for figure in figures)
    plt.close("all")


def test_moving_a_control_redraws_and_answers(panel):
    first, picture = panel.view, panel.picture.value
    assert "data:image/png;base64,iVBOR" in picture and "connected regions" in picture
    moved = {"threshold": 60, "gain": 2.0, "cover": True, "method": "layercam", "layer": "middle_flow",
             "explain": small.CLASSES[2]}  # fmt: skip
    for name, value in moved.items():
        panel.controls[name].value = value
    assert panel.picture.value != picture
    assert {name: getattr(panel.view.choice, name) for name in moved} == moved
    panel.controls["reset"].click()
    assert panel.view.answer == first.answer and panel.view.choice == first.choice


def test_choosing_naming_and_uploading_an_image_open_it(panel, tmp_path):
    panel.controls["image"].value = "2.png"
    assert panel.view.name == "2.png" and panel.view.mask is not None
    (tmp_path / "own.png").write_bytes(png(small.sector_frame(9)))
    panel.controls["path"].value = str(tmp_path / "own.png")
    np.testing.assert_array_equal(panel.view.frame, small.sector_frame(9))
    upload(panel, "<b>mine</b>.png", png(small.sector_frame(11)))
    np.testing.assert_array_equal(panel.view.frame, small.sector_frame(11))
    assert panel.view.mask is None and panel.view.truth == "" and "<b>mine" not in panel.words.value
    panel.controls["image"].value = "2.png"  # chosen before the file was: choosing it again counts
    assert panel.view.name == "2.png"


def test_what_cannot_be_used_or_is_unusual_is_said_and_the_panel_goes_on(explorer, panel, tmp_path):
    upload(panel, "x.png", b"no image")
    assert "cannot be used" in panel.words.value and "not an image" in panel.words.value
    panel.controls["path"].value = str(tmp_path / "<img src=x>.png")
    assert "cannot be used" in panel.words.value and "<img" not in panel.words.value
    panel.controls["threshold"].value = 20
    assert panel.view.choice.threshold == 20 and panel.picture.value
    upload(panel, "noise.png", png(np.random.default_rng(0).integers(0, 256, (200, 300), dtype=np.uint8)))
    assert "unlike the training images" in panel.words.value
    explorer.frame = np.clip(small.sector_frame(1), 0, 40)  # settings that leave no region can be taken back
    panel.controls["threshold"].value = 80
    assert panel.view is None and "Nothing to classify" in panel.words.value and panel.picture.value == ""
    panel.controls["threshold"].value = 6
    assert panel.view is not None and panel.picture.value
