"""Figures of training say their numbers in words."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from thyroid_lib.plots import training as plots


@pytest.fixture(autouse=True)
def closed():
    yield
    plt.close("all")


@pytest.fixture
def history() -> pd.DataFrame:
    falling = np.linspace(1, 0.4, 6)
    return pd.DataFrame(
        {
            "epoch": np.arange(1, 7),
            "train_loss": falling,
            "val_loss": falling + 0.1,
            "ce": falling * 1.4,
            "val_ce": falling * 1.5,
            "focal": falling * 0.6,
            "val_focal": falling * 0.7,
            "val_auroc": np.linspace(0.5, 0.875, 6),
            "best": [False] * 5 + [True],
        }
    )


def metric(value):
    low, high = (None, None) if value is None else (value - 0.05, value + 0.05)
    reason = {"reason": "too few patients"} if value is None else {}
    return {"value": value, "low": low, "high": high, "n_images": 90, "n_patients": 40, **reason}


def test_learning_curves_name_the_best_epoch(history):
    figure = plots.learning_curves({"with": history, "without": history}, "mixed loss")
    assert "with: best epoch 6 of 6, validation AUROC 0.875" in figure.alt
    named = [text.get_text() for text in figure.legends[0].get_texts()]
    assert named == ["training", "validation", "best epoch", "with", "without"]


def test_the_parts_of_the_mixed_loss_have_a_panel_each(history):
    figure = plots.loss_parts([history, history], 0.5, 2.0)
    assert "focal loss falls from 0.60 to 0.24" in figure.alt and "2 fold(s)" in figure.alt
    assert len(figure.axes) == 3


def test_models_stand_side_by_side_and_too_few_patients_are_said():
    found = {
        "internal": {"finetuned": metric(0.85), "scratch": metric(0.8)},
        "external": {"finetuned": metric(None)},
    }
    figure = plots.models(found)
    assert "internal, pre-trained, fine-tuned: 0.85 (0.80 to 0.90)" in figure.alt
    assert "external, pre-trained, fine-tuned: too few" in figure.alt


def test_augmented_crops_stand_beside_the_original():
    images = np.zeros((2, 16, 16), np.uint8)
    figure = plots.augmentation(images, np.full((2, 3, 16, 16), 51, np.uint8))
    assert len(figure.axes) == 8 and "differ by 51 of 255" in figure.alt


def test_there_is_no_live_curve_outside_a_notebook():
    assert plots.live_curve("training") is None
