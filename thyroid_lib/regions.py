"""From an ultrasound frame to the crop that the network reads (claim C10, paragraphs 21-25).

The frame is binarized, its connected regions are listed, the largest one is taken, its pixel coordinates
are marked, and its box is cut out. On a scanner's frame that region is the ultrasound sector, so rulers,
text, logos and grey bars around it are left behind. `extract` is the one path from a frame to the
network's input: the crops of the study and the classifier both use it.

The invention gives no threshold or connectivity; `Recipe` documents ours. It was fixed once on DDTI and
BUSI, for all frames alike, and `benchmarks/preprocess.py` and the tests hold it to them.
"""

from dataclasses import dataclass
from functools import cached_property

import cv2
import numpy as np

from thyroid_lib import frames

# Longest side, px, at which the lengths of a `Recipe` are stated; larger frames are reduced to it first.
REFERENCE_SIDE = 560


@dataclass(frozen=True)
class Recipe:
    """How a frame is binarized. Lengths are px of a frame whose longest side is 560 px, and scale with it.

    Args:
        median: side of the median filter that removes thin strokes (text, ruler ticks): 1, 3 or 5.
        threshold: grey levels (0 to 255) by which a filtered pixel must differ from the surround.
        closing: side of the square that joins what speckle and dark gaps between panels tear apart.
        opening: side of the square that removes what is thinner: text blocks, grey bars, rulers.
        connectivity: 4 or 8, the neighbours that make pixels one region.
        margin: widening of the box on each side.
        min_area: smallest region listed, as a fraction of the frame's area.
    """

    median: int = 5
    threshold: int = 6
    closing: int = 9
    opening: int = 27
    connectivity: int = 4
    margin: int = 3
    min_area: float = 0.002

    def __post_init__(self):
        lengths = {name: (0, REFERENCE_SIDE) for name in ("closing", "opening", "margin", "min_area")}
        for name, (low, high) in {"threshold": (1, 254), **lengths}.items():
            if not low <= getattr(self, name) <= high:
                raise ValueError(f"Recipe.{name}: expected {low} to {high}, came {getattr(self, name)!r}.")
        for name, known in (("median", (1, 3, 5)), ("connectivity", (4, 8))):
            if getattr(self, name) not in known:
                raise ValueError(f"Recipe.{name}: expected one of {known}, came {getattr(self, name)!r}.")


RECIPE = Recipe()  # the one recipe of the study


class NoRegion(ValueError):
    """The frame has no region that differs from its surround: nothing can be cropped."""


@dataclass(frozen=True)
class Region:
    """One connected region of a frame.

    Attributes:
        box: (x, y, width, height) in px of the frame, margin included, clipped to the frame.
        area: px of the frame in the region itself (without the margin).
        inverted: the frame shows dark on bright, so a crop must be inverted to look like the others.
    """

    box: tuple[int, int, int, int]
    area: int
    inverted: bool = False
    _labels: np.ndarray = None
    _index: int = 0
    _shape: tuple[int, int] = (0, 0)

    @cached_property
    def mask(self) -> np.ndarray:
        """The region's pixels, bool (H, W) of the frame."""
        mask = (self._labels == self._index).astype(np.uint8)
        return cv2.resize(mask, self._shape[::-1], interpolation=cv2.INTER_NEAREST).astype(bool)

    @property
    def coordinates(self) -> np.ndarray:
        """The marked pixel coordinates, int (n, 2) as (x, y) rows: paragraph 24 of the invention."""
        return np.argwhere(self.mask)[:, ::-1]


def as_gray(image: np.ndarray) -> np.ndarray:
    """A still image as 8-bit grey, uint8 (H, W).

    Args:
        image: uint8 (H, W) is given back as it is; RGB, RGBA, bool and 16-bit arrays are converted as
            `frames.read` converts files.

    Raises:
        frames.FrameError: an array that is no still image.
    """
    if isinstance(image, np.ndarray) and image.ndim == 2 and image.dtype == np.uint8 and image.size:
        return np.ascontiguousarray(image)
    return frames.read(np.asarray(image), check=False).gray


