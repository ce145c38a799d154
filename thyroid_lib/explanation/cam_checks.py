"""Is a class activation map evidence, or decoration? Each check ends in a number and a pass or a fail.

* Localization: pointing game (Zhang 2018, IJCV 126:1084) and energy inside the nodule (Score-CAM, arXiv
  1910.01279) against the nodule's share of the area, a smooth random map, and an edge detector.
* Deletion: ROAD (Rong 2022, arXiv 2202.00449): removing what the map calls relevant must hurt the class more
  than removing what it calls irrelevant, and more so than for a random map.
* Randomization: cascading randomization of the weights (Adebayo 2018, arXiv 1810.03292); a map that stays
  the same does not show what the network has learned.
* Agreement: two trainings of one network should point at the same place.

The limits 0.5 and 0.4 are conventions of this study, fixed before any result was seen.
"""

from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import torch
import yaml
from scipy.stats import rankdata
from torch import nn
from torch.optim.swa_utils import update_bn

from thyroid_lib import network
from thyroid_lib.common.messages import say
from thyroid_lib.common.progress import status
from thyroid_lib.common.templates import TEMPLATES
from thyroid_lib.explanation import cam
from thyroid_lib.explanation.tested import Sample, Tested
from thyroid_lib.training import checkpoint

BASELINES = ("random", "edges", "centre")

REMOVED = (20, 50, 80)  # parts of the area, %, that deletion takes away


def check_maps(tested: Tested, other, *, method, layer, most: int, road_images: int, **options) -> dict:
    """Every check of the maps, for the trained network and for one with random weights.

    Localization uses every tested image with a mask; the other checks, which cost many passes, use images of
    the first fold, spread over its patients.

    Args:
        tested: the tested images.
        other: a second trained network, or None.
        method, layer: of ``cam.cam``.
        most: images for randomization, agreement and the network with random weights.
        road_images: images for deletion, of which each costs 24 imputations.
        options: draws, seed and minimum, of ``tested.Sample``; the seed is also that of random maps and weights.

    Returns:
        "trained" and "untrained" -> {"masks", "deletion", "randomization", "agreement": results, where a check
        was done, or {"reason"}; "verdicts": check -> "pass", "fail" or "not done"}.
    """
    some, few = tested.first(most), tested.first(road_images)
    blank, third = (untrained(some.model, some.images, options["seed"] + more) for more in (0, 1000))
    arms = {"trained": (tested, some.model, blank), "untrained": (some.of(blank), blank, third)}
    result = {}
    for name, (part, model, rival) in arms.items():
        status(f"maps of the {name} network")
        seen, asked = some.of(model).cam(method, layer), few.of(model)
        found = {"masks": {"reason": "the data have no nodule masks"}, "agreement": {}}
        if part.masks is not None:
            found["masks"] = check_against_masks(part, part.cam(method, layer), **options)
            own, theirs = (inside(some, cams)["energy"] for cams in (seen, some.of(rival).cam(method, layer)))
            gain = {"energy_over_random_weights": own - theirs}
            found["masks"] |= Sample(some.patients[some.masked], **options).means(gain) if len(own) else {}
        found["deletion"] = check_deletion(asked, asked.cam(method, layer), **options)
        found["randomization"] = check_randomization(some.of(model), seen, **options)
        if other is not None:
            agreement = rank_correlation(seen.maps, some.of(other).cam(method, layer).maps)
            found["agreement"] = Sample(some.patients, **options).means({"agreement": agreement})
        result[name] = found | {"verdicts": verdicts(found).set_index("check")["verdict"].to_dict()}
    return result


def check_against_masks(part: Tested, cams: cam.Cams, **options) -> dict:
    """Pointing game and energy inside the nodule, against area share and three maps that know nothing.

    Args:
        part: images with masks; one that has no nodule in it is left out.
        cams: their maps.
        options: draws, seed and minimum, of ``tested.Sample``; the seed is also that of the random map.

    Returns:
        ``share``, ``energy``, ``pointing`` of the maps, ``<baseline>/energy`` (and pointing), and paired
        differences ``energy_over_share``, ``pointing_over_share``, ``energy_over_<baseline>``,
        ``pointing_over_<baseline>``, each with interval; plain numbers ``images_without_mask`` (left out) and
        ``flat_maps``.
    """
    masked = part.masked
    result = {"images_without_mask": int((~masked).sum()), "flat_maps": int(cams.flat[masked].sum())}
    if not masked.any():
        return result | {"reason": "no image has a nodule mask"}
    images, masks, own = part.images[masked], part.masks[masked], inside(part, cams)
    columns, both = dict(own), own[["energy", "pointing"]]
    columns |= both.sub(own["share"], axis=0).add_suffix("_over_share")
    for name in BASELINES:
        other = localization(baseline_maps(images, name, options["seed"]), masks)[[*both]]
        columns |= {**other.add_prefix(f"{name}/"), **(both - other).add_suffix(f"_over_{name}")}
    return result | Sample(part.patients[masked], **options).means(columns)


