"""How the score falls as the images get worse: seven kinds of change at graded strengths.

The changes are made to the crop that the network reads. They stand for another gain or time-gain setting,
another display curve, a worse focus, another speckle, a lossy archive, a region cut a little beside, and a
small or down-sampled image.
"""

import cv2
import numpy as np
import torch
from torchvision.transforms.v2 import functional

from thyroid_lib.common.progress import progress
from thyroid_lib.explanation.tested import Sample, Tested

STRENGTHS = {
    "gain": (1.0, 1.3, 1.7, 2.2),
    "gamma": (1.0, 1.4, 2.0, 2.8),
    "blur": (0.0, 0.005, 0.01, 0.02),
    "speckle": (0.0, 0.15, 0.3, 0.6),
    "JPEG quality": (100, 50, 20, 8),
    "shift": (0.0, 0.04, 0.08, 0.16),
    "down-scaling": (1, 2, 3, 4),
}
"""Kind -> strengths; the first changes nothing. Gain: factor. Gamma: exponent. Blur: sigma as a fraction of
the side. Speckle: standard deviation of the multiplicative noise. JPEG: quality (100 stands for none). Shift:
fraction of the side, to the right and down. Down-scaling: factor, enlarged again."""


def change(images: np.ndarray, kind: str, strength: float, *, seed: int = 0) -> np.ndarray:
    """Makes images worse.

    Args:
        images: uint8 (n, S, S).
        kind: a key of ``STRENGTHS``.
        strength: in that kind's unit; the first of ``STRENGTHS[kind]`` returns the images as they are.
        seed: of the speckle.

    Returns:
        uint8 (n, S, S).

    Raises:
        ValueError: an unknown kind.
    """
    if kind not in STRENGTHS:
        raise ValueError(f"change: expected one of {list(STRENGTHS)}, got {kind!r}")
    if strength == STRENGTHS[kind][0]:
        return images
    size, crops = images.shape[1], torch.tensor(images)[:, None]
    match kind:
        case "gain":
            changed = 255 * functional.adjust_brightness(crops / 255, strength)
        case "gamma":
            changed = 255 * functional.adjust_gamma(crops / 255, strength)
        case "speckle":
            noise = np.random.default_rng(seed).standard_normal(crops.shape, dtype=np.float32)
            changed = crops * (1 + strength * torch.from_numpy(noise))
        case "shift":
            step = round(strength * size)
            changed = functional.pad(crops, [step, step, 0, 0])[..., :size, :size]
        case "blur":
            sigma = strength * size
            changed = functional.gaussian_blur(crops, round(6 * sigma + 1) | 1, sigma)  # 3 sigma to each side
        case "JPEG quality":
            changed = functional.jpeg(crops, strength)
        case "down-scaling":
            less = (max(1, round(size / strength)),) * 2
            small = np.stack([cv2.resize(image, less, interpolation=cv2.INTER_AREA) for image in images])
            changed = functional.resize(torch.from_numpy(small)[:, None].float(), [size, size])
    return changed[:, 0].float().round().clamp(0, 255).to(torch.uint8).numpy()


def curves(tested: Tested, *, seed: int = 0, **options) -> dict:
    """Macro AUROC and balanced accuracy of the frozen classifier at every strength of every change.

    Args:
        tested: the tested images.
        seed: of the speckle and the bootstrap.
        options: draws and minimum, of ``tested.Sample``; all strengths share the draws.

    Returns:
        kind -> {strength as text: {"macro_auroc": metric, "balanced_accuracy": metric, "loss": paired fall of
        the macro AUROC from the unchanged images, as ``tested`` reads both}}. The scores of the unchanged images
        are those that the study states; "read here" beside them is the macro AUROC as ``tested`` reads them,
        which other arithmetic moves a little.
    """
    images, labels, classes = tested.images, tested.labels, np.arange(tested.stated.shape[1])
    sample, is_class = (
        Sample(tested.patients, labels, classes, seed=seed, **options),
        labels[:, None] == classes,
    )
    whole, result = sample.macro_auroc(tested.probabilities(images)), {}
    for kind, levels in progress(STRENGTHS.items(), "robustness"):
        for strength in levels:
            plain = strength == levels[0]
            p = tested.stated if plain else tested.probabilities(change(images, kind, strength, seed=seed))
            auroc, right = sample.macro_auroc(p), is_class & (p.argmax(1) == labels)[:, None]
            recall = sample.clusters.means(right, is_class).mean(axis=1)
            shares = {"macro_auroc": auroc, "balanced_accuracy": recall} | (
                {"read here": whole} if plain else {}
            )
            found = {name: sample.metric(values, (0.0, 1.0)) for name, values in shares.items()}
            found["loss"] = sample.metric(whole - (whole if plain else auroc))
            result.setdefault(kind, {})[f"{strength:g}"] = found
    return result
