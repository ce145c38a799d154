"""Figures of the data: the flow from files to crops, the steps of a crop, examples, audits, splits."""

from collections.abc import Mapping, Sequence
from textwrap import fill

import cv2
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.patches import FancyBboxPatch, Rectangle

from thyroid_lib.plots.style import GRID, INK, MUTED, WIDTH, colour

BOX = "#E69F00"
OUTLINE = "#56B4E9"


def flow(flows: Mapping[str, pd.DataFrame]):
    """Flow diagram from files to crops.

    Args:
        flows: heading -> table with `step`, `images`, `patients`, `left_out`, in order.

    Returns:
        Figure with one column per heading; what was left out stands between the boxes.
    """
    depth = max(len(table) for table in flows.values())
    fig, axes = plt.subplots(
        1, len(flows), figsize=(WIDTH, 0.62 * depth + 0.5), layout="constrained", squeeze=False
    )
    said = []
    for ax, (heading, table) in zip(axes[0], flows.items()):
        ax.set(xlim=(0, 1), ylim=(-depth + 0.35, 0.55))
        ax.axis("off")
        ax.set_title(fill(heading, 34), fontsize=9)
        for row, (step, images, patients, left_out) in enumerate(
            zip(table["step"], table["images"], table["patients"], table["left_out"])
        ):
            last = row == len(table) - 1
            ax.add_patch(
                FancyBboxPatch((0.02, -row - 0.27), 0.96, 0.54, boxstyle="round,pad=0,rounding_size=0.04",
                               facecolor="#EEF3F8" if last else "white", edgecolor=INK if last else GRID)
            )  # fmt: skip
            people = "" if pd.isna(patients) else f" · {int(patients)} patients"
            ax.text(0.5, -row + 0.1, step, ha="center", va="center", fontsize=7.5, color=MUTED)
            ax.text(0.5, -row - 0.11, f"{int(images)} images{people}", ha="center", va="center", fontsize=8.5)
            if not last:
                ax.annotate(
                    "",
                    (0.5, -row - 0.72),
                    (0.5, -row - 0.28),
                    arrowprops={"arrowstyle": "-|>", "color": MUTED},
                )
            if left_out:
                ax.text(0.55, -row + 0.48, f"− {int(left_out)}", va="center", fontsize=7.5, color="#D55E00")
        said.append(f"{heading}: {int(table['images'].iloc[0])} files, {int(table['images'].iloc[-1])} used")
    fig.alt = "Flow from files to crops. " + "; ".join(said) + "."
    return fig


def steps(examples: Sequence[dict]):
    """From frame to crop, one example per row.

    Args:
        examples: as `audit.steps` gives them, with `source` added for the row's name.

    Returns:
        Figure: frame, binary image, list of regions, box with the nodule's outline, crop.
    """
    titles = ("frame", "binarized", "connected regions", "largest region", "crop")
    fig, axes = plt.subplots(
        len(examples), 5, figsize=(WIDTH, 1.22 * len(examples) + 0.25), layout="constrained", squeeze=False,
        width_ratios=(1.5, 1.5, 1.5, 1.5, 1),
    )  # fmt: skip
    said = []
    for row, example in zip(axes, examples):
        gray, found = example["frame"], example["regions"]
        row[0].imshow(gray, cmap="gray", vmin=0, vmax=255)
        row[1].imshow(example["binary"], cmap="gray", vmin=0, vmax=1)
        row[2].imshow(_numbered(gray.shape, found))
        row[3].imshow(gray, cmap="gray", vmin=0, vmax=255)
        x, y, width, height = found[0].box
        row[3].add_patch(Rectangle((x, y), width, height, fill=False, edgecolor=BOX, linewidth=1.2))
        if example["mask"] is not None:
            row[3].contour(example["mask"], [0.5], colors=OUTLINE, linewidths=0.8)
        row[4].imshow(example["crop"], cmap="gray", vmin=0, vmax=255)
        for ax in row:
            ax.set(xticks=[], yticks=[])
        row[0].set_ylabel(example["source"].replace(": ", ":\n"), fontsize=7)
        share = width * height / gray.size
        said.append(f"{example['source']}: {len(found)} regions, the largest box is {share:.0%} of the frame")
    for ax, title in zip(axes[0], titles):
        ax.set_title(title, fontsize=8.5, fontweight="normal")
    fig.alt = "Five pictures per source from frame to crop. " + "; ".join(said) + "."
    return fig


def examples(images: np.ndarray, labels: Sequence[str], names: Mapping[str, str], per_class: int = 6):
    """Rows of crops, one row per class.

    Args:
        images: uint8 (N, S, S).
        labels: N class keys.
        names: class key -> what to write; gives the order.
        per_class: crops of each, evenly spaced over the data.
    """
    fig, axes = plt.subplots(
        len(names), per_class, figsize=(WIDTH, 1.18 * len(names)), layout="constrained", squeeze=False
    )
    labels = np.asarray(labels)
    said = []
    for row, (key, name) in zip(axes, names.items()):
        found = np.flatnonzero(labels == key)
        said.append(f"{len(found)} {name}")
        chosen = (
            found[np.linspace(0, len(found) - 1, min(per_class, len(found))).astype(int)]
            if len(found)
            else []
        )
        for place, ax in enumerate(row):
            ax.set(xticks=[], yticks=[])
            ax.spines[:].set_visible(False)
            if place < len(chosen):
                ax.imshow(images[chosen[place]], cmap="gray", vmin=0, vmax=255)
        row[0].set_ylabel(name.replace(" ", "\n"), fontsize=8, color=colour(key), fontweight="bold")
    fig.alt = "Crops as the network sees them, by class: " + ", ".join(said) + "."
    return fig


