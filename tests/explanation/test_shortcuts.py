"""The shortcut audit, robustness curves and reviewers' tables: what must be caught, and what must not."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.special import softmax
from sklearn.metrics import roc_auc_score

from thyroid_lib import datasets, network
from thyroid_lib.data import crops
from thyroid_lib.evaluation.bootstrap import Clusters
from thyroid_lib.explanation import audits, robustness, shortcuts, tested
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
    seen = shortcuts.border_only(images)
    assert (seen[:, 12:-12, 12:-12] == 0).all()
    assert np.array_equal(seen[:, :6], images[:, :6]) and seen[:, 4:6, 10:-10].any()
    assert images[:, 20, 20].all(), "the crops themselves are not touched"


def test_the_hidden_nodule_leaves_neither_texture_nor_shape():
    images, mask = sectors(2), np.zeros((2, SIZE, SIZE), np.uint8)
    mask[0, 18:30, 20:26] = 1
    seen = shortcuts.nodule_hidden(images, mask)
    patch = seen[0][mask[0] > 0]
    assert patch.std() == 0 and 90 < patch[0] < 170
    changed = np.argwhere(seen[0] != images[0])
    height, width = np.ptp(changed, axis=0) + 1
    assert abs(height - width) <= 2 and height >= 13  # a square, 1.2 times the longer side
    assert np.array_equal(seen[1], images[1])  # no mask, no change


def test_two_nodules_are_hidden_one_by_one_and_the_tissue_between_them_stays():
    images, mask = sectors(1), np.zeros((1, SIZE, SIZE), np.uint8)
    mask[0, 20:26, 6:12] = mask[0, 22:28, 36:42] = 1  # two panels of one frame
    seen = shortcuts.nodule_hidden(images, mask)
    assert not np.array_equal(seen[0, 20:26, 6:12], images[0, 20:26, 6:12])
    for left in (6, 36):
        assert seen[0, 23:25, left + 1 : left + 5].std() == 0
    assert np.array_equal(seen[0, :, 18:30], images[0, :, 18:30])


# readers


def test_print_in_the_margin_is_caught_by_the_pixel_reader_and_noise_is_not(people, model):
    labels, patients, folds = people
    plain = sectors(len(labels))
    printed = plain.copy()
    for i, label in enumerate(labels):
        printed[i, 1:3, 6 + 8 * label : 12 + 8 * label] = 180
    views = {"crop": plain, "full frame": plain, "full frame, answer printed": printed}
    found = shortcuts.shortcut_audit(
        model, views, labels, patients, folds, 0, 4, draws=200,
        against={"full frame, answer printed": "full frame"},
    )  # fmt: skip
    noise, cheat = (found[view]["pixels"] for view in ("full frame", "full frame, answer printed"))
    assert noise["auroc"]["low"] < 0.5 < noise["auroc"]["high"]
    assert noise["difference"]["value"] == noise["difference"]["low"] == 0  # the same images, paired
    assert cheat["auroc"]["value"] > 0.95 and cheat["difference"]["low"] > 0.2
    assert cheat["from"] == "full frame" and cheat["difference"]["n_patients"] == len(set(patients))
    lines = {(x["question"], x["reader"]): x for x in shortcuts.verdicts(found, {})}
    assert lines["does a printed answer raise the score?", "pixels"]["verdict"] == "warning"
    assert lines["does the sector's border alone tell the type?", "probe"]["verdict"] == "not done"


def printed_set(people, spare):
    """Frames of four classes, some with print that tells the class; few frames of class `spare` carry any."""
    labels, patients, folds = people
    plain, frames = sectors(len(labels)), sectors(len(labels))
    texted = (np.arange(len(labels)) // 4 % 2 == 0) & ((labels != spare) | (np.arange(len(labels)) < 16))
    for i in np.flatnonzero(texted):
        frames[i, 1:3, 6 + 8 * labels[i] : 12 + 8 * labels[i]] = 180
    index = pd.DataFrame({"patient": patients, "fold": folds, "text": np.where(texted, "GRADE", "")})
    index["label"] = labels.astype(str)
    return crops.Crops("folder", index, plain, frames, None, [*"0123"], {}, False, "", None, "")


def test_print_on_real_frames_is_scored_on_the_classes_that_have_enough_of_it(people):
    found = shortcuts.text_audit(printed_set(people, spare=2), draws=200)
    assert found["with text"]["classes"] == ["0", "1", "3"] and found["without text"]["classes"] == [*"0123"]
    assert found["with text"]["difference"]["low"] > 0 and found["with text"]["full frame"]["value"] > 0.9
    assert found["all frames"]["difference"]["low"] > 0
    assert found["without text"]["difference"]["value"] == pytest.approx(0, abs=0.15)
    verdicts = {line["question"]: line["verdict"] for line in shortcuts.verdicts({}, {}, found)}
    assert verdicts["does text on real frames raise the score?"] == "warning"
    assert verdicts["does a whole frame tell more than its crop?"] == "warning"


def test_the_probe_reads_features_that_tell_and_only_the_tested_fold(people, model):
    labels, patients, folds = people
    images = sectors(len(labels))
    images[:, 4:-4, 4:-4] //= (1 + labels)[:, None, None].astype(np.uint8)  # brightness tells the class
    found = shortcuts.shortcut_audit(model, {"crop": images}, labels, patients, folds, 2, 4, draws=100)
    assert found["crop"]["probe"]["auroc"]["value"] > 0.9
    assert found["crop"]["probe"]["auroc"]["n_images"] == (folds == 2).sum()
    assert found["crop"]["pixels"]["auroc"]["n_images"] == len(labels)


@pytest.mark.parametrize("mirror", [False, True])
def test_the_crops_score_is_the_one_that_the_predictions_state(people, mirror):
    labels, patients, folds = people
    torch.manual_seed(0)
    model = network.xception(4, in_chans=1, width=0.125, middle_blocks=1, mirror=mirror)
    images, own = sectors(len(labels)), folds == 2
    stated = np.random.default_rng(3).dirichlet(np.ones(4) / 2, own.sum()) + 0.3 * np.eye(4)[labels[own]]
    views = {"crop": images, "border only": shortcuts.border_only(images)}
    options = {"draws": 100, "temperature": 2.5}
    found, without = (
        shortcuts.shortcut_audit(model, views, labels, patients, folds, 2, 4, known=known, **options)
        for known in (stated, None)
    )
    crop, plain = found["crop"]["classifier"], without["crop"]["classifier"]
    expected = roc_auc_score(labels[own], stated / stated.sum(1, keepdims=True), multi_class="ovr")
    assert crop["auroc"]["value"] == pytest.approx(expected) and crop["auroc"] != plain["auroc"]
    assert crop["read here"] == plain["auroc"] and "read here" not in plain
    assert (
        found["border only"] == without["border only"]
    )  # differences are between images that were both read here
    with torch.no_grad():
        logits = loop.predict(model.eval(), images[own]).astype(float)
    read = softmax(logits / 2.5, axis=1)
    assert plain["auroc"]["value"] == pytest.approx(
        roc_auc_score(labels[own], read, multi_class="ovr"), abs=1e-3
    )


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


def test_the_answer_printed_on_phantoms_is_caught(tmp_path, monkeypatch):
    monkeypatch.setenv("THYROID_CACHE", str(tmp_path / "cache"))
    spec = "phantom:clinic?patients=64&seed=3"
    frames = datasets.read(spec)
    frames["fold"] = frames["patient"].str[1:].astype(int) % 4
    clinic = crops.build(frames, tmp_path / "clinic", size=64, jobs=1)
    answer = audits.answer_crops(spec, clinic, tmp_path / "answer", jobs=1)
    assert list(answer.index["image"]) == list(clinic.index["image"])
    assert np.array_equal(answer.images, clinic.images), "the print is outside the sector: crops are the same"
    labels, patients = clinic.labels, clinic.index["patient"].to_numpy()
    clusters = Clusters(patients, 300)
    score = {}
    for name, frame in (("plain", clinic.frames), ("printed", answer.frames)):
        read = shortcuts.pixel_probe(np.asarray(frame), labels, clinic.index["fold"].to_numpy(), 4)
        score[name] = shortcuts.macro_auroc(read, labels, clusters)
    rise = np.quantile((score["printed"] - score["plain"])[1:], 0.025)
    assert rise > 0, f"the cheat is missed: {score['plain'][0]:.2f} to {score['printed'][0]:.2f}"
    assert audits.answer_crops("folder:/x", clinic, tmp_path / "none") is None
    rows = np.array([5, 2])
    seen = audits.answer_frames(spec, clinic, tmp_path / "again", jobs=1)(rows)
    assert np.array_equal(seen, answer.frames[rows])


def test_the_answer_printed_on_frames_from_files_is_caught_and_the_files_stay(tmp_path, monkeypatch):
    monkeypatch.setenv("THYROID_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "hospital"
    for row in datasets.read("phantom:clinic?patients=64&seed=3").itertuples():
        target = folder / row.label / row.patient / f"{row.Index}.png"
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(Path(row.path).read_bytes())
    frames = datasets.read(f"folder:{folder}")
    frames["fold"] = np.unique(frames["patient"], return_inverse=True)[1] % 4
    clinic = crops.build(frames, tmp_path / "clinic", size=64, jobs=1)
    before = {path: path.read_bytes() for path in folder.rglob("*.png")}
    rows = np.arange(len(clinic))
    seen = audits.answer_frames(f"folder:{folder}", clinic, tmp_path / "unused")(rows)
    folds, clusters = clinic.index["fold"].to_numpy(), Clusters(clinic.index["patient"].to_numpy(), 300)
    score = [
        shortcuts.macro_auroc(
            shortcuts.pixel_probe(np.asarray(s), clinic.labels, folds, 4), clinic.labels, clusters
        )
        for s in (clinic.frames, seen)
    ]
    assert np.quantile((score[1] - score[0])[1:], 0.025) > 0, (
        f"missed: {score[0][0]:.2f} to {score[1][0]:.2f}"
    )
    assert before == {path: path.read_bytes() for path in folder.rglob("*.png")}
    assert audits.answer_frames("folder:/not/there", clinic, tmp_path / "unused") is None


def test_print_stands_under_the_sector_or_at_the_foot_of_a_frame_that_is_all_sector():
    frame = np.full((360, 560), 90, np.uint8)
    frame[300:] = 0
    printed = audits.print_answer(frame, (80, 0, 400, 300), "TI-RADS 2–3")
    rows, columns = np.nonzero(printed != frame)
    assert rows.min() >= 300 and columns.min() >= 80, "outside the sector"
    whole = audits.print_answer(frame, (0, 0, 560, 360), "TI-RADS 4a")
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


def test_a_reader_of_brightness_suffers_from_gain_and_not_from_shift(people):
    labels, patients, _ = people
    images = np.clip(sectors(len(labels)) // 4 + (45 * labels)[:, None, None], 0, 255).astype(np.uint8)

    def by_brightness(seen):
        level = seen[:, 8:-8, 8:-8].mean((1, 2))
        return np.exp(-np.abs(level[:, None] - (32 + 45 * np.arange(4))) / 20)

    found = robustness.curves(
        by_brightness, images, labels, patients, draws=100,
        strengths={"gain": (1.0, 2.2), "shift": (0.0, 0.04)},
    )  # fmt: skip
    assert found["gain"]["1"]["balanced_accuracy"]["value"] == 1.0
    assert found["gain"]["2.2"]["balanced_accuracy"]["high"] < 0.8
    assert found["shift"]["0.04"]["balanced_accuracy"]["value"] == 1.0


def test_robustness_starts_at_the_score_that_the_predictions_state(people):
    labels, patients, _ = people
    images = sectors(len(labels))
    stated, read = np.random.default_rng(0).dirichlet(np.ones(4), (2, len(labels)))
    found = robustness.curves(
        lambda seen: read, images, labels, patients, draws=100, known=stated,
        strengths={"gain": (1.0, 1.3)},
    )  # fmt: skip
    first, changed = found["gain"]["1"], found["gain"]["1.3"]
    assert first["macro_auroc"]["value"] == pytest.approx(roc_auc_score(labels, stated, multi_class="ovr"))
    assert first["read here"]["value"] == pytest.approx(roc_auc_score(labels, read, multi_class="ovr"))
    assert changed["macro_auroc"] == first["read here"]
    assert first["loss"]["value"] == changed["loss"]["value"] == 0  # the reading changed, not the images


@pytest.mark.parametrize("precision", ["32", "bf16"])
def test_a_report_says_how_changed_images_were_read(precision):
    metric = {"value": 0.8236, "low": 0.7, "high": 0.9}
    looked = tested.Tested(None, np.arange(2), pd.DataFrame(), {0: None, 1: None}, {}, precision)
    views = audits.views_caption(looked, {"views": {"crop": {"classifier": {"read here": metric}}}})
    curves = audits.robustness_caption(looked, {"gain": {"1": {"read here": metric}}})
    assert "fold 0, one of the 2 tested" in views
    for text in (views, curves):
        assert ("bfloat16, in which the unchanged crops score 0.824 (0.700 to 0.900)." in text) == (
            precision == "bf16"
        )


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
