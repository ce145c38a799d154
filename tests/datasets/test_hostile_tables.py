"""Hostile tables: manifests of any content are read or refused in words, in bounded memory, and touch nothing else.

`hypothesis` makes the tables: missing and doubled columns, wrong types, other encodings, contradicting rows, absolute,
remote and climbing paths, links, masks that are no masks. Around them stands a folder with a few sound frames.
"""

import json
import os
import resource
import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from small_images import speckle
from test_hostile_images import run_limited

from thyroid_lib import datasets, manifest
from thyroid_lib.data import audit, check_data, crops
from thyroid_lib.datasets import contract

SOUND = [f"sound{number}.png" for number in range(6)]
COLUMNS = (
    "image label patient group nodule mask box age sex device dataset path row fold sha256 phash text caliper "
    "box_x mask_inside frame_width text_lines truth set model p_x attrs index 名称 __class__ image"
).split()
NASTY = [
    "", " ", "\ufeff", "0", "-1", "1e999", "nan", "9" * 400, "x" * 5000, "NULL", "病人", "%s%n{0}", "a\tb", "a\rb",
    "../outside.png", "a/../../outside.png", "/etc/passwd", "~/x.png", "C:\\x.png", "\\\\server\\share\\x.png",
    "//server/x.png", "http://127.0.0.1:9/x.png", "file:///etc/passwd", "s3://bucket/x.png",
    "link.png", "loop.png", "zero.png", "pipe.png", "folder.png",
    "=cmd|'/c calc'!A1", "<script>alert(1)</script>", "\x1b[2J", "\u202egnp.exe",
    "[" * 3000, "[[[1,2],[3]]]", '[["a","b"]]', "[[1e308,-1e308],[0,0],[5,5]]", '["sound0.png", 7, null]',
    "[[[1e400,1],[2,2],[3,3]]]", "[[]]", "{}", '["/etc/passwd"]', "sound1.png|../outside.png",
    "sound0.png#3", "sound0.png#99999999999999999999", "1 2 3", "-1 -1 -1 -1",
]  # fmt: skip
FIXED = {"deadline": None, "derandomize": True, "database": None}
LABELS = ["benign", "malignant"]
cells = (
    st.sampled_from(SOUND) | st.sampled_from(NASTY) | st.text(max_size=12)
    | st.sampled_from([*LABELS, "nodular_goiter", "p1", "p2", "p3"])
)  # fmt: skip


@st.composite
def tables(draw) -> bytes:
    """The bytes of a manifest.csv: half of them sound but for two columns, half of them anything."""
    if draw(st.booleans()):
        extra = draw(st.lists(st.sampled_from(COLUMNS[3:-1]), min_size=2, max_size=2, unique=True))
        rows = draw(st.lists(st.tuples(cells, cells), min_size=6, max_size=6))
        sound = ((name, LABELS[i % 2], f"p{i}") for i, name in enumerate(SOUND))
        table = [("image", "label", "patient", *extra), *((*first, *row) for first, row in zip(sound, rows))]
        lines = (",".join(json.dumps(cell, ensure_ascii=False) for cell in row) for row in table)
        return "\n".join(lines).encode("utf-8", "replace")
    names = draw(st.lists(st.sampled_from(COLUMNS), max_size=7))
    names = draw(st.sampled_from([["image", "label"], ["image", "label", "patient"], ["image"], []])) + names
    first = {"image": st.sampled_from(SOUND) | cells, "label": st.sampled_from(LABELS) | cells}
    row = st.tuples(*(first.get(name, cells) for name in names))
    rows = draw(st.lists(row, max_size=12) | st.lists(st.lists(cells, max_size=8), max_size=6))
    mark = draw(st.sampled_from(",;\t"))
    quote = draw(st.booleans())
    lines = [mark.join(f'"{cell}"' if quote else cell for cell in row) for row in [names, *rows]]
    text = draw(st.sampled_from(["\n", "\r\n", "\r"])).join(lines)
    encoding = draw(st.sampled_from(["utf-8", "utf-8-sig", "gb18030", "utf-16", "latin-1"]))
    data = text.encode(encoding, "replace")
    return data if draw(st.booleans()) else data[: draw(st.integers(0, len(data)))]


