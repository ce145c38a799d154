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
from dataclasses import dataclass, field
from pathlib import Path

from thyroid_lib.common.files import PROJECT, read_json, write_text
from thyroid_lib.common.messages import MORE, named
from thyroid_lib.study import profiles

RELATIVE = 0.01
OUTSIDE = 0.05
RULE = (
    "Tolerances. Numbers agree when they are identical, when each lies in the other's 95 % interval, or, without "
    f"intervals, when they differ by at most {RELATIVE:.0%} of the larger; texts must be identical. Of the numbers "
    f"with an interval, key numbers aside, {OUTSIDE:.0%} may lie outside, as so many are looked at. Keys that follow "
    "one training or one decoder and have no interval (losses, epochs, thresholds, single counts, hashes of pixels) "
    "are noisy: listed, not judged."
)
NOISY = tuple(
    re.compile(pattern)
    for pattern in (
        r"^01_preprocess/\w+/crops_hash$",
        r"^03_pretrain/(epochs|best_epoch|train_loss|val_\w+)$",
        r"^04_finetune/trainings/",
        r"^04_finetune/fixed_on_validation/.*/(temperature|operating_points/.*)$",
        r"^05_evaluate/(.*/)?(delong|confusion|curves|folds|errors|verdicts)/",
        r"^05_evaluate/.*/flat_maps$",
        r"^06_ablation/(gaze|training_noise)/",
        r"^06_ablation/(claims|controls)/(?!compute).*/(p_holm|verdict|why)$",
    )
)
"""Keys that follow one training or one decoder, with no interval to judge them by."""

HEADLINE = "05_evaluate/headline/"
UNTOLD = ("git_commit", "git_clean", "executable_is_venv")
"""Parts of an environment that always differ and explain nothing; ``library_sha256`` tells other code."""


@dataclass(frozen=True)
class Comparison:
    """Keys of ``metrics.json`` by verdict, and what differs around them.

    Attributes:
        identical, close: keys that agree.
        outside: keys with an interval that do not, within the share that may.
        different, missing: lines about keys that decide against the run.
        noisy: lines about keys that are not judged and differ.
        around: what differs in "stages", "data", "parameters" and "environment", lines by part. A stage that only
            the run has, such as an ablation on request, is told there and decides nothing.
    """

    identical: list[str] = field(default_factory=list)
    close: list[str] = field(default_factory=list)
    outside: list[str] = field(default_factory=list)
    different: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    noisy: list[str] = field(default_factory=list)
    around: dict[str, list[str]] = field(default_factory=dict)

    @property
    def agrees(self) -> bool:
        """Whether no number differs beyond the tolerances and none is missing."""
        return not self.different and not self.missing

    @property
    def verdict(self) -> str:
        """One sentence with the counts, and one on what differs around."""
        total = sum(
            map(len, (self.identical, self.close, self.outside, self.different, self.missing, self.noisy))
        )
        text = (
            f"The run {'agrees with' if self.agrees else 'differs from'} the reference: {len(self.identical)} of "
            f"{total} numbers identical, {len(self.close)} within tolerance, {len(self.outside)} outside an interval "
            f"as may be, {len(self.different)} different, {len(self.missing)} missing, {len(self.noisy)} noisy."
        )
        parts = [f"{part} ({len(lines)})" for part, lines in self.around.items() if lines]
        return (
            f"{text}\nAround it: {', '.join(parts)} differ{'s' * (len(parts) == 1)}."
            if parts
            else (f"{text}\nAround it: same data, parameters and environment.")
        )

    def report(self, everything: bool = False) -> str:
        """The verdict, then key by key what does not agree, then what differs around.

        Args:
            everything: list the keys that agree too.
        """
        sections = [
            ("Different", self.different),
            ("Missing", self.missing),
            ("Outside an interval, as many as may be", self.outside),
            ("Noisy, not judged", self.noisy),
            *((f"Around: {part}", lines) for part, lines in self.around.items()),
        ]
        if everything:
            sections += [("Within tolerance", self.close), ("Identical", self.identical)]
        lines = [self.verdict]
        for title, rows in sections:
            lines += ["", f"{title}:", *(f"  {row}" for row in rows)] if rows else []
        return "\n".join([*lines, "", RULE])

    __str__ = report


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
    ours, theirs = (dict(leaves(read_json(Path(folder) / "metrics.json"))) for folder in (run, reference))
    result, outside, judged = Comparison(), [], 0
    known = {key.partition("/")[0] for key in theirs}
    beyond = [key for key in ours if key.partition("/")[0] not in known]
    for key in sorted((ours.keys() | theirs.keys()) - set(beyond)):
        noisy = any(pattern.search(key) for pattern in NOISY)
        interval = all(isinstance(one.get(key), Mapping) for one in (ours, theirs))
        judged += interval and not noisy
        if key not in ours or key not in theirs:
            (result.noisy if noisy else result.missing).append(
                f"{key}: only in the {'reference' if key in theirs else 'run'}"
            )
        elif ours[key] == theirs[key]:
            result.identical.append(key)
        elif _close(ours[key], theirs[key]):
            result.close.append(key)
        else:
            line = f"{key}: {_said(ours[key])}, reference {_said(theirs[key])}"
            if noisy:
                result.noisy.append(line)
            elif interval and not key.startswith(HEADLINE):
                outside.append(line)
            else:
                result.different.append(line)
    (result.outside if len(outside) <= OUTSIDE * judged else result.different).extend(outside)
    stages = Counter(key.partition("/")[0] for key in beyond)
    result.around["stages"] = [
        f"{named(stage)}: {count} numbers, not in the reference" for stage, count in stages.items()
    ]
    result.around.update(_around(ours, theirs, run, reference))
    return result


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
    parser = argparse.ArgumentParser(
        prog="python -m thyroid_lib compare", description=RULE.replace("%", "%%")
    )
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


def _around(ours: dict, theirs: dict, run: Path, reference: Path) -> dict[str, list[str]]:
    """What differs in data, parameters and environment, each a line of text."""
    facts, wanted = (read_json(Path(folder) / "run.json") for folder in (run, reference))
    pairs = {
        "data": [
            {
                key: value
                for key, value in one.items()
                if re.match(r"01_preprocess/\w+/(\w+_hash|title|files)$", key)
            }
            for one in (ours, theirs)
        ],
        "parameters": [profiles.public(one.get("parameters", {})) for one in (facts, wanted)],
        "environment": [one.get("environment", {}) for one in (facts, wanted)],
    }
    return {
        part: [
            f"{named(key)}: {named(here.get(key), MORE)}, reference {named(there.get(key), MORE)}"
            for here, there in [[dict(leaves(one)) for one in pair]]
            for key in sorted(here.keys() | there.keys())
            if here.get(key) != there.get(key) and key not in UNTOLD
        ]
        for part, pair in pairs.items()
    }


def leaves(content: Mapping, path: str = "") -> Iterator[tuple[str, object]]:
    """Every metric of nested dictionaries with its path; a value with an interval is one metric."""
    for key, value in content.items():
        if isinstance(value, Mapping) and "value" not in value:
            yield from leaves(value, f"{path}{key}/")
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
    from thyroid_lib.common.messages import number

    return number(metric, digits=4)
