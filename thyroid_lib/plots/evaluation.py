"""Figures of the evaluation: each takes results, returns a Figure and says its numbers in ``figure.alt``."""

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

from thyroid_lib.common.messages import english, say
from thyroid_lib.plots.style import CYCLE, GRID, INK, MUTED, SEQUENTIAL, WIDTH, colour

PAPER = {"facecolor": "white", "edgecolor": "none", "pad": 1}  # under words that stand on lines
METRIC_NAMES = {
    "macro_auroc": "macro AUROC",
    "balanced_accuracy": "balanced accuracy",
    "brier": "Brier score",
    "accuracy": "accuracy",
}


def roc_and_precision_recall(curves: dict, metrics: dict, names: dict) -> Figure:
    """ROC and precision-recall curves per lesion type, each against the rest, with 95 % bands.

    Args:
        curves: of ``comparison.curves``.
        metrics: of ``evaluation.evaluate``.
        names: class key -> (English, Chinese).
    """
    figure, (left, right) = plt.subplots(1, 2, figsize=(WIDTH, 3.5), layout="constrained")
    said = []
    for position, (key, curve) in enumerate(curves.items()):
        ink, x = colour(key, position), curve["x"]
        auroc, precision = metrics[f"auroc/{key}"], metrics[f"average_precision/{key}"]
        for ax, name, label in (
            (left, "sensitivity", f"{english(names, key)}, {say(auroc)}"),
            (right, "precision", f"{english(names, key)}, {say(precision)}"),
        ):
            ax.fill_between(x, curve[f"{name}_low"], curve[f"{name}_high"], color=ink, alpha=0.13, lw=0)
            ax.plot(x, curve[name], color=ink, lw=1.6, label=label)
        right.axhline(curve["prevalence"], color=ink, lw=0.7, ls=":")
        said.append(f"{english(names, key)}: AUROC {say(auroc)}, average precision {say(precision)}")
    left.plot([0, 1], [0, 1], color=MUTED, lw=0.7, ls=":")
    left.set(xlabel="1 − specificity", ylabel="sensitivity", title="ROC (AUROC, 95 % interval)")
    right.set(
        xlabel="sensitivity (recall)", ylabel="precision (PPV)", title="Precision-recall (average precision)"
    )
    for ax in (left, right):
        ax.set(xlim=(-0.01, 1.01), ylim=(-0.01, 1.02))
        if ax.get_legend_handles_labels()[0]:
            ax.legend(loc="upper center", bbox_to_anchor=(0.5, -0.18), ncols=1)
    figure.alt = "ROC and precision-recall curves, one class against the rest. " + "; ".join(said) + "."
    return figure


def confusion(metrics: dict, classes: list[str], names: dict) -> Figure:
    """Confusion matrix: counts of images, coloured by share of the row.

    Args:
        metrics: of ``evaluation.evaluate``.
        classes: keys in order.
        names: class key -> (English, Chinese).
    """
    counts = np.array([[metrics[f"confusion/{t}/{p}"] for p in classes] for t in classes])
    share = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    figure, ax = plt.subplots(figsize=(0.72 * WIDTH, 0.6 * WIDTH), layout="constrained")
    image = ax.imshow(share, cmap=SEQUENTIAL, vmin=0, vmax=1)
    for i, j in np.ndindex(counts.shape):
        ink = "white" if share[i, j] < 0.55 else INK
        ax.text(j, i, f"{counts[i, j]}\n{share[i, j]:.0%}", ha="center", va="center", color=ink, fontsize=8)
    labels = [english(names, key).replace(" ", "\n") for key in classes]
    ax.set_xticks(range(len(classes)), labels)
    ax.set_yticks(range(len(classes)), labels)
    ax.spines[:].set_visible(False)
    ax.set(xlabel="predicted (highest probability)", ylabel="reference standard")
    figure.colorbar(image, ax=ax, label="share of the row", shrink=0.8)
    said = [
        f"of {counts[i].sum()} images with {english(names, key)}, {counts[i, i]} ({share[i, i]:.0%}) were right"
        for i, key in enumerate(classes)
    ]
    figure.alt = "Confusion matrix: " + "; ".join(said) + "."
    return figure


