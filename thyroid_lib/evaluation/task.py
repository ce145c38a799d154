"""What the classes of a run are, in words: lesion types, TI-RADS groups, or whatever the data are labelled with.

A study of grades must never read as a study of pathology, so every text that names the classes asks here.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from thyroid_lib import LESION_TYPES
from thyroid_lib.common.messages import english
from thyroid_lib.common.templates import render


@dataclass(frozen=True)
class Task:
    """The classes in words.

    Attributes:
        noun: one class: "lesion type", "TI-RADS group" or "class".
        plural: several.
        statement: what the classes are and what they are not, in Markdown.
        reference: the reference standard, in a few words.
    """

    noun: str
    plural: str
    statement: str
    reference: str


def of(names: Mapping[str, tuple[str, str]], *, simulated: bool = False) -> Task:
    """The task that a set of classes makes.

    Args:
        names: class key -> (English, Chinese), in order.
        simulated: whether the frames that it is tested on are phantoms.
    """
    said, noun = [english(names, key) for key in names], "class"
    if said and all("tirads" in name.lower().replace("-", "") for name in said):
        noun = "TI-RADS group"
    elif names and {*names} <= {*LESION_TYPES}:
        noun = "lesion type"
    about = {"noun": noun, "plural": "classes" if noun == "class" else f"{noun}s"}
    text = render("evaluation/task.md.j2", names=said, simulated=simulated, **about)
    statement, reference = (" ".join(part.split()) for part in text.split("\n\n"))
    return Task(**about, statement=statement, reference=reference)


def is_ordered(classes: list[str], ordered: str = "auto") -> bool:
    """Whether the classes are ordered: "yes", "no", or "auto" (keys that are TI-RADS groups are).

    Args:
        classes: class keys;  ordered: the wish.

    Raises:
        ValueError: another wish.
    """
    if ordered not in ("yes", "no", "auto"):
        raise ValueError(f"ordered: expected 'auto', 'yes' or 'no', got {ordered!r}")
    grades = all(key.lower().removeprefix("tirads").lstrip("_ -")[:1].isdigit() for key in classes)
    return grades if ordered == "auto" else ordered == "yes"
