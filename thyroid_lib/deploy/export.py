"""``python -m thyroid_lib export``: the classifier as ONNX, written only where it gives PyTorch's numbers."""

import argparse
import contextlib
import itertools
import json
import os
import sys
import warnings
from pathlib import Path

import numpy as np

from thyroid_lib import frames
from thyroid_lib.classifier import ClassifierError, backends, studies
from thyroid_lib.classifier import definition as definitions
from thyroid_lib.classifier.definition import ONNX, ONNX_RECORD
from thyroid_lib.common.files import write_text
from thyroid_lib.common.messages import printable

MAX_DIFFERENCE = 1e-4  # of a probability, fp32 against PyTorch
MOST_CROPS = 1000
MIN_SAME_TYPE = 0.999  # of the crops, bfloat16 against fp32


def main(argv: list[str] | None = None) -> int:
    """Writes ONNX beside a classifier's weights and says how close every back-end comes to PyTorch.

    Returns:
        Exit status: 0 all within the limits, 1 one in bfloat16 is not, 2 nothing was written.
    """
    parser = argparse.ArgumentParser(
        prog="python -m thyroid_lib export",
        description="Write model.onnx into a classifier folder, if it gives the same probabilities as PyTorch.",
    )
    where = "frames to check parity on; default: the crops of the run the folder lies in, else drawn phantoms"
    parser.add_argument("classifier", type=Path, metavar="CLASSIFIER_DIR")
    parser.add_argument("--images", nargs="+", metavar="IMAGE", help=where)
    options = parser.parse_args(argv)
    folder = options.classifier
    try:
        definition = definitions.read(folder)
        crops, source = parity_crops(folder, definition, options.images)
        record = export(folder, definition, crops, source=source)
    except ClassifierError as error:
        print(f"error: {printable(error)}", file=sys.stderr)
        return 2
    print(f"wrote {printable(folder / ONNX)}, checked on {len(crops)} crops ({source})")
    for name, found in record["parity"].items():
        verdict = "passed" if found["passed"] else "NOT within the limits: do not use"
        print(
            f"  {name:<18} largest difference of a probability {found['max_difference']:.1e}, "
            f"same type {found['same_type']:.2%}: {verdict}"
        )
    return 0 if all(found["passed"] for found in record["parity"].values()) else 1


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
        ClassifierError: probabilities differ by more than 1e-4; nothing is left behind then.
    """
    if not all(map(backends.installed, ("onnx", "onnxscript", "onnxruntime"))):
        raise ClassifierError('export needs onnx, onnxscript, onnxruntime: pip install "thyroid_lib[deploy]"')
    import torch

    from thyroid_lib.classifier import networks

    whole = networks.Ensemble(networks.load_members(folder, definition)).eval()
    part = folder / f".{ONNX}.part"
    with warnings.catch_warnings(), contextlib.redirect_stdout(None), torch.no_grad():
        warnings.simplefilter("ignore")  # the exporter speaks of its own deprecations
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
        **definitions.fingerprint(part),
        "crops": len(crops),
        "crops_source": source,
        "parity": {},
        "versions": definitions.versions("torch", "onnx", "onnxruntime", "openvino"),
    }
    os.replace(part, folder / ONNX)
    try:
        write_text(folder / ONNX_RECORD, json.dumps(record))  # without it no back-end opens the file
        with torch.inference_mode():
            expected = backends.predict(
                lambda x: whole(torch.from_numpy(x)), crops, definition["temperature"]
            )
        record["parity"] = parity(folder, definition, crops, expected)
        write_text(folder / ONNX_RECORD, json.dumps(record, indent=2) + "\n")
    except BaseException:
        for name in (ONNX, ONNX_RECORD):
            (folder / name).unlink(missing_ok=True)
        raise
    return record


def parity_crops(folder: Path, definition: dict, images: list[str] | None) -> tuple[np.ndarray, str]:
    """Crops to check parity on: of the images given, of the run around the folder, or of phantoms drawn now.

    Returns:
        uint8 (n, S, S) with n at most 1000, and where they come from.

    Raises:
        ClassifierError: none of the images given can be used.
    """
    from thyroid_lib import classifier, datasets, regions

    recipe, size = regions.Recipe(**definition["recipe"]), definition["size"]
    stored = folder.resolve().parent / "data" / "finetune" / "crops.npy"
    if images is None and stored.is_file():
        crops = np.load(stored, mmap_mode="r", allow_pickle=False)
        if crops.shape[1:] == (size, size):
            rows = np.unique(np.linspace(0, len(crops) - 1, MOST_CROPS).astype(int))
            return np.array(crops[rows]), "crops of this run's data"
    source = "simulated frames" if images is None else "images given"
    crops = []
    for item in studies.items(studies.find(images or datasets.read("phantom:clinic?patients=24").path)[0]):
        with contextlib.suppress(frames.FrameError):
            crops.append(classifier.prepare(item.image, size, recipe)[2])
        if len(crops) == MOST_CROPS:
            break
    if not crops:
        raise ClassifierError("parity needs at least one ultrasound frame; none of the images is one")
    return np.stack(crops), source


def parity(folder: Path, definition: dict, crops: np.ndarray, expected: np.ndarray) -> dict:
    """How close every installed back-end comes to eager fp32 PyTorch.

    Args:
        folder: the classifier's, with model.onnx.
        definition: its classifier.json.
        crops: uint8 (n, S, S).
        expected: float64 (n, C), probabilities of the unchanged network.

    Returns:
        "backend precision" -> {"max_difference": of a probability, "same_type": fraction of crops, "passed"}.

    Raises:
        ClassifierError: an fp32 back-end differs by more than 1e-4.
    """
    found = {}
    for name, precision in itertools.product(backends.BACKENDS, backends.PRECISIONS):
        if not backends.installed(name) or (name, precision) == ("onnxruntime", "bf16"):
            continue
        backend = backends.open_backend(folder, definition, name, precision)
        got = backends.predict(backend.run, crops, definition["temperature"])
        difference = float(np.abs(got - expected).max())
        same = float((got.argmax(1) == expected.argmax(1)).mean())
        passed = difference <= MAX_DIFFERENCE if precision == "fp32" else same >= MIN_SAME_TYPE
        found[f"{name} {precision}"] = {"max_difference": difference, "same_type": same, "passed": passed}
        if precision == "fp32" and not passed:
            raise ClassifierError(
                f"{name}: a probability differs by {difference:.2g} from PyTorch's, at most "
                f"{MAX_DIFFERENCE:g} is allowed; {ONNX} was not kept"
            )
    return found