def reliability(before: dict, after: dict, metrics: dict, classes: list[str], names: dict) -> Figure:
    """Reliability before and after temperature: the top label, then each lesion type.

    Args:
        before, after: of ``comparison.reliability`` with "raw_" and with "p_".
        metrics: of ``evaluation.evaluate``.
        classes, names: keys in order; key -> (English, Chinese).
    """
    panels = ["top label", *classes]
    figure, axes = plt.subplots(
        1, len(panels), figsize=(WIDTH, 2.3), layout="constrained", sharex=True, sharey=True, squeeze=False
    )
    for ax, panel in zip(axes[0], panels):
        ax.plot([0, 1], [0, 1], color=MUTED, lw=0.7, ls=":")
        for label, bins, ink, marker in (("before", before, CYCLE[6], "s"), ("after", after, CYCLE[0], "o")):
            frame = bins[panel]
            error = [(frame["observed"] - frame["low"]).clip(0), (frame["high"] - frame["observed"]).clip(0)]
            ax.errorbar(
                frame["stated"],
                frame["observed"],
                yerr=error,
                color=ink,
                marker=marker,
                ms=3,
                lw=1,
                label=label,
            )
        ax.set_title(english(names, panel).replace(" ", "\n"), fontsize=8)
        ax.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), xlabel="stated")
        ax.set_xticks([0, 0.5, 1], ["0", "0.5", "1"])  # short: the panels stand close together
    axes[0, 0].set_ylabel("observed frequency")
    axes[0, 0].legend(fontsize=7, loc="upper left", handlelength=1)
    figure.alt = (
        "Observed frequency against stated probability. Top-label calibration error "
        f"{say(metrics['raw/ece_top_label'], 3)} before temperature scaling and {say(metrics['ece_top_label'], 3)} "
        f"after; classwise {say(metrics['raw/ece_classwise'], 3)} and {say(metrics['ece_classwise'], 3)}; Brier score "
        f"{say(metrics['raw/brier'], 3)} and {say(metrics['brier'], 3)}."
    )
    return figure


def decision_curves(metrics: dict, classes: list[str], names: dict) -> Figure:
    """Net benefit of acting on each lesion type's probability, against acting on all and on none.

    Args:
        metrics: of ``evaluation.evaluate``.
        classes, names: keys in order; key -> (English, Chinese).
    """
    figure, axes = plt.subplots(1, len(classes), figsize=(WIDTH, 2.5), layout="constrained", squeeze=False)
    said = []
    for position, (ax, key) in enumerate(zip(axes[0], classes)):
        prefix = f"net_benefit/{key}/"
        places = sorted(k for k in metrics if k.startswith(prefix) and not k.endswith("/all"))
        x = np.array([float(place.rpartition("/")[2]) for place in places])
        known = [place for place in places if metrics[place]["value"] is not None]
        everyone = np.array([metrics[place + "/all"] for place in places])
        ax.axhline(0, color=MUTED, lw=0.8)
        ax.plot(x, everyone, color=MUTED, lw=1, ls="--")
        top = max(float(everyone.max()), 0.05)
        if known:
            value, low, high = (
                np.array([metrics[place][n] for place in known]) for n in ("value", "low", "high")
            )
            at = np.array([float(place.rpartition("/")[2]) for place in known])
            ax.fill_between(at, low, high, color=colour(key, position), alpha=0.18, lw=0)
            ax.plot(at, value, color=colour(key, position), lw=1.6)
            top = max(top, float(value.max()))
            better = at[low > np.maximum(0, np.interp(at, x, everyone))]
            where = f"from {better.min():.2f} to {better.max():.2f}" if len(better) else "nowhere"
            said.append(f"{english(names, key)}: surely better than acting on all or none {where}")
        else:
            ax.text(
                0.5, 0.5, "too few patients", transform=ax.transAxes, ha="center", color=MUTED, bbox=PAPER
            )
            said.append(f"{english(names, key)}: too few patients")
        ax.set(ylim=(-0.6 * top, 1.15 * top), xlim=(0, 1), xlabel="threshold probability")
        ax.set_xticks([0, 0.5, 1], ["0", "0.5", "1"])
        ax.set_title(english(names, key).replace(" ", "\n"), fontsize=8)
    axes[0, 0].set_ylabel("net benefit")
    lines = [Line2D([], [], color=INK, lw=1.6), Line2D([], [], color=MUTED, lw=1, ls="--")]
    figure.legend(
        lines, ["act on the classifier", "act on all"], loc="outside lower center", ncols=2, fontsize=7
    )
    figure.alt = "Decision curves with 95 % bands; zero is acting on none. " + "; ".join(said) + "."
    return figure


