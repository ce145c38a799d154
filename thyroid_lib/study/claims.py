"""What is claimed, and where it is kept: ``python -m thyroid_lib claims`` renders docs/claims.yaml.

No number in the README is typed: each is read from ``reports/reference/<profile>/metrics.json`` and stands between two
markers, with the key and the notebook's section in docs/claims.md. Where there is no reference yet, a sentence says so.
"""

import argparse
import sys
from collections.abc import Mapping
from pathlib import Path

import yaml

from thyroid_lib.common.files import PROJECT, read_json, write_text
from thyroid_lib.common.templates import render
from thyroid_lib.study.compare import leaves

SOURCE, TABLE, DRAWING = "docs/claims.yaml", "docs/claims.md", "docs/results.svg"
READMES = {"en": "README.md", "zh": "README.zh-CN.md"}
BEGIN, END = "<!-- results: written by python -m thyroid_lib claims -->", "<!-- results end -->"


def source(project: Path = PROJECT) -> dict:
    """The content of docs/claims.yaml: ``claims`` and ``results``."""
    return yaml.safe_load((project / SOURCE).read_text(encoding="utf-8"))


def reference_of(profile: str, project: Path = PROJECT) -> dict[str, object] | None:
    """Every metric of a profile's reference by its key; ``None`` where there is none."""
    path = project / "reports" / "reference" / profile / "metrics.json"
    return dict(leaves(read_json(path))) if path.is_file() else None


def _blocks(project: Path) -> list[dict]:
    """The results, each row with its ``metric``; ``drawn``: the rows that have a place in the drawing."""
    blocks = source(project)["results"]
    for block in blocks:
        metrics = block["metrics"] = reference_of(block["profile"], project)
        block["rows"] = [row | {"metric": (metrics or {}).get(row["key"])} for row in block["rows"]]
        known = [row for row in block["rows"] if isinstance(row["metric"], Mapping) and row.get("drawn")]
        block["drawn"] = [row for row in known if row["metric"]["value"] is not None]
    return blocks


def results(language: str, project: Path = PROJECT) -> str:
    """The README's results: a table for each profile, in Markdown, without the markers.

    Args:
        language: "en" or "zh".
        project: the checkout.
    """
    return render("claims/results.md.j2", blocks=_blocks(project), language=language, drawing=DRAWING)


def table(project: Path = PROJECT) -> str:
    """docs/claims.md: the invention's claims with their places, then the README's numbers with their keys."""
    return render("claims/claims.md.j2", claims=source(project)["claims"], blocks=_blocks(project))


def drawing(project: Path = PROJECT) -> str | None:
    """The README's figure of results as SVG, readable on light and dark pages; ``None`` without its reference."""
    rows = next((block["drawn"] for block in _blocks(project) if block["drawn"]), None)
    return rows and render("claims/results.svg.j2", rows=rows) + "\n"


def write(project: Path = PROJECT, check: bool = False) -> list[str]:
    """Writes the READMEs' results, docs/claims.md and the drawing.

    Args:
        project: the checkout;  check: change nothing.

    Returns:
        Names of the files that were not up to date.

    Raises:
        ValueError: a README lacks the markers.
    """
    wanted = {TABLE: table(project), DRAWING: drawing(project)}
    for language, name in READMES.items():
        before, begin, rest = (project / name).read_text(encoding="utf-8").partition(BEGIN)
        _, end, after = rest.partition(END)
        if not begin or not end:
            raise ValueError(f"{name}: expected '{BEGIN}' and '{END}' around the results, one is missing")
        wanted[name] = f"{before}{BEGIN}\n{results(language, project)}\n{END}{after}"
    stale = []
    for name, text in wanted.items():
        path = project / name
        if text == (path.read_text(encoding="utf-8") if path.is_file() else None):
            continue
        stale.append(name)
        if not check:
            path.unlink() if text is None else write_text(path, text)
    return stale


def main(argv: list[str] | None = None) -> int:
    """``python -m thyroid_lib claims [--check]``.

    Returns:
        0 when everything is (now) up to date, 1 when --check found something stale, 2 when a marker is missing.
    """
    words = "Put the numbers of reports/reference into the READMEs."
    parser = argparse.ArgumentParser("python -m thyroid_lib claims", description=words)
    parser.add_argument("--check", action="store_true", help="only say what is out of date")
    options = parser.parse_args(argv)
    try:
        stale = write(check=options.check)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    for name in stale:
        print(f"{name}: {'out of date; run python -m thyroid_lib claims' if options.check else 'written'}")
    return int(bool(stale) and options.check)
