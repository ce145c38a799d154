"""Is a class activation map evidence, or decoration? Each check ends in a number and a pass or a fail.

* Localization: pointing game (Zhang 2018, IJCV 126:1084) and energy inside the nodule (Score-CAM, arXiv
  1910.01279) against the nodule's share of the area, a smooth random map, and an edge detector.
* Deletion: ROAD (Rong 2022, arXiv 2202.00449): removing what the map calls relevant must hurt the class more
  than removing what it calls irrelevant, and more so than for a random map.
* Randomization: cascading randomization of the weights (Adebayo 2018, arXiv 1810.03292); a map that stays
  the same does not show what the network has learned.
* Agreement: two trainings of one network should point at the same place.

The limits ``SURVIVES`` and ``AGREES`` are conventions of this study, fixed before any result was seen.
"""

import copy

import cv2
import numpy as np
import pandas as pd
import torch
from scipy.stats import rankdata
from torch import nn

from thyroid_lib.evaluation.bootstrap import MINIMUM_PATIENTS, Clusters, estimate
from thyroid_lib.explanation import cam

SURVIVES = 0.5
"""Rank correlation with the trained map at or above which a randomized network's map counts as the same."""

AGREES = 0.4
"""Least mean rank correlation between the maps of two trainings that counts as agreement."""

BASELINES = ("random", "edges", "centre")


def baseline_maps(images: np.ndarray, name: str, *, seed: int = 0, cells: int = 4) -> np.ndarray:
    """Maps that know nothing of the network.

    Args:
        images: uint8 (n, S, S).
        name: "random" (noise on a grid as coarse as a map of the exit flow, enlarged the same way), "edges"
            (Sobel gradient of the image) or "centre" (a Gaussian of width S / 4 in the middle).
        seed: of the noise.
        cells: side of the noise grid.

    Returns:
        float32 (n, S, S), 0..1.
    """
    size = images.shape[1]
    if name == "random":
        noise = np.random.default_rng(seed).random((len(images), cells, cells), dtype=np.float32)
        maps = np.array([cv2.resize(grid, (size, size)) for grid in noise])
    elif name == "edges":
        smooth = [
            cv2.GaussianBlur(image, (0, 0), max(0.8, size / 128)).astype(np.float32) for image in images
        ]
        maps = np.array([np.hypot(cv2.Sobel(s, -1, 1, 0), cv2.Sobel(s, -1, 0, 1)) for s in smooth])
    elif name == "centre":
        line = np.exp(-0.5 * ((np.arange(size) - (size - 1) / 2) / (size / 4)) ** 2)
        maps = np.repeat(np.outer(line, line)[None], len(images), axis=0)
    else:
        raise ValueError(f"baseline_maps: expected one of {BASELINES}, got {name!r}")
    maps = maps.reshape(len(images), size, size)
    low, high = maps.min((1, 2), keepdims=True), maps.max((1, 2), keepdims=True)
    return ((maps - low) / np.maximum(high - low, 1e-12)).astype(np.float32)


def localization(maps: np.ndarray, masks: np.ndarray) -> pd.DataFrame:
    """Per image: does the map point at the nodule?

    Args:
        maps: float (n, S, S), >= 0.
        masks: (n, S, S), 0 outside the nodule.

    Returns:
        Columns "share" (nodule's share of the area), "energy" (share of the map's sum inside the nodule) and
        "pointing" (1 when the map's largest value lies inside; averaged over ties). A flat map points
        nowhere: it gets the share for both.
    """
    inside = np.asarray(masks).astype(bool).reshape(len(masks), -1)
    values = np.asarray(maps, np.float64).reshape(len(maps), -1)
    share, total = inside.mean(1), values.sum(1)
    flat = total <= 0
    energy = np.where(flat, share, (values * inside).sum(1) / np.where(flat, 1, total))
    top = values >= values.max(1, keepdims=True)
    pointing = np.where(flat, share, (top & inside).sum(1) / top.sum(1))
    return pd.DataFrame({"share": share, "energy": energy, "pointing": pointing})


