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
             temperature=1.0, text=None):  # fmt: skip
        count = labels.max() + 1
        folds = np.full(len(labels), fold) if folds is None else folds
        keys = np.arange(count).astype(str)
        index = pd.DataFrame({"patient": patients, "fold": folds, "label": labels.astype(str)})
        index = index if text is None else index.assign(text=text)
        crops = Crops("folder", index, images, images if frames is None else frames, masks, [*keys], {}, False,
                      "", None, "")  # fmt: skip
        rows = np.flatnonzero(folds == fold)
        stated = np.eye(count)[labels[rows]] if stated is None else stated
        table = pd.DataFrame(stated, columns=["p_" + key for key in keys])
        table = table.assign(
            patient=np.asarray(patients)[rows],
            fold=fold,
            truth=keys[labels[rows]],
            predicted=keys[stated.argmax(1)],
        )
        return Tested(crops, rows, table, {fold: model}, {fold: temperature})

    return make
