"""From predictions.csv to numbers with intervals by patient."""
