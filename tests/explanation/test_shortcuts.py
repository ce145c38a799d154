"""The shortcut audit, robustness curves and reviewers' tables: what must be caught, and what must not."""

import json
from pathlib import Path
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
from thyroid_lib.study import checklists
from thyroid_lib.study.checklists import NOT_DONE, REPORTED
from thyroid_lib.training import loop

SIZE = 48


def sectors(n, seed=0):
    """Crops with a dark margin and noise inside, without anything that tells the class."""
    images = np.zeros((n, SIZE, SIZE), np.uint8)
    images[:, 4:-4, 4:-4] = np.random.default_rng(seed).integers(60, 200, (n, SIZE - 8, SIZE - 8))
    return images


@pytest.fixture(scope="module")
def people():
    n = 240
    labels = np.arange(n) % 4
    patients = np.array([f"p{i // 8}{labels[i]}" for i in range(n)])  # two images each, one label
    folds = (np.arange(n) // 8) % 5
    return labels, patients, folds


@pytest.fixture(scope="module")
def model():
    return network.xception(4, in_chans=1, width=0.125, middle_blocks=1)


# views


def test_the_border_view_keeps_the_outline_and_nothing_deep():
    images = sectors(3)
    seen = views.border_only(images)
    assert (seen[:, 12:-12, 12:-12] == 0).all()
    assert np.array_equal(seen[:, :6], images[:, :6]) and seen[:, 4:6, 10:-10].any()
    assert images[:, 20, 20].all(), "the crops themselves are not touched"


def test_the_hidden_nodule_leaves_neither_texture_nor_shape():
    images, mask = sectors(2), np.zeros((2, SIZE, SIZE), np.uint8)
    mask[0, 18:30, 20:26] = 1
    seen = views.nodule_hidden(images, mask)
    patch = seen[0][mask[0] > 0]
    assert patch.std() == 0 and 90 < patch[0] < 170
    changed = np.argwhere(seen[0] != images[0])
    height, width = np.ptp(changed, axis=0) + 1
    assert abs(height - width) <= 2 and height >= 13  # a square, 1.2 times the longer side
    assert np.array_equal(seen[1], images[1])  # no mask, no change


def test_two_nodules_are_hidden_one_by_one_and_the_tissue_between_them_stays():
    images, mask = sectors(1), np.zeros((1, SIZE, SIZE), np.uint8)
    mask[0, 20:26, 6:12] = mask[0, 22:28, 36:42] = 1  # two panels of one frame
    seen = views.nodule_hidden(images, mask)
    assert not np.array_equal(seen[0, 20:26, 6:12], images[0, 20:26, 6:12])
    for left in (6, 36):
        assert seen[0, 23:25, left + 1 : left + 5].std() == 0
    assert np.array_equal(seen[0, :, 18:30], images[0, :, 18:30])


# readers


def marked(images, labels, chosen=slice(None)):
    """A copy of the images with a bar in the margin whose place tells the class."""
    result = images.copy()
    for i in np.arange(len(labels))[chosen]:
        result[i, 1:3, 6 + 8 * labels[i] : 12 + 8 * labels[i]] = 180
    return result


def test_print_in_the_margin_is_caught_by_the_pixel_reader_and_noise_is_not(people, model, looked):
    labels, patients, folds = people
    plain = sectors(len(labels))
    shown = {"crop": plain, "full frame": plain, views.PRINTED: marked(plain, labels)}
    part = looked(plain, labels, patients, model, folds=folds)
    found = shortcuts.score_views(part, np.arange(len(labels)), shown, draws=200)
    noise, cheat = (found[view]["pixels"] for view in ("full frame", views.PRINTED))
    assert noise["auroc"]["low"] < 0.5 < noise["auroc"]["high"]
    assert noise["difference"]["value"] == noise["difference"]["low"] == 0  # the same images, paired
    assert cheat["auroc"]["value"] > 0.95 and cheat["difference"]["low"] > 0.2
    assert cheat["from"] == "full frame" and cheat["difference"]["n_patients"] == len(set(patients))
    lines = shortcuts.verdicts({"views": found}).set_index(["question", "reader"])["verdict"]
    assert lines["does a printed answer raise the score?", "pixels"] == "warning"
    assert lines["does the sector's border alone tell the type?", "probe"] == "not done"


def test_print_on_real_frames_is_scored_on_the_classes_that_have_enough_of_it(people, looked):
    labels, patients, folds = people
    plain, order = sectors(len(labels)), np.arange(len(labels))
    texted = (order // 4 % 2 == 0) & ((labels != 2) | (order < 16))  # few frames of class 2 carry any
    frames, text = marked(plain, labels, texted), np.where(texted, "GRADE", "")
    crops = looked(plain, labels, patients, frames=frames, folds=folds, text=text).crops
    found = shortcuts.text_audit(crops, draws=200)
    assert found["with text"]["classes"] == ["0", "1", "3"] and found["without text"]["classes"] == [*"0123"]
    assert found["with text"]["difference"]["low"] > 0 and found["with text"]["full frame"]["value"] > 0.9
    assert found["all frames"]["difference"]["low"] > 0
    assert found["without text"]["difference"]["value"] == pytest.approx(0, abs=0.15)
    verdicts = shortcuts.verdicts({"text": found}).set_index("question")["verdict"]
    assert verdicts["does text on real frames raise the score?"] == "warning"
    assert verdicts["does a whole frame tell more than its crop?"] == "warning"


def test_the_probe_reads_features_that_tell_and_only_the_tested_fold(people, model, looked):
    labels, patients, folds = people
    images = sectors(len(labels))
    images[:, 4:-4, 4:-4] //= (1 + labels)[:, None, None].astype(np.uint8)  # brightness tells the class
    part = looked(images, labels, patients, model, folds=folds, fold=2)
    crop = shortcuts.score_views(part, np.arange(len(labels)), {"crop": images}, draws=100)["crop"]
    assert crop["probe"]["auroc"]["value"] > 0.9
    assert crop["probe"]["auroc"]["n_images"] == (folds == 2).sum()
    assert crop["pixels"]["auroc"]["n_images"] == len(labels)


@pytest.mark.parametrize("mirror", [False, True])
def test_the_crops_score_is_the_one_that_the_predictions_state(people, looked, mirror):
    labels, patients, folds = people
    torch.manual_seed(0)
    model = network.xception(4, in_chans=1, width=0.125, middle_blocks=1, mirror=mirror)
    images, own = sectors(len(labels)), folds == 2
    stated = np.random.default_rng(3).dirichlet(np.ones(4) / 2, own.sum()) + 0.3 * np.eye(4)[labels[own]]
    part = looked(images, labels, patients, model, folds=folds, fold=2, stated=stated, temperature=2.5)
    shown = {"crop": images, "border only": views.border_only(images)}
    found = shortcuts.score_views(part, np.arange(len(labels)), shown, draws=100)
    crop, border = found["crop"]["classifier"], found["border only"]["classifier"]
    expected = roc_auc_score(labels[own], stated / stated.sum(1, keepdims=True), multi_class="ovr")
    assert crop["auroc"]["value"] == pytest.approx(expected)
    read = softmax(loop.predict(model.eval(), images[own]).astype(float) / 2.5, axis=1)
    here = crop["read here"]["value"]
    assert here == pytest.approx(roc_auc_score(labels[own], read, multi_class="ovr"), abs=1e-3) != expected
    assert border["difference"]["value"] == pytest.approx(border["auroc"]["value"] - here)  # both read here


def test_the_source_is_told_where_it_shows_and_not_where_it_does_not():
    rng = np.random.default_rng(0)
    vectors, source = rng.normal(size=(120, 6)), np.repeat(["here", "there"], 60)
    patients = [f"p{i // 2}" for i in range(120)]
    blind = shortcuts.source_audit(vectors, source, patients, draws=200)["auroc"]
    assert blind["low"] < 0.5 < blind["high"]
    vectors[60:, 0] += 4
    assert shortcuts.source_audit(vectors, source, patients, draws=200)["auroc"]["low"] > 0.9
    alone = shortcuts.source_audit(vectors, ["here"] * 120, patients)
    assert alone == {"sources": {"here": 120}, "reason": "one source only"}


def test_features_do_not_depend_on_the_batch_and_leave_the_mode(model):
    model.train()
    images = sectors(5)
    whole = shortcuts.features(model, images)
    np.testing.assert_allclose(whole, shortcuts.features(model, images, batch_size=2), atol=1e-5)
    assert model.training and whole.shape == (5, 256)


def rise(clinic, printed) -> float:
    """Lower end of what print adds to the pixel reader's score on whole frames."""
    folds, patients = clinic.index["fold"].to_numpy(), clinic.index["patient"]
    sample = tested.Sample(patients, clinic.labels, range(4), draws=300)
    plain, cheat = (
        sample.macro_auroc(shortcuts.pixel_probe(frames, clinic.labels, folds, 4))
        for frames in (np.asarray(clinic.frames), printed)
    )
    return sample.metric(cheat - plain)["low"]


def clinic_of(spec, folder):
    frames = datasets.read(spec)
    frames["fold"] = np.unique(frames["patient"], return_inverse=True)[1] % 4
    return crops.build(frames, folder, size=64, jobs=1)


def test_the_answer_printed_on_phantoms_is_caught(tmp_path, monkeypatch):
    monkeypatch.setenv("THYROID_CACHE", str(tmp_path / "cache"))
    spec = "phantom:clinic?patients=64&seed=3"
    clinic = clinic_of(spec, tmp_path / "clinic")
    answer = crops.build(datasets.read(spec + "&answer=1"), tmp_path / "answer", size=64, jobs=1)
    assert np.array_equal(answer.images, clinic.images), "the print is outside the sector: crops are the same"
    read = views.answer_frames(spec, clinic)
    assert np.array_equal(read(np.array([5, 2])), answer.frames[[5, 2]])
    assert rise(clinic, read(np.arange(len(clinic)))) > 0, "the cheat is missed"
    assert views.answer_frames("folder:/x", clinic) is None
    assert views.answer_frames("phantom:clinic?patients=64&seed=4", clinic) is None, "other patients"


def test_the_answer_printed_on_frames_from_files_is_caught_and_the_files_stay(tmp_path, monkeypatch):
    monkeypatch.setenv("THYROID_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "hospital"
    for row in datasets.read("phantom:clinic?patients=64&seed=3").itertuples():
        target = folder / row.label / row.patient / f"{row.Index}.png"
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(Path(row.path).read_bytes())
    clinic = clinic_of(f"folder:{folder}", tmp_path / "clinic")
    before = {path: path.read_bytes() for path in folder.rglob("*.png")}
    printed = views.answer_frames(f"folder:{folder}", clinic)(np.arange(len(clinic)))
    assert rise(clinic, printed) > 0, "the cheat is missed"
    assert before == {path: path.read_bytes() for path in folder.rglob("*.png")}
    assert views.answer_frames("folder:/not/there", clinic) is None


def test_print_stands_under_the_sector_or_at_the_foot_of_a_frame_that_is_all_sector():
    frame = np.full((360, 560), 90, np.uint8)
    frame[300:] = 0
    printed = views.print_answer(frame, (80, 0, 400, 300), "TI-RADS 2–3")
    rows, columns = np.nonzero(printed != frame)
    assert rows.min() >= 300 and columns.min() >= 80, "outside the sector"
    whole = views.print_answer(frame, (0, 0, 560, 360), "TI-RADS 4a")
    assert np.nonzero(whole != frame)[0].min() > 330


# robustness


@pytest.mark.parametrize("kind", robustness.STRENGTHS)
def test_the_first_strength_changes_nothing_and_the_last_changes_something(kind):
    images, levels = sectors(3), robustness.STRENGTHS[kind]
    assert np.array_equal(robustness.change(images, kind, levels[0]), images)
    worst = robustness.change(images, kind, levels[-1])
    assert worst.shape == images.shape and worst.dtype == np.uint8 and not np.array_equal(worst, images)
    assert np.array_equal(worst, robustness.change(images, kind, levels[-1])), "seeded"


def test_changes_follow_their_definitions():
    flat = np.full((1, 40, 40), 100, np.uint8)
    assert (robustness.change(flat, "gain", 1.7) == 170).all()
    assert (robustness.change(flat, "gamma", 2.0) == round(255 * (100 / 255) ** 2)).all()
    moved = robustness.change(flat, "shift", 0.08)
    assert not moved[0, :3].any() and not moved[0, :, :3].any() and (moved[0, 3:, 3:] == 100).all()
    noisy = robustness.change(np.full((1, 400, 400), 100, np.uint8), "speckle", 0.15)
    assert noisy.std() == pytest.approx(15, rel=0.03)
    with pytest.raises(ValueError, match="expected one of"):
        robustness.change(flat, "rotation", 1)


class Read(SimpleNamespace):
    """Tested images whose reader is a plain function."""


def test_a_reader_of_brightness_suffers_from_gain_and_not_from_shift(people):
    labels, patients, _ = people
    images = np.clip(sectors(len(labels)) // 4 + (45 * labels)[:, None, None], 0, 255).astype(np.uint8)

    def by_brightness(seen):
        level = seen[:, 8:-8, 8:-8].mean((1, 2))
        return np.exp(-np.abs(level[:, None] - (32 + 45 * np.arange(4))) / 20)

    reader = Read(images=images, labels=labels, patients=patients, stated=by_brightness(images),
                  probabilities=by_brightness)  # fmt: skip
    found = robustness.curves(reader, {"gain": (1.0, 2.2), "shift": (0.0, 0.04)}, draws=100)
    assert found["gain"]["1"]["balanced_accuracy"]["value"] == 1.0
    assert found["gain"]["2.2"]["balanced_accuracy"]["high"] < 0.8
    assert found["shift"]["0.04"]["balanced_accuracy"]["value"] == 1.0


def test_robustness_starts_at_the_score_that_the_predictions_state(people):
    labels, patients, _ = people
    stated, read = np.random.default_rng(0).dirichlet(np.ones(4), (2, len(labels)))
    reader = Read(images=sectors(len(labels)), labels=labels, patients=patients, stated=stated,
                  probabilities=lambda seen: read)  # fmt: skip
    found = robustness.curves(reader, {"gain": (1.0, 1.3)}, draws=100)
    first, changed = found["gain"]["1"], found["gain"]["1.3"]
    assert first["macro_auroc"]["value"] == pytest.approx(roc_auc_score(labels, stated, multi_class="ovr"))
    assert first["read here"]["value"] == pytest.approx(roc_auc_score(labels, read, multi_class="ovr"))
    assert changed["macro_auroc"] == first["read here"]
    assert first["loss"]["value"] == changed["loss"]["value"] == 0  # the reading changed, not the images


@pytest.mark.parametrize("precision", ["32", "bf16"])
def test_a_report_says_how_changed_images_were_read(precision):
    about = {
        "tested": tested.Tested(None, np.arange(2), pd.DataFrame(), {0: None, 1: None}, {}, precision),
        "unchanged": {"read here": {"value": 0.8236, "low": 0.7, "high": 0.9}},
    }
    captions = [render(f"explanation/{name}.md.j2", **about) for name in ("views", "robustness")]
    assert "fold 0, one of the 2 tested" in captions[0]
    for text in captions:
        said = "bfloat16, in which the unchanged crops score 0.824 (0.700 to 0.900). Rises" in text
        assert said == (precision == "bf16")


# tested images


def test_predictions_of_other_data_or_other_members_are_refused():
    class Fake:
        size = SIZE

        def __init__(self):
            self.definition = {"training": {}, "temperature": [1.0]}

        def members(self):
            return [network.xception(2, in_chans=1, width=0.125, middle_blocks=1)]

    index = pd.DataFrame({"image": ["a", "b"], "fold": [0, 1], "patient": ["p", "q"]})
    data = crops.Crops("folder", index, np.zeros((2, SIZE, SIZE), np.uint8), None, None, ["x", "y"], {}, True,
                       "", None, "")  # fmt: skip
    rows = pd.DataFrame({"image": ["a", "b"], "fold": [0, 1], "p_x": [0.9, 0.2], "p_y": [0.1, 0.8]})
    with pytest.raises(ValueError, match="'c'"):
        tested.open_tested(data, Fake(), rows.assign(image=["a", "c"]))
    with pytest.raises(ValueError, match="one member"):
        tested.open_tested(data, Fake(), rows)
    found = tested.open_tested(data, Fake(), rows.head(1))
    assert list(found.table["predicted"]) == ["x"] and list(found.members) == [0]


# reviewers' tables


def test_every_item_is_answered_by_a_fact_the_authors_or_a_reason(tmp_path):
    answers, standards = checklists.facts(tmp_path), checklists.source()["standards"]
    assert set(standards) == {"CLAIM 2024", "TRIPOD+AI", "STARD-AI"}
    assert len(standards["CLAIM 2024"]) == 44
    for items in standards.values():
        assert len({item["item"] for item in items}) == len(items)
        for item in items:
            answer = item["answer"]
            assert answer == "authors" or answer.startswith("na: ") or answer in answers, item


def test_an_empty_run_claims_no_result(tmp_path):
    (tmp_path / "metrics.json").write_text("{}")
    filled = checklists.fill(tmp_path).set_index(["standard", "item"])
    assert set(filled["state"]) <= set(checklists.STATES)
    for item in ("30", "31", "32", "33"):
        assert filled.loc[("CLAIM 2024", item), "state"] == NOT_DONE
    assert filled.loc[("CLAIM 2024", "44"), "state"] == checklists.AUTHORS
    assert checklists.summary(filled.reset_index())["CLAIM 2024"][NOT_DONE] >= 4


def test_a_run_fills_its_numbers_in(tmp_path):
    metric = {"value": 0.81, "low": 0.7, "high": 0.9, "n_images": 50, "n_patients": 20}
    recorded = {
        "internal": {"finetuned": {"image": {"macro_auroc": metric, "sensitivity/a": metric}}},
        "draws": 2000,
    }
    (tmp_path / "metrics.json").write_text(json.dumps({"05_evaluate": recorded}))
    filled = checklists.fill(tmp_path).set_index(["standard", "item"])
    assert filled.loc[("CLAIM 2024", "32"), "state"] == REPORTED
    assert "0.81 (0.70 to 0.90)" in filled.loc[("CLAIM 2024", "32"), "value"]
    assert "2000 draws" in filled.loc[("CLAIM 2024", "29"), "value"]
    checklists.write(filled.reset_index(), tmp_path / "reviewers.csv")
    assert len(pd.read_csv(tmp_path / "reviewers.csv")) == len(filled)
    assert {p.name for p in checklists.write_cards(tmp_path, {"a": ("type a", "甲")})} == {
        "STUDY_CARD.md", "DATA_SHEET.md",
    }  # fmt: skip
    assert "0.81 (0.70 to 0.90)" in (tmp_path / "STUDY_CARD.md").read_text()


def test_the_flow_loses_no_image():
    counts = {
        "finetune": {
            "title": "clinic", "files": 100, "left_out": {"cannot be read": 3, "no region": 1}, "crops": 96,
            "patients": 40, "unlabelled": 6, "tested": 18, "tested_patients": 8, "not_tested": 72,
        }
    }  # fmt: skip
    ((files, cut, used),) = checklists.flow_steps(counts)
    assert files == ("Clinical data: clinic\n100 files", ["3 × cannot be read", "1 × no region"])
    assert cut[1] == ["6 × no label", "72 × in folds not tested in this run"]
    assert used[0].startswith("Internal testing\n18 images of 8 patients")
