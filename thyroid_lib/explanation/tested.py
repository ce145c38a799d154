"""The tested crops, each with the network that has not seen its patient.

Explanations and audits look at images again; they must look at the images that were tested, through the
member of the classifier that was fitted without that image's fold.
"""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.special import softmax
from torch import nn

from thyroid_lib.common.messages import quoted
from thyroid_lib.explanation import cam as explanation
from thyroid_lib.training import hardware


@dataclass(frozen=True)
class Tested:
    """Internal-testing images and the members that tested them.

    Attributes:
        crops: the ``crops.Crops`` of the clinic's data.
        rows: int (n,), rows of ``crops``, in the order of ``table``.
        table: the n rows of predictions, with a column "predicted".
        members: fold -> network.
        temperature: fold -> temperature.
        precision: "32" or "bf16", of probabilities and features; maps are always float32.
    """

    crops: object
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
    def labels(self) -> np.ndarray:
        """int64 (n,), the reference standard."""
        return np.asarray(self.crops.labels[self.rows])

    @property
    def patients(self) -> np.ndarray:
        """str (n,)."""
        return self.table["patient"].to_numpy().astype(str)

    @property
    def predicted(self) -> np.ndarray:
        """int64 (n,), the predicted class."""
        return (
            self.table["predicted"]
            .map({key: k for k, key in enumerate(self.crops.classes)})
            .to_numpy(np.int64)
        )

    @property
    def stated(self) -> np.ndarray:
        """float64 (n, C), the calibrated probabilities in predictions.csv."""
        return self.table[["p_" + key for key in self.crops.classes]].to_numpy(np.float64)

    def probabilities(self, images: np.ndarray) -> np.ndarray:
        """Calibrated probabilities of (changed) tested images, each by its own fold's member.

        Args:
            images: uint8 (n, S, S), in the order of ``table``.

        Returns:
            float64 (n, C).
        """
        from thyroid_lib.training import loop

        result = np.zeros((len(images), len(self.crops.classes)))
        for fold, chosen in self.folds():
            logits = loop.predict(self.members[fold], np.asarray(images)[chosen], precision=self.precision)
            result[chosen] = softmax(logits.astype(np.float64) / self.temperature[fold], axis=1)
        return result

    def cam(
        self, images: np.ndarray | None = None, targets: np.ndarray | None = None, **options
    ) -> explanation.Cams:
        """Maps of the tested images for their predicted class, each by its own fold's member.

        Args:
            images: uint8 (n, S, S) in place of the crops;  targets: int (n,) in place of the prediction.
            options: method, layer and batch_size of ``explanation.cam``.

        Returns:
            ``explanation.Cams`` of n images.
        """
        images = self.images if images is None else images
        targets = self.predicted if targets is None else np.asarray(targets)
        maps, low, high = np.zeros(images.shape, np.float32), *np.zeros((2, len(images)), np.float32)
        cams = None
        for fold, chosen in self.folds():
            cams = explanation.cam(self.members[fold], images[chosen], targets[chosen], **options)
            maps[chosen], low[chosen], high[chosen] = cams.maps, cams.low, cams.high
        return explanation.Cams(maps, low, high, targets, cams.method, cams.layer)

    def folds(self):
        """Yields (fold, bool (n,) rows of it), for every fold that was tested."""
        values = self.table["fold"].to_numpy()
        for fold in sorted(self.members):
            if (values == fold).any():
                yield fold, values == fold

    def only(self, fold: int, most: int | None = None) -> "Tested":
        """The part that one fold tested, whole patients in order up to ``most`` images.

        Args:
            fold: which.
            most: largest number of images; None for all.
        """
        chosen = np.flatnonzero(self.table["fold"].to_numpy() == fold)
        if most is not None and len(chosen) > most:
            step = len(chosen) / most  # spread over the whole fold, not its first patients
            chosen = chosen[(np.arange(most) * step).astype(int)]
        table = self.table.iloc[chosen].reset_index(drop=True)
        return replace(self, rows=self.rows[chosen], table=table, members={fold: self.members[fold]})

    def of(self, fold: int, model: nn.Module) -> "Tested":
        """The same images, looked at by another network.

        Args:
            fold: the only fold of these images;  model: the network.
        """
        return replace(self, members={fold: model})

    def training_rows(self, fold: int) -> np.ndarray:
        """Labelled rows of ``crops`` outside a fold: what its member was fitted and tuned on, int (m,)."""
        return np.flatnonzero((self.crops.index["fold"].to_numpy() != fold) & (self.crops.labels >= 0))


def open_tested(crops, classifier, predictions: pd.DataFrame, precision: str = "32") -> Tested:
    """Matches predictions with crops and with the classifier's members.

    Args:
        crops: the clinic's ``crops.Crops``.
        classifier: ``classifier.Classifier``; its members are those of the tested folds, in order.
        predictions: internal rows of the classifier's model.
        precision: "32", "bf16", or "auto": whichever ``hardware.choose_precision`` finds faster here.

    Returns:
        :class:`Tested`; its table is in the order of ``crops``.

    Raises:
        ValueError: predictions and crops are of different data, or members and folds do not fit.
    """
    place = {image: row for row, image in enumerate(crops.index["image"].astype(str))}
    if strangers := [image for image in predictions["image"] if image not in place]:
        raise ValueError(
            f"open_tested: expected predictions of the images in {Path(crops.folder).name}, got "
            f"{quoted(strangers[0])} and {len(strangers) - 1} others that it has not; run notebooks 01 "
            "and 04 into the same run"
        )
    table = predictions.assign(row=predictions["image"].map(place)).sort_values("row", ignore_index=True)
    folds = sorted({int(fold) for fold in table["fold"]})
    folds = [int(fold) for fold in classifier.definition["training"].get("folds", folds)]
    members = classifier.members()
    if len(members) != len(folds):
        raise ValueError(
            f"open_tested: expected one member of the classifier per tested fold {folds}, got {len(members)} members; "
            "run notebook 04 again"
        )
    keys = np.array(crops.classes)
    table["predicted"] = keys[table[["p_" + key for key in crops.classes]].to_numpy().argmax(axis=1)]
    temperatures = classifier.definition["temperature"]
    device = next(members[0].parameters()).device
    chosen, _ = hardware.choose_precision(precision, device, members[0], classifier.size)
    return Tested(
        crops,
        table.pop("row").to_numpy(),
        table,
        dict(zip(folds, members)),
        {fold: float(t) for fold, t in zip(folds, temperatures)},
        "bf16" if chosen.startswith("bf16") else "32",
    )
