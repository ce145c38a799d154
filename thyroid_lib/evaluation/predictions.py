"""predictions.csv: one row per model and image, and everything that evaluation may read.

Every number of the report can be computed again from this file by someone who has neither the images
nor the network.

Columns: ``model set image patient group dataset fold truth``, then per class key ``p_<key>`` (calibrated
probability), ``raw_<key>`` (before temperature scaling) and ``positive_<key>`` (1 when ``p_<key>`` reaches
the operating point that was fixed on the validation part), then covariates such as age, sex or device.
"""

from pathlib import Path

import numpy as np
import pandas as pd
from scipy.special import softmax

from thyroid_lib.common.files import write_text
from thyroid_lib.common.messages import listed, named

PLACES = ("internal", "external")
SETS = (*PLACES, "validation")
"""internal: held-out folds; external: another source, frozen model; validation: thresholds came from it."""

OURS = "finetuned"
"""The study's own model; the others stand beside it."""

IDENTITY = ["model", "set", "image", "patient", "group", "dataset", "fold", "truth"]
_TEXT = dict.fromkeys([column for column in IDENTITY if column != "fold"], str)
_PREFIXES = ("p_", "raw_", "positive_")
_ROW = ["model", "set", "image", "fold"]  # what tells rows apart

# Columns of a crop index that describe a file, a place in the frame or free text: never published.
_NOT_COVARIATES = {
    *IDENTITY, "inverted", "mask_inside", "phash", "sha256", "text_lines", "text_pixels", "path", "mask", "label",
    "box", "text",
}  # fmt: skip
_NOT_COVARIATES_PREFIX = ("box_", "sector_", "frame_", "region_", *_PREFIXES)
_LONGEST_COVARIATE = 40  # characters; anything longer is free text and may identify a person


def prediction_table(
    index: pd.DataFrame, classes: list[str], logits, temperature: float, points: dict[str, float], **about
) -> pd.DataFrame:
    """Turns logits into rows of ``predictions.csv``.

    Args:
        index: N rows of ``Crops.index`` (image, patient, group, dataset, label and covariates).
        classes: the C class keys in the order of the network's outputs.
        logits: float (N, C), before temperature.
        temperature: > 0, fitted on the validation part; probabilities are softmax(logits / temperature).
        points: class key -> threshold in 0..1 on the calibrated probability, fixed on validation.
        **about: ``model``, name of the arm, e.g. "finetuned"; ``set``, "internal", "external" or "validation";
            ``fold``, int, whose model made these predictions; -1 when it was the mean of several.

    Returns:
        DataFrame with N rows in the column order of this module's docstring. A column of printed text becomes
        the yes/no covariate ``printed_text``; free text itself is never copied.

    Raises:
        KeyError: a class has no operating point, or ``model``, ``set`` or ``fold`` is not given.
        ValueError: shapes or set name do not fit, or the logits are not finite.
    """
    logits, rows = np.asarray(logits, np.float64), index.reset_index(drop=True)
    table = rows.assign(truth=rows["label"], **about)[IDENTITY].astype(_TEXT)
    table[[f"p_{key}" for key in classes]] = softmax(logits / temperature, axis=1)
    table[[f"raw_{key}" for key in classes]] = softmax(logits, axis=1)
    table = pd.concat([_with_verdicts(table, points), _covariates(rows)], axis=1)
    return _check(table, "prediction_table")


def mean_predictions(tables: list[pd.DataFrame], points: dict[str, float]) -> pd.DataFrame:
    """Averages the probabilities that several folds' models gave the same images.

    Args:
        tables: outputs of :func:`prediction_table` for the same rows, one per model.
        points: class key -> threshold for the mean probability.

    Returns:
        One table, fold -1; ``p_`` and ``raw_`` columns are means over the tables.
    """
    means = [prefix + key for prefix in ("p_", "raw_") for key in classes_of(tables[0])]
    result = tables[0].assign(fold=-1)
    result[means] = np.mean([table[means] for table in tables], axis=0)
    return _with_verdicts(result, points)


def _with_verdicts(table: pd.DataFrame, points: dict[str, float]) -> pd.DataFrame:
    called = {f"positive_{key}": table[f"p_{key}"] >= points[key] for key in classes_of(table)}
    return table.assign(**called).astype(dict.fromkeys(called, np.int64))


def write_predictions(tables: list[pd.DataFrame], path: str | Path) -> Path:
    """Writes tables of :func:`prediction_table` as one CSV, sorted, floats with 9 significant digits.

    Args:
        tables: one or more tables with the same classes; covariates may differ (absent ones stay empty).
        path: file to write; replaced in one step, so a killed run leaves the old file or the new one.

    Returns:
        The path.

    Raises:
        ValueError: as :func:`read_predictions`.
    """
    whole = _check(pd.concat(tables, ignore_index=True), "write_predictions")
    whole = whole[_columns(whole) + sorted(covariates_of(whole))].sort_values(_ROW, kind="stable")
    write_text(Path(path), whole.to_csv(index=False, float_format="%.9g", lineterminator="\n"))
    return Path(path)


