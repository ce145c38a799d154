"""Figures of the evaluation: each takes results, returns a Figure and says its numbers in ``figure.alt``."""

import textwrap
from itertools import groupby
from operator import itemgetter

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from thyroid_lib.common.messages import english, say
from thyroid_lib.plots import style
from thyroid_lib.plots.style import BLUE, CYCLE, GREY, INK, MUTED, WIDTH, band, colour, heading, panels, told

DIAGONAL = {"color": MUTED, "lw": 0.7, "ls": ":"}
HALVES = {"ticks": [0, 0.5, 1], "labels": ["0", "0.5", "1"]}  # short: the panels stand close together


def roc_and_precision_recall(curves: dict, metrics: dict, names: dict) -> Figure:
    """ROC and precision-recall curves per lesion type, each against the rest, with 95 % bands.

    Args:
        curves: of ``comparison.curves``.
        metrics: of ``evaluation.evaluate``.
        names: class key -> (English, Chinese).
    """
    figure, ((left, right),) = panels(1, 2, 3.5)
    for position, (key, curve) in enumerate(curves.items()):
        ink, name = colour(key, position), english(names, key)
        auroc, precision = metrics[f"auroc/{key}"], metrics[f"average_precision/{key}"]
        for ax, what, metric in ((left, "sensitivity", auroc), (right, "precision", precision)):
            bounds = {"value": curve[what], "low": curve[f"{what}_low"], "high": curve[f"{what}_high"]}
            band(ax, curve["x"], pd.DataFrame(bounds, curve["x"]), ink, f"{name}, {say(metric)}")
            ax.legend(loc="upper center", bbox_to_anchor=(0.5, -0.18))
        right.axhline(curve["prevalence"], color=ink, lw=0.7, ls=":")
    left.plot([0, 1], [0, 1], **DIAGONAL)
    left.set(xlabel="1 − specificity", ylabel="sensitivity", title="ROC (AUROC, 95 % interval)")
    right.set(xlabel="sensitivity (recall)", ylabel="precision (PPV)")
    right.set_title("Precision-recall (average precision)")
    plt.setp((left, right), xlim=(-0.01, 1.01), ylim=(-0.01, 1.02))
    return told(figure, "roc", curves=curves, metrics=metrics, names=names)


def confusion(metrics: dict, classes: list[str], names: dict) -> Figure:
    """Confusion matrix: counts of images, coloured by share of the row.

    Args:
        metrics: of ``evaluation.evaluate``.
        classes: keys in order.
        names: class key -> (English, Chinese).
    """
    counts = np.array([[metrics[f"confusion/{t}/{p}"] for p in classes] for t in classes])
    share = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    cells = [[f"{n}\n{part:.0%}" for n, part in zip(*row)] for row in zip(counts, share)]
    table = pd.DataFrame(share, *[[heading(names, key) for key in classes]] * 2)
    figure, ((ax,),) = panels(1, 1, 0.6 * WIDTH, 0.72 * WIDTH)
    look = {"cmap": style.SEQUENTIAL, "vmin": 0, "vmax": 1, "annot_kws": {"fontsize": 8}}
    bar = {"label": "share of the row", "shrink": 0.8}
    seaborn.heatmap(table, annot=np.array(cells), fmt="", cbar_kws=bar, ax=ax, **look)
    ax.tick_params(length=0, rotation=0)
    ax.set(xlabel="predicted (highest probability)", ylabel="reference standard")
    return told(figure, "confusion", counts=counts, share=share, classes=classes, names=names)


def reliability(before: dict, after: dict, metrics: dict, classes: list[str], names: dict) -> Figure:
    """Reliability before and after temperature: the top label, then each lesion type.

    Args:
        before, after: of ``comparison.reliability`` with "raw_" and with "p_".
        metrics: of ``evaluation.evaluate``.
        classes, names: keys in order; key -> (English, Chinese).
    """
    figure, axes = panels(1, 1 + len(classes), 2.3, sharex=True, sharey=True)
    for ax, panel in zip(axes[0], ["top label", *classes]):
        ax.plot([0, 1], [0, 1], **DIAGONAL)
        for label, bins, ink in (("before", before[panel], GREY), ("after", after[panel], BLUE)):
            error = [(bins["observed"] - bins["low"]).clip(0), (bins["high"] - bins["observed"]).clip(0)]
            ax.errorbar(bins["stated"], bins["observed"], error, color=ink, fmt="-o", ms=3, lw=1, label=label)
        ax.set_title(heading(names, panel), fontsize=8)
        ax.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), xlabel="stated")
        ax.set_xticks(**HALVES)
    axes[0, 0].set_ylabel("observed frequency")
    axes[0, 0].legend(fontsize=7, loc="upper left", handlelength=1)
    return told(figure, "reliability", metrics=metrics)