def gallery(images: np.ndarray, masks: np.ndarray | None, captions: Sequence[str], columns: int = 8):
    """Crops with a line of text under each; the nodule's outline where masks are given."""
    rows = -(-len(images) // columns)
    fig, axes = plt.subplots(rows, columns, figsize=(WIDTH, 1.25 * rows), layout="constrained", squeeze=False)
    for place, ax in enumerate(axes.flat):
        ax.set(xticks=[], yticks=[])
        ax.spines[:].set_visible(False)
        if place < len(images):
            ax.imshow(images[place], cmap="gray", vmin=0, vmax=255)
            if masks is not None and masks[place].any():
                ax.contour(masks[place], [0.5], colors=OUTLINE, linewidths=0.7)
            ax.set_xlabel(captions[place], fontsize=6.5, labelpad=2)
    fig.alt = f"{len(images)} crops: " + "; ".join(captions) + "."
    return fig


def audit(table: pd.DataFrame):
    """Bars of the crop audit.

    Args:
        table: index: sources; columns `nodule_held`, `nodule_whole`, `print_in_frame`, `print_in_crop`, 0 to 1.
    """
    wanted = {
        "nodule_held": "nodule ≥ 95 % inside",
        "nodule_whole": "nodule wholly inside",
        "print_in_frame": "print in the frame",
        "print_in_crop": "print in the crop",
    }
    fig, ax = plt.subplots(figsize=(WIDTH, 0.3 * len(wanted) * len(table) + 0.7), layout="constrained")
    places = np.arange(len(wanted))[::-1] * 1.0
    bar = 0.8 / len(table)
    for number, (source, row) in enumerate(table.iterrows()):
        values = [float(row[key]) for key in wanted]
        at = places + 0.4 - bar * (number + 0.5)
        ax.barh(at, np.nan_to_num(values), bar * 0.9, label=source, color=colour(str(source), number))
        for y, value in zip(at, values):
            ax.text(np.nan_to_num(value) + 0.01, y, "no outlines" if np.isnan(value) else f"{value:.1%}",
                    va="center", fontsize=7.5, color=MUTED)  # fmt: skip
    ax.set(yticks=places, yticklabels=list(wanted.values()), xlim=(0, 1.12), xticks=np.linspace(0, 1, 6))
    ax.set_xlabel("fraction of frames")
    ax.legend(loc="upper left", bbox_to_anchor=(1, 1))
    fig.alt = "Audit of the crops. " + "; ".join(
        f"{source}: "
        + ", ".join(f"{name} {row[key]:.1%}" for key, name in wanted.items() if row[key] == row[key])
        for source, row in table.iterrows()
    )
    return fig


def shortcuts(table: pd.DataFrame, limit: float = 0.3):
    """Bars of what goes with the label beside the nodule, as `audit.shortcuts` gives it."""
    fig, ax = plt.subplots(figsize=(WIDTH, 0.28 * len(table) + 0.9), layout="constrained")
    tints = {"crop": "#D55E00", "frame": "#E69F00", "table": "#7F7F7F"}
    where = {"crop": "seen in the crop", "frame": "seen in the frame only", "table": "in the table only"}
    places = np.arange(len(table))[::-1]
    for place, row in zip(places, table.itertuples()):
        ax.barh(place, row.association, 0.7, color=tints[row.visible])
        ax.text(
            row.association + 0.01, place, f"{row.association:.2f}", va="center", fontsize=7.5, color=MUTED
        )
    ax.axvline(limit, color=MUTED, linewidth=0.8, linestyle=":")
    ax.set(
        yticks=places,
        yticklabels=table["what"],
        xlim=(0, 1.05),
        xlabel="association with the label (Cramér's V)",
    )
    seen = [key for key in tints if key in set(table["visible"])]
    ax.legend([Rectangle((0, 0), 1, 1, color=tints[key]) for key in seen], [where[key] for key in seen])
    fig.alt = "Association with the label: " + ", ".join(
        f"{row.what} {row.association:.2f}" for row in table.itertuples()
    )
    return fig


def _numbered(shape: tuple[int, int], found) -> np.ndarray:
    """Regions in colours, the largest in the palette's first: uint8 (H, W, 3)."""
    picture = np.full((*shape, 3), 24, np.uint8)
    tints = ["#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00"]
    for number, region in reversed(list(enumerate(found))):
        tint = tints[number % len(tints)].lstrip("#")
        picture[region.mask] = [int(tint[k : k + 2], 16) for k in (0, 2, 4)]
        x, y, _, _ = region.box
        cv2.putText(
            picture, str(number + 1), (x + 4, y + 16), cv2.FONT_HERSHEY_SIMPLEX, 0.5, (255, 255, 255), 1
        )
    return picture