def check_against_masks(
    cams: cam.Cams,
    images: np.ndarray,
    masks: np.ndarray,
    patients,
    *,
    draws: int = 2000,
    seed: int = 0,
    minimum: int = MINIMUM_PATIENTS,
) -> dict:
    """Pointing game and energy inside the nodule, against area share and three maps that know nothing.

    Args:
        cams: maps of n images;  images: uint8 (n, S, S), the crops they explain;  masks: (n, S, S), 0 outside
            the nodule, same cut;  patients: n identifiers.
        draws, seed, minimum: of the patient-cluster bootstrap.

    Returns:
        ``share``, ``energy``, ``pointing`` of the maps, ``<baseline>/energy`` (and pointing), and paired
        differences ``energy_over_share``, ``pointing_over_share``, ``energy_over_<baseline>``,
        ``pointing_over_<baseline>``, each with interval; plain numbers ``images_without_mask`` (left out) and
        ``flat_maps``.
    """
    masked = np.asarray(masks).reshape(len(masks), -1).any(axis=1)
    result = {"images_without_mask": int((~masked).sum()), "flat_maps": int(cams.flat[masked].sum())}
    if not masked.any():
        return result | {"reason": "no image has a nodule mask"}
    patients, images, masks = (
        np.asarray(patients)[masked],
        np.asarray(images)[masked],
        np.asarray(masks)[masked],
    )
    own = localization(cams.maps[masked], masks)
    columns = {"share": own["share"], "energy": own["energy"], "pointing": own["pointing"]}
    others = {name: localization(baseline_maps(images, name, seed=seed), masks) for name in BASELINES}
    for what in ("energy", "pointing"):
        columns[f"{what}_over_share"] = own[what] - own["share"]
        for name, other in others.items():
            columns[f"{name}/{what}"] = other[what]
            columns[f"{what}_over_{name}"] = own[what] - other[what]
    return result | means(columns, patients, draws, seed, minimum)


def road(
    model: nn.Module,
    images: np.ndarray,
    maps: np.ndarray,
    targets: np.ndarray,
    *,
    percentages: tuple[int, ...] = (20, 50, 80),
    seed: int = 0,
) -> np.ndarray:
    """ROAD score per image: probability without the least relevant minus without the most relevant part.

    Pixels are taken away by the noisy linear imputation of the grad-cam package. Equal relevance is ordered
    at random (seeded), so that a map of mostly zeros takes away as much as any other.

    Args:
        model: the network.
        images: uint8 (n, S, S).
        maps: float (n, S, S), higher is more relevant.
        targets: int (n,), the class whose probability counts.
        percentages: parts of the area that are taken away.
        seed: of ties and of the imputation's noise.

    Returns:
        float64 (n,) in -1..1; half the difference, averaged over ``percentages``; about 0 for a map
        that says nothing.
    """
    from pytorch_grad_cam.metrics.road import NoisyLinearImputer

    imputer, rng = NoisyLinearImputer(), np.random.default_rng(seed)
    with cam.restored(model), torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        inputs = cam.model_input(model, images)
        changed = []
        for pixels, values in zip(inputs.cpu(), maps):
            order = np.lexsort((rng.random(values.size), -values.ravel()))
            for percentage in percentages:
                count = round(values.size * percentage / 100)
                for gone in (order[len(order) - count :], order[:count]):
                    kept = torch.ones(values.size)
                    kept[torch.from_numpy(gone)] = 0
                    changed.append(imputer(pixels, kept.reshape(values.shape)))
        device, scores = inputs.device, []
        for start in range(0, len(changed), 64):
            logits = model(torch.stack(changed[start : start + 64]).to(device).float())
            scores.append(torch.softmax(logits.double(), dim=1).cpu().numpy())
    scores = np.concatenate(scores).reshape(len(images), len(percentages), 2, -1)
    scores = scores[np.arange(len(images)), :, :, np.asarray(targets)]
    return (scores[:, :, 0] - scores[:, :, 1]).mean(axis=1) / 2