def binarize(gray: np.ndarray, recipe: Recipe = RECIPE) -> np.ndarray:
    """The binary image whose connected regions are listed: uint8 (h, w) of 0 and 1.

    The surround is the level that most of the frame's border shares; an already cropped image has none
    and is held against black. A pixel counts when its median-filtered level differs from the surround by
    more than the threshold; closing then knits speckle together and opening drops thin remains.
    Frames larger than 560 px are reduced to that side first, so `h` and `w` may be smaller than the frame's.
    """
    small = _reduced(gray)
    scale = max(small.shape) / REFERENCE_SIDE
    filtered = cv2.medianBlur(small, recipe.median)
    difference = cv2.absdiff(filtered, np.full_like(filtered, surround_level(small)))
    binary = cv2.threshold(difference, recipe.threshold, 1, cv2.THRESH_BINARY)[1]
    for operation, side in ((cv2.MORPH_CLOSE, recipe.closing), (cv2.MORPH_OPEN, recipe.opening)):
        side = max(1, round(side * scale))
        binary = cv2.morphologyEx(binary, operation, np.ones((side, side), np.uint8))
    return binary


def connected_regions(gray: np.ndarray, recipe: Recipe = RECIPE) -> list[Region]:
    """The invention's list of connected regions of a frame, largest first (paragraph 22).

    Args:
        gray: frame as `as_gray` takes it.
        recipe: how to binarize it.

    Returns:
        Regions of at least `recipe.min_area` of the frame; empty for a constant frame.
    """
    gray = as_gray(gray)
    height, width = gray.shape
    binary = binarize(gray, recipe)
    _, labels, stats, _ = cv2.connectedComponentsWithStats(binary, connectivity=recipe.connectivity)
    scale_x, scale_y = width / binary.shape[1], height / binary.shape[0]
    margin = recipe.margin * max(gray.shape) / REFERENCE_SIDE
    bright_surround = surround_level(_reduced(gray)) > 127
    regions = []
    for index in np.argsort(-stats[:, cv2.CC_STAT_AREA], kind="stable").tolist():
        x, y, w, h, area = stats[index].tolist()
        if index == 0 or area < recipe.min_area * binary.size:
            continue
        left, top = max(0, round(x * scale_x - margin)), max(0, round(y * scale_y - margin))
        right = min(width, round((x + w) * scale_x + margin))
        bottom = min(height, round((y + h) * scale_y + margin))
        inverted = bright_surround and bool(np.median(gray[top:bottom, left:right]) > 127)
        box, whole = (left, top, right - left, bottom - top), round(area * scale_x * scale_y)
        regions.append(Region(box, whole, inverted, labels, index, gray.shape))
    return regions


def largest_region(gray: np.ndarray, recipe: Recipe = RECIPE) -> Region:
    """The largest connected region of a frame (paragraph 23).

    Raises:
        NoRegion: nothing in the frame differs from its surround.
    """
    regions = connected_regions(gray, recipe)
    if not regions:
        raise NoRegion(
            f"Expected a bright sector, came a frame of shape {np.shape(gray)} in which nothing of at least "
            f"{recipe.min_area:.1%} of its area differs from the surround by more than {recipe.threshold} "
            "grey levels. Check that the file shows an ultrasound image, or lower Recipe.threshold."
        )
    return regions[0]


def crop(gray: np.ndarray, region: Region) -> np.ndarray:
    """The region's box cut out of the frame (paragraph 24), upright in grey; uint8 (height, width)."""
    x, y, width, height = region.box
    cut = as_gray(gray)[y : y + height, x : x + width]
    return 255 - cut if region.inverted else cut


def letterbox(image: np.ndarray, size: int) -> np.ndarray:
    """The image scaled to fit a square without changing its proportions, centred on black.

    Args:
        image: uint8 (H, W); bool masks are taken too and stay 0 and 1.
        size: side of the square in px.

    Returns:
        uint8 (size, size).
    """
    left, top, width, height = letterbox_box(image.shape, size)
    mask = image.dtype == bool
    way = cv2.INTER_AREA if max(image.shape) > size else cv2.INTER_LINEAR
    resized = cv2.resize(image.astype(np.float32) if mask else image, (width, height), interpolation=way)
    square = np.zeros((size, size), np.uint8)
    square[top : top + height, left : left + width] = resized >= 0.5 if mask else resized
    return square


