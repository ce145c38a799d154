"""Figures of notebook 07: one image, every step."""

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.patches import Rectangle

from thyroid_lib.plots.explanation import overlay
from thyroid_lib.plots.style import CYCLE, GRID, MUTED, WIDTH, colour

BOX, OUTLINE = CYCLE[1], CYCLE[4]


def steps_to_answer(view, names: dict):
    """Frame, binary image, crop; the map, the changed crop, and the probabilities before and after.

    Args:
        view: `explore.View`.
        names: class key -> (English, Chinese).
    """
    fig, axes = plt.subplots(2, 3, figsize=(WIDTH, 4.5), layout="constrained", width_ratios=(1.25, 1.0, 1.25))
    frame, binary, crop, heat, changed, bars = axes[0][0], axes[0][1], axes[0][2], *axes[1]
    _frame(frame, view)
    binary.imshow(view.binary, cmap="gray", vmin=0, vmax=1)
    _titled(binary, f"Binarized: {len(view.found)} region{'s' if len(view.found) != 1 else ''}")
    crop.imshow(view.answer.crop, cmap="gray", vmin=0, vmax=255)
    _titled(crop, f"Crop, {view.answer.crop.shape[0]} px")
    overlay(heat, view.answer.crop, view.heat)
    _titled(heat, f"{view.choice.method}, {view.choice.layer}\nraw {view.low:.2g} to {view.high:.2g}")
    changed.imshow(view.changed, cmap="gray", vmin=0, vmax=255)
    same = np.array_equal(view.changed, view.answer.crop)
    _titled(changed, "Unchanged" if same else "Changed crop")
    _bars(bars, view, names)
    best = view.answer.lesion_type
    fig.alt = (
        f"From the frame to the answer: {len(view.found)} connected regions, the largest box {view.answer.box[2]} by "
        f"{view.answer.box[3]} pixels. {names[best][0]} has the largest probability, "
        f"{view.answer.probabilities[best]:.2f}; after the change to the crop it has {view.after[best]:.2f}. "
        f"The {view.choice.method} map for {names[view.choice.explain][0]} ranges from {view.low:.3g} to "
        f"{view.high:.3g}."
    )
    return fig


def map_methods(crop: np.ndarray, maps: dict, layer: str, explained: str):
    """One crop, one map per method.

    Args:
        crop: uint8 (S, S).
        maps: method -> (heat float (S, S), low, high), as `explore.Explorer.maps` gives them.
        layer: where they were read. explained: name of the class.
    """
    fig, axes = plt.subplots(1, len(maps) + 1, figsize=(WIDTH, 1.75), layout="constrained")
    axes[0].imshow(crop, cmap="gray", vmin=0, vmax=255)
    _titled(axes[0], "crop")
    for ax, (method, (heat, low, high)) in zip(axes[1:], maps.items()):
        overlay(ax, crop, heat)
        _titled(ax, f"{method}\n{low:.2g} to {high:.2g}")
    ranges = "; ".join(f"{method} {low:.3g} to {high:.3g}" for method, (_, low, high) in maps.items())
    fig.alt = f"Maps for {explained} at {layer} by {len(maps)} methods; raw ranges: {ranges}."
    return fig


def gain_curve(factors, probabilities: np.ndarray, classes: list[str], names: dict):
    """Probability of each class against the gain.

    Args:
        factors: n gain factors.
        probabilities: float (n, C).
        classes: C keys. names: class key -> (English, Chinese).
    """
    fig, ax = plt.subplots(figsize=(WIDTH, 2.6), layout="constrained")
    for i, key in enumerate(classes):
        ax.plot(factors, probabilities[:, i], "-o", markersize=3, color=colour(key, i), label=names[key][0])
    ax.axvline(1, color=MUTED, linewidth=0.8, linestyle=":")
    ax.set(xlabel="gain (factor on the grey levels)", ylabel="probability", ylim=(0, 1))
    ax.legend(ncols=2)
    spans = "; ".join(
        f"{names[key][0]} {probabilities[:, i].min():.2f} to {probabilities[:, i].max():.2f}"
        for i, key in enumerate(classes)
    )
    fig.alt = f"Probabilities at gains from {min(factors):g} to {max(factors):g}: {spans}."
    return fig


def _frame(ax, view) -> None:
    ax.imshow(view.frame, cmap="gray", vmin=0, vmax=255)
    x, y, width, height = view.answer.box
    ax.add_patch(Rectangle((x, y), width, height, fill=False, edgecolor=BOX, linewidth=1.3))
    if view.mask is not None and view.mask.any():
        ax.contour(view.mask, [0.5], colors=OUTLINE, linewidths=0.8)
    _titled(ax, "Frame and largest region")


def _bars(ax, view, names: dict) -> None:
    keys = list(view.answer.probabilities)
    rows = np.arange(len(keys))
    tints = [colour(key, i) for i, key in enumerate(keys)]
    ax.barh(rows - 0.2, [view.answer.probabilities[key] for key in keys], 0.38, color=tints)
    ax.barh(rows + 0.2, [view.after[key] for key in keys], 0.38, color=tints, alpha=0.4)
    ax.set_yticks(rows, [names[key][0].replace(" ", "\n") for key in keys], fontsize=7)
    ax.invert_yaxis()
    ax.set(xlim=(0, 1))
    ax.set_title("Probability: crop (full), changed (pale)", fontsize=8, fontweight="normal")


def _titled(ax, title: str) -> None:
    ax.set(xticks=[], yticks=[])
    ax.spines[:].set(visible=True, color=GRID)
    ax.set_title(title, fontsize=8, fontweight="normal")
