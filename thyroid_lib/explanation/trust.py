"""Notebook 05's heat maps: which are shown, and every check of them on the networks of one run.

Each function looks at the tested images again through ``tested.Tested`` and returns what is recorded in
metrics.json. The methods are in ``explanation`` and ``cam_checks``.
"""

import copy
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd

from thyroid_lib import network
from thyroid_lib.common.messages import english, say
from thyroid_lib.common.progress import status
from thyroid_lib.explanation import cam, cam_checks
from thyroid_lib.explanation.tested import Tested


def choose(tested: Tested, layer: str = "auto", method: str = "auto") -> tuple[str, str]:
    """Layer and method of the maps that are checked and shown.

    Args:
        tested: the tested images;  layer: attribute path, or "auto" (``cam.choose_layer``);  method:
            of ``cam.METHODS``, or "auto" (``cam.choose_method``).
    """
    model = next(iter(tested.members.values()))
    layer = cam.choose_layer(model, tested.crops.size)[0] if layer == "auto" else layer
    return layer, cam.choose_method(layer) if method == "auto" else method


def second_network(run_folder: Path, fold: int) -> tuple[object, str]:
    """Another training of the same task, to ask whether two trainings point at the same place.

    Args:
        run_folder: the run;  fold: whose tested images are looked at.

    Returns:
        (network in eval mode, words that say which it is); (None, why) where the run has none.
    """
    from safetensors import safe_open

    path = Path(run_folder) / "checkpoints" / "scratch" / f"fold{fold}" / "best.safetensors"
    if not path.is_file():
        return None, "the run has no second training of this fold"
    with safe_open(path, "pt") as file:
        model = network.build(json.loads(file.metadata()["model"]))
        model.load_state_dict({key: file.get_tensor(key) for key in file.keys()})
    return model.eval(), "trained from scratch on the same images"


def untrained(model, images: np.ndarray, seed: int = 0):
    """The same network with random weights, BatchNorm fitted to the images: it must be able to fail a check.

    Args:
        model: copied, not touched;  images: uint8 (n, S, S);  seed: of the weights.
    """
    blank = copy.deepcopy(model)
    for position, (_, child) in enumerate(blank.named_children()):
        cam_checks.randomize(child, seed=seed + position)
    cam_checks.refresh_statistics(blank, images)
    return blank


def check_maps(
    tested: Tested,
    other=None,
    *,
    method: str = "gradcam",
    layer: str = "exit_flow",
    most: int = 64,
    road_images: int = 16,
    draws: int = 2000,
    seed: int = 0,
    minimum: int = 5,
) -> dict:
    """Every check of the maps, for the trained network and for one with random weights.

    Localization uses every tested image with a mask; the other checks, which cost many passes, use images of
    the first fold, spread over its patients.

    Args:
        tested: the tested images.
        other: a second trained network, or None.
        method, layer: of ``cam.cam``.
        most: images for randomization, agreement and the untrained network.
        road_images: images for deletion, of which each costs 24 imputations.
        draws, seed, minimum: of the bootstrap.

    Returns:
        "trained" and "untrained" -> {"masks", "deletion", "randomization", "agreement", "verdicts"}.
    """
    options = {"draws": draws, "seed": seed, "minimum": minimum}
    fold = next(iter(tested.members))
    some, few = tested.only(fold, most), tested.only(fold, road_images)
    blank = untrained(tested.members[fold], some.images, seed)
    control = some.of(fold, blank)
    result = {}
    third = untrained(tested.members[fold], some.images, seed + 1000)
    arms = (("trained", tested, tested.members[fold], blank), ("untrained", control, blank, third))
    for name, part, model, rival in arms:
        found: dict = {"masks": {}, "deletion": {}, "randomization": {}, "agreement": {}}
        status(f"maps of the {name} network")
        if part.masks is None:
            found["masks"] = {"reason": "the data have no nodule masks"}
        else:
            cams = part.cam(method=method, layer=layer)
            found["masks"] = cam_checks.check_against_masks(
                cams, part.images, part.masks, part.patients, **options
            )
            found["masks"] |= _over(some, fold, model, rival, method, layer, options)
        asked = few.of(fold, model)
        cams = asked.cam(method=method, layer=layer)
        found["deletion"] = cam_checks.check_deletion(model, cams, asked.images, asked.patients, **options)
        found["randomization"] = cam_checks.check_randomization(
            model, some.images, some.predicted, some.patients, method=method, layer=layer, **options
        )
        if other is not None:
            pair = [some.of(fold, m).cam(method=method, layer=layer) for m in (model, other)]
            found["agreement"] = cam_checks.check_agreement(*pair, some.patients, **options)
        lines = cam_checks.verdicts(
            *(found[key] for key in ("masks", "deletion", "randomization", "agreement"))
        )
        found["verdicts"] = dict(zip(lines["check"], lines["verdict"]))
        result[name] = found
    return result


