"""One image, every step: what notebook 07 computes.

`Explorer.look` maps a `Choice` to a `View` without any widget; `panel` puts controls around it.
"""

import html
from dataclasses import dataclass, field, replace

import numpy as np

from thyroid_lib import frames, regions
from thyroid_lib.classifier import Classification, Classifier, prepare
from thyroid_lib.common.messages import printable

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


@dataclass(frozen=True)
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
    frame: np.ndarray = field(repr=False)
    binary: np.ndarray = field(repr=False)
    found: list = field(repr=False)
    mask: np.ndarray | None = field(repr=False)
    answer: Classification
    heat: np.ndarray = field(repr=False)
    low: float
    high: float
    changed: np.ndarray = field(repr=False)
    after: dict[str, float]
    choice: Choice


class Explorer:
    """A classifier, an image, and the manifest that images are chosen from.

    Args:
        classifier: with PyTorch at hand, for the maps.
        manifest: rows with `path`, `image`, `label`; or None, where images are uploaded or named.
    """

    def __init__(self, classifier: Classifier, manifest=None):
        self.classifier = classifier
        self.manifest = manifest
        self.members = classifier.members()
        self.name, self.truth, self.frame, self.mask = "", "", None, None

    @property
    def images(self) -> list[str]:
        """Names of the manifest's images, at most 200."""
        return [] if self.manifest is None else list(self.manifest["image"].iloc[:LISTED])

    @property
    def start(self) -> Choice:
        """The recipe of training, and nothing changed."""
        recipe = self.classifier.recipe
        return Choice(recipe.threshold, recipe.closing)

    def open(self, source) -> None:
        """Takes another image.

        Args:
            source: name of an image of the manifest, path of a file, or (name, bytes) of an uploaded one.

        Raises:
            frames.FrameError: it is no usable frame; the image before stays.
        """
        from thyroid_lib import datasets

        name, truth, mask = str(source), "", None
        if isinstance(source, tuple):
            name, content = source
            frame = frames.read(bytes(content)).gray
        elif self.manifest is not None and source in set(self.manifest["image"]):
            row = self.manifest[self.manifest["image"] == source].iloc[0]
            frame, truth = datasets.load_frame(row), row["label"]
            mask = datasets.load_mask(row, frame.shape)
        else:
            frame = datasets.load_frame(source)
        self.name, self.truth, self.frame, self.mask = name, truth, frame, mask

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
        heat, low, high = self._map(answer.crop, choice)
        changed = self._change(answer, recipe, choice)
        after = self.classifier.probabilities(changed[None])[0]
        return View(
            name=self.name,
            truth=self.truth,
            frame=self.frame,
            binary=regions.binarize(self.frame, recipe),
            found=regions.connected_regions(self.frame, recipe),
            mask=self.mask,
            answer=answer,
            heat=heat,
            low=low,
            high=high,
            changed=changed,
            after=dict(zip(self.classifier.classes, map(float, after))),
            choice=choice,
        )

    def gains(self, crop: np.ndarray, factors) -> np.ndarray:
        """Probabilities of a crop, uint8 (S, S), at each gain factor: float64 (n, C)."""
        from thyroid_lib.explanation import robustness

        changed = [robustness.change(crop[None], "gain", factor)[0] for factor in factors]
        return self.classifier.probabilities(np.stack(changed))

    def maps(self, crop: np.ndarray, explain: str, methods, layer: str) -> dict[str, tuple]:
        """Maps of one crop by each method: method -> (heat (S, S), low, high)."""
        base = self.start
        return {m: self._map(crop, replace(base, method=m, layer=layer, explain=explain)) for m in methods}

    def _map(self, crop, choice: Choice) -> tuple[np.ndarray, float, float]:
        from thyroid_lib.explanation import cam as explanation

        target = np.array([self.classifier.classes.index(choice.explain)])
        cams = [
            explanation.cam(member, crop[None], target, method=choice.method, layer=choice.layer)
            for member in self.members
        ]
        heat = np.mean([cam.maps[0] for cam in cams], 0)
        return heat, float(min(cam.low[0] for cam in cams)), float(max(cam.high[0] for cam in cams))

    def _change(self, answer: Classification, recipe, choice: Choice) -> np.ndarray:
        from thyroid_lib.explanation import robustness, shortcuts

        changed = robustness.change(answer.crop[None], "gain", choice.gain)
        if choice.cover and self.mask is not None:
            x, y, width, height = answer.box
            mask = regions.letterbox(self.mask[y : y + height, x : x + width], answer.crop.shape[0])
            changed = shortcuts.nodule_hidden(changed, mask[None])
        return changed[0]


def first_with_mask(manifest) -> str:
    """Name of the first image whose nodule is outlined, or of the first image."""
    if "mask" in manifest and (outlined := manifest["mask"].fillna("").astype(str) != "").any():
        return manifest["image"][outlined].iloc[0]
    return manifest["image"].iloc[0]


