"""Notebook 05's last part: shortcut audit, robustness and failures of the networks of one run.

Each function looks at the tested images again through ``tested.Tested`` and returns what is recorded in
metrics.json. The methods are in ``shortcuts`` and ``robustness``.
"""

from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pandas as pd

from thyroid_lib import datasets, regions
from thyroid_lib.common.messages import say
from thyroid_lib.common.progress import progress, status
from thyroid_lib.data import crops
from thyroid_lib.evaluation.predictions import classes_of
from thyroid_lib.explanation import robustness, shortcuts
from thyroid_lib.explanation.tested import Tested


def answer_crops(spec: str, like: crops.Crops, folder: Path, jobs: int = -1) -> crops.Crops | None:
    """The same simulated patients with the answer printed on every frame.

    Args:
        spec: the clinic's SPEC;  like: its crops, for size and recipe;  folder: where to write;  jobs: of
            ``crops.build``.

    Returns:
        The crops, rows in the order of ``like``; None where the data are not phantoms, or not the same ones.
    """
    if not spec.startswith("phantom:") or "answer=1" in spec:
        return None
    manifest = datasets.read(spec + ("&" if "?" in spec else "?") + "answer=1")
    wanted = like.index[["image"]].reset_index(drop=True)
    if not wanted["image"].isin(manifest["image"]).all():
        return None
    attributes = manifest.attrs
    manifest = wanted.merge(manifest, on="image", how="left")
    manifest.attrs = attributes
    built = crops.build(manifest, folder, size=like.size, recipe=like.recipe, jobs=jobs)
    same = built.masks is not None and like.masks is not None and np.array_equal(built.masks, like.masks)
    return built if same else None


def answer_frames(
    spec: str, like: crops.Crops, folder: Path, jobs: int = -1
) -> Callable[[np.ndarray], np.ndarray] | None:
    """The clinic's whole frames with the answer printed under the sector: what an audit must be able to find.

    Phantoms are simulated again with print on them. Real frames are read again and the name of the class is
    written where a scanner writes its findings; the print is added here, the frames stay as they are.

    Args:
        spec: the clinic's SPEC;  like: its crops, for size, recipe and rows;  folder: for phantoms' crops;  jobs:
            of ``crops.build``.

    Returns:
        A function from rows of ``like``, int (n,), to their frames, uint8 (n, S, S); None where the data cannot be
        read again or are not the same ones.
    """
    if like.simulated:
        built = answer_crops(spec, like, folder, jobs)
        return None if built is None else lambda rows: np.asarray(built.frames[rows])
    try:
        paths = datasets.read(spec).set_index("image")["path"]
    except (OSError, ValueError):  # the run has moved to where its data are not
        return None
    images = like.index["image"].astype(str)
    if not images.isin(paths.index).all():
        return None

    def printed(rows: np.ndarray) -> np.ndarray:
        result = np.empty((len(rows), like.size, like.size), np.uint8)
        for place, row in enumerate(rows):
            gray, about = datasets.load_frame(paths[images[row]]), like.index.iloc[row]
            box = tuple(int(about[f"box_{name}"]) for name in ("x", "y", "width", "height"))
            name = like.names[about["label"]][0] if about["label"] in like.names else ""
            result[place] = regions.letterbox(print_answer(gray, box, name), like.size)
        return result

    return printed


def print_answer(gray: np.ndarray, box: tuple[int, int, int, int], text: str) -> np.ndarray:
    """A frame with a line of text under its sector, as scanners and readers put it there.

    Args:
        gray: uint8 (H, W);  box: x, y, width, height of the sector, px;  text: what to print; only its ASCII
            letters, for the font has no others.

    Returns:
        uint8 (H, W), a copy.
    """
    result, size = gray.copy(), max(1.0, gray.shape[0] / 480)
    words = text.replace("–", "-").encode("ascii", "ignore").decode().upper()
    baseline = min(gray.shape[0] - 6, round(box[1] + box[3] + 26 * size))
    cv2.putText(result, words, (box[0] + 4, baseline), cv2.FONT_HERSHEY_PLAIN, size, 255, round(size))
    return result


