"""Auxiliary tasks: the masks move with the images, only what is known is asked, nothing of them is kept."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file
from test_workers import largest_difference

from thyroid_lib import datasets, manifest, network
from thyroid_lib.data.crops import build
from thyroid_lib.training import auxiliary, loop
from thyroid_lib.training.augmentation import Augmentation

MODEL = {"name": "optimized_xception", "num_classes": 2, "in_chans": 1, "width": 0.0625, "middle_blocks": 1}
TRAIN, VALIDATION = np.arange(24), np.arange(24, 32)


@pytest.fixture(scope="module")
def crops(tmp_path_factory):
    folder = tmp_path_factory.mktemp("crops")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("THYROID_CACHE", str(folder / "cache"))
        frames = manifest.split(datasets.read("phantom:open?patients=16"), folds=2)
        return build(frames.head(32), folder / "data", size=32)


def asked(**changes) -> loop.Settings:
    plain = {"epochs": 2, "batch_size": 8, "lr": 2e-3, "precision": "32", "threads": 1}
    plain |= {"mask_weight": 1.0, "sign_weight": 0.5}
    return loop.Settings(model=MODEL, **plain | changes)


def described(**columns) -> pd.DataFrame:
    return pd.DataFrame({"image": np.arange(20).astype(str)} | {f"sign_{k}": v for k, v in columns.items()})


def questions_of(masks, index, *, mask=1.0, signs=0.0, texture=0.0) -> auxiliary.Questions:
    images = np.random.default_rng(0).integers(0, 255, (len(index), 8, 8), dtype=np.uint8)
    crops = SimpleNamespace(images=images, masks=masks, index=index)
    return auxiliary.Questions(crops, np.arange(len(index)), mask, signs, texture)


def test_masks_are_moved_as_the_images_are():
    masks = np.zeros((6, 40, 40), np.uint8)
    masks[:, 8:20, 12:30] = 1
    geometry = Augmentation(gain=0, gamma=0, speckle=0, shadow=0, shift=0.2, scale=0.3)
    images, moved = geometry(
        torch.from_numpy(255 * masks), np.arange(6), seed=1, epoch=3, masks=torch.from_numpy(masks)
    )
    assert np.abs(images.float().numpy() / 255 - moved.numpy()).max() <= 0.5 / 255 + 1e-6
    assert not np.array_equal(moved.numpy() > 0.5, masks > 0)


def test_asking_for_masks_changes_no_image():
    images = torch.from_numpy(np.random.default_rng(0).integers(0, 255, (5, 32, 32), dtype=np.uint8))
    plain, _ = Augmentation()(images, np.arange(5), seed=2, epoch=1)
    with_masks, _ = Augmentation()(images, np.arange(5), seed=2, epoch=1, masks=torch.zeros_like(images))
    assert torch.equal(plain, with_masks)


def test_signs_become_codes_and_what_the_training_part_hardly_shows_is_unknown():
    margins = ["smooth"] * 8 + ["spiculated"] * 7 + ["lobulated"] * 2 + [""] + [np.nan, "smooth"]
    values, codes = auxiliary.described_signs(described(margins=margins, same=["solid"] * 20), np.arange(20))
    assert values == {"margins": ["smooth", "spiculated"]}  # a sign with one value asks nothing
    assert codes[:, 0].tolist() == [0] * 8 + [1] * 7 + [-1] * 4 + [0]


def test_a_value_that_only_test_images_show_is_not_learnt_from():
    index = described(margins=["a"] * 6 + ["b"] * 6 + ["c"] * 8)
    values, codes = auxiliary.described_signs(index, np.arange(12))
    assert values == {"margins": ["a", "b"]} and set(codes[12:, 0]) == {-1}


def test_texture_is_measured_in_the_training_parts_own_spread():
    random = np.random.default_rng(0)
    images = random.integers(0, 255, (12, 16, 16), dtype=np.uint8)
    images[10:] = 255  # brighter than all that is learnt from
    masks = np.zeros_like(images)
    for mask in masks[:11]:
        mask[2 : random.integers(8, 14), 3 : random.integers(8, 14)] = 1
    crops = SimpleNamespace(images=images, masks=masks)
    outlined = masks.any((1, 2))
    texture = auxiliary.measured_texture(crops, np.arange(10), outlined)
    names = auxiliary.texture_features(images[:10], masks[:10])
    varied = names.columns[names.std() > 1e-6]
    assert texture.shape == (12, len(varied)) and texture.dtype == np.float32
    np.testing.assert_allclose(texture[:10].mean(0), 0, atol=0.2)  # clipping moves a mean a little
    assert np.abs(texture).max() <= 3 and (texture[11] == 0).all()
    assert texture[10, list(varied).index("mean")] == 3
    assert not outlined[11]


def test_texture_is_learnt_from_the_image(crops, tmp_path, monkeypatch):
    pupils = []
    make = auxiliary.Questions.pupil
    monkeypatch.setattr(
        auxiliary.Questions, "pupil", lambda self, model: pupils.append(make(self, model)) or pupils[-1]
    )
    settings = asked(epochs=25, lr=4e-3, augment=0, sign_weight=0, mask_weight=0, texture_weight=3.0)
    loop.fit(settings, crops, TRAIN, VALIDATION, tmp_path)
    outlined = crops.index["mask_inside"].notna().to_numpy()
    rows = TRAIN[outlined[TRAIN]]
    with torch.inference_mode():
        answers = pupils[0].eval()(network.normalize(torch.from_numpy(np.array(crops.images[rows]))))
    assert answers[1] is None and answers[2] == []
    truth = auxiliary.measured_texture(crops, TRAIN, outlined)[rows]
    assert np.corrcoef(answers[3].numpy().ravel(), truth.ravel())[0, 1] > 0.5


def test_a_right_mask_costs_nothing_and_a_wrong_one_much():
    truth = torch.zeros(3, 16, 16)
    truth[0, :8] = truth[1, :8] = 1
    answer = torch.full((3, 4, 4), -20.0)
    answer[0, :2] = 20.0  # right; the second says "nowhere", the third rightly so
    right, wrong, empty = auxiliary.mask_loss(answer, truth)
    assert right == pytest.approx(0, abs=1e-6) and empty == pytest.approx(0, abs=1e-6)
    # half of the pixels cost 20 each; soft Dice is 1 - 1 / (0 + 8 + 1)
    assert wrong == pytest.approx(20 / 2 + 0.5 * (1 - 1 / 9), rel=1e-5)


def test_frames_without_outline_are_asked_only_where_the_label_says_normal():
    masks = np.zeros((20, 8, 8), np.uint8)
    masks[:4, 2:6, 2:6] = 1
    index = described().assign(label="benign", mask_inside=np.nan)
    index.loc[:3, "mask_inside"] = 1.0
    index.loc[4, "label"] = "normal"
    questions = questions_of(masks, index)
    rows = np.array([3, 4, 5])
    mask = torch.tensor([[[3.0]], [[-2.0]], [[1.0]]], requires_grad=True)
    questions.loss(mask, [], None, torch.from_numpy(masks[rows]).float(), rows, rows).backward()
    assert (mask.grad.flatten() != 0).tolist() == [True, True, False]


def test_the_shares_of_two_ranks_add_up_to_the_whole():
    masks = np.zeros((20, 8, 8), np.uint8)
    masks[:13, 1:5, 2:6] = 1
    index = described(margins=["a", "b", "", "b"] * 5, form=["x"] * 11 + ["y"] * 9)
    index = index.assign(label="benign", mask_inside=np.where(masks.any((1, 2)), 1.0, np.nan))
    questions = questions_of(masks, index, signs=0.7, texture=0.3)
    random = torch.Generator().manual_seed(0)
    rows = np.arange(3, 20)
    mask = torch.randn(17, 2, 2, generator=random)
    signs = [torch.randn(17, 2, generator=random), torch.randn(17, 2, generator=random)]
    targets = torch.from_numpy(masks[rows]).float()
    texture = torch.randn(17, questions.texture.shape[1], generator=random)
    whole = questions.loss(mask, signs, texture, targets, rows, rows)
    shares = [
        questions.loss(mask[part], [s[part] for s in signs], texture[part], targets[part], rows[part], rows)
        for part in (slice(0, 6), slice(6, 17))
    ]
    assert float(sum(shares)) == pytest.approx(float(whole), rel=1e-6)
    known = (questions.codes[rows] >= 0).sum()
    by_hand = sum(
        torch.nn.functional.cross_entropy(s, torch.from_numpy(questions.codes[rows, k]), ignore_index=-1)
        * (questions.codes[rows, k] >= 0).sum()
        for k, s in enumerate(signs)
    )
    assert float(whole - questions.loss(mask, [], texture, targets, rows, rows)) == pytest.approx(
        0.7 * float(by_hand / known), rel=1e-5
    )
    outlined = masks[rows].any((1, 2))
    apart = np.abs(texture.numpy() - questions.texture[rows])[outlined]
    by_hand = np.where(apart < 1, apart**2 / 2, apart - 0.5).mean()
    assert float(whole - questions.loss(mask, signs, None, targets, rows, rows)) == pytest.approx(
        0.3 * by_hand, rel=1e-4
    )


def test_what_is_kept_is_the_network_alone_and_learnt_from_the_questions(crops, tmp_path):
    with_questions = loop.fit(asked(), crops, TRAIN, VALIDATION, tmp_path / "asked")
    plain = loop.fit(asked(mask_weight=0, sign_weight=0), crops, TRAIN, VALIDATION, tmp_path / "plain")
    kept = load_file(with_questions.weights)
    assert kept.keys() == network.build(MODEL).state_dict().keys()
    assert largest_difference(with_questions.weights, plain.weights) > 1e-4
    # the loss that is reported is the class's own, comparable between both
    first = [fit.history.train_loss.iloc[0] for fit in (with_questions, plain)]
    assert first[0] == pytest.approx(first[1], rel=0.2)


def test_the_mask_is_found_after_training(crops, tmp_path, monkeypatch):
    pupils = []
    make = auxiliary.Questions.pupil
    monkeypatch.setattr(
        auxiliary.Questions, "pupil", lambda self, model: pupils.append(make(self, model)) or pupils[-1]
    )
    settings = asked(epochs=25, lr=4e-3, augment=0, sign_weight=0, mask_weight=3.0)
    loop.fit(settings, crops, TRAIN, VALIDATION, tmp_path)
    x = network.normalize(torch.from_numpy(np.array(crops.images[TRAIN])))
    with torch.inference_mode():
        mask = pupils[0].eval()(x)[1]
    truth = torch.nn.functional.adaptive_avg_pool2d(
        torch.from_numpy(np.array(crops.masks[TRAIN])).float()[:, None], mask.shape[1:]
    )[:, 0]
    agreement = np.corrcoef(torch.sigmoid(mask).numpy().ravel(), truth.numpy().ravel())[0, 1]
    assert agreement > 0.6


def test_interrupted_with_questions_it_ends_with_the_same_bits(crops, tmp_path):
    settings = asked(epochs=3, ema=0.9, monitor="last", texture_weight=0.5)
    undisturbed = loop.fit(settings, crops, TRAIN, VALIDATION, tmp_path / "undisturbed")

    def stop(history):
        raise KeyboardInterrupt

    for _ in range(3):
        with pytest.raises(KeyboardInterrupt):
            loop.fit(settings, crops, TRAIN, VALIDATION, tmp_path / "again", on_epoch=stop)
    again = loop.fit(settings, crops, TRAIN, VALIDATION, tmp_path / "again")
    assert largest_difference(undisturbed.weights, again.weights) == 0
    pd.testing.assert_frame_equal(undisturbed.history, again.history, check_exact=True)


def test_two_ranks_ask_the_same_questions_as_one(crops, tmp_path):
    settings = asked(frozen_batchnorm=True, ema=0.9, epochs=1, texture_weight=0.5)
    one = loop.fit(settings, crops, TRAIN, VALIDATION, tmp_path / "one")
    two = loop.fit(
        loop.Settings(**{**vars(settings), "devices": 2}), crops, TRAIN, VALIDATION, tmp_path / "two"
    )
    assert largest_difference(one.weights, two.weights) < 1e-5


def test_the_last_epoch_is_kept_whatever_it_scores(crops, tmp_path):
    fit = loop.fit(asked(monitor="last", epochs=3), crops, TRAIN, VALIDATION, tmp_path)
    assert fit.best_epoch == 3 and fit.history.best.tolist() == [False, False, True]


@pytest.mark.parametrize(
    "changes, said",
    [
        ({"mask_weight": 1.0, "sign_weight": 0.0}, "expected crops with nodule masks"),
        ({"mask_weight": 0.0, "sign_weight": 1.0}, r"columns sign_\*"),
        (
            {"mask_weight": 0.0, "sign_weight": 0.0, "texture_weight": 1.0},
            "at least two of the training part",
        ),
    ],
)
def test_questions_that_the_data_cannot_answer_are_refused(crops, tmp_path, changes, said):
    bare = SimpleNamespace(
        images=crops.images,
        labels=crops.labels,
        masks=None,
        hash="bare",
        index=crops.index.drop(columns=[c for c in crops.index if c.startswith("sign_")]),
    )
    with pytest.raises(ValueError, match=said):
        loop.fit(asked(**changes), bare, TRAIN, VALIDATION, Path(tmp_path))


def test_a_network_without_a_middle_flow_cannot_be_asked():
    with pytest.raises(ValueError, match="asked of an Xception"):
        auxiliary.Pupil(torch.nn.Linear(2, 2), mask=True, signs={})
