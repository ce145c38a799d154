"""Back-ends that run a saved classifier: PyTorch, ONNX Runtime or OpenVINO behind one interface.

Each opens a classifier's folder and gives a function from uint8 crops (N, S, S) to `Outputs`; normalization is part of
the graph. PyTorch is imported only by its own back-end.
"""

import functools
import importlib.util
import os
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from thyroid_lib.classifier.definition import ONNX, ONNX_RECORD, ClassifierError, verify
from thyroid_lib.common.files import read_json

TIE = 0.03  # difference of the two best probabilities under which bfloat16 does not decide
PRECISIONS = ("fp32", "bf16")


class Outputs(NamedTuple):
    """What a network says of N crops.

    Attributes:
        logits: float32 (M, N, C), of each member.
        features: float32 (N, D), the first member's last feature map, averaged over its pixels.
        maps: float32 (N, C, h, w), class activation maps averaged over members: the fully connected layer
            applied to every pixel of the feature map (Zhou et al. 2016, arXiv 1512.04150). Up to its ReLU and
            a constant, Grad-CAM at the exit flow, for a network that ends in average and linear layer.
    """

    logits: np.ndarray
    features: np.ndarray
    maps: np.ndarray


Run = Callable[[np.ndarray], Outputs]  # what runs a network: crops uint8 (N, S, S) -> `Outputs`


def open_openvino(folder: Path, definition: dict, precision: str, threads: int) -> Run:
    """OpenVINO on the CPU; one compiled network per batch size: static shapes run faster than open ones."""
    os.environ.setdefault("OPENVINO_TELEMETRY_OPT_OUT", "1")
    from openvino import Core

    core, file, size = Core(), check_onnx(folder, definition), definition["size"]
    settings = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": threads}
    settings["INFERENCE_PRECISION_HINT"] = precision.replace("fp", "f")

    @functools.lru_cache(4)
    def compiled(count: int):
        model = core.read_model(file)
        model.reshape([count, size, size])
        return core.compile_model(model, "CPU", settings)

    def run(crops: np.ndarray) -> Outputs:
        results = compiled(len(crops))(np.ascontiguousarray(crops))
        return Outputs(*(np.array(results[i], np.float32) for i in range(3)))

    return run


def open_onnxruntime(folder: Path, definition: dict, precision: str, threads: int) -> Run:
    """ONNX Runtime on the CPU, fp32."""
    if precision != "fp32":
        raise ClassifierError("onnxruntime runs in fp32 only: choose openvino or torch for bf16")
    from onnxruntime import InferenceSession, SessionOptions

    options = SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = threads, 3
    session = InferenceSession(check_onnx(folder, definition), options, providers=["CPUExecutionProvider"])
    return lambda crops: Outputs(*session.run(None, {"crops": np.ascontiguousarray(crops)}))


def open_torch(folder: Path, definition: dict, precision: str, threads: int) -> Run:
    """PyTorch; BatchNorm folded into the convolutions, channels last, optionally bfloat16 autocast."""
    import torch

    from thyroid_lib.classifier import networks

    if threads:
        torch.set_num_threads(threads)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    network = networks.Ensemble(networks.load_members(folder, definition)).eval()
    networks.fold_batch_norm(network)
    network.to(device, memory_format=torch.channels_last)

    def run(crops: np.ndarray) -> Outputs:
        with torch.inference_mode(), torch.autocast(device, torch.bfloat16, enabled=precision == "bf16"):
            outputs = network(torch.from_numpy(np.array(crops)).to(device))
        return Outputs(*(output.float().cpu().numpy() for output in outputs))

    return run


# Name of the package -> back-end, in the order of preference.
BACKENDS = {"openvino": open_openvino, "onnxruntime": open_onnxruntime, "torch": open_torch}


