"""One image, every step: what notebook 07 computes.

`Explorer.look` maps a `Choice` to a `View` without any widget; `panel` puts controls around it.
"""

from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from thyroid_lib import datasets, frames, regions
from thyroid_lib.classifier import Classification, Classifier, prepare
from thyroid_lib.common.messages import printable
from thyroid_lib.common.templates import render
from thyroid_lib.explanation import cam, robustness
from thyroid_lib.explanation.views import nodule_hidden

LISTED = 200  # frames offered in the list of images


@dataclass(frozen=True)
class Choice:
    """Where the controls stand.

    Attributes:
        threshold: grey levels, of `regions.Recipe`. closing: px, of `regions.Recipe`.
        method: of the class activation map. layer: attribute path of the module it reads.
        explain: class key; "" for the type that is named.
        gain: factor on the crop's grey levels. cover: put a square of the surrounding grey over the nodule.
    """

    threshold: int
    closing: int
    method: str = "gradcam"
    layer: str = "exit_flow"
    explain: str = ""
    gain: float = 1.0
    cover: bool = False


@dataclass(frozen=True, repr=False)
class View:
    """What the choice gives.

    Attributes:
        name: of the image. truth: its label's key, "" where unknown.
        frame: uint8 (H, W). binary: uint8, 0 and 1. found: regions, largest first. mask: bool (H, W) or None.
        answer: `Classification` of the frame; its `crop` is the network's input.
        heat: float32 (S, S), 0 to 1, mean over members. low, high: raw range before scaling.
        changed: uint8 (S, S), the crop with gain and cover. after: key -> probability of the changed crop.
        choice: what was chosen, with `explain` filled in.
    """

    name: str
    truth: str
    frame: np.ndarray
    binary: np.ndarray
    found: list
    mask: np.ndarray | None
    answer: Classification
    heat: np.ndarray
    low: float
    high: float
    changed: np.ndarray
    after: dict[str, float]
    choice: Choice

    def words(self, template: str, **values) -> str:
        """A template of `templates/explanation` about this view, filled in; file names are made inert."""
        return render(f"explanation/{template}", view=self, printable=printable, **values)


class Explorer:
    """A classifier, an image, and the manifest that images are chosen from.

    Args:
        classifier: with PyTorch at hand, for the maps.
        manifest: rows with `path`, `image`, `label`; or None, where images are uploaded or named.
    """

    def __init__(self, classifier: Classifier, manifest: pd.DataFrame | None = None):
        self.classifier, self.members, self.manifest = classifier, classifier.members(), manifest
        self.images = [] if manifest is None else list(manifest["image"].iloc[:LISTED])
        self.name, self.truth, self.frame, self.mask = "", "", None, None

    def choice(self, threshold: int = 0, closing: int = -1, **others) -> Choice:
        """A `Choice`; 0 for the threshold and -1 for the closing stand for those of training."""
        recipe = self.classifier.recipe
        return Choice(threshold or recipe.threshold, recipe.closing if closing < 0 else closing, **others)

    def open(self, source="") -> None:
        """Takes another image.

        Args:
            source: name of an image of the manifest, path of a file, or (name, bytes) of an uploaded one; where
                empty, the manifest's first image whose nodule is outlined, or its first.

        Raises:
            frames.FrameError: it is no usable frame; the image before stays.
        """
        name, truth, mask = source, "", None
        if isinstance(source, tuple):
            name, content = source
            frame = frames.read(bytes(content)).gray
        elif self.manifest is not None and (not source or source in set(self.manifest["image"])):
            rows = self.manifest
            outlined = rows["mask"].fillna("").astype(str) != "" if "mask" in rows else rows["image"] == ""
            order = outlined.sort_values(ascending=False, kind="stable").index
            row = (rows[rows["image"] == source] if source else rows.loc[order]).iloc[0]
            frame, name, truth = datasets.load_frame(row), row["image"], row["label"]
            mask = datasets.load_mask(row, frame.shape)
        else:
            frame = datasets.load_frame(source)
        self.name, self.truth, self.frame, self.mask = str(name), truth, frame, mask

    def look(self, choice: Choice) -> View:
        """Every step from the open image to the answer and to the answer for the changed crop.

        Raises:
            frames.FrameError: with these settings the frame has no region.
        """
        if self.frame is None:
            raise ValueError("Explorer.look: expected an open image, there is none; call open first")
        recipe = replace(self.classifier.recipe, threshold=choice.threshold, closing=choice.closing)
        answer = self.classifier.classify(self.frame, recipe=recipe)
        choice = replace(choice, explain=choice.explain or answer.lesion_type)
        heat, low, high = self.heat(answer.crop, choice.explain, choice.method, choice.layer)
        changed = robustness.change(answer.crop[None], "gain", choice.gain)
        if choice.cover and self.mask is not None:
            x, y, width, height = answer.box
            mask = regions.letterbox(self.mask[y : y + height, x : x + width], self.classifier.size)
            changed = nodule_hidden(changed, mask[None])
        after = self.classifier.probabilities(changed)[0]
        return View(
            name=self.name, truth=self.truth, frame=self.frame, mask=self.mask, answer=answer, choice=choice,
            binary=regions.binarize(self.frame, recipe), found=regions.connected_regions(self.frame, recipe),
            heat=heat, low=low, high=high, changed=changed[0],
            after=dict(zip(self.classifier.classes, map(float, after))),
        )  # fmt: skip

    def heat(self, crop: np.ndarray, explain: str, method: str, layer: str) -> tuple:
        """Map of a crop, uint8 (S, S), for a class key: float32 (S, S), mean over members; lowest, highest raw."""
        target = np.array([self.classifier.classes.index(explain)])
        cams = [cam.cam(member, crop[None], target, method=method, layer=layer) for member in self.members]
        low, high = min(found.low[0] for found in cams), max(found.high[0] for found in cams)
        return np.mean([found.maps[0] for found in cams], 0), float(low), float(high)

    def differing_pixels(self, crops) -> int:
        """Pixels in which the open image's crop differs from the one that the run trained or tested on.

        Args:
            crops: the run's `crops.Crops`.

        Returns:
            0 where classification takes the path of training byte for byte; -1 where the image is none of the run's.
        """
        rows = np.flatnonzero(crops.index["image"] == self.name)
        if not len(rows):
            return -1
        crop = prepare(self.frame, self.classifier.size, self.classifier.recipe)[2]
        return int((crop != crops.images[rows[0]]).sum())


def answer_table(view: View, classifier: Classifier) -> pd.DataFrame:
    """A row per class: names, probabilities of crop and changed crop, and the two verdicts."""
    answer, points, rows = view.answer, classifier.definition["operating_points"], []
    for key, (english, chinese) in classifier.names.items():
        excluded = "not excluded" if key in answer.prediction_set else "excluded"
        verdict = "positive" if answer.positive.get(key) else "negative"
        called = f"{verdict} at {points[key]:.2f}" if key in points else "none"
        rows.append((english, chinese, answer.probabilities[key], view.after[key], excluded, called))
    columns = ["lesion type", "类型", "probability", "after the change", "prediction set", "operating point"]
    return pd.DataFrame(rows, columns=columns)


def summary(view: View) -> dict:
    """The view's numbers for `metrics.json`."""
    answer = view.answer
    return {
        "image": view.name, "lesion_type": answer.lesion_type, "reference_standard": view.truth,
        "box": " ".join(map(str, answer.box)), "regions": len(view.found), "warnings": len(answer.warnings),
        "probabilities": answer.probabilities, "after_change": view.after,
        "map_low": view.low, "map_high": view.high,
    }  # fmt: skip
