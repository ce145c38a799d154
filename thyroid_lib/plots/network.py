"""Figures of the network: diagrams, what its down-sampling reads, how its maps hang together, what it costs."""

from collections.abc import Mapping

import numpy as np
import pandas as pd
import seaborn
import yaml
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure

from thyroid_lib.common.templates import TEMPLATES
from thyroid_lib.plots.style import BLUE, GRID, MUTED, RED, SEQUENTIAL, WIDTH, arrow, box, panels, sheet, told

LOOKS = {"plain": ("#E8EEF5",), "new": ("#FBE3B5", "#B87700"), "ours": ("white", MUTED, "--")}


def _draw(ax, diagram: str, shapes: Mapping | None = None) -> None:
    """Draws one part of templates/plots/diagrams.yaml; `shapes`: name of a map -> (channels, height, width)."""
    parts = yaml.safe_load((TEMPLATES / "plots" / "diagrams.yaml").read_text(encoding="utf-8"))[diagram]
    for x, y, width, height, words, look in ((*row, "plain")[:6] for row in parts["boxes"]):
        box(ax, x, y, width, height, words, *LOOKS[look])
    for points in parts["arrows"]:
        arrow(ax, *points)
    for x, y, words, name in parts["shapes"]:
        shape = "×".join(map(str, shapes[name]))
        ax.text(x, y, f"{words}\n{shape}", ha="center", va="center", fontsize=6.8, color=MUTED)


def architectures(original: Mapping, optimized: Mapping, config: Mapping) -> Figure:
    """Diagram of the original and the optimized network with the shape of every map.

    Args:
        original, optimized: name -> (channels, height, width), as `inspection.map_shapes` gives them.
        config: of the optimized network; it says which connections to draw.

    Returns:
        Figure with the original above and the optimized network below; what is new is in yellow.
    """
    figure, ((top,), (bottom,)) = panels(2, 1, 4.7, height_ratios=(1, 2.9))
    sheet(top, (-1, 101), (-11, 7), "Original (Xception)")
    _draw(top, "original", original)
    sheet(bottom, (-1, 101), (-28, 24), "Optimized (the invention's; what is new in yellow)")
    for diagram in ("optimized", config["second_connection"], config["fusion"]):
        _draw(bottom, diagram, optimized)
    return told(figure, "architectures", shapes=optimized)


def blocks(config: Mapping) -> Figure:
    """Diagram of one down-sampling block, original and optimized (claim C2).

    Args:
        config: of the optimized network, whose down-sampling is drawn on the right.
    """
    figure, ((left, right),) = panels(1, 2, 3.5)
    norm = ", BatchNorm" * config["downsampling_norm"]
    words = f"{config['downsampling']} dilated 3×3,\nstride 2, dilation {config['dilation']}{norm}"
    for ax, title in ((left, "Original"), (right, "Optimized")):
        sheet(ax, (0, 100), (-3, 103), title)
        _draw(ax, "block")
    _draw(left, "max_pooling")
    box(right, 38, 19, 70, 11, words, *LOOKS["new"])
    return told(figure, "blocks", words=words)


def coverage(maps: Mapping[str, np.ndarray]) -> Figure:
    """How many outputs send a gradient to each input pixel of a down-sampling.

    Args:
        maps: title -> int (n, n), as `probes.gradient_coverage` gives it.

    Returns:
        Figure, one panel each; pixels that get none are crossed out.
    """
    figure, axes = panels(1, len(maps), 2.6)
    most = max(counts.max() for counts in maps.values())
    look = {"cmap": SEQUENTIAL, "cbar": False, "square": True, "xticklabels": 5, "yticklabels": 5}
    read = {title: f"{(counts > 0).mean():.0%} of the pixels" for title, counts in maps.items()}
    for ax, (title, counts) in zip(axes[0], maps.items()):
        seaborn.heatmap(counts, mask=counts == 0, vmin=1, vmax=most, ax=ax, **look)
        rows, columns = np.nonzero(counts == 0)
        ax.scatter(columns + 0.5, rows + 0.5, marker="x", s=9, linewidths=0.7, color=RED)
        ax.set_title(f"{title}\n{read[title]}", fontsize=8.5)
        ax.set(xlabel="column, px", ylabel="row, px")
    figure.colorbar(ax.collections[0], ax=axes[0].tolist(), shrink=0.75, label="outputs that read it")
    return told(figure, "coverage", read=read)


def wiring(table: pd.DataFrame) -> Figure:
    """Which maps change when one is disturbed (claims C4, C5).

    Args:
        table: bool, rows the disturbed maps, columns all maps, as `probes.wiring` gives it.
    """
    figure, ((ax,),) = panels(1, 1, 0.42 * len(table) + 1, 0.75 * WIDTH)
    words, tints = np.where(table, "changes", "same"), ListedColormap(["white", BLUE])
    look = {"cmap": tints, "vmin": 0, "vmax": 1, "linewidths": 1, "linecolor": GRID, "cbar": False}
    seaborn.heatmap(table.astype(int), annot=words, fmt="", ax=ax, **look)
    ax.tick_params(length=0, rotation=0)
    ax.xaxis.tick_top()
    ax.set(ylabel="disturbed", xlabel="")
    return told(figure, "wiring", table=table.astype(bool))


def costs(table: pd.DataFrame) -> Figure:
    """Parameters and multiplications of several networks.

    Args:
        table: columns variant, parameters, gmacs (10^9, one image), as `inspection.costs` gives it.
    """
    figure, ((left, right),) = panels(1, 2, 0.3 * len(table) + 0.8, sharey=True)
    table = table.assign(millions=table["parameters"] / 1e6)
    for ax, cost, label in ((left, "millions", "parameters, millions"), (right, "gmacs", "GMACs per image")):
        bars = ax.barh(table["variant"], table[cost], 0.65, color=[MUTED, *[BLUE] * (len(table) - 1)])
        ax.bar_label(bars, fmt=" %.2f", fontsize=8)
        ax.set(xlabel=label, xlim=(0, table[cost].max() * 1.18))
    left.invert_yaxis()
    return told(figure, "costs", table=table)
