"""Hostile DICOM: files that claim more than they hold, or hold more than they claim, cost a stated amount of memory.

Each file is small and asks for much. It must be refused with a reason in words, and the whole collection together may
not raise the memory of a process by more than `BOUND`.
"""

import json
import shutil
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from hospital import compressed, region, save
from pydicom import uid
from small_dicom import SECTOR, make, picture
from small_images import encoded
from test_hostile_images import run_limited

from thyroid_lib import frames
from thyroid_lib.datasets import dicom, dicom_frames, dicom_limits

BOUND = 512  # MiB by which all hostile files together may raise a process's peak memory
MIB = 2**20


def meta(syntax) -> bytes:
    """Preamble and file meta information that name a transfer syntax and nothing else."""
    name = str(syntax).encode()
    name += b"\0" * (len(name) % 2)
    element = struct.pack("<HH2sH", 2, 0x10, b"UI", len(name)) + name
    return bytes(128) + b"DICM" + struct.pack("<HH2sHI", 2, 0, b"UL", 4, len(element)) + element


def long_element(group: int, element: int, vr: bytes, length: int) -> bytes:
    return struct.pack("<HH2sHI", group, element, vr, 0, length)


def deflated(element: bytes, block: bytes, times: int):
    """A deflated file of an element and of so many times a block."""

    def write(path: Path) -> None:
        deflate = zlib.compressobj(6, zlib.DEFLATED, -zlib.MAX_WBITS)
        with open(path, "wb") as file:
            file.write(meta(uid.DeflatedExplicitVRLittleEndian))
            for part in (element, *[block] * times):
                file.write(deflate.compress(part))
            file.write(deflate.flush())

    return write


ZEROS = deflated(long_element(0x0009, 0x1010, b"OB", 256 * MIB), bytes(MIB), 256)
EMPTY = deflated(b"", struct.pack("<HH2sH", 0x0009, 0x1010, b"LO", 0) * 2**17, 32)


def plain(content):
    """A file of what a function gives, and nothing else."""
    return lambda path: path.write_bytes(meta(uid.ExplicitVRLittleEndian) + content())


def many_elements() -> bytes:
    """A million different elements of no content, as they are: 8 MiB."""
    tags = np.zeros(2**20, dtype="<u2,<u2,S2,<u2")
    number = np.arange(len(tags))
    tags["f0"], tags["f1"], tags["f2"] = 0x0009 + 2 * (number >> 15), number & 0x7FFF, b"LO"
    return tags.tobytes()


REGIONS = long_element(0x0018, 0x6011, b"SQ", 0xFFFFFFFF)  # a sequence of undefined length, two of its items
NOTHING, ANYTHING = (struct.pack("<HHI", 0xFFFE, 0xE000, length) for length in (0, 0xFFFFFFFF))


def longer(data, size: int, *head, without: str = ""):
    """A sound file that ends in a hole of so many bytes, behind an element's head (group, element)."""

    def write(path: Path) -> None:
        if without:
            del data[without]
        save(path, data)
        with open(path, "ab") as file:
            file.write(struct.pack("<HHI", *head, size))
            file.truncate(file.tell() + size)

    return write


def no_preamble(path: Path) -> None:
    """Not DICOM by its mark, and 2 GiB long."""
    save(path, old())
    path.write_bytes(path.read_bytes()[132:])
    with open(path, "ab") as file:
        file.truncate(2048 * MIB)


def jpeg_of(height: int, width: int, mark: int = 0xC0) -> bytes:
    """A JPEG whose start of frame states a size and whose scan is missing."""
    frame = struct.pack(">BBHBHHB", 0xFF, mark, 11, 8, height, width, 1) + b"\x01\x11\x00"
    start, scan = b"\xff\xd8\xff\xe0\x00\x04ab", b"\xff\xda\x00\x08\x01\x01\x00\x00\x3f\x00"
    return start + frame + scan + bytes(99) + b"\xff\xd9"


def jpeg2000_of(width: int, height: int) -> bytes:
    size = struct.pack(">HIIIIIIIIH", 0, width, height, 0, 0, width, height, 0, 0, 1) + b"\x07\x01\x01"
    return b"\xff\x4f\xff\x51" + struct.pack(">H", len(size) + 2) + size + bytes(99)


