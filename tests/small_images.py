"""Frames and files of frames that several tests make."""

import io
import struct
import zlib

import cv2
import numpy as np
from PIL import Image


def speckle(seed, shape=(120, 160)):
    """A frame like no other: blurred noise under a smooth brightness, uint8."""
    random = np.random.default_rng(seed)
    noise = cv2.GaussianBlur(random.rayleigh(40, shape).astype(np.float32), (0, 0), 1.2)
    light = cv2.resize(random.uniform(0.4, 1.4, (4, 4)).astype(np.float32), shape[::-1])
    return np.clip(noise * light, 0, 255).astype(np.uint8)


def encoded(pixels, kind="PNG", **options) -> bytes:
    """An image file's bytes, of pixels or of a Pillow image."""
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def png_header(width: int, height: int) -> bytes:
    """A small PNG file that asks for so many pixels and holds none."""
    body = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    chunk = struct.pack(">I", 13) + body + struct.pack(">I", zlib.crc32(body))
    return b"\x89PNG\r\n\x1a\n" + chunk + struct.pack(">I", 5000) + b"IDAT" + bytes(40)


PNG, JPEG = encoded(speckle(901)), encoded(speckle(902), "JPEG", quality=95)
DOPPLER = np.repeat(speckle(900)[..., None], 3, axis=-1)
DOPPLER[40:80, 50:100] = (220, 30, 20)
DAMAGED = {  # name -> (what the file holds, kind of the refusal, words of its reason)
    "empty.png": (b"", "empty", "empty file"),
    "script.png": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not_an_image", "not an image"),
    "cut.png": (PNG[: len(PNG) // 2], "truncated", "truncated or damaged PNG"),
    "cut.jpg": (JPEG[: len(JPEG) // 2], "truncated", "truncated or damaged JPEG"),
    "header only.png": (PNG[:60], "truncated", "truncated or damaged PNG"),
    "no pixels.png": (png_header(300, 300), "truncated", "truncated or damaged PNG"),
    "flipped bytes.png": (PNG[:200] + bytes(200) + PNG[400:], "truncated", "truncated or damaged PNG"),
    "large.png": (png_header(9_000, 9_000), "too_large", "too large: 9000 x 9000 px"),
    "bomb.png": (png_header(60_000, 60_000), "too_large", "too large"),
    "dicom.png": (bytes(128) + b"DICM" + bytes(64), "dicom", "a DICOM file"),
    "tiny.png": (encoded(speckle(903)[:20, :20]), "too_small", "too small: 20 x 20 px"),
    "black.png": (encoded(np.zeros((120, 160), np.uint8)), "constant", "between 0 and 0"),
    "white.jpg": (encoded(np.full((120, 160), 255, np.uint8), "JPEG"), "constant", "between 255 and 255"),
    "doppler.png": (encoded(DOPPLER), "colour", "coloured"),
    "float.tiff": (encoded(np.full((120, 160), np.nan, np.float32), "TIFF"), "float", "floating-point"),
}
