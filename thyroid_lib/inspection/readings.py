"""Points at which the invention's text can be read otherwise: our choice, its reason, the switch, its cost."""

from dataclasses import dataclass, field

import pandas as pd

from thyroid_lib.inspection import structure


@dataclass(frozen=True)
class Reading:
    """One open point.

    Attributes:
        claim: C1 to C15.
        question: what the text leaves open.
        choice: what the study does.
        reason: why.
        switch: name and values of the setting with which a reader can choose otherwise.
        otherwise: switches of `network.optimized_xception` that take the other reading; empty where it is
            not a matter of the network.
    """

    claim: str
    question: str
    choice: str
    reason: str
    switch: str
    otherwise: dict = field(default_factory=dict)


READINGS = (
    Reading(
        "C2",
        "What kind of dilated convolution replaces max-pooling?",
        "separable: depthwise, then pointwise",
        "all else in a fully grouped network is separable",
        "downsampling = separable | depthwise | dense",
        {"downsampling": "dense"},
    ),
    Reading(
        "C2",
        "With which dilation?",
        "3",
        "with stride 2, dilation 2 reads one pixel in four, 3 reads all",
        "dilation = 3 | 2 | …",
        {"dilation": 2},
    ),
    Reading(
        "C2",
        "Does a BatchNorm follow it?",
        "yes",
        "one follows every other convolution of the network",
        "downsampling_norm = True | False",
        {"downsampling_norm": False},
    ),
    Reading(
        "C5, C7",
        "How do x and F1 reach dense module 2: through T2, or one by one?",
        "through T2: G2 = cat[F2, T2(G1)]",
        "T2 starts at the middle flow's input G1, which holds both: C5 and C7 are met with two transition layers",
        "second_connection = transition | three_way",
        {"second_connection": "three_way"},
    ),
    Reading(
        "C7",
        "Does T2 shrink the size as well as the channels?",
        "channels only",
        "its map is concatenated with F2 (C5), which has the size of G1",
        "transition2_stride = 1 | 2 (F2 is then pooled too)",
        {"transition2_stride": 2},
    ),
    Reading(
        "C4, C5",
        "How do the flows take the extra channels of a concatenation?",
        "a 1×1 projection back to 728, starting as identity",
        "the network starts out equal to the unfused one, so ImageNet weights survive",
        "fusion = project | widen",
        {"fusion": "widen"},
    ),
    Reading(
        "C7",
        "How many channels do the transition layers give?",
        "T1 32, T2 364",
        "T1 as wide as the first layer of the stem, T2 half as wide as F1",
        "transition_channels = (32, 364)",
        {"transition_channels": [64, 728]},
    ),
    Reading(
        "C7",
        "How does T1 come to the size of F1?",
        "averaging over 4×4 before and 4×4 after its convolution",
        "halving 299 px with floor ends at 18, F1 has 19: the last window is fitted to F1",
        "transition_pooling = average | max",
        {"transition_pooling": "max"},
    ),
    Reading(
        "C7",
        "In which order: convolution, BatchNorm, ReLU?",
        "convolution first",
        "DenseNet's order, BatchNorm-ReLU-convolution, drops the negative half of an image",
        "transition_order = conv_first | norm_first",
        {"transition_order": "norm_first"},
    ),
    Reading(
        "C9",
        "How are the two losses mixed?",
        "(1 − w) CE + w FL with w = 0.5, γ = 2, no class weights",
        "the text gives no numbers; γ = 2 is Lin's; whether it helps is tested in notebook 06",
        "focal_weight, gamma, class_weights (notebook 04)",
    ),
    Reading(
        "C10",
        "How is a frame binarized, and which pixels are neighbours?",
        "one documented recipe: threshold, closing, opening, 4-connected",
        "measured on real frames: the whole nodule inside, no print (notebook 01)",
        "thyroid_lib.regions.Recipe",
    ),
    Reading(
        "C1",
        "Does a follicular neoplasm count as malignant?",
        "neither: the four types stay four, each against the rest",
        "adenoma and carcinoma look alike and need histology",
        "no figure lumps the types into two",
    ),
)


def table(size: int, num_classes: int = 4, in_chans: int = 1) -> pd.DataFrame:
    """The readings with the cost of the other reading at full width.

    Args:
        size: of the image, px a side.
        num_classes, in_chans: of the network.

    Returns:
        Columns: claim, open point, our choice, why, switch, otherwise costs (text; empty where the network
        is not concerned).
    """
    name = {"name": "optimized_xception"}
    variants = {"ours": name} | {r.question: name | r.otherwise for r in READINGS if r.otherwise}
    costs = structure.costs(variants, size, num_classes=num_classes, in_chans=in_chans).set_index("variant")
    rows = [
        {
            "claim": r.claim,
            "open point": r.question,
            "our choice": r.choice,
            "why": r.reason,
            "switch": r.switch,
            "otherwise costs": _change(costs, r) if r.otherwise else "",
        }
        for r in READINGS
    ]
    return pd.DataFrame(rows)


def _change(costs: pd.DataFrame, reading: Reading) -> str:
    """What the other reading costs more or less than ours."""
    change = costs.loc[reading.question] - costs.loc["ours"]
    parts = [
        f"{value:+.2f} {unit}"
        for value, unit in ((change["parameters"] / 1e6, "M parameters"), (change["gmacs"], "GMACs"))
        if abs(value) >= 0.005
    ]
    value = ", ".join(map(str, reading.otherwise.values()))
    return f"{value}: {', '.join(parts) or 'the same'}".replace("-", "−")
