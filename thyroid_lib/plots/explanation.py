"""Figures of class activation maps, of their checks, and of one image's way to its answer; the raw range stands
beside every map."""

from textwrap import wrap

import numpy as np
from matplotlib.figure import Figure

from thyroid_lib.plots import style
from thyroid_lib.plots.style import BLUE, GREY, INK, RED, WIDTH, heading, panels, picture, pictures, told

BARS = {"energy": "the map", "share": "nodule's area share", "random/energy": "random map",
        "edges/energy": "edge detector", "centre/energy": "centre of the crop"}  # fmt: skip


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
        maps = [(c.maps[i], f"{c.low[i]:.2g}\nto {c.high[i]:.2g}") for c in columns.values()]
        rows.append([shown, *(shown | {"heat": heat, "below": below} for heat, below in maps)])
    headings, side = [name.replace(".", "\n.") for name in columns], min(1.75, WIDTH / len(rows[0]))
    figure, axes = pictures(rows, ["", *headings], titles, height=side + 0.14)
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
    inks, order = [BLUE, *[GREY] * 4], randomization.get("order", [])
    inside = [
        (name, masks.get(key, {"reason": "not done"}), ink) for (key, name), ink in zip(BARS.items(), inks)
    ]
    layers = [(name.replace("_", " "), randomization[f"correlation/{name}"], RED) for name in order]
    style.forest_rows(left, inside, "energy inside the nodule", None)
    left.set(title="Localization", xlim=(0, None))
    style.forest_rows(right, layers, "rank correlation with the trained map", 0)
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


def views(shown: dict, truth: list[str], names: dict) -> Figure:
    """The same images as the readers of the shortcut audit see them: one row per image, one column per view.

    Args:
        shown: view -> uint8 (n, S, S);  truth: n class keys;  names: class key -> (English, Chinese).
    """
    rows = [[{"image": image} for image in same] for same in zip(*shown.values())]
    titles = [view.replace(", ", ",\n") for view in shown]
    figure, _ = pictures(rows, titles, [heading(names, key) for key in truth])
    return told(figure, "views", views=shown, truth=truth, names=names)


def steps_to_answer(view, names: dict) -> Figure:
    """Frame, binary image, crop; the map, the changed crop, and the probabilities before and after.

    Args:
        view: `explore.View`.
        names: class key -> (English, Chinese).
    """
    answer, choice, count = view.answer, view.choice, len(view.found)
    figure, ((frame, binary, crop), (heat, changed, bars)) = panels(2, 3, 4.5, width_ratios=(1.25, 1, 1.25))
    picture(frame, view.frame, "Frame and largest region", box=answer.box, outline=view.mask)
    picture(binary, view.binary.astype(bool), f"Binarized: {count} region{'s' * (count != 1)}")
    picture(crop, answer.crop, f"Crop, {answer.crop.shape[0]} px")
    title = f"{choice.method}, {choice.layer}\nraw {view.low:.2g} to {view.high:.2g}"
    picture(heat, answer.crop, title, heat=view.heat)
    same = np.array_equal(view.changed, answer.crop)
    picture(changed, view.changed, "Unchanged" if same else "Changed crop")
    style.probability_bars(bars, names, answer.probabilities, view.after)
    bars.set_title("Probability: crop (full), changed (pale)", fontsize=8, fontweight="normal")
    return told(figure, "steps_to_answer", view=view, names=names)


def map_methods(crop: np.ndarray, maps: dict, layer: str, explained: str) -> Figure:
    """One crop, one map per method.

    Args:
        crop: uint8 (S, S).
        maps: method -> (heat float (S, S), low, high), as `explore.Explorer.heat` gives them.
        layer: where they were read. explained: name of the class.
    """
    shown = [{"image": crop, "title": "crop"}]
    for method, (heat, low, high) in maps.items():
        shown.append({"image": crop, "heat": heat, "title": f"{method}\n{low:.2g} to {high:.2g}"})
    return told(pictures([shown])[0], "map_methods", maps=maps, layer=layer, explained=explained)


def gain_curve(factors: list[float], probabilities, classes: list[str], names: dict) -> Figure:
    """Probability of each class against the gain.

    Args:
        factors: n gain factors.
        probabilities: float (n, C).
        classes: C keys. names: class key -> (English, Chinese).
    """
    figure, ((ax,),) = panels(1, 1, 2.6)
    named = dict(zip([names[key][0] for key in classes], probabilities.T))
    for position, (key, (name, values)) in enumerate(zip(classes, named.items())):
        ax.plot(factors, values, "-o", ms=3, color=style.colour(key, position), label=name)
    ax.axvline(1, color=style.MUTED, lw=0.8, ls=":")
    ax.set(xlabel="gain (factor on the grey levels)", ylabel="probability", ylim=(0, 1))
    ax.legend(ncols=2)
    return told(figure, "gain_curve", factors=factors, named=named)
