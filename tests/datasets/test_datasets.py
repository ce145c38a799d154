"""Readers: each layout read as published, from miniatures written here and, where they are, from the real files."""

import importlib.util
import json
import shutil
import sys
import types

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from thyroid_lib import LESION_TYPES, datasets, frames
from thyroid_lib.datasets.contract import DatasetError

COLUMNS = ["image", "path", "label", "patient", "group", "dataset"]


SHAPE = (80, 100)


def frame(path, seed=0):
    """Writes a frame of noise; the seed makes it its own."""
    pixels = np.random.default_rng(seed).integers(0, 255, SHAPE, dtype=np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def mask(path, box=(20, 10, 40, 30), value=255):
    """Writes a mask, a rectangle x, y, width, height."""
    x, y, width, height = box
    pixels = np.zeros(SHAPE, np.uint8)
    pixels[y : y + height, x : x + width] = value
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, quality=90)


def reasons(data):
    return dict(zip(data.attrs["excluded"]["image"], data.attrs["excluded"]["reason"]))


def notes(data, image=""):
    table = data.attrs["notes"]
    return table.loc[table["image"] == image, "note"].tolist()


def rows(data):
    return data.set_index("image")


# --- SPEC


def test_a_spec_is_source_place_and_options():
    assert datasets.parse("phantom:clinic?patients=120&seed=3") == datasets.Spec(
        "phantom", "clinic", {"patients": "120", "seed": "3"}
    )
    assert datasets.parse("DDTI:/data/ddti") == datasets.Spec("ddti", "/data/ddti", {})
    assert datasets.parse("folder:/a/what?/b").location == "/a/what?/b"
    assert datasets.parse("folder:C:\\scans?patient=prefix").location == "C:\\scans"
    assert datasets.parse("folder:/a?title=A%20and%20B").options == {"title": "A and B"}


@pytest.mark.parametrize(
    "spec, words",
    [
        ("nonsense:/data", "'nonsense' came"),
        ("/data/scans", "SOURCE:PATH"),
        ("ddti:", "names no place"),
        ("ddti:/nowhere/at/all", "does not exist"),
        ("ddti:{tmp}?colour=red", "knows the options labels; colour came"),
        ("tg3k:{tmp}?part=all", r"knows the options \(none\)"),
        ("busi:{tmp}?classes=4", "classes is 2 or 3; '4' came"),
        ("stanford:{tmp}?every=0", "every is a whole number from 1; '0' came"),
        ("phantom:hospital", "clinic, external, open"),
        ("phantom:clinic?patients=0", "whole number from 1"),
        ("phantom:clinic?patients=many", "whole number"),
        ("phantom:clinic?colour=1", "colour"),
        ("{tmp}", "Did you mean folder:{tmp}"),
    ],
)
def test_a_spec_that_cannot_be_read_says_what_was_expected(tmp_path, spec, words):
    with pytest.raises(DatasetError, match=words.replace("{tmp}", str(tmp_path))):
        datasets.read(spec.format(tmp=tmp_path))


def test_kaggle_fetches_the_set(monkeypatch, tmp_path):
    write_busi(tmp_path)
    hub = types.ModuleType("kagglehub")
    hub.dataset_download = {"aryashah2k/breast-ultrasound-images-dataset": str(tmp_path)}.__getitem__
    monkeypatch.setitem(sys.modules, "kagglehub", hub)
    assert len(datasets.read("busi:kaggle")) == 6
    monkeypatch.setitem(sys.modules, "kagglehub", None)
    with pytest.raises(DatasetError, match=r"thyroid_lib\[kaggle\]"):
        datasets.read("ddti:kaggle")


# --- contract


def test_a_manifest_can_be_copied_joined_and_kept_with_its_lists(tmp_path):
    data = datasets.read(f"folder:{write_folder(tmp_path)}")
    both = pd.concat([data, data.copy()])
    assert len(both) == 2 * len(data) and both.attrs["classes"] == data.attrs["classes"]
    assert data.copy().attrs["excluded"].equals(data.attrs["excluded"])


def test_masks_in_every_form_are_the_same_pixels(tmp_path):
    expected = np.zeros(SHAPE, bool)
    expected[10:40, 20:60] = True
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


