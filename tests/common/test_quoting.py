"""Quoting: whatever a file holds, a message shows a short piece of it on one line."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from thyroid_lib import datasets
from thyroid_lib.classifier import definition
from thyroid_lib.common.messages import MORE, MOST, NAMES, listed, named, quoted
from thyroid_lib.study import profiles
from thyroid_lib.training import checkpoint

LONG = "x" * 10_000
anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=30,
)


@given(anything)
def test_a_quoted_value_is_short_and_printable(value):
    for text in (quoted(value), named(value)):
        assert len(text) <= MOST + 2 and text.isprintable()


def test_short_values_are_quoted_in_full_long_ones_with_both_ends_and_of_a_list_the_first():
    assert [quoted(value) for value in ("old", 430.0, None)] == ["'old'", "430.0", "None"]
    text = quoted("begin" + LONG + "end")
    assert text.startswith("'begin") and text.endswith("end'")
    assert len(quoted(LONG, MORE)) > MOST
    assert named("age") == "age" and named("age\x1b[2J\n") == r"'age\x1b[2J\n'"
    value = [LONG]
    for _ in range(60):
        value = [value] * 50  # written out it would not fit any memory
    assert len(quoted(value)) <= MOST + 2
    assert listed(["a", "b"]) == "a, b" and listed([]) == ""
    many = listed(f"c{n}" for n in range(1000))
    assert many.startswith("c0, c1, ") and many.endswith("(1000 in all)") and many.count("c") == NAMES


def test_messages_about_foreign_files_stay_short(tmp_path):
    sound = {"format": "thyroid_lib classifier", "format_version": 1}
    foreign = {"format_version": LONG}, {LONG: 1}, {"files": {LONG: {LONG: LONG}}}
    settings = {LONG: {LONG: 1}, "common": {"finetune_data": LONG, "epochs": LONG}}
    (tmp_path / "manifest.csv").write_text(",".join([LONG, *(f"{LONG[:90]}{n}" for n in range(500))]) + "\n")
    checkpoint.save_weights(tmp_path / checkpoint.STATE, {}, {"format": LONG})
    many = {LONG + str(n): LONG for n in range(900)}
    calls = [(2500, definition.check, sound | change, "classifier.json") for change in foreign]
    calls += [(2500, profiles.resolve, settings, [], {}), (2500, datasets.read, f"manifest:{tmp_path}")]
    calls += [(2500, checkpoint.read_state, tmp_path)]
    calls += [((NAMES + 1) * (MOST + MORE), checkpoint.refuse_another, tmp_path, many, {"lr": 1})]
    for most, call, *arguments in calls:
        with pytest.raises((ValueError, checkpoint.CheckpointError)) as error:
            call(*arguments)
        assert len(str(error.value)) < most, str(error.value)[:300]
