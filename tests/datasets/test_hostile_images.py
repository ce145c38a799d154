"""Hostile images: damaged and forged files of every format give a frame or a reason, in bounded time and memory.

Always: sound files of each format, mutated by a fixed rule a stated number of times, are decoded in a process whose
memory is limited. With --slow a coverage-guided fuzzer (atheris) looks for what the mutations did not.
"""

import hashlib
import io
import json
import random
import re
import resource
import struct
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hospital import compressed
from PIL import Image
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian, JPEGBaseline8Bit, RLELossless
from small_dicom import make, picture
from small_images import encoded

from thyroid_lib import frames
from thyroid_lib.datasets import dicom_frames

HERE = Path(__file__).resolve().parent
BOUND = 384  # MiB by which all of them may raise a process's peak memory; the largest frame allowed takes 275
MUTATIONS = 100  # of each sound file; with --slow ten to forty times as many


def dicom_bytes(syntax=ExplicitVRLittleEndian, data: bytes = b"") -> bytes:
    dataset = compressed(make(picture()), syntax, data) if data else make(picture(), syntax=syntax)
    buffer = io.BytesIO()
    dataset.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


def sound_files() -> dict[str, bytes]:
    """A sound file of each format and of its common kinds."""
    gray = Image.fromarray(picture())
    deep = Image.fromarray(picture().astype(np.uint16) * 257)
    colour = gray.convert("RGB")
    return {
        "jpeg": encoded(gray, "JPEG", quality=80),
        "jpeg progressive": encoded(colour, "JPEG", progressive=True, exif=b"Exif\0\0II*\0\x08\0\0\0\0\0"),
        "png": encoded(gray, "PNG"),
        "png 16": encoded(deep, "PNG"),
        "png palette": encoded(colour.quantize(16), "PNG", transparency=3),
        "bmp": encoded(colour, "BMP"),
        "tiff": encoded(gray, "TIFF"),
        "tiff lzw": encoded(gray, "TIFF", compression="tiff_lzw"),
        "tiff jpeg": encoded(gray, "TIFF", compression="jpeg"),
        "tiff pages": encoded(gray, "TIFF", save_all=True, append_images=[gray.rotate(90)]),
        "gif": encoded(gray, "GIF", save_all=True, append_images=[gray.rotate(90)]),
        "webp": encoded(colour, "WEBP", lossless=True),
        "jpeg 2000": encoded(gray, "JPEG2000"),
        "pgm": encoded(gray, "PPM"),
        "dicom": dicom_bytes(),
        "dicom implicit": dicom_bytes(ImplicitVRLittleEndian),
        "dicom jpeg": dicom_bytes(JPEGBaseline8Bit, encoded(picture(), "JPEG", quality=90)),
        "dicom runs": dicom_bytes(RLELossless, bytes([1, 0, 0, 0, 64]) + bytes(59) + b"\x81\x05" * 300),
    }


def mutated(data: bytes, chance: random.Random) -> bytes:
    """A file with one to four changes: bits, bytes, lengths, blocks cut, doubled, moved or set to extremes."""
    data = bytearray(data)
    for _ in range(chance.choice((1, 1, 1, 2, 4))):
        if not data:
            break
        head = chance.random() < 0.6  # most of what a decoder believes stands in the first bytes
        at = chance.randrange(min(len(data), 400) if head else len(data))
        size = chance.choice((1, 2, 4, 16, 256))
        kind = chance.randrange(8)
        if kind == 0:
            data[at] ^= 1 << chance.randrange(8)
        elif kind == 1:
            data[at] = chance.choice((0, 1, 127, 128, 254, 255))
        elif kind == 2:
            size = chance.choice((2, 4))
            value = chance.choice((0, 1, 2**15, 2**16 - 1, 2**31 - 1, 2**31, 2**32 - 1, len(data)))
            data[at : at + size] = (value % 256**size).to_bytes(size, chance.choice(("little", "big")))
        elif kind == 3:
            del data[at : at + size]
        elif kind == 4:
            data[at:at] = data[at : at + size]
        elif kind == 5:
            data[at:at] = chance.randbytes(size)
        elif kind == 6:
            other = chance.randrange(len(data))
            data[at : at + size] = data[other : other + size]
        else:
            del data[at:]
    return bytes(data)


