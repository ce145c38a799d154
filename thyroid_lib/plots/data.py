"""Figures of the data: the flow from files to crops, the steps of a crop, examples, audits, splits."""

from collections.abc import Mapping, Sequence
from itertools import cycle
from textwrap import fill

import numpy as np
import pandas as pd
import seaborn
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure

from thyroid_lib.plots import style
from thyroid_lib.plots.style import BLUE, CYCLE, MUTED, RED, colour, panels, pictures, told


def flow(flows: Mapping[str, pd.DataFrame]) -> Figure:
    """Flow diagram from files to crops.

    Args:
        flows: heading -> table with `step`, `images`, `patients`, `left_out`, in order.

    Returns:
        Figure with one column per heading; what was left out stands between the boxes.
    """
    depth = max(map(len, flows.values()))
    figure, axes = panels(1, len(flows), 0.62 * depth + 0.5)
    for ax, (heading, table) in zip(axes[0], flows.items()):
        style.sheet(ax, (0, 1), (0.35 - depth, 0.55), fill(heading, 34))
        for number, row in enumerate(table.itertuples()):
            people = "" if pd.isna(row.patients) else f" · {int(row.patients)} patients"
            edge = BLUE if number == len(table) - 1 else MUTED
            style.box(ax, 0.5, -number, 0.96, 0.54, f"{row.step}\n{row.images} images{people}", edge=edge)
            if number:
                style.arrow(ax, (0.5, 0.73 - number), (0.5, 0.27 - number))
            if row.left_out:
                ax.text(0.55, 0.5 - number, f"− {row.left_out}", va="center", fontsize=7.5, color=RED)
    return told(figure, "data_flow", flows=flows)


def steps(examples: Sequence[dict]) -> Figure:
    """From frame to crop, one example per row.

    Args:
        examples: as `audit.steps` gives them, with `source` added for the row's name.

    Returns:
        Figure: frame, binary image, list of regions, box with the nodule's outline, crop.
    """
    rows = []
    for example in examples:
        frame, found = example["frame"], example["regions"]
        regions = np.full((*frame.shape, 3), 24, np.uint8)
        for region, ink in reversed(list(zip(found, cycle(CYCLE)))):
            regions[region.mask] = np.multiply(to_rgb(ink), 255)
        boxed = {"image": frame, "box": found[0].box, "outline": example["mask"]}
        shown = ({"image": image} for image in (frame, example["binary"].astype(bool), regions))
        rows.append([*shown, boxed, {"image": example["crop"]}])
    titles = ("frame", "binarized", "connected regions", "largest region", "crop")
    names = [example["source"].replace(": ", ":\n") for example in examples]
    figure, axes = pictures(rows, titles, names, 1.1, width_ratios=(1.5, 1.5, 1.5, 1.5, 1))
    for ax, example in zip(axes[:, 2], examples):
        for number, region in enumerate(example["regions"], 1):
            ax.text(*region.box[:2], number, color="white", fontsize=6, va="top", clip_on=True)
    return told(figure, "steps", examples=examples)


def examples(images: np.ndarray, labels: Sequence[str], names: Mapping[str, str]) -> Figure:
    """Rows of crops, one row per class, six crops of each, evenly spaced over the data.

    Args:
        images: uint8 (N, S, S).
        labels: N class keys.
        names: class key -> what to write; gives the order.
    """
    rows, counts = [], {}
    for key, name in names.items():
        found = np.flatnonzero(np.asarray(labels) == key)
        some = np.linspace(0, len(found) - 1, min(6, len(found))).astype(int)
        rows.append([{"image": images[place]} for place in found[some]])
        counts[name] = len(found)
    figure, axes = pictures(rows, names=[name.replace(" ", "\n") for name in names.values()])
    for ax, key in zip(axes[:, 0], names):
        ax.yaxis.label.set(color=colour(key), fontweight="bold")
    return told(figure, "examples", counts=counts)


def gallery(images, masks, captions: Sequence[str], columns: int = 8) -> Figure:
    """Crops, uint8 (n, S, S), a line of text under each; the nodule's outline where masks, (n, S, S), are given."""
    outlines = [None] * len(images) if masks is None else masks
    cells = [dict(zip(("image", "outline", "below"), cell)) for cell in zip(images, outlines, captions)]
    rows = [cells[start : start + columns] for start in range(0, len(cells), columns)]
    return told(pictures(rows, height=1.2)[0], "gallery", captions=captions)


def audit(table: pd.DataFrame) -> Figure:
    """Bars of the crop audit.

    Args:
        table: index: sources; columns `nodule_held`, `nodule_whole`, `print_in_frame`, `print_in_crop`, 0 to 1.
    """
    wanted = {"nodule_held": "nodule ≥ 95 % inside", "nodule_whole": "nodule wholly inside",
              "print_in_frame": "print in the frame", "print_in_crop": "print in the crop"}  # fmt: skip
    shares = table[[*wanted]].astype(float).rename(columns=wanted).rename_axis("source")
    bars = shares.fillna(0).reset_index().melt("source", var_name="what", value_name="share")
    inks = {source: colour(source, number) for number, source in enumerate(shares.index)}
    labels = shares.map("{:.1%}".format, na_action="ignore").fillna("no outlines").to_numpy()
    figure = _bars(bars, "share", "source", inks, labels, 0.3 * shares.size + 0.7, "fraction of frames")
    return told(figure, "audit", shares=shares)


def shortcuts(table: pd.DataFrame) -> Figure:
    """Bars of what goes with the label beside the nodule, as `audit.shortcuts` gives it."""
    where = {"crop": "seen in the crop", "frame": "seen in the frame only", "table": "in the table only"}
    inks = dict(zip(where.values(), (RED, style.ORANGE, style.GREY)))
    labels = [table.loc[table["visible"] == key, "association"].map("{:.2f}".format) for key in where]
    table = table.assign(visible=table["visible"].map(where))
    axis = "association with the label (Cramér's V)"
    figure = _bars(table, "association", "visible", inks, labels, 0.28 * len(table) + 0.9, axis, dodge=False)
    figure.axes[0].axvline(0.3, color=MUTED, lw=0.8, ls=":")
    return told(figure, "shortcuts", table=table)


def _bars(table, x: str, hue: str, inks: dict, labels, height: float, axis: str, **options) -> Figure:
    """Bars of column `what`, coloured by column `hue`, which `inks` orders, and labelled colour by colour."""
    figure, ((ax,),) = panels(1, 1, height)
    options |= {"palette": inks, "hue_order": inks, "saturation": 1}
    seaborn.barplot(table, x=x, y="what", hue=hue, ax=ax, **options)
    for container, words in zip(ax.containers, labels):
        ax.bar_label(container, words, padding=3, fontsize=7.5, color=MUTED)
    ax.set(xlim=(0, 1.12), xticks=np.linspace(0, 1, 6), xlabel=axis, ylabel="")
    seaborn.move_legend(ax, "upper left", bbox_to_anchor=(1, 1), title=None)
    return figure