def test_a_row_in_any_form_and_a_path_give_the_same_frame(tmp_path):
    data = datasets.read(f"folder:{write_folder(tmp_path)}")
    series, named, mapping = data.iloc[0], next(data.itertuples()), data.to_dict("records")[0]
    first = datasets.load_frame(series)
    assert first.dtype == np.uint8 and first.shape == SHAPE
    for other in (named, mapping, data["path"][0]):
        assert np.array_equal(datasets.load_frame(other), first)


# --- a folder per class


def write_folder(root):
    for number in range(3):
        frame(root / "nodular goiter" / f"p{number}" / "a.png", number)
        frame(root / "甲状腺乳头状癌" / f"q{number}" / "a.png", 10 + number)
    return root


def test_class_folders_may_be_named_in_english_chinese_or_by_key(tmp_path):
    data = datasets.read(f"folder:{write_folder(tmp_path)}")
    assert data.attrs["classes"] == ["nodular_goiter", "papillary_carcinoma"]
    assert data.attrs["names"]["papillary_carcinoma"] == LESION_TYPES["papillary_carcinoma"]
    assert list(data.columns[:6]) == COLUMNS and data["patient"].nunique() == 6
    assert not data["image"].str.startswith("/").any()


def test_classes_and_images_come_in_the_order_a_person_counts(tmp_path):
    for name in ("grade 10", "grade 9", "Medullary_Carcinoma"):
        for number in (10, 9, 1):
            frame(tmp_path / name / f"f{number}.png", number)
    data = datasets.read(f"folder:{tmp_path}")
    assert data.attrs["classes"] == ["medullary_carcinoma", "grade_9", "grade_10"]
    assert data["image"].str.split("/f").str[-1].tolist()[:3] == ["1.png", "9.png", "10.png"]


def test_patients_come_from_folders_or_from_file_names(tmp_path):
    for name in ("p1_a.png", "p1_b.png", "p2_a.png"):
        frame(tmp_path / "benign" / name)
    alone = datasets.read(f"folder:{tmp_path}")
    assert alone["patient"].nunique() == 3 and "3 of 3 frames have no patient" in notes(alone)[0]
    assert datasets.read(f"folder:{tmp_path}?patient=prefix")["patient"].tolist() == ["p1", "p1", "p2"]


def test_a_patient_in_two_classes_stays_one_group_with_two_nodules(tmp_path):
    frame(tmp_path / "benign" / "p1" / "a.png", 1)
    frame(tmp_path / "malignant" / "p1" / "a.png", 2)
    frame(tmp_path / "malignant" / "p2" / "a.png", 3)
    data = datasets.read(f"folder:{tmp_path}")
    assert data["group"].nunique() == 2 and data["nodule"].tolist() == ["benign", "malignant", ""]
    assert "occur in several classes (p1)" in notes(data)[0]


def test_masks_beside_the_frames_are_masks_not_frames(tmp_path):
    frame(tmp_path / "benign" / "a.png")
    mask(tmp_path / "benign" / "a_mask.png")
    mask(tmp_path / "benign" / "orphan_mask.png")
    data = datasets.read(f"folder:{tmp_path}")
    assert len(data) == 1 and datasets.load_mask(data.iloc[0], SHAPE).sum() == 40 * 30
    assert reasons(data) == {"benign/orphan_mask.png": "a mask whose frame is missing"}


def test_what_is_no_image_by_name_is_listed(tmp_path):
    frame(tmp_path / "benign" / "a.png")
    frame(tmp_path / "outside.png")
    for name in ("Thumbs.db", ".DS_Store", "._a.png", "notes.txt", "scan.dcm"):
        (tmp_path / "benign" / name).write_bytes(b"x")
    frame(tmp_path / "__MACOSX" / "benign" / "a.png")
    (tmp_path / "benign" / "gone.png").symlink_to(tmp_path / "nowhere.png")
    (tmp_path / "benign" / "loop").symlink_to(tmp_path)
    found = reasons(datasets.read(f"folder:{tmp_path}"))
    assert found["outside.png"] == "not inside a class folder"
    hidden = ("benign/Thumbs.db", "benign/.DS_Store", "benign/._a.png", "__MACOSX/benign/a.png")
    assert all("hidden" in found[name] for name in hidden)
    assert ".txt" in found["benign/notes.txt"] and "dicom:PATH" in found["benign/scan.dcm"]
    assert found["benign/gone.png"] == "a broken link" and "not followed" in found["benign/loop"]
    assert len(found) == 9