def forest(
    rows: list[tuple[str, str, dict]], *, label: str, reference: float | None = None, title: str = ""
) -> Figure:
    """Forest plot: one line per (group, name, metric), "too few" where there is no number.

    Args:
        rows: (group heading, name, {"value", "low", "high", "n_images", "n_patients"}).
        label: of the horizontal axis.
        reference: a vertical line, such as 0 for differences or the whole sample's value.
        title: of the figure, also the first words of the alt text.
    """
    lines, previous = [], None
    for group, name, metric in rows:
        if group and group != previous:
            lines.append((group, None))
        previous = group
        lines.append((name, metric))
    figure, ax = plt.subplots(figsize=(WIDTH, 0.7 + 0.21 * len(lines)), layout="constrained")
    for y, (_, metric) in enumerate(lines):
        if metric is None:
            continue
        if metric["value"] is None:
            ax.text(0.02, y, metric.get("reason", "too few"), transform=ax.get_yaxis_transform(), va="center",
                    color=MUTED, fontsize=7, bbox=PAPER)  # fmt: skip
        else:
            ax.plot([metric["low"], metric["high"]], [y, y], color=CYCLE[0], lw=1.4)
            ax.plot(metric["value"], y, "o", color=CYCLE[0], ms=4)
        text = f"{say(metric)}   {metric['n_images']} / {metric['n_patients']}"
        ax.text(1.01, y, text, transform=ax.get_yaxis_transform(), va="center", fontsize=7)
    if reference is not None:
        ax.axvline(reference, color=MUTED, lw=0.8, ls=":")
    ax.set_yticks(range(len(lines)), [name for name, _ in lines])
    for tick, (_, metric) in zip(ax.get_yticklabels(), lines):
        tick.set(fontweight="bold" if metric is None else "normal", color=INK, fontsize=7.5)
    ax.tick_params(axis="y", length=0)
    ax.set(ylim=(len(lines) - 0.4, -0.6), xlabel=label)
    ax.grid(axis="x", color=GRID, lw=0.6)
    ax.set_title(title)
    ax.annotate(
        "images / patients", (1.01, 1.0), xycoords="axes fraction", fontsize=7, color=MUTED, va="bottom"
    )
    said = [f"{group + ', ' if group else ''}{name}: {say(metric)}" for group, name, metric in rows]
    figure.alt = f"{title or label} with 95 % intervals. " + "; ".join(said) + "."
    return figure


def referral(results: dict[str, dict]) -> Figure:
    """Accuracy on the images kept when the least certain fraction is referred to a human.

    Args:
        results: name of a set -> result of ``selective.referral``.
    """
    figure, ax = plt.subplots(figsize=(0.75 * WIDTH, 3.0), layout="constrained")
    said = []
    for position, (name, metrics) in enumerate(results.items()):
        known = [k for k in metrics if k.startswith("accuracy/") and metrics[k]["value"] is not None]
        if not known:
            said.append(f"{name}: too few patients")
            continue
        x = [float(k.partition("/")[2]) for k in known]
        value, low, high = ([metrics[k][n] for k in known] for n in ("value", "low", "high"))
        ax.fill_between(x, low, high, color=CYCLE[position], alpha=0.15, lw=0)
        ax.plot(x, value, color=CYCLE[position], marker="os^"[position % 3], ms=3.5, lw=1.4, label=name)
        said.append(
            f"{name}: accuracy {say(metrics[known[0]])} with none referred and {say(metrics[known[-1]])} with "
            f"{x[-1]:.0%} referred"
        )
    ax.set(
        xlabel="fraction referred to a human", ylabel="accuracy on the rest", xlim=(0, 0.82), ylim=(0, 1.02)
    )
    if ax.get_legend_handles_labels()[0]:
        ax.legend(loc="lower right")
    figure.alt = "Accuracy when the least certain images are referred. " + "; ".join(said) + "."
    return figure