def refereed(quick: Run, exact: Callable[[], Run], temperature: list[float]) -> Run:
    """bfloat16 for most crops, fp32 for the close calls: those whose two best types differ by less than TIE.

    bfloat16 moves a probability by some thousandths, enough to swap two types that are as good as equal and
    nothing else; the close calls are few, so the type stays that of fp32 at nearly the speed of bfloat16.

    Args:
        quick: the bfloat16 back-end.
        exact: makes the fp32 one, when it is first needed.
        temperature: of each member.
    """
    exact = functools.cache(exact)

    def run(crops: np.ndarray) -> Outputs:
        outputs = quick(crops)
        ordered = np.sort(probabilities(outputs.logits, temperature), axis=1)
        close = np.flatnonzero(ordered[:, -1] - ordered[:, :-1].max(1, initial=-1) < TIE)
        if len(close):
            again = exact()(crops[close])
            outputs.logits[:, close] = again.logits
            outputs.features[close], outputs.maps[close] = again.features, again.maps
        return outputs

    return run


def choose(folder: Path, wanted: str = "auto") -> str:
    """Which back-end to run: the wanted one, or the fastest that is installed and has its file.

    Raises:
        ClassifierError: the wanted one cannot run, and what it needs.
    """
    needs = []
    for name in BACKENDS if wanted == "auto" else [wanted]:
        if not installed(name):
            needs.append(f"{name}: pip install " + ("torch" if name == "torch" else '"thyroid_lib[deploy]"'))
        elif name != "torch" and not (folder / ONNX).is_file():
            needs.append(f"{name}: write {ONNX} first: python -m thyroid_lib export CLASSIFIER_DIR")
        else:
            return name
    raise ClassifierError(f"this classifier cannot run here: {'; '.join(needs)}")


def open_backend(folder: Path, definition: dict, name: str, precision: str = "fp32", threads: int = 0) -> Run:
    """Opens a back-end.

    Args:
        folder: the classifier's.
        definition: its classifier.json.
        name: of `BACKENDS`, or "auto"; see `choose`.
        precision: "fp32", or "bf16" (torch and openvino).
        threads: CPU threads; 0 leaves the choice to the back-end.

    Raises:
        ClassifierError: it cannot run here, or its file is not that of this classifier.
    """
    for what, came, known in ("back-end", name, ("auto", *BACKENDS)), ("precision", precision, PRECISIONS):
        if came not in known:
            raise ClassifierError(f"{what} {came!r}: one of {', '.join(known)} was expected")
    opened = functools.partial(BACKENDS[choose(folder, name)], folder, definition, threads=threads)
    if precision == "fp32":
        return opened(precision="fp32")
    return refereed(opened(precision=precision), lambda: opened(precision="fp32"), definition["temperature"])


def check_onnx(folder: Path, definition: dict) -> Path:
    """Path of model.onnx, after checking by its record that both belong to this classifier.

    Raises:
        ClassifierError: record missing, of another classifier, or the file was changed.
        DamagedFile: the record is no JSON.
    """
    record = read_json(folder / ONNX_RECORD)
    if record.get("classifier") != definition["id"]:
        problem = f"{ONNX_RECORD} is missing, or of another classifier than {definition['id']}"
        raise ClassifierError(f"{problem}; export it again: python -m thyroid_lib export CLASSIFIER_DIR")
    return verify(folder / ONNX, {key: record.get(key) for key in ("sha256", "bytes")})


def probabilities(logits: np.ndarray, temperature: list[float]) -> np.ndarray:
    """Calibrated probabilities: softmax of each member at its temperature, averaged over members.

    Args:
        logits: float (M, N, C).
        temperature: M values, above 0.

    Returns:
        float64 (N, C); rows sum to 1.
    """
    scaled = np.asarray(logits, np.float64) / np.asarray(temperature, np.float64)[:, None, None]
    scaled = np.exp(scaled - scaled.max(2, keepdims=True))
    return (scaled / scaled.sum(2, keepdims=True)).mean(0)


def predict(run: Run, crops: np.ndarray, temperature: list[float]) -> np.ndarray:
    """`probabilities` of any number of crops, in batches of 16.

    Args:
        run: a back-end, or anything else that gives logits (M, N, C) first.
        crops: uint8 (n, S, S).
        temperature: as in `probabilities`.

    Returns:
        float64 (n, C); rows sum to 1.
    """
    logits = [np.asarray(run(np.array(crops[at : at + 16]))[0]) for at in range(0, len(crops), 16)]
    return probabilities(np.concatenate(logits, axis=1), temperature)


def installed(name: str) -> bool:
    """Whether a package can be imported, without importing it."""
    return importlib.util.find_spec(name) is not None
