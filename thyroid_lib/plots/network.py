"""Figures of the network: diagrams, what its down-sampling reads, how its maps hang together, what it costs."""

from collections.abc import Mapping

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.colors import ListedColormap
from matplotlib.patches import FancyBboxPatch

from thyroid_lib.plots.style import CYCLE, GRID, INK, MUTED, SEQUENTIAL, WIDTH

PLAIN, NEW, OURS = "#E8EEF5", "#FBE3B5", "#FFFFFF"
NEW_EDGE = "#B87700"


def architectures(original: Mapping, optimized: Mapping, config: Mapping):
    """Diagram of the original and the optimized network with the shape of every map.

    Args:
        original, optimized: name -> (channels, height, width), as `inspection.map_shapes` gives them.
        config: of the optimized network; it says which connections to draw.

    Returns:
        Figure with the original above and the optimized network below; what is new is in yellow.
    """
    fig, (top, bottom) = plt.subplots(
        2, 1, figsize=(WIDTH, 4.7), height_ratios=(1, 2.9), layout="constrained"
    )
    _draw_original(top, original)
    _draw_optimized(bottom, optimized, config)
    shapes = ", ".join(f"{name} {_shape(optimized[name])}" for name in optimized)
    fig.alt = (
        "Two networks drawn as boxes. Above, the original: entry flow with three max-poolings, middle flow, exit "
        "flow with one, fully connected layer. Below, the optimized one: dilated convolutions in their place, a "
        f"dense connection module on each side of the middle flow, fed by transition layers. Maps: {shapes}."
    )
    return fig


def _draw_original(ax, shapes):
    _canvas(ax, "Original (Xception)", (-11, 7))
    _box(ax, 2.5, 0, 5, 8, "x")
    _box(ax, 22, 0, 16, 9, "entry flow\n3 max-poolings")
    _box(ax, 49, 0, 14, 9, "middle flow")
    _box(ax, 75, 0, 16, 9, "exit flow\n1 max-pooling")
    _box(ax, 96, 0, 8, 9, "fully\nconn.")
    for start, end, name in ((5, 14, "x"), (30, 42, "F1"), (56, 67, "F2"), (83, 92, "features")):
        _arrow(ax, (start, 0), (end, 0))
        _label(ax, (start + end) / 2, -7.5, name, shapes[name])


def _draw_optimized(ax, shapes, config):
    _canvas(ax, "Optimized (the invention's; what is new in yellow)", (-28, 24))
    projected = config["fusion"] == "project"
    _box(ax, 2.5, 0, 5, 8, "x")
    _box(ax, 18, 0, 15, 11, "entry flow\n3 dilated\nconvolutions", NEW)
    _box(ax, 34.5, 0, 8, 11, "dense\nmod. 1", NEW)
    _box(ax, 52, 0, 10, 11, "middle\nflow")
    _box(ax, 66.5, 0, 8, 11, "dense\nmod. 2", NEW)
    _box(ax, 83.5, 0, 12, 11, "exit flow\n1 dilated\nconv.", NEW)
    _box(ax, 97, 0, 7, 9, "fully\nconn.")
    for start, end in ((5, 10.5), (25.5, 30.5), (38.5, 47), (57, 62.5), (70.5, 77.5), (89.5, 93.5)):
        _arrow(ax, (start, 0), (end, 0))
    if projected:
        for x, name in ((42.75, "P1"), (74, "P2")):
            _box(ax, x, 0, 3.6, 5.5, name, OURS, dashed=True)
    for x, name in ((27, "F1"), (45, "G1"), (59.75, "F2"), (74, "G2"), (92, "features")):
        _label(ax, x, -9.5, name, shapes[name])
    _label(ax, 3.5, -7.5, "x", shapes["x"])
    _elbow(ax, [(3, 4), (3, 16), (14, 16)], arrow=True)
    _box(ax, 18.5, 16, 9, 6, "T1", NEW)
    _elbow(ax, [(23, 16), (34.5, 16), (34.5, 5.5)], arrow=True)
    _label(ax, 29, 21, "T1(x)", shapes["T1"])
    if "T2" in shapes:
        _elbow(ax, [(39.7, 0), (39.7, -18.5), (48, -18.5)], arrow=True)
        _box(ax, 52.5, -18.5, 9, 6, "T2", NEW)
        _elbow(ax, [(57, -18.5), (66.5, -18.5), (66.5, -5.5)], arrow=True)
        _label(ax, 61.5, -23.5, "T2(G1)", shapes["T2"])
    else:
        _elbow(ax, [(27, 0), (27, 10.5), (64.5, 10.5), (64.5, 5.5)], arrow=True)
        _elbow(ax, [(34.5, 16), (68.5, 16), (68.5, 5.5)], arrow=True)
    if projected:
        ax.text(100, -27, "P1, P2: our projections", ha="right", fontsize=7, color=MUTED)


