"""What the tests of this room share: tested images made of arrays."""

import numpy as np
import pandas as pd
import pytest

from thyroid_lib.data.crops import Crops
from thyroid_lib.explanation.tested import Tested


@pytest.fixture(scope="session")
def looked():
    """Makes `Tested` from images, labels and patients; every image is tested by `model` unless folds say otherwise."""

    def make(images, labels, patients, model=None, *, masks=None, frames=None, folds=None, fold=0, stated=None,
             temperature=1.0, text=""):  # fmt: skip
        keys, folds = np.arange(labels.max() + 1).astype(str), fold + 0 * labels if folds is None else folds
        index = pd.DataFrame({"patient": patients, "fold": folds, "label": labels.astype(str), "text": text})
        crops = Crops("folder", index, images, images if frames is None else frames, masks, [*keys], {}, False,
                      "", None, "")  # fmt: skip
        rows = np.flatnonzero(folds == fold)
        stated = np.eye(len(keys))[labels[rows]] if stated is None else stated
        table = pd.DataFrame(stated, columns=["p_" + key for key in keys])
        table = table.assign(predicted=keys[stated.argmax(1)], truth=keys[labels[rows]], fold=fold)
        table = table.assign(patient=np.asarray(patients)[rows])
        return Tested(crops, rows, table, {fold: model}, {fold: temperature})

    return make
