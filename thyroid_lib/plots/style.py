"""One look for every figure: type, sizes and a palette that colour-blind readers can tell apart."""

import matplotlib as mpl

# Okabe & Ito (2008), the order chosen so that neighbours differ in lightness too.
CYCLE = ["#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#7F7F7F", "#F0E442"]

PALETTE = {
    "nodular_goiter": "#009E73",
    "follicular_neoplasm": "#E69F00",
    "papillary_carcinoma": "#0072B2",
    "medullary_carcinoma": "#CC79A7",
    "benign": "#009E73",
    "malignant": "#D55E00",
    "normal": "#56B4E9",
    "2-3": "#009E73",
    "4a": "#E69F00",
    "4b": "#0072B2",
    "4c-5": "#CC79A7",
}

INK, MUTED, GRID = "#1B2430", "#5B6776", "#D5DBE3"
WIDTH = 7.2  # inches: the text column of a report
SEQUENTIAL, DIVERGING = "cividis", "RdBu_r"


def colour(key: str, position: int = 0) -> str:
    """The colour of a class key; a key without one of its own takes the cycle's at ``position``."""
    return PALETTE.get(key, CYCLE[position % len(CYCLE)])


def use_style() -> None:
    """Make matplotlib draw in the study's style from here on."""
    mpl.rcParams.update(
        {
            "axes.axisbelow": True,
            "axes.edgecolor": MUTED,
            "axes.grid": False,
            "axes.labelcolor": INK,
            "axes.prop_cycle": mpl.cycler(color=CYCLE),
            "axes.spines.right": False,
            "axes.spines.top": False,
            "axes.titlelocation": "left",
            "axes.titlesize": 10,
            "axes.titleweight": "bold",
            "axes.labelsize": 9,
            "figure.dpi": 100,
            "figure.facecolor": "white",
            "figure.figsize": (WIDTH, 4.0),
            "font.family": "DejaVu Sans",
            "font.size": 9,
            "grid.color": GRID,
            "image.cmap": "gray",
            "legend.fontsize": 8,
            "legend.frameon": False,
            "savefig.dpi": 160,
            "text.color": INK,
            "xtick.color": MUTED,
            "ytick.color": MUTED,
            "xtick.labelsize": 8,
            "ytick.labelsize": 8,
        }
    )