def _over(some: Tested, fold: int, model, rival, method: str, layer: str, options: dict) -> dict:
    masked = some.masks.reshape(len(some.rows), -1).any(axis=1)
    energy = []
    for network_ in (model, rival):
        cams = some.of(fold, network_).cam(method=method, layer=layer)
        energy.append(cam_checks.localization(cams.maps[masked], some.masks[masked])["energy"])
    columns = {"energy_over_random_weights": energy[0] - energy[1]}
    return cam_checks.means(columns, some.patients[masked], *options.values()) if masked.any() else {}


def gallery(tested: Tested, count: int, names: dict, method: str, layer: str):
    """Some tested crops with every method at one layer, and one method at every stage.

    Args:
        tested: the tested images;  count: crops;  names: class key -> (English, Chinese);  method, layer: the
            ones that are checked.

    Returns:
        (part of ``tested``, heading -> ``Cams``, titles).
    """
    part = tested.only(next(iter(tested.members)), count)
    columns = {f"{name}\n{layer}": part.cam(method=name, layer=layer) for name in cam.METHODS}
    for stage in network.STAGES:
        if stage != layer:
            columns[f"{method}\n{stage}"] = part.cam(method=method, layer=stage)
    titles = [
        f"{english(names, row.truth)},\nread as\n{english(names, row.predicted)}"
        for row in part.table.itertuples()
    ]
    return part, columns, titles


def maps_of(tested: Tested, positions: np.ndarray, method: str, layer: str) -> cam.Cams:
    """Maps of some tested images for their predicted types.

    Args:
        tested: the tested images;  positions: int (k,), which;  method, layer: of ``cam.cam``.
    """
    table = tested.table.iloc[positions].reset_index(drop=True)
    part = replace(tested, rows=tested.rows[positions], table=table)
    return part.cam(method=method, layer=layer)


def compare_maps(
    tested: Tested, *, most: int = 64, draws: int = 2000, seed: int = 0, minimum: int = 5
) -> dict:
    """Energy inside the nodule minus its area share, for every method at every stage.

    Args:
        tested: the tested images;  most: images of the first fold;  draws, seed, minimum: of the bootstrap.

    Returns:
        layer -> method -> metric; empty without masks.
    """
    part, result = tested.only(next(iter(tested.members)), most), {}
    if part.masks is None:
        return result
    masked = part.masks.reshape(len(part.rows), -1).any(axis=1)
    for layer in network.STAGES[::-1]:
        result[layer] = {}
        for method in cam.METHODS:
            cams = part.cam(method=method, layer=layer)
            found = cam_checks.localization(cams.maps[masked], part.masks[masked])
            result[layer][method] = cam_checks.means(
                {"gain": found["energy"] - found["share"]}, part.patients[masked], draws, seed, minimum
            )["gain"]
    return result


def compared_table(compared: dict) -> pd.DataFrame:
    """:func:`compare_maps` as a table: layers down, methods across.

    Args:
        compared: of :func:`compare_maps`.
    """
    if not compared:
        return pd.DataFrame([{"layer": "not done: the data have no nodule masks"}])
    return pd.DataFrame(
        [
            {"layer": layer} | {method: say(m, 3) for method, m in row.items()}
            for layer, row in compared.items()
        ]
    )


def maps_caption(tested: Tested, method: str, layer: str, second: str, simulated: bool) -> str:
    """What the verdicts were reached on.

    Args:
        tested: the tested images;  method, layer: of the maps;  second: words of :func:`second_network`;
            simulated: phantoms.
    """
    kind = "simulated images" if simulated else "images"
    return f"Checks of {method} at {layer}, {len(tested.rows)} tested {kind}. Second training: {second}."


def verdict_table(checks: dict) -> pd.DataFrame:
    """One line per check: the trained network's number and verdict, and the untrained network's.

    Args:
        checks: of :func:`check_maps`.
    """
    parts = ("masks", "deletion", "randomization", "agreement")
    lines = {
        name: cam_checks.verdicts(*(checks[name][p] for p in parts)) for name in ("trained", "untrained")
    }
    words = {
        name: [
            say({"value": row.value, "low": row.low, "high": row.high}, 3)
            if row.verdict != "not done"
            else row.reason
            for row in frame.itertuples()
        ]
        for name, frame in lines.items()
    }
    return pd.DataFrame(
        {
            "check": lines["trained"]["check"],
            "passes when": lines["trained"]["limit"],
            "trained": words["trained"],
            "verdict": lines["trained"]["verdict"],
            "random weights": words["untrained"],
            "their verdict": lines["untrained"]["verdict"],
        }
    )
