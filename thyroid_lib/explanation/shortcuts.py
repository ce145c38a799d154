"""The shortcut audit: does the score come from the nodule, or from something beside it?

Nothing is trained anew (that would cost as much as the study). Each view of the images (``views``) is read by
three readers, and the report says which is which:

* ``classifier``: the frozen classifier's own score on the view;
* ``probe``: a logistic regression on the frozen network's features of the view, fitted on the training part
  and scored on the tested part: what the features could tell if the head were free to use it;
* ``pixels``: a logistic regression on the pixels of a small grey image, fitted and scored across the folds:
  what is in plain sight, such as printed text, whether or not this network has learned to look at it.

Shortcut learning: Geirhos 2020 (arXiv 2004.07780); Zech 2018 (PLoS Med 15:e1002683) found hospitals, not
pneumonia, in exactly this way.
"""

import cv2
import numpy as np
import pandas as pd
import torch
import yaml
from torch import nn

from thyroid_lib.common.messages import say
from thyroid_lib.common.progress import status
from thyroid_lib.common.templates import TEMPLATES
from thyroid_lib.data.crops import Crops
from thyroid_lib.evaluation.bootstrap import MINIMUM_PATIENTS, scarcer_sides
from thyroid_lib.explanation import cam
from thyroid_lib.explanation.tested import Sample, Tested, spread
from thyroid_lib.explanation.views import PRINTED, views_of
from thyroid_lib.training import loop

SHARE = (0.0, 1.0)  # bounds of an AUROC
PIXELS = 48  # px, side of the pixel reader's image: small enough to fit, large enough to show print
PIXEL_STRENGTH = 0.01  # its inverse L2 penalty: two thousand standardized pixels need a strong one


