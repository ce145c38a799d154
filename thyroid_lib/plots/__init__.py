"""Every figure of the study. Each is a function that takes data and returns a matplotlib ``Figure``
whose attribute ``alt`` says in words, with numbers, what the picture shows.

Those of notebooks 01 to 04 and 07 stand here; of 05 and 06 in ``evaluation``, ``explanation`` and ``ablation``.
"""
# ruff: noqa: F401

from thyroid_lib.plots.data import audit, examples, flow, gallery, shortcuts, steps
from thyroid_lib.plots.explanation import gain_curve, map_methods, steps_to_answer
from thyroid_lib.plots.network import architectures, blocks, costs, coverage, wiring
from thyroid_lib.plots.training import augmentation, learning_curves, live_curve, loss_parts, models