def check_deletion(part: Tested, cams: cam.Cams, **options) -> dict:
    """``road``, ``random/road`` and the paired ``road_over_random``: ROAD of the maps and of random ones.

    Args:
        part: images of one fold.
        cams: their maps.
        options: draws, seed and minimum, of ``tested.Sample``; the seed is also that of ROAD and the random map.
    """
    images, seed = part.images, options["seed"]
    own = road(part.model, images, cams.maps, cams.targets, seed)
    other = road(part.model, images, baseline_maps(images, "random", seed), cams.targets, seed)
    columns = {"road": own, "random/road": other, "road_over_random": own - other}
    return Sample(part.patients, **options).means(columns)


def check_randomization(part: Tested, trained: cam.Cams, **options) -> dict:
    """Cascading randomization: from the last layer to the first, does the map change with the weights?

    Args:
        part: images of one fold; a copy of its network is randomized.
        trained: the network's maps of them.
        options: draws, seed and minimum, of ``tested.Sample``; the seed is also that of the random weights.

    Returns:
        ``correlation/<module>`` -> mean Spearman rank correlation with the trained map once this module and
        all after it are random, with interval; ``order``: these modules, last first (one that holds less than
        a twentieth of the weights is randomized in its turn, but not looked at apart).
    """
    broken, columns, images = cam.copied(part.model), {}, part.images
    sizes = {name: sum(p.numel() for p in child.parameters()) for name, child in broken.named_children()}
    names = [name for name, size in reversed(sizes.items()) if size]
    for position, name in enumerate(names):
        randomize(broken.get_submodule(name), options["seed"] + position)
        if name in (names[0], names[-1]) or sizes[name] > 0.05 * sum(sizes.values()):
            refresh_statistics(broken, images)
            maps = part.of(broken).cam(trained.method, trained.layer).maps
            columns[name] = rank_correlation(trained.maps, maps)
    found = Sample(part.patients, **options).means({f"correlation/{name}": c for name, c in columns.items()})
    return found | {"order": list(columns)}


def verdicts(found: dict) -> pd.DataFrame:
    """One line per check of ``templates/explanation/checks.yaml``.

    Args:
        found: "masks", "deletion", "randomization" and "agreement" -> results; empty where a check was not done.

    Returns:
        Columns "check", "passes when", "measured" (in words) and "verdict": "pass", "fail" or "not done".
    """
    rows = []
    for asked in yaml.safe_load((TEMPLATES / "explanation" / "checks.yaml").read_text(encoding="utf-8")):
        results, limit = found[asked["part"]], asked["passes when"]
        metric = results.get(asked["of"] + results.get("order", [""])[-1], {})
        said, verdict = metric.get("reason") or results.get("reason", "not computed in this run"), "not done"
        if metric.get("value") is not None:
            passed = {
                "interval > 0": metric["low"] > 0,
                "interval < 0.5": metric["high"] < 0.5,
                "mean >= 0.4": metric["value"] >= 0.4,
            }[limit]
            said, verdict = say(metric, 3), "pass" if passed else "fail"
        rows.append((asked["check"], limit, said, verdict))
    return pd.DataFrame(rows, columns=["check", "passes when", "measured", "verdict"])


def verdict_table(checks: dict) -> pd.DataFrame:
    """The verdicts on the trained network and, beside them, on the untrained one, from what `check_maps` gives."""
    trained, untrained = (verdicts(checks[name]) for name in ("trained", "untrained"))
    table = trained.rename(columns={"measured": "trained"})
    return table.assign(**{"random weights": untrained["measured"], "their verdict": untrained["verdict"]})


def compare_maps(tested: Tested, *, most: int = 64, **options) -> dict:
    """Energy inside the nodule minus its area share, for every method at every stage.

    Args:
        tested: the tested images.
        most: images of the first fold.
        options: draws, seed and minimum, of ``tested.Sample``.

    Returns:
        layer -> method -> metric; empty without masks.
    """
    part, result = tested.first(most), {}
    if part.masks is None:
        return result
    sample = Sample(part.patients[part.masked], **options)
    for layer in network.STAGES[::-1]:
        found = {method: inside(part, part.cam(method, layer)) for method in cam.METHODS}
        result[layer] = sample.means({name: f["energy"] - f["share"] for name, f in found.items()})
    return result


def inside(part: Tested, cams: cam.Cams) -> pd.DataFrame:
    """`localization` of the maps whose images have a nodule."""
    return localization(cams.maps[part.masked], part.masks[part.masked])


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