def letterbox_box(shape: tuple[int, int], size: int) -> tuple[int, int, int, int]:
    """Where `letterbox` puts an image of this (H, W) in the square: (x, y, width, height) in px."""
    scale = size / max(shape)
    height, width = max(1, round(shape[0] * scale)), max(1, round(shape[1] * scale))
    return (size - width) // 2, (size - height) // 2, width, height


def extract(gray: np.ndarray, size: int, recipe: Recipe = RECIPE) -> tuple[np.ndarray, Region]:
    """Frame to network input: largest connected region, cropped, letterboxed.

    Args:
        gray: frame as `as_gray` takes it.
        size: side of the network's input in px.

    Returns:
        uint8 (size, size) and the region it came from.

    Raises:
        NoRegion: nothing to crop.
    """
    gray = as_gray(gray)
    region = largest_region(gray, recipe)
    return letterbox(crop(gray, region), size), region


def surround_level(gray: np.ndarray) -> int:
    """Grey level of the frame's surround: what most of its border shares, 0 where no level does.

    A white page or an inverted frame gives a bright level, a scanner's black screen 0, an already cropped
    image has speckle on its border and gives 0.
    """
    border = np.concatenate([gray[0], gray[-1], gray[:, 0], gray[:, -1]])
    counts = np.bincount(border, minlength=256)
    windows = np.convolve(counts, np.ones(5, np.int64), mode="same")  # a level and two on either side
    level = int(np.argmax(windows))
    return level if windows[level] > border.size / 2 and level > 2 else 0


def _reduced(gray: np.ndarray) -> np.ndarray:
    scale = min(1, REFERENCE_SIDE / max(gray.shape))
    shape = (max(1, round(gray.shape[1] * scale)), max(1, round(gray.shape[0] * scale)))
    return cv2.resize(gray, shape, interpolation=cv2.INTER_AREA)


def printed_lines(gray: np.ndarray, *boxes: tuple[int, int, int, int]) -> list[int]:
    """Counts lines of print in boxes of a frame: the audit's question to a crop, no part of the recipe.

    A line of print is a band of rows (then of columns, in what is left) that is black but for strokes: two or
    more px brighter than 90, and beyond 4 px of them at least a seventh of the band and hardly anything grey.
    Most of what lies within 4 px of a stroke goes black under a median filter; tissue does not. So depth labels,
    settings and typed findings count, and speckle and the edges of a tapered sector do not.

    Args:
        gray: uint8 (H, W).
        boxes: (x, y, width, height) in px.

    Returns:
        For each box its number of bands at least 5 px high or wide.
    """
    scale = max(1.0, max(gray.shape) / REFERENCE_SIDE)
    side = 2 * round(4 * scale) + 1
    bright = cv2.threshold(gray, 90, 1, cv2.THRESH_BINARY)[1]
    near = cv2.dilate(bright, np.ones((side, side), np.uint8))
    tissue = cv2.threshold(cv2.medianBlur(gray, 5), 12, 1, cv2.THRESH_BINARY)[1]  # what is no thin stroke
    ground = cv2.threshold(gray, 12, 1, cv2.THRESH_BINARY)[1] & (1 - near)
    counts = []
    for x, y, width, height in boxes:
        cut = [part[y : y + height, x : x + width].copy() for part in (bright, near, ground, tissue)]
        rows = _bands(cut, 1, round(5 * scale))
        for part in cut:
            part[rows] = 0  # what a line of text holds is not counted again, letter by letter
        columns = _bands(cut, 0, round(5 * scale))
        starts = (np.diff(bands.astype(int), prepend=0) > 0 for bands in (rows, columns))
        counts.append(sum(int(start.sum()) for start in starts))
    return counts


def _bands(parts, axis: int, least: int) -> np.ndarray:
    """Which rows (axis 1) or columns (axis 0) belong to a band of print at least so many px thick: bool."""
    length = parts[0].shape[axis]
    strokes, close, grey, solid = (part.sum(axis, dtype=np.int64) for part in parts)
    free = length - close
    printed = (strokes >= 2) & (free > 0.15 * length) & (grey < 0.01 * length) & (solid < 0.7 * close)
    edges = np.flatnonzero(np.diff(np.r_[0, printed.astype(np.int8), 0]))
    for start, stop in zip(edges[::2], edges[1::2]):
        printed[start:stop] = stop - start >= least
    return printed
