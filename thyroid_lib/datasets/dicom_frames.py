"""One frame out of a DICOM file: grey, upright in brightness, and without what names the patient.

Decoding goes through pydicom and its plugins. What pydicom says of a file may quote the header, so none of its
messages, warnings or log lines goes any further.
"""

import contextlib
import logging
import os
import warnings
from collections.abc import Iterator

import numpy as np
import pydicom
from pydicom.pixels import apply_color_lut, apply_voi_lut, get_decoder, pixel_array
from pydicom.uid import DeflatedExplicitVRLittleEndian, ImplicitVRLittleEndian, UncompressedTransferSyntaxes

from thyroid_lib import frames, regions
from thyroid_lib.datasets import dicom_limits
from thyroid_lib.frames import FrameError

ULTRASOUND = ("US", "IVUS")
TISSUE, COLOUR_FLOW = (1, 1), (1, 2)  # RegionSpatialFormat two-dimensional, RegionDataType (PS3.3 C.8.5.5.1)
CORNERS = ("RegionLocationMinX0", "RegionLocationMinY0", "RegionLocationMaxX1", "RegionLocationMaxY1")


def load(source, number: int = 0) -> frames.Frame:
    """One frame of a DICOM file as the study sees it.

    Args:
        source: path, or a pydicom Dataset.
        number: frame of a clip, from 0.

    Returns:
        Frame with `gray` uint8 (H, W), blanked outside the ultrasound region.

    Raises:
        FrameError: why it cannot be used; no header text and no path is in the message.
    """
    with quiet():
        dataset = usable(source)
        count = frame_count(dataset)
        if not 0 <= number < count:
            raise FrameError(f"frame {number} was asked for; the file holds {count}", "no_such_frame")
        gray, box = pixels(source, dataset, number)
    notes = []
    if box is None:
        try:
            box = regions.largest_region(gray).box
        except regions.NoRegion:
            box = (0, 0, *gray.shape[::-1])
        notes.append("the header names no ultrasound region: blanked outside the largest connected region")
    x, y, width, height = box
    blank = np.zeros_like(gray)
    blank[y : y + height, x : x + width] = gray[y : y + height, x : x + width]
    return frames.Frame(blank, notes)


def frame_count(dataset: pydicom.Dataset) -> int:
    """Number of frames of a dataset, at least 1 for an image."""
    try:
        return max(1, int(dataset.get("NumberOfFrames", 1) or 1))
    except (TypeError, ValueError):
        return 1


