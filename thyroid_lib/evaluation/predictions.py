"""predictions.csv: one row per model and image, and everything that evaluation may read.

Every number of the report can be computed again from this file by someone who has neither the images
nor the network.

Columns: ``model set image patient group dataset fold truth``, then per class key ``p_<key>`` (calibrated
probability), ``raw_<key>`` (before temperature scaling) and ``positive_<key>`` (1 when ``p_<key>`` reaches
the operating point that was fixed on the validation part), then covariates such as age, sex or device.
"""

import re
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.special import softmax

from thyroid_lib.common.files import write_text
from thyroid_lib.common.messages import listed, named, quoted

SETS = ("internal", "external", "validation")
"""internal: held-out folds; external: another source, frozen model; validation: thresholds came from it."""

OURS = "finetuned"
"""The study's own model; the others stand beside it."""

IDENTITY = ["model", "set", "image", "patient", "group", "dataset", "fold", "truth"]
_PREFIXES = ("p_", "raw_", "positive_")

# Columns of a crop index that describe a file, a place in the frame or free text: never published.
_NOT_COVARIATES = {
    *IDENTITY, "inverted", "mask_inside", "phash", "sha256", "text_lines", "text_pixels", "path", "mask", "label",
    "box", "text",
}  # fmt: skip
_NOT_COVARIATES_PREFIX = ("box_", "sector_", "frame_", "region_", *_PREFIXES)
_LONGEST_COVARIATE = 40  # characters; anything longer is free text and may identify a person


def prediction_table(
    index_rows: pd.DataFrame,
    classes: list[str],
    logits: np.ndarray,
    temperature: float,
    operating_points: dict[str, float],
    *,
    model: str,
    set: str,
    fold: int,
) -> pd.DataFrame:
    """Turns logits into rows of ``predictions.csv``.

    Args:
        index_rows: N rows of ``Crops.index`` (image, patient, group, dataset, label and covariates).
        classes: the C class keys in the order of the network's outputs.
        logits: float (N, C), before temperature.
        temperature: > 0, fitted on the validation part; probabilities are softmax(logits / temperature).
        operating_points: class key -> threshold in 0..1 on the calibrated probability, fixed on validation.
        model: name of the arm, e.g. "finetuned".
        set: "internal", "external" or "validation".
        fold: fold whose model made these predictions; -1 when it was the mean of several.

    Returns:
        DataFrame with N rows in the column order of this module's docstring. A column of printed text becomes
        the yes/no covariate ``printed_text``; free text itself is never copied.

    Raises:
        KeyError: a class has no operating point.
        ValueError: shapes, temperature or set name do not fit.
    """
    logits = np.asarray(logits, dtype=np.float64)
    if logits.shape != (len(index_rows), len(classes)):
        raise ValueError(
            f"prediction_table: expected logits of shape {(len(index_rows), len(classes))} "
            f"(rows of the index, classes), got {logits.shape}; predict exactly the rows you pass"
        )
    if not (np.isfinite(logits).all() and np.isfinite(temperature) and temperature > 0):
        raise ValueError(
            f"prediction_table: expected finite logits and a temperature > 0, got {temperature} and "
            f"{int((~np.isfinite(logits)).sum())} non-finite logits; did {model}, fold {fold}, diverge?"
        )
    rows = index_rows.reset_index(drop=True)
    patient = rows["patient"].astype(str)
    table = pd.DataFrame({"model": model, "set": set, "image": rows["image"].astype(str), "patient": patient})
    table["group"] = rows["group"].astype(str) if "group" in rows else patient
    table["dataset"] = rows["dataset"].astype(str) if "dataset" in rows else ""
    table["fold"], table["truth"] = int(fold), rows["label"].astype(str)
    table[[f"p_{key}" for key in classes]] = softmax(logits / temperature, axis=1)
    table[[f"raw_{key}" for key in classes]] = softmax(logits, axis=1)
    table = _with_verdicts(table, classes, operating_points)
    return _check(pd.concat([table, _covariates(rows)], axis=1), classes, "prediction_table")


