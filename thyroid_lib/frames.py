"""From a file, bytes or array to one grey B-mode frame, or a plain reason why not.

Every frame of the study, in training and in classification, comes through `read`, so the same file always
gives the same pixels. Limits on size are checked on the header, before anything is decoded. The module
imports NumPy and Pillow and nothing heavier, so that commands start fast.
"""

import io
import os
import stat
import threading
import warnings as python_warnings
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

FORMATS = ("PNG", "JPEG", "BMP", "GIF", "PPM", "TIFF", "WEBP", "JPEG2000")
SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".gif", ".webp", ".pgm", ".ppm", ".jp2")
MAX_BYTES = 64 * 2**20
MAX_PIXELS = 24_000_000  # a scanner's frame has about one million; a 6000 x 4000 photograph still opens
MIN_SIDE = 64  # px; below this no nodule can be told from speckle
COLOURED = 64  # grey levels between the largest and smallest channel of a pixel that counts as coloured
MAX_COLOURED = 0.01  # of the pixels; coloured calipers stay below 0.002, a Doppler box does not
MARKS = "coloured marks"


class FrameError(ValueError):
    """Why a source is not a usable grey frame.

    Attributes:
        kind: stable short key, such as `not_an_image`, `truncated`, `too_large`, `colour`.
    """

    def __init__(self, reason: str, kind: str = "unreadable"):
        super().__init__(reason)
        self.kind = kind


@dataclass(frozen=True)
class Frame:
    """A decoded frame: `gray` uint8 (H, W) with 0 black, and `warnings`, what was changed on the way."""

    gray: np.ndarray
    warnings: list[str] = field(default_factory=list)


def read(source, *, check: bool = True) -> Frame:
    """Decodes one grey frame.

    Args:
        source: path (str or Path), the bytes of a file, an array ((H, W), (H, W, 1), (H, W, 3) or (H, W, 4);
            bool, uint8 or uint16), or a Pillow image.
        check: refuse what cannot be a B-mode frame: smaller than MIN_SIDE, constant, or coloured (colour
            Doppler). False for masks.

    Returns:
        The frame. Colour becomes Rec. 601 luma; 16-bit grey is scaled from the bits in use to 8.

    Raises:
        FrameError: with the reason; it never names the path, so a list of reasons can be published.
    """
    if isinstance(source, Frame):
        return source
    notes: list[str] = []
    if isinstance(source, np.ndarray):
        source = _from_array(source)
    elif not isinstance(source, Image.Image):
        source = _open(source if isinstance(source, bytes) else _file_bytes(source), notes)
    _check_size(*source.size)
    gray, coloured = _gray(source, notes)
    if check:
        check_content(gray, coloured)
        if coloured > MAX_COLOURED / 20:
            notes.append(f"{MARKS} on {coloured:.2%} of the pixels (calipers or text?)")
    return Frame(gray, notes)


class _Quiet:
    """Silences Python's warnings while any thread is inside; `catch_warnings` alone is for one thread."""

    _lock, _inside, _filters = threading.Lock(), 0, None

    def __enter__(self):
        with self._lock:
            if not self._inside:
                self._filters = python_warnings.catch_warnings()
                self._filters.__enter__()
                python_warnings.simplefilter("ignore")
            self._inside += 1

    def __exit__(self, *_):
        with self._lock:
            self._inside -= 1
            if not self._inside:
                self._filters.__exit__(None, None, None)


_quiet = _Quiet()


def check_content(gray: np.ndarray, coloured: float = 0.0) -> None:
    """Refuses a decoded frame that cannot be B-mode ultrasound.

    Args:
        gray: uint8 (H, W).
        coloured: fraction of coloured pixels, as `coloured_fraction` gives it.

    Raises:
        FrameError: too small, constant, or coloured.
    """
    height, width = gray.shape
    low, high = int(gray.min()), int(gray.max())
    if min(height, width) < MIN_SIDE:
        came = f"too small: {width} x {height} px came, at least {MIN_SIDE} px a side is needed"
        raise FrameError(f"{came}; give the whole frame as the scanner stored it", "too_small")
    if high - low < 8:
        reason = f"constant: all pixels lie between {low} and {high} of 255, nothing is shown"
        raise FrameError(reason, "constant")
    if coloured > MAX_COLOURED:
        raise FrameError(
            f"not a grey-scale frame: {coloured:.1%} of the pixels are coloured, at most {MAX_COLOURED:.0%} "
            "may be (colour Doppler, elastography or a photograph?); give the grey B-mode frame",
            "colour",
        )


