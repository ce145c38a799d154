"""The trained classifier: a small folder that another machine loads, and the way from frame to lesion type.

Claims C11-C14: receive a patient's grey-scale image, take its largest connected region, feed the network,
give the type. The folder, which `save` writes, holds

    model.safetensors      the weights of every member (fold), never a pickle
    classifier.json        what they mean: architecture, classes, recipe, calibration, training data, hashes
    novelty.safetensors    what tells a frame that is unlike the training data
    MODEL_CARD.md          the same for people
    model.onnx             after `export`: the network for OpenVINO and ONNX Runtime

Nothing heavy is imported before it is needed, so a command that ends early ends fast.
"""

import os
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from thyroid_lib import frames
from thyroid_lib.classifier import backends, novelty
from thyroid_lib.classifier import definition as definitions
from thyroid_lib.classifier.definition import ClassifierError
from thyroid_lib.classifier.saving import NOVELTY, add_metrics, conformal_threshold, save

__all__ = [
    "Classification",
    "Classifier",
    "ClassifierError",
    "add_metrics",
    "conformal_threshold",
    "prepare",
    "read_frame",
    "save",
]


@dataclass(frozen=True)
class Classification:
    """What the classifier says of one frame.

    Attributes:
        image: name of the image as given; "" for an array.
        lesion_type: key of the most probable class.
        probabilities: key -> calibrated probability, summing to 1.
        prediction_set: keys that cannot be excluded at the classifier's conformal coverage.
        positive: key -> whether its probability reaches the operating point fixed on validation.
        box: (x, y, width, height) of the region used, px of the frame.
        classifier: id of the classifier.
        warnings: what a reader should know before trusting it.
        novelty: description -> distance from the training data, as a multiple of its limit.
        frame: uint8 (H, W).
        crop: uint8 (S, S), the network's input.
        map: float32 (h, w), class activation map of `lesion_type`; positive where it speaks for it.
    """

    image: str
    lesion_type: str
    probabilities: dict[str, float]
    prediction_set: list[str]
    positive: dict[str, bool]
    box: tuple[int, int, int, int]
    classifier: str
    warnings: list[str] = field(default_factory=list)
    novelty: dict[str, float] = field(default_factory=dict)
    frame: np.ndarray = field(default=None, repr=False, compare=False)
    crop: np.ndarray = field(default=None, repr=False, compare=False)
    map: np.ndarray = field(default=None, repr=False, compare=False)

    def to_dict(self) -> dict:
        """Plain values, as `classify --json` prints them; pixels are left out."""
        names = ("image", "lesion_type", "probabilities", "prediction_set", "positive", "box", "classifier")
        found = {name: getattr(self, name) for name in (*names, "warnings", "novelty")}
        return {**found, "box": list(self.box)}


