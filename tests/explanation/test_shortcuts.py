"""The shortcut audit and robustness curves: what must be caught, and what must not."""

import shutil
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.special import softmax
from sklearn.metrics import roc_auc_score

from thyroid_lib import datasets, network
from thyroid_lib.common.templates import render
from thyroid_lib.data import crops
from thyroid_lib.explanation import robustness, shortcuts, tested, views
from thyroid_lib.training import loop

SIZE = 48


def sectors(n, seed=0):
    """Crops with a dark margin and noise inside, without anything that tells the class."""
    images = np.zeros((n, SIZE, SIZE), np.uint8)
    images[:, 4:-4, 4:-4] = np.random.default_rng(seed).integers(60, 200, (n, SIZE - 8, SIZE - 8))
    return images


N = 240
ROWS = np.arange(N)
LABELS = ROWS % 4
PATIENTS = np.array([f"p{i // 8}{label}" for i, label in enumerate(LABELS)])  # two images each, one label
FOLDS = ROWS // 8 % 5


@pytest.fixture(scope="module")
def model():
    return network.xception(4, in_chans=1, width=0.125, middle_blocks=1)


def test_the_border_view_keeps_the_outline_and_nothing_deep():
    images = sectors(3)
    seen = views.border_only(images)
    assert not seen[:, 12:-12, 12:-12].any() and images[:, 20, 20].all(), "the crops are not touched"
    assert np.array_equal(seen[:, :6], images[:, :6]) and seen[:, 4:6, 10:-10].any()


def test_hidden_nodules_leave_neither_texture_nor_shape_and_the_tissue_between_them_stays():
    images, mask = sectors(3), np.zeros((3, SIZE, SIZE), np.uint8)
    mask[0, 18:30, 20:26] = 1
    mask[1, 20:26, 6:12] = mask[1, 22:28, 36:42] = 1  # two panels of one frame
    seen = views.nodule_hidden(images, mask)
    patch = seen[0][mask[0] > 0]
    assert patch.std() == 0 and 90 < patch[0] < 170
    height, width = np.ptp(np.argwhere(seen[0] != images[0]), axis=0) + 1
    assert abs(height - width) <= 2 and height >= 13  # a square, 1.2 times the longer side
    assert all(seen[1, 23:25, left + 1 : left + 5].std() == 0 for left in (6, 36))
    assert np.array_equal(seen[1, :, 18:30], images[1, :, 18:30])
    assert np.array_equal(seen[2], images[2])  # no mask, no change


def marked(images, chosen=ROWS):
    """A copy of the images with a bar in the margin whose place tells the class."""
    result = images.copy()
    for i in ROWS[chosen]:
        result[i, 1:3, 6 + 8 * LABELS[i] : 12 + 8 * LABELS[i]] = 180
    return result


def test_readers_catch_print_in_the_margin_and_features_that_tell_and_not_noise(model, looked):
    plain, bright = sectors(N), sectors(N)
    bright[:, 4:-4, 4:-4] //= (1 + LABELS)[:, None, None].astype(np.uint8)  # brightness tells the class
    shown = {"crop": bright, "again": bright, "full frame": plain, views.PRINTED: marked(plain)}
    part = looked(bright, LABELS, PATIENTS, model.train(), folds=FOLDS, fold=2)
    found = shortcuts.score_views(part, ROWS, shown, draws=200)
    assert found["crop"]["probe"]["auroc"]["value"] > 0.9 and model.training, "the mode stays"
    assert found["crop"]["probe"]["auroc"]["n_images"] == (FOLDS == 2).sum(), "only the tested fold"
    again, noise, cheat = (found[view]["pixels"] for view in ("again", "full frame", views.PRINTED))
    assert noise["auroc"]["low"] < 0.5 < noise["auroc"]["high"] and noise["auroc"]["n_images"] == N
    assert again["difference"]["value"] == again["difference"]["low"] == 0  # the same images, paired
    assert cheat["auroc"]["value"] > 0.95 and cheat["difference"]["low"] > 0.2
    assert cheat["from"] == "full frame" and cheat["difference"]["n_patients"] == len(set(PATIENTS))
    lines = shortcuts.verdicts({"views": found}).set_index(["question", "reader"])["verdict"]
    assert lines["does a printed answer raise the score?", "pixels"] == "warning"
    assert lines["does the sector's border alone tell the type?", "probe"] == "not done"


