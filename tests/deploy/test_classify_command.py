"""The command line: one object per image, every bad file named, nothing stopped, foreign text inert."""

import io
import json
import os
import re
import struct
import subprocess
import sys
import zlib

import hospital
import numpy as np
import pytest
import small_classifier as small
from bs4 import BeautifulSoup
from PIL import Image

from thyroid_lib.classifier import studies
from thyroid_lib.common.messages import printable
from thyroid_lib.deploy import command

HOSTILE = "<img src=x onerror=alert(1)>\x1b[31m\u202e$(reboot)`id`;&\"'\n.png"
START = "import sys; from thyroid_lib.deploy.command import main; status = main(sys.argv[1:])\n"
"""The command in a process of its own, for what is asked of it afterwards."""


def encoded(pixels, format="PNG", mode="", **options) -> bytes:
    image, buffer = Image.fromarray(pixels), io.BytesIO()
    (image.convert(mode) if mode else image).save(buffer, format, **options)
    return buffer.getvalue()


def dicom(path, pixels, **header) -> None:
    who = {"PatientName": "Secret^Name", "PatientID": "4711", "StudyInstanceUID": "1.2.3"}
    hospital.save(path, hospital.scan(pixels, **who, **header))


@pytest.fixture
def classify(classifier_folder, capsys):
    """classify(*arguments): exit status, and what was printed and said, of the command in this process."""

    def classify(*arguments):
        fixed = ["--classifier", str(classifier_folder), "--backend", "torch"]
        return command.main([*map(str, arguments), *fixed]), *capsys.readouterr()

    return classify


@pytest.fixture
def frames(tmp_path):
    """A folder of three frames, 1.png, 2.png and 10.png."""
    for seed in (1, 2, 10):
        (tmp_path / f"{seed}.png").write_bytes(encoded(small.sector_frame(seed)))
    return tmp_path


def only_page(folder) -> tuple[str, BeautifulSoup]:
    """The text of the only page in a folder, and what it parses to."""
    (page,) = folder.glob("*.html")
    text = page.read_text(encoding="utf-8")
    return text, BeautifulSoup(text, "html.parser")


def png_header(side: int) -> bytes:
    body = b"IHDR" + struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    chunk = struct.pack(">I", 13) + body + struct.pack(">I", zlib.crc32(body))
    return b"\x89PNG\r\n\x1a\n" + chunk + struct.pack(">I", 5000) + b"IDAT" + bytes(40)


def test_one_json_object_per_image_with_the_documented_fields(classify, frames):
    status, out, _ = classify(frames, "--json", "--out", frames / "out")
    found = [json.loads(line) for line in out.splitlines()]
    assert status == 0
    assert [os.path.basename(f["image"]) for f in found] == ["1.png", "2.png", "10.png"]
    for one in found:
        assert sum(one["probabilities"].values()) == pytest.approx(1)
        assert one["lesion_type"] == max(one["probabilities"], key=one["probabilities"].get)
        assert len(one["box"]) == 4 and one["classifier"].startswith("optimized_xception-")
        assert one["warnings"] == []
    index = BeautifulSoup((frames / "out/index.html").read_text(encoding="utf-8"), "html.parser")
    links = [a["href"] for a in index.find_all("a")]
    assert len(links) == 3 and all((frames / "out" / link).is_file() for link in links)


def test_a_bad_file_gives_its_error_and_the_others_still_come(classify, frames):
    (frames / "bad.jpg").write_text("hello")
    paths = [frames / "bad.jpg", frames / "1.png", frames / "missing.png"]
    status, out, _ = classify(*paths, "--json")
    found = [json.loads(line) for line in out.splitlines()]
    assert status == 1 and [f["image"] for f in found] == [str(path) for path in paths]
    assert ["error" in f for f in found] == [True, False, True]