def test_a_folder_without_classes_or_without_a_table_says_what_is_missing(tmp_path):
    frame(tmp_path / "a.png")
    with pytest.raises(DatasetError, match="make one folder per class, for example nodular_goiter"):
        datasets.read(f"folder:{tmp_path}")
    with pytest.raises(DatasetError, match=r"it is missing; found: a\.png"):
        datasets.read(f"manifest:{tmp_path}")


# --- manifest.csv


def write_manifest(root, text, encoding="utf-8"):
    for number in range(4):
        frame(root / "frames" / f"{number}.png", number)
    (root / "manifest.csv").write_bytes(text.encode(encoding))
    return root


TABLE = """image,label,patient,age,sex,mask,device
frames/0.png,nodular goiter,p0,44,female,,X
frames/1.png,medullary_carcinoma,p1,,M,frames/1_mask.png,X
frames\\2.png,甲状腺髓样癌,p2,71,女,,Y
"""


@pytest.mark.parametrize("encoding, delimiter", [("utf-8", ","), ("utf-8-sig", ";"), ("gb18030", "\t")])
def test_a_table_is_read_as_spreadsheets_write_it(tmp_path, encoding, delimiter):
    root = write_manifest(tmp_path, TABLE.replace(",", delimiter), encoding)
    data = datasets.read(f"manifest:{root}")
    assert data["label"].tolist() == ["nodular_goiter", "medullary_carcinoma", "medullary_carcinoma"]
    assert data["sex"].tolist() == ["F", "M", "F"] and data["row"].tolist() == [2, 3, 4]
    assert data["age"].tolist()[::2] == [44, 71] and data["device"].tolist() == ["X", "X", "Y"]
    assert datasets.load_frame(data.iloc[2]).shape == SHAPE
    assert data.equals(datasets.read(f"manifest:{root / 'manifest.csv'}"))
    asked = ["medullary_carcinoma", "nodular_goiter"]
    assert datasets.read(f"manifest:{root}?classes={','.join(asked)}").attrs["classes"] == asked


def test_rows_that_do_not_fit_and_rows_without_patient_are_named(tmp_path):
    text = "image,label,patient\nframes/0.png,benign,p0\nframes/1.png,benign\n\nframes/2.png,malignant,\n"
    data = datasets.read(f"manifest:{write_manifest(tmp_path, text)}")
    assert len(data) == 2 and data["row"].tolist() == [2, 5]
    assert reasons(data) == {"frames/1.png": "row 3: 3 cells are expected, 2 came"}
    assert "1 of 2 rows have no patient" in notes(data)[0]


def test_columns_that_tell_who_a_person_is_are_not_read(tmp_path):
    text = "image,label,patient,Patient Name,birth_date,姓名,device,renamed\n"
    text += "frames/0.png,benign,p0,Quisling,1961-02-03,李雷,X,kept\n"
    data = datasets.read(f"manifest:{write_manifest(tmp_path, text)}")
    assert "renamed" in data and not {"patient_name", "birth_date", "姓名"} & set(data)
    assert "patient_name, birth_date, 姓名" in notes(data)[0]
    assert "Quisling" not in data.to_csv() and "李雷" not in data.to_csv()


@pytest.mark.parametrize(
    "content, words",
    [
        (b"", "missing: image, label"),
        (b"file,diagnosis\na.png,benign\n", "came: file, diagnosis"),
        (b"PK\x03\x04\0\0", "no text"),
        (b"\xff\xfe\xfd\x80\x81\xff", "neither UTF-8 nor GB 18030"),
    ],
)
def test_what_is_no_table_of_frames_is_refused(tmp_path, content, words):
    (tmp_path / "manifest.csv").write_bytes(content)
    with pytest.raises(DatasetError, match=words):
        datasets.read(f"manifest:{tmp_path}")


# --- DDTI

CASE = """<case><number>{number}</number><age>{age}</age><sex>{sex}</sex><composition>solid</composition>
<echogenicity>hypoechogenicity</echogenicity><margins>ill- defined</margins><calcifications>non</calcifications>
<tirads>{tirads}</tirads>{marks}</case>"""