def check_deletion(
    model, cams: cam.Cams, images, patients, *, draws=2000, seed=0, minimum=MINIMUM_PATIENTS
) -> dict:
    """ROAD of the maps against ROAD of a random map on the same images.

    Args:
        model: the network;  cams: maps of n images;  images: uint8 (n, S, S);  patients: n identifiers.
        draws, seed, minimum: of the bootstrap; ``seed`` also seeds ROAD and the random map.

    Returns:
        ``road``, ``random/road`` and the paired ``road_over_random``, each with interval.
    """
    own = road(model, images, cams.maps, cams.targets, seed=seed)
    other = road(model, images, baseline_maps(images, "random", seed=seed), cams.targets, seed=seed)
    columns = {"road": own, "random/road": other, "road_over_random": own - other}
    return means(columns, np.asarray(patients), draws, seed, minimum)


def check_randomization(
    model: nn.Module,
    images: np.ndarray,
    targets: np.ndarray,
    patients,
    *,
    method: str = "gradcam",
    layer: str = "exit_flow",
    draws: int = 2000,
    seed: int = 0,
    minimum: int = MINIMUM_PATIENTS,
) -> dict:
    """Cascading randomization: from the last layer to the first, does the map change with the weights?

    Args:
        model: the trained network; a copy is randomized, it is not touched.
        images: uint8 (n, S, S);  targets: int (n,);  patients: n identifiers.
        method, layer: of :func:`cam.cam`.
        draws, seed, minimum: of the bootstrap; ``seed`` also draws the random weights.

    Returns:
        ``correlation/<module>`` -> mean Spearman rank correlation with the trained map once this module and
        all after it are random, with interval; ``order``: these modules, last first (one that holds less than
        a twentieth of the weights is randomized in its turn, but not looked at apart). BatchNorm statistics
        are estimated anew on the images, so that the random network is as well scaled as a trained one.
    """
    trained = cam.cam(model, images, targets, method=method, layer=layer)
    broken, columns = copy.deepcopy(model), {}
    sizes = {name: sum(p.numel() for p in child.parameters()) for name, child in broken.named_children()}
    names = [name for name, size in reversed(sizes.items()) if size]
    looked = [
        name for name in names if name in (names[0], names[-1]) or sizes[name] > 0.05 * sum(sizes.values())
    ]
    for position, name in enumerate(names):
        randomize(broken.get_submodule(name), seed=seed + position)
        if name in looked:
            refresh_statistics(broken, images)
            maps = cam.cam(broken, images, targets, method=method, layer=layer)
            columns[f"correlation/{name}"] = rank_correlation(trained.maps, maps.maps)
    return means(columns, np.asarray(patients), draws, seed, minimum) | {"order": looked}


def check_agreement(
    first: cam.Cams,
    second: cam.Cams,
    patients,
    *,
    draws=2000,
    seed=0,
    minimum=MINIMUM_PATIENTS,
) -> dict:
    """Do two trainings point at the same place?

    Args:
        first, second: maps of the same n images and targets by two networks;  patients: n identifiers.
        draws, seed, minimum: of the bootstrap.

    Returns:
        ``agreement``: mean Spearman rank correlation between the two maps of an image, with interval.
    """
    columns = {"agreement": rank_correlation(first.maps, second.maps)}
    return means(columns, np.asarray(patients), draws, seed, minimum)


