"""Stanford thyroid ultrasound cine-clips: 192 nodules of 167 patients (Stanford AIMI, doi 10.71718/7m5n-rh16).

Layout: ``dataset.hdf5`` with ``image`` and ``mask`` (N, H, W), ``annot_id`` (bytes, "123_") and ``frame_num``;
``metadata.csv`` with ``annot_id, sex, age, location, size_x ..., ti-rads_*, histopath_diagnosis`` (0 benign, 1
malignant). The patient is what stands before "_" in ``annot_id``; one patient may have several nodules.
"""

import functools
from collections import Counter
from pathlib import Path
from typing import Annotated

import numpy as np
import pandas as pd

from thyroid_lib.common.files import natural
from thyroid_lib.datasets import contract

FILE, ABOUT = "dataset.hdf5", "metadata.csv"
_number = functools.partial(pd.to_numeric, errors="coerce")


def read(root: Path, *, every: Annotated[int, 1] = 1) -> pd.DataFrame:
    """Reads the cine-clips.

    Args:
        root: folder with ``dataset.hdf5`` and ``metadata.csv``.
        every: take every so-many-th frame of each clip; neighbouring frames are nearly the same.

    Returns:
        Manifest with one row per frame: `mask`, `nodule`, `frame_number`, `age`, `sex`, `location`, `size_*_cm`
        and `ti_rads_*`.

    Raises:
        DatasetError: a file or one of their fields is missing.
    """
    found = contract.Collection("stanford", root)
    found.need(FILE, ABOUT)
    about, clips = contract.texts(root / ABOUT), _open(str(root / FILE))
    lacking = [name for name in ("annot_id", "histopath_diagnosis") if name not in about]
    lacking += [name for name in ("image", "mask", "annot_id", "frame_num") if name not in clips]
    if lacking:
        raise found.unlike(f"{ABOUT} and {FILE} with all their fields", f"missing: {', '.join(lacking)}")
    about = about.drop_duplicates("annot_id").set_index("annot_id").to_dict("index")
    taken = Counter()
    for index, (nodule, number) in enumerate(zip(clips["annot_id"][:], clips["frame_num"][:])):
        nodule = nodule.decode("utf-8") if isinstance(nodule, bytes) else str(nodule)
        image, known = f"{FILE}#{index}", about.get(nodule)
        taken[nodule] += 1
        if known is None:
            found.leave_out(image, f"annot_id {nodule} is not in {ABOUT}")
        elif (taken[nodule] - 1) % every:
            found.leave_out(image, f"not taken with every={every}")
        else:
            row = {"mask": str(root / image), "nodule": nodule, "frame_number": int(number)}
            row |= {"age": _number(known.get("age", "")), "sex": known.get("sex", "").strip().upper()[:1]}
            row |= {"location": known.get("location", "")}
            row |= {f"{c}_cm": _number(known[c]) for c in known if c.startswith("size_")}
            row |= {c.replace("-", "_"): known[c] for c in known if c.startswith("ti-rads")}
            label = contract.benign_or_malignant(known["histopath_diagnosis"])
            found.frame(image, label, nodule.partition("_")[0], **row)
    for nodule in sorted(set(about) - set(taken), key=natural):
        found.leave_out(f"{FILE}:{nodule}", f"in {ABOUT}, but has no frame")
    return found.manifest("Stanford thyroid cine-clips", contract.TWO)


def load(path: str, index: int, field: str) -> np.ndarray:
    """Frame `index` of `field` ("image" or "mask") of the HDF5 file, uint8 (H, W) or (H, W, 3)."""
    return np.asarray(_open(path)[field][index]).astype(np.uint8)


@functools.lru_cache(maxsize=2)
def _open(path: str):
    try:
        import h5py

        return h5py.File(path, "r")
    except ImportError as error:
        needed = "the package h5py: install the extra thyroid_lib[stanford]"
        raise contract.DatasetError(f"Reading the Stanford cine-clips needs {needed}.") from error
    except OSError as error:
        raise contract.DatasetError(f"stanford: {FILE} cannot be opened as HDF5 (cut short?)") from error
