"""The tested crops, each with the network that has not seen its patient, and the intervals of what they show.

Explanations and audits look at images again; they must look at the images that were tested, through the
member of the classifier that was fitted without that image's fold.
"""

from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.special import softmax
from torch import nn

from thyroid_lib import network
from thyroid_lib.common.messages import english, quoted
from thyroid_lib.data.crops import Crops
from thyroid_lib.evaluation import bootstrap
from thyroid_lib.evaluation.bootstrap import MINIMUM_PATIENTS
from thyroid_lib.explanation import cam
from thyroid_lib.training import hardware, loop


@dataclass(frozen=True)
class Tested:
    """Internal-testing images and the members that tested them.

    Attributes:
        crops: the clinic's data.
        rows: int (n,), rows of ``crops``, in the order of ``table``.
        table: the n rows of predictions, with a column "predicted".
        members: fold -> network.
        temperature: fold -> temperature.
        precision: "32" or "bf16", of probabilities and features; maps are always float32.
    """

    crops: Crops
    rows: np.ndarray
    table: pd.DataFrame
    members: dict[int, nn.Module]
    temperature: dict[int, float]
    precision: str = "32"

    @property
    def images(self) -> np.ndarray:
        """uint8 (n, S, S)."""
        return np.asarray(self.crops.images[self.rows])

    @property
    def masks(self) -> np.ndarray | None:
        """uint8 (n, S, S), or None where the set has no masks."""
        return None if self.crops.masks is None else np.asarray(self.crops.masks[self.rows])

    @property
    def masked(self) -> np.ndarray:
        """bool (n,), which images have a nodule in their mask."""
        return self.masks.any(axis=(1, 2))

    @property
    def labels(self) -> np.ndarray:
        """int64 (n,), the reference standard."""
        return self.crops.labels[self.rows]

    @property
    def patients(self) -> np.ndarray:
        """str (n,)."""
        return self.table["patient"].to_numpy().astype(str)

    @property
    def predicted(self) -> np.ndarray:
        """int64 (n,), the predicted class."""
        return pd.Index(self.crops.classes).get_indexer(self.table["predicted"])

    @property
    def stated(self) -> np.ndarray:
        """float64 (n, C), the calibrated probabilities in predictions.csv."""
        return self.table[["p_" + key for key in self.crops.classes]].to_numpy(np.float64)

    @property
    def fold(self) -> int:
        """The first tested fold; ``model`` is its network."""
        return next(iter(self.members))

    @property
    def model(self) -> nn.Module:
        return self.members[self.fold]

    def part(self, positions: np.ndarray) -> "Tested":
        """Some of the images, int (k,) positions in ``table``."""
        table = self.table.iloc[positions].reset_index(drop=True)
        return replace(self, rows=self.rows[positions], table=table)

    def first(self, most: int | None = None) -> "Tested":
        """What the first fold tested, or ``most`` images of it, spread over the fold."""
        chosen = np.flatnonzero(self.table["fold"] == self.fold)
        return replace(self.part(spread(chosen, most or len(chosen))), members={self.fold: self.model})

    def of(self, model: nn.Module) -> "Tested":
        """These images of one fold, looked at by another network."""
        return replace(self, members={self.fold: model})

    def worst(self, count: int) -> np.ndarray:
        """Positions of the most confident errors, int (at most ``count``,), the most confident first."""
        wrong = np.flatnonzero(self.table["predicted"] != self.table["truth"])
        return wrong[np.argsort(-self.stated[wrong].max(axis=1), kind="stable")][:count]

    def probabilities(self, images: np.ndarray) -> np.ndarray:
        """Calibrated probabilities, float64 (n, C), of changed images, uint8 (n, S, S) in the order of ``table``."""
        result = np.zeros((len(images), len(self.crops.classes)))
        for fold, chosen in self._folds():
            logits = loop.predict(self.members[fold], images[chosen], precision=self.precision)
            result[chosen] = softmax(logits.astype(np.float64) / self.temperature[fold], axis=1)
        return result

    def cam(self, method: str = "gradcam", layer: str = "exit_flow") -> cam.Cams:
        """Maps of the images for their predicted class, each by its own fold's member; arguments of ``cam.cam``."""
        images, targets = self.images, self.predicted
        maps, low, high = np.zeros(images.shape, np.float32), *np.zeros((2, len(images)), np.float32)
        for fold, chosen in self._folds():
            found = cam.cam(self.members[fold], images[chosen], targets[chosen], method=method, layer=layer)
            maps[chosen], low[chosen], high[chosen] = found.maps, found.low, found.high
        return cam.Cams(maps, low, high, targets, method, layer)

    def _folds(self):
        """Pairs of a fold and where its images stand, bool (n,), for every fold that was tested."""
        folds = self.table["fold"].to_numpy()
        return [(fold, folds == fold) for fold in sorted(self.members) if (folds == fold).any()]


