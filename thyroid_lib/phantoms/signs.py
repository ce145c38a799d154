"""What the simulated nodules show: sonographic signs, how often each lesion type has them, and a reader of them.

The signs of the four types overlap, as they do in life, so no reader of a phantom can be perfect. `SIGNS`
holds the frequencies and says where each comes from. Where a source compares benign with malignant nodules,
or adenoma with carcinoma, ours are rounded between them; where none gives a number, they are our choice.
They are plausible, not estimates: what is learnt on phantoms says nothing about patients.

Sources
    [Moon 2008]      Radiology 247:762-770. 489 benign and 360 malignant nodules (mostly papillary) of nine
                     hospitals. Malignant and benign: taller than wide 40 % and 9 %, spiculated 48 % and 8 %,
                     markedly hypoechoic 41 % and 8 %, microcalcification 44 % and 9 %, macrocalcification
                     10 % and 4 %; isoechoic 12 % and 57 %, spongiform 0.3 % and 10 %.
    [Sillery 2010]   AJR 194:44-54. 50 follicular carcinomas and 52 adenomas: hypoechoic 82 % and 50 %,
                     halo 36 % and 58 %, cystic change 10 % and 31 %.
    [Borowczyk 2021] Cancers 13:938. Follicular carcinoma against adenoma, 20 studies: calcification, irregular
                     margins and marked hypoechogenicity belong to the fewer carcinomas.
    [Kim 2009]       Korean J Radiol 10:101-105. 21 medullary carcinomas: solid 91 %, ovoid to round 57 %,
                     markedly hypoechoic 52 %, calcified 52 %, 19 mm against the 11 mm of 114 papillary ones.
    [Guo 2019]       Chin Med J 132:834-841. 96 medullary carcinomas: cystic change in 9 %, margin not
                     circumscribed in 61 %, calcified in 47 % (their two groups taken together).
    [Lee 2010]       AJR 194:1090-1094. Medullary carcinomas differ from papillary ones in size, cystic change
                     and echotexture.
    [Saller 2002]    Exp Clin Endocrinol Diabetes 110:403-407. Medullary carcinoma: hypoechoic, coarse calcium
                     inside, no halo.
    [Bonavita 2009]  AJR 193:207-213. Spongiform nodules and cysts with colloid are benign.
"""

import numpy as np
import pandas as pd

from thyroid_lib import LESION_TYPES

TYPES = tuple(LESION_TYPES)

# sign: {value: frequency in nodular goiter, follicular neoplasm, papillary and medullary carcinoma}
SIGNS = {
    # [Moon 2008, Bonavita 2009] goiter; [Sillery 2010] follicular; [Kim 2009, Guo 2019] medullary
    "composition": {
        "solid": (0.38, 0.79, 0.94, 0.90),
        "mixed": (0.34, 0.18, 0.04, 0.08),
        "cystic": (0.14, 0.02, 0.01, 0.01),
        "spongiform": (0.14, 0.01, 0.01, 0.01),
    },
    # [Moon 2008] goiter and papillary; [Sillery 2010] follicular: hypoechoic in 66 %; [Kim 2009] medullary
    "echogenicity": {
        "hyperechoic": (0.11, 0.05, 0.01, 0.01),
        "isoechoic": (0.57, 0.29, 0.10, 0.08),
        "hypoechoic": (0.26, 0.59, 0.47, 0.46),
        "markedly hypoechoic": (0.06, 0.07, 0.42, 0.45),
    },
    # [Moon 2008]; [Kim 2009] medullary, rounder than papillary
    "shape": {
        "wider than tall": (0.92, 0.94, 0.58, 0.82),
        "taller than wide": (0.08, 0.06, 0.42, 0.18),
    },
    # [Moon 2008] goiter and papillary; [Borowczyk 2021] follicular; [Guo 2019] medullary: smooth in 39 %
    "margin": {
        "smooth": (0.68, 0.76, 0.17, 0.42),
        "ill-defined": (0.25, 0.11, 0.27, 0.22),
        "irregular": (0.07, 0.13, 0.56, 0.36),
    },
    # [Sillery 2010] follicular, between 36 and 58 %; [Saller 2002] medullary
    "halo": {
        "none": (0.78, 0.48, 0.93, 0.95),
        "complete": (0.22, 0.52, 0.07, 0.05),
    },
    # [Moon 2008] goiter and papillary; [Bonavita 2009] colloid; [Kim 2009, Guo 2019, Saller 2002] medullary
    "foci": {
        "none": (0.62, 0.84, 0.40, 0.44),
        "comet tail": (0.20, 0.02, 0.01, 0.01),
        "punctate": (0.08, 0.05, 0.47, 0.15),
        "coarse with shadow": (0.07, 0.06, 0.10, 0.38),
        "rim with shadow": (0.03, 0.03, 0.02, 0.02),
    },
    # our choice: follicular neoplasms are cellular and even, goiter mixes colloid, fibrosis and blood
    "echotexture": {
        "homogeneous": (0.28, 0.78, 0.45, 0.58),
        "heterogeneous": (0.72, 0.22, 0.55, 0.42),
    },
}
"""Frequency of each sign by lesion type, in the order of `thyroid_lib.LESION_TYPES`; drawn independently."""

