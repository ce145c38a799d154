"""Figures of class activation maps and of their checks; the raw range stands beside every map."""

from textwrap import wrap

from matplotlib.figure import Figure

from thyroid_lib.plots import style
from thyroid_lib.plots.style import GREY, INK, RED, heading, panels, picture, told

BARS = {"energy": "the map", "share": "nodule's area share", "random/energy": "random map",
        "edges/energy": "edge detector", "centre/energy": "centre of the crop"}  # fmt: skip
NOT_DONE = {"value": None, "reason": "not done"}


def cam_gallery(images, masks, columns: dict, titles: list[str]) -> Figure:
    """Crops and their maps: one row per image, one column per method or stage.

    Args:
        images: uint8 (n, S, S).
        masks: (n, S, S), 0 outside the nodule, or None; its outline is drawn in white.
        columns: heading -> ``explanation.Cams`` of the n images.
        titles: n short texts, one per row.
    """
    rows = []
    for i, image in enumerate(images):
        shown = {"image": image, "outline": None if masks is None else masks[i], "tint": "white"}
        ranges = [f"{cams.low[i]:.2g}\nto {cams.high[i]:.2g}" for cams in columns.values()]
        maps = [{"heat": cams.maps[i], "below": below} for cams, below in zip(columns.values(), ranges)]
        rows.append([shown, *(shown | one for one in maps)])
    headings = [name.replace(".", "\n.") for name in columns]
    figure, axes = style.pictures(
        rows, ["", *headings], titles, height=min(1.75, style.WIDTH / len(rows[0])) + 0.14
    )
    for ax in axes[:, 0]:
        ax.yaxis.label.set(rotation=0, ha="right", va="center", fontsize=6.5)
    return told(figure, "cam_gallery", columns=columns, titles=titles)


def cam_checks(masks: dict, randomization: dict) -> Figure:
    """Left: energy inside the nodule against maps that know nothing. Right: what randomizing does to the map.

    Args:
        masks: of ``cam_checks.check_against_masks``; may be without numbers.
        randomization: of ``cam_checks.check_randomization``; may be empty.
    """
    figure, ((left, right),) = panels(1, 2, 2.9)
    inside = [(name, masks.get(key) or NOT_DONE) for key, name in BARS.items()]
    style.forest_rows(
        left, [inside[0], *((*row, GREY) for row in inside[1:])], "energy inside the nodule", None
    )
    left.set(title="Localization", xlim=(0, None))
    layers = [
        (name.replace("_", " "), randomization[f"correlation/{name}"])
        for name in randomization.get("order", [])
    ]
    style.forest_rows(right, [(*row, RED) for row in layers], "rank correlation with the trained map", 0)
    right.set(title="Weights randomized down to …", xlim=(-1, 1.05))
    return told(figure, "cam_checks", inside=inside, layers=layers)


def failures(images, cams, rows, classes: list[str], names: dict) -> Figure:
    """The most confident errors: crop, map of the predicted type, probabilities, and what is known of the case.

    Args:
        images: uint8 (n, S, S).
        cams: ``explanation.Cams`` for the predicted types.
        rows: n rows of predictions, with a column "predicted".
        classes, names: keys in order; key -> (English, Chinese).
    """
    figure, axes = panels(len(images), 3, 1.65 * len(images) + 0.1, width_ratios=[1, 1, 2.4])
    table = rows.to_dict("records")
    for i, row in enumerate(table):
        crop, heat, bars = axes[i]
        picture(crop, images[i])
        picture(heat, images[i], f"{cams.low[i]:.2g} to {cams.high[i]:.2g}", heat=cams.maps[i])
        style.probability_bars(bars, names, {key: row[f"p_{key}"] for key in classes})
        bars.get_yticklabels()[classes.index(row["truth"])].set(fontweight="bold", color=INK)
        known = [f"{c} {row[c]}" for c in ("age", "sex", "device", "dataset") if str(row.get(c, "")).strip()]
        words = "\n".join(wrap(f"{row['image']}  {', '.join(known)}", 58))
        bars.set_title(words, fontsize=6.5, fontweight="normal")
    return told(figure, "failures", rows=table, names=names)


def views(pictures: dict, truth: list[str], names: dict) -> Figure:
    """The same images as the readers of the shortcut audit see them: one row per image, one column per view.

    Args:
        pictures: view -> uint8 (n, S, S);  truth: n class keys;  names: class key -> (English, Chinese).
    """
    rows = [[{"image": image} for image in same] for same in zip(*pictures.values())]
    titles = [view.replace(", ", ",\n") for view in pictures]
    figure, _ = style.pictures(rows, titles, [heading(names, key) for key in truth])
    return told(figure, "views", pictures=pictures, truth=truth, names=names)
