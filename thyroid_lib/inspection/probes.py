"""Experiments on a network: what its down-sampling reads, how its maps hang together, whether it is timm's."""

import copy
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from thyroid_lib import network
from thyroid_lib.inspection import structure
from thyroid_lib.layers.peers import import_timm

FULL_COVERAGE = 71
"""px: from this side on every map that is halved has at least 5 px a side, which dilation 3 needs to read all."""


def gradient_coverage(downsampling: str, dilation: int, size: int) -> np.ndarray:
    """How many output pixels send a gradient to each input pixel of a replaced pool.

    Args:
        downsampling: as in `network.Xception`; max-pooling sends each output's gradient to one winner.
        dilation: of the convolution.
        size: of the map, px a side.

    Returns:
        int (size, size): 0 where the layer never reads.
    """
    x = torch.rand(1, 1, size, size, generator=torch.Generator().manual_seed(0)).requires_grad_()
    if downsampling == "max_pool":
        y = F.max_pool2d(x, 3, 2, 1)
    else:
        y = F.conv2d(x, torch.ones(1, 1, 3, 3), stride=2, padding=dilation, dilation=dilation)
    return torch.autograd.grad(y.sum(), x)[0][0, 0].round().int().numpy()


def unread_pixels(model: network.Xception, size: int | tuple[int, int]) -> pd.DataFrame:
    """For each down-sampling of the network as it is: which pixels of its input get no gradient.

    Measured, not deduced: a random image goes in, a random gradient comes back from each down-sampling alone.

    Returns:
        Columns: layer, height, width (of its input, px), unread (pixels without gradient in any channel).
    """
    grads = _through_downsamplings(model, size)
    rows = [(name, *grad.shape[2:], int((grad == 0).all(1).sum())) for name, grad in grads]
    return pd.DataFrame(rows, columns=["layer", "height", "width", "unread"])


def gradient_reach(model: nn.Module, size: int | tuple[int, int]) -> float | None:
    """Share of the values entering the network's four down-samplings that get a gradient back from them.

    Counted per pixel and channel: max-pooling sends a gradient to the winners only, a convolution of stride 2 and
    dilation 2 to a quarter of the pixels. None for a network that is not of this study.
    """
    if not isinstance(model, network.Xception):
        return None
    grads = [grad for _, grad in _through_downsamplings(model, size)]
    return sum(int((grad != 0).sum()) for grad in grads) / sum(grad.numel() for grad in grads)


def _through_downsamplings(model: network.Xception, size) -> Iterator[tuple[str, Tensor]]:
    """The gradient at the input of each down-sampling when a random one comes back at its output."""
    generator = torch.Generator().manual_seed(0)
    height, width = (size, size) if isinstance(size, int) else size
    image = torch.randn(1, model.config["in_chans"], height, width, generator=generator)
    model, inputs = copy.deepcopy(model).eval(), {}
    downs = {name: part for name, part in model.named_modules() if name.endswith(".down")}
    for part in downs.values():
        part.register_forward_pre_hook(lambda part, args: inputs.update({part: args[0]}))
    with torch.no_grad():
        model.forward_features(image)
    for name, part in downs.items():
        if not isinstance(part, nn.Identity):  # a block of the middle flow: halves nothing
            x = inputs[part].requires_grad_()
            y = part(x)
            yield name, torch.autograd.grad(y, x, torch.randn(y.shape, generator=generator))[0]


def wiring(model: network.Xception, images: Tensor) -> pd.DataFrame:
    """Disturb x on its way to T1, F1 and F2, one at a time, and see which maps change.

    The projections are given random weights meanwhile: at their identity they would hide T1 and T2.

    Returns:
        bool, a row for each disturbed map, a column for each map of `forward_maps` after x.
    """
    model = copy.deepcopy(model).eval()
    generator = torch.Generator().manual_seed(0)
    for part in (model.project1, model.project2):
        if isinstance(part, nn.Conv2d):
            nn.init.normal_(part.weight, std=0.05, generator=generator)

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
            with disturb():
                after = model.forward_maps(images)
            rows[place] = {name: not torch.equal(before[name], after[name]) for name in before if name != "x"}
    return pd.DataFrame(rows).T.rename_axis("disturbed")


def execution_order(model: network.Xception, images: Tensor) -> list[str]:
    """Names of the network's parts in the order in which a forward pass calls them."""
    model, calls = copy.deepcopy(model).eval(), []
    for name, part in model.named_children():
        part.register_forward_hook(lambda *_, name=name: calls.append(name))
    with torch.inference_mode():
        model(images)
    return calls


