"""What the simulated nodules show: sonographic signs, how often each lesion type has them, and a reader of them.

The signs of the four types overlap, as they do in life, so no reader of a phantom can be perfect. `signs.yaml`
holds the frequencies and says where each comes from. Where a source compares benign with malignant nodules,
or adenoma with carcinoma, ours are rounded between them; where none gives a number, they are our choice.
They are plausible, not estimates: what is learnt on phantoms says nothing about patients.
"""

from pathlib import Path

import numpy as np
import pandas as pd
import yaml

from thyroid_lib import LESION_TYPES

TYPES = tuple(LESION_TYPES)
TABLES = yaml.safe_load(Path(__file__).with_name("signs.yaml").read_text(encoding="utf-8"))
SIGNS = TABLES["signs"]  # sign -> value -> its frequency in each of TYPES
SIZE_MM, AGE_YEARS, FEMALE, SOURCES = (TABLES[name] for name in ("size_mm", "age_years", "female", "sources"))
BENIGN_OF = {"nodular_goiter": "benign", "follicular_neoplasm": "benign"}  # how `open` labels a type


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
