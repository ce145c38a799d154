"""Training: exactly resumable, every rule as stated."""

import math
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file
from scipy.special import softmax
from sklearn.metrics import log_loss, roc_auc_score, roc_curve
from small_training import MODEL, TRAIN, VALIDATION, asked, interrupted, largest_difference, spots, trained

from thyroid_lib import network
from thyroid_lib.data import rows
from thyroid_lib.evaluation import calibration
from thyroid_lib.training import checkpoint, loop, settings


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory) -> loop.Fit:
    return trained(tmp_path_factory.mktemp("undisturbed"), ema=0.9, epochs=3)


def test_it_learns_where_the_spot_is(tmp_path):
    fit = trained(tmp_path, epochs=12, augment=0, batch_size=13, lr=6e-3)
    assert fit.history.train_loss.iloc[-1] < 0.5 * fit.history.train_loss.iloc[0]
    assert fit.history.val_auroc.max() > 0.9
    best = fit.history.iloc[fit.best_epoch - 1]
    logits = loop.predict(fit.model(), spots().images, VALIDATION)
    again = calibration.macro_auroc(softmax(logits.astype(float), axis=1), spots().labels[VALIDATION])
    assert again == pytest.approx(best.val_auroc, abs=1e-9)  # the kept weights are the best epoch's


def test_interrupted_after_each_epoch_it_ends_with_the_same_bits(tmp_path, undisturbed, monkeypatch):
    fit, starts = interrupted(tmp_path, ema=0.9, epochs=3)
    assert starts == 4
    assert largest_difference(fit.weights, undisturbed.weights) == 0
    pd.testing.assert_frame_equal(fit.history, undisturbed.history, check_exact=True)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["best.safetensors", "state.safetensors"]
    monkeypatch.setattr(network, "build", None)  # finished, it is returned at once: nothing is built again
    assert trained(tmp_path, ema=0.9, epochs=3).weights == fit.weights


def test_the_last_epoch_is_kept_whatever_it_scores_where_that_is_asked_for(tmp_path):
    fit = trained(tmp_path, monitor="last", epochs=3)
    assert fit.best_epoch == 3 and fit.history.best.tolist() == [False, False, True]


OTHER = {
    "settings.lr: 0.002 there, 0.001 asked for": {"lr": 1e-3},
    "settings.model.width: 0.0625 there, 0.125 asked for": {"model": MODEL | {"width": 0.125}},
    "data.crops": {"crops": replace(spots(), hash="other")},
    "data.training rows": {"train": TRAIN[:-1]},
    "data.labels": {"options": {"labels": 3 - spots().labels}},
    "initial weights": {"options": {"initial": {"x": torch.ones(1)}}},
}


@pytest.mark.parametrize("named, change", OTHER.items(), ids=OTHER)
def test_a_checkpoint_of_another_training_is_refused(undisturbed, named, change):
    with pytest.raises(checkpoint.CheckpointError) as error:
        trained(undisturbed.weights.parent, **{"ema": 0.9, "epochs": 3} | change)
    assert named in str(error.value) and str(error.value).count("asked for") == 1


def test_it_starts_from_pretrained_weights_and_says_what_they_brought(tmp_path, undisturbed):
    two = replace(spots(), labels=spots().labels % 2)
    still = {"epochs": 1, "lr": 1e-12, "weight_decay": 0.0, "frozen_batchnorm": True}
    still |= {"model": MODEL | {"num_classes": 2}, "options": {"initial": undisturbed.weights}}
    fit = trained(tmp_path, two, **still)
    before, after = load_file(undisturbed.weights), load_file(fit.weights)
    body = [name for name in before if not name.startswith("fc.")]
    assert all(torch.allclose(before[name].float(), after[name].float(), atol=1e-6) for name in body)
    assert after["fc.weight"].shape[0] == 2
    assert "another number of classes" in fit.choices["initial_weights"]


def test_a_loss_that_is_not_a_number_stops_and_keeps_the_last_epoch(tmp_path, sees):
    with pytest.raises(loop.TrainingError, match=sees):
        trained(tmp_path, lr=1e30, clip=0, warmup_epochs=0)
    assert checkpoint.read_state(tmp_path) is None


def test_every_image_is_seen_once_an_epoch_in_another_order():
    orders = [tuple(settings.epoch_order(seed, TRAIN, epoch)) for seed, epoch in ((0, 0), (0, 1), (1, 0))]
    assert len(set(orders)) == 3 and sorted(orders[0]) == list(TRAIN)