def square(x, y, side):
    return [{"x": x + dx, "y": y + dy} for dx, dy in ((0, 0), (side, 0), (side, side), (0, side))]


def shape(points, kind="freehand"):
    return {"points": points, "annotation": {}, "regionType": kind}


def write_ddti(root):
    """Cases: 1 graded with two nodules and an arrow, 2 cut, 3 ungraded, 4 graded oddly, 5 without its frame."""
    outlines = [shape(square(20, 20, 20)), shape(square(60, 20, 10)), shape(square(0, 0, 5)[:1], "arrow")]
    whole = json.dumps(outlines)
    wrapped = whole.replace(", ", ",\n            ")
    cut = json.dumps([shape(square(20, 20, 20))] * 50)[:2500]
    marks = {
        "1": f"<mark><image>1</image><svg>{wrapped}</svg></mark><mark><image>2</image><svg></svg></mark>",
        "2": f"<mark><image>1</image><svg>{cut}</svg></mark>",
        "3": "",
        "4": "<mark><image>1</image><svg>[not JSON]</svg></mark>",
        "5": f"<mark><image>1</image><svg>{whole}</svg></mark>",
    }
    for (number, svg), grade in zip(marks.items(), ("4a", "5", "", "4d", "2")):
        age = "48" if number == "1" else ""
        text = CASE.format(number=number, age=age, sex="F", tirads=grade, marks=svg)
        (root / f"{number}.xml").write_text(text)
    for name in ("1_1", "1_2", "2_1", "3_1", "4_1", "9_1"):
        frame(root / f"{name}.jpg", int(name[0]) * 10 + int(name[2]))
    (root / "6.xml").write_text("<case><number>6</number>")
    return root


def test_ddti_grades_become_groups_and_outlines_masks(tmp_path):
    data = rows(datasets.read(f"ddti:{write_ddti(tmp_path)}"))
    assert data["label"].tolist() == ["4a", "4a", "4c-5", "", ""]
    known = data.loc["1_1.jpg", ["age", "sex", "sign_margins", "tirads"]]
    assert known.tolist() == [48, "F", "ill-defined", "4a"]
    found = datasets.load_mask(data.loc["1_1.jpg"], SHAPE)
    assert found.sum() == 21 * 21 + 11 * 11 and found[30, 30] and found[25, 65] and not found[2, 2]
    assert (data.loc[["1_2.jpg", "2_1.jpg", "4_1.jpg"], "mask"] == "").all()


def test_ddti_notes_beside_the_set_give_groups_and_printed_text(tmp_path):
    (tmp_path / "ddti").mkdir()
    write_ddti(tmp_path / "ddti")
    (tmp_path / "ddti_notes.csv").write_text(
        'image,case,group,tirads,burned_in_text,exact_dup_of\n1_1.jpg,1,1,4a,"TIRADS 2 (4A*)",\n2_1.jpg,2,1,5,,\n'
    )
    data = rows(datasets.read(f"ddti:{tmp_path / 'ddti'}"))
    assert data["text"]["1_1.jpg"] == "TIRADS 2 (4A*)" and data["text"]["2_1.jpg"] == ""
    assert data["group"]["2_1.jpg"] == data["group"]["1_1.jpg"] == "1" and data["patient"]["2_1.jpg"] == "2"


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


# --- BUSI


def write_busi(root):
    folder = root / "Dataset_BUSI_with_GT"
    for place, label in enumerate(("benign", "malignant", "normal")):
        for number in (1, 2):
            name = folder / label / f"{label} ({number})"
            frame(name.with_name(name.name + ".png"), 10 * place + number)
            mask(name.with_name(name.name + "_mask.png"), (20, 10, 20, 30))
    mask(folder / "benign" / "benign (1)_mask_1.png", (40, 10, 20, 30))
    return root


