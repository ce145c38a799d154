"""HTML reports of `classify --out`: one self-contained page per image or study, no script, nothing loaded.

File names are other people's words: they pass `messages.printable` and the template's autoescape, and the page's
content policy forbids everything but inline pictures and styles. DICOM files go by hashes, for they are often named
after the patient, and what is printed beside the region cannot be read.
"""

import base64
import hashlib
import io
import os
import re
from pathlib import Path

import numpy as np
from PIL import Image

from thyroid_lib.classifier import Classification, Classifier
from thyroid_lib.classifier.studies import Item
from thyroid_lib.common.files import write_text
from thyroid_lib.common.templates import render
from thyroid_lib.frames import FrameError

PICTURED = 8  # frames of a clip that get pictures of their own, evenly spaced
MOST_PICTURES = 60  # of a page; a study of hundreds of stills stays a page that opens


class Pages:
    """Collects results and writes each study's page as soon as it is complete.

    Args:
        folder: where; made if missing. Existing pages of the same images are replaced, others are left alone.
        classifier: for names, operating points and id.
    """

    def __init__(self, folder: Path, classifier: Classifier):
        self.folder, self.classifier = folder, classifier
        folder.mkdir(parents=True, exist_ok=True)
        self._open: dict[str, list[dict]] = {}  # study -> sections of its page
        self._listed: list[dict] = []

    def add(self, item: Item, result: Classification | FrameError, parts: list) -> None:
        """Takes the answer for a frame or clip, and those it sums up; a page of a single image is written at once."""
        sections, failed = self._open.setdefault(item.study, []), isinstance(result, FrameError)
        wanted = np.unique(np.linspace(0, (item.frames or 1) - 1, PICTURED).astype(int))
        if (item.frame or 0) not in wanted:
            return
        section = {"item": item, "error": str(result) if failed else "", "curves": {}, "pictures": None}
        if not failed:
            section["result"] = result.without_pixels()
            if result.frame is not None and len(sections) < MOST_PICTURES:
                section["pictures"] = pictures(result)
        if parts:
            found = [getattr(part, "probabilities", None) for part in parts]
            section["curves"] = {key: [p and p[key] for p in found] for key in self.classifier.classes}
        sections.insert(len(sections) - (len(wanted) if parts else 0), section)  # a clip before its frames
        if item.study == item.path and item.frame is None:
            self._write(item.study)

    def close(self) -> str:
        """Writes the pages still open and, for several, an index; gives the page to open first."""
        for study in list(self._open):
            self._write(study)
        if len(self._listed) == 1:
            return str(self.folder / self._listed[0]["file"])
        page = render("classify/index.html.j2", pages=self._listed, classifier=self.classifier)
        write_text(self.folder / "index.html", page)
        return str(self.folder / "index.html")

    def _write(self, study: str) -> None:
        sections = self._open.pop(study)
        names = {section["item"].name for section in sections}
        title = min(names) if len(names) == 1 else f"{len(names)} files of {study}"
        plain = re.sub(r"[^A-Za-z0-9._-]+", "_", Path(title).name).strip("._") or "image"
        file = f"{plain[:60]}-{hashlib.sha256(os.fsencode(study)).hexdigest()[:8]}.html"  # keeps names apart
        page = {"file": file, "title": title, "sections": sections}
        write_text(self.folder / file, render("classify/study.html.j2", classifier=self.classifier, **page))
        self._listed.append(page)


def pictures(result: Classification) -> dict:
    """Frame, crop and map of an answer as base64 text of PNGs, the frame's size and the map's range."""
    shown = {"frame": discreet(result.frame, result.box), "crop": result.crop}
    shown["map"] = heat(result.crop, result.map)
    extent = {"shape": result.frame.shape, "low": float(result.map.min()), "high": float(result.map.max())}
    return {name: png(pixels) for name, pixels in shown.items()} | extent


def png(pixels: np.ndarray) -> str:
    """uint8 (H, W) or (H, W, 3) as the base64 text of a PNG."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()


def discreet(frame: np.ndarray, box: tuple[int, int, int, int]) -> np.ndarray:
    """A frame, uint8 (H, W), so coarse outside the box (x, y, width, height) that no print there can be read."""
    height, width = frame.shape
    cell = max(16, max(frame.shape) // 24)
    few = Image.fromarray(frame).resize((max(1, width // cell), max(1, height // cell)), Image.Resampling.BOX)
    coarse = np.array(few.resize((width, height), Image.Resampling.NEAREST))
    x, y, w, h = box
    coarse[y : y + h, x : x + w] = frame[y : y + h, x : x + w]
    return coarse


def heat(crop: np.ndarray, activation: np.ndarray) -> np.ndarray:
    """The positive part of an activation map over its crop.

    Args:
        crop: uint8 (S, S).
        activation: float (h, w); its largest value is drawn opaque, zero and below not at all.

    Returns:
        uint8 (S, S, 3).
    """
    import cv2

    positive = np.maximum(activation, 0).astype(np.float32)
    strength = positive / max(float(positive.max()), 1e-6)
    strength = np.clip(cv2.resize(strength, crop.shape[::-1], interpolation=cv2.INTER_CUBIC), 0, 1)
    colours = cv2.applyColorMap((strength * 255).astype(np.uint8), cv2.COLORMAP_CIVIDIS)[:, :, ::-1]
    share = 0.75 * strength[:, :, None]
    return (crop[:, :, None] * (1 - share) + colours * share).astype(np.uint8)
