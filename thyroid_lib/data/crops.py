"""Crops on disk: every frame of a manifest as the network reads it, in memory-mapped arrays.

A crops folder holds ``crops.npy`` (the largest connected region of each frame, letterboxed),
``frames.npy`` (the whole frame, letterboxed: for the shortcut audit), ``masks.npy`` (the nodule under the
same cut, where the source has masks), ``index.csv`` (one row per crop), ``excluded.csv`` (every frame that
has none, with the reason) and ``crops.json`` (classes, recipe, hash).
"""

import hashlib
import json
import os
import shutil
import tempfile
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
from joblib import Parallel, delayed, effective_n_jobs

from thyroid_lib import datasets, frames, regions
from thyroid_lib.common import files, memory
from thyroid_lib.common.progress import progress

ARRAYS = ("crops", "frames", "masks")
CHUNK = 32  # frames handed to a worker at a time
WORTH_WORKERS = 256  # frames below which starting processes costs more than it saves
TEXT_COLUMNS = dict.fromkeys(("image", "label", "patient", "group", "dataset", "device"), str)


@dataclass(frozen=True)
class Crops:
    """A crops folder, opened. Arrays are memory-mapped: opening it reads nothing but the index.

    Attributes:
        folder: where it lies.
        index: one row per crop: the manifest's columns without `path`, then `box_x`, `box_y`, `box_width`,
            `box_height` (px of the frame), `region_area` (px), `frame_height`, `frame_width` (px),
            `inverted`, `mask_inside` (part of the nodule inside the box; empty without a mask) and
            `text_lines`, `frame_text_lines` (lines of print in the crop and in the whole frame).
        images: uint8 (N, S, S). masks: uint8 (N, S, S) of 0 and 1, or None. frames: uint8 (N, S, S).
    """

    folder: Path
    index: pd.DataFrame
    images: np.ndarray
    frames: np.ndarray
    masks: np.ndarray | None
    classes: list[str]
    names: dict[str, tuple[str, str]]
    simulated: bool
    title: str
    recipe: regions.Recipe
    hash: str

    def __len__(self) -> int:
        return len(self.index)

    @property
    def size(self) -> int:
        """Side of the crops in px."""
        return self.images.shape[1]

    @cached_property
    def labels(self) -> np.ndarray:
        """int64 (N,): position in `classes`, -1 where a frame has no label."""
        return pd.Index(self.classes).get_indexer(self.index["label"])

    @cached_property
    def excluded(self) -> pd.DataFrame:
        """Frames of the manifest that have no crop: `image`, `reason`."""
        return pd.read_csv(self.folder / "excluded.csv", dtype=str, keep_default_na=False)

    @classmethod
    def open(cls, folder: str | os.PathLike) -> "Crops":
        """Opens a folder that `build` wrote.

        Raises:
            FileNotFoundError: there is none, or it is not complete.
        """
        folder = Path(folder)
        if not (folder / "crops.json").is_file():
            raise FileNotFoundError(
                f"{folder}: expected a crops folder (crops.json, crops.npy, index.csv), found none. "
                "Run notebook 01 into the same run first."
            )
        about = json.loads((folder / "crops.json").read_text(encoding="utf-8"))
        types = {**TEXT_COLUMNS, "mask_inside": np.float64}
        index = pd.read_csv(folder / "index.csv", dtype=types, na_values=[""], low_memory=False)
        index = index.fillna({column: "" for column in TEXT_COLUMNS if column in index})
        paths = {name: folder / f"{name}.npy" for name in ARRAYS}
        arrays = {name: np.load(path, mmap_mode="r") for name, path in paths.items() if path.is_file()}
        about["names"] = {key: tuple(value) for key, value in about["names"].items()}
        about["recipe"] = regions.Recipe(**about["recipe"])
        about.pop("size", None)  # the arrays say it
        return cls(folder, index, arrays["crops"], arrays["frames"], arrays.get("masks"), **about)


