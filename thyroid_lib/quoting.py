"""Values of somebody's files as messages quote them: short, and on one line whatever they hold."""

import reprlib
from collections.abc import Iterable

MOST = 80
"""Characters of a value that a message shows."""
MORE = 300
"""The same where two values are held against each other and may differ late."""
NAMES = 12
"""Names of a list that a message shows."""


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
