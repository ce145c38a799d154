"""Auxiliary tasks: the masks move with the images, only what is known is asked, nothing of them is kept."""

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from small_training import MODEL, asked, interrupted, largest_difference, trained

from thyroid_lib import network
from thyroid_lib.training import auxiliary
from thyroid_lib.training.augmentation import Augmentation

ROWS = TRAIN, _ = np.arange(24), np.arange(24, 32)
PLAIN = {"model": MODEL | {"num_classes": 2}, "batch_size": 8}
ASKED = PLAIN | {"mask_weight": 1.0, "sign_weight": 0.5, "texture_weight": 0.5}


def described(**columns) -> pd.DataFrame:
    return pd.DataFrame({"image": np.arange(20).astype(str)} | {f"sign_{k}": v for k, v in columns.items()})


def questions_of(masks, index, *, signs=0.0, texture=0.0) -> auxiliary.Questions:
    images = np.random.default_rng(0).integers(0, 255, (len(index), 8, 8), dtype=np.uint8)
    crops = SimpleNamespace(images=images, masks=masks, index=index)
    weights = asked(mask_weight=1.0, sign_weight=signs, texture_weight=texture)
    return auxiliary.Questions(crops, np.arange(len(index)), weights)


def test_masks_are_moved_as_the_images_are_and_change_none():
    masks = np.zeros((6, 40, 40), np.uint8)
    masks[:, 8:20, 12:30] = 1
    geometry = Augmentation(gain=0, gamma=0, speckle=0, shadow=0, shift=0.2, scale=0.3)
    options = {"samples": np.arange(6), "seed": 1, "epoch": 3}
    images, moved = geometry(torch.from_numpy(255 * masks), masks=torch.from_numpy(masks), **options)
    assert np.abs(images.float().numpy() / 255 - moved.numpy()).max() <= 0.5 / 255 + 1e-6
    assert not np.array_equal(moved.numpy() > 0.5, masks > 0)
    assert torch.equal(geometry(torch.from_numpy(255 * masks), **options)[0], images)


def test_signs_become_codes_and_what_the_training_part_hardly_shows_is_unknown():
    margins = ["smooth"] * 8 + ["spiculated"] * 7 + ["lobulated"] * 2 + ["", np.nan, "smooth"]
    values, codes = auxiliary.described_signs(described(margins=margins, same=["solid"] * 20), np.arange(20))
    assert values == {"margins": ["smooth", "spiculated"]}  # a sign with one value asks nothing
    assert codes[:, 0].tolist() == [0] * 8 + [1] * 7 + [-1] * 4 + [0]
    form = described(form=["a"] * 6 + ["b"] * 6 + ["c"] * 8)  # c: in another part than that which teaches
    assert auxiliary.described_signs(form, np.arange(12))[1][:, 0].tolist() == [0] * 6 + [1] * 6 + [-1] * 8


def test_texture_is_measured_in_the_training_parts_own_spread():
    random = np.random.default_rng(0)
    images = random.integers(0, 255, (12, 16, 16), dtype=np.uint8)
    images[10:] = 255  # brighter than all that is learnt from
    masks = np.zeros_like(images)
    for mask in masks[:11]:
        mask[2 : random.integers(8, 14), 3 : random.integers(8, 14)] = 1
    crops = SimpleNamespace(images=images, masks=masks)
    texture = auxiliary.measured_texture(crops, np.arange(10), masks.any((1, 2)))
    plain = auxiliary.texture_features(images[:10], masks[:10])
    varied = plain.columns[plain.std() > 1e-6]
    assert texture.shape == (12, len(varied)) and texture.dtype == np.float32
    np.testing.assert_allclose(texture[:10].mean(0), 0, atol=0.2)  # clipping moves a mean a little
    assert np.abs(texture).max() <= 3 and (texture[11] == 0).all()
    assert texture[10, list(varied).index("mean")] == 3