def blocks(config: Mapping):
    """Diagram of one down-sampling block, original and optimized (claim C2).

    Args:
        config: of the optimized network, whose down-sampling is drawn on the right.
    """
    fig, axes = plt.subplots(1, 2, figsize=(WIDTH, 3.5), layout="constrained")
    replaced = f"{config['downsampling']} dilated 3×3,\nstride 2, dilation {config['dilation']}"
    replaced += ", BatchNorm" if config["downsampling_norm"] else ""
    for ax, title, last in (
        (axes[0], "Original", "max-pooling 3×3,\nstride 2"),
        (axes[1], "Optimized", replaced),
    ):
        ax.set(xlim=(0, 100), ylim=(-3, 103))
        ax.axis("off")
        ax.set_title(title, fontsize=9)
        layers = ["ReLU", "separable 3×3, BatchNorm", "ReLU", "separable 3×3, BatchNorm", last]
        for i, text in enumerate(layers):
            y = 87 - 17 * i
            _box(ax, 38, y, 70, 11, text, NEW if i == 4 else PLAIN)
            _arrow(ax, (38, y + 11), (38, y + 5.5))
        _box(ax, 88, 53, 24, 24, "shortcut:\n1×1, stride 2,\nBatchNorm")
        _elbow(ax, [(38, 99), (88, 99), (88, 65)], arrow=True)
        _elbow(ax, [(88, 41), (88, 2), (42, 2)], arrow=True)
        _arrow(ax, (38, 13.5), (38, 5))
        ax.text(38, 2, "+", ha="center", va="center", fontsize=12, fontweight="bold")
    said = replaced.replace("\n", " ")
    fig.alt = (
        "One block as a column of layers: ReLU, separable convolution, ReLU, separable convolution, then the "
        f"down-sampling, with a strided 1×1 shortcut beside it. Left, max-pooling; right, in its place, {said}."
    )
    return fig


def coverage(maps: Mapping[str, np.ndarray]):
    """How many outputs send a gradient to each input pixel of a down-sampling.

    Args:
        maps: title -> int (n, n), as `probes.gradient_coverage` gives it.

    Returns:
        Figure, one panel each; pixels that get none are crossed out.
    """
    fig, axes = plt.subplots(
        1, len(maps), figsize=(WIDTH, 2.6), layout="constrained", squeeze=False, sharey=True
    )
    top = max(m.max() for m in maps.values())
    said = []
    for ax, (title, counts) in zip(axes[0], maps.items()):
        image = ax.imshow(np.ma.masked_equal(counts, 0), cmap=SEQUENTIAL, vmin=1, vmax=top)
        rows, columns = np.nonzero(counts == 0)
        ax.scatter(columns, rows, marker="x", s=9, linewidths=0.7, color="#D55E00")
        read = (counts > 0).mean()
        ax.set_title(f"{title}\n{read:.0%} of the pixels", fontsize=8.5)
        ax.set(xlabel="column, px", xticks=range(0, len(counts), 5), yticks=range(0, len(counts), 5))
        said.append(f"{title}: {read:.0%} of the pixels get a gradient")
    axes[0, 0].set_ylabel("row, px")
    fig.colorbar(image, ax=axes[0].tolist(), shrink=0.75, label="outputs that read it")
    fig.alt = "Maps of input pixels, crossed out where none arrives. " + "; ".join(said) + "."
    return fig


