"""Hostile images: damaged and forged files of every format give a frame or a reason, in bounded time and memory.

Always: sound files of each format, mutated by a fixed rule a stated number of times, are decoded in a process whose
memory is limited. With --slow a coverage-guided fuzzer (atheris) looks for what the mutations did not.
"""

import hashlib
import importlib.util
import io
import json
import random
import re
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hardening import goes_wrong
from PIL import Image
from pydicom.encaps import encapsulate
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian, JPEGBaseline8Bit, RLELossless
from test_dicom import jpeg_bytes, make, picture, region

from thyroid_lib import frames
from thyroid_lib.datasets import dicom_frames

HERE = Path(__file__).resolve().parent
BOUND = 384  # MiB by which all of them may raise a process's peak memory; the largest frame allowed takes 275
MUTATIONS = 150  # of each sound file; with --slow ten to forty times as many


def encoded(image: Image.Image, kind: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def dicom_bytes(syntax=ExplicitVRLittleEndian, data: bytes = b"", **header) -> bytes:
    dataset = make(picture(), regions=[region()], **header)
    dataset.file_meta.TransferSyntaxUID = syntax
    if data:
        dataset.PixelData = encapsulate([data])
        dataset["PixelData"].VR = "OB"
        dataset["PixelData"].is_undefined_length = True
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
        "dicom jpeg": dicom_bytes(JPEGBaseline8Bit, jpeg_bytes(picture(), format="JPEG", quality=90)),
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
            value = (
                chance.choice((0, 1, 2**15, 2**16 - 1, 2**31 - 1, 2**31, 2**32 - 1, len(data))) % 256**size
            )
            data[at : at + size] = value.to_bytes(size, chance.choice(("little", "big")))
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
        if data[128:132] == b"DICM" or path is not None:
            path.write_bytes(data)
            frame = dicom_frames.load(path)
        else:
            frame = frames.read(data)
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
                raise AssertionError(
                    f"mutation {number} of {name}: {type(error).__name__}: {error}"
                ) from error
            kinds[kind] = kinds.get(kind, 0) + 1
    return kinds


def in_a_process(names: list[str], mutations: int, start: int = 0) -> dict:
    """The same in a process of limited memory; also by how many MiB its peak rose."""
    code = (
        f"import json, resource, sys; sys.path[:0] = {[str(HERE.parent), str(HERE)]!r}\n"
        "import test_hostile_images as t\n"
        "for name in t.sound_files():\n    t.try_many(name, 0)\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        f"found = {{name: t.try_many(name, {mutations}, {start}) for name in {names!r}}}\n"
        "grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024\n"
        "print(json.dumps({'found': found, 'grown': grown}))"
    )
    limit = 12 * 2**30
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code],
        capture_output=True,
        text=True,
        cwd=HERE.parent,
        timeout=3600,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (limit, limit)),
    )
    assert done.returncode == 0, done.stderr[-2500:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.skipif(sys.platform != "linux", reason="memory is limited and measured as Linux does")
@pytest.mark.parametrize("part", ["images", "dicom"])
def test_mutated_files_give_a_frame_or_a_reason_within_the_stated_memory(part, count):
    names = [name for name in sound_files() if name.startswith("dicom") == (part == "dicom")]
    result = in_a_process(names, MUTATIONS)
    assert result["grown"] < BOUND
    kinds = {kind for found in result["found"].values() for kind in found}
    assert {"read", "truncated"} <= kinds
    count(inputs=sum(sum(found.values()) for found in result["found"].values()))


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="memory is limited and measured as Linux does")
@pytest.mark.parametrize("name", list(sound_files()))
def test_many_more_mutations_of_each_format(name, count):
    mutations = MUTATIONS * (10 if name.startswith("dicom") else 40)
    result = in_a_process([name], mutations, start=MUTATIONS)
    assert result["grown"] < BOUND
    count(inputs=mutations)


@goes_wrong(
    "An image file is damaged, cut short or no image at all",
    sees="could not be decoded to the end",
    do="The file is left out and named, the others are used; export it again.",
)
def test_a_damaged_image_is_told(sees):
    data = sound_files()["png"]
    with pytest.raises(frames.FrameError) as error:
        frames.read(data[: len(data) // 2])
    assert sees in str(error.value)


@goes_wrong(
    "An image file claims a size that would fill the memory (a decompression bomb)",
    sees="million pixels are decoded",
    do="The file is left out before anything is decoded; save the frame at the scanner's own size.",
)
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
    tags = [
        (256, 4, width),
        (257, 4, height),
        (258, 3, 8),
        (259, 3, 1),
        (262, 3, 1),
        (273, 4, 8),
        (278, 4, height),
    ]
    entries = b"".join(
        tag.to_bytes(2, "little")
        + kind.to_bytes(2, "little")
        + (1).to_bytes(4, "little")
        + value.to_bytes(4, "little")
        for tag, kind, value in [*tags, (279, 4, 100)]
    )
    return b"II*\0\x10\0\0\0" + bytes(8) + (8).to_bytes(2, "little") + entries + bytes(4)


def test_the_largest_frame_allowed_stays_within_the_stated_memory():
    code = (
        f"import io, resource, sys; sys.path[:0] = {[str(HERE.parent)]!r}\n"
        "from PIL import Image; from thyroid_lib import frames\n"
        "frames.read(open(sys.argv[1], 'rb').read(), check=False)\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "frames.read(open(sys.argv[2], 'rb').read(), check=False)\n"
        "print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)"
    )
    with tempfile.TemporaryDirectory() as folder:
        small, large = Path(folder, "small.png"), Path(folder, "large.png")
        Image.new("RGBA", (64, 64)).save(small)
        Image.new("RGBA", (6000, 4000), (90, 90, 90, 200)).save(large, compress_level=1)
        done = subprocess.run([sys.executable, "-c", code, small, large], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) < 3 * BOUND


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
@pytest.mark.skipif(
    not importlib.util.find_spec("atheris"), reason="atheris is not installed (Linux on x86-64 only)"
)
@pytest.mark.parametrize("part, runs", [("images", 30_000), ("dicom", 6_000)])
def test_a_coverage_guided_fuzzer_finds_no_crash(tmp_path, part, runs, count):
    corpus, scratch = tmp_path / "corpus", tmp_path / "scratch"
    corpus.mkdir(), scratch.mkdir()
    for name, data in sound_files().items():
        if name.startswith("dicom") == (part == "dicom"):
            (corpus / name.replace(" ", "_")).write_bytes(data)
    code = FUZZ.format(root=str(HERE.parent), here=str(HERE), scratch=str(scratch))
    options = [
        f"-runs={runs}",
        "-seed=1",
        "-rss_limit_mb=4096",
        "-max_len=60000",
        "-timeout=200",
        "-verbosity=1",
    ]
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code, *options, f"-artifact_prefix={tmp_path}/", str(corpus)],
        capture_output=True,
        text=True,
        cwd=scratch,
    )
    assert done.returncode == 0, done.stderr[-2500:]
    tried = int(re.search(r"Done (\d+) runs", done.stderr)[1])
    assert tried >= runs and [p.name for p in scratch.iterdir()] in ([], ["x.dcm"])
    count(inputs=tried)