class Classifier:
    """A loaded classifier folder; `Classifier.load(folder).classify(image)`."""

    def __init__(self, folder: Path, definition: dict, backend, novelty_models: dict):
        self.folder = folder
        self.definition = definition
        self.backend = backend
        self._novelty = novelty_models

    @classmethod
    def load(cls, folder, *, backend: str = "auto", precision: str = "fp32", threads: int = 0):
        """Loads a classifier and verifies every file that it reads.

        Args:
            folder: what `save` wrote.
            backend: "torch", "onnxruntime", "openvino", or "auto": the fastest that is installed and
                exported.
            precision: "fp32", or "bf16" where the back-end has it.
            threads: CPU threads; 0 for the back-end's own choice.

        Raises:
            ClassifierError: the folder is no classifier, damaged, or of an unknown version.
            backends.BackendError: the back-end cannot run it.
        """
        folder = Path(folder)
        definition = definitions.read(folder)
        name = backends.choose(folder, backend)
        if name == "torch":
            definitions.verify(folder, definition, backends.WEIGHTS)
        if definition["novelty"]:
            definitions.verify(folder, definition, NOVELTY)
        try:
            models = _load_novelty(folder) if definition["novelty"] else {}
            network = backends.open_backend(name, folder, definition, precision, threads)
        except (ClassifierError, backends.BackendError):
            raise
        except Exception as error:  # whatever a forged part trips over, the folder is no classifier
            raise ClassifierError(
                f"{folder}: its parts do not make a classifier ({type(error).__name__}: {str(error)[:300]}); copy "
                "the folder again"
            ) from error
        loaded = cls(folder, definition, network, models)
        try:
            loaded.recipe  # noqa: B018  (raises where the definition names an unknown setting)
        except (TypeError, ValueError) as error:
            raise ClassifierError(
                f"{folder}: this release cannot cut regions as it says: {str(error)[:300]}"
            ) from error
        return loaded

    @property
    def id(self) -> str:
        """Name and first digits of the hash over weights and definition."""
        return self.definition["id"]

    @property
    def classes(self) -> list[str]:
        """Class keys, in the order of the network's outputs."""
        return [entry["key"] for entry in self.definition["classes"]]

    @property
    def names(self) -> dict[str, tuple[str, str]]:
        """Class key -> (English, Chinese)."""
        return {entry["key"]: (entry["english"], entry["chinese"]) for entry in self.definition["classes"]}

    @property
    def size(self) -> int:
        """Side of the network's input, px."""
        return self.definition["size"]

    @property
    def recipe(self):
        """The `regions.Recipe` of training."""
        from thyroid_lib import regions

        return regions.Recipe(**self.definition["recipe"])

    def members(self) -> list:
        """The members as PyTorch networks, unchanged, in eval mode: for Grad-CAM and for study."""
        definitions.verify(self.folder, self.definition, backends.WEIGHTS)
        return [member.requires_grad_(True) for member in backends.load_members(self.folder, self.definition)]

    def probabilities(self, crops: np.ndarray, batch_size: int = 16) -> np.ndarray:
        """Calibrated probabilities of crops, uint8 (N, S, S) -> float64 (N, C); rows sum to 1."""
        batches = range(0, len(crops), batch_size)
        logits = [self.backend.run(np.array(crops[start : start + batch_size])).logits for start in batches]
        return backends.probabilities(np.concatenate(logits, 1), self.definition["temperature"])

    def logits(self, crops: np.ndarray, batch_size: int = 16) -> np.ndarray:
        """Logarithm of `probabilities`: float64 (N, C) whose softmax is the calibrated probability."""
        return np.log(np.maximum(self.probabilities(crops, batch_size), 1e-300))

    def classify(self, image, *, recipe=None) -> Classification:
        """Classifies one frame.

        Args:
            image: path, uint8 or uint16 array (H, W) or uint8 (H, W, 3), Pillow image, `frames.Frame`, or
                pydicom dataset.
            recipe: another `regions.Recipe` than that of training, to explore with.

        Raises:
            frames.FrameError: why it is not a frame that can be classified.
        """
        (found,) = self.classify_many([image], recipe=recipe)
        if isinstance(found, Exception):
            raise found
        return found

    def classify_many(
        self, images: Iterable, *, batch_size: int = 16, recipe=None
    ) -> Iterator[Classification | frames.FrameError]:
        """Classifies frames in batches, in order; a bad one gives its error instead and stops nothing.

        Args:
            images: as `classify` takes them; read as the batches go, so a generator stays small.
            batch_size: frames per forward pass.
            recipe: as in `classify`.
        """
        recipe = recipe or self.recipe
        waiting = []
        for image in images:
            waiting.append(image)
            if len(waiting) == batch_size:
                yield from self._classify_batch(waiting, recipe)
                waiting = []
        if waiting:
            yield from self._classify_batch(waiting, recipe)

    def _classify_batch(self, images: list, recipe) -> list:
        prepared = _each(lambda image: prepare(image, self.size, recipe), images)
        good = [found for found in prepared if not isinstance(found, Exception)]
        results = iter(self._classify_crops(good)) if good else iter(())
        return [found if isinstance(found, Exception) else next(results) for found in prepared]

    def _classify_crops(self, prepared: list) -> list[Classification | frames.FrameError]:
        crops = np.stack([crop for _, _, crop, _ in prepared])
        outputs = self.backend.run(crops)
        probabilities = backends.probabilities(outputs.logits, self.definition["temperature"])
        ratios = self._distances(crops, outputs.features)
        results = []
        for i, (name, frame, crop, region) in enumerate(prepared):
            if not np.isfinite(probabilities[i]).all():
                results.append(frames.FrameError("the network's answer is no number", "not_finite"))
                continue
            found = {key: float(p) for key, p in zip(self.classes, probabilities[i])}
            best, positive, chosen = self.verdicts(found)
            unlike = {key: float(values[i]) for key, values in ratios.items()}
            results.append(
                Classification(
                    image=name,
                    lesion_type=best,
                    probabilities=found,
                    prediction_set=chosen,
                    positive=positive,
                    box=tuple(region.box),
                    classifier=self.id,
                    warnings=[*frame.warnings, *_region_warnings(frame, region), *_unlike(unlike)],
                    novelty=unlike,
                    frame=frame.gray,
                    crop=crop,
                    map=outputs.maps[i, self.classes.index(best)],
                )
            )
        return results

    def verdicts(self, probabilities: dict[str, float]) -> tuple[str, dict[str, bool], list[str]]:
        """Most probable key, which classes reach their operating point, and the prediction set."""
        best = max(probabilities, key=probabilities.get)
        conformal, points = self.definition["conformal"], self.definition["operating_points"]
        least = 1 - conformal["threshold"] if conformal else 2.0
        positive = {key: probabilities[key] >= point for key, point in points.items()}
        return best, positive, [key for key, p in probabilities.items() if p >= least or key == best]

    def _distances(self, crops, features) -> dict[str, np.ndarray]:
        vectors = {"network": features}
        if "appearance" in self._novelty:
            vectors["appearance"] = novelty.appearance(crops)
        try:
            return {
                key: novelty.distance(model, vectors[key]) / float(model["limit"][0])
                for key, model in self._novelty.items()
            }
        except (KeyError, IndexError, ValueError) as error:
            raise ClassifierError(
                f"{self.folder / NOVELTY} does not fit this network; copy it again"
            ) from error


