"""Notebook 07's steps and callbacks, without a browser."""

import io
import re
from itertools import pairwise

import numpy as np
import pandas as pd
import pytest
import small_classifier as small
import torch
from PIL import Image

from thyroid_lib import frames, plots, regions
from thyroid_lib.classifier import Classifier, networks
from thyroid_lib.data import crops
from thyroid_lib.explanation import explore, robustness
from thyroid_lib.explanation.panel import Panel


@pytest.fixture(scope="module")
def classifier(tmp_path_factory):
    return Classifier.load(small.make(tmp_path_factory.mktemp("run") / "classifier"), backend="torch")


@pytest.fixture(scope="module")
def manifest(tmp_path_factory):
    folder, rows = tmp_path_factory.mktemp("data"), []
    for seed in range(3):
        mask = np.zeros((180, 280), np.uint8)
        mask[70:110, 110:170] = 255
        Image.fromarray(small.sector_frame(seed)).save(folder / f"{seed}.png")
        Image.fromarray(mask).save(folder / f"{seed}_mask.png")
        rows.append({"image": f"{seed}.png", "path": str(folder / f"{seed}.png"), "label": small.CLASSES[seed],
                     "mask": str(folder / f"{seed}_mask.png") if seed else ""})  # fmt: skip
    return pd.DataFrame(rows)


@pytest.fixture
def explorer(classifier, manifest):
    explorer = explore.Explorer(classifier, manifest)
    explorer.open("1.png")
    return explorer


def test_the_first_image_offered_is_one_whose_nodule_is_known(classifier, manifest):
    for rows, expected in ((manifest, "1.png"), (manifest.drop(columns="mask"), "0.png")):
        explorer = explore.Explorer(classifier, rows)
        explorer.open()
        assert explorer.name == expected and explorer.truth == small.CLASSES[int(expected[0])]


def test_with_the_settings_of_training_the_view_is_the_classifiers_answer(explorer, classifier):
    view = explorer.look(explorer.choice())
    expected = classifier.classify(explorer.frame)
    assert view.answer.probabilities == expected.probabilities
    assert view.found[0].box == expected.box
    np.testing.assert_array_equal(view.changed, expected.crop)
    assert view.after == pytest.approx(view.answer.probabilities, abs=1e-6)
    assert view.choice.explain == view.answer.lesion_type and view.truth == small.CLASSES[1]


def test_threshold_and_closing_move_the_binary_image_the_region_and_the_crop(explorer):
    base = explorer.look(explorer.choice())
    strict = explorer.look(explorer.choice(threshold=70, closing=0))
    assert strict.binary.sum() < base.binary.sum()
    assert strict.answer.box != base.answer.box or len(strict.found) != len(base.found)
    recipe = regions.Recipe(threshold=70, closing=0)
    assert strict.answer.box == regions.largest_region(explorer.frame, recipe).box
    assert explorer.choice() == explore.Choice(regions.RECIPE.threshold, regions.RECIPE.closing)


def test_gain_and_cover_change_the_crop_and_the_answer_is_that_of_the_changed_crop(explorer, classifier):
    view = explorer.look(explorer.choice(gain=1.7, cover=True))
    bright = robustness.change(view.answer.crop[None], "gain", 1.7)[0]
    covered = view.changed != bright
    assert covered.any() and not covered.all()
    assert len(np.unique(view.changed[covered])) == 1
    expected = dict(zip(classifier.classes, classifier.probabilities(view.changed[None])[0]))
    assert view.after == pytest.approx(expected, abs=1e-9)


def test_without_a_mask_nothing_is_covered_and_that_is_said(explorer, classifier):
    explorer.open("0.png")
    view = explorer.look(explorer.choice(cover=True))
    np.testing.assert_array_equal(view.changed, view.answer.crop)
    assert "no nodule mask" in view.words("change.md.j2")


def test_maps_follow_method_layer_and_class(explorer):
    views = [
        explorer.look(explorer.choice(method=method, layer=layer, explain=key))
        for method, layer, key in [
            ("gradcam", "exit_flow", small.CLASSES[0]),
            ("gradcam", "exit_flow", small.CLASSES[1]),
            ("gradcam", "middle_flow", small.CLASSES[0]),
            ("layercam", "middle_flow", small.CLASSES[0]),
        ]
    ]
    for first, second in pairwise(views):
        assert not np.array_equal(first.heat, second.heat)
    for view in views:
        assert view.heat.shape == view.answer.crop.shape and 0 <= view.heat.min() <= view.heat.max() <= 1


def test_the_quick_map_of_the_reports_is_grad_cam_at_the_exit_flow(classifier):
    """Zhou 2016 and Selvaraju 2017 agree where average and linear layer follow the map."""
    from thyroid_lib.explanation import cam as explanation

    crop = small.crops_of([4])
    (member, *_) = classifier.members()
    with torch.no_grad():
        maps = networks.Ensemble([member])(torch.from_numpy(crop))[2]
    for key in range(len(small.CLASSES)):
        cam = explanation.cam(member, crop, np.array([key]))
        pixels = maps.shape[2] * maps.shape[3]
        assert float(cam.high[0]) == pytest.approx(float(maps[0, key].max()) / pixels, rel=0.02, abs=1e-5)
        assert float(cam.low[0]) == pytest.approx(float(maps[0, key].min()) / pixels, rel=0.02, abs=1e-5)


