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
TISSUE, COLOUR_FLOW, TWO_DIMENSIONAL = 1, 2, 1  # RegionDataType, RegionSpatialFormat (PS3.3 C.8.5.5.1)
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
        dataset = source if isinstance(source, pydicom.Dataset) else header(source)
        if problem := unusable(dataset):
            raise problem
        count = frame_count(dataset)
        if not 0 <= number < count:
            raise FrameError(f"frame {number} was asked for; the file holds {count}", "no_such_frame")
        gray, coloured = pixels(source, dataset, number)
        box = region_box(dataset, gray.shape)
    frames.check_content(gray, coloured)
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
    boxes = []
    for region in _regions(dataset):
        with contextlib.suppress(Exception):  # a region that cannot be read is none
            if _kind(region) == (TWO_DIMENSIONAL, TISSUE):
                boxes.append([int(region[name].value) for name in CORNERS])
    if not boxes:
        return None
    left, top = (max(0, min(box[i] for box in boxes)) for i in (0, 1))
    right, bottom = (min(shape[1 - i], 1 + max(box[2 + i] for box in boxes)) for i in (0, 1))
    return (left, top, right - left, bottom - top) if right > left and bottom > top else None


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silences pydicom, whose warnings and log lines quote header values."""
    logger = logging.getLogger("pydicom")
    level, mode = logger.level, pydicom.config.settings.reading_validation_mode
    logger.setLevel(logging.CRITICAL + 1)
    pydicom.config.settings.reading_validation_mode = pydicom.config.IGNORE
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
        pydicom.config.settings.reading_validation_mode = mode


def header(source) -> pydicom.Dataset:
    """The parsed file; values above 1 KiB, the pixels among them, are read when they are asked for."""
    try:
        if os.path.getsize(source) == 0:
            raise FrameError("empty file: 0 bytes came", "empty")
        if len(dataset := dicom_limits.read(source)):
            return dataset
    except FrameError:
        raise
    except pydicom.errors.InvalidDicomError:
        return _without_preamble(source)
    except OSError as error:
        raise FrameError(f"cannot be opened: {type(error).__name__}", "cannot_open") from None
    except Exception:  # whatever the parser trips over; its message may quote the header: no further with it
        pass
    raise FrameError("not readable as DICOM: damaged or cut short", "truncated")


def _without_preamble(source) -> pydicom.Dataset:
    """Old exports lack the first 132 bytes; what follows must then be a proper image all the same."""
    with contextlib.suppress(Exception):
        dataset = dicom_limits.read(source, force=True)
        if "SOPClassUID" in dataset and "PixelData" in dataset:
            if "TransferSyntaxUID" not in dataset.file_meta:
                dataset.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian
            return dataset
    raise FrameError("not a DICOM file", "not_an_image") from None


def unusable(dataset: pydicom.Dataset) -> FrameError | None:
    """What in the header forbids using the file, before a pixel is decoded."""
    if str(dataset.get("Modality", "")).strip().upper() not in ULTRASOUND:
        return FrameError("not an ultrasound image (its modality is another, or missing)", "modality")
    if "PixelData" not in dataset:
        return FrameError("holds no image (a report or measurement object)", "no_pixels")
    try:
        size = int(dataset.Rows) * int(dataset.Columns)
        samples, bits = int(dataset.SamplesPerPixel), int(dataset.BitsAllocated)
    except (AttributeError, TypeError, ValueError):
        return FrameError("has pixels but no number of rows, columns, samples and bits", "truncated")
    if samples not in (1, 3) or bits not in (1, 8, 16):
        came = f"{samples} samples of {bits} bits a pixel came"
        return FrameError(f"{came}; 1 or 3 of 1, 8 or 16 bits are expected", "pixels")
    if (count := frame_count(dataset)) > dicom_limits.MAX_FRAMES:
        came = f"too many frames: the header names {count}"
        return FrameError(f"{came}, at most {dicom_limits.MAX_FRAMES} are read", "too_large")
    if size > frames.MAX_PIXELS:
        came = f"too large: {size / 1e6:.0f} million pixels a frame"
        return FrameError(f"{came}; at most {frames.MAX_PIXELS / 1e6:.0f} are decoded", "too_large")
    found = [_kind(region) for region in _regions(dataset)]
    if (TWO_DIMENSIONAL, COLOUR_FLOW) in found:
        return FrameError("colour Doppler: the header names a colour flow region", "colour")
    if found and (TWO_DIMENSIONAL, TISSUE) not in found:
        reason = "no two-dimensional tissue region in the header (M-mode or spectral Doppler)"
        return FrameError(reason, "no_tissue")
    syntax = getattr(getattr(dataset, "file_meta", None), "TransferSyntaxUID", None)
    with contextlib.suppress(Exception):  # pydicom knows no decoder of that name
        if syntax is None or syntax in UncompressedTransferSyntaxes or get_decoder(syntax).is_available:
            return None
    name = syntax.name if not syntax.is_private and syntax.name != syntax else "an unknown codec"
    reason = f"compressed with {name}, which nothing installed here decodes: install thyroid_lib[dicom]"
    return FrameError(reason, "codec")


def _regions(dataset: pydicom.Dataset) -> list[pydicom.Dataset]:
    found = dataset.get("SequenceOfUltrasoundRegions")
    return list(found) if isinstance(found, pydicom.Sequence) else []


def _kind(region: pydicom.Dataset) -> tuple[int, int]:
    try:
        return int(region.RegionSpatialFormat), int(region.RegionDataType)
    except Exception:  # whatever its values trip over: a region of no kind
        return 0, 0


def pixels(source, dataset: pydicom.Dataset, number: int) -> tuple[np.ndarray, float]:
    """uint8 (H, W) and the fraction of coloured pixels of one frame; only that frame is decoded."""
    try:
        photometric = str(dataset.get("PhotometricInterpretation", "")).strip().upper()
        whole = _in_memory(source, dataset)
        if dataset.file_meta.TransferSyntaxUID not in UncompressedTransferSyntaxes:
            dicom_limits.check_frame(None if isinstance(source, pydicom.Dataset) else source, dataset, number)
        elif whole and dataset.get_item("PixelData", keep_deferred=True).length > dicom_limits.MAX_INFLATED:
            raise FrameError("too large: a file without a proper header must be read at one go", "too_large")
        values = pixel_array(dataset if whole else source, index=number)
        if photometric == "PALETTE COLOR":
            values = apply_color_lut(values, dataset)
            values = values >> 8 if values.dtype == np.uint16 else values
        if values.ndim == 3:
            gray = frames.read(values[..., :3].astype(np.uint8), check=False).gray
            x, y, width, height = region_box(dataset, gray.shape) or (0, 0, *gray.shape[::-1])
            return gray, frames.coloured_fraction(values[y : y + height, x : x + width, :3])
        gray = _eight_bits(values, dataset)
        return (255 - gray if photometric == "MONOCHROME1" else gray), 0.0
    except FrameError:
        raise
    except MemoryError:
        raise FrameError("too large: decoding it ran out of memory", "too_large") from None
    except Exception:  # the decoder's message may quote the header, so it goes no further
        raise FrameError("damaged or cut short: its pixels could not be decoded", "truncated") from None


def _eight_bits(values: np.ndarray, dataset: pydicom.Dataset) -> np.ndarray:
    """Stored grey values as 8 bits: through the file's window where it has one, else from the bits stored."""
    bits, signed = int(dataset.get("BitsStored", 8)), int(dataset.get("PixelRepresentation", 0))
    low, high = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)
    if bits > 8 or signed:
        if dataset.get("VOILUTSequence"):
            low, high = 0, 2 ** int(dataset.VOILUTSequence[0].LUTDescriptor[2]) - 1
        if dataset.get("VOILUTSequence") or "WindowWidth" in dataset:
            values = apply_voi_lut(values, dataset)
    scaled = (values.astype(np.float64) - low) * (255 / (high - low))
    return np.rint(np.clip(scaled, 0, 255)).astype(np.uint8)


def _in_memory(source, dataset: pydicom.Dataset) -> bool:
    """Whether the pixels must come from the parsed dataset: pydicom reads single frames of proper files only."""
    if isinstance(source, pydicom.Dataset) or not getattr(dataset, "preamble", None):
        return True
    return dataset.file_meta.TransferSyntaxUID == DeflatedExplicitVRLittleEndian