@pytest.fixture(scope="module")
def clinic(tmp_path_factory):
    """A folder with sound frames, links and odd files, and a file outside that no table may reach."""
    root = tmp_path_factory.mktemp("area") / "clinic"
    root.mkdir()
    for number, name in enumerate(SOUND):
        Image.fromarray(speckle(number)).save(root / name)
    Image.fromarray(speckle(99)).save(root.parent / "outside.png")
    (root / "link.png").symlink_to(root.parent / "outside.png")
    (root / "loop.png").symlink_to(root / "loop.png")
    (root / "zero.png").symlink_to("/dev/zero")
    os.mkfifo(root / "pipe.png")
    (root / "folder.png").mkdir()
    return root


def state(folder: Path) -> dict:
    """Every name below a folder with its size and time."""
    return {p: (p.lstat().st_size, p.lstat().st_mtime_ns) for p in folder.rglob("*")}


def try_table(data: bytes, clinic: Path, capsys) -> str:
    """Gives a table to check-data and, where frames are left, to the cropping; says what came of it."""
    (clinic / "manifest.csv").write_bytes(data)
    before = state(clinic.parent)
    status = check_data.main([f"manifest:{clinic}", "--jobs", "1", "--folds", "2", "--all"])
    said = "".join(capsys.readouterr())
    assert status in (0, 1) and "Traceback" not in said
    assert not any(ord(c) < 32 and c != "\n" for c in said) and "\u202e" not in said
    assert str(clinic.parent) not in said.replace(f"expected {clinic}", "").replace(str(clinic), "")
    result = "refused"
    try:
        read = datasets.read(f"manifest:{clinic}")
        clean, problems = manifest.check(read, jobs=1)
    except (contract.DatasetError, manifest.ManifestError) as error:
        assert 20 < len(str(error)) < 20_000
    else:
        assert not clean["image"].str.contains(r"^/|\.\./|^~|outside", regex=True).any()
        listed = len(problems[problems["action"] == manifest.LEFT_OUT]) + len(clean)
        assert listed >= len(read)
        result = "used" if len(clean) else "nothing left"
        if len(clean):
            built = crops.build(clean, clinic.parent / "crops", size=16, jobs=1)
            assert len(built) + len(built.excluded) == len(clean) and built.index.columns.is_unique
            audit.worst(built), audit.shortcuts(built), audit.crop_audit(built)
            text = "".join(path.read_text() for path in built.folder.glob("*.[cj]s*"))
            assert str(clinic.parent) not in text
            shutil.rmtree(built.folder)
    assert state(clinic.parent) == before
    return result


@pytest.mark.parametrize("examples", [30, pytest.param(1500, marks=pytest.mark.slow)])
def test_any_table_is_read_or_refused_in_words(clinic, capsys, count, examples):
    tried = []

    @settings(max_examples=examples, suppress_health_check=[HealthCheck.too_slow], **FIXED)
    @given(data=tables())
    def run(data):
        tried.append(try_table(data, clinic, capsys))

    run()
    assert {"refused", "used"} <= set(tried)
    count(inputs=len(tried))


@pytest.mark.parametrize("column", "image label patient mask box age sex device mask_inside".split())
def test_every_nasty_value_in_every_column_is_survived(clinic, capsys, count, column):
    header = ["image", "label", "patient", *({column} - {"image", "label", "patient"})]
    lines = [",".join(header)]
    for number, value in enumerate(NASTY):
        row = {"image": SOUND[number % 6], "label": "benign", "patient": f"p{number}", column: value}
        lines.append(",".join(quoted(row[name]) for name in header))
    try_table("\n".join(lines).encode("utf-8", "replace"), clinic, capsys)
    count(inputs=len(NASTY))


def quoted(cell: str) -> str:
    return '"' + cell.replace('"', '""') + '"'