def read_predictions(path: str | Path) -> pd.DataFrame:
    """Reads and checks ``predictions.csv``.

    Args:
        path: the file, as :func:`write_predictions` wrote it.

    Returns:
        DataFrame, the class keys in the order of the network's outputs (`classes_of`).

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: columns are missing, probabilities are not probabilities, a truth is not a class, an image
            stands twice for one model, set and fold, or a group is in two folds of one model's internal set.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"expected a file at {path}; notebook 04_finetune writes it: run that first")
    table = pd.read_csv(path, dtype=_TEXT, keep_default_na=False, na_values=[""])
    return _check(table.fillna(dict.fromkeys(table.select_dtypes(exclude="number"), "")), str(path))


def classes_of(table: pd.DataFrame) -> list[str]:
    """Class keys of a predictions table, in the order of its ``p_`` columns.

    Args:
        table: any table with columns ``p_<key>``.

    Returns:
        The keys.

    Raises:
        ValueError: there are fewer than two.
    """
    keys = [c[2:] for c in table.columns if c.startswith("p_") and f"raw_{c[2:]}" in table.columns]
    if len(keys) < 2:
        raise ValueError(
            f"expected columns p_<key> and raw_<key> for at least two classes, got {listed(table)}"
        )
    return keys


def covariates_of(table: pd.DataFrame) -> list[str]:
    """Names of the covariate columns of a predictions table.

    Args:
        table: as :func:`read_predictions` returns it.

    Returns:
        Every column that is neither identity nor probability nor verdict, in file order.
    """
    fixed = _columns(table)
    return [column for column in table if column not in fixed]


def select(predictions: pd.DataFrame, model: str, set: str) -> pd.DataFrame:
    """Rows of one model and one set, numbered from 0.

    Args:
        predictions: of :func:`read_predictions`;  model, set: which rows.
    """
    return predictions[(predictions["model"] == model) & (predictions["set"] == set)].reset_index(drop=True)


def by_patient(predictions: pd.DataFrame) -> tuple[pd.DataFrame, list[str]]:
    """One row per patient: probabilities averaged over images, verdict positive when at least half are.

    Args:
        predictions: rows of one model and one set.

    Returns:
        (table in the form of predictions with ``image`` = patient, patients left out because their images
        have different reference standards).
    """
    standards = predictions.groupby("patient")["truth"].nunique()
    mixed = standards.index[standards > 1].tolist()
    kept = predictions[~predictions["patient"].isin(mixed)]
    rules = dict.fromkeys(kept, "first") | dict.fromkeys(_columns(kept)[len(IDENTITY) :], "mean")
    table = kept.groupby(kept["patient"].to_numpy()).agg(rules).reset_index(drop=True)
    verdicts = [f"positive_{key}" for key in classes_of(table)]
    table[verdicts] = (table[verdicts] >= 0.5).astype(np.int64)
    return table.assign(image=table["patient"]), mixed


def _columns(table: pd.DataFrame) -> list[str]:
    return IDENTITY + [prefix + key for prefix in _PREFIXES for key in classes_of(table)]


def _covariates(rows: pd.DataFrame) -> pd.DataFrame:
    kept = {}
    for column, values in rows.items():
        if column in _NOT_COVARIATES or column.startswith(_NOT_COVARIATES_PREFIX):
            continue
        if values.dtype.kind in "biuf":
            kept[column] = values.astype(np.int64) if values.dtype == bool else values
        elif values.notna().any() and values.dropna().astype(str).str.len().max() <= _LONGEST_COVARIATE:
            kept[column] = values.map(
                lambda value: int(value) if isinstance(value, bool) else str(value), na_action="ignore"
            ).fillna("")
    if "text" in rows:
        kept["printed_text"] = rows["text"].fillna("").astype(str).str.strip().ne("").astype(np.int64)
    return pd.DataFrame(kept, index=rows.index)


def _check(table: pd.DataFrame, where: str) -> pd.DataFrame:
    classes = classes_of(table)
    if missing := [column for column in _columns(table) if column not in table]:
        raise ValueError(f"{where}: expected the columns {_columns(table)}; missing {missing}")
    folds = table[table["set"] == "internal"].groupby(["model", "group"])["fold"].transform("nunique")
    wrong = {
        f"set to be one of {SETS}": ~table["set"].isin(SETS),
        f"every truth to be one of {listed(classes)}": ~table["truth"].isin(classes),
        "one row per model, set, image and fold": table.duplicated(_ROW),
        "each group in one fold of a model, or the split leaked": folds.reindex(table.index) > 1,
        "image names relative to their data set": table["image"].str.match(r"/|[A-Za-z]:[\\/]"),
    }
    for prefix in ("p_", "raw_"):
        values = table[[prefix + key for key in classes]].to_numpy(np.float64)
        right = (values >= 0).all(axis=1) & (np.abs(values.sum(axis=1) - 1) < 1e-5)
        wrong[f"{prefix}<key> to be probabilities that sum to 1"] = ~right  # NaN is wrong too
    for expected, rows in wrong.items():
        if rows.any():
            first = table.loc[rows, IDENTITY].iloc[0].astype(str)
            shown = ", ".join(f"{column} {named(value)}" for column, value in first.items())
            raise ValueError(f"{where}: expected {expected}; {rows.sum()} rows are not, first {shown}")
    return table