def region_box(dataset: pydicom.Dataset, shape: tuple[int, int]) -> tuple[int, int, int, int] | None:
    """Box (x, y, width, height) in px around the 2D tissue regions of SequenceOfUltrasoundRegions, or None."""
    boxes = [corners for kind, corners in _regions(dataset) if kind == TISSUE and corners]
    if not boxes:
        return None
    left, top = (max(0, min(box[i] for box in boxes)) for i in (0, 1))
    right, bottom = (min(shape[1 - i], 1 + max(box[2 + i] for box in boxes)) for i in (0, 1))
    return (left, top, right - left, bottom - top) if right > left and bottom > top else None


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silences pydicom, whose warnings and log lines quote header values."""
    logger = logging.getLogger("pydicom")
    level = logger.level
    logger.setLevel(logging.CRITICAL + 1)
    try:
        with pydicom.config.disable_value_validation(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def header(source) -> pydicom.Dataset:
    """The parsed file; values above 1 KiB, the pixels among them, are read when they are asked for.

    Raises:
        FrameError: empty, not DICOM, damaged, or more than `dicom_limits` allows.
    """
    try:
        if os.path.getsize(source) == 0:
            raise FrameError("empty file: 0 bytes came", "empty")
        if len(dataset := dicom_limits.read(source)):
            return dataset
    except FrameError:
        raise
    except pydicom.errors.InvalidDicomError:
        # Old exports lack the first 132 bytes; what follows must then be a proper image all the same.
        with contextlib.suppress(Exception):
            dataset = dicom_limits.read(source, force=True)
            if "SOPClassUID" in dataset and "PixelData" in dataset:
                dataset.file_meta.setdefault("TransferSyntaxUID", ImplicitVRLittleEndian)
                return dataset
        raise FrameError("not a DICOM file", "not_an_image") from None
    except OSError as error:
        raise FrameError(f"cannot be opened: {type(error).__name__}", "cannot_open") from None
    except Exception:  # whatever the parser trips over; its message may quote the header: no further with it
        pass
    raise FrameError("not readable as DICOM: damaged or cut short", "truncated")


def usable(source) -> pydicom.Dataset:
    """Parses a file, or takes a dataset, and judges by the header alone whether its frames can be used.

    Args:
        source: path, or a pydicom Dataset.

    Returns:
        The dataset; no pixel is decoded.

    Raises:
        FrameError: what forbids using it; no header text and no path is in the message.
    """
    dataset = source if isinstance(source, pydicom.Dataset) else header(source)
    if str(dataset.get("Modality", "")).strip().upper() not in ULTRASOUND:
        raise FrameError("not an ultrasound image (its modality is another, or missing)", "modality")
    if "PixelData" not in dataset:
        raise FrameError("holds no image (a report or measurement object)", "no_pixels")
    try:
        size = int(dataset.Rows) * int(dataset.Columns)
        samples, bits = int(dataset.SamplesPerPixel), int(dataset.BitsAllocated)
    except (AttributeError, TypeError, ValueError):
        raise FrameError("has pixels but no number of rows, columns, samples and bits", "truncated") from None
    if samples not in (1, 3) or bits not in (1, 8, 16):
        expected = "1 or 3 of 1, 8 or 16 bits are expected"
        raise FrameError(f"{samples} samples of {bits} bits a pixel came; {expected}", "pixels")
    if (count := frame_count(dataset)) > dicom_limits.MAX_FRAMES:
        most = f"at most {dicom_limits.MAX_FRAMES} are read"
        raise FrameError(f"too many frames: the header names {count}, {most}", "too_large")
    if size > frames.MAX_PIXELS:
        most = f"at most {frames.MAX_PIXELS / 1e6:.0f} are decoded"
        raise FrameError(f"too large: {size / 1e6:.0f} million pixels a frame; {most}", "too_large")
    found = [kind for kind, _ in _regions(dataset)]
    if COLOUR_FLOW in found:
        raise FrameError("colour Doppler: the header names a colour flow region", "colour")
    if found and TISSUE not in found:
        reason = "no two-dimensional tissue region in the header (M-mode or spectral Doppler)"
        raise FrameError(reason, "no_tissue")
    syntax = getattr(getattr(dataset, "file_meta", None), "TransferSyntaxUID", None)
    with contextlib.suppress(Exception):  # pydicom knows no decoder of that name
        if syntax is None or syntax in UncompressedTransferSyntaxes or get_decoder(syntax).is_available:
            return dataset
    name = syntax.name if not syntax.is_private and syntax.name != syntax else "an unknown codec"
    reason = f"compressed with {name}, which nothing installed here decodes: install thyroid_lib[dicom]"
    raise FrameError(reason, "codec")


def _regions(dataset: pydicom.Dataset) -> Iterator[tuple[tuple[int, int], list[int]]]:
    """Kind and corners of each ultrasound region; (0, 0) and [] where whatever its values trip over."""
    found = dataset.get("SequenceOfUltrasoundRegions")
    for region in found if isinstance(found, pydicom.Sequence) else []:
        kind, corners = (0, 0), []
        with contextlib.suppress(Exception):
            kind = int(region.RegionSpatialFormat), int(region.RegionDataType)
            corners = [int(region[name].value) for name in CORNERS]
        yield kind, corners


def pixels(source, dataset: pydicom.Dataset, number: int) -> tuple[np.ndarray, tuple | None]:
    """Decodes one frame, and no other.

    Args:
        source: path, or a pydicom Dataset.
        dataset: of the source, as `usable` gives it.
        number: frame of a clip, from 0.

    Returns:
        (uint8 (H, W), 0 black; box of its 2D tissue regions as `region_box` gives it, or None).

    Raises:
        FrameError: damaged, too large, too small, constant or coloured.
    """
    try:
        photometric, coloured = str(dataset.get("PhotometricInterpretation", "")).strip().upper(), 0.0
        path = None if isinstance(source, pydicom.Dataset) else source
        syntax = dataset.file_meta.TransferSyntaxUID
        # pydicom reads single frames of proper files only
        whole = not path or not getattr(dataset, "preamble", None) or syntax == DeflatedExplicitVRLittleEndian
        if syntax not in UncompressedTransferSyntaxes:
            dicom_limits.check_frame(path, dataset, number)
        elif whole and dataset.get_item("PixelData", keep_deferred=True).length > dicom_limits.MAX_INFLATED:
            raise FrameError("too large: a file without a proper header must be read at one go", "too_large")
        values = pixel_array(dataset if whole else source, index=number)
        if photometric == "PALETTE COLOR":
            values = apply_color_lut(values, dataset)
            values = values >> 8 if values.dtype == np.uint16 else values
        box = region_box(dataset, values.shape[:2])
        if values.ndim == 3:
            gray = frames.read(values[..., :3].astype(np.uint8), check=False).gray
            x, y, width, height = box or (0, 0, *gray.shape[::-1])
            coloured = frames.coloured_fraction(values[y : y + height, x : x + width, :3])
        else:
            gray = _eight_bits(values, dataset)
            gray = 255 - gray if photometric == "MONOCHROME1" else gray
    except FrameError:
        raise
    except MemoryError:
        raise FrameError("too large: decoding it ran out of memory", "too_large") from None
    except Exception:  # the decoder's message may quote the header, so it goes no further
        raise FrameError("damaged or cut short: its pixels could not be decoded", "truncated") from None
    frames.check_content(gray, coloured)
    return gray, box


def _eight_bits(values: np.ndarray, dataset: pydicom.Dataset) -> np.ndarray:
    """Stored grey values as 8 bits: through the file's window where it has one, else from the bits stored."""
    bits, signed = int(dataset.get("BitsStored", 8)), int(dataset.get("PixelRepresentation", 0))
    low, high = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)
    if bits > 8 or signed:
        values = apply_voi_lut(values, dataset)
        if dataset.get("VOILUTSequence"):
            low, high = 0, 2 ** int(dataset.VOILUTSequence[0].LUTDescriptor[2]) - 1
    scaled = (values.astype(np.float64) - low) * (255 / (high - low))
    return np.rint(np.clip(scaled, 0, 255)).astype(np.uint8)
