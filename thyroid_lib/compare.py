"""Hold one run against another: what agrees, what does not, and what differs in how they came about."""

import argparse
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from .runfolder import PROJECT, read_json

RELATIVE = 0.01
RULE = (
    "Numbers agree when they are identical, when each lies in the other's 95 % interval, or, without intervals, "
    f"when they differ by at most {RELATIVE:.0%} of the larger; texts must be identical."
)


@dataclass(frozen=True)
class Comparison:
    """Keys of ``metrics.json`` by verdict, and what differs around them (each a line of text)."""

    identical: list[str] = field(default_factory=list)
    close: list[str] = field(default_factory=list)
    different: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    around: list[str] = field(default_factory=list)

    @property
    def agrees(self) -> bool:
        """Whether no number differs and none is missing."""
        return not self.different and not self.missing

    def __str__(self) -> str:
        total = len(self.identical) + len(self.close) + len(self.different) + len(self.missing)
        word = "agrees with" if self.agrees else "differs from"
        lines = [
            f"The run {word} the reference: {len(self.identical)} of {total} numbers identical, "
            f"{len(self.close)} within tolerance, {len(self.different)} different, {len(self.missing)} missing."
        ]
        for title, rows in (
            ("Different", self.different),
            ("Missing", self.missing),
            ("Around", self.around),
        ):
            lines += [f"{title}:", *(f"  {row}" for row in rows)] if rows else []
        return "\n".join(lines)


def compare(run: Path, reference: Path) -> Comparison:
    """Compare the numbers, environment, parameters and data of two run folders.

    Args:
        run, reference: folders with ``metrics.json`` and ``run.json``.

    Raises:
        ValueError: a folder holds no ``metrics.json``.
    """
    for folder in (run, reference):
        if not (Path(folder) / "metrics.json").is_file():
            raise ValueError(
                f"{folder}: expected a run with metrics.json, found none; name a folder of reports/"
            )
    ours, theirs = (dict(_leaves(read_json(Path(folder) / "metrics.json"))) for folder in (run, reference))
    facts, wanted = (read_json(Path(folder) / "run.json") for folder in (run, reference))
    result = Comparison()
    for key in sorted(ours.keys() | theirs.keys()):
        if key not in ours or key not in theirs:
            result.missing.append(f"{key}: only in the {'reference' if key in theirs else 'run'}")
        elif ours[key] == theirs[key]:
            result.identical.append(key)
        elif _close(ours[key], theirs[key]):
            result.close.append(key)
        else:
            result.different.append(f"{key}: {_said(ours[key])}, reference {_said(theirs[key])}")
    for part in ("parameters", "environment"):
        here, there = (dict(_leaves(content.get(part, {}))) for content in (facts, wanted))
        for key in sorted(here.keys() | there.keys()):
            if here.get(key) != there.get(key) and key not in ("git_commit", "git_clean"):
                result.around.append(f"{part}/{key}: {here.get(key)}, reference {there.get(key)}")
    return result


def against_reference(run: Path, profile: str) -> Comparison | None:
    """The comparison with ``reports/reference/<profile>``; ``None`` where there is no such reference."""
    reference = PROJECT / "reports" / "reference" / Path(profile).stem
    return compare(run, reference) if (reference / "metrics.json").is_file() else None


def main(argv: list[str] | None = None) -> int:
    """``python -m thyroid_lib compare RUN REFERENCE``.

    Returns:
        0 when all numbers agree, 1 when some do not, 2 when a folder is no run.
    """
    parser = argparse.ArgumentParser(prog="python -m thyroid_lib compare", description=RULE)
    parser.add_argument("run", type=Path, help="a folder of reports/")
    parser.add_argument("reference", type=Path, help="another one, such as reports/reference/quick")
    options = parser.parse_args(argv)
    try:
        result = compare(options.run, options.reference)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    print(f"{result}\n{RULE}")
    return 0 if result.agrees else 1


def _leaves(content: Mapping, path: str = "") -> Iterator[tuple[str, object]]:
    """Every metric of nested dictionaries with its path; a value with an interval is one metric."""
    for key, value in content.items():
        if isinstance(value, Mapping) and "value" not in value:
            yield from _leaves(value, f"{path}{key}/")
        else:
            yield f"{path}{key}", value


def _close(ours: object, theirs: object) -> bool:
    if isinstance(ours, Mapping) and isinstance(theirs, Mapping):
        inside = [
            None not in (one["value"], other.get("low"), other.get("high"))
            and other["low"] <= one["value"] <= other["high"]
            for one, other in ((ours, theirs), (theirs, ours))
        ]
        if all(inside):
            return True
        return None in (ours.get("low"), theirs.get("low")) and _close(ours["value"], theirs["value"])
    if isinstance(ours, list) and isinstance(theirs, list):
        return len(ours) == len(theirs) and all(a == b or _close(a, b) for a, b in zip(ours, theirs))
    numbers = all(isinstance(one, (int, float)) and not isinstance(one, bool) for one in (ours, theirs))
    return numbers and abs(ours - theirs) <= RELATIVE * max(abs(ours), abs(theirs))


def _said(metric: object) -> str:
    from .report import number

    return number(metric, digits=4)
