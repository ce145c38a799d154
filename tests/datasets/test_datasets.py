"""Readers: each layout read as published, from the miniatures of small_sets.yaml and, where they are, real files."""

import json
import shutil
import sys
import types
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from PIL import Image

from thyroid_lib import LESION_TYPES, datasets, frames
from thyroid_lib.datasets.contract import DatasetError

COLUMNS = ["image", "path", "label", "patient", "group", "dataset"]
SHAPE = (80, 100)
HERE = Path(__file__).parent
SETS = yaml.safe_load((HERE / "small_sets.yaml").read_text(encoding="utf-8"))
SPECS = yaml.safe_load((HERE / "broken_specs.yaml").read_text(encoding="utf-8"))


def frame(path, seed=0):
    """Writes a frame of noise; the seed makes it its own."""
    pixels = np.random.default_rng(seed).integers(0, 255, SHAPE, dtype=np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def mask(path, box=(20, 10, 40, 30), value=255):
    """Writes a mask, a rectangle x, y, width, height."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(rectangles(box).astype(np.uint8) * value).save(path, quality=90)


def rectangles(*boxes):
    """A mask of rectangles x, y, width, height."""
    shown = np.zeros(SHAPE, bool)
    for x, y, width, height in boxes:
        shown[y : y + height, x : x + width] = True
    return shown


def expand(name):
    """ "{a,b}.png" -> "a.png" and "b.png"."""
    head, brace, rest = name.partition("{")
    choices, _, tail = rest.partition("}")
    return [head + choice + end for choice in choices.split(",") for end in expand(tail)] if brace else [name]


def texts(root, files):
    """Writes text files into a folder."""
    for path, text in ((root / one, text) for name, text in (files or {}).items() for one in expand(name)):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")


def write(name, root):
    """A small folder of a source's layout, by its name in small_sets.yaml."""
    about = SETS[name]
    for seed, name in enumerate(one for names in about.get("frames", []) for one in expand(names)):
        frame(root / name, seed)
    for name, box in about.get("masks", {}).items():
        for one in expand(name):
            mask(root / one, box)
    texts(root, about.get("texts"))
    for copy, original in about.get("copies", {}).items():
        shutil.copy(root / original, root / copy)
    for link, aim in about.get("links", {}).items():
        (root / link).symlink_to(aim)
    return root


@pytest.fixture
def written(tmp_path):
    """A function that writes a source's miniature; that of Stanford has an HDF5 file besides."""

    def make(name):
        root = write(name, tmp_path / name)
        if name == "stanford":
            h5py = pytest.importorskip("h5py", reason="the extra stanford is not installed")
            with h5py.File(root / "dataset.hdf5", "w") as file:
                file["image"] = np.random.default_rng(0).integers(0, 255, (9, *SHAPE), dtype=np.uint8)
                file["mask"] = np.stack([rectangles((20, 10, 40, 30)).astype(np.uint8) * 255] * 9)
                file["annot_id"] = np.array([b"1_"] * 4 + [b"2_1"] * 2 + [b"2_2"] * 2 + [b"5_"])
                file["frame_num"] = np.array([0, 1, 2, 3, 0, 1, 0, 1, 0])
        return root

    return make


def reasons(data):
    return dict(zip(data.attrs["excluded"]["image"], data.attrs["excluded"]["reason"]))


def notes(data, image=""):
    table = data.attrs["notes"]
    return table.loc[table["image"] == image, "note"].tolist()


# --- SPEC


def test_a_spec_is_source_place_and_options():
    assert datasets.parse("phantom:clinic?patients=120&seed=3") == datasets.Spec(
        "phantom", "clinic", {"patients": "120", "seed": "3"}
    )
    assert datasets.parse("DDTI:/data/ddti") == datasets.Spec("ddti", "/data/ddti", {})
    assert datasets.parse("folder:/a/what?/b").location == "/a/what?/b"
    assert datasets.parse("folder:C:\\scans?patient=prefix").location == "C:\\scans"
    assert datasets.parse("folder:/a?title=A%20and%20B").options == {"title": "A and B"}


@pytest.mark.parametrize("spec, words", SPECS)
def test_a_spec_that_cannot_be_read_says_what_was_expected(tmp_path, spec, words):
    with pytest.raises(DatasetError, match=words.replace("{tmp}", str(tmp_path))):
        datasets.read(spec.format(tmp=tmp_path))


def test_kaggle_fetches_the_set(monkeypatch, tmp_path):
    write("busi", tmp_path)
    hub = types.ModuleType("kagglehub")
    hub.dataset_download = {"aryashah2k/breast-ultrasound-images-dataset": str(tmp_path)}.__getitem__
    monkeypatch.setitem(sys.modules, "kagglehub", hub)
    assert len(datasets.read("busi:kaggle")) == 6
    monkeypatch.setitem(sys.modules, "kagglehub", None)
    with pytest.raises(DatasetError, match=r"thyroid_lib\[kaggle\]"):
        datasets.read("ddti:kaggle")


# --- contract


def test_a_manifest_keeps_its_lists_and_a_row_in_any_form_and_a_path_give_the_same_frame(written):
    data = datasets.read(f"folder:{written('folder')}")
    both = pd.concat([data, data.copy()])
    assert len(both) == 2 * len(data) and both.attrs["classes"] == data.attrs["classes"]
    assert data.copy().attrs["excluded"].equals(data.attrs["excluded"])
    forms = (data.iloc[0], next(data.itertuples()), data.to_dict("records")[0], data["path"][0])
    first, *others = (datasets.load_frame(form) for form in forms)
    assert first.dtype == np.uint8 and all(np.array_equal(other, first) for other in others)


def test_masks_in_every_form_are_the_same_pixels(tmp_path):
    expected = rectangles((20, 10, 40, 30))
    mask(tmp_path / "whole.png")
    mask(tmp_path / "whole.jpg")
    mask(tmp_path / "ones.png", value=1)
    mask(tmp_path / "left.png", (20, 10, 15, 30))
    mask(tmp_path / "right.png", (35, 10, 25, 30))
    halves = json.dumps([str(tmp_path / "left.png"), str(tmp_path / "right.png")])
    outline = json.dumps([[[20, 10], [59, 10], [59, 39], [20, 39]]])
    for cell in (*(str(tmp_path / name) for name in ("whole.png", "whole.jpg", "ones.png")), halves, outline):
        found = datasets.load_mask({"mask": cell}, SHAPE)
        assert found.dtype == bool and np.array_equal(found, expected), cell
    assert datasets.load_mask({"image": "a"}, SHAPE) is datasets.load_mask({"mask": ""}, SHAPE) is None
    with pytest.raises(frames.FrameError, match="100 x 80 px came, the frame has 100 x 90"):
        datasets.load_mask({"mask": halves}, (90, 100))


# --- a folder per class


def test_classes_and_images_come_in_the_order_a_person_counts(tmp_path):
    for name in ("grade 10", "grade 9", "Medullary_Carcinoma"):
        for number in (10, 9, 1):
            frame(tmp_path / name / f"f{number}.png", number)
    data = datasets.read(f"folder:{tmp_path}")
    assert data.attrs["classes"] == ["medullary_carcinoma", "grade_9", "grade_10"]
    assert data.attrs["names"]["medullary_carcinoma"] == LESION_TYPES["medullary_carcinoma"]
    assert data["image"].str.split("/f").str[-1].tolist()[:3] == ["1.png", "9.png", "10.png"]


# --- manifest.csv


@pytest.mark.parametrize("encoding, delimiter", [("utf-8", ","), ("utf-8-sig", ";"), ("gb18030", "\t")])
def test_a_table_is_read_as_spreadsheets_write_it(written, encoding, delimiter):
    root = written("manifest")
    text = (root / "manifest.csv").read_text(encoding="utf-8").replace(",", delimiter)
    (root / "manifest.csv").write_text(text, encoding=encoding)
    data = datasets.read(f"manifest:{root}")
    assert data["label"].tolist() == ["nodular_goiter", "medullary_carcinoma", "medullary_carcinoma"]
    assert data["sex"].tolist() == ["F", "M", "F"] and data["row"].tolist() == [2, 3, 4]
    assert data["age"].tolist()[::2] == [44, 71] and data["device"].tolist() == ["X", "X", "Y"]
    assert datasets.load_frame(data.iloc[2]).shape == SHAPE
    assert data.equals(datasets.read(f"manifest:{root / 'manifest.csv'}"))
    asked = ["medullary_carcinoma", "nodular_goiter"]
    assert datasets.read(f"manifest:{root}?classes={','.join(asked)}").attrs["classes"] == asked


def test_columns_that_tell_who_a_person_is_are_not_read(tmp_path):
    text = "image,label,patient,Patient Name,birth_date,姓名,device,renamed\n"
    text += "frames/0.png,benign,p0,Quisling,1961-02-03,李雷,X,kept\n"
    texts(tmp_path, {"manifest.csv": text})
    data = datasets.read(f"manifest:{tmp_path}")
    assert "renamed" in data and not {"patient_name", "birth_date", "姓名"} & set(data)
    assert "patient_name, birth_date, 姓名" in notes(data)[0]
    assert "Quisling" not in data.to_csv() and "李雷" not in data.to_csv()


@pytest.mark.parametrize("content, words", [
    (b"", "missing: image, label"),
    (b"file,diagnosis\na.png,benign\n", "came: file, diagnosis"),
    (b"PK\x03\x04\0\0", "no text"),
    (b"\xff\xfe\xfd\x80\x81\xff", "neither UTF-8 nor GB 18030"),
])  # fmt: skip
def test_what_is_no_table_of_frames_is_refused(tmp_path, content, words):
    (tmp_path / "manifest.csv").write_bytes(content)
    with pytest.raises(DatasetError, match=words):
        datasets.read(f"manifest:{tmp_path}")


# --- what each reader finds in a small folder of its layout

READINGS = [(name, reading) for name, about in SETS.items() for reading in about["found"]]
REFUSALS = [(name, reading) for name, about in SETS.items() for reading in about.get("broken", [])]


def of(name, reading, root):
    """What a reading gives, after the files beside the set are written."""
    texts(root, reading.get("beside"))
    source, options = SETS[name].get("source", name), reading.get("options", "")
    return datasets.read(f"{source}:{root}?{options}".rstrip("?"))


@pytest.mark.parametrize("name, reading", READINGS)
def test_a_reader_finds_what_is_there_and_names_what_is_not(written, name, reading):
    data = of(name, reading, written(name))
    rows, left_out = data.set_index("image"), reasons(data)
    for column, counts in reading["counts"].items():
        assert data[column].value_counts().to_dict() == counts
    assert data["group"].nunique() == reading["groups"]
    if "left_out" in reading:
        assert left_out.keys() == reading["left_out"].keys()
        assert all(words in left_out[image] for image, words in reading["left_out"].items())
    for image, words in reading.get("notes", {}).items():
        assert any(words in note for note in notes(data, image)), (image, notes(data, image))
    for image, cells in reading.get("cells", {}).items():
        assert rows.loc[image, list(cells)].to_dict() == cells
    for image, boxes in reading.get("areas", {}).items():
        assert np.array_equal(datasets.load_mask(rows.loc[image], SHAPE), rectangles(*boxes))


@pytest.mark.parametrize("name, reading", REFUSALS)
def test_a_folder_that_lacks_something_is_answered_with_what_it_lacks(written, name, reading):
    root = written(name)
    for path in list(root.glob(reading["without"])) if "without" in reading else []:
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    with pytest.raises(DatasetError, match=reading["says"]):
        of(name, reading, root)


@pytest.mark.parametrize("name", SETS)
def test_every_reader_gives_the_contract(tmp_path, written, name):
    data = of(name, {}, written(name))
    assert list(data.columns[:6]) == COLUMNS
    assert data["image"].is_unique and set(data["label"]) - {""} <= set(data.attrs["classes"])
    assert (data[["image", "path", "patient", "group", "dataset"]] != "").all(axis=None)
    assert set(data.attrs["names"]) == set(data.attrs["classes"]) and data.attrs["simulated"] is False
    assert str(tmp_path) not in datasets.public(data).to_csv()
    shown = [datasets.load_frame(row) for row in data.itertuples()]
    assert {gray.shape for gray in shown} == {SHAPE} and len({gray.tobytes() for gray in shown}) == len(data)
    assert data.attrs.get("mask_shows", "nodule") == ("gland" if name == "tg3k" else "nodule")


def test_stanford_without_h5py_says_what_to_install(written, monkeypatch):
    root = written("stanford")
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(DatasetError, match=r"thyroid_lib\[stanford\]"):
        datasets.read(f"stanford:{root}")


# --- the real files


def test_ddti_real_files(real_data):
    data = datasets.read(f"ddti:{real_data / 'ddti'}")
    assert len(data) == 386 and data["patient"].nunique() == 311 and data["group"].nunique() == 307
    counts = data["label"].value_counts().to_dict()
    assert counts == {"": 110, "4c-5": 87, "4a": 75, "4b": 64, "2-3": 50}
    listed = data.attrs["notes"]["note"].str.startswith("no outline").sum()
    assert (data["mask"] == "").sum() == listed == 13
    assert (data["text"] != "").sum() == 59 and not len(data.attrs["excluded"])
    for row in data[data["mask"] != ""].head(20).itertuples():
        gray = datasets.load_frame(row)
        share = datasets.load_mask(row, gray.shape).mean()
        assert gray.shape == (360, 560) and 0.001 < share < 0.6


def test_busi_real_files(real_data):
    data = datasets.read(f"busi:{real_data / 'busi'}")
    assert len(data) + len(data.attrs["excluded"]) == 780 and len(data.attrs["excluded"]) == 16
    assert data["label"].value_counts().to_dict() == {"benign": 428, "malignant": 205, "normal": 131}
    assert data["group"].nunique() == 616 - 7
    for row in data.groupby("label").head(3).itertuples():
        gray = datasets.load_frame(row)
        assert datasets.load_mask(row, gray.shape).any() == (row.label != "normal")


def test_tg3k_real_files(real_data):
    data = datasets.read(f"tg3k:{real_data / 'tg3k'}")
    assert len(data) == 3053 and (data["mask"] != "").all() and not len(data.attrs["excluded"])
    assert 0.01 < datasets.load_mask(data.iloc[0], (256, 256)).mean() < 0.8
