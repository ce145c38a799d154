"""The shortcut audit: does the score come from the nodule, or from something beside it?

Nothing is trained anew (that would cost as much as the study). Each view of the images is read by up to
three readers, and the report says which is which:

* ``classifier``: the frozen classifier's own score on the view;
* ``probe``: a logistic regression on the frozen network's features of the view, fitted on the training part
  and scored on the tested part: what the features could tell if the head were free to use it;
* ``pixels``: a logistic regression on the pixels of a small grey image, fitted and scored across the folds:
  what is in plain sight, such as printed text, whether or not this network has learned to look at it.

Views: the crop; the sector's border only; the nodule hidden under a square; the full frame; the full frame
with the answer printed on it. Shortcut learning: Geirhos 2020 (arXiv 2004.07780); Zech 2018 (PLoS Med
15:e1002683) found hospitals, not pneumonia, in exactly this way.
"""

import cv2
import numpy as np
import torch
from torch import nn

from thyroid_lib import network
from thyroid_lib.evaluation.bootstrap import (
    MINIMUM_PATIENTS,
    Clusters,
    estimate,
    rank_statistics,
    scarcer_sides,
)
from thyroid_lib.explanation import cam

VIEWS = ("crop", "border only", "nodule hidden", "full frame", "full frame, answer printed")
READERS = ("classifier", "probe", "pixels")

PIXELS = 48
"""px, side of the grey image that the pixel reader sees: small enough to fit, large enough to show print."""

PIXEL_STRENGTH = 0.01
"""Inverse L2 penalty of the pixel reader: two thousand standardized pixels need a strong one."""


