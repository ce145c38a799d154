"""One image, every step: what notebook 07 computes, and its controls.

`Explorer.look` maps a `Choice` to a `View` without any widget; `Panel` puts ipywidgets around it, every callback a
plain method.
"""

import html
from dataclasses import asdict, dataclass, replace

import ipywidgets as w
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from IPython.core.pylabtools import print_figure

from thyroid_lib import datasets, frames, network, regions
from thyroid_lib.classifier import Classification, Classifier, prepare
from thyroid_lib.common.messages import printable
from thyroid_lib.common.templates import render
from thyroid_lib.explanation import cam, robustness
from thyroid_lib.explanation.views import nodule_hidden
from thyroid_lib.plots.explanation import steps_to_answer


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
        return render(f"explanation/{template}", view=self, **values)


class Explorer:
    """A classifier, an image, and the manifest that images are chosen from.

    Args:
        classifier: with PyTorch at hand, for the maps.
        manifest: rows with `path`, `image`, `label`, the first 200 of which are offered; or None, where images are
            uploaded or named.
    """

    def __init__(self, classifier: Classifier, manifest: pd.DataFrame | None = None):
        self.classifier, self.members, self.manifest = classifier, classifier.members(), manifest
        self.images = [] if manifest is None else list(manifest["image"].iloc[:200])
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


class Panel:
    """The controls of notebook 07 around an `Explorer`; `Panel(explorer).box` is the widget to display.

    Attributes:
        controls: name -> widget: image, path, upload, threshold, closing, method, layer, explain, gain, cover, reset.
        view: the last `View`, or None while the image cannot be used.
    """

    def __init__(self, explorer: Explorer, choice: Choice):
        self.explorer, self.view, self._held = explorer, None, False
        names = explorer.classifier.names
        wide = {"style": {"description_width": "7rem"}, "layout": w.Layout(width="24rem")}
        types = [("the named type", ""), *((" ".join(pair), key) for key, pair in names.items())]
        layers = list(dict.fromkeys([choice.layer, *network.STAGES]))
        shown = explorer.name if explorer.name in explorer.images else None
        self.controls = {
            "image": w.Dropdown(options=explorer.images, value=shown, description="Image", **wide),
            "path": w.Text(placeholder="path of a file, then Enter", description="File",
                           continuous_update=False, **wide),
            "upload": w.FileUpload(description="Upload an image", **wide),
            "threshold": w.IntSlider(choice.threshold, 1, 80, description="Threshold", **wide),
            "closing": w.IntSlider(choice.closing, 0, 61, description="Closing, px", **wide),
            "method": w.Dropdown(options=list(cam.METHODS), value=choice.method, description="Map", **wide),
            "layer": w.Dropdown(options=layers, value=choice.layer, description="Layer", **wide),
            "explain": w.Dropdown(options=types, value=choice.explain, description="Explain", **wide),
            "gain": w.FloatSlider(choice.gain, min=0.4, max=2.5, step=0.05, description="Gain, factor", **wide),
            "cover": w.Checkbox(choice.cover, description="Cover the nodule", **wide),
            "reset": w.Button(description="Reset", tooltip="Recipe of training, nothing changed", **wide),
        }  # fmt: skip
        self.picture, self.words = w.HTML(), w.HTML()
        for name in ("image", "path", "upload"):
            self.controls[name].observe(self._open, "value")
        for name in asdict(choice):
            self.controls[name].observe(self._update, "value")
        self.controls["reset"].on_click(self._reset)
        left = w.VBox(list(self.controls.values()))
        right = w.VBox([self.words, self.picture], layout=w.Layout(flex="1 1 30rem", min_width="0"))
        self.box = w.HBox([left, right], layout=w.Layout(flex_flow="row wrap", align_items="flex-start"))
        self._update()

    def _open(self, change) -> None:
        if not (source := change["new"]):
            return
        if not isinstance(source, str):
            source = source[0]["name"], source[0]["content"]
        for name, empty in (("image", None), ("path", "")):
            if self.controls[name] is not change["owner"]:
                self.controls[name].value = empty  # so that choosing the same again counts as a choice
        try:
            self.explorer.open(source)
        except (frames.FrameError, OSError) as error:
            self._show(f"<b>This image cannot be used:</b> {html.escape(printable(error))}")
            return
        self._update()

    def _reset(self, _) -> None:
        self._held = True  # one update for all controls, not one each
        for name, value in asdict(self.explorer.choice()).items():
            self.controls[name].value = value
        self._held = False
        self._update()

    def _update(self, _=None) -> None:
        if self._held or self.explorer.frame is None:
            return
        values = {name: self.controls[name].value for name in Choice.__dataclass_fields__}
        try:
            self.view = self.explorer.look(Choice(**values))
        except frames.FrameError as error:
            self.view = None
            self._show(f"<b>Nothing to classify:</b> {html.escape(printable(error))}")
            return
        names = self.explorer.classifier.names
        figure = steps_to_answer(self.view, names)
        data = print_figure(figure, dpi=110, bbox_inches=None, base64=True)
        plt.close(figure)
        alt = html.escape(printable(figure.alt))
        picture = f'<img style="max-width:100%" alt="{alt}" src="data:image/png;base64,{data}">'
        self._show(self.view.words("panel.html.j2", names=names), picture)

    def _show(self, text: str, picture: str = "") -> None:
        self.words.value = f'<div role="status" aria-live="polite">{text}</div>'
        self.picture.value = picture
