"""``python -m thyroid_lib export``: the classifier as ONNX, written only where it gives PyTorch's numbers."""

import argparse
import itertools
import json
import sys
import warnings
from pathlib import Path

import numpy as np

from thyroid_lib.classifier import Classifier, ClassifierError, backends, studies
from thyroid_lib.classifier.definition import ONNX, ONNX_RECORD, fingerprint, versions
from thyroid_lib.common.files import write_text, written_whole
from thyroid_lib.common.messages import printable
from thyroid_lib.common.templates import render
from thyroid_lib.frames import FrameError

MAX_DIFFERENCE = 1e-4  # of a probability, fp32 against PyTorch
MOST_CROPS = 1000
MIN_SAME_TYPE = 0.999  # of the crops, bfloat16 against fp32


def main(argv: list[str] | None = None) -> int:
    """Writes ONNX beside a classifier's weights and says how close every back-end comes to PyTorch.

    Returns:
        Exit status: 0 all within the limits, 1 one in bfloat16 is not, 2 nothing was written.
    """
    about = "Write model.onnx into a classifier folder, if it gives the same probabilities as PyTorch."
    parser = argparse.ArgumentParser(prog="python -m thyroid_lib export", description=about)
    where = "frames to check parity on; default: the crops of the run the folder lies in, else drawn phantoms"
    parser.add_argument("folder", type=Path, metavar="CLASSIFIER_DIR")
    parser.add_argument("--images", nargs="+", metavar="IMAGE", help=where)
    options = parser.parse_args(argv)
    try:
        classifier = Classifier.load(options.folder, backend="torch")
        crops, source = parity_crops(classifier, options.images)
        record = export(classifier, crops, source=source)
    except ClassifierError as error:
        print(f"error: {printable(error)}", file=sys.stderr)
        return 2
    print(render("classify/export.txt.j2", file=options.folder / ONNX, **record), end="")
    return 0 if all(found["passed"] for found in record["parity"].values()) else 1


def export(classifier: Classifier, crops: np.ndarray, *, source: str) -> dict:
    """Writes model.onnx beside the weights, if it gives PyTorch's numbers.

    Args:
        classifier: the loaded folder.
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

    whole = networks.Ensemble(networks.load_members(classifier.folder, classifier.definition)).eval()
    file, about = classifier.folder / ONNX, classifier.folder / ONNX_RECORD
    with warnings.catch_warnings(), torch.no_grad(), written_whole(file) as part:
        warnings.simplefilter("ignore")  # the exporter speaks of its own deprecations
        shapes = ({0: torch.export.Dim("batch", min=1, max=4096)},)
        how = {"dynamic_shapes": shapes, "dynamo": True, "external_data": False, "verbose": False}
        names = {"input_names": ["crops"], "output_names": list(backends.Outputs._fields)}
        torch.onnx.export(whole, (torch.from_numpy(crops[:2].copy()),), part, **names, **how)
    record = {"classifier": classifier.id, **fingerprint(file), "crops": len(crops), "crops_source": source}
    record |= {"parity": {}, "versions": versions("torch", "onnx", "onnxruntime", "openvino")}
    try:
        write_text(about, json.dumps(record))  # without it no back-end opens the file
        with torch.inference_mode():
            temperature = classifier.definition["temperature"]
            expected = backends.predict(lambda x: whole(torch.from_numpy(x)), crops, temperature)
        record["parity"] = parity(classifier.folder, crops, expected)
        write_text(about, json.dumps(record, indent=2) + "\n")
    except BaseException:
        file.unlink()
        about.unlink(missing_ok=True)
        raise
    return record


def parity_crops(classifier: Classifier, images: list[str] | None) -> tuple[np.ndarray, str]:
    """Crops to check parity on: of the images given, of the run around the folder, or of phantoms drawn now.

    Returns:
        uint8 (n, S, S) with n at most 1000, and where they come from.

    Raises:
        ClassifierError: none of the images given can be used.
    """
    from thyroid_lib import datasets

    size, stored = classifier.size, classifier.folder.resolve().parent / "data" / "finetune" / "crops.npy"
    if images is None and stored.is_file():
        crops = np.load(stored, mmap_mode="r", allow_pickle=False)
        if crops.shape[1:] == (size, size):
            rows = np.unique(np.linspace(0, len(crops) - 1, MOST_CROPS).astype(int))
            return np.array(crops[rows]), "crops of this run's data"
    source = "simulated frames" if images is None else "images given"
    files, _ = studies.find(images or datasets.read("phantom:clinic?patients=24").path)
    answers = classifier.classify_many(item.image for item in studies.items(files))
    found = (answer.crop for answer in answers if not isinstance(answer, FrameError))
    crops = list(itertools.islice(found, MOST_CROPS))
    if not crops:
        raise ClassifierError("parity needs at least one ultrasound frame; none of the images is one")
    return np.stack(crops), source


def parity(folder: Path, crops: np.ndarray, expected: np.ndarray) -> dict:
    """How close every installed back-end comes to eager fp32 PyTorch.

    Args:
        folder: the classifier's, with model.onnx.
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
        got = Classifier.load(folder, backend=name, precision=precision).probabilities(crops)
        difference = float(np.abs(got - expected).max())
        same = float((got.argmax(1) == expected.argmax(1)).mean())
        passed = difference <= MAX_DIFFERENCE if precision == "fp32" else same >= MIN_SAME_TYPE
        found[f"{name} {precision}"] = {"max_difference": difference, "same_type": same, "passed": passed}
        if precision == "fp32" and not passed:
            came = f"{name}: a probability differs by {difference:.2g} from PyTorch's"
            raise ClassifierError(f"{came}, at most {MAX_DIFFERENCE:g} is allowed; {ONNX} was not kept")
    return found
