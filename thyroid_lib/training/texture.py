"""A nodule under its true mask in a few numbers that a textbook would name, and logistic regression on such numbers."""

import cv2
import numpy as np
import pandas as pd
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

LEVELS = 8  # grey levels of the co-occurrence matrix
RIM = 0.08  # thickness of the ring round the nodule, as a fraction of the crop's side
SHAPE = ("area", "aspect", "roundness", "solidity", "tilt", "centre_x", "centre_y", "roughness")


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
    images = np.asarray(images)
    masks = np.zeros_like(images) if masks is None else (np.asarray(masks) > 0).astype(np.uint8)
    return pd.DataFrame([_describe(image, mask) for image, mask in zip(images, masks)])


def fit_reference(
    features: pd.DataFrame, labels: np.ndarray, classes: int, seed: int = 0, strength: float = 0.3
):
    """Standardized multinomial logistic regression with a little shrinkage, classes weighted equally.

    Args:
        features: of the training part. labels: int (n,), 0 to classes - 1. classes: C.
        seed: of the solver. strength: inverse of the penalty.

    Returns:
        A function: features -> logits float64 (m, C); a class that was not there to learn from gets the logit -30.
    """
    regression = LogisticRegression(C=strength, max_iter=5000, class_weight="balanced", random_state=seed)
    model = make_pipeline(StandardScaler(), regression).fit(features, labels)

    def logits(rows: pd.DataFrame) -> np.ndarray:
        all_of_them = np.full((len(rows), classes), -30.0)
        all_of_them[:, model.classes_] = model.predict_log_proba(rows)
        return all_of_them

    return logits


def _describe(image: np.ndarray, mask: np.ndarray) -> dict[str, float]:
    side, empty = image.shape[0], not mask.any()
    grey = image.astype(np.float64) / 255
    inside = grey[image > 0] if empty else grey[mask > 0]
    inside = inside if inside.size else np.zeros(1)
    ring = cv2.dilate(mask, np.ones((3, 3), np.uint8), iterations=max(1, round(RIM * side))) - mask
    outside = grey[(ring > 0) & (image > 0)]
    outside = outside if outside.size else inside
    low, middle, high = np.percentile(inside, [10, 50, 90])
    gradient = np.hypot(cv2.Sobel(grey, cv2.CV_64F, 1, 0), cv2.Sobel(grey, cv2.CV_64F, 0, 1))
    edge = cv2.morphologyEx(mask, cv2.MORPH_GRADIENT, np.ones((3, 3), np.uint8)) > 0
    return {
        **(dict.fromkeys(SHAPE, 0.0) if empty else _shape(mask, side)),
        "mean": inside.mean(),
        "spread": inside.std(),
        "low": low,
        "high": high,
        "skewness": float(((inside - inside.mean()) ** 3).mean() / (inside.std() ** 3 + 1e-9)),
        "contrast_to_rim": inside.mean() - outside.mean(),
        "dark_fraction": (inside < 0.25 * (outside.mean() + 1e-9)).mean(),
        "bright_fraction": (inside > middle + 0.3).mean(),
        "edge_strength": gradient[edge].mean() if edge.any() else 0.0,
        "below_to_beside": _below(grey, mask),
        **_cooccurrence(image, np.ones_like(mask) if empty else mask),
        "no_mask": float(empty),
    }


def _shape(mask: np.ndarray, side: int) -> dict[str, float]:
    contours, _ = cv2.findContours(mask, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    contour = max(contours, key=len)
    area, length = float(mask.sum()), max(cv2.arcLength(contour, True), 1.0)
    _, _, width, height = cv2.boundingRect(contour)
    hull = cv2.convexHull(contour)
    moments = cv2.moments(mask, binaryImage=True)
    values = (
        area / side**2,
        np.log(height / width),
        min(4 * np.pi * area / length**2, 1.5),
        min(area / max(cv2.contourArea(hull), 1.0), 1.5),
        moments["nu11"],
        moments["m10"] / moments["m00"] / side,
        moments["m01"] / moments["m00"] / side,
        length / max(cv2.arcLength(hull, True), 1.0),
    )
    return dict(zip(SHAPE, values))


def _below(grey: np.ndarray, mask: np.ndarray) -> float:
    """Mean grey under the nodule minus beside it, at the same depth: shadow is negative, enhancement positive."""
    under, bottom = mask.any(0), np.flatnonzero(mask.any(1)).max(initial=-1) + 1
    band = grey[bottom : bottom + max(2, grey.shape[0] // 6)]
    if not band.size or not under.any() or under.all():
        return 0.0
    return float(band[:, under].mean() - band[:, ~under].mean())


def _cooccurrence(image: np.ndarray, mask: np.ndarray) -> dict[str, float]:
    """Contrast, homogeneity, energy and correlation of neighbouring grey levels (Haralick 1973), two directions."""
    levels = (image.astype(np.int64) * LEVELS) // 256
    table = np.zeros((LEVELS, LEVELS))
    for first, second in ((np.s_[:, :-1], np.s_[:, 1:]), (np.s_[:-1], np.s_[1:])):
        both = (mask[first] > 0) & (mask[second] > 0)
        np.add.at(table, (levels[first][both], levels[second][both]), 1)
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