@pytest.mark.parametrize("question", ["mask", "texture"])
def test_what_is_asked_for_is_learnt_from_the_image(crops, tmp_path, monkeypatch, question):
    pupils, Pupil = [], auxiliary.Pupil
    monkeypatch.setattr(auxiliary, "Pupil", lambda *a, **kw: pupils.append(Pupil(*a, **kw)) or pupils[-1])
    trained(tmp_path, crops, *ROWS, epochs=25, lr=4e-3, augment=0, **PLAIN, **{f"{question}_weight": 3.0})
    outlined = crops.index["mask_inside"].notna().to_numpy()
    rows = TRAIN[outlined[TRAIN]]
    with torch.inference_mode():
        _, mask, signs, texture = pupils[0].eval()(network.normalize(torch.from_numpy(crops.images[rows])))
    if question == "mask":
        masks = torch.from_numpy(crops.masks[rows]).float()
        answer, truth = torch.sigmoid(mask), F.adaptive_avg_pool2d(masks, mask.shape[1:])
    else:
        assert mask is None and signs == []
        answer, truth = texture, auxiliary.measured_texture(crops, TRAIN, outlined)[rows]
    assert np.corrcoef(np.ravel(answer), np.ravel(truth))[0, 1] > 0.5


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
    index = described().assign(label="benign", mask_inside=np.where(masks.any((1, 2)), 1.0, np.nan))
    index.loc[4, "label"] = "normal"
    rows = np.array([3, 4, 5])
    mask = torch.tensor([[[3.0]], [[-2.0]], [[1.0]]], requires_grad=True)
    targets = torch.from_numpy(masks[rows]).float()
    questions_of(masks, index).loss((mask, [], None), targets, rows, rows).backward()
    assert (mask.grad.flatten() != 0).tolist() == [True, True, False]


def test_the_shares_of_two_ranks_add_up_to_the_whole_as_by_hand():
    masks = np.zeros((20, 8, 8), np.uint8)
    masks[:13, 1:5, 2:6] = 1
    index = described(margins=["a", "b", "", "b"] * 5, form=["x"] * 11 + ["y"] * 9)
    index = index.assign(label="benign", mask_inside=np.where(masks.any((1, 2)), 1.0, np.nan))
    questions = questions_of(masks, index, signs=0.7, texture=0.3)
    random, rows = torch.Generator().manual_seed(0), np.arange(3, 20)
    shapes = (2, 2), (2,), (2,), (questions.texture.shape[1],)
    mask, margins, form, texture = (torch.randn(17, *shape, generator=random) for shape in shapes)
    targets = torch.from_numpy(masks[rows]).float()

    def loss(part=slice(None), *, signs=True, measures=True) -> float:
        answers = mask[part], [margins[part], form[part]] * signs, texture[part] if measures else None
        return float(questions.loss(answers, targets[part], rows[part], rows))

    assert loss(slice(0, 6)) + loss(slice(6, 17)) == pytest.approx(loss(), rel=1e-6)
    codes, options = torch.from_numpy(questions.codes[rows]), {"ignore_index": -1, "reduction": "sum"}
    of_signs = sum(F.cross_entropy(s, code, **options) for s, code in zip((margins, form), codes.T))
    assert loss() - loss(signs=False) == pytest.approx(0.7 * float(of_signs / (codes >= 0).sum()), rel=1e-5)
    apart = np.abs(texture.numpy() - questions.texture[rows])[masks[rows].any((1, 2))]
    of_texture = np.where(apart < 1, apart**2 / 2, apart - 0.5).mean()
    assert loss() - loss(measures=False) == pytest.approx(0.3 * of_texture, rel=1e-4)


def test_what_is_kept_is_the_network_alone_and_learnt_from_the_questions(crops, tmp_path):
    plain = trained(tmp_path / "plain", crops, *ROWS, **PLAIN)
    fit = trained(tmp_path / "x", crops, *ROWS, **ASKED)
    assert load_file(fit.weights).keys() == network.build(PLAIN["model"]).state_dict().keys()
    assert largest_difference(fit.weights, plain.weights) > 1e-4
    # the loss that is reported is the class's own, comparable between both
    assert fit.history.train_loss[0] == pytest.approx(plain.history.train_loss[0], rel=0.2)
    again, _ = interrupted(tmp_path / "again", crops, *ROWS, **ASKED)
    assert largest_difference(fit.weights, again.weights) == 0
    pd.testing.assert_frame_equal(fit.history, again.history, check_exact=True)


def test_questions_that_the_data_or_the_network_cannot_answer_are_refused(crops, tmp_path):
    index = crops.index.drop(columns=[c for c in crops.index if c.startswith("sign_")])
    bare = SimpleNamespace(images=crops.images, labels=crops.labels, masks=None, hash="bare", index=index)
    expected = {
        "mask": "crops with nodule masks",
        "sign": r"columns sign_\*",
        "texture": "at least two to learn",
    }
    for kind, said in expected.items():
        with pytest.raises(ValueError, match=f"expected .*{said}"):
            trained(tmp_path, bare, *ROWS, **PLAIN, **{f"{kind}_weight": 1.0})
    with pytest.raises(ValueError, match="asked of an Xception"):
        auxiliary.Pupil(torch.nn.Linear(2, 2), mask=True, signs={})
