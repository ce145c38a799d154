"""Figures of class activation maps and of their checks; the raw range stands beside every map."""

from textwrap import wrap

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure

from thyroid_lib.common.messages import english, say
from thyroid_lib.plots.style import CYCLE, GRID, INK, MUTED, WIDTH, colour

HEAT = "inferno"  # even in lightness: a map reads the same in grey


def cam_gallery(images, masks, columns: dict, titles: list[str]) -> Figure:
    """Crops and their maps: one row per image, one column per method or stage.

    Args:
        images: uint8 (n, S, S).
        masks: (n, S, S), 0 outside the nodule, or None; its outline is drawn in white.
        columns: heading -> ``explanation.Cams`` of the n images.
        titles: n short texts, one per row.
    """
    n, wide = len(images), len(columns) + 1
    side = min(1.75, WIDTH / wide)
    figure, axes = plt.subplots(
        n, wide, figsize=(side * wide, (side + 0.14) * n + 0.45), layout="constrained", squeeze=False
    )
    for i in range(n):
        axes[i, 0].imshow(images[i], cmap="gray", vmin=0, vmax=255)
        axes[i, 0].set_ylabel(titles[i], fontsize=6.5, rotation=0, ha="right", va="center")
        for ax, (heading, cams) in zip(axes[i, 1:], columns.items()):
            overlay(ax, images[i], cams.maps[i])
            if i == 0:
                ax.set_title(heading.replace(".", "\n."), fontsize=6.5, fontweight="normal")
            ax.set_xlabel(f"{cams.low[i]:.2g}\nto {cams.high[i]:.2g}", fontsize=6, labelpad=2)
        for ax in axes[i]:
            if masks is not None and np.any(masks[i]):
                ax.contour(masks[i], levels=[0.5], colors="white", linewidths=0.8)
            ax.set(xticks=[], yticks=[])
            ax.spines[:].set_visible(False)
    ranges = [f"{heading} up to {cams.high.max():.2g}" for heading, cams in columns.items()]
    figure.alt = (
        f"{n} crops, each with {wide - 1} class activation maps laid over; the nodule's outline in white, the raw "
        f"range below each map. Largest raw values: {'; '.join(ranges)}. Explained: {'; '.join(titles)}."
    ).replace("\n", " ")
    return figure


def overlay(ax, image: np.ndarray, heat: np.ndarray) -> None:
    """Draw a map over its crop, more opaque where it is hotter.

    Args:
        ax: where.
        image: uint8 (S, S).
        heat: float (S, S), 0..1.
    """
    ax.imshow(image, cmap="gray", vmin=0, vmax=255)
    ax.imshow(heat, cmap=HEAT, vmin=0, vmax=1, alpha=0.15 + 0.5 * np.clip(heat, 0, 1))


def cam_checks(masks: dict, randomization: dict) -> Figure:
    """Left: energy inside the nodule against maps that know nothing. Right: what randomizing does to the map.

    Args:
        masks: of ``cam_checks.check_against_masks``; may be without numbers.
        randomization: of ``cam_checks.check_randomization``; may be empty.
    """
    figure, (left, right) = plt.subplots(1, 2, figsize=(WIDTH, 2.9), layout="constrained")
    bars = [
        ("the map", "energy"),
        ("nodule's area share", "share"),
        ("random map", "random/energy"),
        ("edge detector", "edges/energy"),
        ("centre of the crop", "centre/energy"),
    ]
    said = []
    for y, (name, key) in enumerate(bars):
        metric = masks.get(key)
        said.append(f"{name} {say(metric)}")
        _interval(left, y, metric, CYCLE[0] if y == 0 else CYCLE[6])
    left.set_yticks(range(len(bars)), [name for name, _ in bars])
    left.set(ylim=(len(bars) - 0.5, -0.5), xlabel="energy inside the nodule", title="Localization")
    left.set_xlim(left=0)
    order = randomization.get("order", [])
    steps = []
    for y, name in enumerate(order):
        metric = randomization[f"correlation/{name}"]
        steps.append(f"{name} {say(metric)}")
        _interval(right, y, metric, CYCLE[5])
    right.axvline(0, color=MUTED, lw=0.8, ls=":")
    right.set_yticks(range(len(order)), [name.replace("_", " ") for name in order])
    right.set(
        ylim=(max(len(order), 1) - 0.5, -0.5), xlim=(-1, 1.05), xlabel="rank correlation with the trained map"
    )
    right.set_title("Weights randomized down to …")
    for ax in (left, right):
        ax.grid(axis="x", color=GRID, lw=0.6)
    figure.alt = (
        f"Share of each map's energy inside the nodule: {'; '.join(said)}. Mean rank correlation with the trained "
        f"network's map after randomizing all layers from the last down to: {'; '.join(steps) or 'not done'}."
    )
    return figure


