"""What a network is made of and what it costs.

Shapes and costs are computed on torch's "meta" device: no memory, no arithmetic, milliseconds at any size.
"""

import copy

import pandas as pd
import torch
from torch import Tensor, nn

from thyroid_lib import network

PARTS = {
    "entry_flow": ("stem", "block1", "block2", "block3"),
    "transition1": (),
    "dense1": (),
    "project1": (),
    "middle_flow": None,  # one row per block
    "transition2": (),
    "dense2": (),
    "project2": (),
    "exit_flow": ("block", "tail"),
    "fc": (),
}


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
    macs, shapes = _measure(model, size)
    fields = _receptive_fields(model)
    rows = []
    for path in _parts(model):
        module = model.get_submodule(path)
        own = [name for name, _ in module.named_modules(prefix=path)]
        shape = (*shapes[path][1:], 1, 1)[:3]
        rows.append(
            {
                "part": path,
                "layers": describe(module),
                "channels": shape[0],
                "height": shape[1],
                "width": shape[2],
                "parameters": parameters(module),
                "MMACs": sum(macs.get(name, 0) for name in own) / 1e6,
                "receptive field": max([fields[name] for name in own if name in fields], default=0),
            }
        )
    table = pd.DataFrame(rows)
    table["receptive field"] = table["receptive field"].cummax()
    return table


def describe(module: nn.Module) -> str:
    """What a part of the network holds, in a few words."""
    if isinstance(module, network.Transition):
        return f"1×1 convolution, {module.pooling} pooling" if max(module.strides) > 1 else "1×1 convolution"
    if isinstance(module, network.DenseConnection):
        return "concatenation over channels"
    if isinstance(module, nn.Linear):
        return "global average, fully connected"
    inner = {m.depthwise for m in module.modules() if isinstance(m, network.SeparableConv2d)}
    words = []
    for layer in module.modules():
        if isinstance(layer, nn.MaxPool2d):
            words.append("max-pooling 3×3 / 2")
        elif isinstance(layer, network.SeparableConv2d):
            words.append("separable 3×3" + _stride(layer.depthwise))
        elif isinstance(layer, nn.Conv2d) and layer.kernel_size == (3, 3) and layer not in inner:
            words.append(("depthwise 3×3" if layer.groups > 1 else "3×3") + _stride(layer))
    counted = {word: words.count(word) for word in words}
    return ", ".join(f"{n} × {word}" if n > 1 else word for word, n in counted.items()) or "1×1 projection"


def _stride(conv: nn.Conv2d) -> str:
    if conv.stride == (1, 1):
        return ""
    return " / 2" + (f", dilation {conv.dilation[0]}" if conv.padding != (0, 0) else "")


def map_shapes(model: network.Xception, size: int | tuple[int, int]) -> dict[str, tuple[int, int, int]]:
    """(channels, height, width) of every map of `forward_maps`, by name."""
    height, width = (size, size) if isinstance(size, int) else size
    ghost = copy.deepcopy(model).to("meta").eval()
    with torch.no_grad():
        maps = ghost.forward_maps(torch.empty(1, model.config["in_chans"], height, width, device="meta"))
    return {name: tuple(m.shape[1:]) for name, m in maps.items()}


def parameters(module: nn.Module) -> int:
    """Trainable parameters."""
    return sum(p.numel() for p in module.parameters() if p.requires_grad)


def gmacs(model: nn.Module, size: int | tuple[int, int]) -> float:
    """10^9 multiplications of convolutions and fully connected layers, for one image of `size` px."""
    return sum(_measure(model, size)[0].values()) / 1e9


def costs(variants: dict[str, dict], size: int, **common) -> pd.DataFrame:
    """Parameters and multiplications of several configurations, never allocated.

    Args:
        variants: name -> configuration for `network.build`.
        size: of the image, px a side.
        common: switches of all of them.

    Returns:
        Columns: variant, parameters, gmacs, and both relative to the first variant (1 = the same).
    """
    rows = []
    for name, config in variants.items():
        with torch.device("meta"):
            model = network.build(common | config)
        rows.append({"variant": name, "parameters": parameters(model), "gmacs": gmacs(model, size)})
    table = pd.DataFrame(rows)
    for column in ("parameters", "gmacs"):
        table[f"{column}_ratio"] = table[column] / table[column].iloc[0]
    return table


def _parts(model) -> list[str]:
    paths = []
    for part, inner in PARTS.items():
        if not hasattr(model, part):
            continue
        names = [n for n, _ in getattr(model, part).named_children()] if inner is None else inner
        paths += [f"{part}.{name}" for name in names] or [part]
    return paths


def _measure(model, size) -> tuple[dict[str, int], dict[str, tuple[int, ...]]]:
    """Multiplications of each layer and output shape of each module, for one image."""
    height, width = (size, size) if isinstance(size, int) else size
    ghost = copy.deepcopy(model).to("meta").eval()
    macs, shapes = {}, {}

    def note(module, _, output, name):
        if not isinstance(output, Tensor):
            return
        shapes[name] = tuple(output.shape)
        if isinstance(module, nn.Conv2d):
            macs[name] = output.numel() * module.weight[0].numel()
        elif isinstance(module, nn.Linear):
            macs[name] = output.numel() * module.in_features

    for name, module in ghost.named_modules():
        module.register_forward_hook(lambda m, i, o, name=name: note(m, i, o, name))
    with torch.no_grad():
        ghost(torch.empty(1, model.config["in_chans"], height, width, device="meta"))
    return macs, shapes


def _receptive_fields(model) -> dict[str, int]:
    """Receptive field after each windowed layer of the main path: r += (k - 1) d j, j *= s."""
    field, jump, fields = 1, 1, {}
    for name, module in model.named_modules():
        if not isinstance(module, nn.Conv2d | nn.MaxPool2d) or "shortcut" in name or "transition" in name:
            continue
        kernel, stride, dilation = (_first(getattr(module, k)) for k in ("kernel_size", "stride", "dilation"))
        field += (kernel - 1) * dilation * jump
        jump *= stride
        fields[name] = field
    return fields


def _first(value) -> int:
    return value[0] if isinstance(value, tuple) else value
