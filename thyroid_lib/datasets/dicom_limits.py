"""What a DICOM file may cost before a pixel of it is decoded: bytes of header, of one frame, of inflation.

A DICOM file is opened because a scanner wrote it, but anyone can write one. Its header may name any number of
elements, its codestream another picture size than its header, and 1 MB of deflated data may inflate to 1 GB. So
headers are read through a meter, deflated files are inflated chunk by chunk up to a limit, and a compressed
frame's own size is read before its decoder sees it.
"""

import io
import struct
import zlib

import pydicom
from pydicom.dataelem import RawDataElement
from pydicom.encaps import get_frame
from pydicom.filereader import read_dataset
from pydicom.uid import RLELossless

from thyroid_lib import frames

MAX_HEADER = 2 * 2**20  # bytes of all that is no pixel; parsed, they take a hundred times as much memory
MAX_ELEMENT = 2**20  # bytes of one element that is no pixel; a lookup table has 128 KiB
MAX_INFLATED = 128 * 2**20  # bytes of a deflated file, inflated; also of pixels that must be read at one go
MAX_FRAME = 64 * 2**20  # bytes of one compressed frame, as of an image file
MAX_RLE = 16 * 2**20  # bytes of one run-length encoded frame: they may stand for 64 times as many
MAX_FRAMES = 5000  # of a clip; more than two minutes at 40 frames a second
DEFERRED = 1024  # bytes from which an element's value is read only when it is asked for
PIXELS = (0x7FE00001, 0x7FE00002, 0x7FE00008, 0x7FE00009, 0x7FE00010)  # offset tables and pixels
NEEDED = (0x00080060, 0x00186011, 0x00020010)  # modality, ultrasound regions, transfer syntax
CHUNK = 2**20


class _Meter(io.BufferedReader):
    """Counts what is read of a file, and stops at a limit; what is skipped costs nothing."""

    left = MAX_HEADER

    def read(self, size=-1):
        if size is None or size < 0:  # pydicom reads so for one thing only: to inflate all the rest at once
            start = self.tell()
            _try_to_inflate(super().read())
            self.seek(start)
            return super().read()
        data = super().read(size)
        self.left -= len(data)
        if self.left < 0:
            raise _too_large(f"a header of more than {MAX_HEADER // 2**20} MiB")
        return data


def read(path, *, force: bool = False) -> pydicom.Dataset:
    """Parses a DICOM file within the limits; values above 1 KiB, pixels among them, stay in the file.

    Args:
        path: of the file.
        force: read it even if it lacks DICOM's mark.

    Elements that say what the picture is and cannot be converted are left out, as if they were missing.

    Raises:
        FrameError: `too_large`.
        Exception: whatever pydicom trips over.
    """
    with _Meter(io.FileIO(path)) as file:
        try:
            dataset = pydicom.dcmread(file, defer_size=DEFERRED, force=force)
        except OSError:  # pydicom takes whatever happens inside a sequence for the end of the file
            file.read(0)
            raise
    for tag, element in list(dataset.items()):
        deferred = isinstance(element, RawDataElement) and element.value is None and tag not in PIXELS
        if deferred and element.length > MAX_ELEMENT:
            if tag.group == 0x0028:  # what says how pixels are stored is read again by the decoder
                raise _too_large(f"an element of {element.length / 2**20:.0f} MiB that describes pixels")
            del dataset[tag]
        elif tag in NEEDED or tag.group == 0x0028:
            try:
                dataset[tag].value  # noqa: B018  (values are converted when they are asked for, and that can fail)
            except Exception:  # as good as none, and its message may quote the header
                del dataset[tag]
    return dataset


def check_frame(path, dataset: pydicom.Dataset, number: int) -> None:
    """Holds one compressed frame against the limits: its bytes, and the picture size in its own codestream.

    Args:
        path: of the file; None where the dataset came from memory, whole.
        dataset: of the file; not of an uncompressed transfer syntax.
        number: the frame, from 0.

    Raises:
        FrameError: `too_large`, or `truncated` where the codestream's size is not the header's.
    """
    syntax = dataset.file_meta.TransferSyntaxUID
    element = dataset.get_item(0x7FE00010, keep_deferred=True)
    count = int(dataset.get("NumberOfFrames", 1) or 1)
    held = path is None or element.value is not None
    with _Meter(io.BytesIO(dataset.PixelData) if held else io.FileIO(path)) as source:
        source.seek(0 if held else element.value_tell)
        source.left = MAX_FRAME
        try:
            data = get_frame(source, number, number_of_frames=count)
        except frames.FrameError:
            raise _too_large(f"a compressed frame of more than {MAX_FRAME // 2**20} MiB") from None
    if syntax == RLELossless and len(data) > MAX_RLE:
        raise _too_large(f"a run-length encoded frame of {len(data) / 2**20:.0f} MiB")
    if syntax != RLELossless and picture_size(data) != (int(dataset.Columns), int(dataset.Rows)):
        reason = "damaged: the compressed picture has another size than the header says"
        raise frames.FrameError(reason, "truncated")


def picture_size(data: bytes) -> tuple[int, int] | None:
    """Width and height that a JPEG, JPEG-LS or JPEG 2000 codestream states; None where it states none."""
    start = data.find(b"\xff\x4f\xff\x51", 0, 4096)  # JPEG 2000, wrapped or bare (ISO 15444-1, A.5.1)
    if data[:2] != b"\xff\xd8" and 0 <= start <= len(data) - 24:
        right, bottom, left, top = struct.unpack(">4I", data[start + 8 : start + 24])
        return right - left, bottom - top
    at = 2
    while data[:2] == b"\xff\xd8" and at + 9 <= len(data) and data[at] == 0xFF:
        mark = data[at + 1]
        if mark == 0xF7 or (0xC0 <= mark <= 0xCF and mark not in (0xC4, 0xC8, 0xCC)):  # a start of frame
            height, width = struct.unpack(">HH", data[at + 5 : at + 9])
            return width, height
        fill = mark == 0xFF
        at += 1 if fill else 2 + int.from_bytes(data[at + 2 : at + 4], "big")
    return None


def _try_to_inflate(data: bytes) -> None:
    """Inflates to see how much comes out and what its header costs; raises FrameError before either is too much."""
    inflater, plain = zlib.decompressobj(-zlib.MAX_WBITS), bytearray()
    while data and not inflater.eof:
        plain += inflater.decompress(data, CHUNK)
        data = inflater.unconsumed_tail
        if len(plain) > MAX_INFLATED:
            raise _too_large(f"deflated data of more than {MAX_INFLATED // 2**20} MiB")
    read_dataset(_Meter(io.BytesIO(plain)), False, True, defer_size=DEFERRED)


def _too_large(came: str) -> frames.FrameError:
    return frames.FrameError(f"too large: {came} came, as no scanner writes", "too_large")