def _interval(ax, y: float, metric: dict | None, ink: str) -> None:
    if metric and metric.get("value") is not None:
        ax.plot([metric["low"], metric["high"]], [y, y], color=ink, lw=1.6)
        ax.plot(metric["value"], y, "o", color=ink, ms=4.5)
    else:
        ax.text(
            0.03, y, say(metric), transform=ax.get_yaxis_transform(), va="center", color=MUTED, fontsize=7
        )


def failures(images, cams, rows, classes: list[str], names: dict) -> Figure:
    """The most confident errors: crop, map of the predicted type, probabilities, and what is known of the case.

    Args:
        images: uint8 (n, S, S).
        cams: ``explanation.Cams`` for the predicted types.
        rows: n rows of predictions, with a column "predicted".
        classes, names: keys in order; key -> (English, Chinese).
    """
    n = len(images)
    figure, axes = plt.subplots(n, 3, figsize=(WIDTH, 1.65 * n + 0.1), layout="constrained", squeeze=False,
                                width_ratios=[1, 1, 2.4])  # fmt: skip
    said = []
    for i, (_, row) in enumerate(rows.iterrows()):
        axes[i, 0].imshow(images[i], cmap="gray", vmin=0, vmax=255)
        overlay(axes[i, 1], images[i], cams.maps[i])
        axes[i, 1].set_title(f"{cams.low[i]:.2g} to {cams.high[i]:.2g}", fontsize=7, fontweight="normal")
        for ax in axes[i, :2]:
            ax.set(xticks=[], yticks=[])
            ax.spines[:].set_visible(False)
        bars, values = axes[i, 2], [row["p_" + key] for key in classes]
        bars.barh(range(len(classes)), values, color=[colour(key, k) for k, key in enumerate(classes)])
        bars.set_yticks(range(len(classes)), [english(names, key) for key in classes], fontsize=7)
        bars.set(ylim=(len(classes) - 0.5, -0.5), xlim=(0, 1), xticks=[0, 0.5, 1])
        bars.get_yticklabels()[classes.index(row["truth"])].set(fontweight="bold", color=INK)
        extra = [
            f"{c} {row[c]}" for c in ("age", "sex", "device", "dataset") if c in row and str(row[c]).strip()
        ]
        known = "\n".join(wrap(f"{row['image']}  {', '.join(extra)}", 58))
        bars.set_title(known, fontsize=6.5, fontweight="normal", loc="left")
        said.append(
            f"{english(names, row['truth'])} taken for {english(names, row['predicted'])} with probability "
            f"{row['p_' + row['predicted']]:.2f}"
        )
    figure.alt = "Most confident errors; the reference standard is in bold. " + "; ".join(said) + "."
    return figure


def views(pictures: dict, truth: list[str], names: dict) -> Figure:
    """The same images as the readers of the shortcut audit see them: one row per image, one column per view.

    Args:
        pictures: view -> uint8 (n, S, S);  truth: n class keys;  names: class key -> (English, Chinese).
    """
    n, wide = len(truth), len(pictures)
    side = min(1.75, WIDTH / wide)
    figure, axes = plt.subplots(
        n, wide, figsize=(side * wide, side * n + 0.35), layout="constrained", squeeze=False
    )
    for column, (view, images) in zip(axes.T, pictures.items()):
        column[0].set_title(view.replace(", ", ",\n"), fontsize=7.5, fontweight="normal")
        for ax, image in zip(column, images):
            ax.imshow(image, cmap="gray", vmin=0, vmax=255)
            ax.set(xticks=[], yticks=[])
            ax.spines[:].set_visible(False)
    for ax, key in zip(axes[:, 0], truth):
        ax.set_ylabel(english(names, key).replace(" ", "\n"), fontsize=7)
    figure.alt = (
        f"{n} images ({', '.join(english(names, key) for key in truth)}), each in {wide} views: "
        f"{'; '.join(pictures)}."
    )
    return figure
