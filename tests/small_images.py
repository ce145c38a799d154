"""Frames and files of frames that several tests make."""

import io

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