def choose(explorer: Explorer, threshold: int = 0, closing: int = -1, **others) -> Choice:
    """A `Choice`; 0 for the threshold and -1 for the closing stand for those of training."""
    start = explorer.start
    threshold = threshold or start.threshold
    closing = start.closing if closing < 0 else closing
    return replace(start, threshold=threshold, closing=closing, **others)


def check_layer(explorer: Explorer, layer: str) -> None:
    """Raises ValueError with what there is, unless the classifier has a module of that path."""
    from thyroid_lib.explanation import cam as explanation

    explanation.find(explorer.members[0], layer)


def differing_pixels(explorer: Explorer, crops) -> int:
    """Pixels in which the open image's crop differs from the one that the run trained or tested on.

    Args:
        explorer: with an image of the run's data open.
        crops: the run's `crops.Crops`.

    Returns:
        0 where classification takes the path of training byte for byte; -1 where the image is none of the run's.
    """
    rows = np.flatnonzero(crops.index["image"].to_numpy() == explorer.name)
    if not len(rows) or explorer.frame is None:
        return -1
    classifier = explorer.classifier
    crop = prepare(explorer.frame, classifier.size, classifier.recipe)[2]
    return int((crop != crops.images[rows[0]]).sum())


def answer_table(view: View, classifier: Classifier):
    """DataFrame with a row per class: names, probabilities of crop and changed crop, and the two verdicts."""
    import pandas as pd

    points = classifier.definition["operating_points"]
    rows = [
        {
            "lesion type": classifier.names[key][0],
            "类型": classifier.names[key][1],
            "probability": probability,
            "after the change": view.after[key],
            "prediction set": "not excluded" if key in view.answer.prediction_set else "excluded",
            "operating point": f"{'positive' if view.answer.positive[key] else 'negative'} at {points[key]:.2f}"
            if key in points
            else "none",
        }
        for key, probability in view.answer.probabilities.items()
    ]
    return pd.DataFrame(rows)


def changes(view: View) -> str:
    """What was done to the crop, in words."""
    choice = view.choice
    done = [f"gain × {choice.gain:g}"] if choice.gain != 1 else []
    if choice.cover:
        done.append("nodule covered" if view.mask is not None else "no nodule mask, so nothing was covered")
    return " and ".join(done) or "nothing changed"


def summary(view: View) -> dict:
    """The view's numbers for `metrics.json`."""
    return {
        "image": view.name,
        "lesion_type": view.answer.lesion_type,
        "reference_standard": view.truth,
        "box": " ".join(map(str, view.answer.box)),
        "regions": len(view.found),
        "probabilities": view.answer.probabilities,
        "after_change": view.after,
        "map_low": view.low,
        "map_high": view.high,
        "warnings": len(view.answer.warnings),
    }


def findings(view: View, names: dict[str, tuple[str, str]], differing: int = -1) -> str:
    """What this view shows, in Markdown, from its numbers; `differing` as `differing_pixels` gives it."""
    answer, choice = view.answer, view.choice
    names = {key: tuple(html.escape(name) for name in pair) for key, pair in names.items()}
    english, chinese = names[answer.lesion_type]
    largest = max(view.answer.probabilities, key=lambda key: abs(view.after[key] - answer.probabilities[key]))
    before, after = answer.probabilities[largest], view.after[largest]
    lines = [
        f"The frame `{printable(view.name).replace(chr(96), chr(39))}` has {len(view.found)} connected "
        f"{'region' if len(view.found) == 1 else 'regions'}; the largest box is {answer.box[2]} × {answer.box[3]} px.",
        f"The classifier names **{english}** ({chinese}), {answer.probabilities[answer.lesion_type]:.2f}"
        + (f"; the reference standard says **{names[view.truth][0]}**." if view.truth in names else "."),
        f"The {choice.method} map at `{choice.layer}` for {names[choice.explain][0]} has the raw range "
        f"{view.low:.3g} to {view.high:.3g}" + (": nothing speaks for this type." if view.high <= 0 else "."),
        f"Change to the crop: {changes(view)}. The probability that moves most is that of {names[largest][0]}, "
        f"{before:.2f} to {after:.2f}.",
    ]
    if differing >= 0:
        lines.append(f"The classifier's crop differs from the one of the run's data in {differing} pixels.")
    lines += [f"Warning: {html.escape(printable(warning))}." for warning in answer.warnings]
    return "\n".join(f"- {line}" for line in lines)


def _verdict(view: View) -> str:
    if view.high <= 0:
        return ": nothing speaks for this type."
    if view.high - view.low < 0.02 * view.high:
        return ": flat, it singles out no place."
    return "."