def rle_of(bytes_out: int) -> bytes:
    """One run-length segment that stands for many bytes: pairs of (128 times, a byte)."""
    return struct.pack("<16I", 1, 64, *[0] * 14) + b"\x81\x00" * (bytes_out // 128)


def old():
    return make(picture(), syntax=uid.ImplicitVRLittleEndian)


def changed(**header):
    return lambda path: save(path, make(picture(), **header))


def stream(syntax, data: bytes):
    return lambda path: save(path, compressed(make(picture()), syntax, data))


HOSTILE = {  # name -> (what writes it, kinds of refusal that are right; None where it may also be read)
    "256 MiB of zeros, deflated": (ZEROS, "too_large"),
    "4 million elements, deflated": (EMPTY, "too_large"),
    "a million elements": (plain(many_elements), "too_large"),
    "a million empty regions": (plain(lambda: REGIONS + NOTHING * 2**20), "too_large"),
    "4,000 regions of defined length": (changed(regions=[region(SECTOR)] * 4_000), None),
    "sequences 100,000 deep": (plain(lambda: (REGIONS + ANYTHING) * 100_000), "truncated too_large"),
    "a number of rows of 1 GiB": (longer(old(), 1024 * MIB, 0x0028, 0x0010, without="Rows"), "too_large"),
    "2 GiB without DICOM's mark": (no_preamble, "not_an_image too_large truncated"),
    "60,000 x 60,000 pixels claimed": (changed(Rows=60_000, Columns=60_000), "too_large"),
    "65,535 samples a pixel": (changed(SamplesPerPixel=65_535), "pixels"),
    "65,528 bits a pixel": (changed(BitsAllocated=65_528), "pixels"),
    "a thousand million frames claimed": (changed(NumberOfFrames=10**9), "too_large"),
    "more rows than pixels": (changed(Rows=4000, Columns=4000), "truncated"),
    "no rows": (changed(Rows=0, Columns=0), "truncated too_small"),
    "bits stored: 0": (changed(BitsStored=0), "truncated"),
    "a window of no width": (changed(BitsStored=6, WindowWidth="0", WindowCenter="nan"), None),
    "a JPEG of 65,535 x 65,535": (stream(uid.JPEGBaseline8Bit, jpeg_of(65_535, 65_535)), "truncated"),
    "a lossless JPEG of that size": (stream(uid.JPEGLosslessSV1, jpeg_of(65_535, 65_535, 0xC3)), "truncated"),
    "a JPEG-LS of that size": (stream(uid.JPEGLSLossless, jpeg_of(65_535, 65_535, 0xF7)), "truncated"),
    "a JPEG 2000 of 4 x 10^9 a side": (stream(uid.JPEG2000Lossless, jpeg2000_of(4 * 10**9, 4 * 10**9)), "truncated"),
    "a JPEG without a size": (stream(uid.JPEGBaseline8Bit, b"\xff\xd8" + bytes(200)), "truncated"),
    "a compressed frame of 80 MiB": (stream(uid.JPEGBaseline8Bit, bytes(80 * MIB)), "too_large"),
    "runs that stand for 1.5 GiB": (stream(uid.RLELossless, rle_of(1536 * MIB)), "too_large"),
    "runs of another length": (stream(uid.RLELossless, rle_of(64 * MIB)), None),
    "a codestream that is no JPEG": (stream(uid.JPEGBaseline8Bit, b"MZ" * 500), "truncated"),
    "1 GiB of private data at the end": (longer(old(), 1024 * MIB, 0x7FE1, 0x1010), None),  # as some scanners do
}  # fmt: skip


def looked_at(path: Path) -> str:
    """What becomes of a file: the kind of its refusal, or "read"; it is looked at as `dicom:` and as `classify` do."""
    try:
        dicom_frames.usable(path)  # what both begin with
        assert len(dicom._inspect(str(path), "all")["frames"]) <= 1
        frames.check_content(dicom_frames.load(path).gray)
    except frames.FrameError as error:
        assert 15 < len(str(error)) < 300 and str(path.parent) not in str(error)
        return error.kind
    return "read"


LOOK = """
import test_hostile_dicom as t
folder, found = t.Path(sys.argv[1]), {}
assert t.looked_at(folder / "sound.dcm") == "read"
for number, name in enumerate(t.HOSTILE):
    before = peak()
    kind = t.looked_at(folder / f"{number}.dcm")
    found[name] = kind, peak() - before
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def outcome(tmp_path_factory):
    """Kind of each hostile file's refusal, and the MiB by which they raised a process's peak memory together."""
    folder = tmp_path_factory.mktemp("hostile")
    save(folder / "sound.dcm", make(picture()))
    for number, (write, _) in enumerate(HOSTILE.values()):
        write(folder / f"{number}.dcm")
    found = json.loads(run_limited(LOOK, folder)[-1])
    shutil.rmtree(folder)
    return found


@pytest.mark.parametrize("name", list(HOSTILE))
def test_a_file_that_asks_for_much_is_refused_with_a_reason(outcome, name, count):
    (kind, _), (_, wanted) = outcome[name], HOSTILE[name]
    assert kind in wanted.split() if wanted else kind in ("read", "truncated", "too_large", "constant")
    count(inputs=1)


def test_all_of_them_together_stay_within_the_stated_memory(outcome):
    grown = {name: round(mib) for name, (_, mib) in outcome.items() if mib > 1}
    assert sum(grown.values()) < BOUND, grown


def test_the_reason_says_what_was_too_large(tmp_path, sees):
    ZEROS(tmp_path / "a.dcm")
    with pytest.raises(frames.FrameError, match="deflated data of more than 128 MiB") as error:
        dicom_frames.header(tmp_path / "a.dcm")
    assert str(error.value).startswith(sees)


@pytest.mark.parametrize("data, size", [
    *((jpeg_of(480, 640, mark), (640, 480)) for mark in (0xC0, 0xC2, 0xF7)),
    (jpeg2000_of(640, 480), (640, 480)),
    (b"\0\0\0\x0cjP  \r\n\x87\n" + bytes(40) + jpeg2000_of(640, 480), (640, 480)),
    (b"\xff\xd8" + b"\xff" * 4000, None),
    (b"\xff\xd8\xff\xc4\x00\x00" + b"\xff\xc4\x00\x02" * 900, None),
    (b"\xff\xd8", None),
    (b"", None),
    *((encoded(picture(), kind), (240, 160)) for kind in ("JPEG", "JPEG2000")),
])  # fmt: skip
def test_the_size_in_a_codestream_is_read_without_decoding(data, size):
    assert dicom_limits.picture_size(data) == size
