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

from thyroid_lib import frames
from thyroid_lib.classifier.model_card import environment
from thyroid_lib.common.files import write_text
from thyroid_lib.common.messages import printable

PICTURED = 8  # frames of a clip that get pictures of their own, evenly spaced
MOST_PICTURES = 60  # of a page; a study of hundreds of stills stays a page that opens
COLOURS = ["#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#7F7F7F"]  # plots.style.CYCLE
NOTE = "Research use only. Not a medical device; not for diagnosis or treatment."


class Pages:
    """Collects results and writes each study's page as soon as it is complete.

    Args:
        folder: where; made if missing. Existing pages of the same images are replaced, others are left alone.
        classifier: for names, operating points and id.
    """

    def __init__(self, folder: Path, classifier):
        self.folder, self.classifier = folder, classifier
        folder.mkdir(parents=True, exist_ok=True)
        self.environment = environment(autoescape=True)
        self.environment.filters["printable"] = printable
        self.environment.globals["colours"] = COLOURS
        self._open: dict[str, dict] = {}
        self._listed: list[dict] = []

    def add(self, item, result) -> None:
        """Takes one frame's or clip's answer; a page of a single image is written at once."""
        study = self._open.setdefault(item.study, {"names": {}, "sections": [], "clips": {}})
        study["names"][item.name] = None
        if item.frames is None:
            picture = len(study["sections"]) < MOST_PICTURES
            study["sections"].append(self._section(item, result, item.name, picture))
        else:
            self._clip(study, item, result)
        if item.study == item.path and (item.frames is None or item.frame is None):
            self._write(item.study)

    def close(self) -> str:
        """Writes the pages still open and, for several, an index; gives the page to open first."""
        for key in list(self._open):
            self._write(key)
        if len(self._listed) == 1:
            return str(self.folder / self._listed[0]["file"])
        page = self.environment.get_template("index.html.j2").render(
            pages=self._listed, classifier=self.classifier.id, note=NOTE, simulated=self._simulated
        )
        write_text(self.folder / "index.html", page)
        return str(self.folder / "index.html")

    @property
    def _simulated(self) -> bool:
        return self.classifier.definition["training"]["simulated"]

    def _clip(self, study: dict, item, result) -> None:
        clip = study["clips"].setdefault(item.path, {"probabilities": [], "pictures": []})
        if item.frame is None:
            section = self._section(item, result, f"{item.name}: whole clip, {item.frames} frames")
            section["curves"] = self._curves(clip["probabilities"])
            study["sections"] += [section, *clip["pictures"]]
            return
        failed = isinstance(result, frames.FrameError)
        clip["probabilities"].append(None if failed else result.probabilities)
        if item.frame in np.linspace(0, item.frames - 1, min(PICTURED, item.frames)).astype(int):
            title = f"{item.name}: frame {item.frame + 1} of {item.frames}"
            clip["pictures"].append(self._section(item, result, title))

    def _section(self, item, result, title: str, picture: bool = True) -> dict:
        section = {
            "title": title,
            "scanner": item.scanner,
            "error": "",
            "warnings": [],
            "curves": None,
            "frame": None,
        }
        if isinstance(result, frames.FrameError):
            return section | {"error": str(result)}
        rows = [
            {
                "key": key,
                "english": self.classifier.names[key][0],
                "chinese": self.classifier.names[key][1],
                "probability": probability,
                "best": key == result.lesion_type,
                "kept": key in result.prediction_set,
                "point": self.classifier.definition["operating_points"].get(key),
                "positive": result.positive.get(key),
            }
            for key, probability in result.probabilities.items()
        ]
        section |= {"rows": rows, "result": result, "warnings": result.warnings}
        if result.frame is not None and picture:
            height, width = result.frame.shape
            section |= {
                "frame": {"png": png(discreet(result.frame, result.box)), "width": width, "height": height},
                "crop": png(result.crop),
                "map": png(heat(result.crop, result.map)),
                "low": float(result.map.min()),
                "high": float(result.map.max()),
            }
        return section

    def _curves(self, probabilities: list) -> list[dict]:
        """One line per class over the clip's frames, as points of an SVG of 600 x 100."""
        step = 600 / max(len(probabilities) - 1, 1)
        return [
            {
                "key": key,
                "english": self.classifier.names[key][0],
                "chinese": self.classifier.names[key][1],
                "points": " ".join(
                    f"{i * step:.1f},{100 - 100 * found[key]:.1f}"
                    for i, found in enumerate(probabilities)
                    if found is not None
                ),
                "low": min((p[key] for p in probabilities if p), default=0),
                "high": max((p[key] for p in probabilities if p), default=0),
            }
            for key in self.classifier.classes
        ]

    def _write(self, key: str) -> None:
        study = self._open.pop(key)
        names = list(study["names"])
        title = names[0] if len(names) == 1 else f"{len(names)} files of {key}"
        page = self.environment.get_template("study.html.j2").render(
            title=title,
            sections=study["sections"],
            classifier=self.classifier.id,
            conformal=self.classifier.definition["conformal"],
            training=self.classifier.definition["training"],
            note=NOTE,
            simulated=self._simulated,
        )
        name = file_name(key, title)
        write_text(self.folder / name, page)
        first = study["sections"][0]
        best = next((row for row in first.get("rows", []) if row["best"]), None)
        warned = any(s["error"] or s["warnings"] for s in study["sections"])
        self._listed.append(
            {"file": name, "title": title, "best": best, "error": first["error"], "warned": warned}
        )


def file_name(key: str, title: str) -> str:
    """A page's file name: what is plain in the image's name, and a digest that keeps names apart."""
    plain = re.sub(r"[^A-Za-z0-9._-]+", "_", Path(title).name).strip("._") or "image"
    digest = hashlib.sha256(os.fsencode(key)).hexdigest()[:8]
    return f"{plain[:60]}-{digest}.html"


def png(pixels: np.ndarray) -> str:
    """uint8 (H, W) or (H, W, 3) as the base64 text of a PNG."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()


def discreet(frame: np.ndarray, box: tuple[int, int, int, int]) -> np.ndarray:
    """A frame, uint8 (H, W), so coarse outside the box (x, y, width, height) that no print there can be read."""
    import cv2

    height, width = frame.shape
    cell = max(16, max(frame.shape) // 24)
    few = (max(1, width // cell), max(1, height // cell))
    coarse = cv2.resize(
        cv2.resize(frame, few, interpolation=cv2.INTER_AREA), (width, height), interpolation=cv2.INTER_NEAREST
    )
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
