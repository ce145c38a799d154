"""Figures of training say their numbers in words."""

import numpy as np
import pandas as pd
import pytest

from thyroid_lib.plots import training as plots


@pytest.fixture
def history() -> pd.DataFrame:
    falling = np.linspace(1, 0.4, 6)
    scales = {"train_loss": 1, "ce": 1.4, "val_ce": 1.5, "focal": 0.6, "val_focal": 0.7}
    table = pd.DataFrame({name: falling * scale for name, scale in scales.items()})
    best = [False] * 5 + [True]
    return table.assign(
        epoch=range(1, 7), val_loss=falling + 0.1, val_auroc=np.linspace(0.5, 0.875, 6), best=best
    )


def test_learning_curves_name_the_best_epoch_and_none_is_live_outside_a_notebook(history):
    assert plots.live_curve("training") is None
    figure = plots.learning_curves({"with": history, "without": history}, "mixed loss")
    assert "with: best epoch 6 of 6, validation AUROC 0.875" in figure.alt
    named = [text.get_text() for text in figure.legends[0].get_texts()]
    assert named == ["training", "validation", "best epoch", "with", "without"]


def test_the_parts_of_the_mixed_loss_have_a_panel_each(history):
    figure = plots.loss_parts([history, history], 0.5, 2.0)
    assert "focal loss falls from 0.60 to 0.24" in figure.alt and "2 fold(s)" in figure.alt
    assert len(figure.axes) == 3


def test_models_stand_side_by_side_and_too_few_patients_are_said():
    known = {"value": 0.85, "low": 0.8, "high": 0.9, "n_images": 90, "n_patients": 40}
    few = dict.fromkeys(known) | {"reason": "too few patients"}
    figure = plots.models(
        {"internal": {"finetuned": known, "scratch": known}, "external": {"finetuned": few}}
    )
    assert "internal, pre-trained, fine-tuned: 0.85 (0.80 to 0.90)" in figure.alt
    assert "external, pre-trained, fine-tuned: too few" in figure.alt


def test_augmented_crops_stand_beside_the_original():
    images = np.zeros((2, 16, 16), np.uint8)
    figure = plots.augmentation(images, np.full((2, 3, 16, 16), 51, np.uint8))
    assert len(figure.axes) == 8 and "differ by 51 of 255" in figure.alt
