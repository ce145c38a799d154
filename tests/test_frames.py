"""Frames: one decoder, and the reasons it gives."""

import os
import subprocess
import sys
import time
import tracemalloc
import warnings
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image
from small_images import DAMAGED, encoded, png_header

from thyroid_lib import frames

GRAY = np.random.default_rng(0).integers(0, 256, (90, 120), dtype=np.uint8)
GRAY.setflags(write=False)


@pytest.mark.parametrize("format", ["PNG", "BMP", "TIFF", "PPM", "GIF"])
def test_lossless_grey_files_come_back_byte_for_byte(tmp_path, format):
    path = tmp_path / "frame"
    path.write_bytes(encoded(GRAY, format))
    for source in (path, str(path), path.read_bytes(), GRAY, Image.fromarray(GRAY)):
        np.testing.assert_array_equal(frames.read(source).gray, GRAY)
    assert frames.read(path).warnings == []


def test_colour_becomes_rec_601_luma_and_what_is_transparent_black():
    rgb = np.repeat(GRAY[:, :, None], 3, axis=2)
    rgba = np.dstack([rgb, np.full_like(GRAY, 255)])
    for source in (rgb, encoded(rgb), rgba, GRAY[..., None]):
        np.testing.assert_array_equal(frames.read(source).gray, GRAY)
    rgba[:40, :, 3] = 0
    clear = frames.read(encoded(rgba)).gray
    assert not clear[:40].any() and np.array_equal(clear[40:], GRAY[40:])
    rgb = np.full((100, 100, 3), (200, 180, 160), np.uint8)
    rgb[:50] = (40, 30, 20)
    luma = 0.299 * 200 + 0.587 * 180 + 0.114 * 160
    assert abs(int(frames.read(rgb).gray[99, 0]) - luma) <= 1


@pytest.mark.parametrize("bits", [8, 12, 16])
def test_sixteen_bit_files_are_scaled_from_the_bits_in_use(bits):
    ramp = np.linspace(0, 2**bits - 1, 100 * 100).reshape(100, 100).round().astype(np.uint16)
    frame = frames.read(encoded(ramp))
    np.testing.assert_allclose(frame.gray, ramp / (2**bits - 1) * 255, atol=0.51)
    assert bool(frame.warnings) == (bits > 8)


def test_what_is_turned_or_converted_is_said():
    data = encoded(Image.fromarray(np.repeat(GRAY[:, :, None], 3, 2)).convert("CMYK"), "JPEG")
    frame = frames.read(data)
    assert frame.gray.shape == GRAY.shape and any("CMYK" in warning for warning in frame.warnings)
    exif = Image.Exif()
    exif[0x0112] = 6
    frame = frames.read(encoded(GRAY, "PNG", exif=exif))
    np.testing.assert_array_equal(frame.gray, np.rot90(GRAY, -1))
    assert any("EXIF orientation 6" in warning for warning in frame.warnings)


@pytest.mark.parametrize("format", ["GIF", "PNG", "WEBP", "TIFF"])
def test_animations_give_their_first_picture_and_a_warning(format):
    options = {"lossless": True} if format == "WEBP" else {}
    others = [Image.fromarray(255 - GRAY)]
    frame = frames.read(encoded(GRAY, format, save_all=True, append_images=others, **options))
    assert np.abs(frame.gray.astype(int) - GRAY).max() <= 1
    assert any("first" in warning for warning in frame.warnings)


COLOURS = np.random.default_rng(1).integers(0, 256, (90, 90, 3), dtype=np.uint8)
REFUSED = {
    "animated colours": (encoded(COLOURS, "WEBP"), "colour", "grey-scale"),
    "negative": (encoded(GRAY.astype(np.int32) - 1000, "TIFF"), "negative", "down to -1000"),
    "float array": (GRAY.astype(float), "bad_array", "float64"),
    "cube": (np.zeros((9, 90, 90), np.uint8), "bad_array", "(9, 90, 90) came"),
    "empty array": (np.zeros((0, 90), np.uint8), "empty", "(0, 90)"),
}


@pytest.mark.parametrize("source, kind, words", (DAMAGED | REFUSED).values(), ids=DAMAGED | REFUSED)
def test_what_is_not_a_usable_frame_is_refused_with_its_kind_and_a_sentence(source, kind, words):
    with pytest.raises(frames.FrameError) as error:
        frames.read(source)
    assert error.value.kind == kind and words in str(error.value)


def test_a_huge_header_is_refused_before_memory_is_taken():
    tracemalloc.start()
    for side in (9_000, 60_000):
        with pytest.raises(frames.FrameError, match="too large"):
            frames.read(png_header(side, side))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2**20


def test_paths_of_no_regular_files_or_of_too_large_ones_are_refused_and_never_block(tmp_path, monkeypatch):
    monkeypatch.setattr(frames, "MAX_BYTES", 100)
    (tmp_path / "big.png").write_bytes(encoded(GRAY))
    os.mkfifo(tmp_path / "pipe")
    started = time.monotonic()
    kinds = {"big.png": "too_large", "pipe": "not_a_file", "/dev/zero": "not_a_file"}
    kinds |= dict.fromkeys(("missing.png", ".", "bad\0name.png"), "cannot_open")
    for name, kind in kinds.items():
        with pytest.raises(frames.FrameError) as error:
            frames.read(tmp_path / name)
        assert error.value.kind == kind, name
        assert str(tmp_path) not in str(error.value)
    assert time.monotonic() - started < 60


def test_the_decoder_needs_neither_torch_nor_pandas_nor_opencv():
    names = "'torch', 'pandas', 'cv2'"
    code = f"import sys, thyroid_lib.frames; print([m for m in ({names}) if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_reading_in_threads_leaves_the_programs_own_warnings_alone():
    before = list(warnings.filters)
    data = encoded(GRAY)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(frames.read, [data] * 200))
    assert warnings.filters == before