def decoded(data: bytes, path: Path | None = None) -> str:
    """What becomes of a file's bytes: "read" or the kind of refusal; anything else but a FrameError is raised."""
    try:
        if path is not None:
            path.write_bytes(data)
        frame = frames.read(data) if path is None else dicom_frames.load(path)
    except frames.FrameError as error:
        said = str(error)
        assert 10 < len(said) < 400 and "/" not in said.replace("and/or", "").replace("16-bit/", ""), said
        return error.kind
    assert frame.gray.dtype == np.uint8 and frame.gray.ndim == 2 and 64 <= min(frame.gray.shape)
    assert frame.gray.size <= frames.MAX_PIXELS
    return "read"


def try_many(name: str, mutations: int, start: int = 0) -> dict[str, int]:
    """Decodes so many mutations of a sound file; gives how many ended in which way."""
    data, kinds = sound_files()[name], {}
    seed = int(hashlib.sha256(name.encode()).hexdigest()[:8], 16)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "x.dcm" if name.startswith("dicom") else None
        assert decoded(data, path) == "read" or name == "dicom runs"
        for number in range(start, start + mutations):
            try:
                kind = decoded(mutated(data, random.Random(seed + number)), path)
            except BaseException as error:
                raise AssertionError(f"mutation {number} of {name}: {error!r}") from error
            kinds[kind] = kinds.get(kind, 0) + 1
    return kinds


def run_limited(code: str, *arguments) -> list[str]:
    """Runs code, in which `peak()` is the memory used at most (MiB), in a process of 12 GiB; the lines it printed."""
    if sys.platform != "linux":
        pytest.skip("memory is limited and measured as Linux does")
    paths = f"import sys; sys.path[:0] = {[str(HERE.parent), str(HERE)]!r}\n"
    bounds = {"timeout": 3600, "preexec_fn": lambda: resource.setrlimit(resource.RLIMIT_AS, 2 * [12 * 2**30])}
    command = [sys.executable, "-W", "ignore", "-c", paths + PEAK + code, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, cwd=HERE.parent, **bounds)
    assert done.returncode == 0, done.stderr[-2500:]
    return done.stdout.splitlines()


PEAK = """
import json, resource
def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
"""
MANY = """
import test_hostile_images as t
names, mutations, start = json.loads(sys.argv[1])
for name in t.sound_files():
    t.try_many(name, 0)
before = peak()
found = {name: t.try_many(name, mutations, start) for name in names}
print(json.dumps([found, peak() - before]))
"""


@pytest.mark.parametrize("part", ["images", "dicom"])
def test_mutated_files_give_a_frame_or_a_reason_within_the_stated_memory(part, count):
    names = [name for name in sound_files() if name.startswith("dicom") == (part == "dicom")]
    found, grown = json.loads(run_limited(MANY, json.dumps([names, MUTATIONS, 0]))[-1])
    assert grown < BOUND
    assert {"read", "truncated"} <= {kind for kinds in found.values() for kind in kinds}
    count(inputs=sum(sum(kinds.values()) for kinds in found.values()))


@pytest.mark.slow
@pytest.mark.parametrize("name", list(sound_files()))
def test_many_more_mutations_of_each_format(name, count):
    mutations = MUTATIONS * (10 if name.startswith("dicom") else 40)
    _, grown = json.loads(run_limited(MANY, json.dumps([[name], mutations, MUTATIONS]))[-1])
    assert grown < BOUND
    count(inputs=mutations)


