"""Class activation maps through the grad-cam package, with what the package leaves out.

The package scales every map to 0..1, so a flat map with 1e-6 of noise looks as sure as a real one: here the
raw range stands beside every map. It changes the model's mode and its gradients: here it gets a copy.
``cam_checks`` asks whether the maps mean anything.

Methods: Grad-CAM (Selvaraju 2017, arXiv 1610.02391), Grad-CAM++ (arXiv 1710.11063), HiResCAM (arXiv
2011.08891), LayerCAM (Jiang 2021, TIP 30:5875), Eigen-CAM (arXiv 2008.00299).
"""

import copy
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from thyroid_lib import network

LAYERS = ("exit_flow", "middle_flow", "entry_flow.block2", "entry_flow.block1")
"""Where maps may be read, deepest first; :func:`choose` takes the first that is fine enough."""

CELLS = 4  # fewest a side of a map worth reading: a 2 x 2 map can point at a quarter, not at a nodule

BATCH = 32  # images per pass

METHODS = {"gradcam": "GradCAM", "gradcam++": "GradCAMPlusPlus", "hirescam": "HiResCAM", "layercam": "LayerCAM",
           "eigencam": "EigenCAM"}  # fmt: skip
"""Method -> its class in the grad-cam package."""

FLAT = 1e-6  # a map whose raw values all lie below this carries no evidence for its class and is called flat


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


def cam(model: nn.Module, images, targets, method: str = "gradcam", layer: str = "exit_flow") -> Cams:
    """Where in each image the evidence for a class lies, as the network weighs it.

    Args:
        model: of ``network.build``, or any module with such a ``config`` on (N, in_chans, S, S) with class logits.
        images: uint8 (n, S, S) crops, n >= 1.
        targets: int (n,), class to explain per image, usually the predicted one.
        method: one of ``METHODS``.
        layer: attribute path of the module whose output is read, e.g. one of ``network.STAGES``.

    Raises:
        ValueError: unknown method or layer, or targets that do not fit.
    """
    import pytorch_grad_cam as package
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

    images, targets = np.asarray(images), np.asarray(targets, np.int64)
    if images.ndim != 3 or images.dtype != np.uint8 or targets.shape != (len(images),):
        raise ValueError(
            f"cam: expected uint8 images (n, S, S) and n targets, got {images.dtype} {images.shape} and {targets.shape}"
        )
    if method not in METHODS:
        raise ValueError(f"cam: expected a method of {list(METHODS)}, got {method!r}")
    model, maps, raw = copied(model), [], []
    module = find(model, layer)
    own = list(module.parameters())  # gradients flow back to the module's output and no further
    model.requires_grad_(not own)
    for parameter in own[-1:]:
        parameter.requires_grad_(True)
    with getattr(package, METHODS[method])(model=model, target_layers=[module]) as maker:
        unscaled = maker.get_cam_image
        maker.get_cam_image = lambda *given: raw.append(np.asarray(unscaled(*given))) or raw[-1]
        for start in range(0, len(images), BATCH):
            part = slice(start, start + BATCH)
            asked = [ClassifierOutputTarget(int(target)) for target in targets[part]]
            maps.append(maker(model_input(model, images[part]), asked))
    maps, raw = (np.concatenate(parts).astype(np.float32) for parts in (maps, raw))
    low, high = raw.min(axis=(1, 2)), raw.max(axis=(1, 2))
    maps[~(high > FLAT)] = 0
    return Cams(maps, low, high, targets, method, layer)


def find(model: nn.Module, layer: str) -> nn.Module:
    """The module at an attribute path such as "exit_flow" or "entry_flow.block2".

    Raises:
        ValueError: there is none; the message lists the top-level ones.
    """
    try:
        return model.get_submodule(layer)
    except AttributeError:
        known = [name for name, _ in model.named_children()]
        raise ValueError(f"expected a layer of the network such as {known}, got {layer!r}") from None


def choose(model: nn.Module, size: int, layer: str = "auto", method: str = "auto") -> tuple[str, str]:
    """Layer and method to read maps with, where "auto" leaves the choice to this function.

    The layer is the deepest of ``LAYERS`` whose map has ``CELLS`` cells a side (the exit flow has 7 at 224 px, 4 at
    128 px and 3 at 96 px). The method is Grad-CAM where its
    meaning is exact: after the exit flow come only an average and a linear layer, and the map sums to the
    logit. At shallower layers Grad-CAM's averaged gradients light up places that the network did not use;
    HiResCAM multiplies place by place instead (Draelos & Carin 2020, arXiv 2011.08891).

    Args:
        model: of ``network.build``.
        size: side of the crops, px.
        layer: attribute path, or "auto".
        method: one of ``METHODS``, or "auto".
    """
    if layer == "auto":
        seen, sides = copied(model), {}
        for name in LAYERS:
            find(seen, name).register_forward_hook(
                lambda _module, _given, output, name=name: sides.update({name: output.shape[-1]})
            )
        with torch.no_grad():
            seen(model_input(seen, np.zeros((1, size, size), np.uint8)))
        layer = next((name for name in LAYERS if sides[name] >= CELLS), LAYERS[-1])
    if method == "auto":
        method = "gradcam" if layer == "exit_flow" else "hirescam"
    return layer, method


def copied(model: nn.Module) -> nn.Module:
    """A copy in eval mode, to look into and to change: the network keeps its mode, its gradients and its weights."""
    return copy.deepcopy(model).eval()


def model_input(model: nn.Module, images: np.ndarray) -> torch.Tensor:
    """Crops, uint8 (n, S, S), as the network's input: float32 (n, in_chans, S, S) on its device."""
    device = next(model.parameters()).device
    pixels = torch.from_numpy(np.ascontiguousarray(images)).to(device)
    return network.normalize(pixels, model.config["in_chans"])