def mean_predictions(
    tables: list[pd.DataFrame], operating_points: dict[str, float], *, fold: int = -1
) -> pd.DataFrame:
    """Averages the probabilities that several folds' models gave the same images.

    Args:
        tables: outputs of :func:`prediction_table` for the same rows, one per model.
        operating_points: class key -> threshold for the mean probability.
        fold: what the result states as its fold.

    Returns:
        One table; ``p_`` and ``raw_`` columns are means over the tables.
    """
    first = tables[0]
    classes, result = classes_of(first), first.assign(fold=int(fold))
    for column in [prefix + key for prefix in ("p_", "raw_") for key in classes]:
        result[column] = np.mean([table[column] for table in tables], axis=0)
    return _with_verdicts(result, classes, operating_points)


def _with_verdicts(table: pd.DataFrame, classes: list[str], points: dict[str, float]) -> pd.DataFrame:
    return table.assign(**{f"positive_{k}": (table[f"p_{k}"] >= points[k]).astype(np.int64) for k in classes})


def write_predictions(tables: list[pd.DataFrame], path: str | Path) -> Path:
    """Writes tables of :func:`prediction_table` as one CSV, sorted, floats with 9 significant digits.

    Args:
        tables: one or more tables with the same classes; covariates may differ (absent ones stay empty).
        path: file to write; replaced in one step, so a killed run leaves the old file or the new one.

    Returns:
        The path.

    Raises:
        ValueError: no rows, classes that differ between tables, or an image that stands twice for one model,
            set and fold.
    """
    tables = [table for table in tables if len(table)]
    if not tables:
        raise ValueError("write_predictions: expected at least one row, got none")
    classes = classes_of(tables[0])
    for table in tables:
        if classes_of(table) != classes:
            raise ValueError(
                f"write_predictions: expected classes {classes} in every table, got {classes_of(table)}"
            )
    whole = _check(pd.concat(tables, ignore_index=True), classes, "write_predictions")
    fixed = _columns(classes)
    whole = whole[fixed + sorted({*whole} - {*fixed})]
    whole = whole.sort_values(["model", "set", "image", "fold"], kind="stable")
    write_text(Path(path), whole.to_csv(index=False, float_format="%.9g", lineterminator="\n"))
    return Path(path)


