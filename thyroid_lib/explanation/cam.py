"""Class activation maps through the grad-cam package, with what the package leaves out.

The package scales every map to 0..1, so a flat map with 1e-6 of noise looks as sure as a real one: here the
raw range stands beside every map. It leaves the model in eval mode: here every module gets its mode, its
gradients and its ``requires_grad`` back. ``cam_checks`` asks whether the maps mean anything.

Methods: Grad-CAM (Selvaraju 2017, arXiv 1610.02391), Grad-CAM++ (arXiv 1710.11063), HiResCAM (arXiv
2011.08891), LayerCAM (Jiang 2021, TIP 30:5875), Eigen-CAM (arXiv 2008.00299).
"""

from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from thyroid_lib import network

LAYERS = ("exit_flow", "middle_flow", "entry_flow.block2", "entry_flow.block1")
"""Where maps may be read, deepest first; :func:`choose_layer` takes the first that is fine enough."""

METHODS = ("gradcam", "gradcam++", "hirescam", "layercam", "eigencam")

FLAT = 1e-6
"""A map whose raw values all lie below this carries no evidence for its class and is called flat."""


@dataclass(frozen=True)
class Cams:
    """Maps of n images.

    Attributes:
        maps: float32 (n, S, S), each scaled to 0..1; all zero where flat.
        low, high: float32 (n,), smallest and largest raw value before ReLU and scaling, in logits per unit of
            the method; a negative ``high`` means that nothing in the image speaks for the class.
        targets: int64 (n,), the class each map explains.
        method, layer: what was computed, and where.
    """

    maps: np.ndarray
    low: np.ndarray
    high: np.ndarray
    targets: np.ndarray
    method: str
    layer: str

    @property
    def flat(self) -> np.ndarray:
        """bool (n,): the map says nothing (no raw value above ``FLAT``)."""
        return ~(self.high > FLAT)


def cam(
    model: nn.Module,
    images: np.ndarray,
    targets: np.ndarray,
    *,
    method: str = "gradcam",
    layer: str = "exit_flow",
    batch_size: int = 32,
) -> Cams:
    """Where in each image the evidence for a class lies, as the network weighs it.

    Args:
        model: of ``network.build``, or any module on (N, in_chans, S, S) with class logits.
        images: uint8 (n, S, S) crops.
        targets: int (n,), class to explain per image, usually the predicted one.
        method: one of ``METHODS``.
        layer: attribute path of the module whose output is read, e.g. one of ``network.STAGES``.
        batch_size: images per pass.

    Returns:
        :class:`Cams`.

    Raises:
        ValueError: unknown method or layer, or targets that do not fit.
    """
    images, targets = np.asarray(images), np.asarray(targets, np.int64)
    if images.ndim != 3 or images.dtype != np.uint8 or targets.shape != (len(images),):
        raise ValueError(
            f"cam: expected uint8 images (n, S, S) and n targets, got {images.dtype} {images.shape} and "
            f"targets {targets.shape}"
        )
    module = find(model, layer)
    parts = []
    with restored(model):
        gradients_from(model, module)
        for start in range(0, len(images), batch_size):
            part = slice(start, start + batch_size)
            parts.append(_batch(model, module, images[part], targets[part], _method(method)))
    size = images.shape[1:]
    maps, low, high = (
        (np.concatenate(p) for p in zip(*parts)) if parts else (np.zeros((0, *size)), *np.zeros((2, 0)))
    )
    maps = np.where((high > FLAT)[:, None, None], maps, 0.0).astype(np.float32)
    return Cams(maps, low.astype(np.float32), high.astype(np.float32), targets, method, layer)


def find(model: nn.Module, layer: str) -> nn.Module:
    """The module at an attribute path.

    Args:
        model: the network.
        layer: such as "exit_flow" or "entry_flow.block2".

    Returns:
        The module.

    Raises:
        ValueError: there is none; the message lists the top-level ones.
    """
    try:
        return model.get_submodule(layer)
    except AttributeError:
        known = [name for name, _ in model.named_children()]
        raise ValueError(
            f"expected a layer of {type(model).__name__} such as {known}, got {layer!r}"
        ) from None


