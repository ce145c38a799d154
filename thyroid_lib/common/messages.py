"""Values of somebody's files as messages quote them: short, and on one line whatever they hold."""

import reprlib
import unicodedata
from collections.abc import Iterable, Mapping

MOST = 80  # characters of a value that a message shows
MORE = 300  # the same where two values are held against each other and may differ late
NAMES = 12  # names of a list that a message shows
_ESCAPED = ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp")


def quoted(value, most: int = MOST) -> str:
    """A value as Python writes it, in quotes where it is a text; the middle of a long one is left out."""
    shortener = reprlib.Repr()
    shortener.maxlevel = 3  # a small file can nest what would not fit any memory written out
    shortener.maxstring = shortener.maxother = shortener.maxlong = most
    shortener.maxlist = shortener.maxtuple = shortener.maxset = shortener.maxdict = NAMES
    text = shortener.repr(value)
    return text if len(text) <= most else f"{text[: most // 2]}…{text[-most // 4 :]}"


def named(value, most: int = MOST) -> str:
    """A value without quotes where it is short and printable as it stands; else as `quoted` gives it."""
    if not isinstance(value, str):
        return quoted(value, most)
    return value if len(value) <= most and value.isprintable() else quoted(value, most)


def listed(values: Iterable) -> str:
    """Names with commas between them; of a long list, the first and how many there are."""
    values = list(values)
    more = f", … ({len(values)} in all)" if len(values) > NAMES else ""
    return ", ".join(map(named, values[:NAMES])) + more


def say(metric: Mapping | None, digits: int = 2) -> str:
    """A metric in words: ``0.91 (0.85 to 0.95)``, or why there is none.

    Args:
        metric: {"value", "low", "high"[, "reason"]}.
        digits: decimals.
    """
    if metric and metric.get("value") is not None:
        return number(metric, digits)
    reason = (metric or {}).get("reason", "")
    return next((word for word in ("too few", "undefined") if reason.startswith(word)), "not done")


def number(metric: object, digits: int = 3) -> str:
    """A metric as text: its value and, where there is one, its 95 % interval."""
    if isinstance(metric, Mapping):
        value, low, high = (metric.get(name) for name in ("value", "low", "high"))
        if low is None or high is None:
            return number(value, digits)
        value, low, high = (number(float(one), digits) for one in (value, low, high))
        return f"{value} ({low} to {high})"
    if isinstance(metric, float):
        return f"{round(metric, digits) + 0.0:.{digits}f}"  # + 0.0: never -0.00
    return "–" if metric is None else str(metric)


def english(names: dict, key: str) -> str:
    """The English name of a class key; the key itself where none is known."""
    name = names.get(key, key)
    return name if isinstance(name, str) else name[0]


def printable(text) -> str:
    """Text that is inert in a terminal and on a page: control, format and lone surrogate characters escaped.

    Escape sequences, line breaks and marks that turn the direction of writing become \\xNN or \\uNNNN.
    """
    return "".join(
        c.encode("unicode_escape").decode() if unicodedata.category(c) in _ESCAPED else c for c in str(text)
    )
