"""Figures of training: augmentation, learning curves, what pre-training brought, models side by side."""

import os
from collections.abc import Callable, Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from thyroid_lib.plots.style import CYCLE, GRID, INK, MUTED, WIDTH

MODELS = {
    "finetuned": "pre-trained, fine-tuned",
    "scratch": "the same from scratch",
    "reference_texture": "logistic regression,\ntexture and shape of the true mask",
    "reference_signs": "reader of the drawn signs:\nthe ceiling",
}
_COLOURS = dict(zip(MODELS, (CYCLE[0], CYCLE[5], CYCLE[6], CYCLE[2])))


def augmentation(images: np.ndarray, changed: np.ndarray) -> Figure:
    """Crops and what augmentation makes of them.

    Args:
        images: uint8 (n, S, S). changed: uint8 (n, epochs, S, S), the same crops in successive epochs.
    """
    rows, columns = len(images), changed.shape[1] + 1
    figure, axes = plt.subplots(
        rows,
        columns,
        figsize=(WIDTH, WIDTH * rows / columns + 0.25),
        layout="constrained",
        squeeze=False,
    )
    for row in range(rows):
        for column, ax in enumerate(axes[row]):
            picture = images[row] if column == 0 else changed[row, column - 1]
            ax.imshow(picture, cmap="gray", vmin=0, vmax=255, interpolation="nearest")
            ax.set(xticks=[], yticks=[])
            ax.spines[:].set_visible(False)
            if row == 0:
                ax.set_title("the crop" if column == 0 else f"epoch {column}", fontsize=8)
    differing = float(np.abs(changed.astype(int) - images[:, None]).mean())
    figure.alt = (
        f"{rows} crops, each beside what augmentation made of it in {columns - 1} epochs: flipped, shifted, scaled, "
        f"brighter or darker, with other speckle or a shadow. Pixels differ by {differing:.0f} of 255 on average."
    )
    return figure


def learning_curves(histories: Mapping[str, pd.DataFrame], loss: str = "loss") -> Figure:
    """Loss and validation AUROC by epoch, the best epoch of each training marked.

    Args:
        histories: name -> `Fit.history`.
        loss: name of the loss for the axis.
    """
    figure, (left, right) = plt.subplots(1, 2, figsize=(WIDTH, 3.1), layout="constrained")
    said = []
    for position, (name, history) in enumerate(histories.items()):
        ink = CYCLE[position % len(CYCLE)]
        best = history[history["best"]].iloc[-1]
        left.plot(history["epoch"], history["train_loss"], color=ink, ls=":", lw=1.3)
        left.plot(history["epoch"], history["val_loss"], color=ink, lw=1.6)
        right.plot(history["epoch"], history["val_auroc"], color=ink, lw=1.6, label=name)
        for ax, column in ((left, "val_loss"), (right, "val_auroc")):
            ax.plot(
                best["epoch"], best[column], "o", color=ink, ms=6, mec="white", mew=1, clip_on=False, zorder=5
            )
        said.append(
            f"{name}: best epoch {int(best['epoch'])} of {len(history)}, validation AUROC {best['val_auroc']:.3f}, "
            f"validation loss {best['val_loss']:.3f}"
        )
    left.plot([], [], color=INK, ls=":", lw=1.3, label="training")
    left.plot([], [], color=INK, lw=1.6, label="validation")
    left.plot([], [], "o", color=INK, ms=5, label="best epoch")
    left.set(xlabel="epoch", ylabel=loss, title="Loss")
    right.axhline(0.5, color=MUTED, lw=0.8, ls=":")
    right.set(
        xlabel="epoch",
        ylabel="macro AUROC, validation",
        title="Ranking",
        ylim=(min(0.45, right.get_ylim()[0]), 1.01),
    )
    handles = left.get_legend_handles_labels()[0]
    if len(histories) > 1:
        handles += right.get_legend_handles_labels()[0]
    figure.legend(handles=handles, loc="outside lower center", ncols=3)  # beside the curves, never over them
    for ax in (left, right):
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
        ax.grid(axis="y", color=GRID, lw=0.6)
    figure.alt = "Learning curves. " + "; ".join(said) + "."
    return figure


