"""Weights from elsewhere: an explicit map of names, and a report of what was loaded that can be asserted.

The common port of Xception has a loader that filters on an empty dictionary and loads nothing, silently. Here
every entry of the source and of the model is accounted for, and loading nothing is an error.
"""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from thyroid_lib.common import fingerprint
from thyroid_lib.layers.peers import import_timm

HUB_NAME = "legacy_xception.tf_in1k"  # timm's name of the ImageNet weights; Apache-2.0
HUB = f"timm:{HUB_NAME}"  # what stands for them where a file could stand


@dataclass(frozen=True)
class LoadReport:
    """What became of every entry.

    Attributes:
        loaded: entries of the model that now hold the source's values.
        converted: entry -> how its values were changed to fit.
        kept: entries of the model without a counterpart in the source, left at their initial values.
        unused: entries of the source without a place in the model, with the reason.
    """

    loaded: list[str]
    converted: dict[str, str]
    kept: list[str]
    unused: dict[str, str]


def timm_names(middle_blocks: int) -> dict[str, str]:
    """Module paths of timm's `legacy_xception` -> ours."""
    names = {
        "conv1": "entry_flow.stem.0", "bn1": "entry_flow.stem.1",
        "conv2": "entry_flow.stem.3", "bn2": "entry_flow.stem.4",
        "conv3": "exit_flow.tail.0", "bn3": "exit_flow.tail.1",
        "conv4": "exit_flow.tail.3", "bn4": "exit_flow.tail.4", "fc": "fc",
    }  # fmt: skip
    blocks = [f"entry_flow.block{i}" for i in (1, 2, 3)]
    blocks += [f"middle_flow.{i}" for i in range(middle_blocks)]
    for number, block in enumerate([*blocks, "exit_flow.block"], start=1):
        names |= {f"block{number}.rep": f"{block}.body", f"block{number}.skip": f"{block}.shortcut.0"}
        names[f"block{number}.skipbn"] = f"{block}.shortcut.1"
    return names


def load_timm_weights(model: nn.Module, state_dict: dict[str, Tensor]) -> LoadReport:
    """Load timm's `legacy_xception` into the original or the optimized network of the same width.

    A stem of one channel gets the sum of the source's three, which is exact for a grey image repeated over
    them. The head is loaded only where the number of classes agrees. What max-pooling's replacements should
    be, the source cannot say: they are made to start by passing on every second pixel, so that the layers
    after them see what they were trained on. Transition layers and projections are kept as initialized.

    Args:
        model: of `network.xception` or `network.optimized_xception`, width 1.
        state_dict: name -> tensor, as `timm.create_model("legacy_xception").state_dict()` gives it.

    Raises:
        ValueError: nothing, or not the whole body, would be loaded.
    """
    names = timm_names(len(model.middle_flow))
    translated, strangers = {}, {}
    for key, value in state_dict.items():
        layer = next((name for name in names if key.startswith(name + ".")), None)
        if layer is None:
            strangers[key] = "not a layer of legacy_xception"
        else:
            ours = names[layer] + key.removeprefix(layer)
            translated[ours.replace(".conv1.", ".depthwise.")] = value
    report = _load(model, translated)
    report.unused.update(strangers)
    report.converted.update(
        dict.fromkeys(start_as_subsampling(model), "starts by passing on every second pixel")
    )
    return report


def start_as_subsampling(model: nn.Module) -> list[str]:
    """Make the convolutions that replace max-pooling pass on every second pixel, almost unchanged.

    A tenth of their random weights stays, so that every pixel still gets a gradient.

    Returns:
        Names of the weights that were changed; none where the network has max-pooling.
    """
    changed = []
    for name, module in model.named_modules():
        if ".down." in f"{name}." and isinstance(module, nn.Conv2d):
            unit = nn.init.dirac_(torch.empty_like(module.weight), module.groups)
            module.weight.data.mul_(0.1).add_(unit)
            changed.append(f"{name}.weight")
    return changed