def coloured_fraction(rgb: np.ndarray) -> float:
    """Fraction of pixels of an RGB frame, uint8 (H, W, 3), that are clearly coloured."""
    step = max(1, int((rgb.shape[0] * rgb.shape[1] / 1e6) ** 0.5))
    sample = rgb[::step, ::step]
    return float((sample.max(2) - sample.min(2) > COLOURED).mean())


def _file_bytes(path) -> bytes:
    try:
        with open(os.open(Path(path), os.O_RDONLY | getattr(os, "O_NONBLOCK", 0)), "rb") as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                reason = "not a regular file: a folder, pipe or device came, an image file is expected"
                raise FrameError(reason, "not_a_file")
            if status.st_size > MAX_BYTES:
                came, most = (f"{size / 2**20:.0f} MiB" for size in (status.st_size, MAX_BYTES))
                raise FrameError(f"file too large: {came} came; at most {most} is read", "too_large")
            return file.read(MAX_BYTES)
    except FrameError:
        raise
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or type(error).__name__
        raise FrameError(f"cannot be opened: {reason}", "cannot_open") from error


def _open(data: bytes, notes: list[str]) -> Image.Image:
    if not data:
        raise FrameError("empty file: 0 bytes came", "empty")
    if data[128:132] == b"DICM":
        raise FrameError("a DICOM file, not an image file: its frames are read through pydicom", "dicom")
    with _quiet:  # Pillow warns of what is checked here
        try:
            image = Image.open(io.BytesIO(data), formats=FORMATS)
        except Image.DecompressionBombError as error:
            raise _too_large("the header names more pixels than that") from error
        except Exception as error:  # whatever a decoder trips over, the file is not a usable image
            reason = f"not an image: the content is none of {', '.join(FORMATS)}"
            raise FrameError(reason, "not_an_image") from error
        _check_size(*image.size)
        try:
            animated = image.format in ("GIF", "PNG", "WEBP", "TIFF") and getattr(image, "is_animated", False)
            image.load()
            orientation = image.getexif().get(0x0112, 1)
            if orientation != 1:
                image = ImageOps.exif_transpose(image)
                notes.append(f"turned upright as its EXIF orientation {orientation} says")
        except MemoryError as error:
            raise _too_large("decoding it ran out of memory") from error
        except Exception as error:  # there is no end of what decoders raise
            reason = f"truncated or damaged {image.format} file: it could not be decoded to the end"
            raise FrameError(reason, "truncated") from error
    if animated:
        notes.append("has several pictures: only the first was used")
    return image


def _from_array(array: np.ndarray) -> Image.Image:
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[:, :, 0]
    if array.dtype == bool:
        array = array.astype(np.uint8) * 255
    colour = array.ndim == 3 and array.shape[2] in (3, 4) and array.dtype == np.uint8
    if not colour and (array.ndim != 2 or array.dtype not in (np.uint8, np.uint16)):
        wanted = "an array of uint8 or uint16 (H, W), or uint8 (H, W, 3 or 4), is expected"
        raise FrameError(f"{wanted}; {array.dtype} {array.shape} came", "bad_array")
    if 0 in array.shape:
        raise FrameError(f"empty array of shape {array.shape}", "empty")
    return Image.fromarray(np.ascontiguousarray(array))


def _check_size(width: int, height: int) -> None:
    if width * height > MAX_PIXELS:
        raise _too_large(f"{width} x {height} px came")


def _too_large(came: str) -> FrameError:
    most = f"at most {MAX_PIXELS / 1e6:.0f} million pixels are decoded"
    return FrameError(f"too large: {came}; {most}", "too_large")


def _gray(image: Image.Image, notes: list[str]) -> tuple[np.ndarray, float]:
    mode = image.mode
    if mode in ("L", "1"):
        return np.array(image.convert("L")), 0.0
    if mode.startswith("I"):
        return _eight_bits(np.asarray(image), notes), 0.0
    if mode == "F":
        reason = "floating-point pixels have no fixed black and white: save the frame with 8 or 16 bits"
        raise FrameError(reason, "float")
    if mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, (0, 0, 0, 255)), image)
    if mode in ("CMYK", "LAB", "HSV"):
        notes.append(f"converted from {mode} colours")
    image = image.convert("RGB")
    return np.array(image.convert("L")), coloured_fraction(np.asarray(image))


def _eight_bits(pixels: np.ndarray, notes: list[str]) -> np.ndarray:
    low, high = int(pixels.min()), int(pixels.max())
    if low < 0:
        reason = f"negative grey values (down to {low}): not a stored ultrasound frame (a CT slice?)"
        raise FrameError(reason, "negative")
    bits = max(8, high.bit_length())
    if bits > 8:
        notes.append(f"scaled from {bits} to 8 bits")
    return np.rint(pixels.astype(np.float64) * (255 / (2**bits - 1))).astype(np.uint8)