def test_busi_masks_are_joined_and_near_duplicates_that_mix_classes_dropped(tmp_path):
    write_busi(tmp_path)
    (tmp_path / "busi_near_duplicates.csv").write_text(
        "image,class,dup_group,group_size,group_has_mixed_class\n"
        "benign/benign (1).png,benign,7,2,0\nbenign/benign (2).png,benign,7,2,0\n"
        "malignant/malignant (1).png,malignant,8,2,1\nnormal/normal (1).png,normal,8,2,1\n"
    )
    data = datasets.read(f"busi:{tmp_path / 'Dataset_BUSI_with_GT'}")
    pair = rows(data).loc[["benign/benign (1).png", "benign/benign (2).png"]]
    assert len(data) == 4 and set(pair["group"]) == {"near-duplicate 7"}
    assert [datasets.load_mask(row, SHAPE).sum() for row in pair.itertuples()] == [40 * 30, 20 * 30]
    assert ["group 8, which mixes classes" in reason for reason in reasons(data).values()] == [True] * 2


def test_busi_real_files(real_data):
    data = datasets.read(f"busi:{real_data / 'busi'}")
    assert len(data) + len(data.attrs["excluded"]) == 780 and len(data.attrs["excluded"]) == 16
    assert data["label"].value_counts().to_dict() == {"benign": 428, "malignant": 205, "normal": 131}
    assert data["group"].nunique() == 616 - 7
    for row in data.groupby("label").head(3).itertuples():
        gray = datasets.load_frame(row)
        assert datasets.load_mask(row, gray.shape).any() == (row.label != "normal")


# --- TN3K, TG3K


def write_tn3k(root):
    for number in range(12):
        frame(root / "trainval-image" / f"{number:04d}.jpg", number)
        mask(root / "trainval-mask" / f"{number:04d}.jpg")
    for number in range(4):
        frame(root / "test-image" / f"{number:04d}.jpg", 100 + number)
    lines = [f"{n:04d}.jpg,{n % 2}\n" for n in range(11)]
    (root / "label4trainval.csv").write_text("".join(lines) + "0099.jpg,1\n")
    (root / "label4test.csv").write_text("".join(lines[:4]))
    for fold in range(4):
        chosen = list(range(fold * 3, fold * 3 + 3))
        rest = [n for n in range(12) if n not in chosen]
        (root / f"tn3k-trainval-fold{fold}.json").write_text(json.dumps({"train": rest, "val": chosen}))
    return root


def test_tn3k_labels_masks_parts_and_official_folds(tmp_path):
    data = datasets.read(f"tn3k:{write_tn3k(tmp_path)}")
    assert data["part"].value_counts().to_dict() == {"trainval": 12, "test": 4}
    table = rows(data)
    images = ["trainval-image/0003.jpg", "test-image/0002.jpg"]
    assert table["label"][images].tolist() == ["malignant", "benign"]
    assert table["official_fold"]["trainval-image/0007.jpg"] == 2
    found = datasets.load_mask(table.loc["trainval-image/0000.jpg"], SHAPE)
    assert found.sum() == pytest.approx(1200, rel=0.1)


def write_tg3k(root):
    for number in range(3):
        frame(root / "thyroid-image" / f"{number}.jpg", number)
    for number in (0, 1, 9):
        mask(root / "thyroid-mask" / f"{number}.png")
    return root


def test_tg3k_real_files(real_data):
    data = datasets.read(f"tg3k:{real_data / 'tg3k'}")
    assert len(data) == 3053 and (data["mask"] != "").all() and not len(data.attrs["excluded"])
    assert 0.01 < datasets.load_mask(data.iloc[0], (256, 256)).mean() < 0.8


# --- TN5000

VOC = "<annotation><filename>{name}</filename>{objects}</annotation>"
BOX = "<bndbox><xmin>{0}</xmin><ymin>{1}</ymin><xmax>{2}</xmax><ymax>{3}</ymax></bndbox>"
OBJECT = f"<object><name>{{label}}</name>{BOX}</object>"


