"""The classifier as ONNX, for machines without PyTorch: written only where it gives PyTorch's numbers."""

import contextlib
import json
import os
import warnings
from pathlib import Path

import numpy as np

from thyroid_lib import frames
from thyroid_lib.classifier import backends

MAX_DIFFERENCE = 1e-4  # of a probability, fp32 against PyTorch
MOST_CROPS = 1000
MIN_SAME_TYPE = 0.999  # of the crops, bfloat16 against fp32


def export(folder: Path, definition: dict, crops: np.ndarray, *, source: str = "crops given") -> dict:
    """Writes model.onnx beside the weights, if it gives PyTorch's numbers.

    Args:
        folder: the classifier's.
        definition: its classifier.json.
        crops: uint8 (n, S, S), what parity is checked on.
        source: where the crops come from, for the record.

    Returns:
        The record, also written to model.onnx.json: classifier, sha256, opset, versions and parity.

    Raises:
        backends.BackendError: probabilities differ by more than 1e-4; nothing is left behind then.
    """
    import torch

    if not (
        backends.installed("onnx") and backends.installed("onnxscript") and backends.installed("onnxruntime")
    ):
        raise backends.BackendError(
            'export needs onnx, onnxscript, onnxruntime: pip install "thyroid_lib[deploy]"'
        )
    whole = backends.ensemble(backends.load_members(folder, definition))
    with torch.inference_mode():
        expected = np.concatenate([whole(torch.from_numpy(b))[0].numpy() for b in _batches(crops)], axis=1)
    part = folder / f".{backends.ONNX}.part"
    with _quiet(), torch.no_grad():
        torch.onnx.export(
            whole,
            (torch.from_numpy(crops[:2].copy()),),
            part,
            input_names=["crops"],
            output_names=list(backends.Outputs._fields),
            dynamic_shapes=({0: torch.export.Dim("batch", min=1, max=4096)},),
            dynamo=True,
            external_data=False,
            verbose=False,
        )
    record = {
        "classifier": definition["id"],
        "sha256": backends.sha256(part),
        "bytes": part.stat().st_size,
        "crops": len(crops),
        "crops_source": source,
        "parity": {},
        "versions": {name: _version(name) for name in ("torch", "onnx", "onnxruntime", "openvino")},
    }
    os.replace(part, folder / backends.ONNX)
    (folder / backends.ONNX_RECORD).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    try:
        record["parity"] = parity(folder, definition, crops, expected)
    except BaseException:
        (folder / backends.ONNX).unlink()
        (folder / backends.ONNX_RECORD).unlink()
        raise
    (folder / backends.ONNX_RECORD).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    return record


def parity_crops(folder: Path, definition: dict, images: list[str] | None) -> tuple[np.ndarray, str]:
    """Crops to check parity on: of the images given, of the run around the folder, or of phantoms drawn now.

    Returns:
        uint8 (n, S, S) with n at most 1000, and where they come from.

    Raises:
        backends.BackendError: none of the images given can be used.
    """
    from thyroid_lib import classifier, regions
    from thyroid_lib.classifier import studies

    recipe, size = regions.Recipe(**definition["recipe"]), definition["size"]
    stored = folder.resolve().parent / "data" / "finetune" / "crops.npy"
    if images is None and stored.is_file():
        crops = np.load(stored, mmap_mode="r", allow_pickle=False)
        if crops.shape[1:] == (size, size):
            rows = np.unique(np.linspace(0, len(crops) - 1, MOST_CROPS).astype(int))
            return np.array(crops[rows]), "crops of this run's data"
    source = "images given"
    if images is None:
        from thyroid_lib import datasets

        images, source = list(datasets.read("phantom:clinic?patients=24").path), "simulated frames"
    crops = []
    for item in studies.items(studies.find(images)[0]):
        try:
            crops.append(classifier.prepare(item.image, size, recipe)[2])
        except frames.FrameError:
            continue
        if len(crops) == MOST_CROPS:
            break
    if not crops:
        raise backends.BackendError("parity needs at least one ultrasound frame; none of the images is one")
    return np.stack(crops), source


def parity(folder: Path, definition: dict, crops: np.ndarray, expected: np.ndarray) -> dict:
    """How close every installed back-end comes to eager fp32 PyTorch.

    Args:
        folder: the classifier's, with model.onnx.
        definition: its classifier.json.
        crops: uint8 (n, S, S).
        expected: float32 (M, n, C), logits of the unchanged network.

    Returns:
        "backend precision" -> {"max_difference": of a probability, "same_type": fraction of crops, "passed"}.

    Raises:
        backends.BackendError: an fp32 back-end differs by more than 1e-4.
    """
    wanted = backends.probabilities(expected, definition["temperature"])
    found = {}
    for name in backends.BACKENDS:
        for precision in backends.PRECISIONS:
            if not backends.installed(name) or (name, precision) == ("onnxruntime", "bf16"):
                continue
            backend = backends.open_backend(name, folder, definition, precision)
            logits = np.concatenate([backend.run(batch).logits for batch in _batches(crops)], axis=1)
            got = backends.probabilities(logits, definition["temperature"])
            difference = float(np.abs(got - wanted).max())
            same = float((got.argmax(1) == wanted.argmax(1)).mean())
            passed = difference <= MAX_DIFFERENCE if precision == "fp32" else same >= MIN_SAME_TYPE
            found[f"{name} {precision}"] = {"max_difference": difference, "same_type": same, "passed": passed}
            if precision == "fp32" and not passed:
                raise backends.BackendError(
                    f"{name}: a probability differs by {difference:.2g} from PyTorch's, at most "
                    f"{MAX_DIFFERENCE:g} is allowed; {backends.ONNX} was not kept"
                )
    return found


def _batches(crops: np.ndarray, size: int = 16):
    for start in range(0, len(crops), size):
        yield np.array(crops[start : start + size])


def _version(name: str) -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"


@contextlib.contextmanager
def _quiet():
    """The exporter speaks of its own deprecations; only its errors matter here."""
    with warnings.catch_warnings(), contextlib.redirect_stdout(None):
        warnings.simplefilter("ignore")
        yield