def build(
    manifest: pd.DataFrame,
    folder: str | os.PathLike,
    *,
    size: int,
    recipe: regions.Recipe = regions.RECIPE,
    jobs: int = -1,
) -> Crops:
    """Cuts every frame of a manifest and writes a crops folder, whole or not at all.

    Args:
        manifest: as `datasets.read` gives it, with `fold` where it was split.
        folder: written anew; a former content is replaced once the new one is complete.
        size: side of the crops in px.
        recipe: how frames are binarized.
        jobs: worker processes; -1 for one per core. The result does not depend on it. A backend chosen with
            `joblib.parallel_config` (a Dask cluster, say) takes the work over.

    Returns:
        The opened crops. Frames that cannot be read or have no region are in `excluded`.

    Raises:
        ValueError: not one frame of the manifest gave a crop.
    """
    if size < 8:
        raise ValueError(f"crops.build: expected a size of at least 8 px, came {size!r}.")
    folder = Path(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        _write(manifest, partial, size, recipe, jobs)
        partial.chmod(files.FOLDER_MODE)
        if folder.exists():
            shutil.rmtree(folder)
        os.replace(partial, folder)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    return Crops.open(folder)


def _write(manifest: pd.DataFrame, folder: Path, size: int, recipe: regions.Recipe, jobs: int) -> None:
    rows = manifest.to_dict("records")
    has_masks = "mask" in manifest and manifest["mask"].fillna("").astype(str).ne("").any()
    workers = 1 if len(rows) < WORTH_WORKERS else effective_n_jobs(jobs)
    parts = (rows[start : start + CHUNK] for start in range(0, len(rows), CHUNK))
    work = (delayed(_chunk)(part, size, recipe, has_masks) for part in parts)
    results = Parallel(n_jobs=workers, return_as="generator")(work)
    found = []
    with ExitStack() as stack:  # written as they come: no more than a few chunks are ever in memory
        paths = {name: folder / f"{name}.npy" for name in ARRAYS[: 2 + has_masks]}
        opened = {name: stack.enter_context(open(path, "wb")) for name, path in paths.items()}
        for file in opened.values():
            _header(file, 0, size)
        done = progress(results, "cropping frames", len(rows), size=lambda part: len(part[0]))
        for facts, pictures in done:
            found += facts
            for name, file in opened.items():
                file.writelines(picture[name].tobytes() for picture in pictures)
        kept = np.flatnonzero(["reason" not in fact for fact in found])
        for file in opened.values():
            _header(file, len(kept), size)
    excluded = [(row["image"], fact["reason"]) for row, fact in zip(rows, found) if "reason" in fact]
    if not len(kept):
        first = f" The first reason: {excluded[0][1]}" if excluded else ""
        raise ValueError(f"Expected frames with a sector, none of {len(rows)} gave a crop.{first}")
    public = datasets.public(manifest).iloc[kept].reset_index(drop=True)
    facts = pd.DataFrame([found[row] for row in kept])
    public = public.rename(columns={name: f"{name}_given" for name in facts})  # others may use our words
    index = pd.concat([public, facts], axis=1).to_csv(index=False, float_format="%.9g", lineterminator="\n")
    files.write_text(folder / "index.csv", index)
    pd.DataFrame(excluded, columns=["image", "reason"]).to_csv(folder / "excluded.csv", index=False)
    digest = hashlib.sha256()
    for path in paths.values():
        with open(path, "rb") as file:
            file.seek(np.load(path, mmap_mode="r").offset)
            hashlib.file_digest(file, lambda: digest)
    digest.update(index.encode())
    classes = list(manifest.attrs.get("classes") or sorted(set(manifest["label"]) - {""}))
    given = manifest.attrs.get("names", {})
    about = {
        "title": manifest.attrs.get("title", ""),
        "simulated": bool(manifest.attrs.get("simulated", False)),
        "classes": classes,
        "names": {key: list(given.get(key, (key, key))) for key in classes},
        "size": size,
        "recipe": asdict(recipe),
        "hash": digest.hexdigest(),
    }
    files.write_json(folder / "crops.json", about)


def _header(file, count: int, size: int) -> None:
    """The header of an array file of so many crops, at its start; it is as long for any count."""
    file.seek(0)
    shape = {"descr": "|u1", "fortran_order": False, "shape": (count, size, size)}
    np.lib.format.write_array_header_1_0(file, shape)


def _chunk(rows: list[dict], size: int, recipe: regions.Recipe, with_mask: bool) -> tuple[list[dict], list]:
    """What the index says of each row, and the pictures of those that have a crop."""
    memory.keep_memory()
    threads = cv2.getNumThreads()
    cv2.setNumThreads(1)  # the workers share the cores already
    facts, pictures = [], []
    try:
        for row in rows:
            try:
                fact, picture = _one(row, size, recipe, with_mask)
                pictures.append(picture)
            except (frames.FrameError, regions.NoRegion) as error:
                fact = {"reason": str(error)}
            facts.append(fact)
    finally:
        cv2.setNumThreads(threads)
    return facts, pictures


def _one(row: dict, size: int, recipe: regions.Recipe, with_mask: bool) -> tuple[dict, dict]:
    gray = datasets.load_frame(row)
    image, region = regions.extract(gray, size, recipe)
    pictures = {"crops": image, "frames": regions.letterbox(gray, size)}
    x, y, width, height = region.box
    printed, around = regions.printed_lines(gray, region.box, (0, 0, gray.shape[1], gray.shape[0]))
    inside = float("nan")
    if with_mask:
        mask = datasets.load_mask(row, gray.shape)
        mask = np.zeros(gray.shape, bool) if mask is None else mask
        cut = mask[y : y + height, x : x + width]
        pictures["masks"] = regions.letterbox(cut, size)
        inside = float(cut.sum() / mask.sum()) if mask.any() else inside
    fact = dict(zip(("box_x", "box_y", "box_width", "box_height"), region.box))
    fact |= {"region_area": region.area, "frame_height": gray.shape[0], "frame_width": gray.shape[1]}
    fact |= {"inverted": region.inverted, "mask_inside": inside}
    return fact | {"text_lines": printed, "frame_text_lines": around}, pictures