def border_only(images: np.ndarray) -> np.ndarray:
    """The sector's outline, what is outside it, and nothing of the tissue inside.

    Args:
        images: uint8 (n, S, S), crops.

    Returns:
        uint8 (n, S, S); everything deeper than S / 16 px inside the sector is 0.
    """
    size = images.shape[1]
    closing = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (size // 8 | 1, size // 8 | 1))
    result = np.array(images)
    for image in result:
        lit = cv2.morphologyEx((image > 12).astype(np.uint8), cv2.MORPH_CLOSE, closing)
        contours, _ = cv2.findContours(lit, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
        sector = cv2.drawContours(np.zeros_like(lit), contours, -1, 1, cv2.FILLED)
        depth = cv2.distanceTransform(np.pad(sector, 1), cv2.DIST_L2, 5)[1:-1, 1:-1]
        image[depth > size / 16] = 0
    return result


def nodule_hidden(images: np.ndarray, masks: np.ndarray) -> np.ndarray:
    """The nodule under a square of the grey level around it, so that neither texture nor shape remains.

    Args:
        images: uint8 (n, S, S);  masks: (n, S, S), 0 outside the nodule.

    Returns:
        uint8 (n, S, S); the square's side is 1.2 times the nodule's longer side. Its size and place remain.
        Parts of a mask that do not touch (two nodules, two panels) get a square each: one square over both
        would hide everything between them too.
    """
    images = np.asarray(images)
    result = images.copy()
    for seen, hidden, mask in zip(images, result, np.asarray(masks)):
        _, _, parts, _ = cv2.connectedComponentsWithStats((mask > 0).astype(np.uint8))
        for x, y, width, height, _ in parts[1:]:
            _cover(seen, hidden, x, y, width, height)
    return result


def _cover(seen: np.ndarray, hidden: np.ndarray, x: int, y: int, width: int, height: int) -> None:
    """Puts a square over a box of ``hidden``, as grey as what surrounds it in ``seen``."""
    size = len(seen)
    half = max(2, 0.6 * (max(width, height) - 1) + 1)
    cy, cx = y + (height - 1) / 2, x + (width - 1) / 2
    top, left = (int(max(0, c - half)) for c in (cy, cx))
    bottom, right = (int(min(size, c + half + 1)) for c in (cy, cx))
    margin = max(1, size // 24)
    outer_top, outer_left = max(0, top - margin), max(0, left - margin)
    outer = seen[outer_top : bottom + margin, outer_left : right + margin]
    ring = np.ones(outer.shape, bool)
    ring[top - outer_top : bottom - outer_top, left - outer_left : right - outer_left] = False
    hidden[top:bottom, left:right] = int(outer[ring].mean()) if ring.any() else 0


def features(model: nn.Module, images: np.ndarray, batch_size: int = 64, precision: str = "32") -> np.ndarray:
    """The frozen network's last feature map, averaged over pixels, and over what a prediction averages over.

    Args:
        model: of ``network.build``;  images: uint8 (n, S, S);  batch_size: images per pass;  precision: "32"
            or "bf16".

    Returns:
        float32 (n, D).
    """
    parts, device = [], next(model.parameters()).device.type
    low = torch.autocast(device, torch.bfloat16, enabled=precision == "bf16")
    with cam.restored(model), torch.inference_mode(), low:
        for start in range(0, len(images), batch_size):
            x = cam.model_input(model, np.asarray(images[start : start + batch_size]))
            seen = network.views(x.contiguous(memory_format=torch.channels_last), model.config)
            maps = [model.forward_features(view).float().mean((2, 3)) for view in seen]
            parts.append((sum(maps) / len(maps)).cpu().numpy())
    return np.concatenate(parts)


def probe(
    train: np.ndarray, labels: np.ndarray, test: np.ndarray, classes: int, *, strength: float = 0.1
) -> np.ndarray:
    """Logistic regression on standardized features.

    Args:
        train: float (m, D);  labels: int (m,);  test: float (n, D);  classes: C.
        strength: inverse of the L2 penalty.

    Returns:
        float64 (n, C) probabilities; a class that the training rows lack gets 0.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    result = np.zeros((len(test), classes))
    if len(present := np.unique(labels)) < 2:
        result[:, present] = 1.0
        return result
    reader = make_pipeline(StandardScaler(), LogisticRegression(C=strength, max_iter=1000, tol=1e-3))
    reader.fit(train, labels)
    result[:, present] = reader.predict_proba(test)
    return result


def pixel_probe(images: np.ndarray, labels: np.ndarray, folds: np.ndarray, classes: int) -> np.ndarray:
    """Logistic regression on the pixels of a small grey image, each fold read by a fit on the others.

    Every pixel is standardized, so that print in a margin that is otherwise always black weighs as much as
    tissue.

    Args:
        images: uint8 (n, S, S);  labels: int (n,);  folds: int (n,);  classes: C.

    Returns:
        float64 (n, C) probabilities.
    """
    side = min(PIXELS, images.shape[1])
    small = [cv2.resize(np.asarray(i), (side, side), interpolation=cv2.INTER_AREA).ravel() for i in images]
    vectors, result = np.array(small, np.float32) / 255, np.zeros((len(images), classes))
    for fold in np.unique(folds):
        test = folds == fold
        result[test] = probe(vectors[~test], labels[~test], vectors[test], classes, strength=PIXEL_STRENGTH)
    return result


def macro_auroc(
    probabilities: np.ndarray, labels: np.ndarray, clusters: Clusters, columns=None
) -> np.ndarray:
    """Mean one-against-rest AUROC of the sample and every draw.

    Args:
        probabilities: float (n, C);  labels: int (n,);  clusters: the draws;  columns: the classes that are
            averaged; all when not given.

    Returns:
        float64 (draws + 1,); NaN where a class is absent.
    """
    columns = range(probabilities.shape[1]) if columns is None else columns
    return np.mean([rank_statistics(probabilities[:, k], labels == k, clusters)[0] for k in columns], axis=0)


def shortcut_audit(
    model: nn.Module,
    views: dict[str, np.ndarray],
    labels: np.ndarray,
    patients,
    folds: np.ndarray,
    fold: int,
    classes: int,
    *,
    against: dict[str, str] | None = None,
    precision: str = "32",
    temperature: float = 1.0,
    known: np.ndarray | None = None,
    draws: int = 2000,
    seed: int = 0,
    minimum: int = MINIMUM_PATIENTS,
) -> dict:
    """Scores every view of the images with every reader.

    Args:
        model: the frozen network that has not seen ``fold``.
        views: name -> uint8 (n, S, S), the same n images each time.
        labels: int (n,);  patients: n identifiers;  folds: int (n,).
        fold: the tested one: "classifier" and "probe" are scored on it, "pixels" on all n images.
        classes: C.
        against: view -> the earlier view that it is compared with; the first view when not stated.
        precision: "32" or "bf16", of the features.
        temperature: of the classifier's probabilities. A type's AUROC against the rest depends on it a little.
        known: float (k, C), the probabilities that the study states for the tested fold's images in the first view,
            in their order: the classifier's score of that view is then the study's own, and "read here" beside it
            is the score of the same images as they are read here, which other arithmetic moves a little.
        draws, seed, minimum: of the bootstrap; every view sees the same draws.

    Returns:
        view -> reader -> {"auroc": metric, "difference": paired difference from the view it is compared
        with, "from": that view}, where a metric is {"value", "low", "high", "n_images", "n_patients"}. AUROC
        is the macro average. Both sides of a difference are read here.
    """
    patients, test = np.asarray(patients), np.asarray(folds) == fold
    tested = _sample(patients[test], labels[test], classes, draws, seed, minimum)
    every = _sample(patients, labels, classes, draws, seed, minimum)
    result, scores = {}, {}
    for name, images in views.items():
        vectors = features(model, images, precision=precision)
        with cam.restored(model), torch.inference_mode():
            maps = torch.from_numpy(vectors[test])[:, :, None, None].to(next(model.parameters()).device)
            head = torch.softmax(model.forward_head(maps).double() / temperature, 1).cpu().numpy()
        read = {
            "classifier": (head, labels[test], *tested),
            "probe": (probe(vectors[~test], labels[~test], vectors[test], classes), labels[test], *tested),
            "pixels": (pixel_probe(images, labels, folds, classes), labels, *every),
        }
        result[name] = {}
        for reader, (probabilities, truth, clusters, n) in read.items():
            score = scores[name, reader] = macro_auroc(probabilities, truth, clusters)
            result[name][reader] = {"auroc": estimate(score, bounds=(0.0, 1.0), **n)}
            if known is not None and reader == "classifier" and name == next(iter(views)):
                stated = estimate(macro_auroc(known, truth, clusters), bounds=(0.0, 1.0), **n)
                result[name][reader] = {"auroc": stated, "read here": result[name][reader]["auroc"]}
            base = (against or {}).get(name, next(iter(views)))
            if base != name:
                difference = estimate(score - scores[base, reader], **n)
                result[name][reader] |= {"difference": difference, "from": base}
    return result


def text_audit(crops, *, draws: int = 2000, seed: int = 0, minimum: int = MINIMUM_PATIENTS) -> dict:
    """Does text that is really printed on frames give the answer away?

    The pixel reader is fitted and tested across the folds of the whole set, on full frames and on crops, and
    scored on all frames, on those with printed text and on those without. Text often stands on few frames of
    some class: the macro average is then over the classes with enough patients, and ``classes`` names them.

    Args:
        crops: ``crops.Crops`` with columns ``text``, ``label``, ``patient`` and ``fold``.
        draws, seed, minimum: of the bootstrap.

    Returns:
        "all frames", "with text" and "without text" -> {"full frame", "crop", "difference"}, each a metric, and
        "classes"; "reason" where the set has no folds, or text on no frame or on every frame.
    """
    index = crops.index
    printed = (
        index["text"].fillna("").astype(str).str.strip().ne("")
        if "text" in index
        else np.zeros(len(index), bool)
    )
    known = np.flatnonzero(crops.labels >= 0)
    texted = np.asarray(printed)[known]
    if "fold" not in index or texted.all() or not texted.any():
        return {
            "reason": "text is printed on every frame or on none, or the set has no folds: nothing to compare"
        }
    labels, folds = crops.labels[known], index["fold"].to_numpy()[known]
    views = {"full frame": crops.frames[known], "crop": crops.images[known]}
    read = {view: pixel_probe(images, labels, folds, len(crops.classes)) for view, images in views.items()}
    result, patients = {}, index["patient"].to_numpy()[known].astype(str)
    for name, chosen in (
        ("all frames", np.ones_like(texted)),
        ("with text", texted),
        ("without text", ~texted),
    ):
        of, truth = patients[chosen], labels[chosen]
        kept = [
            k
            for k in range(len(crops.classes))
            if min(len(set(of[truth == k])), len(set(of[truth != k]))) >= minimum
        ]
        kept = kept if len(kept) > 1 else list(range(len(crops.classes)))  # then the metric says "too few"
        clusters, n = _sample(of, truth, kept, draws, seed, minimum)
        draw = {view: macro_auroc(values[chosen], truth, clusters, kept) for view, values in read.items()}
        result[name] = {view: estimate(values, bounds=(0.0, 1.0), **n) for view, values in draw.items()}
        result[name]["difference"] = estimate(draw["full frame"] - draw["crop"], **n)
        result[name]["classes"] = [crops.classes[k] for k in kept]
    return result


def source_audit(
    vectors: np.ndarray,
    source,
    patients,
    *,
    draws: int = 2000,
    seed: int = 0,
    minimum: int = MINIMUM_PATIENTS,
) -> dict:
    """How well frozen features tell where an image came from, cross-validated by patient.

    Args:
        vectors: float (n, D), of :func:`features`.
        source: n names, such as the data set or the device.
        patients: n identifiers; no patient is in training and test at once.
        draws, seed, minimum: of the bootstrap.

    Returns:
        {"auroc": macro AUROC with interval (0.5 is chance), "sources": {name: images}, "reason" if not done}.
    """
    from sklearn.model_selection import StratifiedGroupKFold

    names, labels = np.unique(np.asarray(source).astype(str), return_inverse=True)
    patients = np.asarray(patients).astype(str)
    counts = {str(name): int((labels == k).sum()) for k, name in enumerate(names)}
    smallest = min(len(np.unique(patients[labels == k])) for k in range(len(names)))
    if len(names) < 2 or smallest < max(2, minimum):
        return {
            "sources": counts,
            "reason": "one source only" if len(names) < 2 else "too few patients in a source",
        }
    probabilities = np.zeros((len(labels), len(names)))
    cut = StratifiedGroupKFold(min(5, smallest), shuffle=True, random_state=seed)
    for train, test in cut.split(vectors, labels, patients):
        probabilities[test] = probe(vectors[train], labels[train], vectors[test], len(names))
    clusters, common = _sample(patients, labels, len(names), draws, seed, minimum)
    auroc = macro_auroc(probabilities, labels, clusters)
    return {"auroc": estimate(auroc, bounds=(0.0, 1.0), **common), "sources": counts}


def verdicts(audit: dict, source: dict, text: dict | None = None) -> list[dict]:
    """What the audit says, one line per question and reader.

    Args:
        audit: of :func:`shortcut_audit`, views named as in ``VIEWS``;  source: of :func:`source_audit`;  text:
            of :func:`text_audit`.

    Returns:
        list of {"question", "reader", "metric", "verdict", "meaning"}; a verdict is "clear", "warning" (the
        whole interval lies above chance, or above no difference) or "not done".
    """
    lines = []

    def add(question, reader, metric, limit, meaning):
        known = metric is not None and metric.get("value") is not None
        verdict = "not done" if not known else ("warning" if metric["low"] > limit else "clear")
        line = {"question": question, "reader": reader, "metric": metric, "verdict": verdict}
        lines.append(line | {"meaning": meaning if verdict == "warning" else ""})

    for view, question, meaning in (
        ("border only", "does the sector's border alone tell the type?", "the border carries the label"),
        (
            "nodule hidden",
            "is the type told with the nodule hidden?",
            "size, place or surroundings carry the label",
        ),
    ):
        for reader in READERS:
            add(question, reader, audit.get(view, {}).get(reader, {}).get("auroc"), 0.5, meaning)
    for reader in READERS:
        found = audit.get(VIEWS[4], {}).get(reader, {}).get("difference")
        add(
            "does a printed answer raise the score?",
            reader,
            found,
            0.0,
            "a full-frame classifier could read it",
        )
    for frames, question, meaning in (
        ("with text", "does text on real frames raise the score?", "printed text gives the answer away"),
        (
            "all frames",
            "does a whole frame tell more than its crop?",
            "what stands around the sector carries the label; crops leave it out",
        ),
    ):
        add(question, "pixels", (text or {}).get(frames, {}).get("difference"), 0.0, meaning)
    add(
        "do frozen features tell the source?", "probe", source.get("auroc"), 0.5, "the sources look different"
    )
    return lines


def _sample(patients, labels, classes, draws: int, seed: int, minimum: int):
    clusters = Clusters(patients, draws, seed)
    classes = range(classes) if isinstance(classes, int) else classes
    sides = scarcer_sides(np.asarray(patients), labels[:, None] == np.array([*classes]))
    n = {
        "n_images": len(labels),
        "n_patients": clusters.patients,
        "effective": sides,
        "minimum": minimum,
    }
    return clusters, n
