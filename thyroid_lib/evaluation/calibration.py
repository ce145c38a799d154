"""What is fixed on the validation part and nowhere else: temperature and operating points.

Temperature scaling: Guo et al. 2017 (arXiv 1706.04599). Operating points: Youden 1950.
"""

import numpy as np
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax
from scipy.stats import mannwhitneyu
from sklearn.metrics import roc_curve

TEMPERATURES = (0.05, 20.0)  # beyond these the fit says that there is nothing to calibrate


def fit_temperature(logits: np.ndarray, labels: np.ndarray) -> float:
    """The temperature that makes the logits' softmax most likely (least negative log likelihood).

    Args:
        logits: float (N, C), of the validation part.
        labels: int (N,), 0 to C - 1.

    Returns:
        T > 0, within 0.05 to 20; probabilities are softmax(logits / T). The order of classes never changes.

    Raises:
        ValueError: no images, or logits that are not finite.
    """
    logits, labels = np.asarray(logits, np.float64), np.asarray(labels)
    strange = int((~np.isfinite(logits)).sum())
    if strange or not len(labels):
        came = f"{len(labels)} images and {strange} numbers that are not finite came"
        raise ValueError(f"expected finite logits of at least one image, {came}: did training diverge?")

    def loss(log_t: float) -> float:
        scaled = log_softmax(logits / np.exp(log_t), axis=1)
        return float(-scaled[np.arange(len(labels)), labels].mean())

    low, high = np.log(TEMPERATURES)
    found = minimize_scalar(loss, bounds=(low, high), method="bounded", options={"xatol": 1e-6})
    return float(np.exp(found.x))


def operating_points(probabilities: np.ndarray, labels: np.ndarray, classes: list[str]) -> dict[str, float]:
    """One threshold per class, each class against the rest: the largest Youden's J (sensitivity +
    specificity - 1) on the validation part.

    The threshold lies in the middle between the two neighbouring probabilities it separates; between equal
    J the more sensitive one is taken. An image is positive where its probability reaches the threshold. A
    class that the validation part does not have, or that is all it has, gets 1 / C.

    Args:
        probabilities: float (N, C), calibrated.
        labels: int (N,).
        classes: the C class keys.

    Returns:
        Class key -> threshold in 0..1.
    """
    points = {}
    for i, key in enumerate(classes):
        positive = labels == i
        if positive.all() or not positive.any():
            points[key] = 1 / len(classes)
            continue
        curve = roc_curve(positive, probabilities[:, i], drop_intermediate=False)
        false, sensitivity, scores = (values[::-1] for values in curve)
        best = int(np.argmax(np.round(sensitivity - false, 12)))  # the lowest score of the best
        below = scores[best - 1] if best else 0.0
        points[key] = float((below + scores[best]) / 2)
    return points


def macro_auroc(scores: np.ndarray, labels: np.ndarray) -> float:
    """Mean one-against-rest area under the ROC curve over the classes that are present and not alone.

    Args:
        scores: (N, C), any scores that rank within a class; softmax probabilities where classes compete.
        labels: int (N,).

    Returns:
        0..1, ties counted half; NaN where no class can be ranked.
    """
    areas = []
    for i in range(scores.shape[1]):
        positive = labels == i
        if pairs := int(positive.sum()) * int((~positive).sum()):
            ranked = mannwhitneyu(scores[positive, i], scores[~positive, i], method="asymptotic")
            areas.append(ranked.statistic / pairs)
    return float(np.mean(areas)) if areas else float("nan")
