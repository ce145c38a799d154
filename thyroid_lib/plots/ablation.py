"""Figures of the ablation: how well each arm does, at what cost, and what its network looks at."""

from textwrap import wrap

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator

from thyroid_lib.plots import style
from thyroid_lib.plots.style import GREY, INK, MUTED, WIDTH, forest_rows, note, panels, told

GROUPS = {
    "parts": ("parts of the invention", style.BLUE, "o"),
    "losses": ("losses", style.SKY, "D"),
    "peers": ("peers", style.ORANGE, "s"),
    "reference": ("reference", GREY, "^"),
    "controls": ("controls", style.PINK, "X"),
}


def arms(rows: list[dict], label: str) -> Figure:
    """One line per arm: the mean over its trainings with its interval, and each training as a small mark.

    Args:
        rows: each {"title", "group", "metric": {"value", "low", "high", "trainings"[, "reason"]}}.
        label: of the horizontal axis.
    """
    figure, ((ax,),) = panels(1, 1, 0.75 + 0.27 * len(rows))
    forest_rows(ax, [(row["title"], row["metric"], *GROUPS[row["group"]][1:]) for row in rows], label, 0.5)
    shown = [GROUPS[group] for group in dict.fromkeys(row["group"] for row in rows)]
    marks = [Line2D([], [], color=ink, marker=marker, label=name) for name, ink, marker in shown]
    marks.append(Line2D([], [], color=INK, marker="|", lw=0, label="each training"))
    figure.legend(handles=marks, loc="outside lower center", ncols=len(marks), fontsize=7.5)
    return told(figure, "arms", label=label, rows=rows)


def accuracy_against_cost(table: pd.DataFrame, references: dict[str, dict], label: str) -> Figure:
    """Accuracy against what it costs: multiplications, and milliseconds of training per image.

    Args:
        table: one row per network: title, group, value, low, high (of the metric), gmacs, training (images/s).
        references: title -> metric of what is no network: horizontal lines.
        label: of the vertical axis.
    """
    table = table.assign(number=range(1, len(table) + 1), milliseconds=1000 / table["training"])
    known = table.dropna(subset=["value"])
    figure, axes = panels(1, 2, 3.6 + 0.1 * len(table), sharey=True)
    costs = {"gmacs": "GMACs per image", "milliseconds": "training, ms per image"}
    for ax, (cost, name) in zip(axes[0], costs.items()):
        for x, row in zip(known[cost], known.itertuples()):
            _, ink, marker = GROUPS[row.group]
            ax.plot([x, x], [row.low, row.high], color=ink, lw=0.9, alpha=0.45)
            ax.plot(x, row.value, marker, color=ink, ms=5.5)
            ax.annotate(row.number, (x, row.value), (4, 3), textcoords="offset points", fontsize=7.5)
        for title, metric in references.items():
            ax.axhline(metric["value"], color=GREY, lw=1, ls="--")
            ax.text(0.99, metric["value"], title, transform=ax.get_yaxis_transform(), ha="right", va="bottom",
                    fontsize=7, color=MUTED)  # fmt: skip
        if known.empty:
            note(ax, 0.3, 0.5, "too few patients", ax.transAxes)
        elif known[cost].max() > 4 * known[cost].min():
            ax.set_xscale("log")
            ax.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            ax.xaxis.set_major_formatter("{x:g}")
            ax.xaxis.set_minor_formatter("")
        ax.axhline(0.5, color=MUTED, lw=0.8, ls=":")
        ax.set(xlabel=name, ylabel=label)
        ax.label_outer()
        ax.grid(lw=0.5)
    numbered = table.set_index("number")["title"].items()
    keys = [Line2D([], [], color=INK, ls="", marker=f"${n}$", label=title) for n, title in numbered]
    figure.legend(handles=keys, loc="outside lower center", ncols=2, fontsize=7.5)
    return told(figure, "cost", label=label, networks=table.to_dict("records"), references=references)


def gaze(maps: dict[str, dict[str, np.ndarray]], numbers: dict[str, dict]) -> Figure:
    """What each network looks at: its effective receptive field above, the gradient of its verdict below.

    Args:
        maps: title -> {"field", "gradient"}, each float (S, S), largest 1.
        numbers: title -> {"field_side_px", "evenness"}.
    """
    columns = min(8, max(4, len(maps)))
    blocks = -(-len(maps) // columns)
    figure, axes = panels(2 * blocks, columns, WIDTH * 2.29 * blocks / columns)
    for ax in axes.flat:
        ax.axis("off")
    for place, (title, pair) in enumerate(maps.items()):
        above, below = axes[2 * (place // columns) :, place % columns][:2]
        words = f"{numbers[title]['field_side_px']:.0f} px", f"evenness {numbers[title]['evenness']:.2f}"
        for ax, name, text in zip((above, below), ("field", "gradient"), words):
            image = ax.imshow(np.sqrt(pair[name]), cmap=style.SEQUENTIAL, vmin=0, vmax=1)
            ax.text(0.5, -0.04, text, transform=ax.transAxes, ha="center", va="top", fontsize=7)
        above.set_title("\n".join(wrap(title, 13, break_long_words=False)), fontsize=7, fontweight="normal")
    figure.colorbar(image, ax=axes.ravel().tolist(), shrink=0.6, label="gradient (root scale)")
    return told(figure, "gaze", numbers={title: numbers[title] for title in maps})
