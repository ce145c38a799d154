"""What a network is made of, and its parameters and multiplications.

Shapes and costs are computed on torch's "meta" device: no memory, no arithmetic, milliseconds at any size.
"""

import copy
from collections import Counter

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from thyroid_lib import network


def layer_table(model: network.Xception, size: int | tuple[int, int]) -> pd.DataFrame:
    """The network, one row for each part in the order of execution.

    Args:
        model: of `network.build`, on any device; it is not changed.
        size: of the image in px, a side or (height, width).

    Returns:
        Columns: part, layers (what it holds), channels, height, width (of its output; px), parameters
        (trainable), MMACs (10^6 multiplications of convolutions and fully connected layers, one image),
        receptive field (px of the image that one output can see, a side; of the longest path).
    """
    ghost, image = _ghost(model, size)
    parts, shapes, rows, field, jump = {}, {}, [], 1, 1
    for name, part in ghost.named_children():
        if name.endswith("_flow"):
            parts |= {f"{name}.{inner}": block for inner, block in part.named_children()}
        elif not isinstance(part, nn.Dropout):
            parts[name] = part
    for path, part in parts.items():
        part.register_forward_hook(lambda _m, _i, output, path=path: shapes.update({path: output.shape[1:]}))
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        ghost(image)
    flops = counter.get_flop_counts()
    for path, part in parts.items():
        for name, layer in part.named_modules(prefix=path):
            on_main_path = "shortcut" not in name and "transition" not in name
            if isinstance(layer, nn.Conv2d | nn.MaxPool2d) and on_main_path:
                field += (np.max(layer.kernel_size) - 1) * np.max(layer.dilation) * jump
                jump *= np.max(layer.stride)
        channels, height, width = (*shapes[path], 1, 1)[:3]
        row = {"part": path, "layers": describe(part), "channels": channels, "height": height, "width": width}
        row["parameters"] = parameters(part)
        row["MMACs"] = sum(flops.get(f"{type(ghost).__name__}.{path}", {}).values()) / 2e6
        rows.append(row | {"receptive field": field})
    return pd.DataFrame(rows)


def describe(module: nn.Module) -> str:
    """What a part of the network holds, in a few words."""
    if isinstance(module, network.Transition):
        return f"1×1 convolution, {module.pooling} pooling" if max(module.strides) > 1 else "1×1 convolution"
    if isinstance(module, network.DenseConnection):
        return "concatenation over channels"
    if isinstance(module, nn.Linear):
        return "global average, fully connected"
    words = Counter()
    for name, layer in module.named_modules():
        if isinstance(layer, nn.MaxPool2d):
            words["max-pooling 3×3 / 2"] += 1
        elif isinstance(layer, nn.Conv2d) and layer.kernel_size == (3, 3):
            kind = "separable " if name.endswith("depthwise") else "depthwise " * (layer.groups > 1)
            spread = f", dilation {layer.dilation[0]}" if layer.padding != (0, 0) else ""
            words[f"{kind}3×3" + (f" / 2{spread}" if layer.stride != (1, 1) else "")] += 1
    return ", ".join(f"{n} × {word}" if n > 1 else word for word, n in words.items()) or "1×1 projection"


def map_shapes(model: network.Xception, size: int | tuple[int, int]) -> dict[str, tuple[int, int, int]]:
    """(channels, height, width) of every map of `forward_maps`, by name."""
    ghost, image = _ghost(model, size)
    with torch.no_grad():
        return {name: tuple(found.shape[1:]) for name, found in ghost.forward_maps(image).items()}


def parameters(module: nn.Module) -> int:
    """Trainable parameters."""
    return sum(p.numel() for p in module.parameters() if p.requires_grad)


def gmacs(model: nn.Module, size: int | tuple[int, int]) -> float:
    """10^9 multiplications of convolutions and fully connected layers, for one image of `size` px."""
    ghost, image = _ghost(model, size)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        ghost(image)
    return counter.get_total_flops() / 2e9  # an operation is a multiplication or an addition


def costs(variants: dict[str, dict], size: int, **common) -> pd.DataFrame:
    """Parameters and multiplications of several configurations, never allocated.

    Args:
        variants: name -> configuration for `network.build`.
        size: of the image, px a side.
        common: switches of all of them.

    Returns:
        Columns: variant, parameters, gmacs (10^9, one image).
    """
    rows = []
    for name, config in variants.items():
        with torch.device("meta"):
            model = network.build(common | config)
        rows.append({"variant": name, "parameters": parameters(model), "gmacs": gmacs(model, size)})
    return pd.DataFrame(rows)


def _ghost(model: nn.Module, size: int | tuple[int, int]) -> tuple[nn.Module, Tensor]:
    """A copy of the network and one image that have shapes and no content."""
    height, width = (size, size) if isinstance(size, int) else size
    image = torch.empty(1, model.config["in_chans"], height, width, device="meta")
    return copy.deepcopy(model).to("meta").eval(), image
