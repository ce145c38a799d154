"""How unlike its training images a crop is: a distance in feature space, with a limit fixed on validation.

A network names one of its lesion types for a photograph too. So two descriptions of each crop are compared
with those of the training crops: what the network's last layer sees, and plain image statistics that no
training can collapse (grey histogram, details at four scales and three directions, coarse layout). The
distance is that of a principal-component model: Mahalanobis inside the leading components, as Lee et al.
2018 (arXiv 1807.03888) propose for out-of-distribution detection, plus the energy left outside them (the
Q statistic of process monitoring, Jackson and Mudholkar 1979). NumPy only.
"""

from itertools import pairwise
from pathlib import Path

import numpy as np

COMPONENTS = 32
SPREADS = 3.0  # robust standard deviations of the log distance
BLACK = 0.02  # grey level, 0 to 1, below which nothing is shown
FALSE_WARNINGS = 0.01  # of validation images, shared between the two descriptions


def fit(train: np.ndarray, validation: np.ndarray) -> dict:
    """Fits the distance on training vectors and its limit on validation vectors.

    Args:
        train: float (n, D), one description per training crop; n at least 8.
        validation: float (m, D), of crops the network was not fitted on.

    Returns:
        float32 arrays that `distance` needs: `mean`, `scale` (D,), `basis` (k, D), `variance` (k,),
        `residual` (1,), `limit` (1,). The limit is the smaller of two: what at most 0.5 % of the validation crops
        exceed (none of fewer than 200), and three robust standard deviations above their median, in logarithms;
        so that a few odd frames among them do not open the door to everything.
    """
    train, validation = np.asarray(train, np.float64), np.asarray(validation, np.float64)
    if train.ndim != 2 or len(train) < 8 or len(validation) < 1:
        need = "the novelty distance needs at least 8 training crops and 1 validation crop"
        raise ValueError(f"{need}; descriptions of shape {train.shape} and {validation.shape} came")
    mean, scale = train.mean(0), train.std(0)
    scale = np.maximum(scale, 0.1 * max(float(np.median(scale)), 1e-9))  # constants of the training set
    standard = (train - mean) / scale
    _, singular, rows = np.linalg.svd(standard, full_matrices=False)
    variance = singular**2 / len(train)
    keep = int(min(COMPONENTS, max(2, len(train) // 4), (variance > 1e-6 * variance[0]).sum()))
    variance = variance + 0.01 * variance.mean()
    basis = rows[:keep]
    outside = standard - standard @ basis.T @ basis
    residual = max(float((outside**2).sum(1).mean()), 1e-6 * train.shape[1])
    model = dict(mean=mean, scale=scale, basis=basis, variance=variance[:keep], residual=[residual])
    model = {key: np.ascontiguousarray(value, np.float32) for key, value in model.items()}
    found = np.sort(distance(model, validation))
    allowed = int(FALSE_WARNINGS / 2 * len(found))
    logs = np.log(np.maximum(found, 1e-6))
    spread = 1.4826 * np.median(np.abs(logs - np.median(logs)))  # a normal distribution's standard deviation
    limit = min(found[len(found) - 1 - allowed], np.exp(np.median(logs) + SPREADS * max(spread, 0.05)))
    return model | {"limit": np.array([np.nextafter(np.float32(limit), np.float32(np.inf))])}


def write(path: Path, train: dict[str, np.ndarray], validation: dict[str, np.ndarray]) -> None:
    """Fits the distance of each description and writes the models to one safetensors file.

    Args:
        path: the file.
        train, validation: description -> vectors, as `fit` takes them.
    """
    from safetensors.numpy import save

    models = {key: fit(train[key], validation[key]) for key in train}
    arrays = {f"{key}.{name}": array for key in models for name, array in models[key].items()}
    path.write_bytes(save(arrays))  # `save_file` would keep it from the group


def read(path: Path) -> dict[str, dict[str, np.ndarray]]:
    """Description -> model, as `write` wrote them."""
    from safetensors.numpy import load_file

    models = {}
    for key, value in load_file(path).items():
        description, _, name = key.partition(".")
        models.setdefault(description, {})[name] = value
    return models


def distance(model: dict, vectors: np.ndarray) -> np.ndarray:
    """Distance of each vector from the training vectors, float64 (n,); training vectors are near sqrt(2)."""
    standard = (np.asarray(vectors, np.float64) - model["mean"]) / model["scale"]
    inside = standard @ model["basis"].T
    outside = ((standard - inside @ model["basis"]) ** 2).sum(1)
    return np.sqrt((inside**2 / model["variance"]).mean(1) + outside / model["residual"])


def ratios(models: dict[str, dict], descriptions: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Description -> distance of each of its vectors as a multiple of the model's limit, float64 (n,)."""
    distances = {key: distance(model, descriptions[key]) for key, model in models.items()}
    return {key: found / float(models[key]["limit"][0]) for key, found in distances.items()}


def describe(crops: np.ndarray, features: np.ndarray) -> dict[str, np.ndarray]:
    """The two descriptions of crops, uint8 (n, S, S), whose features the network gives, float (n, D)."""
    return {"network": features, "appearance": appearance(crops)}


def appearance(crops: np.ndarray) -> np.ndarray:
    """Image statistics that describe a crop without a network.

    Args:
        crops: uint8 (n, S, S), S at least 16.

    Returns:
        float64 (n, 57): share of black pixels; 8-bin histogram of the others; for each of 4 halvings of the
        image 8 numbers on its Haar details (Mallat 1989, IEEE TPAMI 11:674), where the image is not black: log
        standard deviation and log peakedness of the horizontal, vertical and diagonal detail, how contrast
        follows brightness (in speckle it does), how contrast varies; mean level of 8 rows and 8 columns of blocks.
    """
    return np.stack([_describe(crop) for crop in crops])


def _describe(crop: np.ndarray) -> np.ndarray:
    values = crop.astype(np.float64) / 255
    bright = values[values > BLACK]
    histogram = np.histogram(bright, bins=8, range=(0, 1))[0] / max(len(bright), 1)
    found = [1 - len(bright) / values.size, *histogram]
    level = values
    for _ in range(4):
        level, details = _halve(level)
        lit = level > BLACK
        if lit.sum() < 2:
            lit = np.ones_like(lit)
        for detail in details:
            spread = detail[lit].std() + 1e-4
            found += [np.log(spread), np.log(np.abs(detail[lit]).mean() / spread + 1e-3)]
        contrast = np.log(np.sqrt(sum(detail[lit] ** 2 for detail in details)) + 1e-3)
        found += [_correlation(contrast, np.log(level[lit] + 1e-2)), contrast.std()]
    bands = np.linspace(0, len(values), 9).astype(int)
    found += [values[a:b].mean() for a, b in pairwise(bands)]
    found += [values[:, a:b].mean() for a, b in pairwise(bands)]
    return np.array(found)


def _halve(level: np.ndarray) -> tuple[np.ndarray, tuple]:
    """The image at half size, and its horizontal, vertical and diagonal Haar details."""
    height, width = (side // 2 * 2 for side in level.shape)
    a, b = level[0:height:2, 0:width:2], level[0:height:2, 1:width:2]
    c, d = level[1:height:2, 0:width:2], level[1:height:2, 1:width:2]
    return (a + b + c + d) / 4, ((a + b - c - d) / 2, (a - b + c - d) / 2, (a - b - c + d) / 2)


def _correlation(x: np.ndarray, y: np.ndarray) -> float:
    spread = x.std() * y.std()
    return float(((x - x.mean()) * (y - y.mean())).mean() / spread) if spread > 1e-9 else 0.0
