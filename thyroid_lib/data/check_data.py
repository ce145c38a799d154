"""``python -m thyroid_lib check-data SPEC``: what a data set holds, and what keeps it from being used.

Prints the flow from files to analysis, every file or value left out with its reason, frames that show the same,
classes, patients and folds. The exit status is 0 where a study would run and 1 where it would not.
"""

import argparse
import sys
from pathlib import Path

import numpy as np
import pandas as pd

from thyroid_lib import datasets, manifest
from thyroid_lib.common.messages import printable
from thyroid_lib.common.templates import render
from thyroid_lib.datasets import duplicates

EXAMPLES = 12  # files named for each reason, unless --all is given
SECTIONS = {"left out": manifest.LEFT_OUT, "values not used": manifest.BLANKED, "notes": manifest.NOTE}


def main(argv: list[str]) -> int:
    """Runs the command.

    Args:
        argv: arguments after ``check-data``.

    Returns:
        0 where a study would run, 1 where it would not.
    """
    about = __doc__.splitlines()[0]
    parser = argparse.ArgumentParser(prog="python -m thyroid_lib check-data", description=about)
    sources = ", ".join(datasets.SOURCES)
    add = parser.add_argument
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
    attrs, pairs = clean.attrs, clean.attrs["duplicates"]
    if not attrs.get("numbered"):
        problems = problems.assign(row=pd.NA)
    sections = {heading: problems[problems["action"] == action] for heading, action in SECTIONS.items()}
    return render(
        "data/check.txt.j2",
        title=attrs.get("title", ""),
        simulated=attrs.get("simulated"),
        flow=attrs["flow"].astype(object).where(attrs["flow"].notna(), None).to_dict("records"),
        findings=[
            (name, len(some), _reasons(some, examples)) for name, some in sections.items() if len(some)
        ],
        identical=int(pairs["identical"].sum()),
        near=int((~pairs["identical"]).sum()),
        across=pairs[pairs["joined"]].to_dict("records"),
        bits=duplicates.BITS,
        examples=examples,
        classes=_classes(clean, folds) if len(clean) else [],
        reasons=reasons,
        hash=None if reasons else manifest.split_hash(folds),
    )


def _reasons(problems: pd.DataFrame, examples: int) -> list[dict]:
    """Each reason once with its count, the most frequent first, and the images it is true of."""
    found = []
    for problem, some in problems.groupby("problem", sort=False):
        named = [(row.image, _where(row)) for row in some[some["image"] != ""].itertuples()]
        more = len(named) - examples
        found.append({"problem": problem, "count": len(some), "named": named[:examples], "more": more})
    return sorted(found, key=lambda reason: -reason["count"])


def _where(row) -> str:
    parts = ("" if pd.isna(row.row) else f"row {row.row}", "" if row.column == "image" else row.column)
    return " ".join(filter(None, parts))


def _classes(clean: pd.DataFrame, folds: pd.DataFrame | None) -> list[dict]:
    keys = clean.attrs.get("classes") or sorted(set(clean["label"]))
    counted = {
        "images": ("image", "size"),
        "patients": ("patient", "nunique"),
        "groups": ("group", "nunique"),
    }
    table = clean.groupby("label").agg(**counted).reindex(keys, fill_value=0).rename_axis("key")
    table["folds"] = ""
    if folds is not None:
        table["folds"] = folds.groupby("label")["fold"].agg(lambda of: " ".join(map(str, np.bincount(of))))
    return table.reset_index().to_dict("records")


def _find(spec: str, image: str) -> int:
    from thyroid_lib.datasets import dicom

    parsed = datasets.parse(spec)
    if parsed.source != "dicom":
        print(
            "--find: only dicom hides the names of files; elsewhere the image is the path.", file=sys.stderr
        )
        return 1
    path = dicom.find(Path(parsed.location).expanduser(), image)
    print(printable(path) if path else "no file there has this name (was another key used?)")
    return 0 if path else 1