def difference_to_timm(size: int, seed: int = 0) -> dict[str, float]:
    """Hold the original network against timm's `legacy_xception` with timm's own random weights.

    Args:
        size: of a random image, px a side. seed: of weights and image.

    Returns:
        parameters and timm_parameters (1000 classes), entries (loaded), difference (largest absolute, of the
        logits) and largest_logit (absolute), for scale.

    Raises:
        ImportError: timm is not installed.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        reference = import_timm().create_model("legacy_xception").eval()
        model = network.xception(1000).eval()
        image = torch.randn(1, 3, size, size)
    report = network.load_timm_weights(model, reference.state_dict())
    with torch.inference_mode():
        ours, theirs = model(image), reference(image)
    return {
        "parameters": structure.parameters(model),
        "timm_parameters": structure.parameters(reference),
        "entries": len(report.loaded),
        "difference": float((ours - theirs).abs().max()),
        "largest_logit": float(theirs.abs().max()),
    }


def effective_receptive_field(model: nn.Module, images: Tensor) -> np.ndarray:
    """How strongly each image pixel moves the centre of the last feature map (Luo et al. 2016, arXiv 1701.04128).

    Args:
        model: with `forward_features`. images: float (N, in_chans, S, S), as the network takes them.

    Returns:
        float64 (S, S): absolute gradient, mean over images, largest 1.
    """

    def centre(model: nn.Module, x: Tensor) -> Tensor:
        features = model.forward_features(x)
        return features[:, :, features.shape[2] // 2, features.shape[3] // 2]

    return _gradient(model, images, centre)


def gradient_map(model: nn.Module, images: Tensor) -> np.ndarray:
    """How strongly each image pixel moves the logit of the predicted class.

    Args:
        model: any network. images: float (N, in_chans, S, S).

    Returns:
        float64 (S, S): absolute gradient, mean over images, largest 1.
    """
    return _gradient(model, images, lambda model, x: model(x).max(1).values)


def _gradient(model: nn.Module, images: Tensor, watched: Callable[[nn.Module, Tensor], Tensor]) -> np.ndarray:
    x = images.clone().requires_grad_()
    grad = torch.autograd.grad(watched(copy.deepcopy(model).eval(), x).sum(), x)[0]
    field = grad.abs().double().mean((0, 1)).cpu().numpy()
    return field / max(field.max(), np.finfo(float).tiny)


def field_side(field: np.ndarray) -> float:
    """Side, in px, of a square as large as the effective receptive field: all above 4.55 % of its largest value
    (what lies within two standard deviations of a Gaussian; Luo et al. 2016, section 3)."""
    return float(np.sqrt((field > 1 - 0.9545).sum()))


def evenness(field: np.ndarray) -> float:
    """Participation ratio of a map, (sum)^2 / (n sum of squares): 1 where all pixels weigh alike, 1/4 where a
    quarter of them carry everything alike."""
    return float(field.sum() ** 2 / (field.size * max((field**2).sum(), np.finfo(float).tiny)))


@contextmanager
def shallow_cut(model: network.Xception, batches: Iterable[Tensor]) -> Iterator[nn.Module]:
    """Context in which the dense connection modules get, beside the main path, only the mean over some images.

    What a module would be told about the image at hand by x and F1 (T1, T2) is replaced by its mean, position by
    position; the main path stays. What the network loses by it, it had taken from its dense connections.

    Args:
        model: with dense connections; it is put into evaluation mode.
        batches: of images, float (N, in_chans, S, S), over which the means go.

    Raises:
        ValueError: the network has no dense connections.
    """
    if not getattr(model, "config", {}).get("dense_connections"):
        raise ValueError("shallow_cut: expected a network with dense connections")
    modules, sums, count = (model.dense1, model.dense2), {}, 0

    def add(module, maps):
        for place, shown in enumerate(maps[1:]):
            sums[module, place] = sums.get((module, place), 0) + shown.double().sum(0)

    def replace(module, maps):
        means = [(sums[module, place] / count).to(maps[0].dtype) for place in range(len(maps) - 1)]
        return maps[0], *(mean.expand(len(maps[0]), *mean.shape) for mean in means)

    with ExitStack() as hooks, torch.inference_mode():
        for module in modules:
            hooks.enter_context(module.register_forward_pre_hook(add))
        model.eval()
        for batch in batches:
            model(batch)
            count += len(batch)
    with ExitStack() as hooks:
        for module in modules:
            hooks.enter_context(module.register_forward_pre_hook(replace))
        yield model
