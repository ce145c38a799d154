"""Crops on disk: right pixels, everything left out listed, the same for any number of workers."""

import subprocess
import sys
from dataclasses import replace
from unittest.mock import Mock

import cv2
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from small_images import speckle

from thyroid_lib import datasets, manifest, plots, regions
from thyroid_lib.data import audit, crops
from thyroid_lib.data.crops import Crops


@pytest.fixture(scope="module")
def phantom_table(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("THYROID_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield datasets.read("phantom:clinic?patients=8")


@pytest.fixture(scope="module")
def built(phantom_table, tmp_path_factory) -> Crops:
    return crops.build(phantom_table, tmp_path_factory.mktemp("run") / "finetune", size=48, jobs=1)


def test_crops_are_what_extract_gives(phantom_table, built):
    assert len(built) == len(phantom_table) and built.images.shape == (len(built), 48, 48)
    for place in (0, len(built) - 1):
        row = phantom_table.iloc[place]
        frame = datasets.load_frame(row)
        image, region = regions.extract(frame, 48)
        assert np.array_equal(built.images[place], image)
        assert np.array_equal(built.frames[place], regions.letterbox(frame, 48))
        x, y, width, height = region.box
        mask = datasets.load_mask(row, frame.shape)[y : y + height, x : x + width]
        assert np.array_equal(built.masks[place], regions.letterbox(mask, 48))
        index = built.index.loc[place]
        assert tuple(index[["box_x", "box_y", "box_width", "box_height"]]) == region.box
        assert (index["frame_height"], index["frame_width"]) == frame.shape
        assert index["image"] == row["image"]


def test_opened_crops_know_their_origin_and_name_no_path_of_this_machine(phantom_table, built):
    again = Crops.open(built.folder)
    assert again.classes == phantom_table.attrs["classes"] and again.simulated
    assert again.names["papillary_carcinoma"] == ("papillary carcinoma", "甲状腺乳头状癌")
    assert again.recipe == regions.RECIPE and again.size == 48 and again.hash == built.hash
    assert [again.classes[label] for label in again.labels] == list(phantom_table["label"])
    assert not again.images.flags.writeable
    assert again.index["caliper"].dtype == bool and again.index["age"].dtype.kind == "i"
    root = phantom_table["path"].iloc[0].split("/frames/")[0]
    for name in ("crops.json", "index.csv", "excluded.csv"):
        assert root not in (built.folder / name).read_text(encoding="utf-8")
    assert not {"path", "mask"} & set(built.index)


def test_workers_do_not_change_a_byte(phantom_table, built, tmp_path, monkeypatch):
    monkeypatch.setattr(crops, "WORTH_WORKERS", 1)
    monkeypatch.setattr(crops, "CHUNK", 3)
    parallel = crops.build(phantom_table, tmp_path / "parallel", size=48, jobs=2)
    assert parallel.hash == built.hash
    for name in ("crops.npy", "frames.npy", "masks.npy", "index.csv", "crops.json"):
        assert (parallel.folder / name).read_bytes() == (built.folder / name).read_bytes()


def test_frames_without_a_crop_are_listed_with_the_reason(phantom_table, built, tmp_path):
    table, bad = phantom_table.copy(), [1, 3, 4]
    (tmp_path / "empty.png").write_bytes(b"")
    (tmp_path / "text.png").write_text("no image")
    table.loc[bad, "path"] = [str(tmp_path / name) for name in ("empty.png", "text.png", "gone.png")]
    found = crops.build(table, tmp_path / "crops", size=48, jobs=1)
    assert list(found.excluded["image"]) == list(table.loc[bad, "image"])
    assert found.excluded["reason"].str.len().min() > 10
    assert not found.excluded["reason"].str.contains(str(tmp_path), regex=False).any()
    assert list(found.index["image"]) == list(table.drop(index=bad)["image"])
    for kind in ("images", "masks"):
        assert np.array_equal(getattr(found, kind), np.delete(getattr(built, kind), bad, axis=0))
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"none of 3 gave a crop.*first reason"):
        crops.build(table.loc[bad], tmp_path / "empty" / "crops", size=32, jobs=1)
    with pytest.raises(ValueError, match="at least 8 px"):
        crops.build(phantom_table, tmp_path / "empty" / "crops", size=0)
    assert not list((tmp_path / "empty").iterdir())  # nothing half-made is left


def test_a_broken_off_build_keeps_the_former_crops(phantom_table, tmp_path, monkeypatch):
    first = crops.build(phantom_table.iloc[:3], tmp_path / "crops", size=32, jobs=1)
    monkeypatch.setattr(crops, "_one", Mock(side_effect=KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        crops.build(phantom_table, tmp_path / "crops", size=32, jobs=1)
    assert Crops.open(tmp_path / "crops").hash == first.hash
    assert [path.name for path in tmp_path.iterdir()] == ["crops"]


def test_sources_may_lack_masks_and_labels_and_their_text_stays_text(phantom_table, tmp_path):
    table = phantom_table.drop(columns="mask")
    table["patient"] = table["group"] = [f"{number:03d}" for number in range(len(table))]
    table["label"] = ""
    found = crops.build(table, tmp_path / "crops", size=32, jobs=1)
    assert found.masks is None and found.index["mask_inside"].isna().all()
    assert list(found.index["patient"]) == list(table["patient"])
    assert (found.labels == -1).all() and (found.index["label"] == "").all()
    partly = phantom_table.copy()
    partly.loc[0, "mask"] = ""
    found = crops.build(partly, tmp_path / "partly", size=32, jobs=1)
    assert not found.masks[0].any() and found.masks[1].any()
    assert np.isnan(found.index["mask_inside"][0]) and found.index["mask_inside"][1] == 1


def test_a_missing_folder_says_what_to_run(tmp_path, sees):
    with pytest.raises(FileNotFoundError, match=sees):
        Crops.open(tmp_path / "nothing")


def test_memory_does_not_grow_with_the_number_of_frames(tmp_path):
    # the same frame many times over: 200 rows must need no more working memory than 20
    cv2.imwrite(str(tmp_path / "frame.png"), np.pad(speckle(0, (310, 380)), ((20, 30), (90, 90))))
    script = """
import resource, sys
import pandas as pd
from thyroid_lib.data import crops
row = {"path": f"{sys.argv[1]}/frame.png", "label": "a", "patient": "p", "group": "p", "dataset": "t"}
for count in 20, 200:
    table = pd.DataFrame([{"image": f"{i}.png", **row} for i in range(count)])
    crops.build(table, f"{sys.argv[1]}/crops", size=64, jobs=1)
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""
    command = [sys.executable, "-c", script, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    few, many = (int(line) / 1024 for line in done.stdout.splitlines())
    assert many - few < 16, f"MiB at 20 and 200 frames: {few}, {many}"


# --- what notebook 01 makes of them ----------------------------------------------------------------------------


def test_the_audit_counts_what_is_inside_and_the_worst_come_first(built):
    found = audit.crop_audit(built)
    assert found["crops"] == found["with_nodule"] == len(built)
    assert found["nodule_held"] == found["print_in_frame"] == 1
    assert 0.3 < found["kept_area"] < 0.9
    index = built.index.copy()
    index.loc[2, "mask_inside"], index.loc[5, "text_lines"] = 0.4, 3
    changed = replace(built, index=index)
    assert list(audit.worst(changed, 2).index) == [2, 5]
    images, _, captions = audit.pictures(changed, audit.worst(changed, 2))
    assert np.array_equal(images[0], built.images[2]) and "40% inside" in captions[0]


def test_association_is_cramers_v():
    label = pd.Series(list("aabbccdd") * 20)
    assert audit.cramers_v(label, label) == pytest.approx(1)
    assert audit.cramers_v(pd.Series(["x"] * 160), label) == 0
    assert audit.cramers_v(pd.Series(np.random.default_rng(0).integers(0, 3, 160)), label) < 0.15
    # two by two with 30 and 10 against 10 and 30: phi^2 = 0.25, corrected for chance (Bergsma 2013)
    a = pd.Series(["x"] * 40 + ["y"] * 40)
    b = pd.Series(["u"] * 30 + ["v"] * 10 + ["u"] * 10 + ["v"] * 30)
    expected = np.sqrt((0.25 - 1 / 79) / (2 - 1 / 79 - 1))
    assert audit.cramers_v(a, b) == pytest.approx(expected)


def test_a_printed_answer_is_named_as_a_shortcut(phantom_table, tmp_path):
    table = phantom_table.copy()
    table["text"] = table["label"]
    table = pd.concat([table.assign(image=table["image"] + str(k)) for k in range(4)], ignore_index=True)
    table.attrs = phantom_table.attrs
    found = audit.shortcuts(crops.build(table, tmp_path / "crops", size=32, jobs=1))
    assert found.iloc[0]["what"] == "print around the sector" and found.iloc[0]["association"] > 0.95
    assert found.iloc[0]["visible"] == "frame"


def test_roles_share_no_frame(tmp_path, monkeypatch):
    monkeypatch.setenv("THYROID_CACHE", str(tmp_path))
    clinic, more = "phantom:clinic?patients=10", "phantom:clinic?patients=12"
    roles = audit.prepare({"pretrain": more, "finetune": clinic, "external": ""}, folds=2, jobs=1)
    assert list(roles) == ["pretrain", "finetune"]
    pretrain, finetune = roles["pretrain"].clean, roles["finetune"].clean
    assert not set(pretrain["sha256"]) & set(finetune["sha256"]) and pretrain["patient"].nunique() == 2
    last = roles["pretrain"].flow.iloc[-1]
    assert last["step"] == "not in the finetune data" and last["left_out"] == len(finetune)
    assert roles["pretrain"].problems["problem"].str.contains("finetune data").sum() == last["left_out"]
    assert set(finetune["fold"]) == {0, 1}
    with pytest.raises(manifest.ManifestError, match=r"external.*no frame is left.*finetune data"):
        audit.prepare({"finetune": clinic, "external": clinic}, folds=2, jobs=1)


def test_every_figure_of_the_data_says_its_numbers(built, phantom_table):
    flow = pd.DataFrame([("files", 20, None, 0), ("crops", 9, 8, 11)])
    flow.columns = ["step", "images", "patients", "left_out"]
    names = {key: name for key, (name, _) in built.names.items()}
    prepared = audit.Prepared("finetune", phantom_table, flow, flow)
    figures = {
        "20 files, 9 used": plots.flow({"finetune": flow}),
        "regions": plots.steps(audit.step_examples({"finetune": prepared}, 64)),
        "papillary carcinoma": plots.examples(built.images, built.index["label"], names),
        "100% inside": plots.gallery(*audit.pictures(built, audit.worst(built, 3)), columns=3),
        "100.0%": plots.audit(audit.audit_table({"finetune": built})),
        "view": plots.shortcuts(audit.shortcuts(built)),
    }
    for words, figure in figures.items():
        assert words in figure.alt
        figure.canvas.draw()
        plt.close(figure)


def test_problems_are_counted_by_kind():
    problems = pd.DataFrame({"action": "note", "image": ["a", "b", "c"],
                             "problem": ["12 of 256 bits", "9 of 256 bits", "unlabelled"]})  # fmt: skip
    table = audit.problem_table({"finetune": audit.Prepared("finetune", problems, problems, problems)})
    assert list(table["images"]) == [2, 1] and list(table["example"]) == ["a", "c"]
    nothing = audit.Prepared("finetune", problems, problems.iloc[:0], problems)
    assert list(audit.problem_table({"finetune": nothing})["problem"]) == ["nothing was found wrong"]
