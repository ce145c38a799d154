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
    rows = [(sign, value, *shares) for sign, table in SIGNS.items() for value, shares in table.items()]
    rows.append(("size", "median, mm", *SIZE_MM["median"]))
    return pd.DataFrame(rows, columns=["sign", "value", *TYPES])


def draw_signs(lesion_type: str, rng: np.random.Generator) -> dict:
    """Draws one nodule's signs: {sign: value} and `size_mm`."""
    signs, size = _draw(TYPES.index(lesion_type), rng)
    return {sign: str(value) for sign, value in signs.items()} | {"size_mm": round(float(size), 1)}


def _draw(column: int, rng: np.random.Generator, count: int | None = None) -> tuple[dict, np.ndarray]:
    """{sign: value} and the size in mm of a nodule of TYPES[column], or of so many."""
    signs = {}
    for sign, table in SIGNS.items():
        chances = np.array([frequencies[column] for frequencies in table.values()])
        signs[sign] = rng.choice(list(table), count, p=chances / chances.sum())
    size = SIZE_MM["median"][column] * np.exp(SIZE_MM["spread"][column] * rng.standard_normal(count))
    return signs, np.clip(size, *SIZE_MM["range"])


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
        total = np.sum(list(table.values()), axis=0)
        rows = {value: np.log(chances / total) for value, chances in table.items()}
        log += np.stack([rows[value] for value in signs[f"sign_{sign}"]])
    log += _log_size(signs["nodule_size_mm"].to_numpy(np.float64)[:, None])
    posterior = np.exp(log - log.max(1, keepdims=True))
    posterior /= posterior.sum(1, keepdims=True)
    given = np.array([label_of(source, lesion_type) for lesion_type in TYPES])
    return np.stack([posterior[:, given == label].sum(1) for label in about["labels"]], 1)


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
    counts = np.bincount(rng.choice(len(TYPES), draws, p=about["mix"]), minlength=len(TYPES))
    drawn = []
    for column, count in enumerate(counts):
        signs, size = _draw(column, rng, count)
        drawn.append(pd.DataFrame(signs).add_prefix("sign_").assign(nodule_size_mm=size))
    posterior = sign_reader(pd.concat(drawn), source)
    labels = list(about["labels"])
    truth = np.repeat([labels.index(label_of(source, lesion_type)) for lesion_type in TYPES], counts)
    reached = [float(roc_auc_score(truth == k, posterior[:, k])) for k in range(len(labels))]
    accuracy = float((posterior.argmax(1) == truth).mean())
    found = {"accuracy": accuracy, "macro_auroc": float(np.mean(reached))}
    return found | {f"auroc/{label}": auroc for label, auroc in zip(labels, reached)}