def prepare(image, size: int, recipe) -> tuple:
    """From any image to the network's input, as the study's crops: `frames.read`, `regions.extract`.

    Returns:
        name, `frames.Frame`, crop uint8 (size, size), `regions.Region`.

    Raises:
        frames.FrameError: the image cannot be read or has no region.
    """
    from thyroid_lib import regions

    name = os.fspath(image) if isinstance(image, str | os.PathLike) else ""
    frame = read_frame(image)
    try:
        crop, region = regions.extract(frame.gray, size, recipe)
    except regions.NoRegion as error:
        raise frames.FrameError(f"no region: {error}", "no_region") from error
    return name, frame, crop, region


def read_frame(image) -> frames.Frame:
    """Decodes any image that `Classifier.classify` takes; DICOM goes through the study's own reader."""
    if isinstance(image, frames.FrameError):
        raise image
    pydicom = sys.modules.get("pydicom")
    if not (pydicom and isinstance(image, pydicom.Dataset)):
        try:
            return frames.read(image)
        except frames.FrameError as error:
            if error.kind != "dicom" or isinstance(image, bytes):
                raise
    from thyroid_lib.classifier import studies

    return studies.dicom_frame(image)


def _load_novelty(folder: Path) -> dict:
    from safetensors.numpy import load_file

    models = {}
    for key, value in load_file(folder / NOVELTY).items():
        model, _, name = key.partition(".")
        models.setdefault(model, {})[name] = value
    return models


def _each(function, items: list) -> list:
    """function(item), or a FrameError, for every item; several at once where there are several."""

    def attempt(item):
        if isinstance(item, frames.FrameError):
            return item
        try:
            return function(item)
        except frames.FrameError as error:
            return error
        except Exception as error:  # one bad file never stops the rest
            return frames.FrameError(f"could not be processed: {type(error).__name__}: {error}", "unexpected")

    if len(items) == 1:
        return [attempt(items[0])]
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        return list(pool.map(attempt, items))


def _region_warnings(frame: frames.Frame, region) -> list[str]:
    found, share = [], region.area / frame.gray.size
    if share < 0.08:
        found.append(f"the region used covers only {share:.1%} of the frame: is it the ultrasound sector?")
    if region.inverted:
        found.append("dark on bright: the frame was inverted before it was read")
    return found


def _unlike(ratios: dict[str, float]) -> list[str]:
    over = [f"{key} {ratio:.2f} times" for key, ratio in ratios.items() if not ratio <= 1]
    if not over:
        return []
    return [
        f"unlike the training images ({', '.join(over)} the limit fixed on validation): "
        "its probabilities may not hold here"
    ]
