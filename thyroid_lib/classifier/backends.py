"""Back-ends that run a saved classifier: PyTorch, ONNX Runtime or OpenVINO behind one interface.

Each is made from a classifier's folder and definition, and maps uint8 crops (N, S, S) to `Outputs`; normalization is
part of the graph. PyTorch is imported only by its own back-end.
"""

import functools
import importlib.util
import os
from pathlib import Path
from typing import NamedTuple

import numpy as np

from thyroid_lib.classifier.definition import ONNX, ONNX_RECORD, ClassifierError, verify
from thyroid_lib.common.files import DamagedFile, read_json

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


class OpenVino:
    """OpenVINO on the CPU; one compiled network per batch size: static shapes run faster than open ones."""

    def __init__(self, folder: Path, definition: dict, precision: str = "fp32", threads: int = 0):
        os.environ.setdefault("OPENVINO_TELEMETRY_OPT_OUT", "1")
        import openvino

        self.core, self.file, self.size = openvino.Core(), check_onnx(folder, definition), definition["size"]
        self.settings = {
            "INFERENCE_PRECISION_HINT": precision.replace("fp", "f"),
            "PERFORMANCE_HINT": "LATENCY",
        }
        if threads:
            self.settings["INFERENCE_NUM_THREADS"] = threads
        self.compiled = functools.lru_cache(4)(self._compile)

    def _compile(self, count: int):
        model = self.core.read_model(self.file)
        model.reshape([count, self.size, self.size])
        return self.core.compile_model(model, "CPU", self.settings)

    def run(self, crops: np.ndarray) -> Outputs:
        results = self.compiled(len(crops))(np.ascontiguousarray(crops))
        return Outputs(*(np.array(results[i], np.float32) for i in range(3)))


class OnnxRuntime:
    """ONNX Runtime on the CPU, fp32."""

    def __init__(self, folder: Path, definition: dict, precision: str = "fp32", threads: int = 0):
        if precision != "fp32":
            raise ClassifierError("onnxruntime runs in fp32 only: choose openvino or torch for bf16")
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.log_severity_level = threads, 3
        self.session = onnxruntime.InferenceSession(
            check_onnx(folder, definition), sess_options=options, providers=["CPUExecutionProvider"]
        )

    def run(self, crops: np.ndarray) -> Outputs:
        return Outputs(*self.session.run(None, {"crops": np.ascontiguousarray(crops)}))


class Torch:
    """PyTorch; BatchNorm folded into the convolutions, channels last, optionally bfloat16 autocast."""

    def __init__(self, folder: Path, definition: dict, precision: str = "fp32", threads: int = 0):
        import torch

        from thyroid_lib.classifier import networks

        self.torch, self.precision = torch, precision
        if threads:
            torch.set_num_threads(threads)
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        self.network = networks.Ensemble(networks.load_members(folder, definition)).eval()
        networks.fold_batch_norm(self.network)
        self.network.to(self.device, memory_format=torch.channels_last)

    def run(self, crops: np.ndarray) -> Outputs:
        torch = self.torch
        autocast = torch.autocast(self.device, torch.bfloat16, enabled=self.precision == "bf16")
        with torch.inference_mode(), autocast:
            outputs = self.network(torch.from_numpy(np.array(crops)).to(self.device))
        return Outputs(*(output.float().cpu().numpy() for output in outputs))


BACKENDS = {"openvino": OpenVino, "onnxruntime": OnnxRuntime, "torch": Torch}
"""Name of the package -> back-end, in the order of preference."""


