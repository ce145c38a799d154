"""Writing a classifier folder: weights, definition, novelty model and model card, whole or not at all."""

import json
import shutil
import tempfile
from pathlib import Path

import numpy as np

from thyroid_lib import __version__
from thyroid_lib.classifier import backends, novelty
from thyroid_lib.classifier import definition as definitions
from thyroid_lib.common import templates
from thyroid_lib.common.files import write_text
from thyroid_lib.evaluation import task

PACKAGES = ("torch", "numpy", "opencv-python-headless", "pillow", "safetensors")  # what answers rest on
MOST_TRAINING, MOST_VALIDATION = 2000, 1000  # crops that the novelty distance is fitted on


def save(folder, definition: dict, *, members: list[dict], novelty_crops: tuple) -> Path:
    """Turns trained networks into a classifier folder (claim C12); replaces the folder as a whole.

    Args:
        folder: where; made with its parents.
        definition: what classifier.json says of them, by its own names (``classifier.schema.json``): "architecture",
            what `network.build` makes the members from; "classes", {"key", "english", "chinese"} each, in the order of
            the outputs; "recipe" (fields of `regions.Recipe`) and "size" (px) of the crops; "temperature" of each
            member's softmax; "operating_points", class key -> averaged probability from which it is called positive;
            "conformal", {"coverage", "threshold", "n"} as of `evaluation.selective.threshold`; "training", plain values
            with at least "simulated" (bool), and with counts, sources, hashes and settings.
        members: one state dict per fold, name -> tensor, of the same architecture.
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
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}-", dir=folder.parent) as place:
        part = Path(place) / folder.name
        part.mkdir()
        tensors = {f"member{i}.{key}": t for i, state in enumerate(members) for key, t in state.items()}
        checkpoint.save_weights(part / definitions.WEIGHTS, tensors, {})
        definition = definition | {
            "format": "thyroid_lib classifier",
            "format_version": 1,
            "members": len(members),
            "normalization": {"mean": 0.5, "std": 0.5, "channels": definition["architecture"]["in_chans"]},
            "novelty": {"false_warnings": novelty.FALSE_WARNINGS, "components": novelty.COMPONENTS},
            "metrics": {},
            "versions": {"thyroid_lib": __version__, **definitions.versions(*PACKAGES)},
            "files": {definitions.WEIGHTS: definitions.fingerprint(part / definitions.WEIGHTS)},
        }
        run, mosts = backends.open_backend(part, definition, "torch"), (MOST_TRAINING, MOST_VALIDATION)
        described = [_describe(run, crops, most) for crops, most in zip(novelty_crops, mosts)]
        novelty.write(part / definitions.NOVELTY, *described)
        definition["files"][definitions.NOVELTY] = definitions.fingerprint(part / definitions.NOVELTY)
        definition["id"] = definitions.identity(definition)
        _write(part, definition)
        shutil.rmtree(folder, ignore_errors=True)
        part.replace(folder)
    return folder


def _describe(run: backends.Run, crops: np.ndarray, most: int) -> dict[str, np.ndarray]:
    """What `novelty` knows of at most so many of the crops: description -> vectors."""
    chosen = crops[np.unique(np.linspace(0, len(crops) - 1, most).astype(int))]  # evenly, without chance
    batches = range(0, len(chosen), 16)
    features = np.concatenate([run(chosen[start : start + 16]).features for start in batches])
    return novelty.describe(chosen, features)


def add_metrics(folder, metrics: dict) -> None:
    """Writes the evaluation's key numbers into classifier.json and MODEL_CARD.md; the id stays the same."""
    _write(Path(folder), definitions.read(Path(folder)) | {"metrics": metrics})


def _write(folder: Path, definition: dict) -> None:
    """Writes classifier.json, after the same check that reading makes, and MODEL_CARD.md, the same for people."""
    definitions.check(definition, definitions.NAME)
    text = json.dumps(definition, indent=2, ensure_ascii=False, allow_nan=False)
    write_text(folder / definitions.NAME, text + "\n")
    noun = task.of({entry["key"]: entry["english"] for entry in definition["classes"]}).noun
    card = templates.render("classify/model_card.md.j2", d=definition, noun=noun)
    write_text(folder / definitions.CARD, card)
