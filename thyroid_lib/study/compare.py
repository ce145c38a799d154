"""Hold one run against another: what agrees, what does not, and what differs in how they came about.

A run on the same machine repeats every bit. On another processor, thread count or version the last digits of a
training differ, grow with every step, and end in another network of the same quality: so numbers are judged by
their intervals, and what follows a single training without having one is shown but does not decide.
"""

import argparse
import re
import sys
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import yaml

from thyroid_lib.common.files import PROJECT, write_text
from thyroid_lib.common.messages import MORE, named, number
from thyroid_lib.common.templates import TEMPLATES, render
from thyroid_lib.study import profiles
from thyroid_lib.study.run import Run

RELATIVE = 0.01
OUTSIDE = 0.05
# Keys that follow one training or one decoder: always, and between runs on two kinds of processor.
NOISY = yaml.safe_load((TEMPLATES / "study" / "noisy.yaml").read_text(encoding="utf-8"))
HEADLINE = "05_evaluate/headline/"
ON_REQUEST = {stage.name for stage in profiles.STAGES if not stage.default}
# Parts of an environment that always differ and explain nothing; ``library_sha256`` tells other code.
UNTOLD = ("git_commit", "git_clean", "executable_is_venv")


@dataclass(frozen=True)
class Comparison:
    """Keys of ``metrics.json`` by verdict, and what differs around them.

    Attributes:
        table: a row for each key: its "verdict" (identical, close: within tolerance, outside: with an interval that
            does not hold the other value, within the share that may, different, missing, new, noisy) and its "line".
        around: what differs in "stages", "data", "parameters" and "environment", lines by part. What only the run has,
            a new metric or a stage, and a stage on request that it has not, is told and decides nothing.
    """

    table: pd.DataFrame
    around: dict[str, list[str]]

    def lines(self, verdict: str) -> list[str]:
        """What there is to say of the keys with a verdict."""
        return self.table.loc[self.table["verdict"] == verdict, "line"].tolist()

    @property
    def agrees(self) -> bool:
        """Whether no number differs beyond the tolerances and none is missing, stages on request aside."""
        return not self.table["verdict"].isin(["different", "missing"]).any()

    @property
    def verdict(self) -> str:
        """One sentence with the counts, and one on what differs around."""
        return render("study/verdict.txt.j2", found=self)

    def report(self, everything: bool = False) -> str:
        """The verdict, then key by key what does not agree, then what differs around.

        Args:
            everything: list the keys that agree too.
        """
        return render("study/comparison.txt.j2", found=self, everything=everything, rule=rule())


def rule() -> str:
    """The tolerances, in words."""
    return render("study/rule.txt.j2", relative=RELATIVE, outside=OUTSIDE)


def compare(run: Path, reference: Path) -> Comparison:
    """Compare the numbers, environment, parameters and data of two run folders.

    Args:
        run, reference: folders with ``metrics.json`` and ``run.json``.

    Raises:
        ValueError: a folder holds no ``metrics.json``.
    """
    runs = [Run(run), Run(reference)]
    for one in runs:
        if not (one.dir / "metrics.json").is_file():
            raise ValueError(f"{one.dir}: expected a run with metrics.json; name a folder of reports/")
    ours, theirs = (dict(leaves(one.metrics)) for one in runs)
    here, there = (Counter(map(_stage, one)) for one in (ours, theirs))
    more, fewer = here.keys() - there.keys(), (there.keys() - here.keys()) & ON_REQUEST
    keys = sorted(key for key in ours.keys() | theirs.keys() if _stage(key) not in more | fewer)
    facts = [one.facts for one in runs]
    processors = {one.get("environment", {}).get("processor") for one in facts}
    noisy = re.compile("|".join(NOISY["always"] + NOISY["another_processor"] * (len(processors) == 2)))
    rows = [_judged(key, ours, theirs, noisy.search(key) is not None) for key in keys]
    table = pd.DataFrame(rows, columns=["key", "verdict", "line", "interval"])
    outside = table["verdict"] == "outside"
    if outside.sum() > OUTSIDE * table["interval"].sum():
        table.loc[outside, "verdict"] = "different"
    stages = [f"{named(stage)}: {here[stage]} numbers, not in the reference" for stage in sorted(more)]
    stages += [f"{named(stage)}: {there[stage]} numbers, not in the run" for stage in sorted(fewer)]
    return Comparison(table, {"stages": stages} | _around(ours, theirs, *facts))


