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
from thyroid_lib.datasets import duplicates

EXAMPLES = 12  # files named for each reason, unless --all is given


def main(argv: list[str]) -> int:
    """Runs the command.

    Args:
        argv: arguments after ``check-data``.

    Returns:
        0 where a study would run, 1 where it would not.
    """
    parser = argparse.ArgumentParser(
        prog="python -m thyroid_lib check-data", description=__doc__.splitlines()[0]
    )
    parser.add_argument(
        "spec",
        metavar="SPEC",
        help=f"SOURCE:PATH[?option=value], SOURCE one of {', '.join(datasets.SOURCES)}",
    )
    parser.add_argument("--folds", type=int, default=5, help="folds of the split that is tried (default 5)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the split")
    parser.add_argument("--jobs", type=int, default=-1, help="worker processes, -1 for every core")
    parser.add_argument(
        "--all", action="store_true", help="name every file, not only the first of each reason"
    )
    parser.add_argument("--table", metavar="FILE", help="also write every finding to this CSV file")
    parser.add_argument(
        "--find", metavar="IMAGE", help="dicom only: print the path below PATH that IMAGE stands for"
    )
    args = parser.parse_args(argv)
    if args.find:
        return _find(args.spec, args.find)
    try:
        data = datasets.read(args.spec)
        clean, problems = manifest.check(data, jobs=args.jobs)
        reasons = manifest.ready(clean, args.folds)
        folds = None if reasons else manifest.split(clean, args.folds, args.seed)
    except (datasets.DatasetError, manifest.ManifestError) as error:
        print(f"would not run: {printable(error)}", file=sys.stderr)
        return 1
    if args.table:
        problems.to_csv(args.table, index=False)
    if not clean.attrs.get("numbered"):
        problems = problems.assign(row=pd.NA)
    for line in report(clean, problems, folds, reasons, len(problems) if args.all else EXAMPLES):
        print(line)
    return 1 if reasons else 0


def report(
    clean: pd.DataFrame, problems: pd.DataFrame, folds: pd.DataFrame | None, reasons: list[str], examples: int
) -> list[str]:
    """The lines of a report on a checked manifest.

    Args:
        clean, problems: as `manifest.check` gives them.
        folds: `clean` after `manifest.split`, or None where it could not be split.
        reasons: why a study would not run; empty where it would.
        examples: most files named for one reason.
    """
    attrs = clean.attrs
    title = printable(attrs.get("title", ""))
    lines = [title + (" (simulated)" if attrs.get("simulated") else ""), ""]
    lines += ["from files to analysis"]
    for step in attrs["flow"].itertuples():
        people = "" if pd.isna(step.patients) else f"  {step.patients:>6} patients"
        lost = f"  ({step.left_out} left out)" if step.left_out else ""
        lines.append(f"  {step.images:>7}  {step.step:<32}{people}{lost}")
    for action, heading in (
        (manifest.LEFT_OUT, "left out"),
        (manifest.BLANKED, "values not used"),
        (manifest.NOTE, "notes"),
    ):
        some = problems[problems["action"] == action]
        if len(some):
            lines += ["", f"{heading}: {len(some)}"]
            lines += _by_reason(some, examples)
    lines += ["", *_same(attrs["duplicates"], examples)]
    if len(clean):
        lines += ["", *_classes(clean, folds)]
    lines.append("")
    if reasons:
        lines += ["would not run:", *(f"  - {printable(reason)}" for reason in reasons)]
    else:
        lines.append(f"would run; SHA-256 of the split {manifest.split_hash(folds)}")
    return lines


def _by_reason(problems: pd.DataFrame, examples: int) -> list[str]:
    """Each reason once with its count, the most frequent first, and the images it is true of."""
    lines = []
    shown = problems.assign(
        where=[
            " ".join(
                filter(None, [f"row {row}" if not pd.isna(row) else "", column if column != "image" else ""])
            )
            for row, column in zip(problems["row"], problems["column"])
        ]
    )
    counts = shown.groupby("problem", sort=False).size().sort_values(ascending=False, kind="stable")
    for reason, count in counts.items():
        some = shown[shown["problem"] == reason]
        named = some[some["image"] != ""]
        lines.append(f"  {count:>5} x {printable(reason)}" if len(named) else f"  {printable(reason)}")
        for row in named.head(examples).itertuples():
            lines.append(f"            {printable(row.image)}" + (f"  ({row.where})" if row.where else ""))
        if len(named) > examples:
            lines.append(f"            and {len(named) - examples} more (--all names them)")
    return lines


def _same(pairs: pd.DataFrame, examples: int) -> list[str]:
    across = pairs[pairs["joined"]]
    lines = [
        f"frames that show the same: {int(pairs['identical'].sum())} identical pairs, "
        f"{int((~pairs['identical']).sum())} near-duplicate pairs; {len(across)} across groups, now joined"
    ]
    for row in across.head(examples).itertuples():
        how = "identical" if row.identical else f"{row.bits} of {duplicates.BITS} bits differ"
        lines.append(f"            {printable(row.image_a)} = {printable(row.image_b)}  ({how})")
    if len(across) > examples:
        lines.append(f"            and {len(across) - examples} more (--all names them)")
    return lines


def _classes(clean: pd.DataFrame, folds: pd.DataFrame | None) -> list[str]:
    lines = [
        f"  {'class':<24}{'images':>8}{'patients':>10}{'groups':>8}"
        + ("  images per fold" if folds is not None else "")
    ]
    for key in clean.attrs.get("classes") or sorted(set(clean["label"])):
        own = clean[clean["label"] == key]
        line = f"  {printable(key):<24}{len(own):>8}{own['patient'].nunique():>10}{own['group'].nunique():>8}"
        if folds is not None:
            counts = folds.loc[folds["label"] == key, "fold"].value_counts().sort_index()
            line += "  " + " ".join(str(count) for count in counts)
        lines.append(line)
    return lines


def _find(spec: str, image: str) -> int:
    try:
        parsed = datasets.parse(spec)
    except datasets.DatasetError as error:
        print(printable(error), file=sys.stderr)
        return 1
    if parsed.source != "dicom":
        print(
            "--find: only dicom hides the names of files; elsewhere the image is the path.", file=sys.stderr
        )
        return 1
    from thyroid_lib.datasets import dicom

    path = dicom.find(Path(parsed.location).expanduser(), image)
    print(printable(path) if path else "no file there has this name (was another key used?)")
    return 0 if path else 1