def write_tn5000(root):
    (root / "Annotations").mkdir(parents=True)
    (root / "ImageSets" / "Main").mkdir(parents=True)
    for number in range(1, 9):
        frame(root / "JPEGImages" / f"{number:06d}.jpg", number)
        objects = OBJECT.format(10, 20, 40, 60, label=number % 2)
        objects += {
            1: OBJECT.format(10, 20, 90, 70, label=1),
            2: OBJECT.format(1, 2, 9, 9, label=1),
        }.get(number, "")
        path = root / "Annotations" / f"{number:06d}.xml"
        path.write_text(VOC.format(name=f"{number:06d}.jpg", objects=objects))
    (root / "Annotations" / "000003.xml").unlink()
    (root / "Annotations" / "000004.xml").write_text("<annotation>")
    (root / "Annotations" / "000099.xml").write_text(VOC.format(name="000099.jpg", objects=""))
    parts = {"train": range(1, 5), "val": [5], "trainval": range(1, 6), "test": range(6, 9)}
    for name, numbers in parts.items():
        (root / "ImageSets" / "Main" / f"{name}.txt").write_text("".join(f"{n:06d}\n" for n in numbers))
    return root


def test_tn5000_labels_boxes_and_parts(tmp_path):
    data = datasets.read(f"tn5000:{write_tn5000(tmp_path)}")
    table = rows(data)
    images = ["JPEGImages/000001.jpg", "JPEGImages/000006.jpg"]
    assert table["label"][images].tolist() == ["malignant", "benign"]
    assert table["box"][images[0]] == "10 20 80 50"  # the larger of two
    assert table["part"].value_counts().to_dict() == {"test": 3, "train": 1, "val": 1}


# --- AUITD


def write_auitd(root):
    home = root / "dataset thyroid"
    folders = ("train/benign", "train/Malignant", "train/normal thyroid")
    for place, folder in enumerate((*folders, "test/Benign", "test/malignant", "test/Normal Thyroid")):
        for number in (1, 2):
            frame(home / folder / f"img {number}.jpg", 10 * place + number)
    shutil.copy(home / "train/benign/img 1.jpg", home / "train/benign/img 1 - Copy.jpg")
    shutil.copy(home / "train/benign/img 1.jpg", home / "train/benign/img 1 - Copy (2).jpg")
    frame(home / "train/benign/img 2 - Copy.jpg", 5000)
    return root


# --- ThyUS2Path


def write_thyus2path(root):
    for batch in (1, 2):
        for case in (1, 2, 3):
            for number in (1, 2):
                seed = 100 * batch + 10 * case + number
                frame(root / f"batch{batch}_image" / "dataset" / f"{case}_{number:03d}.Jpg", seed)
    (root / "batch1_image" / "batch1_label.csv").write_text("patient_name,histo_label\n1,0\n2,1\n7,1\n")
    (root / "batch2_label_final.csv").write_text("patient_name,histo_label\n1,1\n2,0\n3,0\n")
    return root


def test_thyus2path_needs_its_columns_and_folders(tmp_path):
    (write_thyus2path(tmp_path) / "batch2_label_final.csv").write_text("name,histology\n1,1\n")
    with pytest.raises(DatasetError, match="came: name, histology"):
        datasets.read(f"thyus2path:{tmp_path}")
    with pytest.raises(DatasetError, match="missing: batch1_image, batch2_image"):
        datasets.read(f"thyus2path:{tmp_path / 'batch1_image'}")


def test_a_case_number_that_restarts_in_another_batch_is_another_patient(tmp_path):
    table = rows(datasets.read(f"thyus2path:{write_thyus2path(tmp_path)}"))
    found = table.loc[[f"batch{batch}_image/dataset/1_001.Jpg" for batch in (1, 2)], ["label", "patient"]]
    assert found.values.tolist() == [["benign", "batch1/1"], ["malignant", "batch2/1"]]


# --- Stanford cine-clips


class StandInFile(dict):
    """What the reader uses of h5py.File, over a NumPy archive: for machines without the extra."""

    def __init__(self, path, mode="r"):
        with open(path, "rb") as file, np.load(file) as stored:
            super().__init__({name: stored[name] for name in stored.files})