def load_pretrained_body(model: nn.Module, state_dict: dict[str, Tensor]) -> LoadReport:
    """Load weights of the same network trained on other classes; a head of another size is left out.

    Args:
        model: the network to fine-tune.
        state_dict: of a network with the same switches (pre-training's checkpoint).

    Raises:
        ValueError: an entry of the body is missing or has another shape.
    """
    return _load(model, state_dict, whole=True)


def _load(model: nn.Module, source: dict[str, Tensor], whole: bool = False) -> LoadReport:
    target = model.state_dict()
    loaded, converted, unused, problems = {}, {}, {}, []
    for key, value in source.items():
        if key not in target:
            unused[key] = "the model has no such entry"
            continue
        shape = tuple(target[key].shape)
        if key == "entry_flow.stem.0.weight" and shape[1] == 1 and value.shape[1] == 3:
            value = value.sum(1, keepdim=True)
            converted[key] = "three input channels summed into one"
        if tuple(value.shape) == shape:
            loaded[key] = value
        elif key.startswith("fc."):
            unused[key] = f"another number of classes: {tuple(value.shape)}, the model has {shape}"
        else:
            problems.append(f"{key}: expected {shape}, got {tuple(value.shape)}")
    kept = [key for key in target if key not in loaded]
    for key in kept:
        new = key.startswith(("transition", "project")) or ".down." in key
        if not key.startswith("fc.") and (whole or not new):
            problems.append(f"{key}: not in the source")
    if whole:
        problems += [f"{key}: not in the model" for key in unused if not key.startswith("fc.")]
    if problems or not loaded:
        shown = "; ".join(problems[:4]) + (f"; and {len(problems) - 4} more" if len(problems) > 4 else "")
        raise ValueError(
            f"these weights do not fit this network ({len(loaded)} of {len(target)} entries would load). "
            f"{shown}. Nothing was loaded: take weights of the same architecture, width and switches; in a run, "
            "give the switches of `network` to all notebooks (profile: under common; or --set network=...)"
        )
    model.load_state_dict(loaded, strict=False)
    return LoadReport(list(loaded), converted, kept, unused)


def read_weights(source: str | Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read weights from a local file, or timm's ImageNet weights from the hub where a network exists.

    Args:
        source: path of a .safetensors, .pth or .pt file, or `HUB` for timm's ImageNet weights.

    Returns:
        The state dict (name -> tensor, on the CPU) and its provenance for `run.json`: source, sha256, licence.

    Raises:
        FileNotFoundError: no such file.
        ValueError: the file holds no weights.
        ImportError: `HUB` without timm.
        ConnectionError: `HUB` without a network.
    """
    hub = str(source) == HUB
    path, licence = _download() if hub else (Path(source), "as its owner states; not in the file")
    if not path.is_file():
        raise FileNotFoundError(
            f"expected weights at {path}: no such file; give a .safetensors or .pth, or {HUB}"
        )
    if path.suffix == ".safetensors":
        from safetensors.torch import load_file

        state_dict = load_file(path)
    else:
        state_dict = torch.load(path, map_location="cpu", weights_only=True)
        state_dict = state_dict.get("state_dict", state_dict)
    if not state_dict or not all(isinstance(v, Tensor) for v in state_dict.values()):
        raise ValueError(f"expected a dictionary of tensors in {path}, got something else; save a state_dict")
    name = HUB_NAME if hub else path.name
    return state_dict, {"source": name, "sha256": fingerprint.sha256(path), "licence": licence}


def _download() -> tuple[Path, str]:
    """Fetch timm's weights into torch's cache, as its release names them, and check their hash."""
    card = import_timm().get_pretrained_cfg(HUB_NAME)
    name = card.url.rpartition("/")[2]  # xception-43020ad28.pth: the start of its SHA-256
    path = Path(torch.hub.get_dir()) / "checkpoints" / name
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            torch.hub.download_url_to_file(card.url, path, path.stem.rpartition("-")[2], progress=False)
        except OSError as error:
            raise ConnectionError(
                f"expected to fetch {HUB_NAME} from {card.url}, got: {error}. Fetch the file where there is a "
                f"network and give its path instead of {HUB}"
            ) from error
    return path, card.license
