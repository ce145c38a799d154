"""How the score falls as the images get worse: seven kinds of change at graded strengths.

The changes are made to the crop that the network reads. They stand for another gain or time-gain setting,
another display curve, a worse focus, another speckle, a lossy archive, a region cut a little beside, and a
small or down-sampled image.
"""

import cv2
import numpy as np

from thyroid_lib.evaluation.bootstrap import MINIMUM_PATIENTS, Clusters, estimate, ratio, scarcer_sides
from thyroid_lib.explanation.shortcuts import macro_auroc

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
    images = np.asarray(images)
    if strength == STRENGTHS[kind][0] or not len(images):
        return images
    size = images.shape[1]
    if kind == "gain":
        return _grey(images * strength)
    if kind == "gamma":
        return _grey(255 * (images / 255.0) ** strength)
    if kind == "speckle":
        noise = np.random.default_rng(seed).standard_normal(images.shape, dtype=np.float32)
        return _grey(images * (1 + strength * noise))
    if kind == "shift":
        step = round(strength * size)
        moved = np.zeros_like(images)
        moved[:, step:, step:] = images[:, : size - step, : size - step]
        return moved
    single = {
        "blur": lambda image: cv2.GaussianBlur(image, (0, 0), strength * size),
        "JPEG quality": lambda image: cv2.imdecode(
            cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, int(strength)])[1], cv2.IMREAD_GRAYSCALE
        ),
        "down-scaling": lambda image: cv2.resize(
            cv2.resize(image, (max(1, round(size / strength)),) * 2, interpolation=cv2.INTER_AREA),
            (size, size),
            interpolation=cv2.INTER_LINEAR,
        ),
    }[kind]
    return np.array([single(np.ascontiguousarray(image)) for image in images])


def curves(
    classify,
    images: np.ndarray,
    labels: np.ndarray,
    patients,
    *,
    strengths: dict | None = None,
    plain: np.ndarray | None = None,
    known: np.ndarray | None = None,
    draws: int = 2000,
    seed: int = 0,
    minimum: int = MINIMUM_PATIENTS,
) -> dict:
    """Macro AUROC and balanced accuracy at every strength of every change.

    Args:
        classify: function of uint8 (n, S, S) that gives probabilities (n, C).
        images: uint8 (n, S, S), the tested crops.
        labels: int (n,);  patients: n identifiers.
        strengths: in place of ``STRENGTHS``.
        plain: float (n, C), what ``classify`` gives for the unchanged images, where that is known already.
        known: float (n, C), the probabilities that the study states for the unchanged images: their scores are
            then the study's own, and "read here" beside them is the macro AUROC of ``plain``, which other
            arithmetic moves a little. ``plain`` where there are none.
        draws, seed, minimum: of the bootstrap; all strengths share the draws.

    Returns:
        kind -> {strength as text: {"macro_auroc": metric, "balanced_accuracy": metric, "loss": paired fall of
        the macro AUROC from the unchanged images, both read by ``classify``}}.
    """
    clusters, result = Clusters(patients, draws, seed), {}
    plain = np.asarray(classify(images) if plain is None else plain)
    whole, known = macro_auroc(plain, labels, clusters), plain if known is None else np.asarray(known)
    is_class = labels[:, None] == np.arange(plain.shape[1])
    sides = scarcer_sides(np.asarray(patients), is_class)
    common = {
        "n_images": len(labels), "n_patients": clusters.patients, "effective": sides, "minimum": minimum,
    }  # fmt: skip
    for kind, levels in (strengths or STRENGTHS).items():
        result[kind] = {}
        for strength in levels:
            changed = strength != STRENGTHS[kind][0]
            p = np.asarray(classify(change(images, kind, strength, seed=seed))) if changed else known
            auroc = macro_auroc(p, labels, clusters)
            right = is_class & (p.argmax(1) == labels)[:, None]
            sums = clusters.sums(np.hstack([right, is_class]))
            recall = ratio(sums[:, : p.shape[1]], sums[:, p.shape[1] :]).mean(axis=1)
            result[kind][f"{strength:g}"] = {
                "macro_auroc": estimate(auroc, bounds=(0.0, 1.0), **common),
                "balanced_accuracy": estimate(recall, bounds=(0.0, 1.0), **common),
                "loss": estimate(whole - (auroc if changed else whole), **common),
            }
            if not changed:
                result[kind][f"{strength:g}"]["read here"] = estimate(whole, bounds=(0.0, 1.0), **common)
    return result


def _grey(values: np.ndarray) -> np.ndarray:
    return np.clip(np.rint(values), 0, 255).astype(np.uint8)