def audit(
    tested: Tested, external, answer, *, most: int = 200, draws: int = 2000, seed: int = 0, minimum: int = 5
) -> dict:
    """The shortcut audit on the first fold: views, printed text, and what tells the source.

    Args:
        tested: the tested images.
        external: ``crops.Crops`` of the other source, or None.
        answer: of :func:`answer_frames`, or None.
        most: training images that the probes are fitted on, spread over the training part.
        draws, seed, minimum: of the bootstrap.

    Returns:
        {"views": of ``shortcut_audit``, "text": of ``text_audit``, "source": of ``source_audit``, "devices":
        of ``source_audit`` on the clinic's devices}.
    """
    options = {"draws": draws, "seed": seed, "minimum": minimum}
    fold, clinic = next(iter(tested.members)), tested.crops
    own, train = tested.only(fold), tested.training_rows(fold)
    if len(train) > most:
        train = train[(np.arange(most) * len(train) / most).astype(int)]
    rows = np.sort(np.concatenate([train, own.rows]))
    assert np.array_equal(rows[clinic.index["fold"].to_numpy()[rows] == fold], own.rows)
    views = _views(clinic, rows, answer)
    model, index = tested.members[fold], clinic.index.iloc[rows]
    status("shortcut audit")
    found = shortcuts.shortcut_audit(
        model,
        views,
        clinic.labels[rows],
        index["patient"].to_numpy().astype(str),
        index["fold"].to_numpy(),
        fold,
        len(clinic.classes),
        against={"full frame, answer printed": "full frame"},
        precision=tested.precision,
        temperature=tested.temperature[fold],
        known=own.stated,
        **options,
    )
    text = shortcuts.text_audit(clinic, **options) if not clinic.simulated else {"reason": "simulated frames"}
    vectors = shortcuts.features(model, own.images, precision=tested.precision)
    devices, source = {"reason": "the data name no device"}, {"reason": "the run has no external source"}
    if "device" in clinic.index:
        names = clinic.index["device"].to_numpy()[own.rows]
        devices = shortcuts.source_audit(vectors, names, own.patients, **options)
    if external is not None and len(external):
        there = np.arange(len(external))[:: max(1, len(external) // most)]
        both = np.vstack(
            [
                vectors,
                shortcuts.features(model, np.asarray(external.images[there]), precision=tested.precision),
            ]
        )
        names = np.repeat(["internal", "external"], [len(own.rows), len(there)])
        who = np.concatenate([own.patients, external.index["patient"].to_numpy()[there].astype(str)])
        source = shortcuts.source_audit(both, names, np.char.add(np.char.add(names, "/"), who), **options)
    return {"views": found, "text": text, "source": source, "devices": devices}


def example_views(tested: Tested, answer, count: int = 3) -> tuple[dict, list[str]]:
    """A few tested images as each reader of the audit sees them.

    Args:
        tested: the tested images;  answer: of :func:`answer_frames`, or None;  count: images.

    Returns:
        (view -> uint8 (count, S, S), reference standard of each).
    """
    part = tested.only(next(iter(tested.members)), count)
    return _views(part.crops, part.rows, answer), list(part.table["truth"])


def _views(clinic: crops.Crops, rows: np.ndarray, answer) -> dict[str, np.ndarray]:
    images = np.asarray(clinic.images[rows])
    views = {"crop": images, "border only": shortcuts.border_only(images)}
    if clinic.masks is not None:
        views["nodule hidden"] = shortcuts.nodule_hidden(images, clinic.masks[rows])
    views["full frame"] = np.asarray(clinic.frames[rows])
    if answer is not None:
        views["full frame, answer printed"] = answer(rows)
    return views


def robust(tested: Tested, *, draws: int = 2000, seed: int = 0, minimum: int = 5) -> dict:
    """Robustness curves of the frozen classifier on the tested images.

    Args:
        tested: the tested images;  draws, seed, minimum: of the bootstrap.
    """
    result, plain = {}, tested.probabilities(tested.images)
    for kind, strengths in progress(robustness.STRENGTHS.items(), "robustness", len(robustness.STRENGTHS)):
        result |= robustness.curves(
            tested.probabilities, tested.images, tested.labels, tested.patients, strengths={kind: strengths},
            plain=plain, known=tested.stated, draws=draws, seed=seed, minimum=minimum,
        )  # fmt: skip
    return result


def views_caption(tested: Tested, audited: dict) -> str:
    """Caption of the audit's figure: which images each reader was scored on, and how they were read.

    Args:
        tested: the tested images;  audited: of :func:`audit`.
    """
    fold, of = next(iter(tested.members)), len(tested.members)
    own = "the tested images" if of == 1 else f"the images of fold {fold}, one of the {of} tested"
    return (
        f"What each reader can tell from each view; dotted: chance. Classifier and probe: {own}; pixels: these and the "
        f"probe's training images, across the folds.{_arithmetic(tested, audited['views']['crop']['classifier'])}"
    )


def robustness_caption(tested: Tested, found: dict) -> str:
    """Caption of the robustness curves.

    Args:
        tested: the tested images;  found: of :func:`robust`.
    """
    first = next(iter(next(iter(found.values())).values()))
    return f"Macro AUROC on changed images, internal testing; dotted: unchanged.{_arithmetic(tested, first)}"


def _arithmetic(tested: Tested, unchanged: dict) -> str:
    if tested.precision == "32":
        return ""
    here = unchanged["read here"]
    score = f", in which the unchanged crops score {say(here, 3)}" * (here["value"] is not None)
    return (
        f" The unchanged crops' score is that of predictions.csv, read in float32; all else is read in bfloat16{score}"
        ". Rises and falls are between images that were both read so."
    )


def worst(tested: Tested, count: int) -> tuple[np.ndarray, pd.DataFrame]:
    """The most confident errors.

    Args:
        tested: the tested images;  count: at most this many.

    Returns:
        (positions in ``tested``, int (k,), most confident first; their rows of predictions).
    """
    wrong = np.flatnonzero((tested.table["predicted"] != tested.table["truth"]).to_numpy())
    sure = tested.table[["p_" + key for key in classes_of(tested.table)]].to_numpy().max(axis=1)
    chosen = wrong[np.argsort(-sure[wrong], kind="stable")][:count]
    return chosen, tested.table.iloc[chosen]


def shortcut_table(audited: dict) -> pd.DataFrame:
    """The audit's verdicts as a table.

    Args:
        audited: of :func:`audit`.
    """
    lines = shortcuts.verdicts(audited["views"], audited["source"], audited["text"])
    return pd.DataFrame(
        {
            "question": [line["question"] for line in lines],
            "reader": [line["reader"] for line in lines],
            "AUROC or its rise": [say(line["metric"]) for line in lines],
            "verdict": [line["verdict"] for line in lines],
            "meaning": [line["meaning"] for line in lines],
        }
    )


def view_rows(audited: dict) -> list[tuple[str, str, dict]]:
    """Rows of a forest plot: macro AUROC of every reader on every view.

    Args:
        audited: of :func:`audit`.
    """
    return [
        (view, reader, values[reader]["auroc"])
        for view, values in audited["views"].items()
        for reader in values
    ]
