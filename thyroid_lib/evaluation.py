"""Statistics on saved predictions: reads predictions.csv and nothing else (claim C15)."""

from thyroid_lib.predictions import (  # noqa: F401
    classes_of,
    covariates_of,
    mean_predictions,
    prediction_table,
    read_predictions,
    write_predictions,
)
