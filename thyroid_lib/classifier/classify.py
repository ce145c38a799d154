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
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path

import numpy as np

from thyroid_lib import frames
from thyroid_lib.classifier import backends, novelty, studies
from thyroid_lib.classifier.definition import NOVELTY, ClassifierError, read, verify

SMALL = 0.08  # of the frame: a region that covers less is hardly the ultrasound sector


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
        return {name: value for name, value in vars(self).items() if name not in ("frame", "crop", "map")}

    def without_pixels(self) -> "Classification":
        """The same without `frame`, `crop` and `map`, to be kept by the thousand."""
        return replace(self, frame=None, crop=None, map=None)


class Classifier:
    """A loaded classifier folder; `Classifier.load(folder).classify(image)`.

    Attributes:
        folder: where it lies.
        definition: its classifier.json.
        run: what runs its network; see `backends.open_backend`.
        id: name of the architecture, and first digits of the hash over weights and definition.
        names: class key -> (English, Chinese), in the order of the network's outputs.
        classes: the keys.
        size: side of the network's input, px.
        recipe: `regions.Recipe` of training.
    """

    def __init__(self, folder: Path, definition: dict, run: backends.Run, novelty_models: dict):
        from thyroid_lib import regions

        self.folder, self.definition, self.run = folder, definition, run
        self.id, self.size = definition["id"], definition["size"]
        self.names = {entry["key"]: (entry["english"], entry["chinese"]) for entry in definition["classes"]}
        self.classes = list(self.names)
        self.recipe = regions.Recipe(**definition["recipe"])
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
            ClassifierError: the folder is no classifier, damaged, or of an unknown version; or the back-end cannot
                run it.
        """
        folder = Path(folder)
        definition = read(folder)
        try:
            models = novelty.read(verify(folder / NOVELTY, definition["files"][NOVELTY]))
            run = backends.open_backend(folder, definition, backend, precision, threads)
            return cls(folder, definition, run, models)
        except ClassifierError:
            raise
        except Exception as error:  # whatever a forged part trips over, the folder is no classifier
            why = f"({type(error).__name__}: {' '.join(str(error).split())[:300]})"
            what = f"{folder}: its parts do not make a classifier {why}"
            raise ClassifierError(f"{what}; copy it again, or use the release that wrote it") from error

    def members(self) -> list:
        """The members as PyTorch networks, unchanged, in eval mode: for Grad-CAM and for study."""
        from thyroid_lib.classifier import networks

        return list(networks.load_members(self.folder, self.definition))

    def probabilities(self, crops: np.ndarray) -> np.ndarray:
        """Calibrated probabilities of crops, uint8 (N, S, S) -> float64 (N, C); rows sum to 1."""
        return backends.predict(self.run, crops, self.definition["temperature"])

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

    def classify_many(self, images: Iterable, *, batch_size: int = 16, recipe=None) -> Iterator:
        """Classifies frames in batches, in order; a bad one gives its FrameError instead and stops nothing.

        Args:
            images: as `classify` takes them; read as the batches go, so a generator stays small.
            batch_size: frames per forward pass.
            recipe: as in `classify`.
        """

        def attempt(image):
            try:
                return prepare(image, self.size, recipe or self.recipe)
            except frames.FrameError as error:
                return error
            except Exception as error:  # one bad file never stops the rest
                reason = f"could not be processed: {type(error).__name__}: {error}"
                return frames.FrameError(reason, "unexpected")

        images = iter(images)
        while batch := list(islice(images, batch_size)):
            with ThreadPoolExecutor(min(8, len(batch), os.cpu_count() or 1)) as pool:
                prepared = list(pool.map(attempt, batch))
            answers = self._answers([found for found in prepared if not isinstance(found, Exception)])
            yield from (found if isinstance(found, Exception) else next(answers) for found in prepared)

    def _answers(self, prepared: list[tuple]) -> Iterator[Classification | frames.FrameError]:
        """The answer to each frame that `prepare` gave, from one forward pass."""
        crops = np.stack([crop for _, _, crop, _ in prepared])
        outputs = self.run(crops)
        probabilities = backends.probabilities(outputs.logits, self.definition["temperature"])
        try:
            ratios = novelty.ratios(self._novelty, novelty.describe(crops, outputs.features))
        except (KeyError, IndexError, ValueError) as error:
            raise ClassifierError(
                f"{self.folder / NOVELTY} does not fit this network; copy it again"
            ) from error
        for i, (name, frame, crop, region) in enumerate(prepared):
            if not np.isfinite(probabilities[i]).all():
                yield frames.FrameError("the network's answer is no number", "not_finite")
                continue
            unlike = {key: float(values[i]) for key, values in ratios.items()}
            warnings = [*frame.warnings, *_warnings(frame, region, unlike)]
            about = {"image": name, "box": tuple(region.box), "warnings": warnings, "novelty": unlike}
            pixels = {"frame": frame.gray, "crop": crop, "map": outputs.maps[i, probabilities[i].argmax()]}
            yield self.answer(probabilities[i], **about, **pixels)

    def answer(self, probabilities: np.ndarray, **others) -> Classification:
        """A `Classification` with these probabilities, float (C,), what follows from them, and the others."""
        found = dict(zip(self.classes, map(float, probabilities)))
        best, least = max(found, key=found.get), 1 - self.definition["conformal"]["threshold"]
        return Classification(
            lesion_type=best,
            probabilities=found,
            prediction_set=[key for key, p in found.items() if p >= least or key == best],
            positive={key: found[key] >= at for key, at in self.definition["operating_points"].items()},
            classifier=self.id,
            **others,
        )


def prepare(image, size: int, recipe) -> tuple:
    """From any image to the network's input, as the study's crops: `frames.read`, `regions.extract`.

    Args:
        image: as `Classifier.classify` takes it, or the FrameError that was met on the way to it.
        size: side of the crop, px.
        recipe: `regions.Recipe`.

    Returns:
        name, `frames.Frame`, crop uint8 (size, size), `regions.Region`.

    Raises:
        frames.FrameError: the image cannot be read or has no region.
    """
    from thyroid_lib import regions

    if isinstance(image, frames.FrameError):
        raise image
    frame = studies.dicom_frame(image) if studies.is_dicom(image) else frames.read(image)
    try:
        crop, region = regions.extract(frame.gray, size, recipe)
    except regions.NoRegion as error:
        raise frames.FrameError(f"no region: {error}", "no_region") from error
    return os.fspath(image) if isinstance(image, str | os.PathLike) else "", frame, crop, region


def _warnings(frame: frames.Frame, region, ratios: dict[str, float]) -> list[str]:
    found, share = [], region.area / frame.gray.size
    if share < SMALL:
        found.append(f"the region used covers only {share:.1%} of the frame: is it the ultrasound sector?")
    if region.inverted:
        found.append("dark on bright: the frame was inverted before it was read")
    if over := [f"{key} {ratio:.2f} times" for key, ratio in ratios.items() if not ratio <= 1]:
        far = f"unlike the training images ({', '.join(over)} the limit fixed on validation)"
        found.append(f"{far}: its probabilities may not hold here")
    return found