def bad_inputs() -> dict:
    frame = small.sector_frame(5)
    rng = np.random.default_rng(0)
    jpeg = encoded(frame, "JPEG")
    doppler = np.repeat(frame[:, :, None], 3, 2)
    doppler[60:110, 100:170] = (220, 30, 20)
    colours = rng.integers(0, 256, (120, 160, 3), dtype=np.uint8)
    y, x = np.mgrid[:240, :320]
    body = ((x - 160) / 120) ** 2 + ((y - 120) / 85) ** 2 < 1
    slice_ = np.where(body, 120 + 50 * (np.hypot(x - 120, y - 110) < 35) + rng.normal(0, 3, x.shape), 0)
    sixteen = frame.astype(np.uint16) * 257
    zipped = b"PK\x03\x04\x14\x00\x01\x00\x63\x00" + rng.bytes(400)
    other = Image.fromarray(255 - frame)
    return {
        "truncated.jpg": (jpeg[: len(jpeg) // 2], "error: truncated"),
        "zero.png": (b"", "error: empty"),
        "text.jpg": (b"this is text", "error: not_an_image"),
        "script.png": (b"<svg onload=alert(1)>", "error: not_an_image"),
        "huge.png": (png_header(60_000), "error: too_large"),
        "large.png": (png_header(20_000), "error: too_large"),
        "zip.png": (zipped, "error: not_an_image"),
        "doppler.png": (encoded(doppler), "error: colour"),
        "colours.png": (encoded(colours), "error: colour"),
        "black.png": (encoded(np.zeros((200, 200), np.uint8)), "error: constant"),
        "tiny.png": (encoded(frame[:30, :30]), "error: too_small"),
        "ruler.png": (encoded(np.pad(np.full((1, 180), 200, np.uint8), ((90, 90), (9, 9)))), "error: no_region"),
        "hu.tif": (encoded(slice_.astype(np.int32) - 1000, "TIFF"), "error: negative"),
        "sixteen.png": (encoded(sixteen), "warning: from 16 to 8 bits"),
        "cmyk.jpg": (encoded(frame, "JPEG", mode="CMYK"), "warning: CMYK"),
        "animated.gif": (encoded(frame, "GIF", save_all=True, append_images=[other]), "warning: only the first"),
        "ct.png": (encoded(slice_.clip(0, 255).astype(np.uint8)), "warning: unlike the training images"),
        "nopixels.dcm": (lambda path: dicom(path, None), "error: no_pixels"),
        "ctslice.dcm": (lambda path: dicom(path, frame, Modality="CT"), "error: modality"),
        "doppler.dcm": (lambda path: dicom(path, doppler), "error: colour"),
        "cut.dcm": (bytes(128) + b"DICM" + b"\x02\x00\x00\x00UL\x04\x00", "error: truncated"),
        "claims.dcm": (lambda path: dicom(path, frame, NumberOfFrames=10**7), "error: too_large"),
    }  # fmt: skip


@pytest.mark.parametrize("name", list(bad_inputs()))
def test_each_kind_of_foreign_input_gives_its_documented_error_or_warning(classify, tmp_path, name):
    content, expected = bad_inputs()[name]
    path = tmp_path / name
    content(path) if callable(content) else path.write_bytes(content)
    status, out, _ = classify(path, "--json")
    (found,) = [json.loads(line) for line in out.splitlines()]
    what, _, said = expected.partition(": ")
    if what == "error":
        assert (status, found.get("kind")) == (1, said), found
        assert len(found["error"]) > 15 and str(tmp_path) not in found["error"]
    else:
        assert status == 0
        assert any(said in warning for warning in found["warnings"]), found["warnings"]


@pytest.mark.skipif(sys.platform != "linux", reason="reads the memory's high-water mark from /proc")
def test_bad_input_is_refused_in_bounded_memory(classifier_folder, tmp_path):
    for name, (content, _) in bad_inputs().items():
        content(tmp_path / name) if callable(content) else (tmp_path / name).write_bytes(content)
    peak = "resource.getrusage(resource.RUSAGE_SELF).ru_maxrss"
    code = f"import resource, torch, cv2, pydicom\nbefore = {peak}\n{START}print('grown', {peak} - before)"
    done = process(code, tmp_path, "--json", "--classifier", classifier_folder, "--backend", "torch")
    grown = int(re.search(r"grown (\d+)", done.stdout)[1])
    assert grown < 500 * 1024, f"{grown} KiB; {done.stderr}"  # KiB; pandas and the network are most of it


def test_a_clip_is_answered_frame_by_frame_and_as_a_whole(classify, tmp_path):
    clip = np.stack([small.sector_frame(s) for s in (1, 2, 3)] + [np.zeros((180, 280), np.uint8)])
    dicom(tmp_path / "clip.dcm", clip)
    status, out, _ = classify(tmp_path / "clip.dcm", "--json", "--out", tmp_path / "out")
    *each, whole = [json.loads(line) for line in out.splitlines()]
    assert status == 1  # the black frame
    assert [f["frame"] for f in each] == [0, 1, 2, 3]
    assert each[3]["kind"] == "constant"
    assert whole["clip"] and whole["frames"] == 4
    for key, probability in whole["probabilities"].items():
        assert probability == pytest.approx(np.mean([f["probabilities"][key] for f in each[:3]]))
    assert any(w.startswith("1 of 4 frames: not classified: constant") for w in whole["warnings"])
    left, top, width, height = whole["box"]
    for x, y, w, h in (f["box"] for f in each[:3]):
        assert left <= x and top <= y and x + w <= left + width and y + h <= top + height
    _, soup = only_page(tmp_path / "out")
    assert len(soup.select("svg.curves polyline")) == len(small.CLASSES)
    assert "whole clip, 4 frames" in soup.text


def test_files_of_one_dicom_study_share_a_page_without_the_persons_name(classify, tmp_path):
    for number in (1, 2):
        hostile = {"Manufacturer": "<script>Maker</script>\x1b[2J"}
        dicom(tmp_path / f"{number}.dcm", small.sector_frame(number), **hostile)
    status, out, _ = classify(tmp_path, "--json", "--out", tmp_path / "out")
    text, soup = only_page(tmp_path / "out")
    assert (status, len(soup.select("main section"))) == (0, 2)
    assert "Secret" not in text + out and "4711" not in text + out
    assert not soup.find("script") and "Maker" not in text + out and "1.2.3" not in text + out
    scanners = [dt.find_next("dd").text for dt in soup.select("dt") if dt.text == "Scanner"]
    assert len(scanners) == 2 and all(re.fullmatch(r"device [0-9a-f]{6}", text) for text in scanners)


def test_hostile_names_are_inert_in_terminal_json_and_html(classify, tmp_path):
    path, bad = tmp_path / HOSTILE, tmp_path / ("bad" + HOSTILE)
    path.write_bytes(encoded(small.sector_frame(1)))
    bad.write_text("x")
    status, table, err = classify(path, bad, "--out", tmp_path / "out")
    assert status == 1
    for text in (table, err):
        assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f\u202e]", text)
    assert len([line for line in table.splitlines() if not line.startswith("  !")]) == 2
    _, out, _ = classify(path, bad, "--json")
    assert out.isascii() and [json.loads(line)["image"] for line in out.splitlines()] == [str(path), str(bad)]
    for page in (tmp_path / "out").iterdir():
        assert re.fullmatch(r"[A-Za-z0-9._-]+", page.name)
        text = page.read_text(encoding="utf-8")
        assert not BeautifulSoup(text, "html.parser").select("script, [onerror], img[src=x]")
        assert "\x1b" not in text and "\u202e" not in text


def test_a_name_that_is_no_text_still_works(classify, tmp_path):
    path = tmp_path / os.fsdecode(b"\xff\xfe.png")
    try:
        path.write_bytes(encoded(small.sector_frame(1)))
    except OSError:
        pytest.skip("this file system takes only Unicode names")
    for options in (["--json"], ["--out", tmp_path / "out"]):
        status, out, _ = classify(path, *options)
        assert status == 0 and out


def test_pages_are_self_contained_and_say_what_they_must(classify, tmp_path):
    (tmp_path / "f.png").write_bytes(encoded(small.sector_frame(1)))
    status, _, err = classify(tmp_path / "f.png", "--out", tmp_path / "out")
    text, soup = only_page(tmp_path / "out")
    assert status == 0 and str(next((tmp_path / "out").iterdir())) in err
    policy = soup.find("meta", {"http-equiv": "Content-Security-Policy"})["content"]
    assert "default-src 'none'" in policy
    assert not re.search(r"""(src|href)=["'](?!data:)""", text)
    assert all(image.get("alt") for image in soup.find_all("img"))
    assert all(s.get("aria-label") or s.get("aria-hidden") for s in soup.find_all("svg"))
    for words in ("Research use only", "simulated", "papillary carcinoma", "甲状腺乳头状癌", "xception-"):
        assert words in text
    assert int(soup.select_one("figure.frame rect")["width"]) > 100


def test_folders_patterns_and_what_is_left_out(tmp_path):
    for name in ("deep", ".hidden", "empty"):
        (tmp_path / name).mkdir()
    for name in ("a.png", "deep/b.JPG", "notes.txt", ".x.png", ".hidden/c.png", "Thumbs.db", "DICOMDIR"):
        (tmp_path / name).write_bytes(b"x")
    found, notes = studies.find([str(tmp_path)])
    assert [item.path for item in found] == [str(tmp_path / "a.png"), str(tmp_path / "deep" / "b.JPG")]
    assert "files left out, no images by name: 1" in notes[0] and ".txt" in notes[0]
    found, _ = studies.find([str(tmp_path / name) for name in ("*.png", "*.zzz", "empty")])
    assert found[0].image == str(tmp_path / "a.png") and len(found) == 3
    missing = ["no file matches this pattern", "no image files in this folder"]
    assert [str(item.image) for item in found[1:]] == missing


def test_printable_escapes_what_a_terminal_would_act_on():
    assert printable("a\x1b[2J\n甲状腺\u202eexe.png\udcff") == r"a\x1b[2J\n甲状腺\u202eexe.png\udcff"


def test_a_classifier_that_cannot_be_used_ends_with_status_two(tmp_path, capsys):
    assert command.main(["frame.png", "--classifier", str(tmp_path)]) == 2
    assert "no classifier folder" in capsys.readouterr().err
    for wrong in ([], ["--classifier", "x", "--batch-size", "0"], ["--classifier", "x", "--threads", "many"]):
        with pytest.raises(SystemExit, match="2"):
            command.main(["frame.png", *wrong])


def process(code: str, *arguments) -> subprocess.CompletedProcess:
    python = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.run(python, capture_output=True, text=True, timeout=300)


HEAVY = "pandas scipy jinja2 matplotlib torchvision torch._dynamo pydicom"


def test_help_and_wrong_usage_need_no_heavy_import():
    look = f"print([m for m in '{HEAVY} torch cv2'.split() if m in sys.modules])"
    start = START.replace("status = main", "import contextlib\nwith contextlib.suppress(SystemExit): main")
    assert process(start + look, "--help").stdout.splitlines()[-1] == "[]"


def test_classifying_an_image_with_torch_imports_nothing_else_heavy(classifier_folder, frames):
    code = f"{START}print([m for m in '{HEAVY}'.split() if m in sys.modules])"
    done = process(code, frames / "1.png", "--classifier", classifier_folder, "--backend", "torch")
    assert done.stdout.splitlines()[-1] == "[]", done.stderr


def test_a_reader_that_stops_reading_is_no_error_message(classifier_folder, frames):
    options = ["--classifier", str(classifier_folder), "--batch-size", "1"]
    python = [sys.executable, "-c", START, str(frames), *options]
    with subprocess.Popen(python, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        process.stdout.close()
        assert b"Traceback" not in process.stderr.read()