def audit(tested: Tested, external: Crops | None, answer, *, most: int = 200, **options) -> dict:
    """The shortcut audit on the first fold: views, printed text, and what tells the source.

    Args:
        tested: the tested images.
        external: crops of the other source, or None.
        answer: of ``views.answer_frames``, or None.
        most: training images that the probes are fitted on, spread over the training part.
        options: draws, seed and minimum, of ``tested.Sample``.

    Returns:
        {"views": of ``score_views``, "text": of ``text_audit``, "source": of ``source_audit``, "devices":
        of ``source_audit`` on the clinic's devices}, or {"reason"} in the place of what could not be done.
    """
    own, clinic, precision = tested.first(), tested.crops, tested.precision
    train = np.flatnonzero((clinic.index["fold"].to_numpy() != own.fold) & (clinic.labels >= 0))
    rows = np.sort(np.concatenate([spread(train, most), own.rows]))
    status("shortcut audit")
    scored = score_views(own, rows, views_of(clinic, rows, answer), **options)
    vectors = features(own.model, own.images, precision)
    devices, source = {"reason": "the data name no device"}, {"reason": "the run has no external source"}
    if "device" in clinic.index:
        devices = source_audit(vectors, clinic.index["device"].to_numpy()[own.rows], own.patients, **options)
    if external is not None:
        there = np.arange(len(external))[:: max(1, len(external) // most)]
        both = np.vstack([vectors, features(own.model, external.images[there], precision)])
        names = np.repeat(["internal", "external"], [len(own.rows), len(there)])
        who = [*own.patients, *external.index["patient"].iloc[there]]
        source = source_audit(both, names, [f"{n}/{w}" for n, w in zip(names, who)], **options)
    return {"views": scored, "text": text_audit(clinic, **options), "source": source, "devices": devices}


def score_views(tested: Tested, rows: np.ndarray, views: dict[str, np.ndarray], **options) -> dict:
    """Scores every view of the images with every reader.

    Args:
        tested: the images of one fold, with the frozen network that has not seen them.
        rows: int (n,), rows of the crops, ascending: the tested ones, on which "classifier" and "probe" are scored,
            and others for the probes to learn from; "pixels" is scored on all n.
        views: name -> uint8 (n, S, S), these rows each time; "crop" first.
        options: draws, seed and minimum, of ``tested.Sample``; every view sees the same draws.

    Returns:
        view -> reader -> {"auroc": metric, "difference": paired difference from the crops (of ``PRINTED``: from
        the full frames), "from": their view}. AUROC is the macro average. The classifier's score of the crops is
        the study's own, and "read here" beside it is the score of the same images as they are read here, which
        other arithmetic moves a little. Both sides of a difference are read here.
    """
    crops, model, classes = tested.crops, cam.copied(tested.model), range(len(tested.crops.classes))
    labels, index = crops.labels[rows], crops.index.iloc[rows]
    folds, patients = index["fold"].to_numpy(), index["patient"].to_numpy().astype(str)
    test, device = folds == tested.fold, next(model.parameters()).device
    own = Sample(patients[test], labels[test], classes, **options)
    every = Sample(patients, labels, classes, **options)
    result, scores = {}, {}
    for name, images in views.items():
        vectors = features(model, images, tested.precision)
        with torch.inference_mode():
            logits = model.forward_head(torch.from_numpy(vectors[test])[:, :, None, None].to(device))
        head = torch.softmax(logits.double() / tested.temperature[tested.fold], 1).cpu().numpy()
        read = {
            "classifier": (own, head),
            "probe": (own, probe(vectors[~test], labels[~test], vectors[test], len(classes))),
            "pixels": (every, pixel_probe(images, labels, folds, len(classes))),
        }
        result[name], base = {}, "full frame" if name == PRINTED else "crop"
        for reader, (sample, probabilities) in read.items():
            score = scores[name, reader] = sample.macro_auroc(probabilities)
            result[name][reader] = {"auroc": sample.metric(score, SHARE)}
            if name != base:
                difference = sample.metric(score - scores[base, reader])
                result[name][reader] |= {"difference": difference, "from": base}
    crop = result["crop"]["classifier"]
    crop |= {"auroc": own.metric(own.macro_auroc(tested.stated), SHARE), "read here": crop["auroc"]}
    return result


def text_audit(crops: Crops, *, minimum: int = MINIMUM_PATIENTS, **options) -> dict:
    """Does text that is really printed on frames give the answer away?

    The pixel reader is fitted and tested across the folds of the whole set, on full frames and on crops, and
    scored on all frames, on those with printed text and on those without. Text often stands on few frames of
    some class: the macro average is then over the classes with enough patients, and ``classes`` names them.

    Args:
        crops: with columns ``text``, ``label``, ``patient`` and ``fold``.
        minimum: fewest patients, of ``tested.Sample``.
        options: draws and seed, of the same.

    Returns:
        "all frames", "with text" and "without text" -> {"full frame", "crop", "difference"}, each a metric, and
        "classes"; "reason" where the set is simulated, has no folds, or text on no frame or on every frame.
    """
    if crops.simulated:
        return {"reason": "simulated frames"}
    known = np.flatnonzero(crops.labels >= 0)
    labels, index, count = crops.labels[known], crops.index.iloc[known], len(crops.classes)
    text = index["text"] if "text" in index else pd.Series("", index.index)
    texted = text.fillna("").astype(str).str.strip().ne("").to_numpy()
    if "fold" not in index or texted.all() or not texted.any():
        why = "text is printed on every frame or on none, or the set has no folds: nothing to compare"
        return {"reason": why}
    folds, patients = index["fold"].to_numpy(), index["patient"].to_numpy().astype(str)
    read = [pixel_probe(seen[known], labels, folds, count) for seen in (crops.frames, crops.images)]
    result = {}
    for name, chosen in {"all frames": texted | True, "with text": texted, "without text": ~texted}.items():
        of, truth = patients[chosen], labels[chosen]
        sides = np.array(scarcer_sides(of, truth[:, None] == np.arange(count)))
        kept = np.flatnonzero(sides >= minimum)
        kept = kept if len(kept) > 1 else np.arange(count)  # then the metric says "too few"
        sample = Sample(of, truth, kept, minimum=minimum, **options)
        whole, cut = (sample.macro_auroc(probabilities[chosen]) for probabilities in read)
        result[name] = {
            "full frame": sample.metric(whole, SHARE),
            "crop": sample.metric(cut, SHARE),
            "difference": sample.metric(whole - cut),
            "classes": [crops.classes[k] for k in kept],
        }
    return result


def source_audit(vectors, source, patients, *, seed=0, minimum=MINIMUM_PATIENTS, **options) -> dict:
    """How well frozen features tell where an image came from, cross-validated by patient.

    Args:
        vectors: float (n, D), of :func:`features`.
        source: n names, such as the data set or the device.
        patients: n identifiers; no patient is in training and test at once.
        seed: of the cross-validation and the bootstrap.
        minimum: fewest patients of a source, and of ``tested.Sample``.
        options: draws, of the same.

    Returns:
        {"auroc": macro AUROC with interval (0.5 is chance), "sources": {name: images}, "reason" if not done}.
    """
    from sklearn.model_selection import StratifiedGroupKFold

    names, labels = np.unique(np.asarray(source).astype(str), return_inverse=True)
    patients = np.asarray(patients).astype(str)
    result = {"sources": {str(name): int((labels == k).sum()) for k, name in enumerate(names)}}
    smallest = min(len(np.unique(patients[labels == k])) for k in range(len(names)))
    if len(names) < 2:
        return result | {"reason": "one source only"}
    if smallest < max(2, minimum):
        return result | {"reason": "too few patients in a source"}
    probabilities = np.zeros((len(labels), len(names)))
    cut = StratifiedGroupKFold(min(5, smallest), shuffle=True, random_state=seed)
    for train, test in cut.split(vectors, labels, patients):
        probabilities[test] = probe(vectors[train], labels[train], vectors[test], len(names))
    sample = Sample(patients, labels, range(len(names)), seed=seed, minimum=minimum, **options)
    return result | {"auroc": sample.metric(sample.macro_auroc(probabilities), SHARE)}


def verdicts(audited: dict) -> pd.DataFrame:
    """What the audit says, one line per question and reader.

    Args:
        audited: of :func:`audit`; a part that is not there was not done.

    Returns:
        Columns "question", "reader", "AUROC or its rise" (in words), "verdict" and "meaning"; a verdict is "clear",
        "warning" (the whole interval lies above chance, or above no difference) or "not done".
    """
    rows = []
    for asked in yaml.safe_load((TEMPLATES / "explanation" / "questions.yaml").read_text(encoding="utf-8")):
        for reader in asked["readers"]:
            metric = audited
            for step in asked["of"].format(reader=reader).split("/"):
                metric = metric.get(step, {})
            verdict = "not done"
            if metric.get("value") is not None:
                verdict = "warning" if metric["low"] > asked["limit"] else "clear"
            meaning = asked["meaning"] if verdict == "warning" else ""
            rows.append((asked["question"], reader, say(metric), verdict, meaning))
    return pd.DataFrame(rows, columns=["question", "reader", "AUROC or its rise", "verdict", "meaning"])


def features(model: nn.Module, images: np.ndarray, precision: str = "32") -> np.ndarray:
    """The frozen network's last feature map, averaged over pixels, and over what a prediction averages over.

    Args:
        model: of ``network.build``.
        images: uint8 (n, S, S).
        precision: "32" or "bf16".

    Returns:
        float32 (n, D).
    """
    reader = cam.copied(model)
    reader.forward = lambda view: reader.forward_features(view).float().mean((2, 3))
    return loop.predict(reader, images, precision=precision)


def probe(train, labels, test, classes: int, strength: float = 0.1) -> np.ndarray:
    """Logistic regression on standardized features.

    Args:
        train: float (m, D).
        labels: int (m,).
        test: float (n, D).
        classes: C.
        strength: inverse of the L2 penalty.

    Returns:
        float64 (n, C) probabilities; a class that the training rows lack gets 0.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    result, present = np.zeros((len(test), classes)), np.unique(labels)
    if len(present) < 2:
        result[:, present] = 1.0
        return result
    reader = make_pipeline(StandardScaler(), LogisticRegression(C=strength, max_iter=1000, tol=1e-3))
    result[:, present] = reader.fit(train, labels).predict_proba(test)
    return result


def pixel_probe(images: np.ndarray, labels: np.ndarray, folds: np.ndarray, classes: int) -> np.ndarray:
    """Logistic regression on the pixels of a small grey image, each fold read by a fit on the others.

    Every pixel is standardized, so that print in a margin that is otherwise always black weighs as much as
    tissue.

    Args:
        images: uint8 (n, S, S).
        labels, folds: int (n,).
        classes: C.

    Returns:
        float64 (n, C) probabilities.
    """
    side = min(PIXELS, images.shape[1])
    small = [cv2.resize(np.asarray(i), (side, side), interpolation=cv2.INTER_AREA).ravel() for i in images]
    vectors, result = np.array(small, np.float32) / 255, np.zeros((len(images), classes))
    for fold in np.unique(folds):
        test = folds == fold
        result[test] = probe(vectors[~test], labels[~test], vectors[test], classes, PIXEL_STRENGTH)
    return result
