"""Reference models that any network must beat to be worth its weights.

`texture_features` describes a nodule under its true mask in a few numbers that a textbook would name; logistic
regression on them is the reference. Whoever has the mask already knows where to look, so it is no weak one.
"""

import cv2
import numpy as np
import pandas as pd
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

LEVELS = 8  # grey levels of the co-occurrence matrix
RIM = 0.08  # thickness of the ring round the nodule, as a fraction of the crop's side


def texture_features(images: np.ndarray, masks: np.ndarray | None) -> pd.DataFrame:
    """Texture and shape of each nodule.

    Args:
        images: uint8 (N, S, S), crops.
        masks: (N, S, S), not 0 inside the nodule; None where the source has none: texture of the whole crop
            is then all there is.

    Returns:
        float64, N rows: grey levels as fractions of 255, lengths as fractions of the crop's side. A crop
        whose mask is empty has shape features of 0, texture of the whole crop, and `no_mask` 1.
    """
    rows = []
    for i, image in enumerate(np.asarray(images)):
        mask = (
            np.zeros(image.shape, np.uint8) if masks is None else (np.asarray(masks[i]) > 0).astype(np.uint8)
        )
        rows.append(_describe(image, mask))
    return pd.DataFrame(rows)


def reference_model(seed: int = 0):
    """Standardized multinomial logistic regression with a little shrinkage (C = 0.3), classes weighted equally."""
    model = LogisticRegression(C=0.3, max_iter=5000, class_weight="balanced", random_state=seed)
    return make_pipeline(StandardScaler(), model)


def fit_reference(features: pd.DataFrame, labels: np.ndarray, classes: int, seed: int = 0):
    """Fits the reference.

    Args:
        features: of the training part. labels: int (n,), 0 to classes - 1. classes: C.

    Returns:
        A function: features -> logits float64 (m, C); a class that was not there to learn from gets the logit -30.
    """
    model = reference_model(seed).fit(features, labels)

    def logits(rows: pd.DataFrame) -> np.ndarray:
        known = model.predict_log_proba(rows)
        all_of_them = np.full((len(rows), classes), -30.0)
        all_of_them[:, model.classes_] = known
        return all_of_them

    return logits


def _describe(image: np.ndarray, mask: np.ndarray) -> dict[str, float]:
    side, empty = image.shape[0], not mask.any()
    grey = image.astype(np.float64) / 255
    shape = dict.fromkeys(
        ("area", "aspect", "roundness", "solidity", "tilt", "centre_x", "centre_y", "roughness"), 0.0
    )
    if not empty:
        shape = _shape(mask, side)
    inside = grey[mask > 0] if not empty else grey[image > 0]
    inside = inside if inside.size else np.zeros(1)
    ring = cv2.dilate(mask, np.ones((3, 3), np.uint8), iterations=max(1, round(RIM * side))) - mask
    outside = grey[(ring > 0) & (image > 0)]
    outside = outside if outside.size else inside
    low, middle, high = np.percentile(inside, [10, 50, 90])
    gradient = np.hypot(cv2.Sobel(grey, cv2.CV_64F, 1, 0), cv2.Sobel(grey, cv2.CV_64F, 0, 1))
    edge = cv2.morphologyEx(mask, cv2.MORPH_GRADIENT, np.ones((3, 3), np.uint8)) > 0
    below = _below(grey, mask)
    texture = {
        "mean": inside.mean(),
        "spread": inside.std(),
        "low": low,
        "high": high,
        "skewness": float(((inside - inside.mean()) ** 3).mean() / (inside.std() ** 3 + 1e-9)),
        "contrast_to_rim": inside.mean() - outside.mean(),
        "dark_fraction": (inside < 0.25 * (outside.mean() + 1e-9)).mean(),
        "bright_fraction": (inside > middle + 0.3).mean(),
        "edge_strength": gradient[edge].mean() if edge.any() else 0.0,
        "below_to_beside": below,
    }
    return (
        shape
        | texture
        | _cooccurrence(image, mask if not empty else np.ones_like(mask))
        | {"no_mask": float(empty)}
    )


def _shape(mask: np.ndarray, side: int) -> dict[str, float]:
    contours, _ = cv2.findContours(mask, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    contour = max(contours, key=len)
    area, length = float(mask.sum()), max(cv2.arcLength(contour, True), 1.0)
    _, _, width, height = cv2.boundingRect(contour)
    hull = cv2.convexHull(contour)
    moments = cv2.moments(mask, binaryImage=True)
    return {
        "area": area / side**2,
        "aspect": np.log(height / width),
        "roundness": min(4 * np.pi * area / length**2, 1.5),
        "solidity": min(area / max(cv2.contourArea(hull), 1.0), 1.5),
        "tilt": moments["nu11"],
        "centre_x": moments["m10"] / moments["m00"] / side,
        "centre_y": moments["m01"] / moments["m00"] / side,
        "roughness": length / max(cv2.arcLength(hull, True), 1.0),
    }


def _below(grey: np.ndarray, mask: np.ndarray) -> float:
    """Mean grey under the nodule minus beside it, at the same depth: shadow is negative, enhancement positive."""
    columns = np.flatnonzero(mask.any(0))
    if not len(columns):
        return 0.0
    bottom = int(np.flatnonzero(mask.any(1)).max()) + 1
    band = grey[bottom : bottom + max(2, grey.shape[0] // 6)]
    if not band.size:
        return 0.0
    under = np.zeros(grey.shape[1], bool)
    under[columns] = True
    beside = band[:, ~under]
    return float(band[:, under].mean() - beside.mean()) if beside.size else 0.0


def _cooccurrence(image: np.ndarray, mask: np.ndarray) -> dict[str, float]:
    """Contrast, homogeneity, energy and correlation of neighbouring grey levels (Haralick 1973), two directions."""
    levels = (image.astype(np.int64) * LEVELS) // 256
    table = np.zeros((LEVELS, LEVELS))
    for a, b in (
        ((slice(None), slice(0, -1)), (slice(None), slice(1, None))),
        ((slice(0, -1),), (slice(1, None),)),
    ):
        both = (mask[a] > 0) & (mask[b] > 0)
        np.add.at(table, (levels[a][both], levels[b][both]), 1)
    table = (table + table.T) / max(2 * table.sum(), 1)
    i, j = np.indices(table.shape)
    mean = (i * table).sum()
    variance = ((i - mean) ** 2 * table).sum()
    return {
        "glcm_contrast": ((i - j) ** 2 * table).sum(),
        "glcm_homogeneity": (table / (1 + np.abs(i - j))).sum(),
        "glcm_energy": (table**2).sum(),
        "glcm_correlation": ((i - mean) * (j - mean) * table).sum() / (variance + 1e-9),
    }
