"""Experiments on a network: what its down-sampling reads, how its maps hang together, whether it is timm's."""

import copy

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from thyroid_lib import inspection, network

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


def difference_to_timm(size: int | tuple[int, int], seed: int = 0) -> dict[str, float]:
    """Hold the original network against timm's `legacy_xception` with timm's own random weights.

    Args:
        size: of a random image, px.
        seed: of weights and image.

    Returns:
        parameters and timm_parameters (1000 classes), entries (loaded), difference (largest absolute, of the
        logits) and largest_logit (absolute), for scale.

    Raises:
        ImportError: timm is not installed.
    """
    try:
        import timm
    except ImportError as error:
        raise ImportError(
            "expected timm for the comparison: install thyroid_lib[peers], or leave it out"
        ) from error
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        reference = timm.create_model("legacy_xception").eval()
        model = network.xception(1000).eval()
        height, width = (size, size) if isinstance(size, int) else size
        image = torch.randn(1, 3, height, width)
    report = network.load_timm_weights(model, reference.state_dict())
    with torch.inference_mode():
        ours, theirs = model(image), reference(image)
    return {
        "parameters": inspection.parameters(model),
        "timm_parameters": inspection.parameters(reference),
        "entries": len(report.loaded),
        "difference": float((ours - theirs).abs().max()),
        "largest_logit": float(theirs.abs().max()),
    }
