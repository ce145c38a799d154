"""Figures of notebook 07: one image, every step."""

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

from thyroid_lib.plots.style import MUTED, colour, panels, picture, pictures, probability_bars, told


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
    picture(
        changed, view.changed, "Unchanged" if np.array_equal(view.changed, answer.crop) else "Changed crop"
    )
    probability_bars(bars, names, answer.probabilities, view.after)
    bars.set_title("Probability: crop (full), changed (pale)", fontsize=8, fontweight="normal")
    return told(figure, "steps_to_answer", view=view, names=names)


def map_methods(crop: np.ndarray, maps: dict, layer: str, explained: str) -> Figure:
    """One crop, one map per method.

    Args:
        crop: uint8 (S, S).
        maps: method -> (heat float (S, S), low, high), as `explore.Explorer.maps` gives them.
        layer: where they were read. explained: name of the class.
    """
    shown = [{"image": crop, "title": "crop"}]
    for method, (heat, low, high) in maps.items():
        shown.append({"image": crop, "heat": heat, "title": f"{method}\n{low:.2g} to {high:.2g}"})
    return told(pictures([shown])[0], "map_methods", maps=maps, layer=layer, explained=explained)


def gain_curve(
    factors: Sequence[float], probabilities: np.ndarray, classes: list[str], names: dict
) -> Figure:
    """Probability of each class against the gain.

    Args:
        factors: n gain factors.
        probabilities: float (n, C).
        classes: C keys. names: class key -> (English, Chinese).
    """
    figure, ((ax,),) = panels(1, 1, 2.6)
    named = dict(zip([names[key][0] for key in classes], probabilities.T))
    for position, (key, (name, values)) in enumerate(zip(classes, named.items())):
        ax.plot(factors, values, "-o", ms=3, color=colour(key, position), label=name)
    ax.axvline(1, color=MUTED, lw=0.8, ls=":")
    ax.set(xlabel="gain (factor on the grey levels)", ylabel="probability", ylim=(0, 1))
    ax.legend(ncols=2)
    return told(figure, "gain_curve", factors=factors, named=named)
