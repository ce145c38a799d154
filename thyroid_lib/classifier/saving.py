"""Writing a classifier folder: weights, definition, novelty model and model card, whole or not at all."""

import json
import os
import shutil
import tempfile
from dataclasses import asdict
from pathlib import Path

import numpy as np

from thyroid_lib import __version__
from thyroid_lib.classifier import backends, novelty
from thyroid_lib.classifier import definition as definitions
from thyroid_lib.common import templates
from thyroid_lib.common.files import FILE_MODE, FOLDER_MODE, write_text
from thyroid_lib.evaluation import task

PACKAGES = ("torch", "numpy", "opencv-python-headless", "pillow", "safetensors")
"""What an answer depends on beside this library."""
MOST_TRAINING, MOST_VALIDATION = 2000, 1000  # crops that the novelty distance is fitted on


def save(
    folder,
    *,
    members: list[dict],
    model_config: dict,
    names: dict[str, tuple[str, str]],
    recipe,
    size: int,
    temperature: list[float],
    operating_points: list[dict],
    training: dict,
    conformal: dict,
    novelty_crops: tuple[np.ndarray, np.ndarray],
) -> Path:
    """Turns trained networks into a classifier folder (claim C12); replaces the folder as a whole.

    Args:
        folder: where; made with its parents.
        members: one state dict per fold, name -> tensor, of the same architecture.
        model_config: what `network.build` makes that architecture from.
        names: class key -> (English, Chinese), in the order of the outputs.
        recipe: `regions.Recipe` of the crops.
        size: side of the crops, px.
        temperature: of each member's softmax, fitted on validation.
        operating_points: of each member, class key -> probability from which the class is called positive; their
            mean is used on the averaged probabilities.
        training: summary of the training data as plain values; "simulated" (bool) must be among them, and
            counts, sources, hashes and settings should be.
        conformal: {"coverage", "threshold", "n"} from `conformal_threshold`.
        novelty_crops: (training crops, validation crops), uint8 (n, S, S), of the first member.

    Returns:
        The folder.

    Raises:
        ClassifierError: parts that do not fit each other.
        ValueError: fewer than 8 training crops, or no validation crop.
    """
    from thyroid_lib.training import checkpoint

    folder = Path(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    part = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        tensors = {
            f"member{i}.{key}": value for i, state in enumerate(members) for key, value in state.items()
        }
        checkpoint.save_weights(part / definitions.WEIGHTS, tensors, {})
        definition = {
            "format": definitions.FORMAT,
            "format_version": definitions.VERSION,
            "id": "",
            "architecture": model_config,
            "members": len(members),
            "classes": [{"key": k, "english": names[k][0], "chinese": names[k][1]} for k in names],
            "recipe": asdict(recipe),
            "size": size,
            "normalization": {"mean": 0.5, "std": 0.5, "channels": model_config["in_chans"]},
            "temperature": [float(value) for value in temperature],
            "operating_points": {
                k: float(np.mean([p[k] for p in operating_points])) for k in operating_points[0]
            },
            "conformal": conformal,
            "novelty": {"false_warnings": novelty.FALSE_WARNINGS, "components": novelty.COMPONENTS},
            "training": training,
            "metrics": {},
            "versions": {"thyroid_lib": __version__, **definitions.versions(*PACKAGES)},
            "files": {definitions.WEIGHTS: definitions.fingerprint(part / definitions.WEIGHTS)},
        }
        backend, (train, validation) = backends.Torch(part, definition), novelty_crops
        novelty.write(
            part / definitions.NOVELTY,
            _describe(backend, train, MOST_TRAINING),
            _describe(backend, validation, MOST_VALIDATION),
        )
        definition["files"][definitions.NOVELTY] = definitions.fingerprint(part / definitions.NOVELTY)
        definition["id"] = definitions.identity(definition)
        _write(part, definition)
        part.chmod(FOLDER_MODE)
        for path in part.iterdir():
            path.chmod(FILE_MODE)
        if folder.exists():
            shutil.rmtree(folder)
        os.replace(part, folder)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return folder


def _describe(backend, crops: np.ndarray, most: int) -> dict[str, np.ndarray]:
    """What `novelty` knows of at most so many of the crops: description -> vectors."""
    chosen = crops[np.unique(np.linspace(0, len(crops) - 1, most).astype(int))]  # evenly, without chance
    batches = range(0, len(chosen), 16)
    features = np.concatenate([backend.run(chosen[start : start + 16]).features for start in batches])
    return {"network": features, "appearance": novelty.appearance(chosen)}


def add_metrics(folder, metrics: dict) -> None:
    """Writes the evaluation's key numbers into classifier.json and MODEL_CARD.md; the id stays the same."""
    _write(Path(folder), definitions.read(Path(folder)) | {"metrics": metrics})


def _write(folder: Path, definition: dict) -> None:
    """Writes classifier.json, after the same check that reading makes, and MODEL_CARD.md, the same for people."""
    definitions.check(definition, definitions.NAME)
    text = json.dumps(definition, indent=2, ensure_ascii=False, allow_nan=False)
    write_text(folder / definitions.NAME, text + "\n")
    names = {entry["key"]: (entry["english"], entry["chinese"]) for entry in definition["classes"]}
    card = templates.render("classify/model_card.md.j2", d=definition, noun=task.of(names).noun)
    write_text(folder / definitions.CARD, card)


def conformal_threshold(probabilities: np.ndarray, labels: np.ndarray, coverage: float = 0.9) -> dict:
    """Split-conformal threshold of 1 - p(true class), fixed on calibration images.

    Args:
        probabilities: float (n, C), calibrated, of validation images.
        labels: int (n,).
        coverage: fraction of future images whose set should hold the true class.

    Returns:
        {"coverage", "threshold", "n"}: the set of an image is every class with p >= 1 - threshold. The
        threshold is 1 (all classes) where n is too small to promise anything.

    Source: Sadinle, Lei and Wasserman 2019 (arXiv 1609.00451); quantile at ceil((n + 1) coverage).
    """
    labels = np.asarray(labels)
    scores = np.sort(1 - np.asarray(probabilities, np.float64)[np.arange(len(labels)), labels])
    rank = int(np.ceil((len(scores) + 1) * coverage))
    threshold = float(scores[rank - 1]) if 0 < rank <= len(scores) else 1.0
    return {"coverage": float(coverage), "threshold": threshold, "n": len(scores)}