SIZE_MM = {"median": (19.0, 25.0, 10.5, 16.5), "spread": (0.40, 0.36, 0.40, 0.45), "range": (6.0, 36.0)}
"""Largest diameter: log-normal by type, clipped. [Kim 2009] medullary and papillary; follicular neoplasms are
the largest and goiter nodules between, our choice."""

AGE_YEARS = {"mean": (52, 50, 46, 51), "spread": (13, 14, 13, 14)}
FEMALE = (0.82, 0.77, 0.77, 0.60)

SOURCES = {
    "clinic": {"labels": TYPES, "mix": (0.32, 0.22, 0.30, 0.16)},
    "external": {"labels": TYPES, "mix": (0.32, 0.22, 0.30, 0.16)},
    "open": {"labels": ("benign", "malignant"), "mix": (0.40, 0.15, 0.37, 0.08)},
}
"""Share of each type among a source's patients, and the labels it gives away."""

BENIGN_OF = {"nodular_goiter": "benign", "follicular_neoplasm": "benign"}
"""How `open` labels a type: its follicular neoplasms are adenomas, its carcinomas papillary and medullary."""


def label_of(source: str, lesion_type: str) -> str:
    """The label that a source gives a patient of this lesion type."""
    return BENIGN_OF.get(lesion_type, "malignant") if source == "open" else lesion_type


def sign_table() -> pd.DataFrame:
    """`SIGNS` and `SIZE_MM` for a report: one row per sign and value, one column per lesion type."""
    rows = [
        {"sign": sign, "value": value, **dict(zip(TYPES, frequencies))}
        for sign, table in SIGNS.items()
        for value, frequencies in table.items()
    ]
    rows.append({"sign": "size", "value": "median, mm", **dict(zip(TYPES, SIZE_MM["median"]))})
    return pd.DataFrame(rows)


def draw_signs(lesion_type: str, rng: np.random.Generator) -> dict:
    """Draws one nodule's signs: {sign: value} and `size_mm`."""
    column = TYPES.index(lesion_type)
    signs = {}
    for sign, table in SIGNS.items():
        values = list(table)
        chances = np.array([table[value][column] for value in values])
        signs[sign] = values[rng.choice(len(values), p=chances / chances.sum())]
    size = SIZE_MM["median"][column] * np.exp(SIZE_MM["spread"][column] * rng.standard_normal())
    signs["size_mm"] = round(float(np.clip(size, *SIZE_MM["range"])), 1)
    return signs


def draw_person(lesion_type: str, rng: np.random.Generator) -> tuple[int, str]:
    """Draws age in years (18 to 88) and sex ("F" or "M")."""
    column = TYPES.index(lesion_type)
    age = AGE_YEARS["mean"][column] + AGE_YEARS["spread"][column] * rng.standard_normal()
    return int(np.clip(round(age), 18, 88)), "F" if rng.random() < FEMALE[column] else "M"