def loss_parts(histories: Sequence[pd.DataFrame], focal_weight: float, gamma: float) -> Figure:
    """The mixed loss and its two parts by epoch, training and validation (C9); one line per fold.

    Args:
        histories: `Fit.history` of each fold.
        focal_weight: share of the focal loss. gamma: its focusing.
    """
    panels = (
        ("ce", "val_ce", "Cross-entropy"),
        ("focal", "val_focal", f"Focal loss, γ = {gamma:g}"),
        ("train_loss", "val_loss", f"Mixed, focal share {focal_weight:g}"),
    )
    figure, axes = plt.subplots(1, 3, figsize=(WIDTH, 2.8), layout="constrained")
    said = []
    for ax, (train, validation, title) in zip(axes, panels):
        for history in histories:
            ax.plot(history["epoch"], history[train], color=CYCLE[0], ls=":", lw=1.2)
            ax.plot(history["epoch"], history[validation], color=CYCLE[0], lw=1.5)
        ax.set(xlabel="epoch", ylim=(0, None))
        ax.set_title(title, fontsize=9)
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
        ax.grid(axis="y", color=GRID, lw=0.6)
        first = np.mean([history[train].iloc[0] for history in histories])
        last = np.mean([history[train].iloc[-1] for history in histories])
        said.append(
            f"{title.split(',')[0].lower()} falls from {first:.2f} to {last:.2f} on the training part"
        )
    axes[0].set_ylabel("nats per image")
    axes[0].plot([], [], color=CYCLE[0], ls=":", lw=1.2, label="training")
    axes[0].plot([], [], color=CYCLE[0], lw=1.5, label="validation")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=2)
    figure.alt = f"Losses by epoch, {len(histories)} fold(s): " + "; ".join(said) + "."
    return figure


def models(metrics: Mapping[str, Mapping[str, dict]], metric: str = "macro AUROC") -> Figure:
    """One metric of several models with 95 % intervals, a panel per set.

    Args:
        metrics: set -> model -> {"value", "low", "high", "n_images", "n_patients"}; a value of None (too few
            patients) leaves the row empty and says so.
        metric: for the axis.
    """
    names = [name for name in MODELS if any(name in of for of in metrics.values())]
    figure, axes = plt.subplots(
        1,
        len(metrics),
        figsize=(WIDTH, 0.55 * len(names) + 0.9),
        layout="constrained",
        squeeze=False,
        sharey=True,
    )
    said = []
    for ax, (place, of) in zip(axes[0], metrics.items()):
        for row, name in enumerate(names):
            found = of.get(name)
            if found is None:
                continue
            label = MODELS[name].replace("\n", " ")
            if found["value"] is None:
                ax.text(0.52, row, "too few patients", ha="left", va="center", color=MUTED, fontsize=8)
                said.append(f"{place}, {label}: too few patients")
                continue
            ax.plot(
                [found["low"], found["high"]],
                [row, row],
                color=_COLOURS[name],
                lw=2.2,
                solid_capstyle="round",
            )
            ax.plot(found["value"], row, "o", color=_COLOURS[name], ms=7, mec="white", mew=1)
            ax.text(found["value"], row - 0.3, f"{found['value']:.2f}", ha="center", va="center", fontsize=8)
            said.append(f"{place}, {label}: {found['value']:.2f} ({found['low']:.2f} to {found['high']:.2f})")
        images = max((of[name]["n_images"] for name in of), default=0)
        patients = max((of[name]["n_patients"] for name in of), default=0)
        ax.axvline(0.5, color=MUTED, lw=0.8, ls=":")
        ax.set(
            xlim=(0.2, 1.02),
            xlabel=f"{metric}, 95 % interval",
        )
        ax.set_title(f"{place}: {images} images, {patients} patients", fontsize=8.5)
        ax.grid(axis="x", color=GRID, lw=0.6)
    axes[0][0].set(
        yticks=range(len(names)), yticklabels=[MODELS[name] for name in names], ylim=(len(names) - 0.5, -0.6)
    )
    figure.alt = f"{metric} of each model. " + "; ".join(said) + "."
    return figure


def live_curve(title: str, loss: str = "loss") -> Callable[[pd.DataFrame], None] | None:
    """For `fit(on_epoch=...)`: learning curves that redraw in JupyterLab after each epoch, one line per training.

    Args:
        title: name of a training whose history brings none in its `attrs`.
        loss: name of the loss for the axis.

    Returns:
        None in a headless run, whose report gets the finished curves, and outside notebooks.
    """
    from IPython import get_ipython
    from IPython.display import display

    if "THYROID_STATUS" in os.environ or getattr(get_ipython(), "kernel", None) is None:
        return None
    shown, histories = None, {}

    def draw(history: pd.DataFrame) -> None:
        nonlocal shown
        histories[history.attrs.get("title", title)] = history
        figure = learning_curves(histories, loss)
        if shown is None:
            shown = display(figure, display_id=True)
        else:
            shown.update(figure)
        plt.close(figure)

    return draw
