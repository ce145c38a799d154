"""How unlike its training images a crop is: a distance in feature space, with a limit fixed on validation.

A network names one of its lesion types for a photograph too. So two descriptions of each crop are compared
with those of the training crops: what the network's last layer sees, and plain image statistics that no
training can collapse (grey histogram, texture spectrum, correlation of neighbours, coarse layout). The
distance is that of a principal-component model: Mahalanobis inside the leading components, as Lee et al.
2018 (arXiv 1807.03888) propose for out-of-distribution detection, plus the energy left outside them (the
Q statistic of process monitoring, Jackson and Mudholkar 1979). NumPy only.
"""

import numpy as np

COMPONENTS = 32
FALSE_WARNINGS = 0.01  # of validation images, shared between the two descriptions


def fit(train: np.ndarray, validation: np.ndarray) -> dict:
    """Fits the distance on training vectors and its limit on validation vectors.

    Args:
        train: float (n, D), one description per training crop; n at least 8.
        validation: float (m, D), of crops the network was not fitted on.

    Returns:
        float32 arrays that `distance` needs: `mean`, `scale` (D,), `basis` (k, D), `variance` (k,),
        `residual` (1,), `limit` (1,). At most 0.5 % of the validation crops exceed the limit, none of
        fewer than 200.
    """
    train, validation = np.asarray(train, np.float64), np.asarray(validation, np.float64)
    if train.ndim != 2 or len(train) < 8 or len(validation) < 1:
        raise ValueError(
            f"the novelty distance needs at least 8 training crops and 1 validation crop, got {train.shape} "
            f"and {validation.shape}; give more, or save the classifier with novelty=None"
        )
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
    model = {
        "mean": mean,
        "scale": scale,
        "basis": basis,
        "variance": variance[:keep],
        "residual": np.array([residual]),
        "limit": np.array([np.inf]),
    }
    model = {key: np.ascontiguousarray(value, np.float32) for key, value in model.items()}
    found = np.sort(distance(model, validation))
    allowed = int(FALSE_WARNINGS / 2 * len(found))
    limit = np.float32(found[len(found) - 1 - allowed])
    return model | {"limit": np.array([np.nextafter(limit, np.float32(np.inf))])}


def distance(model: dict, vectors: np.ndarray) -> np.ndarray:
    """Distance of each vector from the training vectors, float64 (n,); training vectors are near sqrt(2)."""
    standard = (np.asarray(vectors, np.float64) - model["mean"]) / model["scale"]
    inside = standard @ model["basis"].T
    outside = ((standard - inside @ model["basis"]) ** 2).sum(1)
    return np.sqrt((inside**2 / model["variance"]).mean(1) + outside / model["residual"])


def appearance(crops: np.ndarray) -> np.ndarray:
    """Image statistics that describe a crop without a network.

    Args:
        crops: uint8 (n, S, S).

    Returns:
        float64 (n, 45): share of black pixels, 8-bin histogram of the rest, 10 bands of the log power
        spectrum, 6 correlations between neighbours at 1, 2 and 4 px across and down, 4 block-contrast
        statistics, 16 block means.
    """
    return np.stack([_describe(crop) for crop in crops])


def _describe(crop: np.ndarray) -> np.ndarray:
    size = crop.shape[0]
    values = crop.astype(np.float64) / 255
    bright = values[values > 0.03]
    histogram = np.histogram(bright, bins=8, range=(0, 1))[0] / max(len(bright), 1)
    centred = values - values.mean()
    power = np.abs(np.fft.rfft2(centred)) ** 2
    radius = np.hypot(np.fft.fftfreq(size)[:, None], np.fft.rfftfreq(size)[None, :])
    band = np.clip((radius * 20).astype(int), 0, 9)
    total = power.sum() + 1e-9
    spectrum = np.log10(np.bincount(band.ravel(), power.ravel(), 10) / total + 1e-6)
    energy = (centred**2).mean() + 1e-9
    correlations = []
    for lag in (1, 2, 4):
        correlations += [
            (centred[:, lag:] * centred[:, :-lag]).mean() / energy,
            (centred[lag:] * centred[:-lag]).mean() / energy,
        ]
    blocks = _blocks(values, max(size // 8, 1))
    contrast = blocks.std(2)
    level = blocks.mean(2)
    lit = contrast[level > 0.05] / level[level > 0.05] if (level > 0.05).any() else np.zeros(1)
    coarse = _blocks(values, 4, count=True).mean(2).ravel()
    return np.concatenate(
        [
            [1 - len(bright) / values.size],
            histogram,
            spectrum,
            correlations,
            [contrast.mean(), contrast.std(), lit.mean(), lit.std()],
            coarse,
        ]
    )


def _blocks(values: np.ndarray, side: int, count: bool = False) -> np.ndarray:
    """Square blocks of `side` px, or `side` x `side` of them where count is set: (rows, columns, pixels)."""
    size = values.shape[0]
    side = size // side if count else side
    number = size // side
    trimmed = values[: number * side, : number * side]
    return trimmed.reshape(number, side, number, side).swapaxes(1, 2).reshape(number, number, side * side)
