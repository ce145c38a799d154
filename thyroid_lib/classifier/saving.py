"""Writing a classifier folder: weights, definition, novelty model and model card, whole or not at all."""

import os
import shutil
import tempfile
from dataclasses import asdict
from pathlib import Path

import numpy as np

from thyroid_lib.classifier import backends, novelty
from thyroid_lib.classifier import definition as definitions
from thyroid_lib.common.files import FILE_MODE, FOLDER_MODE

NOVELTY = "novelty.safetensors"


def save(
    folder,
    *,
    members: list[dict],
    model_config: dict,
    classes: list[str],
    names: dict[str, tuple[str, str]],
    recipe,
    size: int,
    temperature: float | list[float],
    operating_points: dict | list[dict],
    training: dict,
    metrics: dict | None = None,
    conformal: dict | None = None,
    novelty_crops: tuple[np.ndarray, np.ndarray] | None = None,
) -> Path:
    """Turns trained networks into a classifier folder (claim C12); replaces the folder as a whole.

    Args:
        folder: where; made with its parents.
        members: one state dict per fold, name -> tensor, of the same architecture.
        model_config: what `network.build` makes that architecture from.
        classes: class keys in the order of the outputs.
        names: key -> (English, Chinese).
        recipe: `regions.Recipe` of the crops.
        size: side of the crops, px.
        temperature: of the softmax, fitted on validation; one value, or one per member.
        operating_points: key -> probability from which a class is called positive; one dict, or one per
            member (their mean is used on the averaged probabilities).
        training: summary of the training data as plain values; "simulated" (bool) must be among them, and
            counts, sources, hashes and settings should be.
        metrics: the evaluation's key numbers, where there are any; `add_metrics` adds them later.
        conformal: {"coverage", "threshold", "n"} from `conformal_threshold`, or None.
        novelty_crops: (training crops, validation crops), uint8 (n, S, S), of the first member; None
            leaves the warning for unlike images out.

    Returns:
        The folder.

    Raises:
        ClassifierError: parts that do not fit each other.
    """
    from thyroid_lib.classifier import model_card
    from thyroid_lib.training import checkpoint

    folder = Path(folder)
    count = len(members)
    temperatures = [
        float(t) for t in (temperature if isinstance(temperature, list | tuple) else [temperature])
    ]
    points = operating_points if isinstance(operating_points, list | tuple) else [operating_points]
    folder.parent.mkdir(parents=True, exist_ok=True)
    part = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        tensors = {
            f"member{i}.{key}": value for i, state in enumerate(members) for key, value in state.items()
        }
        checkpoint.save_weights(part / backends.WEIGHTS, tensors, {})
        definition = {
            "format": definitions.FORMAT,
            "format_version": definitions.VERSION,
            "id": "",
            "architecture": model_config,
            "members": count,
            "classes": [{"key": k, "english": names[k][0], "chinese": names[k][1]} for k in classes],
            "recipe": asdict(recipe),
            "size": int(size),
            "normalization": {"mean": 0.5, "std": 0.5, "channels": model_config.get("in_chans", 1)},
            "temperature": temperatures * count if len(temperatures) == 1 else temperatures,
            "operating_points": {k: float(np.mean([p[k] for p in points])) for k in points[0]},
            "conformal": conformal,
            "novelty": None,
            "training": training,
            "metrics": metrics or {},
            "versions": definitions.versions(),
            "files": {},
        }
        if novelty_crops is not None:
            _fit_novelty(part, definition, *novelty_crops)
            definition["novelty"] = {
                "false_warnings": novelty.FALSE_WARNINGS,
                "components": novelty.COMPONENTS,
            }
        for path in sorted(part.iterdir()):
            definition["files"][path.name] = {"sha256": backends.sha256(path), "bytes": path.stat().st_size}
        definition["id"] = definitions.identity(definition)
        definitions.write(part, definition)
        (part / "MODEL_CARD.md").write_text(model_card.render(definition), encoding="utf-8")
        part.chmod(FOLDER_MODE)
        for path in part.iterdir():
            path.chmod(FILE_MODE)
        _replace(part, folder)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return folder


def add_metrics(folder, metrics: dict) -> None:
    """Writes the evaluation's key numbers into classifier.json and MODEL_CARD.md; the id stays the same."""
    from thyroid_lib.classifier import model_card

    folder = Path(folder)
    definition = definitions.read(folder) | {"metrics": metrics}
    definitions.write(folder, definition)
    (folder / "MODEL_CARD.md").write_text(model_card.render(definition), encoding="utf-8")


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


def _fit_novelty(folder: Path, definition: dict, train: np.ndarray, validation: np.ndarray) -> float:
    """Writes the novelty model; gives the fraction of the validation crops that it warns of."""
    from safetensors.numpy import save_file

    backend = backends.TorchBackend(folder, definition)
    chosen = [
        crops[np.unique(np.linspace(0, len(crops) - 1, most).astype(int))]  # evenly, without chance
        for crops, most in ((train, 2000), (validation, 1000))
    ]
    features = [
        np.concatenate([backend.run(np.array(c[s : s + 16])).features for s in range(0, len(c), 16)])
        for c in chosen
    ]
    vectors = {"network": features, "appearance": [novelty.appearance(crops) for crops in chosen]}
    models = {key: novelty.fit(*pair) for key, pair in vectors.items()}
    flat = {f"{key}.{name}": value for key, model in models.items() for name, value in model.items()}
    save_file(flat, folder / NOVELTY)
    over = [novelty.distance(model, vectors[key][1]) > model["limit"][0] for key, model in models.items()]
    return float(np.any(over, axis=0).mean())


def _replace(part: Path, folder: Path) -> None:
    old = Path(tempfile.mkdtemp(prefix=f".{folder.name}-old-", dir=folder.parent))
    try:
        if folder.exists():
            os.replace(folder, old / "folder")
        os.replace(part, folder)
    finally:
        shutil.rmtree(old, ignore_errors=True)
