"""What a network is made of, what it costs, what it reads and how its maps hang together.

Shapes and costs are computed on torch's "meta" device: no memory, no arithmetic, milliseconds at any size.
"""

import copy

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
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
        (trainable), gmacs (10^9 multiplications of convolutions and fully connected layers, one image),
        receptive_field (px of the image that one output can see, a side; of the longest path).
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
                "layers": _describe(module),
                "channels": shape[0],
                "height": shape[1],
                "width": shape[2],
                "parameters": parameters(module),
                "gmacs": sum(macs.get(name, 0) for name in own) / 1e9,
                "receptive_field": max([fields[name] for name in own if name in fields], default=0),
            }
        )
    table = pd.DataFrame(rows)
    table["receptive_field"] = table["receptive_field"].cummax()
    return table


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


def gradient_coverage(downsampling: str, dilation: int, size: int) -> np.ndarray:
    """How many output pixels send a gradient to each input pixel of a replaced pool.

    Args:
        downsampling: as in `network.Xception`; max-pooling sends each output's gradient to one winner.
        dilation: of the convolution.
        size: of the map, px a side.

    Returns:
        int (size, size): 0 where the layer never reads.
    """
    if downsampling == "max_pool":
        x = torch.rand(1, 1, size, size, generator=torch.Generator().manual_seed(0)).requires_grad_()
        y = F.max_pool2d(x, 3, 2, 1)
    else:
        x = torch.zeros(1, 1, size, size, requires_grad=True)
        y = F.conv2d(x, torch.ones(1, 1, 3, 3), stride=2, padding=dilation, dilation=dilation)
    return torch.autograd.grad(y.sum(), x)[0][0, 0].round().int().numpy()


def unread_pixels(model: network.Xception, size: int | tuple[int, int], seed: int = 0) -> pd.DataFrame:
    """For each down-sampling of the network as it is: which pixels of its input get no gradient.

    Measured, not deduced: a random image goes in, a random gradient comes back from each down-sampling alone.

    Returns:
        Columns: layer, height, width (of its input, px), unread (pixels without gradient in any channel).
    """
    height, width = (size, size) if isinstance(size, int) else size
    generator = torch.Generator().manual_seed(seed)
    image = torch.randn(1, model.config["in_chans"], height, width, generator=generator)
    inputs = {}
    downs = [
        (n, m) for n, m in model.named_modules() if n.endswith(".down") and not isinstance(m, nn.Identity)
    ]
    hooks = [
        module.register_forward_pre_hook(lambda _, args, name=name: inputs.update({name: args[0]}))
        for name, module in downs
    ]
    with evaluating(model), torch.no_grad():
        model.forward_features(image)
    for hook in hooks:
        hook.remove()
    rows = []
    for name, module in downs:
        x = inputs[name].detach().requires_grad_()
        with evaluating(model):
            y = module(x)
        grad = torch.autograd.grad(y, x, torch.randn(y.shape, generator=generator))[0]
        unread = int((grad == 0).all(1).sum())
        rows.append({"layer": name, "height": x.shape[2], "width": x.shape[3], "unread": unread})
    return pd.DataFrame(rows)


def wiring(model: network.Xception, images: Tensor, seed: int = 0) -> pd.DataFrame:
    """Disturb x on its way to T1, F1 and F2, one at a time, and see which maps change.

    The projections are given random weights meanwhile: at their identity they would hide T1 and T2.

    Returns:
        bool, a row for each disturbed map, a column for each map of `forward_maps` after x.
    """
    model = copy.deepcopy(model).eval()
    generator = torch.Generator().manual_seed(seed)
    for name in ("project1", "project2"):
        if isinstance(getattr(model, name, None), nn.Conv2d):
            nn.init.normal_(getattr(model, name).weight, std=0.05, generator=generator)

    def noisy(x):
        return x + torch.randn(x.shape, generator=generator)

    places = {
        "x (to T1)": lambda: model.transition1.register_forward_pre_hook(lambda _, a: (noisy(a[0]), *a[1:])),
        "F1": lambda: model.entry_flow.register_forward_hook(lambda _m, _a, y: noisy(y)),
        "F2": lambda: model.middle_flow.register_forward_hook(lambda _m, _a, y: noisy(y)),
    }
    rows = {}
    with torch.inference_mode():
        before = model.forward_maps(images)
        for place, disturb in places.items():
            hook = disturb()
            after = model.forward_maps(images)
            hook.remove()
            rows[place] = {name: not torch.equal(before[name], after[name]) for name in before if name != "x"}
    return pd.DataFrame(rows).T.rename_axis("disturbed")


def execution_order(model: network.Xception, images: Tensor) -> list[str]:
    """Names of the network's parts in the order in which a forward pass calls them."""
    calls = []
    hooks = [
        module.register_forward_hook(lambda *_, name=name: calls.append(name))
        for name, module in model.named_children()
    ]
    with evaluating(model), torch.inference_mode():
        model(images)
    for hook in hooks:
        hook.remove()
    return calls


class evaluating:
    """Context in which a model is in evaluation mode; its mode comes back afterwards."""

    def __init__(self, model: nn.Module):
        self.model, self.mode = model, model.training

    def __enter__(self):
        return self.model.eval()

    def __exit__(self, *_):
        self.model.train(self.mode)


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


def _describe(module: nn.Module) -> str:
    """What a part holds, in a few words."""
    if isinstance(module, network.Transition):
        return f"1×1 convolution, {module.pooling} pooling" if max(module.strides) > 1 else "1×1 convolution"
    if isinstance(module, network.DenseConnection):
        return "concatenation over channels"
    if isinstance(module, nn.Linear):
        return "global average, fully connected"
    words = []
    for layer in module.modules():
        if isinstance(layer, network.SeparableConv2d) and not _dilated(layer.depthwise):
            words.append("separable 3×3")
        elif isinstance(layer, nn.MaxPool2d):
            words.append("max-pooling 3×3 / 2")
        elif isinstance(layer, nn.Conv2d) and _dilated(layer):
            words.append(f"dilated 3×3 / 2, rate {layer.dilation[0]}")
        elif type(layer) is nn.Conv2d and layer.kernel_size == (3, 3):
            words.append("3×3" + (" / 2" if layer.stride == (2, 2) else ""))
    counted = {word: words.count(word) for word in words}
    return ", ".join(f"{n} × {word}" if n > 1 else word for word, n in counted.items()) or "1×1 projection"


def _dilated(conv: nn.Conv2d) -> bool:
    return conv.kernel_size == (3, 3) and conv.stride == (2, 2) and conv.padding == conv.dilation