def read_predictions(path: str | Path) -> pd.DataFrame:
    """Reads and checks ``predictions.csv``.

    Args:
        path: the file, as :func:`write_predictions` wrote it.

    Returns:
        DataFrame; ``attrs["classes"]`` holds the class keys in the order of the network's outputs.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: columns are missing, probabilities are not probabilities, a truth is not a class, or a
            patient is in two folds of one model's internal set.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(
            f"read_predictions: expected a file at {path}; notebook 04_finetune writes it: run that first"
        )
    text = {column: str for column in ("model", "set", "image", "patient", "group", "dataset", "truth")}
    table = pd.read_csv(path, dtype=text, keep_default_na=False, na_values=[""])
    table = table.fillna(dict.fromkeys(table.select_dtypes(exclude="number"), ""))
    classes = classes_of(table)
    _check(table, classes, str(path))
    table.attrs["classes"] = classes
    return table


def classes_of(table: pd.DataFrame) -> list[str]:
    """Class keys of a predictions table, in the order of its ``p_`` columns.

    Args:
        table: any table with columns ``p_<key>``.

    Returns:
        The keys.

    Raises:
        ValueError: there are fewer than two.
    """
    if len(keys := table.attrs.get("classes", [])) >= 2:
        return list(keys)
    keys = [c[2:] for c in table.columns if c.startswith("p_") and f"raw_{c[2:]}" in table.columns]
    if len(keys) < 2:
        raise ValueError(
            "predictions: expected columns p_<key> and raw_<key> for at least two classes, got "
            f"{listed(table.columns)}"
        )
    return keys


def covariates_of(table: pd.DataFrame) -> list[str]:
    """Names of the covariate columns of a predictions table.

    Args:
        table: as :func:`read_predictions` returns it.

    Returns:
        Every column that is neither identity nor probability nor verdict, in file order.
    """
    fixed = {*_columns(classes_of(table))}
    return [column for column in table.columns if column not in fixed]


def select(predictions: pd.DataFrame, model: str, set: str) -> pd.DataFrame:
    """Rows of one model and one set, with the classes kept.

    Args:
        predictions: of :func:`read_predictions`;  model, set: which rows.
    """
    part = predictions[(predictions["model"] == model) & (predictions["set"] == set)].reset_index(drop=True)
    part.attrs["classes"] = classes_of(predictions)
    return part


def by_patient(predictions: pd.DataFrame) -> tuple[pd.DataFrame, list[str]]:
    """One row per patient: probabilities averaged over images, verdict positive when at least half are.

    Args:
        predictions: rows of one model and one set.

    Returns:
        (table in the form of predictions with ``image`` = patient, patients left out because their images
        have different reference standards).
    """
    classes = classes_of(predictions)
    standards = predictions.groupby("patient")["truth"].nunique()
    mixed = sorted(standards.index[standards > 1])
    kept = predictions[~predictions["patient"].isin(mixed)]
    means = [prefix + key for prefix in _PREFIXES for key in classes]
    rules = {column: "mean" if column in means else "first" for column in kept if column != "patient"}
    table = kept.groupby("patient", as_index=False, sort=True).agg(rules)
    verdicts = {f"positive_{key}": (table[f"positive_{key}"] >= 0.5).astype(np.int64) for key in classes}
    table = table.assign(image=table["patient"], **verdicts)[list(predictions.columns)]
    table.attrs["classes"] = classes
    return table, mixed


def _columns(classes: list[str]) -> list[str]:
    return IDENTITY + [prefix + key for prefix in _PREFIXES for key in classes]


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


def _check(table: pd.DataFrame, classes: list[str], where: str) -> pd.DataFrame:
    def refuse(expected: str):
        raise ValueError(f"{where}: expected {expected}")

    if missing := [column for column in _columns(classes) if column not in table.columns]:
        refuse(f"the columns {_columns(classes)}; missing {missing}")
    if unknown := sorted({*table["set"]} - {*SETS}):
        refuse(f"set to be one of {SETS}, got {listed(unknown)}")
    if strangers := sorted({*table["truth"]} - {*classes}, key=str):
        refuse(f"every truth to be one of {listed(classes)}, got {listed(strangers)}")
    for prefix in ("p_", "raw_"):
        values = table[[prefix + key for key in classes]].to_numpy(np.float64)
        bad = ~((values >= 0).all(axis=1) & (np.abs(values.sum(axis=1) - 1) < 1e-5))  # NaN is bad too
        if bad.any():
            image = quoted(table["image"][bad].iloc[0])
            refuse(
                f"{prefix}<key> to be probabilities that sum to 1; {bad.sum()} rows are not, first for image {image}"
            )
    if (twice := table.duplicated(["model", "set", "image", "fold"])).any():
        model, set, image, fold = table.loc[twice, ["model", "set", "image", "fold"]].iloc[0]
        again = f"{quoted(image)} stands twice for {named(model)}, {set}, fold {fold}"
        refuse(f"one row per model, set, image and fold; {again}")
    folds = table[table["set"] == "internal"].groupby(["model", "group"])["fold"].nunique()
    if (folds > 1).any():
        model, group = folds.index[folds > 1][0]
        leaked = f"group {quoted(group)} was tested in more than one fold of {named(model)}: the split leaked"
        refuse(f"each group in one fold; {leaked}")
    if absolute := [image for image in table["image"] if re.match(r"^(/|[A-Za-z]:[\\/])", image)]:
        refuse(f"image names relative to their data set, got {quoted(absolute[0])}")
    return table