def sign_reader(signs: pd.DataFrame, source: str = "clinic") -> np.ndarray:
    """A reader who sees the drawn signs and knows their frequencies: Bayes' rule, nothing learnt.

    No classifier of these images can do better on average, so its results are the ceiling to print
    beside a network's.

    Args:
        signs: columns `sign_<name>` for each of `SIGNS`, and `nodule_size_mm`; a manifest of phantoms has them.
        source: `clinic`, `external` (four types) or `open` (benign, malignant).

    Returns:
        float64 (N, C): posterior probability of each of the source's labels.
    """
    about = SOURCES[source]
    log = np.tile(np.log(about["mix"]), (len(signs), 1))
    for sign, table in SIGNS.items():
        rows = {
            value: np.log(chances / np.sum(list(table.values()), axis=0)) for value, chances in table.items()
        }
        log += np.stack([rows[value] for value in signs[f"sign_{sign}"]])
    size = signs["nodule_size_mm"].to_numpy(np.float64)[:, None]
    log += _log_size(size)
    posterior = np.exp(log - log.max(1, keepdims=True))
    posterior /= posterior.sum(1, keepdims=True)
    if source == "open":
        benign = [lesion_type in BENIGN_OF for lesion_type in TYPES]
        return np.stack([posterior[:, benign].sum(1), posterior[:, ~np.array(benign)].sum(1)], 1)
    return posterior


def _log_size(size: np.ndarray) -> np.ndarray:
    """Log probability of a drawn size under each type; the ends of the range hold what was clipped."""
    from scipy.stats import norm

    low, high = SIZE_MM["range"]
    centre, spread = np.log(SIZE_MM["median"]), np.array(SIZE_MM["spread"])
    log = norm.logpdf(np.log(size), centre, spread)
    log = np.where(size <= low, norm.logcdf(np.log(low), centre, spread), log)
    return np.where(size >= high, norm.logsf(np.log(high), centre, spread), log)


def ceiling(source: str = "clinic", draws: int = 40_000, seed: int = 0) -> dict[str, float]:
    """What `sign_reader` reaches on newly drawn nodules: the ceiling of any classifier of a source.

    Args:
        source: `clinic`, `external` or `open`.
        draws: simulated nodules; with 40,000 the figures move by about 0.002 from seed to seed.
        seed: of the draws.

    Returns:
        `accuracy`, `macro_auroc`, and `auroc/<label>` one against the rest.
    """
    from sklearn.metrics import roc_auc_score

    rng = np.random.default_rng(seed)
    about = SOURCES[source]
    types = rng.choice(len(TYPES), draws, p=about["mix"])
    table = {f"sign_{sign}": np.empty(draws, object) for sign in SIGNS}
    size = np.empty(draws)
    for column in range(len(TYPES)):
        rows = np.flatnonzero(types == column)
        for sign, frequencies in SIGNS.items():
            chances = np.array([value[column] for value in frequencies.values()])
            table[f"sign_{sign}"][rows] = rng.choice(list(frequencies), len(rows), p=chances / chances.sum())
        spread = SIZE_MM["spread"][column] * rng.standard_normal(len(rows))
        size[rows] = np.clip(SIZE_MM["median"][column] * np.exp(spread), *SIZE_MM["range"])
    posterior = sign_reader(pd.DataFrame(table).assign(nodule_size_mm=size), source)
    labels = list(about["labels"])
    truth = np.array([labels.index(label_of(source, TYPES[column])) for column in types])
    aurocs = {
        f"auroc/{label}": float(roc_auc_score(truth == k, posterior[:, k])) for k, label in enumerate(labels)
    }
    accuracy = float((posterior.argmax(1) == truth).mean())
    return {"accuracy": accuracy, "macro_auroc": float(np.mean(list(aurocs.values()))), **aurocs}