def open_tested(crops: Crops, classifier, predictions: pd.DataFrame, precision: str = "32") -> Tested:
    """Matches predictions with crops and with the classifier's members.

    Args:
        crops: the clinic's.
        classifier: ``classifier.Classifier``; its members are those of the tested folds, in order.
        predictions: internal rows of the classifier's model.
        precision: "32", "bf16", or "auto": whichever ``hardware.choose_precision`` finds faster here.

    Returns:
        :class:`Tested`; its table is in the order of ``crops``.

    Raises:
        ValueError: predictions and crops are of different data, or members and folds do not fit.
    """
    places = pd.Index(crops.index["image"].astype(str)).get_indexer(predictions["image"])
    if len(strangers := predictions["image"][places < 0]):
        raise ValueError(
            f"open_tested: expected predictions of the images in {Path(crops.folder).name}, got "
            f"{quoted(strangers.iloc[0])} and {len(strangers) - 1} others that it has not; run notebooks 01 "
            "and 04 into the same run"
        )
    table = predictions.assign(row=places).sort_values("row", ignore_index=True)
    folds, rows = classifier.definition["training"]["folds"], table.pop("row").to_numpy()
    members, temperatures = classifier.members(), classifier.definition["temperature"]
    if len(members) != len(folds):
        raise ValueError(
            f"open_tested: expected one member of the classifier per tested fold {folds}, got {len(members)} members; "
            "run notebook 04 again"
        )
    found = Tested(crops, rows, table, dict(zip(folds, members)), dict(zip(folds, temperatures)))
    table["predicted"] = np.array(crops.classes)[found.stated.argmax(axis=1)]
    device = next(found.model.parameters()).device
    chosen, _ = hardware.choose_precision(precision, device, found.model, classifier.size)
    return replace(found, precision="bf16" if chosen.startswith("bf16") else "32")


def gallery(tested: Tested, count: int, names: dict, method: str, layer: str):
    """Some tested crops with every method at one layer, and one method at every stage.

    Args:
        tested: the tested images.
        count: crops.
        names: class key -> (English, Chinese).
        method, layer: the ones that are checked.

    Returns:
        (part of ``tested``, heading -> ``Cams``, titles).
    """
    part = tested.first(count)
    shown = [(name, layer) for name in cam.METHODS]
    shown += [(method, stage) for stage in network.STAGES if stage != layer]
    said = part.table[["truth", "predicted"]].map(lambda key: english(names, key))
    titles = [f"{truth},\nread as\n{read}" for truth, read in said.to_numpy()]
    return part, {f"{name}\n{place}": part.cam(name, place) for name, place in shown}, titles


def spread(values: np.ndarray, most: int) -> np.ndarray:
    """At most ``most`` of the values, evenly spread over them."""
    return values if len(values) <= most else values[np.arange(most) * len(values) // most]


class Sample:
    """Images of some patients, and the draws that every interval of theirs comes from: differences are paired.

    Args:
        patients: n identifiers.
        labels: int (n,), and classes: those whose AUROC is averaged; neither where only means are asked for.
        draws, seed, minimum: of the bootstrap over patients.
    """

    def __init__(self, patients, labels=None, classes=(), *, draws=2000, seed=0, minimum=MINIMUM_PATIENTS):
        self.labels, self.classes, self.clusters = labels, classes, bootstrap.Clusters(patients, draws, seed)
        self.about = {"n_images": len(patients), "n_patients": self.clusters.patients, "minimum": minimum}
        if labels is not None:
            is_class = labels[:, None] == np.array([*classes])
            self.about["effective"] = bootstrap.scarcer_sides(np.asarray(patients), is_class)

    def metric(self, values: np.ndarray, bounds: tuple[float, float] = bootstrap.UNBOUNDED) -> dict:
        """{"value", "low", "high", "n_images", "n_patients"[, "reason"]} of float (draws + 1,), the sample first."""
        return bootstrap.estimate(values, bounds=bounds, **self.about)

    def means(self, columns: dict) -> dict:
        """Name -> metric: the mean over images of each column, name -> float (n,)."""
        means = self.clusters.means(np.column_stack([*columns.values()]))
        return {name: self.metric(values) for name, values in zip(columns, means.T)}

    def macro_auroc(self, probabilities: np.ndarray) -> np.ndarray:
        """Mean one-against-rest AUROC of float (n, C) for the sample and every draw, NaN where a class is absent."""
        statistics = partial(bootstrap.rank_statistics, clusters=self.clusters)
        return np.mean([statistics(probabilities[:, k], self.labels == k)[0] for k in self.classes], axis=0)