def write_stanford(root, monkeypatch):
    fields = {
        "image": np.random.default_rng(0).integers(0, 255, (9, 80, 100), dtype=np.uint8),
        "mask": np.zeros((9, 80, 100), np.uint8),
        "annot_id": np.array([b"1_"] * 4 + [b"2_1"] * 2 + [b"2_2"] * 2 + [b"5_"]),
        "frame_num": np.array([0, 1, 2, 3, 0, 1, 0, 1, 0]),
    }
    fields["mask"][:, 10:40, 20:60] = 255
    root.mkdir(exist_ok=True)
    if importlib.util.find_spec("h5py"):
        import h5py

        with h5py.File(root / "dataset.hdf5", "w") as file:
            file.update(fields)
    else:
        monkeypatch.setitem(sys.modules, "h5py", types.SimpleNamespace(File=StandInFile))
        with open(root / "dataset.hdf5", "wb") as file:
            np.savez(file, **fields)
    (root / "metadata.csv").write_text(
        "annot_id,sex,age,location,size_x,size_y,size_z,ti-rads_level,histopath_diagnosis\n"
        "1_,F,51,left,1.2,1.0,0.9,4,0\n2_1,M,63,right,2.2,1.0,0.9,5,1\n2_2,M,63,left,0.7,1.0,0.9,3,0\n8_,F,40,left,1,1,1,2,0\n"
    )
    return root


def test_stanford_patients_nodules_frames_and_masks(tmp_path, monkeypatch):
    data = datasets.read(f"stanford:{write_stanford(tmp_path / 'set', monkeypatch)}")
    assert data["patient"].tolist() == ["1"] * 4 + ["2"] * 4
    assert data["label"].tolist() == ["benign"] * 4 + ["malignant"] * 2 + ["benign"] * 2
    assert data["nodule"].nunique() == 3 and data["size_x_cm"][4] == 2.2 and data["ti_rads_level"][0] == "4"
    assert not np.array_equal(datasets.load_frame(data.iloc[3]), datasets.load_frame(data.iloc[4]))
    assert datasets.load_mask(data.iloc[0], SHAPE).sum() == 40 * 30


def test_stanford_without_h5py_says_what_to_install(tmp_path, monkeypatch):
    root = write_stanford(tmp_path / "bare", monkeypatch)
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(DatasetError, match=r"thyroid_lib\[stanford\]"):
        datasets.read(f"stanford:{root}")


def write(source, root, monkeypatch):
    """A small folder of a source's layout."""
    root.mkdir()
    if source == "stanford":
        return write_stanford(root, monkeypatch)
    return write_manifest(root, TABLE) if source == "manifest" else globals()[f"write_{source}"](root)


# --- what each reader finds in a small folder of its layout

FOUND = [
    # SPEC after the source, expected: frames of each label, groups, left out (image: reason), notes (image: note)
    ("ddti", {"4a": 2, "4c-5": 1, "": 2}, 4,
     {"5_1.jpg": "named in 5.xml, but the file is missing", "9_1.jpg": "no XML file for its case",
      "6.xml": "broken XML"},
     {"1_1.jpg": "1 arrow(s) among its outlines, left out", "1_2.jpg": "no outline: its svg is empty",
      "2_1.jpg": "no outline: its svg is cut short", "3_1.jpg": "unlabelled: its case has no TI-RADS grade",
      "4_1.jpg": "no outline: its svg cannot be read", "4.xml": "unknown TI-RADS '4d', left unlabelled",
      "": "ddti_notes.csv is not beside"}),
    ("ddti?labels=two", {"4a-5": 3, "": 2}, 4, None, None),
    ("busi", {"benign": 2, "malignant": 2, "normal": 2}, 6, {}, {"": "no patient identifiers"}),
    ("busi?classes=2", {"benign": 2, "malignant": 2}, 4,
     dict.fromkeys(("normal/normal (1).png", "normal/normal (2).png"),
                   "class normal is not used with classes=2"), None),
    ("tn3k", {"benign": 8, "malignant": 7, "": 1}, 16,
     {"trainval-image/0099.jpg": "in label4trainval.csv, but the file is missing"},
     {"trainval-image/0011.jpg": "unlabelled: not in label4trainval.csv as 0 or 1",
      "test-image/0000.jpg": "has no mask", "": "no patient identifiers"}),
    ("tn3k?part=test", {"benign": 2, "malignant": 2}, 4, {}, None),
    ("tg3k", {"": 3}, 1, {"thyroid-mask/9.png": "a mask whose frame is missing"},
     {"thyroid-image/2.jpg": "has no gland mask", "": "one group, never split"}),
    ("tn5000", {"malignant": 3, "benign": 2}, 5,
     {"JPEGImages/000002.jpg": "several: ['benign', 'malignant']",
      "JPEGImages/000003.jpg": "Annotations/000003.xml is missing",
      "JPEGImages/000004.jpg": "Annotations/000004.xml cannot be read",
      "JPEGImages/000099.jpg": "annotated, but the file is missing"}, None),
    ("tn5000?part=test", {"benign": 2, "malignant": 1}, 3, None, None),
    ("auitd", {"benign": 5, "malignant": 4, "normal": 4}, 13,
     dict.fromkeys(("train/benign/img 1 - Copy.jpg", "train/benign/img 1 - Copy (2).jpg"),
                   "the same bytes as img 1.jpg beside it"), {"": "no patient identifiers"}),
    ("auitd?classes=2&part=test", {"benign": 2, "malignant": 2}, 4, None, None),
    ("thyus2path", {"benign": 6, "malignant": 4, "": 2}, 6,
     {"batch1_image/7_*": "no frame of it is there"},
     {"batch1_image/dataset/3_001.Jpg": "not in the label file"}),
    ("stanford", {"benign": 6, "malignant": 2}, 2,
     {"dataset.hdf5#8": "annot_id 5_ is not in metadata.csv",
      "dataset.hdf5:8_": "in metadata.csv, but has no frame"}, None),
    ("stanford?every=2", {"benign": 3, "malignant": 1}, 2, None, None),
]  # fmt: skip


