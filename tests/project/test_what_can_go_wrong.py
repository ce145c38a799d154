"""The page "What can go wrong" says what the tests have seen, and nothing else."""

import re
from types import SimpleNamespace

import hardening


def test_the_page_is_what_the_tests_say_and_the_readme_leads_to_it():
    said = hardening.PAGE.read_text(encoding="utf-8")
    assert said == hardening.page(), "write it: python tests/hardening.py"
    assert "docs/what-can-go-wrong.md" in (hardening.TESTS.parent / "README.md").read_text(encoding="utf-8")


def test_every_case_has_all_its_words_and_a_test_that_asserts_them():
    rows = [row for rows in hardening.CASES.values() for row in rows.values()]
    assert len(rows) >= 25 and len({row["failure"] for row in rows}) == len(rows)
    for row in rows:
        assert row["failure"][0].isupper() and len(row["sees"]) >= 8 and row["do"].endswith(".")
    for heading, tests in hardening.CASES.items():
        (path,) = hardening.TESTS.rglob(re.search(r"\((.*)\)$", heading)[1])
        for name in tests:
            _, after = path.read_text(encoding="utf-8").split(f"\ndef {name}(")
            arguments, body = after.split("\ndef ")[0].split("):\n", 1)
            assert "sees" in arguments and "sees" in body, (path.name, name)


def counted(**properties):
    return SimpleNamespace(user_properties=list(properties.items()))


def test_the_closing_lines_add_up_what_the_tests_counted_and_a_leak_is_told_though_its_test_failed():
    clean = counted(faults=2, planted=5, searched=1000, leaked=0)
    other = counted(planted=5, searched=500, leaked=0, unrelated=9)
    assert hardening.summary([counted(faults=1, inputs=20), clean, other]) == [
        "faults survived: 3",
        "inputs tried: 20, none crashed the program or left its memory bound",
        "bytes leaked: none (5 planted identifiers searched for in 1,500 bytes of output)",
    ]
    assert hardening.summary([]) == []
    failed = counted(faults=1, planted=5, searched=500, leaked=7)
    (line,) = hardening.summary([counted(planted=5, searched=1000, leaked=0)], [failed])
    assert line == "bytes leaked: 7 (5 planted identifiers searched for in 1,500 bytes of output)"
