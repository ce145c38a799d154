"""What the hardening tests share: the cases of docs/what-can-go-wrong.md, and the lines that sum them up.

A test that holds a failure is decorated with ``@goes_wrong(failure, sees=..., do=...)`` and asserts that what the
program said matches the fixture ``sees``. The page is written from these words alone, by

    python tests/hardening.py

and a test holds it to them, so it cannot say what no test has seen.
"""

import ast
import functools
from pathlib import Path

import pytest

TESTS = Path(__file__).resolve().parent
PAGE = TESTS.parent / "docs" / "what-can-go-wrong.md"
OPENING = """# What can go wrong

Each line is a failure that a test of this project brings about, what the program says then (the test looks for these
very words), and what to do. `python tests/hardening.py` writes this page from the tests; do not edit it.
"""


LEAKS = ("planted", "searched", "leaked")


def goes_wrong(failure: str, *, sees: str, do: str):
    """Marks a test as the proof of one line of the page.

    Args:
        failure: what happens.
        sees: words that the program says; the test gets them as the fixture of this name.
        do: what a person does then.
    """
    return pytest.mark.goes_wrong(failure=failure, sees=sees, do=do)


@functools.cache
def cases() -> dict[str, list[dict]]:
    """Heading -> cases, read from the sources of the tests: title of the module's docstring, then each decorator."""
    found = {}
    for path in sorted(TESTS.rglob("test_*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        rows = [
            {"failure": ast.literal_eval(call.args[0])}
            | {keyword.arg: ast.literal_eval(keyword.value) for keyword in call.keywords}
            for call in ast.walk(tree)
            if isinstance(call, ast.Call) and getattr(call.func, "id", "") == "goes_wrong"
        ]
        if rows:
            title = ast.get_docstring(tree).partition("\n")[0].partition(":")[0].rstrip(".")
            found[f"{title} ({path.name})"] = rows
    return found


def page() -> str:
    """The page's text."""
    lines = [OPENING]
    for heading, rows in cases().items():
        lines += [f"## {heading}", "", "| what happens | what you see | what to do |", "|---|---|---|"]
        for row in rows:
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
