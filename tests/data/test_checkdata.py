"""check-data on a folder with every kind of damage a clinic's export has: the right word about each file."""

from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest
import yaml
from PIL import Image
from small_images import DAMAGED, PNG, encoded, speckle

from thyroid_lib import __main__ as command
from thyroid_lib import datasets, manifest
from thyroid_lib.data import check_data


def sound(root):
    """Two classes of eight patients with two frames each."""
    for number in range(32):
        label, letter = (("benign", "a"), ("malignant", "b"))[number % 2]
        path = root / label / f"p{number // 4}{letter}" / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(speckle(number)).save(path)
    return root


STRANGE = yaml.safe_load(Path(__file__).with_name("strange_files.yaml").read_text(encoding="utf-8"))
DAMAGE = {name: (content, words) for name, (content, _, words) in DAMAGED.items()}
DAMAGE |= {name: (text.encode("latin-1"), words) for name, (text, words) in STRANGE.items()}
USABLE = {
    "sixteen bits.png": encoded(speckle(910).astype(np.uint16) * 257),
    "grey as colour.jpg": encoded(np.repeat(speckle(911)[..., None], 3, axis=-1), "JPEG"),
    "transparent.png": encoded(np.dstack([speckle(912)] * 3 + [np.full((120, 160), 255, np.uint8)])),
    "no suffix of its own.jpeg": encoded(speckle(913)),
    "超声 图像.png": encoded(speckle(914)),
    "UPPER.PNG": encoded(speckle(915)),
}


@pytest.fixture(scope="module")
def damaged(tmp_path_factory):
    root = sound(tmp_path_factory.mktemp("clinic") / "export")
    folder = root / "benign" / "damage"
    (folder / "folder.png").mkdir(parents=True)
    for name, (content, _) in DAMAGE.items():
        (folder / name).write_bytes(content)
    for name, content in USABLE.items():
        (root / "benign" / name).write_bytes(content)
    (folder / "gone.png").symlink_to(root / "nowhere")
    (folder / "stray_mask.png").write_bytes(PNG)
    (root / "loose.png").write_bytes(PNG)
    return root


def test_every_kind_of_damage_is_named_and_unusual_files_are_used(damaged):
    clean, problems = manifest.check(datasets.read(f"folder:{damaged}"), jobs=1)
    left = problems[problems["action"] == manifest.LEFT_OUT]
    said = dict(zip(left["image"], left["problem"]))
    for name, (_, words) in DAMAGE.items():
        assert words in said.pop(f"benign/damage/{name}"), name
    assert said.pop("benign/damage/gone.png") == "a broken link"
    assert said.pop("loose.png") == "not inside a class folder"
    assert said.pop("benign/damage/stray_mask.png") == "a mask whose frame is missing"
    assert not said and left["image"].is_unique
    assert {f"benign/{name}" for name in USABLE} <= set(clean["image"])
    assert len(clean) == 32 + len(USABLE)


@pytest.mark.parametrize("folds, status", [(4, 0), (30, 1)])
def test_the_command_prints_each_file_and_whether_a_study_would_run(damaged, capsys, folds, status):
    arguments = ["check-data", f"folder:{damaged}", "--folds", str(folds), "--jobs", "1"]
    assert command.main(arguments) == status
    out = capsys.readouterr().out
    assert all(name in out for name in [*DAMAGE, "gone.png", "loose.png"]) and str(damaged) not in out
    flow = [line.split() for line in out.splitlines() if "left out)" in line]
    assert int(flow[0][0]) + int(flow[0][-3].strip("(")) == 32 + len(USABLE) + len(DAMAGE) + 3
    assert ("would run; SHA-256 of the split" in out) == (status == 0)
    assert ("class malignant: 8 independent groups (patients), 30 folds" in out) == (status == 1)


def test_what_is_no_data_set_exits_1_with_a_reason(damaged, capsys):
    for spec, words in (("folder:{root}/benign/damage", "expected"), ("ddti:{root}", "no XML file is there")):
        assert check_data.main([spec.format(root=damaged), "--jobs", "1"]) == 1
        assert words in capsys.readouterr().err


TOO_LITTLE = {6: "at least two classes are needed; came: benign", 0: "no usable labelled frame is left"}


@pytest.mark.parametrize("count, words", TOO_LITTLE.items())
def test_too_little_would_not_run(tmp_path, capsys, count, words):
    (tmp_path / "benign").mkdir()
    (tmp_path / "benign" / "bad.png").write_bytes(b"x")
    for number in range(count):
        Image.fromarray(speckle(number)).save(tmp_path / "benign" / f"{number}.png")
    assert check_data.main([f"folder:{tmp_path}", "--jobs", "1"]) == 1
    assert words in capsys.readouterr().out


def test_frames_that_show_the_same_stand_in_pairs_and_names_cannot_write_to_the_terminal(tmp_path, capsys):
    root = sound(tmp_path)
    Image.fromarray(speckle(0)).save(root / "benign" / "stranger.png")
    larger = cv2.resize(speckle(1), None, fx=1.5, fy=1.5, interpolation=cv2.INTER_CUBIC)
    Image.fromarray(larger).save(root / "benign" / "contradicts.png")
    (root / "benign" / "evil\x1b[2J\n\u202e.png").write_bytes(b"x")
    assert check_data.main([f"folder:{root}", "--folds", "2", "--jobs", "1"]) == 0
    out = capsys.readouterr().out
    assert "1 identical pairs, 1 near-duplicate pairs; 2 across groups, now joined" in out
    assert "benign/p0a/0.png = benign/stranger.png  (identical)" in out
    assert "contradicting labels (benign, malignant): set aside" in out
    assert "evil\\x1b[2J\\n\\u202e.png" in out and "\x1b" not in out and "\u202e" not in out


def test_rows_of_a_table_are_named_as_the_spreadsheet_shows_them(tmp_path, capsys):
    rows = ["image,label,patient,age"]
    for number in range(20):
        Image.fromarray(speckle(number)).save(tmp_path / f"{number}.png")
        rows.append(f"{number}.png,{('benign', 'malignant')[number % 2]},p{number},50")
    rows[3] = rows[3].replace(",50", ",500")
    rows[5] = "missing.png,benign,p4,50"
    rows.append(f"{tmp_path}/0.png,benign,p1,50")
    (tmp_path / "manifest.csv").write_text("\n".join(rows))
    table = tmp_path / "found.csv"
    assert check_data.main([f"manifest:{tmp_path}", "--jobs", "1", "--table", str(table)]) == 0
    out = capsys.readouterr().out
    assert "2.png  (row 4 age)" in out and "missing.png  (row 6)" in out and "…/0.png  (row 22)" in out
    assert str(tmp_path) not in out
    found = pd.read_csv(table)
    assert found[["row", "column"]].dropna().values.tolist() == [[22, "image"], [4, "age"], [6, "image"]]


def test_phantoms_are_called_simulated(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("THYROID_CACHE", str(tmp_path))
    assert check_data.main(["phantom:clinic?patients=10", "--folds", "2", "--jobs", "1"]) == 0
    assert "(simulated)" in capsys.readouterr().out.splitlines()[0]


REAL = [("busi", 0, "764  readable grey frames"), ("ddti", 0, "276  labelled"),
        ("tg3k", 1, "unlabelled: not used for training")]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name, status, words", REAL)
def test_real_sets_would_run_where_they_have_labels(real_data, capsys, name, status, words):
    assert check_data.main([f"{name}:{real_data / name}"]) == status
    assert words in capsys.readouterr().out