def test_print_on_real_frames_is_scored_on_the_classes_that_have_enough_of_it(looked):
    plain, texted = sectors(N), (ROWS // 4 % 2 == 0) & ((LABELS != 2) | (ROWS < 16))  # few of class 2
    text = np.where(texted, "GRADE", "")
    part = looked(plain, LABELS, PATIENTS, frames=marked(plain, texted), folds=FOLDS, text=text)
    found = shortcuts.text_audit(part.crops, draws=200)
    assert found["with text"]["classes"] == ["0", "1", "3"] and found["without text"]["classes"] == [*"0123"]
    assert found["with text"]["difference"]["low"] > 0 and found["with text"]["full frame"]["value"] > 0.9
    assert found["all frames"]["difference"]["low"] > 0
    assert found["without text"]["difference"]["value"] == pytest.approx(0, abs=0.15)
    verdicts = shortcuts.verdicts({"text": found}).set_index("question")["verdict"]
    assert verdicts["does text on real frames raise the score?"] == "warning"
    assert verdicts["does a whole frame tell more than its crop?"] == "warning"


@pytest.mark.parametrize("mirror", [False, True])
def test_the_crops_score_is_the_one_that_the_predictions_state(looked, mirror):
    torch.manual_seed(0)
    model = network.xception(4, in_chans=1, width=0.125, middle_blocks=1, mirror=mirror)
    images, own = sectors(N), FOLDS == 2
    stated = np.random.default_rng(3).dirichlet(np.ones(4) / 2, own.sum()) + 0.3 * np.eye(4)[LABELS[own]]
    part = looked(images, LABELS, PATIENTS, model, folds=FOLDS, fold=2, stated=stated, temperature=2.5)
    shown = {"crop": images, "border only": views.border_only(images)}
    found = shortcuts.score_views(part, ROWS, shown, draws=100)
    crop, border = found["crop"]["classifier"], found["border only"]["classifier"]
    expected = roc_auc_score(LABELS[own], stated / stated.sum(1, keepdims=True), multi_class="ovr")
    assert crop["auroc"]["value"] == pytest.approx(expected)
    read = softmax(loop.predict(model.eval(), images[own]).astype(float) / 2.5, axis=1)
    here = crop["read here"]["value"]
    assert here == pytest.approx(roc_auc_score(LABELS[own], read, multi_class="ovr"), abs=1e-3) != expected
    assert border["difference"]["value"] == pytest.approx(border["auroc"]["value"] - here)  # both read here


def test_the_source_is_told_where_it_shows_and_not_where_it_does_not():
    vectors, source = np.random.default_rng(0).normal(size=(120, 6)), np.repeat(["here", "there"], 60)
    blind = shortcuts.source_audit(vectors, source, PATIENTS[:120], draws=200)["auroc"]
    assert blind["low"] < 0.5 < blind["high"]
    vectors[60:, 0] += 4
    assert shortcuts.source_audit(vectors, source, PATIENTS[:120], draws=200)["auroc"]["low"] > 0.9
    alone = shortcuts.source_audit(vectors, ["here"] * 120, PATIENTS[:120])
    assert alone == {"sources": {"here": 120}, "reason": "one source only"}


@pytest.fixture(scope="module")
def phantoms(tmp_path_factory):
    """A SPEC whose frames are simulated once."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("THYROID_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield "phantom:clinic?patients=40&seed=3"


@pytest.mark.parametrize("kind", ["phantoms", "files"])
def test_the_answer_printed_on_frames_is_caught_and_files_stay(kind, phantoms, tmp_path):
    files, spec = {}, phantoms if kind == "phantoms" else f"folder:{tmp_path / 'hospital'}"
    for row in datasets.read(phantoms).itertuples():
        target = tmp_path / "hospital" / row.label / row.patient / f"{row.Index}.png"
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(row.path, target)
        files[target] = target.read_bytes()
    frames = datasets.read(spec)
    frames["fold"] = np.unique(frames["patient"], return_inverse=True)[1] % 4
    clinic = crops.build(frames, tmp_path / "clinic", size=64, jobs=1)
    printed = views.answer_frames(spec, clinic)(np.arange(len(clinic)))
    sample = tested.Sample(clinic.index["patient"], clinic.labels, range(4), draws=300)
    shown, folds = (np.asarray(clinic.frames), printed), clinic.index["fold"].to_numpy()
    read = (shortcuts.pixel_probe(seen, clinic.labels, folds, 4) for seen in shown)
    plain, cheat = map(sample.macro_auroc, read)
    assert sample.metric(cheat - plain)["low"] > 0, "the cheat is missed"
    assert files == {path: path.read_bytes() for path in (tmp_path / "hospital").rglob("*.png")}
    assert views.answer_frames("folder:/x", clinic) is None
    assert views.answer_frames(phantoms.replace("seed=3", "seed=4"), clinic) is None, "other patients"


def test_print_stands_under_the_sector_or_at_the_foot_of_a_frame_that_is_all_sector():
    frame = np.full((360, 560), 90, np.uint8)
    frame[300:] = 0
    rows, columns = np.nonzero(views.print_answer(frame, (80, 0, 400, 300), "TI-RADS 2–3") != frame)
    assert rows.min() >= 300 and columns.min() >= 80, "outside the sector"
    rows, _ = np.nonzero(views.print_answer(frame, (0, 0, 560, 360), "TI-RADS 4a") != frame)
    assert rows.min() > 330


@pytest.mark.parametrize("kind", robustness.STRENGTHS)
def test_the_first_strength_changes_nothing_and_the_last_changes_something(kind):
    images, levels = sectors(3), robustness.STRENGTHS[kind]
    assert np.array_equal(robustness.change(images, kind, levels[0]), images)
    worst, again = (robustness.change(images, kind, levels[-1]) for _ in range(2))
    assert worst.shape == images.shape and worst.dtype == np.uint8 and not np.array_equal(worst, images)
    assert np.array_equal(worst, again), "seeded"


def test_changes_follow_their_definitions():
    flat, point = np.full((1, 400, 400), 100, np.uint8), np.zeros((1, 400, 400), np.uint8)
    point[0, 200, 200] = 255
    assert [robustness.change(flat, "gain", factor).max() for factor in (1.7, 3)] == [170, 255]
    assert (robustness.change(flat, "gamma", 2.0) == round(255 * (100 / 255) ** 2)).all()
    moved = robustness.change(flat, "shift", 0.08)
    assert not moved[0, :32].any() and not moved[0, :, :32].any() and (moved[0, 32:, 32:] == 100).all()
    assert robustness.change(flat, "speckle", 0.15).std() == pytest.approx(15, rel=0.03)
    assert robustness.change(point, "blur", 0.0025).max() == round(255 / (2 * np.pi)), "sigma is 1 px here"
    with pytest.raises(ValueError, match="expected one of"):
        robustness.change(flat, "rotation", 1)


def curves(images, stated, reader) -> dict:
    """Robustness of a reader that is a plain function."""
    part = {"images": images, "labels": LABELS, "patients": PATIENTS, "stated": stated}
    return robustness.curves(SimpleNamespace(**part, probabilities=reader), draws=100)


def test_a_reader_of_brightness_suffers_from_gain_and_not_from_shift():
    images = np.clip(sectors(N) // 4 + (45 * LABELS)[:, None, None], 0, 255).astype(np.uint8)

    def by_brightness(seen):
        level = seen[:, 8:-8, 8:-8].mean((1, 2))
        return np.exp(-np.abs(level[:, None] - (32 + 45 * np.arange(4))) / 20)

    found = curves(images, by_brightness(images), by_brightness)
    assert found["gain"]["1"]["balanced_accuracy"]["value"] == 1.0
    assert found["gain"]["2.2"]["balanced_accuracy"]["high"] < 0.8
    assert found["shift"]["0.04"]["balanced_accuracy"]["value"] == 1.0


def test_robustness_starts_at_the_score_that_the_predictions_state():
    stated, read = np.random.default_rng(0).dirichlet(np.ones(4), (2, N))
    first, changed, *_ = curves(sectors(N), stated, lambda seen: read)["gain"].values()
    assert first["macro_auroc"]["value"] == pytest.approx(roc_auc_score(LABELS, stated, multi_class="ovr"))
    assert first["read here"]["value"] == pytest.approx(roc_auc_score(LABELS, read, multi_class="ovr"))
    assert changed["macro_auroc"] == first["read here"]
    assert first["loss"]["value"] == changed["loss"]["value"] == 0  # the reading changed, not the images


@pytest.mark.parametrize("precision", ["32", "bf16"])
def test_a_report_says_how_changed_images_were_read(precision):
    looked = tested.Tested(None, np.arange(2), pd.DataFrame(), {0: None, 1: None}, {}, precision)
    about = {"tested": looked, "unchanged": {"read here": {"value": 0.8236, "low": 0.7, "high": 0.9}}}
    captions = [render(f"explanation/{name}.md.j2", **about) for name in ("views", "robustness")]
    assert "fold 0, one of the 2 tested" in captions[0]
    said = "bfloat16, in which the unchanged crops score 0.824 (0.700 to 0.900). Rises"
    assert [said in text for text in captions] == [precision == "bf16"] * 2


def test_predictions_of_other_data_or_other_members_are_refused(model, looked):
    data = looked(sectors(2), np.array([0, 1]), ["p", "q"], folds=np.array([0, 1])).crops
    data.index["image"] = ["a", "b"]
    about = {"training": {"folds": [0, 1]}, "temperature": [1.0]}
    fake = SimpleNamespace(size=SIZE, definition=about, members=lambda: [model])
    rows = pd.DataFrame({"image": ["a", "b"], "fold": [0, 1], "p_0": [0.9, 0.2], "p_1": [0.1, 0.8]})
    with pytest.raises(ValueError, match="'c'"):
        tested.open_tested(data, fake, rows.assign(image=["a", "c"]))
    with pytest.raises(ValueError, match="one member"):
        tested.open_tested(data, fake, rows)
    about["training"]["folds"] = [0]
    found = tested.open_tested(data, fake, rows.head(1))
    assert list(found.table["predicted"]) == ["0"] and list(found.members) == [0]
