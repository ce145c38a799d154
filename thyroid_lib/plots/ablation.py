"""Figures of the ablation: how well each arm does, at what cost, and what its network looks at."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from thyroid_lib.common.messages import say
from thyroid_lib.plots.style import CYCLE, GRID, INK, MUTED, SEQUENTIAL, WIDTH

GROUP_COLOURS = {
    "parts": CYCLE[0],
    "losses": CYCLE[4],
    "peers": CYCLE[1],
    "reference": CYCLE[6],
    "controls": CYCLE[3],
}
GROUP_MARKERS = {"parts": "o", "losses": "D", "peers": "s", "reference": "^", "controls": "X"}
GROUP_NAMES = {
    "parts": "parts of the invention",
    "losses": "losses",
    "peers": "peers",
    "reference": "reference",
    "controls": "controls",
}


def arms(rows: list[dict], label: str) -> Figure:
    """One line per arm: the mean over its trainings with its interval, and each training as a small mark.

    Args:
        rows: each {"title", "group", "metric": {"value", "low", "high", "trainings"[, "reason"]}}.
        label: of the horizontal axis.
    """
    figure, ax = plt.subplots(figsize=(WIDTH, 0.75 + 0.27 * len(rows)), layout="constrained")
    for y, row in enumerate(rows):
        metric, ink = row["metric"], GROUP_COLOURS[row["group"]]
        if metric["value"] is None:
            ax.text(0.02, y, metric["reason"], transform=ax.get_yaxis_transform(), va="center", color=MUTED,
                    fontsize=7)  # fmt: skip
        else:
            ax.plot([metric["low"], metric["high"]], [y, y], color=ink, lw=1.6)
            ax.plot(metric["value"], y, GROUP_MARKERS[row["group"]], color=ink, ms=5)
            each = metric["trainings"] if len(metric["trainings"]) > 1 else []
            ax.plot(each, [y + 0.27] * len(each), "|", color=INK, ms=5, mew=0.9)
        ax.text(1.01, y, say(metric), transform=ax.get_yaxis_transform(), va="center", fontsize=7)
    ax.axvline(0.5, color=MUTED, lw=0.8, ls=":")
    ax.set_yticks(range(len(rows)), [row["title"] for row in rows])
    ax.tick_params(axis="y", length=0, labelcolor=INK, labelsize=7.5)
    ax.set(ylim=(len(rows) - 0.4, -0.6), xlabel=label)
    ax.grid(axis="x", color=GRID, lw=0.6)
    _legend(figure, [row["group"] for row in rows])
    figure.alt = f"{label} of each arm with 95 % intervals. " + "; ".join(
        f"{row['title']}: {say(row['metric'])}" for row in rows
    )
    figure.alt += "."
    return figure


def accuracy_against_cost(table: pd.DataFrame, references: dict[str, dict], label: str) -> Figure:
    """Accuracy against what it costs: multiplications, and milliseconds of training per image.

    Args:
        table: one row per network: title, group, value, low, high (of the metric), gmacs, training (images/s).
        references: title -> metric of what is no network: horizontal lines.
        label: of the vertical axis.
    """
    half = -(-len(table) // 2)
    words_share = 0.15 * half / (3.6 + 0.15 * half)  # of the height: the numbered names below
    figure, axes = plt.subplots(1, 2, figsize=(WIDTH, 3.6 + 0.15 * half), sharey=True, layout="constrained")
    numbers = {title: str(place) for place, title in enumerate(table["title"], 1)}
    known = table.dropna(subset=["value"])
    columns = ((known["gmacs"], "GMACs per image"), (1000 / known["training"], "training, ms per image"))
    for ax, (cost, name) in zip(axes, columns):
        for x, row in zip(cost, known.itertuples()):
            ink = GROUP_COLOURS[row.group]
            ax.plot([x, x], [row.low, row.high], color=ink, lw=0.9, alpha=0.45)
            ax.plot(x, row.value, GROUP_MARKERS[row.group], color=ink, ms=5.5)
            ax.annotate(numbers[row.title], (x, row.value), (4, 3), textcoords="offset points", fontsize=7.5)
        ax.set(xlabel=name)
        _cost_axis(ax, cost)
        ax.grid(color=GRID, lw=0.5)
    if not len(known):
        axes[0].text(0.5, 0.5, "too few patients", transform=axes[0].transAxes, ha="center", color=MUTED)
    for ax in axes:
        ax.axhline(0.5, color=MUTED, lw=0.8, ls=":")
        for metric in references.values():
            ax.axhline(metric["value"], color=GROUP_COLOURS["reference"], lw=1, ls="--")
    for name, metric in references.items():
        place = (0.99, metric["value"])
        axes[0].annotate(name, place, (0, 2), xycoords=axes[0].get_yaxis_transform(), textcoords="offset points",
                         ha="right", va="bottom", fontsize=7, color=MUTED)  # fmt: skip
    axes[0].margins(y=0.08)
    axes[0].set_ylabel(label)
    words = [f"{number}  {title}" for title, number in numbers.items()]
    for x, part in ((0.08, words[:half]), (0.56, words[half:])):
        figure.text(x, words_share, "\n".join(part), va="top", fontsize=7.5, color=INK, linespacing=1.35)
    figure.get_layout_engine().set(rect=(0, words_share + 0.01, 1, 0.99 - words_share))
    said = [
        f"{row.title}: {say(row._asdict())} at {row.gmacs:.3g} GMACs and {row.training:.0f} images/s in training"
        for row in table.itertuples()
    ]
    said += [f"{name} (no network): {say(metric)}" for name, metric in references.items()]
    figure.alt = f"{label} against multiplications and against training time. " + "; ".join(said) + "."
    return figure


def gaze(maps: dict[str, dict[str, np.ndarray]], numbers: dict[str, dict]) -> Figure:
    """What each network looks at: its effective receptive field above, the gradient of its verdict below.

    Args:
        maps: title -> {"field", "gradient"}, each float (S, S), largest 1.
        numbers: title -> {"field_side_px", "evenness"}.
    """
    columns = min(8, max(4, len(maps)))
    blocks = -(-len(maps) // columns)
    figure, axes = plt.subplots(
        2 * blocks, columns, figsize=(WIDTH, 2.35 * blocks * 7 / columns), squeeze=False, layout="constrained"
    )
    for ax in axes.flat:
        ax.axis("off")
    for place, (title, pair) in enumerate(maps.items()):
        row, column = 2 * (place // columns), place % columns
        for ax, name in zip(axes[row : row + 2, column], ("field", "gradient")):
            image = ax.imshow(np.sqrt(pair[name]), cmap=SEQUENTIAL, vmin=0, vmax=1)
        about = numbers[title]
        axes[row, column].set_title(_wrapped(title), fontsize=7, fontweight="normal")
        for ax, text in (
            (axes[row, column], f"{about['field_side_px']:.0f} px"),
            (axes[row + 1, column], f"evenness {about['evenness']:.2f}"),
        ):
            ax.text(0.5, -0.04, text, transform=ax.transAxes, ha="center", va="top", fontsize=7)
    figure.colorbar(image, ax=axes.ravel().tolist(), shrink=0.6, label="gradient (root scale)")
    said = [
        f"{title}: effective receptive field of {n['field_side_px']:.0f} px a side, evenness {n['evenness']:.2f}"
        for title, n in numbers.items()
    ]
    figure.alt = "Two maps per network, bright where a pixel weighs much. " + "; ".join(said) + "."
    return figure


def _wrapped(title: str, most: int = 13) -> str:
    lines = [""]
    for word in title.split():
        if lines[-1] and len(lines[-1]) + len(word) >= most:
            lines.append(word)
        else:
            lines[-1] = f"{lines[-1]} {word}".strip()
    return "\n".join(lines)


def _cost_axis(ax, values) -> None:
    """A logarithmic axis for costs that lie far apart, a plain one from 0 for others; plain numbers on both."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    if not len(values) or values.max() / values.min() < 4:
        ax.set_xlim(0, 1.08 * values.max() if len(values) else 1)
        ax.locator_params(axis="x", nbins=5)
        return
    ax.set_xscale("log")
    ax.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if values.max() / values.min() < 30 else (1,)))
    ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    ax.xaxis.set_minor_formatter(NullFormatter())


def _legend(figure, groups: list[str]) -> None:
    marks = [
        plt.Line2D(
            [], [], color=GROUP_COLOURS[group], marker=GROUP_MARKERS[group], lw=1.4, label=GROUP_NAMES[group]
        )
        for group in dict.fromkeys(groups)
    ]
    marks.append(plt.Line2D([], [], color=INK, marker="|", lw=0, label="each training"))
    figure.legend(handles=marks, loc="outside lower center", ncols=len(marks), fontsize=7.5)
