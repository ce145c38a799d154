"""Every figure of the study. Each is a function that takes data and returns a matplotlib ``Figure``
whose attribute ``alt`` says in words, with numbers, what the picture shows.

``plots.<name>`` finds a function in the module it lives in: ``data`` (frames, crops, splits),
``network``, ``training``, ``evaluation``, ``explanation``, ``ablation``, ``explore``. Nothing is drawn at import.
"""

from importlib import import_module

from thyroid_lib.plots.style import CYCLE, PALETTE, colour, use_style

__all__ = ["CYCLE", "PALETTE", "colour", "use_style"]
_MODULES = ("data", "network", "training", "evaluation", "explanation", "ablation", "explore")


def __getattr__(name: str):
    if not name.startswith("_"):
        for module in _MODULES:
            found = import_module(f"{__name__}.{module}")
            if name == module:
                return found
            if hasattr(found, name):
                return getattr(found, name)
    raise AttributeError(f"no figure {name!r} in thyroid_lib.plots ({', '.join(_MODULES)})")
