"""Stanford thyroid ultrasound cine-clips: 192 nodules of 167 patients (Stanford AIMI, doi 10.71718/7m5n-rh16).

Layout: ``dataset.hdf5`` with ``image`` and ``mask`` (N, H, W), ``annot_id`` (bytes, "123_") and ``frame_num``;
``metadata.csv`` with ``annot_id, sex, age, location, size_x ..., ti-rads_*, histopath_diagnosis`` (0 benign, 1
malignant). The patient is what stands before "_" in ``annot_id``; one patient may have several nodules.
"""

import functools
from pathlib import Path

import numpy as np
import pandas as pd

from thyroid_lib.common.files import natural
from thyroid_lib.datasets import contract

FILE, ABOUT = "dataset.hdf5", "metadata.csv"


def read(root: Path, *, every: str = "1") -> pd.DataFrame:
    """Reads the cine-clips.

    Args:
        root: folder with ``dataset.hdf5`` and ``metadata.csv``.
        every: take every so-many-th frame of each clip; neighbouring frames are nearly the same.

    Returns:
        Manifest with one row per frame: `mask`, `nodule`, `frame_number`, `age`, `sex`, `location`, `size_*_cm`
        and `ti_rads_*`.

    Raises:
        DatasetError: a file or one of their fields is missing, or the option is no number.
    """
    if not every.isdigit() or int(every) < 1:
        raise contract.DatasetError(f"stanford: every is a whole number from 1; {every!r} came.")
    contract.need(root, FILE, ABOUT, source="stanford")
    about = pd.read_csv(root / ABOUT, dtype=str, keep_default_na=False)
    lacking = [c for c in ("annot_id", "histopath_diagnosis") if c not in about]
    handle = _open(str(root / FILE))
    lacking += [name for name in ("image", "mask", "annot_id", "frame_num") if name not in handle]
    if lacking:
        raise contract.DatasetError(
            f"stanford: {ABOUT} and {FILE} lack {', '.join(lacking)}. docs/data.md shows the layout."
        )
    about = about.drop_duplicates("annot_id").set_index("annot_id")
    nodules = [_word(value) for value in handle["annot_id"][:]]
    numbers = [int(value) for value in handle["frame_num"][:]]
    rows, excluded, taken = [], [], {}
    for index, (nodule, number) in enumerate(zip(nodules, numbers)):
        taken[nodule] = taken.get(nodule, -1) + 1
        image = f"{FILE}#{index}"
        if nodule not in about.index:
            excluded.append((image, f"annot_id {nodule} is not in {ABOUT}"))
        elif taken[nodule] % int(every):
            excluded.append((image, f"not taken with every={every}"))
        else:
            known = about.loc[nodule]
            rows.append(
                {
                    "image": image,
                    "path": f"{root / FILE}#{index}",
                    "label": contract.benign_or_malignant(known["histopath_diagnosis"]),
                    "patient": nodule.partition("_")[0],
                    "mask": f"{root / FILE}#{index}",
                    "nodule": nodule,
                    "frame_number": number,
                    "age": pd.to_numeric(known.get("age", ""), errors="coerce"),
                    "sex": str(known.get("sex", "")).strip().upper()[:1],
                    "location": known.get("location", ""),
                    **{
                        f"{c}_cm": pd.to_numeric(known[c], errors="coerce")
                        for c in about
                        if c.startswith("size_")
                    },
                    **{c.replace("-", "_"): known[c] for c in about if c.startswith("ti-rads")},
                }
            )
    unseen = sorted(set(about.index) - set(nodules), key=natural)
    excluded += [(f"{FILE}:{nodule}", f"in {ABOUT}, but has no frame") for nodule in unseen]
    return contract.table(
        rows,
        dataset="stanford",
        title="Stanford thyroid cine-clips",
        classes=list(contract.TWO),
        names=contract.TWO,
        excluded=excluded,
    )


def load(path: str, index: int, field: str) -> np.ndarray:
    """Frame `index` of `field` ("image" or "mask") of the HDF5 file, uint8 (H, W) or (H, W, 3)."""
    return np.asarray(_open(path)[field][index]).astype(np.uint8)


@functools.lru_cache(maxsize=2)
def _open(path: str):
    try:
        import h5py
    except ImportError as error:
        raise contract.DatasetError(
            "Reading the Stanford cine-clips needs the package h5py: install the extra thyroid_lib[stanford]."
        ) from error
    try:
        return h5py.File(path, "r")
    except OSError as error:
        raise contract.DatasetError(f"stanford: {FILE} cannot be opened as HDF5 (cut short?)") from error


def _word(value) -> str:
    return value.decode("utf-8") if isinstance(value, bytes) else str(value)