def test_the_crop_of_a_run_is_recognised_pixel_by_pixel(explorer, manifest, classifier, tmp_path):
    rows = manifest.assign(patient=manifest.image, group=manifest.image, dataset="drawn")
    rows.attrs = {
        "classes": small.CLASSES, "names": classifier.names, "simulated": True, "title": "drawn",
        "excluded": pd.DataFrame({"image": [], "reason": []}),
    }  # fmt: skip
    built = crops.build(rows, tmp_path / "crops", size=classifier.size, recipe=classifier.recipe, jobs=1)
    assert explorer.differing_pixels(built) == 0
    explorer.frame = np.ascontiguousarray(explorer.frame[:, ::-1])
    assert explorer.differing_pixels(built) > 0
    explorer.name = "elsewhere.png"
    assert explorer.differing_pixels(built) == -1


def test_findings_and_summary_hold_the_numbers_and_no_markup_of_a_hostile_name(explorer, classifier):
    explorer.name = "`<script>alert(1)</script>\x1b[0m`"
    view = explorer.look(explorer.choice(gain=2.0))
    text = view.words("view.md.j2", names=classifier.names, differing=0)
    assert f"{view.answer.probabilities[view.answer.lesion_type]:.2f}" in text
    assert "\x1b" not in text and re.search(r"`'<script>[^`]*'`", text)
    assert explore.summary(view)["probabilities"] == view.answer.probabilities
    table = explore.answer_table(view, classifier)
    assert list(table["probability"]) == list(view.answer.probabilities.values())


def test_every_figure_says_its_numbers(explorer, classifier):
    import matplotlib.pyplot as plt

    view = explorer.look(explorer.choice(gain=1.3, cover=True))
    factors = [0.5, 1.0, 2.0]
    made = [
        plots.steps_to_answer(view, classifier.names),
        plots.map_methods(
            view.answer.crop,
            {
                kind: explorer.heat(view.answer.crop, small.CLASSES[0], kind, "exit_flow")
                for kind in ("gradcam",)
            },
            "exit_flow",
            "nodular goiter",
        ),
        plots.gain_curve(factors, np.eye(4)[:3], classifier.classes, classifier.names),
    ]
    for figure in made:
        assert re.search(r"\d", figure.alt) and len(figure.alt) > 60
        plt.close(figure)


def test_moving_a_control_redraws_and_answers(explorer):
    panel = Panel(explorer)
    first, picture = panel.view, panel.picture.value
    assert "data:image/png;base64,iVBOR" in picture and "connected regions" in picture
    panel.controls["threshold"].value = 60
    assert panel.view.choice.threshold == 60 and panel.picture.value != picture
    panel.controls["gain"].value = 2.0
    panel.controls["cover"].value = True
    panel.controls["method"].value = "layercam"
    panel.controls["layer"].value = "middle_flow"
    panel.controls["explain"].value = small.CLASSES[2]
    choice = panel.view.choice
    assert (choice.gain, choice.cover, choice.method, choice.layer) == (2.0, True, "layercam", "middle_flow")
    assert choice.explain == small.CLASSES[2]
    panel.controls["reset"].click()
    assert panel.view.answer == first.answer and panel.view.choice == first.choice


def test_choosing_naming_and_uploading_an_image_open_it(explorer, manifest, tmp_path):
    panel = Panel(explorer)
    panel.controls["image"].value = "2.png"
    assert panel.view.name == "2.png" and panel.view.mask is not None
    Image.fromarray(small.sector_frame(9)).save(tmp_path / "own.png")
    panel.controls["path"].value = str(tmp_path / "own.png")
    np.testing.assert_array_equal(panel.view.frame, small.sector_frame(9))
    buffer = io.BytesIO()
    Image.fromarray(small.sector_frame(11)).save(buffer, "PNG")
    upload(panel, "<b>mine</b>.png", buffer.getvalue())
    np.testing.assert_array_equal(panel.view.frame, small.sector_frame(11))
    assert panel.view.mask is None and panel.view.truth == ""
    assert "<b>mine" not in panel.words.value
    panel.controls["image"].value = "2.png"  # chosen before the file was: choosing it again counts
    assert panel.view.name == "2.png"


def test_an_image_that_cannot_be_used_is_said_and_the_panel_goes_on(explorer, tmp_path):
    panel = Panel(explorer)
    upload(panel, "x.png", b"no image")
    assert "cannot be used" in panel.words.value and "not an image" in panel.words.value
    panel.controls["path"].value = str(tmp_path / "<img src=x>.png")
    assert "cannot be used" in panel.words.value and "<img" not in panel.words.value
    panel.controls["threshold"].value = 20
    assert panel.view.choice.threshold == 20 and panel.picture.value


def test_settings_that_leave_no_region_are_said_and_can_be_taken_back(explorer):
    explorer.frame = np.clip(explorer.frame, 0, 40)
    panel = Panel(explorer)
    panel.controls["threshold"].value = 80
    assert panel.view is None and "Nothing to classify" in panel.words.value and panel.picture.value == ""
    panel.controls["threshold"].value = 6
    assert panel.view is not None and panel.picture.value


def test_a_warning_is_shown(explorer):
    panel = Panel(explorer)
    noise = np.random.default_rng(0).integers(0, 256, (200, 300), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(noise).save(buffer, "PNG")
    upload(panel, "noise.png", buffer.getvalue())
    assert "unlike the training images" in panel.words.value


def test_looking_without_an_image_says_what_to_do(classifier):
    with pytest.raises(ValueError, match="open first"):
        explorer = explore.Explorer(classifier)
        explorer.look(explorer.choice())
    with pytest.raises(frames.FrameError):
        explore.Explorer(classifier).open("missing.png")


def upload(panel, name: str, content: bytes) -> None:
    file = {"name": name, "type": "image/png", "size": len(content), "content": memoryview(content)}
    file["last_modified"] = pd.Timestamp("2024-01-01").to_pydatetime()
    panel.controls["upload"].value = (file,)
