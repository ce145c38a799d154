"""Back-ends that run a saved classifier: PyTorch, ONNX Runtime or OpenVINO behind one interface.

Each maps uint8 crops (N, S, S) to `Outputs`; normalization is part of the graph. PyTorch is imported only by
its own back-end.
"""

import hashlib
import importlib.util
import json
import os
from pathlib import Path
from typing import NamedTuple

import numpy as np

from thyroid_lib.common.messages import named

WEIGHTS, ONNX, ONNX_RECORD = "model.safetensors", "model.onnx", "model.onnx.json"
TIE = 0.03  # difference of the two best probabilities under which bfloat16 does not decide
BACKENDS = ("openvino", "onnxruntime", "torch")  # in the order of preference
PRECISIONS = ("fp32", "bf16")


class BackendError(RuntimeError):
    """A back-end that is missing, does not fit or fails its parity check."""


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


def sha256(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def choose(folder: Path, wanted: str = "auto") -> str:
    """Which back-end to run: the wanted one, or the fastest that is installed and has its file.

    Raises:
        BackendError: the wanted one cannot run, and what it needs.
    """
    usable = {"torch": "" if installed("torch") else "install torch"}
    for name in ("openvino", "onnxruntime"):
        usable[name] = "" if installed(name) else 'install it: pip install "thyroid_lib[deploy]"'
        if not usable[name] and not (folder / ONNX).is_file():
            usable[name] = f"write {ONNX} first: python -m thyroid_lib export CLASSIFIER_DIR"
    if wanted == "auto":
        wanted = next((name for name in BACKENDS if not usable[name]), "")
        if not wanted:
            needs = "; ".join(f"{name}: {need}" for name, need in usable.items())
            raise BackendError(f"no back-end can run this classifier. {needs}")
    if wanted not in usable:
        raise BackendError(f"back-end {wanted!r}: one of auto, {', '.join(BACKENDS)} was expected")
    if usable[wanted]:
        raise BackendError(f"back-end {wanted} cannot run here: {usable[wanted]}")
    return wanted


def open_backend(name: str, folder: Path, definition: dict, precision: str = "fp32", threads: int = 0):
    """Opens a back-end by name; see `choose`.

    Args:
        name: "torch", "onnxruntime" or "openvino".
        folder: the classifier's.
        definition: its classifier.json.
        precision: "fp32", or "bf16" (torch and openvino).
        threads: CPU threads; 0 leaves the choice to the back-end.

    Returns:
        Object with `run(crops uint8 (N, S, S)) -> Outputs` and `name`.
    """
    if precision not in PRECISIONS:
        raise BackendError(f"precision {precision!r}: one of {', '.join(PRECISIONS)} was expected")
    if name != "torch":
        check_onnx(folder, definition)
    if (name, precision) == ("onnxruntime", "bf16"):
        raise BackendError("onnxruntime runs in fp32 only: choose openvino or torch for bf16")
    kind = {"torch": TorchBackend, "onnxruntime": OnnxRuntimeBackend, "openvino": OpenVinoBackend}[name]
    if precision == "fp32":
        return kind(folder, definition, threads=threads)
    quick = kind(folder, definition, "bf16", threads)
    return Refereed(quick, lambda: kind(folder, definition, threads=threads), definition["temperature"])


def check_onnx(folder: Path, definition: dict) -> dict:
    """The record of model.onnx, after checking that both belong to this classifier.

    Raises:
        BackendError: record missing, of another classifier, or the file was changed.
    """
    again = "export it again: python -m thyroid_lib export CLASSIFIER_DIR"
    try:
        record = json.loads((folder / ONNX_RECORD).read_text(encoding="utf-8"))
        expected, owner = record["sha256"], record["classifier"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BackendError(f"{ONNX_RECORD} is missing or damaged; {again}") from error
    if owner != definition["id"]:
        raise BackendError(
            f"{ONNX} belongs to classifier {named(owner)}, this is {definition['id']}; {again}"
        )
    if sha256(folder / ONNX) != expected:
        raise BackendError(f"{ONNX} is not the file that was exported (its SHA-256 differs); {again}")
    return record


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
        self.name, self.quick, self._make, self.temperature = quick.name, quick, exact, temperature
        self._exact = None

    def run(self, crops: np.ndarray) -> Outputs:
        outputs = self.quick.run(crops)
        ordered = np.sort(probabilities(outputs.logits, self.temperature), axis=1)
        close = np.flatnonzero(ordered[:, -1] - ordered[:, -2] < TIE) if ordered.shape[1] > 1 else ()
        if not len(close):
            return outputs
        self._exact = self._exact or self._make()
        again = self._exact.run(crops[close])
        outputs.logits[:, close] = again.logits
        outputs.features[close] = again.features
        outputs.maps[close] = again.maps
        return outputs


class TorchBackend:
    """PyTorch; BatchNorm folded into the convolutions, channels last, optionally bfloat16 autocast."""

    name = "torch"

    def __init__(self, folder: Path, definition: dict, precision: str = "fp32", threads: int = 0):
        import torch

        self.torch, self.precision = torch, precision
        if threads:
            torch.set_num_threads(threads)
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        self.network = ensemble(load_members(folder, definition))
        with torch.no_grad():
            _fold_batch_norm(self.network)
        self.network.to(self.device, memory_format=torch.channels_last)

    def run(self, crops: np.ndarray) -> Outputs:
        torch = self.torch
        autocast = torch.autocast(self.device, torch.bfloat16, enabled=self.precision == "bf16")
        with torch.inference_mode(), autocast:
            outputs = self.network(torch.from_numpy(np.array(crops)).to(self.device))
        return Outputs(*(output.float().cpu().numpy() for output in outputs))


class OnnxRuntimeBackend:
    """ONNX Runtime on the CPU, fp32."""

    name = "onnxruntime"

    def __init__(self, folder: Path, definition: dict, *, threads: int = 0):
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3
        self.session = onnxruntime.InferenceSession(
            folder / ONNX, sess_options=options, providers=["CPUExecutionProvider"]
        )

    def run(self, crops: np.ndarray) -> Outputs:
        return Outputs(*self.session.run(None, {"crops": np.ascontiguousarray(crops)}))


class OpenVinoBackend:
    """OpenVINO on the CPU; one compiled network per batch size: static shapes run faster than open ones."""

    name = "openvino"

    def __init__(self, folder: Path, definition: dict, precision: str = "fp32", threads: int = 0):
        os.environ.setdefault("OPENVINO_TELEMETRY_OPT_OUT", "1")
        import openvino

        self.core = openvino.Core()
        self.file, self.size = folder / ONNX, definition["size"]
        self.settings = {
            "INFERENCE_PRECISION_HINT": {"fp32": "f32", "bf16": "bf16"}[precision],
            "PERFORMANCE_HINT": "LATENCY",
        }
        if threads:
            self.settings["INFERENCE_NUM_THREADS"] = threads
        self.compiled = {}

    def run(self, crops: np.ndarray) -> Outputs:
        if len(crops) not in self.compiled:
            model = self.core.read_model(self.file)
            model.reshape([len(crops), self.size, self.size])
            if len(self.compiled) > 3:
                self.compiled.pop(next(iter(self.compiled)))
            self.compiled[len(crops)] = self.core.compile_model(model, "CPU", self.settings)
        results = self.compiled[len(crops)](np.ascontiguousarray(crops))
        return Outputs(*(np.array(results[i], np.float32) for i in range(3)))


def load_members(folder: Path, definition: dict) -> list:
    """The members as PyTorch networks in eval mode, from model.safetensors.

    Raises:
        BackendError: names or shapes of the weights are not those of the architecture.
    """
    import torch
    from safetensors.torch import load_file

    from thyroid_lib import network

    tensors = load_file(folder / WEIGHTS)
    members = []
    for number in range(definition["members"]):
        prefix = f"member{number}."
        state = {key[len(prefix) :]: value for key, value in tensors.items() if key.startswith(prefix)}
        with torch.device("meta"):  # no random initialization that is overwritten at once
            model = network.build(definition["architecture"])
        try:
            model.load_state_dict(state, assign=True)
        except RuntimeError as error:
            first = str(error).splitlines()[1:3]
            raise BackendError(
                f"{WEIGHTS} does not hold the architecture that classifier.json names (member {number}):"
                + " ".join(line.strip() for line in first)
            ) from error
        members.append(model.eval().requires_grad_(False))
    return members


def ensemble(members: list):
    """One PyTorch module over all members: uint8 crops (N, S, S) -> tensors in the order of `Outputs`."""
    import torch

    from thyroid_lib import network

    class Ensemble(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.members = torch.nn.ModuleList(members)

        def forward(self, crops):
            logits, features, maps = [], None, 0
            x = network.normalize(crops, self.members[0].config["in_chans"])
            x = x.contiguous(memory_format=torch.channels_last)
            for member in self.members:
                found = [member.forward_features(view) for view in network.views(x, member.config)]
                logits.append(sum(member.forward_head(each) for each in found) / len(found))
                features = found[0].mean((2, 3)) if features is None else features
                weight = member.fc.weight[:, :, None, None].to(found[0].dtype)
                seen = [torch.nn.functional.conv2d(each, weight) for each in found]
                straight = [seen[0], *(each.flip(3) for each in seen[1:])]
                maps = maps + sum(straight) / (len(found) * len(self.members))
            return torch.stack(logits), features, maps

    return Ensemble().eval()


def _fold_batch_norm(module) -> None:
    """Folds every BatchNorm into the convolution before it, in place; exact up to rounding."""
    import torch
    from torch.nn.utils.fusion import fuse_conv_bn_eval

    from thyroid_lib.layers.pointwise import PointwiseConv2d

    for child in module.children():
        _fold_batch_norm(child)
    if not isinstance(module, torch.nn.Sequential):
        return
    for first, second in zip(list(module._modules), list(module._modules)[1:]):
        owner, name = module, first
        while isinstance(owner._modules[name], torch.nn.Sequential):
            owner = owner._modules[name]
            name = list(owner._modules)[-1]
        conv, norm = owner._modules[name], module._modules[second]
        if type(conv) in (torch.nn.Conv2d, PointwiseConv2d) and isinstance(norm, torch.nn.BatchNorm2d):
            owner._modules[name] = fuse_conv_bn_eval(conv, norm)
            module._modules[second] = torch.nn.Identity()


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


def installed(name: str) -> bool:
    """Whether a package can be imported, without importing it."""
    return importlib.util.find_spec(name) is not None