@pytest.mark.parametrize("spec, labels, groups, left_out, noted", FOUND, ids=[row[0] for row in FOUND])
def test_a_reader_finds_what_is_there_and_names_what_is_not(
    tmp_path, monkeypatch, spec, labels, groups, left_out, noted
):
    source, _, options = spec.partition("?")
    data = datasets.read(f"{source}:{write(source, tmp_path / source, monkeypatch)}?{options}".rstrip("?"))
    assert data["label"].value_counts().to_dict() == labels and data["group"].nunique() == groups
    if left_out is not None:
        found = reasons(data)
        assert found.keys() == left_out.keys() and all(left_out[name] in found[name] for name in left_out)
    for image, words in (noted or {}).items():
        assert any(words in note for note in notes(data, image)), (image, notes(data, image))


BROKEN = [
    ("busi", "Dataset_BUSI_with_GT/normal", "missing: normal; found: benign, malignant"),
    ("tn3k", "label4test.csv", r"missing: label4test\.csv"),
    ("tn5000?part=test", "ImageSets", r"missing: ImageSets/Main/test\.txt"),
    ("auitd", "dataset thyroid/*/[mM]alignant", "no frame of malignant"),
    ("thyus2path", "batch2_label_final.csv", r"one \*label\*.csv for batch2 .*0 came"),
    ("stanford", "metadata.csv", r"missing: metadata\.csv"),
]


@pytest.mark.parametrize("spec, gone, words", BROKEN, ids=[row[0] for row in BROKEN])
def test_a_folder_that_lacks_something_is_answered_with_what_it_lacks(
    tmp_path, monkeypatch, spec, gone, words
):
    source, _, options = spec.partition("?")
    root = write(source, tmp_path / source, monkeypatch)
    for path in list(root.glob(gone)):
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    with pytest.raises(DatasetError, match=words):
        datasets.read(f"{source}:{root}?{options}".rstrip("?"))


@pytest.mark.parametrize(
    "source", [*dict.fromkeys(row[0].partition("?")[0] for row in FOUND), "folder", "manifest"]
)
def test_every_reader_gives_the_contract(tmp_path, monkeypatch, source):
    data = datasets.read(f"{source}:{write(source, tmp_path / source, monkeypatch)}")
    assert list(data.columns[:6]) == COLUMNS
    assert data["image"].is_unique and set(data["label"]) - {""} <= set(data.attrs["classes"])
    assert (data[["image", "path", "patient", "group", "dataset"]] != "").all(axis=None)
    assert set(data.attrs["names"]) == set(data.attrs["classes"]) and data.attrs["simulated"] is False
    assert str(tmp_path) not in datasets.public(data).to_csv()
    for row in data.itertuples():
        assert datasets.load_frame(row).shape == SHAPE
    if data.attrs.get("mask_shows"):
        assert data.attrs["mask_shows"] == "gland" and datasets.load_mask(data.iloc[0], SHAPE).sum() == 1200
