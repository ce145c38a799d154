"""One look for every figure: type, sizes, a palette that colour-blind readers can tell apart, common parts."""

from collections.abc import Collection, Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch, Rectangle

from thyroid_lib.common.messages import english, say
from thyroid_lib.common.templates import TEMPLATES, environment

# Okabe & Ito (2008), the order chosen so that neighbours differ in lightness too.
CYCLE = ["#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#7F7F7F", "#F0E442"]
BLUE, ORANGE, GREEN, PINK, SKY, RED, GREY, _ = CYCLE
PALETTE = {"nodular_goiter": GREEN, "follicular_neoplasm": ORANGE, "papillary_carcinoma": BLUE,
           "medullary_carcinoma": PINK, "2-3": GREEN, "4a": ORANGE, "4b": BLUE, "4c-5": PINK,
           "benign": GREEN, "malignant": RED, "normal": SKY}  # fmt: skip
INK, MUTED, GRID = "#1B2430", "#5B6776", "#D5DBE3"
WIDTH = 7.2  # inches: the text column of a report
SEQUENTIAL, HEAT = "cividis", "inferno"  # even in lightness: a map reads the same in grey


def colour(key: str, position: int = 0) -> str:
    """The colour of a class key; a key without one of its own takes the cycle's at ``position``."""
    return PALETTE.get(key, CYCLE[position % len(CYCLE)])


def use_style() -> None:
    """Make matplotlib and seaborn draw in the study's style from here on."""
    seaborn.set_theme("paper", "ticks", CYCLE)
    plt.style.use(TEMPLATES / "plots" / "study.mplstyle")


def panels(rows: int, columns: int, height: float, width: float = WIDTH, **options):
    """A new figure of so many inches and its axes, (rows, columns); ``options`` go to ``plt.subplots``."""
    options |= {"figsize": (width, height), "layout": "constrained", "squeeze": False}
    return plt.subplots(rows, columns, **options)


def told(figure: Figure, macro: str, **values) -> Figure:
    """The figure with its alt text: a macro of ``templates/plots/alt.j2``, filled in."""
    text = getattr(environment().get_template("plots/alt.j2").module, macro)(**values)
    figure.alt = " ".join(text.split()).removesuffix(";") + "."
    return figure


def heading(names: dict, key: str) -> str:
    """The English name of a class key, a line for each word."""
    return english(names, key).replace(" ", "\n")


def note(ax, x: float, y: float, text: str, transform) -> None:
    """A word where axes have nothing to show, legible on lines."""
    ground = {"facecolor": "white", "edgecolor": "none", "pad": 1}
    ax.text(x, y, text, transform=transform, va="center", color=MUTED, fontsize=7, bbox=ground)


# --- pictures --------------------------------------------------------------------------------------------------


def picture(ax, image=None, title="", *, heat=None, outline=None, box=None, below="", tint=SKY) -> None:
    """A picture without ticks; an empty place where there is none.

    Args:
        ax: where.
        image: uint8 (H, W) or (H, W, 3), or bool (H, W).
        title: above it.
        heat: float (H, W), 0 to 1: a map laid over, more opaque where it is hotter.
        outline: mask (H, W) whose outline is drawn in ``tint``; None or empty for none.
        box: (x, y, width, height) in px, drawn in orange.
        below: words under it.
    """
    if image is not None:
        ax.imshow(image, cmap="gray", vmin=0, vmax=1 if image.dtype == bool else 255)
    if heat is not None:
        ax.imshow(heat, cmap=HEAT, vmin=0, vmax=1, alpha=0.15 + 0.5 * np.clip(heat, 0, 1))
    if outline is not None and np.any(outline):
        ax.contour(outline, [0.5], colors=tint, linewidths=0.8)
    if box is not None:
        ax.add_patch(Rectangle(box[:2], *box[2:], fill=False, edgecolor=ORANGE, linewidth=1.2))
    ax.set(xticks=[], yticks=[])
    ax.spines[:].set_visible(False)
    ax.set_title(title, fontsize=7.5, fontweight="normal")
    ax.set_xlabel(below, fontsize=6.5, labelpad=2)


def pictures(rows: Sequence[Sequence[dict]], titles=(), names=(), height: float = 0, **options):
    """Rows of pictures.

    Args:
        rows: each cell with the keywords of `picture`; rows may be short.
        titles: above the columns.
        names: left of the rows.
        height: of a row in inches; 0 for squares.
        options: of ``plt.subplots``.

    Returns:
        Figure and its axes, (rows, columns).
    """
    columns = max(map(len, rows))
    side = min(1.75, WIDTH / columns)
    figure, axes = panels(len(rows), columns, (height or side) * len(rows) + 0.3, side * columns, **options)
    for place, ax in np.ndenumerate(axes):
        row = rows[place[0]]
        picture(ax, **(row[place[1]] if place[1] < len(row) else {}))
    for ax, title in zip(axes[0], titles):
        ax.set_title(title, fontsize=7.5, fontweight="normal")
    for ax, name in zip(axes[:, 0], names):
        ax.set_ylabel(name, fontsize=7)
    return figure, axes