def verdicts(masks: dict, deletion: dict, randomization: dict, agreement: dict) -> pd.DataFrame:
    """One line per check: the number, its interval, the limit, and "pass", "fail" or "not done".

    Args:
        masks, deletion, randomization, agreement: results of the checks; empty where a check was not done.

    Returns:
        Columns check, key, value, low, high, limit, verdict, reason. A difference passes when its whole
        interval lies above 0; randomization passes when the whole interval lies below ``SURVIVES``; agreement
        passes when the mean reaches ``AGREES``.
    """
    last = randomization.get("order", ["-"])[-1]
    lines = [
        ("energy in the nodule above its area share", masks, "energy_over_share", "interval > 0"),
        ("energy in the nodule above a random map", masks, "energy_over_random", "interval > 0"),
        ("energy in the nodule above an edge detector", masks, "energy_over_edges", "interval > 0"),
        ("energy in the nodule above random weights'", masks, "energy_over_random_weights", "interval > 0"),
        ("pointing game above the nodule's area share", masks, "pointing_over_share", "interval > 0"),
        ("deletion (ROAD) above a random map", deletion, "road_over_random", "interval > 0"),
        (
            "map changes when the weights are random",
            randomization,
            f"correlation/{last}",
            f"interval < {SURVIVES}",
        ),
        ("two trainings agree on the place", agreement, "agreement", f"mean >= {AGREES}"),
    ]
    rows = []
    for check, results, key, limit in lines:
        found = results.get(key, {})
        value, low, high = (found.get(name) for name in ("value", "low", "high"))
        if value is None:
            verdict, reason = (
                "not done",
                found.get("reason") or results.get("reason", "not computed in this run"),
            )
        else:
            passed = {">": low > 0, "<": high < SURVIVES, ">=": value >= AGREES}[limit.split()[1]]
            verdict, reason = "pass" if passed else "fail", ""
        rows.append((check, key, value, low, high, limit, verdict, reason))
    columns = ["check", "key", "value", "low", "high", "limit", "verdict", "reason"]
    return pd.DataFrame(rows, columns=columns)


def rank_correlation(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Spearman's rank correlation between two maps of each image.

    Args:
        first, second: float (n, S, S).

    Returns:
        float64 (n,) in -1..1; 0 where either map is flat.
    """
    a, b = (rankdata(np.asarray(m).reshape(len(m), -1), axis=1) for m in (first, second))
    a, b = a - a.mean(1, keepdims=True), b - b.mean(1, keepdims=True)
    scale = np.sqrt((a**2).sum(1) * (b**2).sum(1))
    return np.divide((a * b).sum(1), scale, out=np.zeros(len(a)), where=scale > 0)


def randomize(module: nn.Module, *, seed: int) -> None:
    """Draws a module's weights anew: He-normal convolutions, small linear layers, neutral BatchNorm.

    Args:
        module: changed in place, with everything inside it.
        seed: the same seed gives the same weights.
    """
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in module.named_parameters():
        with torch.no_grad():
            if parameter.ndim > 1:
                fan = parameter[0].numel()
                drawn = torch.randn(parameter.shape, generator=generator) * (2.0 / fan) ** 0.5
                parameter.copy_(drawn.to(parameter.device))
            else:
                parameter.fill_(1.0 if name.endswith("weight") else 0.0)


def refresh_statistics(model: nn.Module, images: np.ndarray) -> None:
    """Estimates BatchNorm's running mean and variance on these images, as training would have.

    Args:
        model: changed in place; comes back in eval mode.
        images: uint8 (n, S, S); at most 64 are used.
    """
    norms = [module for module in model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    before = [norm.momentum for norm in norms]
    model.eval()
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # cumulative mean
        norm.train()
    with torch.no_grad():
        model(cam.model_input(model, images[:64]))
    for norm, momentum in zip(norms, before):
        norm.momentum = momentum
    model.eval()


def means(columns: dict, patients: np.ndarray, draws: int, seed: int, minimum: int) -> dict:
    """Means over images with patient-cluster intervals, all from the same draws.

    Args:
        columns: name -> float (n,);  patients: n identifiers;  draws, seed, minimum: of the bootstrap.

    Returns:
        name -> {"value", "low", "high", "n_images", "n_patients"[, "reason"]}.
    """
    clusters = Clusters(patients, draws, seed)
    sums = clusters.sums(np.column_stack([*columns.values(), np.ones(len(patients))]))
    means = sums[:, :-1] / sums[:, -1:]
    n = {"n_images": len(patients), "n_patients": clusters.patients, "minimum": minimum}
    return {name: estimate(means[:, i], **n) for i, name in enumerate(columns)}
