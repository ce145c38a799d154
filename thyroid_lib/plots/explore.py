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
    best = answer.lesion_type
    said = (
        f"{count} connected regions, the largest box {answer.box[2]} by {answer.box[3]} pixels",
        f"{names[best][0]} has the largest probability, {answer.probabilities[best]:.2f}, and {view.after[best]:.2f} "
        "after the change to the crop",
        f"the {choice.method} map for {names[choice.explain][0]} ranges from {view.low:.3g} to {view.high:.3g}",
    )
    return told(figure, "From the frame to the answer:", said)


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
    ranges = [f"{method} {low:.3g} to {high:.3g}" for method, (_, low, high) in maps.items()]
    opening = f"Maps for {explained} at {layer} by {len(maps)} methods; raw ranges:"
    return told(pictures([shown])[0], opening, ranges)


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
    said = []
    for position, (key, values) in enumerate(zip(classes, probabilities.T)):
        ax.plot(factors, values, "-o", ms=3, color=colour(key, position), label=names[key][0])
        said.append(f"{names[key][0]} {values.min():.2f} to {values.max():.2f}")
    ax.axvline(1, color=MUTED, lw=0.8, ls=":")
    ax.set(xlabel="gain (factor on the grey levels)", ylabel="probability", ylim=(0, 1))
    ax.legend(ncols=2)
    return told(figure, f"Probabilities at gains from {min(factors):g} to {max(factors):g}:", said)
