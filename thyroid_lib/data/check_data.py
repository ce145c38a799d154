"""``python -m thyroid_lib check-data SPEC``: what a data set holds, and what keeps it from being used.

Prints the flow from files to analysis, every file or value left out with its reason, frames that show the same,
classes, patients and folds. The exit status is 0 where a study would run and 1 where it would not.
"""

import argparse
import sys
from pathlib import Path

import pandas as pd

from thyroid_lib import datasets, manifest
from thyroid_lib.common.messages import printable
from thyroid_lib.common.templates import render
from thyroid_lib.datasets import duplicates

EXAMPLES = 12  # files named for each reason, unless --all is given


def main(argv: list[str]) -> int:
    """Runs the command.

    Args:
        argv: arguments after ``check-data``.

    Returns:
        0 where a study would run, 1 where it would not.
    """
    about = __doc__.splitlines()[0]
    parser = argparse.ArgumentParser(prog="python -m thyroid_lib check-data", description=about)
    add, sources = parser.add_argument, ", ".join(datasets.SOURCES)
    add("spec", metavar="SPEC", help=f"SOURCE:PATH[?option=value], SOURCE one of {sources}")
    add("--folds", type=int, default=5, help="folds of the split that is tried (default 5)")
    add("--seed", type=int, default=0, help="seed of the split")
    add("--jobs", type=int, default=-1, help="worker processes, -1 for every core")
    add("--all", action="store_true", help="name every file, not only the first of each reason")
    add("--table", metavar="FILE", help="also write every finding to this CSV file")
    add("--find", metavar="IMAGE", help="dicom only: print the path below PATH that IMAGE stands for")
    args = parser.parse_args(argv)
    try:
        if args.find:
            return _find(args.spec, args.find)
        clean, problems = manifest.check(datasets.read(args.spec), jobs=args.jobs)
        reasons = manifest.ready(clean, args.folds)
        folds = None if reasons else manifest.split(clean, args.folds, args.seed)
    except (datasets.DatasetError, manifest.ManifestError) as error:
        print(f"would not run: {printable(error)}", file=sys.stderr)
        return 1
    if args.table:
        problems.to_csv(args.table, index=False)
    print(report(clean, problems, folds, reasons, len(problems) if args.all else EXAMPLES))
    return 1 if reasons else 0


def report(
    clean: pd.DataFrame, problems: pd.DataFrame, folds: pd.DataFrame | None, reasons: list[str], examples: int
) -> str:
    """The report on a checked manifest, a text of many lines.

    Args:
        clean, problems: as `manifest.check` gives them.
        folds: `clean` after `manifest.split`, or None where it could not be split.
        reasons: why a study would not run; empty where it would.
        examples: most files named for one reason.
    """
    numbers = problems["row"].fillna(0) if clean.attrs.get("numbered") else 0
    counts = problems.groupby(["action", "problem"])["problem"].transform("size")
    problems = problems.assign(row=numbers, count=counts)
    classes = clean.attrs.get("classes") or sorted(set(clean["label"]))
    table = clean.groupby("label")[["image", "patient", "group"]].nunique().reindex(classes, fill_value=0)
    if folds is not None:
        table["folds"] = pd.crosstab(folds["label"], folds["fold"]).astype(str).agg(" ".join, axis=1)
    return render(
        "data/check.txt.j2",
        about=clean.attrs,
        problems=problems.sort_values("count", ascending=False, kind="stable"),
        bits=duplicates.BITS,
        examples=examples,
        classes=table if len(clean) else None,
        reasons=reasons,
        hash=None if reasons else manifest.split_hash(folds),
    )


def _find(spec: str, image: str) -> int:
    from thyroid_lib.datasets import dicom

    parsed = datasets.parse(spec)
    if parsed.source != "dicom":
        why = "--find: only dicom hides the names of files; elsewhere the image is the path."
        print(why, file=sys.stderr)
        return 1
    path = dicom.find(Path(parsed.location).expanduser(), image)
    print(printable(path) if path else "no file there has this name (was another key used?)")
    return 0 if path else 1
