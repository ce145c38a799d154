"""The trained classifier: a small folder that another machine loads, and the way from frame to type (C11-C14)."""

from thyroid_lib.classifier.classify import Classification, Classifier, prepare
from thyroid_lib.classifier.definition import ClassifierError
from thyroid_lib.classifier.saving import add_metrics, save

__all__ = ["Classification", "Classifier", "ClassifierError", "add_metrics", "prepare", "save"]