def _stage(key: str) -> str:
    return key.partition("/")[0]


def _judged(key: str, ours: dict, theirs: dict, noisy: bool) -> tuple[str, str, str, bool]:
    """A key, its verdict, the line about it, and whether it counts among the numbers with an interval."""
    interval = not noisy and all(isinstance(one.get(key), Mapping) for one in (ours, theirs))
    if key not in ours or key not in theirs:
        verdict, where = ("missing", "reference") if key in theirs else ("new", "run")
        return key, "noisy" if noisy else verdict, f"{key}: only in the {where}", False
    if ours[key] == theirs[key] or _close(ours[key], theirs[key]):
        return key, "identical" if ours[key] == theirs[key] else "close", key, interval
    line = f"{key}: {number(ours[key], 4)}, reference {number(theirs[key], 4)}"
    verdict = "noisy" if noisy else "outside" if interval and not key.startswith(HEADLINE) else "different"
    return key, verdict, line, interval


def against_reference(run: Path, profile: str) -> Comparison | None:
    """The comparison with ``reports/reference/<profile>``; ``None`` where there is no such reference.

    Every key of it is written to ``comparison.txt`` in the run.
    """
    reference = PROJECT / "reports" / "reference" / Path(profile).stem
    if not (reference / "metrics.json").is_file():
        return None
    result = compare(run, reference)
    write_text(Path(run) / "comparison.txt", result.report(everything=True) + "\n")
    return result


def main(argv: list[str] | None = None) -> int:
    """``python -m thyroid_lib compare RUN REFERENCE``.

    Returns:
        0 when all numbers agree, 1 when some do not, 2 when a folder is no run.
    """
    parser = argparse.ArgumentParser("python -m thyroid_lib compare", description=rule().replace("%", "%%"))
    parser.add_argument("run", type=Path, help="a folder of reports/")
    parser.add_argument("reference", type=Path, help="another one, such as reports/reference/quick")
    parser.add_argument("--all", action="store_true", help="list the keys that agree too")
    options = parser.parse_args(argv)
    try:
        result = compare(options.run, options.reference)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    print(result.report(options.all))
    return 0 if result.agrees else 1


def _around(ours: dict, theirs: dict, *facts: dict) -> dict[str, list[str]]:
    """What differs in data, parameters and environment, each a line of text."""
    data = re.compile(r"01_preprocess/\w+/(\w+_hash|title|files)$")
    pairs = {
        "data": [{key: one[key] for key in one if data.match(key)} for one in (ours, theirs)],
        "parameters": [dict(leaves(profiles.public(one.get("parameters", {})))) for one in facts],
        "environment": [dict(leaves(one.get("environment", {}))) for one in facts],
    }
    return {
        part: [
            f"{named(key)}: {named(here.get(key), MORE)}, reference {named(there.get(key), MORE)}"
            for key in sorted(here.keys() | there.keys())
            if here.get(key) != there.get(key) and key not in UNTOLD
        ]
        for part, (here, there) in pairs.items()
    }


def leaves(content: Mapping, path: str = "") -> Iterator[tuple[str, object]]:
    """Every metric of nested dictionaries with its path; a value with an interval is one metric."""
    for key, value in content.items():
        if isinstance(value, Mapping) and "value" not in value:
            yield from leaves(value, f"{path}{key}/")
        else:
            yield f"{path}{key}", value


def _close(ours: object, theirs: object) -> bool:
    """Whether each number lies in the other's interval; without intervals, whether they nearly agree."""
    if isinstance(ours, Mapping) and isinstance(theirs, Mapping):
        if None in (ours.get("low"), theirs.get("low")):
            return _close(ours["value"], theirs["value"])
        return all(
            None not in (one["value"], other.get("high")) and other["low"] <= one["value"] <= other["high"]
            for one, other in ((ours, theirs), (theirs, ours))
        )
    if isinstance(ours, list) and isinstance(theirs, list):
        return len(ours) == len(theirs) and all(a == b or _close(a, b) for a, b in zip(ours, theirs))
    numbers = {type(ours), type(theirs)} <= {int, float}
    return numbers and abs(ours - theirs) <= RELATIVE * max(abs(ours), abs(theirs))