def test_a_damaged_image_is_told(sees):
    data = sound_files()["png"]
    with pytest.raises(frames.FrameError, match=sees):
        frames.read(data[: len(data) // 2])


@pytest.mark.parametrize("kind", ["png", "bmp", "tiff", "gif", "pgm", "jpeg 2000"])
def test_a_size_that_is_only_claimed_is_refused_before_decoding(kind, sees, count):
    data = bytearray(sound_files()[kind])
    width, height = picture().shape[::-1]
    for order in ("little", "big"):
        for size in (4, 2):
            old = width.to_bytes(size, order), height.to_bytes(size, order)
            big = (2 ** (8 * size - 1) - 1 if size == 4 else 65_000).to_bytes(size, order)
            data = data.replace(old[0] + old[1], big + big).replace(old[1] + old[0], big + big)
    data = data.replace(b"240 160", b"240000 160000")
    if kind == "tiff":
        data = sound_tiff_of(240_000, 160_000)
    with pytest.raises(frames.FrameError) as error:
        frames.read(bytes(data))
    assert error.value.kind in ("too_large", "not_an_image", "truncated")
    if error.value.kind == "too_large":
        assert sees in str(error.value)
    count(inputs=1)


def sound_tiff_of(width: int, height: int) -> bytes:
    """A small TIFF whose directory claims a size."""
    tags = {256: width, 257: height, 258: 8, 259: 1, 262: 1, 273: 8, 278: height, 279: 100}
    short = (258, 259, 262)
    entries = [struct.pack("<HHII", tag, 3 if tag in short else 4, 1, value) for tag, value in tags.items()]
    return b"II*\0\x10\0\0\0" + bytes(8) + struct.pack("<H", len(tags)) + b"".join(entries) + bytes(4)


LARGE = """
from thyroid_lib import frames
frames.read(sys.argv[1], check=False)
before = peak()
frames.read(sys.argv[2], check=False)
print(peak() - before)
"""


def test_the_largest_frame_allowed_stays_within_the_stated_memory(tmp_path):
    small, large = tmp_path / "small.png", tmp_path / "large.png"
    Image.new("RGBA", (64, 64)).save(small)
    Image.new("RGBA", (6000, 4000), (90, 90, 90, 200)).save(large, compress_level=1)
    assert float(run_limited(LARGE, small, large)[-1]) < 3 * BOUND


FUZZ = """
import sys
sys.path[:0] = [{root!r}, {here!r}]
import atheris
with atheris.instrument_imports(include=["thyroid_lib", "pydicom", "PIL"]):
    import test_hostile_images as t
    import PIL.PngImagePlugin, PIL.JpegImagePlugin, PIL.TiffImagePlugin, PIL.BmpImagePlugin, PIL.GifImagePlugin
    import PIL.PpmImagePlugin, PIL.WebPImagePlugin, PIL.Jpeg2KImagePlugin
path = t.Path({scratch!r}) / "x.dcm"
def one(data):
    t.decoded(data, path if data[128:132] == b"DICM" else None)
atheris.Setup(sys.argv, one)
atheris.Fuzz()
"""


@pytest.mark.slow
@pytest.mark.parametrize("part, runs", [("images", 30_000), ("dicom", 6_000)])
def test_a_coverage_guided_fuzzer_finds_no_crash(tmp_path, part, runs, count):
    pytest.importorskip("atheris", reason="atheris is not installed (Linux on x86-64 only)")
    corpus, scratch = tmp_path / "corpus", tmp_path / "scratch"
    corpus.mkdir(), scratch.mkdir()
    for name, data in sound_files().items():
        if name.startswith("dicom") == (part == "dicom"):
            (corpus / name.replace(" ", "_")).write_bytes(data)
    code = FUZZ.format(root=str(HERE.parent), here=str(HERE), scratch=str(scratch))
    options = f"-runs={runs} -seed=1 -rss_limit_mb=4096 -max_len=60000 -timeout=200 -verbosity=1".split()
    options += [f"-artifact_prefix={tmp_path}/", str(corpus)]
    command = [sys.executable, "-W", "ignore", "-c", code, *options]
    done = subprocess.run(command, capture_output=True, text=True, cwd=scratch)
    assert done.returncode == 0, done.stderr[-2500:]
    tried = int(re.search(r"Done (\d+) runs", done.stderr)[1])
    assert tried >= runs and [p.name for p in scratch.iterdir()] in ([], ["x.dcm"])
    count(inputs=tried)
