"""Figures of training: augmentation, learning curves, what pre-training brought, models side by side."""

import os
from collections.abc import Callable, Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from thyroid_lib.common.templates import MODELS
from thyroid_lib.plots.evaluation import forest
from thyroid_lib.plots.style import CYCLE, INK, MUTED, panels, pictures, told


def augmentation(images: np.ndarray, changed: np.ndarray) -> Figure:
    """Crops and what augmentation makes of them.

    Args:
        images: uint8 (n, S, S). changed: uint8 (n, epochs, S, S), the same crops in successive epochs.
    """
    epochs = changed.shape[1]
    rows = [[{"image": shown} for shown in (image, *others)] for image, others in zip(images, changed)]
    figure, _ = pictures(rows, ("the crop", *(f"epoch {number + 1}" for number in range(epochs))))
    differing = np.abs(changed.astype(int) - images[:, None]).mean()
    return told(figure, "augmentation", images=images, epochs=epochs, differing=differing)


def learning_curves(histories: Mapping[str, pd.DataFrame], loss: str = "loss") -> Figure:
    """Loss and validation AUROC by epoch, the best epoch of each training marked.

    Args:
        histories: name -> `Fit.history`.
        loss: name of the loss for the axis.
    """
    parts = (("Loss", "train_loss", "val_loss"), ("Ranking", "", "val_auroc"))
    figure, left, right = _by_epoch(histories, parts, 3.1)
    left.set_ylabel(loss)
    right.axhline(0.5, color=MUTED, lw=0.8, ls=":")
    right.set(ylabel="macro AUROC, validation", ylim=(min(0.45, right.get_ylim()[0]), 1.01))
    return told(figure, "learning_curves", histories=histories)


def loss_parts(histories: Sequence[pd.DataFrame], focal_weight: float, gamma: float) -> Figure:
    """The mixed loss and its two parts by epoch, training and validation (C9); one line per fold.

    Args:
        histories: `Fit.history` of each fold.
        focal_weight: share of the focal loss. gamma: its focusing.
    """
    parts = (
        ("Cross-entropy", "ce", "val_ce"),
        (f"Focal loss, γ = {gamma:g}", "focal", "val_focal"),
        (f"Mixed, focal share {focal_weight:g}", "train_loss", "val_loss"),
    )
    named = {f"fold {number}": history for number, history in enumerate(histories, 1)}
    figure, *axes = _by_epoch(named, parts, 2.8)
    axes[0].set_ylabel("nats per image")
    plt.setp(axes, ylim=(0, None))
    falls = {}
    for title, train, _ in parts:
        falls[title.split(",")[0]] = np.mean([history[train].iloc[[0, -1]] for history in histories], axis=0)
    return told(figure, "loss_parts", count=len(histories), falls=falls)


def _by_epoch(histories: Mapping[str, pd.DataFrame], parts: Sequence[tuple], height: float) -> tuple:
    """A panel per part (title, column of training or "", column of validation); the figure and its axes."""
    figure, axes = panels(1, len(parts), height)
    dots = {"color": INK, "marker": "o", "mec": "white"}
    handles = [Line2D([], [], color=INK, ls=":", label="training"), Line2D([], [], color=INK, label="validation"),
               Line2D([], [], ls="", label="best epoch", **dots)]  # fmt: skip
    for ax, (title, train, validation) in zip(axes[0], parts):
        for position, (name, history) in enumerate(histories.items()):
            best = np.flatnonzero(history["best"])[-1:].tolist()
            line = dots | {"color": CYCLE[position % len(CYCLE)], "data": history, "clip_on": False}
            if train:
                ax.plot("epoch", train, ":", **line | {"marker": ""})
            lines = ax.plot("epoch", validation, label=name, markevery=best, **line)
            handles += lines if ax is axes[0, 0] and len(histories) > 1 else []
        ax.set_title(title, fontsize=9)
        ax.set_xlabel("epoch")
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
        ax.grid(axis="y")
    figure.legend(handles=handles, loc="outside lower center", ncols=3)  # beside the curves, never over them
    return figure, *axes[0]


def models(metrics: Mapping[str, Mapping[str, dict]]) -> Figure:
    """The macro AUROC of several models with 95 % intervals, set by set.

    Args:
        metrics: set -> model -> {"value", "low", "high", "n_images", "n_patients"}; a value of None (too few
            patients) leaves the row empty and says so.
    """
    rows = [
        (place, words, of[name])
        for place, of in metrics.items()
        for name, words in MODELS.items()
        if name in of
    ]
    return forest(rows, label="macro AUROC", reference=0.5, title="macro AUROC of each model")


def live_curve(title: str, loss: str = "loss") -> Callable[[pd.DataFrame], None] | None:
    """For `fit(on_epoch=...)`: learning curves that redraw in JupyterLab after each epoch, one line per training.

    Args:
        title: name of a training whose history brings none in its `attrs`.
        loss: name of the loss for the axis.

    Returns:
        None in a headless run, whose report gets the finished curves, and outside notebooks.
    """
    from IPython import get_ipython
    from IPython.display import DisplayHandle

    if "THYROID_STATUS" in os.environ or getattr(get_ipython(), "kernel", None) is None:
        return None
    handle, histories = DisplayHandle(), {}

    def draw(history: pd.DataFrame) -> None:
        show = handle.update if histories else handle.display
        histories[history.attrs.get("title", title)] = history
        show(figure := learning_curves(histories, loss))
        plt.close(figure)

    return draw