def baseline_maps(images: np.ndarray, name: str, seed: int = 0) -> np.ndarray:
    """Maps that know nothing of the network.

    Args:
        images: uint8 (n, S, S).
        name: "random" (noise on a grid as coarse as a map of the exit flow, enlarged the same way), "edges"
            (Sobel gradient of the image) or "centre" (a Gaussian of width S / 4 in the middle).
        seed: of the noise.

    Returns:
        float32 (n, S, S), 0..1.
    """
    size = images.shape[1]
    if name == "random":
        cells = (len(images), cam.CELLS, cam.CELLS)
        noise = np.random.default_rng(seed).random(cells, dtype=np.float32)
        maps = np.stack([cv2.resize(grid, (size, size)) for grid in noise])
    elif name == "edges":
        sigma = max(0.8, size / 128)
        smooth = [cv2.GaussianBlur(image, (0, 0), sigma).astype(np.float32) for image in images]
        maps = np.stack([np.hypot(cv2.Sobel(s, -1, 1, 0), cv2.Sobel(s, -1, 0, 1)) for s in smooth])
    else:
        line = np.exp(-0.5 * ((np.arange(size) - (size - 1) / 2) / (size / 4)) ** 2)
        maps = np.repeat(np.outer(line, line)[None], len(images), axis=0)
    low, high = maps.min((1, 2), keepdims=True), maps.max((1, 2), keepdims=True)
    return ((maps - low) / np.maximum(high - low, 1e-12)).astype(np.float32)


def road(model: nn.Module, images: np.ndarray, maps: np.ndarray, targets, seed: int) -> np.ndarray:
    """ROAD score per image: probability without the least relevant minus without the most relevant part.

    Pixels are taken away by the noisy linear imputation of the grad-cam package. Equal relevance is ordered
    at random (seeded), so that a map of mostly zeros takes away as much as any other.

    Args:
        model: the network.
        images: uint8 (n, S, S).
        maps: float (n, S, S), higher is more relevant.
        targets: int (n,), the class whose probability counts.
        seed: of ties and of the imputation's noise.

    Returns:
        float64 (n,) in -1..1; half the difference, averaged over ``REMOVED``; about 0 for a map that says
        nothing.
    """
    from pytorch_grad_cam.metrics.road import NoisyLinearImputer

    imputer, rng, model = NoisyLinearImputer(), np.random.default_rng(seed), cam.copied(model)
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        inputs, changed = cam.model_input(model, images), []
        for pixels, values in zip(inputs.cpu(), maps):
            order = np.lexsort((rng.random(values.size), -values.ravel()))
            for percentage in REMOVED:
                count = round(values.size * percentage / 100)
                for gone in (order[len(order) - count :], order[:count]):
                    kept = torch.ones(values.size)
                    kept[torch.from_numpy(gone)] = 0
                    changed.append(imputer(pixels, kept.reshape(values.shape)))
        logits = torch.cat([model(part.to(inputs.device)) for part in torch.stack(changed).split(64)])
    scores = torch.softmax(logits.double(), dim=1).cpu().numpy().reshape(len(images), len(REMOVED), 2, -1)
    scores = scores[np.arange(len(images)), :, :, np.asarray(targets)]
    return (scores[:, :, 0] - scores[:, :, 1]).mean(axis=1) / 2


def rank_correlation(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Spearman's rank correlation between two maps of each image, float (n, S, S) each.

    Returns:
        float64 (n,) in -1..1; 0 where either map is flat.
    """
    a, b = (rankdata(np.asarray(m).reshape(len(m), -1), axis=1) for m in (first, second))
    a, b = a - a.mean(1, keepdims=True), b - b.mean(1, keepdims=True)
    scale = np.sqrt((a**2).sum(1) * (b**2).sum(1))
    return np.divide((a * b).sum(1), scale, out=np.zeros(len(a)), where=scale > 0)


def untrained(model: nn.Module, images: np.ndarray, seed: int = 0) -> nn.Module:
    """A copy of the network with random weights, BatchNorm fitted to the images: it must be able to fail a check."""
    blank = cam.copied(model)
    for position, child in enumerate(blank.children()):
        randomize(child, seed + position)
    refresh_statistics(blank, images)
    return blank


def randomize(module: nn.Module, seed: int) -> None:
    """Draws a module's weights anew, in place: He-normal convolutions, small linear layers, neutral BatchNorm."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in module.named_parameters():
        with torch.no_grad():
            if parameter.ndim > 1:
                drawn = torch.randn(parameter.shape, generator=generator)
                parameter.copy_(drawn.to(parameter.device) * (2.0 / parameter[0].numel()) ** 0.5)
            else:
                parameter.fill_(1.0 if name.endswith("weight") else 0.0)


def refresh_statistics(model: nn.Module, images: np.ndarray) -> None:
    """BatchNorm's mean and variance on 64 of the images, so that random weights are as well scaled as trained ones."""
    update_bn([cam.model_input(model, images[:64])], model)


def second_network(run_folder: Path, fold: int) -> tuple[nn.Module | None, str]:
    """Another training of the same task, to ask whether two trainings point at the same place.

    Args:
        run_folder: the run.
        fold: whose tested images are looked at.

    Returns:
        (network in eval mode, words that say which it is); (None, why) where the run has none.
    """
    path = Path(run_folder, "checkpoints", "scratch", f"fold{fold}", "best.safetensors")
    if not path.is_file():
        return None, "the run has no second training of this fold"
    tensors, about = checkpoint.load_weights(path)
    model = network.build(about["model"])
    model.load_state_dict(tensors)
    return model.eval(), "trained from scratch on the same images"
