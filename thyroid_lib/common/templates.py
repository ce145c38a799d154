"""Sentences, cards and pages: filled in from numbers by the Jinja templates in ``templates/``."""

from functools import cache

import yaml

from thyroid_lib.common.files import LIBRARY
from thyroid_lib.common.messages import english, named, number, printable, say

TEMPLATES = LIBRARY / "templates"
MODELS = yaml.safe_load((TEMPLATES / "evaluation" / "models.yaml").read_text(encoding="utf-8"))
"""Models of predictions.csv in words, in the order in which reports show them."""
_MARKUP = str.maketrans({"<": "&lt;", ">": "&gt;"} | {sign: "\\" + sign for sign in "\\`*_[]|"})


@cache
def environment():
    """The one Jinja environment: HTML is escaped, a name that is not given is an error.

    Filters beside Jinja's own: `say`, `number`, `english`, `named` and `printable` of `common.messages`, and `cell`.
    """
    import jinja2  # takes its time, and a classification without pages needs none

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=lambda name: bool(name) and ".html" in name,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {word.__name__: word for word in (say, number, english, named, printable, cell)}
    return environment


def render(name: str, /, **values) -> str:
    """A template filled in.

    Args:
        name: path below ``templates/``, such as "evaluation/findings.md.j2".
        values: what the template speaks of.

    Raises:
        jinja2.UndefinedError: the template names what was not given.
    """
    return environment().get_template(name).render(**values)


def cell(value) -> str:
    """A value as one cell of a Markdown table: one line, nothing that Markdown or HTML would act on."""
    text = f"{value:.6g}" if isinstance(value, float) else str(value)
    return " ".join(text.split()).translate(_MARKUP)
