"""What the hardening tests share: the cases of docs/what-can-go-wrong.md, and the lines that sum them up.

A test that holds a failure stands in what_can_go_wrong.yaml and asserts that what the program said matches the
fixture ``sees``, which comes from there. The page is written from these words alone, by

    python tests/hardening.py

and a test holds it to them, so it cannot say what no test has seen.
"""

from pathlib import Path

import yaml

TESTS = Path(__file__).resolve().parent
PAGE = TESTS.parent / "docs" / "what-can-go-wrong.md"
OPENING = """# What can go wrong

Each line is a failure that a test of this project brings about, what the program says then (the test looks for these
very words), and what to do. `python tests/hardening.py` writes this page from the tests; do not edit it.
"""
LEAKS = ("planted", "searched", "leaked")
CASES = yaml.safe_load((TESTS / "what_can_go_wrong.yaml").read_text(encoding="utf-8"))
"""Heading -> test -> ``failure``, ``sees``, ``do``."""
SEES = {test: case["sees"] for tests in CASES.values() for test, case in tests.items()}


def page() -> str:
    """The page's text."""
    lines = [OPENING]
    for heading, rows in CASES.items():
        lines += [f"## {heading}", "", "| what happens | what you see | what to do |", "|---|---|---|"]
        for row in rows.values():
            cells = (row["failure"], f"`{row['sees']}`", row["do"])
            lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
        lines.append("")
    return "\n".join(lines)


def summary(passed, failed=()) -> list[str]:
    """One line each for faults, inputs and leaks, from what the tests have counted, in all processes together.

    A test that failed has survived nothing, but what it saw leaking is told.
    """
    counted = {}
    for reports, names in (passed, ("faults", "inputs", *LEAKS)), (failed, LEAKS):
        for name, value in [
            pair for report in reports for pair in report.user_properties if pair[0] in names
        ]:
            before = counted.get(name, 0)
            counted[name] = max(before, value) if name == "planted" else before + value
    lines = {
        "faults": "faults survived: {faults}",
        "inputs": "inputs tried: {inputs:,}, none crashed the program or left its memory bound",
        "searched": "bytes leaked: {leaked} ({planted} planted identifiers searched for in {searched:,} bytes of "
        "output)",
    }
    shown = counted | {"leaked": counted.get("leaked") or "none"}
    return [line.format(**shown) for name, line in lines.items() if name in counted]


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