def problems_of(clinic, rows: list[str]) -> str:
    (clinic / "manifest.csv").write_text("image,label,patient,mask\n" + "\n".join(rows))
    _, problems = manifest.check(datasets.read(f"manifest:{clinic}"), jobs=1)
    return problems.to_csv()


def test_paths_that_leave_the_folder_are_not_followed(clinic, sees):
    for path in ("../outside.png", "/etc/passwd", "a/../../outside.png", "~/x.png", "\\\\server\\x.png"):
        said = problems_of(clinic, [f"{path},benign,p1,", "sound0.png,benign,p2,"])
        assert sees in said and "/etc" not in said


def test_masks_that_leave_the_folder_are_not_opened(clinic, monkeypatch):
    opened, read = [], contract.frames.read
    monkeypatch.setattr(
        contract.frames, "read", lambda path, **o: opened.append(str(path)) or read(path, **o)
    )
    for mask in ("../outside.png", "/etc/passwd", "sound0.png|../outside.png", '["../outside.png"]'):
        assert "mask not used" in problems_of(clinic, [f"sound0.png,benign,p1,{quoted(mask)}"])
    assert opened and not any("outside" in path or "passwd" in path for path in opened)


def test_links_to_endless_and_blocking_files_do_not_block(clinic):
    names = ("zero.png", "pipe.png", "loop.png", "folder.png")
    said = problems_of(clinic, [f"{name},benign,p{name}," for name in names])
    assert said.count("not a regular file") == 2 and said.count("cannot be opened") == 2


def test_a_column_of_ours_in_a_table_of_others_does_not_replace_our_own(clinic):
    rows = (f"{name},benign,p{i},high,wide,x,y\n" for i, name in enumerate(SOUND))
    header = "image,label,patient,mask_inside,frame_width,fold,sha256\n"
    (clinic / "manifest.csv").write_text(header + "".join(rows))
    clean, _ = manifest.check(datasets.read(f"manifest:{clinic}"), jobs=1)
    built = crops.build(clean, clinic.parent / "own", size=16, jobs=1)
    assert built.index["frame_width"].dtype.kind == "i" and built.index["frame_width_given"].eq("wide").all()
    assert np.isnan(built.index["mask_inside"]).all() and clean["sha256"].str.len().eq(64).all()


MILLION = """
from thyroid_lib.data import check_data
status = check_data.main([sys.argv[1], "--jobs", "1", "--folds", "2"])
print("status", status, "MiB", int(peak()))
"""


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["missing files", "two files again and again"])
def test_a_million_rows_take_bounded_memory(clinic, kind, count):
    with open(clinic / "manifest.csv", "w") as file:
        file.write("image,label,patient\n")
        for number in range(1_000_000):
            name = f"gone/{number}.png" if kind == "missing files" else SOUND[number % 2]
            file.write(f"{name},{'benign' if number % 2 else 'malignant'},p{number}\n")
    *said, last = run_limited(MILLION, f"manifest:{clinic}")
    status, mib = last.split()[1::2]
    assert status == "1" and int(mib) < 6 * 1024 and "1000000" in "".join(said)
    count(inputs=1)


def test_a_table_over_the_size_limit_is_not_read(clinic):
    with open(clinic / "manifest.csv", "w") as file:
        file.truncate(300 * 2**20)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(contract.DatasetError, match="larger than 256 MiB"):
        datasets.read(f"manifest:{clinic}")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50 * 1024


ATOMS = st.none() | st.integers() | st.floats() | st.text(max_size=8)


@given(data=st.recursive(ATOMS, st.lists, max_leaves=20))
@settings(max_examples=150, **FIXED)
def test_any_json_in_a_mask_is_a_mask_or_a_reason(data):
    try:
        mask = datasets.load_mask({"mask": "[" + json.dumps(data) + "]"}, (64, 64))
    except (contract.frames.FrameError, ValueError) as error:
        assert str(error)
    else:
        assert mask.shape == (64, 64) and mask.dtype == bool