def wiring(table: pd.DataFrame):
    """Which maps change when one is disturbed (claims C4, C5).

    Args:
        table: bool, rows the disturbed maps, columns all maps, as `probes.wiring` gives it.
    """
    fig, ax = plt.subplots(figsize=(WIDTH * 0.75, 0.42 * len(table) + 1.0), layout="constrained")
    changed = table.to_numpy(dtype=bool)
    ax.imshow(changed, cmap=ListedColormap(["white", CYCLE[0]]), vmin=0, vmax=1, aspect="auto")
    for row, column in np.ndindex(changed.shape):
        text, colour = ("changes", "white") if changed[row, column] else ("same", MUTED)
        ax.text(column, row, text, ha="center", va="center", fontsize=8, color=colour)
    ax.set_xticks(range(len(table.columns)), table.columns)
    ax.set_yticks(range(len(table)), table.index)
    ax.set_xticks(np.arange(0.5, len(table.columns) - 1), minor=True)
    ax.set_yticks(np.arange(0.5, len(table) - 1), minor=True)
    ax.grid(which="minor", color=GRID)
    ax.tick_params(which="both", length=0)
    ax.set_ylabel("disturbed")
    ax.xaxis.tick_top()
    ax.spines[:].set_visible(False)
    said = [f"{place}: {', '.join(table.columns[row])}" for place, row in zip(table.index, changed)]
    fig.alt = "Which maps change when one is disturbed. " + "; ".join(said) + "."
    return fig


def costs(table: pd.DataFrame):
    """Parameters and multiplications of several networks.

    Args:
        table: columns variant, parameters, gmacs (10^9, one image), as `inspection.costs` gives it.
    """
    fig, axes = plt.subplots(1, 2, figsize=(WIDTH, 0.3 * len(table) + 0.8), sharey=True, layout="constrained")
    y = np.arange(len(table))[::-1]
    columns = ((table["parameters"] / 1e6, "parameters, millions"), (table["gmacs"], "GMACs per image"))
    for ax, (values, label) in zip(axes, columns):
        ax.barh(y, values, height=0.65, color=[MUTED, *[CYCLE[0]] * (len(table) - 1)])
        for place, value in zip(y, values):
            ax.text(value, place, f" {value:.2f}", va="center", fontsize=8)
        ax.set(xlabel=label, xlim=(0, values.max() * 1.18))
    axes[0].set_yticks(y, table["variant"])
    said = [
        f"{row.variant}: {row.parameters / 1e6:.2f} million parameters, {row.gmacs:.2f} GMACs"
        for row in table.itertuples()
    ]
    fig.alt = "Bars. " + "; ".join(said) + "."
    return fig


def _canvas(ax, title, limits):
    ax.set(xlim=(-1, 101), ylim=limits)
    ax.set_title(title, fontsize=9)
    ax.axis("off")


def _box(ax, x, y, width, height, text, face=PLAIN, dashed=False):
    edge = NEW_EDGE if face == NEW else MUTED
    ax.add_patch(
        FancyBboxPatch(
            (x - width / 2, y - height / 2),
            width,
            height,
            boxstyle="round,pad=0,rounding_size=1",
            facecolor=face,
            edgecolor=edge,
            linestyle="--" if dashed else "-",
            linewidth=0.9,
            zorder=3,
        )
    )
    ax.text(x, y, text, ha="center", va="center", fontsize=7.5, color=INK, zorder=4)


def _label(ax, x, y, name, shape):
    ax.text(x, y, f"{name}\n{_shape(shape)}", ha="center", va="center", fontsize=6.8, color=MUTED)


def _shape(shape) -> str:
    return "×".join(map(str, shape))


def _arrow(ax, start, end):
    ax.annotate("", end, start, arrowprops={"arrowstyle": "-|>", "color": MUTED, "shrinkA": 0, "shrinkB": 0})


def _elbow(ax, points, arrow):
    """A line round corners; its last leg is an arrow."""
    x, y = zip(*points[:-1])
    ax.plot(x, y, color=MUTED, linewidth=1, solid_capstyle="butt")
    _arrow(ax, points[-2], points[-1])
