"""What notebook 02 keeps and concludes: the variants it compares, the numbers of the run, the closing text."""

import pandas as pd

from thyroid_lib import network
from thyroid_lib.inspection import structure

OPTIMIZED = {"name": "optimized_xception"}
VARIANTS = {
    "original": {"name": "xception"},
    "dilated convolutions only": OPTIMIZED | {"dense_connections": False},
    "dense connections only": OPTIMIZED | {"downsampling": "max_pool"},
    "optimized (our choices)": OPTIMIZED,
    "… depthwise dilated": OPTIMIZED | {"downsampling": "depthwise"},
    "… dense dilated": OPTIMIZED | {"downsampling": "dense"},
    "… literal three-way": OPTIMIZED | {"second_connection": "three_way"},
    "… wider flows": OPTIMIZED | {"fusion": "widen"},
    "… T2 halves the size": OPTIMIZED | {"transition2_stride": 2},
}
"""Networks whose costs are compared: the original, each of the invention's parts alone, and other readings."""


def summary(
    original: network.Xception,
    optimized: network.Xception,
    costs: pd.DataFrame,
    unread: pd.DataFrame,
    identity_difference: float,
    reference: dict | None,
) -> dict:
    """The numbers of notebook 02 for `metrics.json`.

    Args:
        original, optimized: the two networks.
        costs: of `VARIANTS` at full width.
        unread: of `probes.unread_pixels` of the optimized network.
        identity_difference: largest absolute difference of the logits to the network without dense connections.
        reference: of `probes.difference_to_timm`, or None where it was left out.
    """
    numbers = {
        "parameters": {
            "original": structure.parameters(original),
            "optimized": structure.parameters(optimized),
        },
        "costs": {
            row.variant: {"parameters": row.parameters, "gmacs": row.gmacs} for row in costs.itertuples()
        },
        "unread_pixels": int(unread["unread"].sum()),
        "identity_difference": identity_difference,
    }
    return numbers | ({"timm": reference} if reference else {})


def findings(numbers: dict, size: int) -> str:
    """The closing text of notebook 02 in Markdown, from its numbers.

    Args:
        numbers: of `summary`.
        size: px, at which the costs were computed.
    """
    original, ours = numbers["costs"]["original"], numbers["costs"]["optimized (our choices)"]
    more = {key: ours[key] / original[key] - 1 for key in ours}
    lines = [
        "Claims C2 to C7 hold in this run, each by an assertion above: all four max-poolings are replaced, "
        "both dense connection modules stand where the text puts them and join what it says, two transition "
        "layers feed them, and the exit flow's map goes to the fully connected layer.",
        f"At full width, {size} px and four classes the optimized network has "
        f"{ours['parameters'] / 1e6:.2f} million parameters ({more['parameters']:+.0%} on the original's "
        f"{original['parameters'] / 1e6:.2f}) and needs {ours['gmacs']:.2f} GMACs per image "
        f"({more['gmacs']:+.0%} on {original['gmacs']:.2f}).",
        f"Pixels of the replaced poolings' inputs that get no gradient: {numbers['unread_pixels']}.",
        "Largest difference between the logits of the optimized network as it starts out and those of the "
        f"same network without dense connections: {numbers['identity_difference']:g}.",
    ]
    lines.append(comparison_text(numbers.get("timm")))
    lines.append("Whether any of this makes the classifier better is not shown here: notebook 06 tests it.")
    return "\n".join(f"- {line}" for line in lines)


def comparison_text(reference: dict | None) -> str:
    """What `probes.difference_to_timm` found, in a sentence."""
    if reference is None:
        return "The comparison with timm was left out of this run (`reference`)."
    return (
        f"With timm's own weights ({reference['entries']} entries, all loaded) the original, "
        f"{reference['parameters']:,} parameters with 1000 classes, gives timm's logits: largest difference "
        f"{reference['difference']:.1g} on logits up to {reference['largest_logit']:.2g}."
    )
