"""The same images without what should matter, or with what must not: the views of the shortcut audit."""

from collections.abc import Callable

import cv2
import numpy as np

from thyroid_lib import datasets, regions
from thyroid_lib.data.crops import Crops

PRINTED = "full frame, answer printed"


def views_of(crops: Crops, rows: np.ndarray, answer: Callable | None) -> dict[str, np.ndarray]:
    """Every view of some images.

    Args:
        crops: the clinic's.
        rows: int (n,), which.
        answer: of :func:`answer_frames`, or None.

    Returns:
        Name -> uint8 (n, S, S): "crop", "border only", "nodule hidden" where there are masks, "full frame" and,
        where the answer can be printed, ``PRINTED``.
    """
    images = np.asarray(crops.images[rows])
    found = {"crop": images, "border only": border_only(images)}
    if crops.masks is not None:
        found["nodule hidden"] = nodule_hidden(images, crops.masks[rows])
    found["full frame"] = np.asarray(crops.frames[rows])
    return found | ({PRINTED: answer(rows)} if answer else {})


def border_only(images: np.ndarray) -> np.ndarray:
    """The sector's outline, what is outside it, and nothing of the tissue inside.

    Args:
        images: uint8 (n, S, S), crops.

    Returns:
        uint8 (n, S, S); everything deeper than S / 16 px inside the sector is 0.
    """
    size = images.shape[1]
    closing = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (size // 8 | 1, size // 8 | 1))
    result = np.array(images)
    for image in result:
        lit = cv2.morphologyEx((image > 12).astype(np.uint8), cv2.MORPH_CLOSE, closing)
        contours, _ = cv2.findContours(lit, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
        sector = cv2.drawContours(np.zeros_like(lit), contours, -1, 1, cv2.FILLED)
        depth = cv2.distanceTransform(np.pad(sector, 1), cv2.DIST_L2, 5)[1:-1, 1:-1]
        image[depth > size / 16] = 0
    return result


def nodule_hidden(images: np.ndarray, masks: np.ndarray) -> np.ndarray:
    """The nodule under a square of the grey level around it, so that neither texture nor shape remains.

    Args:
        images: uint8 (n, S, S).
        masks: (n, S, S), 0 outside the nodule.

    Returns:
        uint8 (n, S, S); the square's side is 1.2 times the nodule's longer side. Its size and place remain.
        Parts of a mask that do not touch (two nodules, two panels) get a square each: one square over both
        would hide everything between them too.
    """
    result, size = np.array(images), images.shape[1]
    margin = max(1, size // 24)
    for seen, hidden, mask in zip(images, result, masks):
        _, _, parts, _ = cv2.connectedComponentsWithStats((np.asarray(mask) > 0).astype(np.uint8))
        for x, y, width, height, _ in parts[1:]:
            half = max(2, 0.6 * (max(width, height) - 1) + 1)
            middle = np.array([y + (height - 1) / 2, x + (width - 1) / 2])
            (top, left), (bottom, right) = (middle + [[-half], [half + 1]]).clip(0, size).astype(int)
            square = seen[top:bottom, left:right]
            outer = seen[max(0, top - margin) : bottom + margin, max(0, left - margin) : right + margin]
            around, level = outer.size - square.size, int(outer.sum()) - int(square.sum())
            hidden[top:bottom, left:right] = level // around if around else 0
    return result


def answer_frames(spec: str, like: Crops) -> Callable[[np.ndarray], np.ndarray] | None:
    """The clinic's whole frames with the answer printed under the sector: what an audit must be able to find.

    Frames are read again and the name of the class is written where a scanner writes its findings, as some real
    frames have their grade printed; the files stay as they are.

    Args:
        spec: the clinic's SPEC.
        like: its crops.

    Returns:
        A function from rows of ``like``, int (n,), to their frames, uint8 (n, S, S); None where the data cannot be
        read again or are not the same ones.
    """
    try:
        paths = datasets.read(spec).set_index("image")["path"]
    except (OSError, ValueError):  # the run has moved to where its data are not
        return None
    images = like.index["image"].astype(str)
    if not images.isin(paths.index).all():
        return None
    first = datasets.load_frame(paths[images.iloc[0]])
    if not np.array_equal(regions.extract(first, like.size, like.recipe)[0], like.images[0]):
        return None  # other patients of these names

    def answered(rows: np.ndarray) -> np.ndarray:
        frames = []
        for about in like.index.iloc[rows].to_dict("records"):
            gray = datasets.load_frame(paths[about["image"]])
            box = tuple(int(about[f"box_{name}"]) for name in ("x", "y", "width", "height"))
            printed = print_answer(gray, box, like.names.get(about["label"], [""])[0])
            frames.append(regions.letterbox(printed, like.size))
        return np.stack(frames)

    return answered


def print_answer(gray: np.ndarray, box: tuple[int, int, int, int], text: str) -> np.ndarray:
    """A frame with a line of text under its sector, as scanners and readers put it there.

    Args:
        gray: uint8 (H, W).
        box: x, y, width, height of the sector, px.
        text: what to print; only its ASCII letters, for the font has no others.

    Returns:
        uint8 (H, W), a copy.
    """
    result, size = gray.copy(), max(1.0, gray.shape[0] / 480)
    words = text.replace("–", "-").encode("ascii", "ignore").decode().upper()
    baseline = min(gray.shape[0] - 6, round(box[1] + box[3] + 13 * size))
    cv2.putText(result, words, (box[0] + 4, baseline), cv2.FONT_HERSHEY_PLAIN, size, 255, round(size))
    return result
