"""What the classes of a run are, in words: lesion types, TI-RADS groups, or whatever the data are labelled with.

A study of grades must never read as a study of pathology, so every text that names the classes asks here.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from thyroid_lib import LESION_TYPES


@dataclass(frozen=True)
class Task:
    """The classes in words.

    Attributes:
        noun: one class: "lesion type", "TI-RADS group" or "class".
        statement: what the classes are and what they are not, in Markdown.
        reference: the reference standard, in a few words.
    """

    noun: str
    statement: str
    reference: str

    @property
    def plural(self) -> str:
        """Several classes."""
        return "classes" if self.noun == "class" else f"{self.noun}s"


def of(names: Mapping[str, tuple[str, str]], *, simulated: bool = False) -> Task:
    """The task that a set of classes makes.

    Args:
        names: class key -> (English, Chinese), in order.
        simulated: whether the frames that it is tested on are phantoms.
    """
    english = [name if isinstance(name, str) else name[0] for name in names.values()]
    said = ", ".join(english)
    if english and all("tirads" in name.lower().replace("-", "") for name in english):
        return Task(
            "TI-RADS group",
            f"The classes are **TI-RADS groups** ({said}): grades that readers gave by looking at the images. No "
            "pathology stands behind them: agreement with the readers is measured here, not how well cancer is found.",
            "TI-RADS grade given by readers of the images; no pathology",
        )
    noun = "lesion type" if set(names) <= set(LESION_TYPES) and names else "class"
    plural = "lesion types" if noun == "lesion type" else "classes"
    if simulated:
        return Task(
            noun,
            f"The {plural} are {said}. Frames and {plural} are **simulated**: what is measured here is the machinery.",
            f"the simulator's own {noun}",
        )
    return Task(
        noun,
        f"The {plural} are {said}, as the data label them. What a label rests on (histology, cytology, follow-up, a "
        "reader's grade) is for the owners of the data to state.",
        f"the {noun} that the data set gives",
    )