class Refereed:
    """bfloat16 for most crops, fp32 for the close calls: those whose two best types differ by less than TIE.

    bfloat16 moves a probability by some thousandths, enough to swap two types that are as good as equal and
    nothing else; the close calls are few, so the type stays that of fp32 at nearly the speed of bfloat16.

    Args:
        quick: the bfloat16 back-end.
        exact: makes the fp32 one, when it is first needed.
        temperature: of each member.
    """

    def __init__(self, quick, exact, temperature: list[float]):
        self.quick, self.exact, self.temperature = quick, functools.cache(exact), temperature

    def run(self, crops: np.ndarray) -> Outputs:
        outputs = self.quick.run(crops)
        ordered = np.sort(probabilities(outputs.logits, self.temperature), axis=1)
        close = np.flatnonzero(ordered[:, -1] - ordered[:, -2] < TIE) if ordered.shape[1] > 1 else ()
        if len(close):
            again = self.exact().run(crops[close])
            outputs.logits[:, close] = again.logits
            outputs.features[close], outputs.maps[close] = again.features, again.maps
        return outputs


def choose(folder: Path, wanted: str = "auto") -> str:
    """Which back-end to run: the wanted one, or the fastest that is installed and has its file.

    Raises:
        ClassifierError: the wanted one cannot run, and what it needs.
    """
    if wanted not in ("auto", *BACKENDS):
        raise ClassifierError(f"back-end {wanted!r}: one of auto, {', '.join(BACKENDS)} was expected")
    needs = {}
    for name in BACKENDS if wanted == "auto" else [wanted]:
        if not installed(name):
            needs[name] = "install torch" if name == "torch" else 'pip install "thyroid_lib[deploy]"'
        elif name != "torch" and not (folder / ONNX).is_file():
            needs[name] = f"write {ONNX} first: python -m thyroid_lib export CLASSIFIER_DIR"
        else:
            return name
    listed = "; ".join(f"{name}: {need}" for name, need in needs.items())
    raise ClassifierError(f"this classifier cannot run here: {listed}")


def open_backend(
    folder: Path, definition: dict, name: str = "auto", precision: str = "fp32", threads: int = 0
):
    """Opens a back-end.

    Args:
        folder: the classifier's.
        definition: its classifier.json.
        name: of `BACKENDS`, or "auto"; see `choose`.
        precision: "fp32", or "bf16" (torch and openvino).
        threads: CPU threads; 0 leaves the choice to the back-end.

    Returns:
        Object with `run(crops uint8 (N, S, S)) -> Outputs`.

    Raises:
        ClassifierError: it cannot run here, or its file is not that of this classifier.
    """
    if precision not in PRECISIONS:
        raise ClassifierError(f"precision {precision!r}: one of {', '.join(PRECISIONS)} was expected")
    kind = BACKENDS[choose(folder, name)]
    opened = kind(folder, definition, precision, threads)
    if precision == "fp32":
        return opened
    return Refereed(opened, lambda: kind(folder, definition, threads=threads), definition["temperature"])


def check_onnx(folder: Path, definition: dict) -> Path:
    """Path of model.onnx, after checking by its record that both belong to this classifier.

    Raises:
        ClassifierError: record missing, of another classifier, or the file was changed.
    """
    try:
        record = read_json(folder / ONNX_RECORD)
    except DamagedFile:
        record = {}
    if record.get("classifier") != definition["id"]:
        raise ClassifierError(
            f"{ONNX_RECORD} is missing, damaged, or of another classifier than {definition['id']}; "
            "export it again: python -m thyroid_lib export CLASSIFIER_DIR"
        )
    return verify(folder, {"files": {ONNX: {key: record.get(key) for key in ("sha256", "bytes")}}}, ONNX)


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


def predict(run, crops: np.ndarray, temperature: list[float], batch_size: int = 16) -> np.ndarray:
    """`probabilities` of any number of crops, batch by batch.

    Args:
        run: a back-end's, or anything that gives logits (M, N, C) first.
        crops: uint8 (n, S, S).
        temperature: as in `probabilities`.
        batch_size: crops at a time.

    Returns:
        float64 (n, C); rows sum to 1.
    """
    batches = range(0, len(crops), batch_size)
    logits = [np.asarray(run(np.array(crops[start : start + batch_size]))[0]) for start in batches]
    return probabilities(np.concatenate(logits, axis=1), temperature)


def installed(name: str) -> bool:
    """Whether a package can be imported, without importing it."""
    return importlib.util.find_spec(name) is not None