def robustness(results: dict[str, dict], *, metric: str = "macro_auroc") -> Figure:
    """How the score falls as the images get worse, one panel per kind of change.

    Args:
        results: kind -> {strength as text: {metric: {"value", "low", "high"}}}, of ``audit.robustness``.
        metric: which score to draw.
    """
    columns = 4
    rows = -(-len(results) // columns)
    figure, axes = plt.subplots(
        rows, columns, figsize=(WIDTH, 1.75 * rows + 0.2), layout="constrained", sharey=True, squeeze=False
    )
    said = []
    for ax, (kind, levels) in zip(axes.flat, results.items()):
        known = [
            (name, level[metric]) for name, level in levels.items() if level[metric]["value"] is not None
        ]
        x = np.arange(len(known))
        if known:
            value, low, high = (np.array([m[n] for _, m in known]) for n in ("value", "low", "high"))
            ax.fill_between(x, low, high, color=CYCLE[0], alpha=0.15, lw=0)
            ax.plot(x, value, color=CYCLE[0], marker="o", ms=3.5, lw=1.4)
            ax.axhline(value[0], color=MUTED, lw=0.7, ls=":")
            said.append(f"{kind} {known[-1][0]}: {say(known[0][1])} falls to {say(known[-1][1])}")
        else:
            ax.text(0.5, 0.5, "too few patients", transform=ax.transAxes, ha="center", color=MUTED)
            said.append(f"{kind}: too few patients")
        ax.set_xticks(x, [name for name, _ in known], fontsize=7)
        ax.set_title(kind, fontsize=8)
    for ax in axes.flat[len(results) :]:
        ax.set_visible(False)
    for ax in axes[:, 0]:
        ax.set_ylabel(METRIC_NAMES.get(metric, metric))
    figure.alt = f"{METRIC_NAMES.get(metric, metric)} on changed images. " + "; ".join(said) + "."
    return figure


def flow(chains: list[list[tuple[str, list[str]]]]) -> Figure:
    """Flow diagram in the manner of STARD: boxes from files to analysis, what left at each step beside it.

    Args:
        chains: one chain per source; each a list of (text of the box, texts of what was left out after it).
    """
    gap, wide = 0.42, 4.4
    heights = [
        [max(0.9, 0.34 * max(text.count("\n") + 1, len(left) + 1)) for text, left in c] for c in chains
    ]
    total = sum(map(sum, heights)) + gap * sum(len(c) - 1 for c in chains) + 0.5 * (len(chains) - 1)
    figure, ax = plt.subplots(figsize=(WIDTH, 0.72 * total + 0.2), layout="constrained")
    arrow = {"arrowstyle": "-|>", "mutation_scale": 9, "color": MUTED, "lw": 1}
    y, said = total, []
    for chain, tall in zip(chains, heights):
        above = None
        for (text, left), height in zip(chain, tall):
            for x, words, edge, face, anchor in (
                (0.1, text, CYCLE[0], "#EEF4FA", "center"),
                (5.2, "\n".join(left), MUTED, "white", "left"),
            ):
                if not words:
                    continue
                style = "round,pad=0.02,rounding_size=0.06"
                ax.add_patch(
                    FancyBboxPatch(
                        (x, y - height), wide, height, boxstyle=style, edgecolor=edge, facecolor=face
                    )
                )
                at = x + wide / 2 if anchor == "center" else x + 0.1
                ax.text(at, y - height / 2, words, ha=anchor, va="center", fontsize=7.5)
            if above is not None:
                ax.add_patch(FancyArrowPatch((2.3, above), (2.3, y), **arrow))
            if left:
                ax.add_patch(FancyArrowPatch((4.55, y - height / 2), (5.15, y - height / 2), **arrow))
            above, y = y - height, y - height - gap
            said.append(text.replace("\n", ", ") + (f" (left out: {'; '.join(left)})" if left else ""))
        y += gap - 0.5
    ax.set(xlim=(0, 9.75), ylim=(y + 0.4, total + 0.1))
    ax.axis("off")
    figure.alt = "Flow of patients and images: " + " → ".join(said) + "."
    return figure