def decision_curves(metrics: dict, classes: list[str], names: dict) -> Figure:
    """Net benefit of acting on each lesion type's probability, against acting on all and on none.

    Args:
        metrics: of ``evaluation.evaluate``.
        classes, names: keys in order; key -> (English, Chinese).
    """
    figure, axes = panels(1, len(classes), 2.5)
    better = {}
    for position, (ax, key) in enumerate(zip(axes[0], classes)):
        prefix = f"net_benefit/{key}/"
        places = sorted(k for k in metrics if k.startswith(prefix) and not k.endswith("/all"))
        x = [float(place.removeprefix(prefix)) for place in places]
        everyone = pd.Series([metrics[place + "/all"] for place in places], x)
        known = band(ax, x, [metrics[place] for place in places], colour(key, position))
        ax.plot(everyone, color=MUTED, lw=1, ls="--")
        ax.axhline(0, color=MUTED, lw=0.8)
        top = max([*everyone, *known["value"], 0.05])
        surely = known.index[known["low"] > everyone[known.index].clip(0)]
        better[english(names, key)] = None if known.empty else surely
        ax.set(ylim=(-0.6 * top, 1.15 * top), xlim=(0, 1), xlabel="threshold probability")
        ax.set_xticks(**HALVES)
        ax.set_title(heading(names, key), fontsize=8)
    axes[0, 0].set_ylabel("net benefit")
    lines = Line2D([], [], color=INK), Line2D([], [], color=MUTED, lw=1, ls="--")
    figure.legend(lines, ["act on the classifier", "act on all"], loc="outside lower center", ncols=2)
    return told(figure, "decision", better=better)


def forest(rows: list[tuple], *, label: str, title: str, reference: float | None = None) -> Figure:
    """Forest plot: one line per (group, name, metric), "too few" where there is no number.

    Args:
        rows: (group heading, name, {"value", "low", "high", "n_images", "n_patients"}).
        label: of the horizontal axis.
        reference: a vertical line, such as 0 for differences or the whole sample's value.
        title: of the figure, also the first words of the alt text.
    """
    lines = []
    for group, members in groupby(rows, itemgetter(0)):
        lines += [(group, None)] if group else []
        lines += [(textwrap.fill(name, 34), metric) for _, name, metric in members]
    height = 0.7 + sum(0.21 * (1 + name.count("\n")) for name, _ in lines)
    figure, ((ax,),) = panels(1, 1, height)
    style.forest_rows(ax, lines, label, reference, "{said}   {n_images} / {n_patients}")
    ax.set_title(title)
    ax.text(1.01, 1, "images / patients", transform=ax.transAxes, fontsize=7, color=MUTED, va="bottom")
    return told(figure, "forest", title=title, rows=rows)


def referral(results: dict[str, dict]) -> Figure:
    """Accuracy on the images kept when the least certain fraction is referred to a human.

    Args:
        results: name of a set -> result of ``selective.referral``.
    """
    figure, ((ax,),) = panels(1, 1, 3, 0.75 * WIDTH)
    known = {}
    for (name, metrics), ink, marker in zip(results.items(), CYCLE, "os^" * 3):
        kept = {key.partition("/")[2]: metrics[key] for key in metrics if key.startswith("accuracy/")}
        known[name] = band(ax, map(float, kept), [*kept.values()], ink, name, marker=marker)
    ax.set(xlabel="fraction referred to a human", ylabel="accuracy on the rest")
    ax.set(xlim=(0, 0.82), ylim=(0, 1.02))
    ax.legend(loc="lower right")
    return told(figure, "referral", curves=known)


def robustness(results: dict[str, dict]) -> Figure:
    """How the macro AUROC falls as the images get worse, one panel per kind of change.

    Args:
        results: kind -> {strength as text: {"macro_auroc": {"value", "low", "high"}}}, of ``robustness.curves``.
    """
    rows = -(-len(results) // 4)
    figure, axes = panels(rows, 4, 1.75 * rows + 0.2, sharey=True)
    drawn = {}
    for ax, (kind, levels) in zip(axes.flat, results.items()):
        known = drawn[kind] = band(ax, levels, [m["macro_auroc"] for m in levels.values()], BLUE, marker="o")
        if known.empty:
            ax.set_xticks([])
        else:
            ax.axhline(known["value"].iloc[0], **DIAGONAL)
        ax.tick_params(axis="x", labelsize=7)
        ax.set_title(kind, fontsize=8)
    plt.setp(axes.flat[len(results) :], visible=False)
    plt.setp(axes[:, 0], ylabel="macro AUROC")
    return told(figure, "robustness", curves=drawn)


def flow(chains: list[list[tuple[str, list[str]]]]) -> Figure:
    """Flow diagram in the manner of STARD: boxes from files to analysis, what left at each step beside it.

    Args:
        chains: one chain per source; each a list of (text of the box, texts of what was left out after it).
    """
    figure, ((ax,),) = panels(1, 1, 1)
    gap, y = 0.42, 0.5
    for chain in chains:
        y -= 0.5
        for place, (text, left) in enumerate(chain):
            y -= gap * (place > 0)
            inside = "\n".join(textwrap.fill(line, 52) for line in text.split("\n"))
            beside = "\n".join(textwrap.fill(line, 52) for line in left)
            height = max(0.9, 0.34 * max(inside.count("\n") + 1, beside.count("\n") + 2))
            middle = y - height / 2
            style.box(ax, 2.3, middle, 4.4, height, inside, "#EEF4FA", BLUE)
            if place:
                style.arrow(ax, (2.3, y + gap), (2.3, y))
            if left:
                style.box(ax, 7.4, middle, 4.4, height, beside)
                style.arrow(ax, (4.5, middle), (5.2, middle))
            y -= height
    figure.set_figheight(0.2 - 0.72 * y)
    style.sheet(ax, (0, 9.75), (y - 0.1, 0.1))
    return told(figure, "study_flow", chains=chains)