# --- numbers ---------------------------------------------------------------------------------------------------


def band(ax, x: Collection, bounds, ink: str, label: str = "", **line) -> pd.DataFrame:
    """A curve in its 95 % band, and "too few patients" where there is no number.

    Args:
        ax: where.
        x: n places.
        bounds: n metrics, or {"value", "low", "high"} of n numbers each.
        ink: its colour. label: of the legend. line: options of the curve.

    Returns:
        What was drawn: columns value, low and high over the index x.
    """
    known = pd.DataFrame(bounds, list(x), ["value", "low", "high"]).astype(float).dropna()
    if known.empty:
        note(ax, 0.3, 0.5, f"{label} too few patients", ax.transAxes)
    else:
        ax.fill_between(known.index, known["low"], known["high"], color=ink, alpha=0.15, lw=0)
        ax.plot(known.index, known["value"], color=ink, label=label, **{"lw": 1.5, "ms": 3.5, **line})
    return known


def forest_rows(ax, rows: Sequence[tuple], label: str, reference: float, beside: str = "{said}") -> None:
    """Rows of a forest plot from the top down: the value in its 95 % interval, or why there is none.

    Args:
        ax: where.
        rows: (name, metric[, colour[, marker]]); a metric is {"value", "low", "high"[, "reason"]
            [, "trainings"]}, the last as small marks beneath; or None for a heading.
        label: of the horizontal axis.
        reference: a vertical dotted line; None for none.
        beside: what stands to the right of a row: the metric as `said`, and what else it holds.
    """
    side = ax.get_yaxis_transform()
    ax.set_yticks(range(len(rows)), [row[0] for row in rows])
    ax.tick_params(axis="y", length=0, labelcolor=INK, labelsize=7.5)
    for y, (_, metric, *look) in enumerate(rows):
        ink, marker = [*look, *(BLUE, "o")[len(look) :]]
        if metric is None:
            ax.get_yticklabels()[y].set_fontweight("bold")
            continue
        ax.text(1.01, y, beside.format(said=say(metric), **metric), transform=side, va="center", fontsize=7)
        if metric.get("value") is None:
            note(ax, 0.02, y, metric.get("reason", "too few"), side)
            continue
        if len(each := metric.get("trainings") or []) > 1:
            ax.plot(each, [y + 0.27] * len(each), "|", color=INK, ms=5)
        ax.plot([metric["low"], metric["high"]], [y, y], color=ink, lw=1.6)
        ax.plot(metric["value"], y, marker, color=ink, ms=5)
    if reference is not None:
        ax.axvline(reference, color=MUTED, lw=0.8, ls=":")
    ax.set(ylim=(len(rows) - 0.4, -0.6), xlabel=label)
    ax.grid(axis="x")


def probability_bars(ax, names: dict, *answers: dict) -> None:
    """Bars of class probabilities, each answer paler than the one before.

    Args:
        ax: where.
        names: class key -> (English, Chinese).
        answers: class key -> probability.
    """
    keys, thick = list(answers[0]), 0.8 / len(answers)
    inks = [colour(key, position) for position, key in enumerate(keys)]
    for number, answer in enumerate(answers):
        places = np.arange(len(keys)) + thick * number
        ax.barh(places, [answer[key] for key in keys], thick, color=inks, alpha=1 - 0.6 * number)
    middle = np.arange(len(keys)) + thick * (len(answers) - 1) / 2
    ax.set_yticks(middle, [heading(names, key) for key in keys], fontsize=7)
    ax.invert_yaxis()
    ax.set(xlim=(0, 1), xticks=[0, 0.5, 1])


# --- diagrams --------------------------------------------------------------------------------------------------


def sheet(ax, xlim: tuple, ylim: tuple, title: str = "") -> None:
    """Makes axes a plain sheet for `box` and `arrow`."""
    ax.set(xlim=xlim, ylim=ylim)
    ax.axis("off")
    ax.set_title(title, fontsize=9)


def box(ax, x, y, width, height, text, face="white", edge=MUTED, line="-") -> None:
    """A box round (x, y) with words in it."""
    shape = f"round,pad=0,rounding_size={height / 10}"
    look = {"facecolor": face, "edgecolor": edge, "linestyle": line, "zorder": 3}
    ax.add_patch(FancyBboxPatch((x - width / 2, y - height / 2), width, height, shape, **look))
    ax.text(x, y, text, ha="center", va="center", fontsize=7.5, zorder=4)


def arrow(ax, *points: Sequence[float]) -> None:
    """A line through the points whose last leg is an arrow."""
    ax.plot(*zip(*points[:-1]), color=MUTED, lw=1, solid_capstyle="butt")
    ends = {"arrowstyle": "-|>", "color": MUTED, "shrinkA": 0, "shrinkB": 0}
    ax.annotate("", points[-1], points[-2], arrowprops=ends)