def test_the_learning_rate_rises_then_falls_on_a_cosine_to_nothing():
    rule = asked(epochs=10, warmup_epochs=2.0, lr=1e-3, batch_size=32)
    rates = [settings.learning_rate(rule, step, 5) for step in range(50)]
    assert np.argmax(rates) == 10 and rates[10] == pytest.approx(1e-3)
    assert np.diff(rates[:11]) == pytest.approx(1e-3 / 11)
    assert rates[30] == pytest.approx(0.5e-3)
    assert 0 < rates[-1] < 3e-6
    assert settings.learning_rate(replace(rule, batch_size=128), 10, 5) == pytest.approx(2e-3)


def test_settings_rows_and_labels_that_make_no_sense_are_refused(tmp_path):
    for setting in ({"loss": "hinge"}, {"epochs": 0}, {"lr": 0.0}, {"precision": "8"}):
        with pytest.raises(ValueError, match="expected"):
            asked(**setting)
    with pytest.raises(ValueError, match="share 1 rows"):
        trained(tmp_path, validation=np.arange(25, 40))
    with pytest.raises(ValueError, match="row 3 has -1"):
        trained(tmp_path, replace(spots(), labels=np.where(np.arange(40) == 3, -1, spots().labels)))


def test_predictions_do_not_depend_on_company_and_average_over_the_mirror_image_where_asked(undisturbed):
    model, images = undisturbed.model().train(), spots().images
    together = loop.predict(model, images)
    assert model.training and together.shape == (40, 4) and together.dtype == np.float32
    apart = loop.predict(model, images, np.array([7, 3]), batch_size=1)
    np.testing.assert_allclose(apart, together[[7, 3]], atol=1e-5)
    assert np.array_equal(together, loop.predict(model, images))
    mirrored = loop.predict(model, np.ascontiguousarray(images[:, :, ::-1]))
    model.config["mirror"] = True
    both = loop.predict(model, images)
    np.testing.assert_allclose(both, (together + mirrored) / 2, atol=1e-5)
    assert np.abs(both - together).max() > 5e-5  # five times the tolerance above


def test_crops_that_vanish_stop_the_training_and_keep_the_last_epoch(tmp_path):
    np.save(tmp_path / "crops.npy", spots().images)
    crops = replace(spots(), images=np.load(tmp_path / "crops.npy", mmap_mode="r"))
    some = np.array([5, 0, 39, 5])
    assert np.array_equal(rows.RowReader(crops.images).read(some), spots().images[some])

    def cut(history):
        with open(tmp_path / "crops.npy", "rb+") as file:
            file.truncate(20 * 32 * 32)

    with pytest.raises(rows.DataVanished, match=r"crops\.npy; the file ends before row"):
        trained(tmp_path / "fit", crops, epochs=3, options={"on_epoch": cut})
    tensors, state = checkpoint.load_weights(tmp_path / "fit" / checkpoint.STATE)
    assert state["epoch"] == 1 and tensors


def test_temperature_is_the_one_of_least_log_loss():
    random = np.random.default_rng(0)
    true = random.normal(size=(3000, 4)) * 2
    labels = np.array([random.choice(4, p=softmax(row)) for row in true])
    found = calibration.fit_temperature(true * 3, labels)  # three times too confident
    assert found == pytest.approx(3, rel=0.1)
    losses = {t: log_loss(labels, softmax(true * 3 / t, axis=1)) for t in np.linspace(0.5, 1.5, 21) * found}
    assert min(losses, key=losses.get) == pytest.approx(found)


def test_operating_points_have_the_largest_youden_index_and_macro_auroc_is_scikit_learns():
    random = np.random.default_rng(1)
    labels = random.integers(0, 4, 300)
    probabilities = softmax(np.round(random.normal(size=(300, 4)) + 2 * np.eye(4)[labels], 1), axis=1)
    points = calibration.operating_points(probabilities, labels, list("abcd"))
    for i, key in enumerate("abcd"):
        fpr, tpr, _ = roc_curve(labels == i, probabilities[:, i])
        called = probabilities[:, i] >= points[key]
        youden = called[labels == i].mean() - called[labels != i].mean()
        assert youden == pytest.approx((tpr - fpr).max())
    absent = calibration.operating_points(probabilities[labels > 0], labels[labels > 0], list("abcd"))
    assert absent["a"] == 0.25
    expected = roc_auc_score(labels, probabilities, multi_class="ovr", average="macro")
    assert calibration.macro_auroc(probabilities, labels) == pytest.approx(expected)
    assert math.isnan(calibration.macro_auroc(probabilities[:3], np.zeros(3, int)))