def choose_layer(model: nn.Module, size: int, least: int = 4) -> tuple[str, int]:
    """The deepest layer whose map still has some resolution: a 2 x 2 map can point at a quarter, not a nodule.

    Args:
        model: of ``network.build``;  size: side of the crops, px;  least: fewest cells a side (the exit flow
            has 7 at 224 px, 4 at 128 px and 3 at 96 px).

    Returns:
        (attribute path, cells a side of its map); the finest of ``LAYERS`` when none has ``least``.
    """
    found = ("", 0)
    for layer in LAYERS:
        sides: list[int] = []
        handle = find(model, layer).register_forward_hook(
            lambda m, i, o, sides=sides: sides.append(o.shape[-1])
        )
        try:
            with restored(model), torch.no_grad():
                model(model_input(model, np.zeros((1, size, size), np.uint8)))
        finally:
            handle.remove()
        found = (layer, sides[-1])
        if found[1] >= least:
            break
    return found


def choose_method(layer: str) -> str:
    """Grad-CAM where its meaning is exact, HiResCAM where it is not.

    After the exit flow come only an average and a linear layer: there a Grad-CAM map sums to the logit and the
    two methods agree. At shallower layers Grad-CAM's averaged gradients light up places that the network did
    not use; HiResCAM multiplies place by place instead (Draelos & Carin 2020, arXiv 2011.08891).

    Args:
        layer: attribute path of the layer that is read.
    """
    return "gradcam" if layer == "exit_flow" else "hirescam"


@contextmanager
def restored(model: nn.Module):
    """Gives every module its mode, and every parameter its gradient and ``requires_grad``, back.

    Args:
        model: the network to look after; it is put into eval mode inside.

    Yields:
        The model.
    """
    modes = [(module, module.training) for module in model.modules()]
    gradients = [(p, p.requires_grad, p.grad) for p in model.parameters()]
    model.eval()
    try:
        yield model
    finally:
        for module, mode in modes:
            module.training = mode
        for parameter, needed, gradient in gradients:
            parameter.requires_grad_(needed)
            parameter.grad = gradient


def gradients_from(model: nn.Module, module: nn.Module) -> None:
    """Lets gradients flow from the logits back to ``module``'s output and no further: the rest is not needed.

    Args:
        model: the network; its parameters' ``requires_grad`` is changed.
        module: where gradients stop.
    """
    own = list(module.parameters())
    for parameter in model.parameters():
        parameter.requires_grad_(not own)
    if own:
        own[-1].requires_grad_(True)


def model_input(model: nn.Module, images: np.ndarray) -> torch.Tensor:
    """Crops as the network's input.

    Args:
        model: the network; ``model.config["in_chans"]`` says how many channels it takes (1 when unstated).
        images: uint8 (n, S, S).

    Returns:
        float32 (n, in_chans, S, S) on the model's device.
    """
    device = next(model.parameters()).device
    pixels = torch.from_numpy(np.ascontiguousarray(images)).to(device)
    return network.normalize(pixels, getattr(model, "config", {}).get("in_chans", 1))


def _batch(model, module, images, targets, kind):
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

    raw = []
    with kind(model=model, target_layers=[module]) as maker:
        scale = maker.get_cam_image

        def seen(*arguments, **options):
            raw.append(np.asarray(scale(*arguments, **options)))
            return raw[-1]

        maker.get_cam_image = seen
        maps = maker(model_input(model, images), [ClassifierOutputTarget(int(t)) for t in targets])
    values = raw[0].reshape(len(images), -1)
    return maps, values.min(axis=1), values.max(axis=1)


def _method(name: str):
    import pytorch_grad_cam as package

    kinds = (package.GradCAM, package.GradCAMPlusPlus, package.HiResCAM, package.LayerCAM, package.EigenCAM)
    if name not in METHODS:
        raise ValueError(f"cam: expected a method of {METHODS}, got {name!r}")
    return dict(zip(METHODS, kinds))[name]
