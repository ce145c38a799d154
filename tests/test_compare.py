"""Two runs held against each other."""

import pytest

from thyroid_lib import compare
from thyroid_lib.runfolder import write_json


def interval(value, low, high):
    return {"value": value, "low": low, "high": high, "n_images": 9, "n_patients": 3}


def folder(path, metrics, **facts):
    write_json(path / "metrics.json", metrics)
    write_json(path / "run.json", facts)
    return path


def test_each_number_gets_the_verdict_of_the_stated_rule(tmp_path):
    ours = {
        "05": {"same": 1.0, "near": 100.5, "far": 2.0, "in": interval(0.80, 0.7, 0.9), "name": "a", "new": 1}
    }
    theirs = {
        "05": {
            "same": 1.0,
            "near": 100.0,
            "far": 1.0,
            "in": interval(0.85, 0.75, 0.95),
            "name": "b",
            "old": 1,
        }
    }
    result = compare.compare(folder(tmp_path / "a", ours), folder(tmp_path / "b", theirs))
    assert result.identical == ["05/same"] and result.close == ["05/in", "05/near"]
    assert [row.split(":")[0] for row in result.different] == ["05/far", "05/name"]
    assert result.missing == ["05/new: only in the run", "05/old: only in the reference"]
    assert not result.agrees


def test_an_interval_must_hold_the_other_value_both_ways(tmp_path):
    wide, narrow = interval(0.9, 0.1, 1.0), interval(0.5, 0.45, 0.55)
    result = compare.compare(folder(tmp_path / "a", {"x": wide}), folder(tmp_path / "b", {"x": narrow}))
    assert result.different == ["x: 0.9000 (0.1000 to 1.0000), reference 0.5000 (0.4500 to 0.5500)"]


def test_differences_of_environment_parameters_are_listed_and_do_not_decide(tmp_path, capsys):
    a = folder(
        tmp_path / "a",
        {"x": 1},
        parameters={"04": {"epochs": 3}},
        environment={"packages": {"torch": "2.15"}},
    )
    b = folder(
        tmp_path / "b",
        {"x": 1},
        parameters={"04": {"epochs": 4}},
        environment={"packages": {"torch": "2.11"}},
    )
    assert compare.main([str(a), str(b)]) == 0
    said = capsys.readouterr().out
    assert (
        "parameters/04/epochs: 3, reference 4" in said
        and "environment/packages/torch: 2.15, reference 2.11" in said
    )


def test_the_exit_status_tells_agreement_difference_and_misuse(tmp_path, capsys):
    a, b = folder(tmp_path / "a", {"x": 1}), folder(tmp_path / "b", {"x": 2})
    assert compare.main([str(a), str(a)]) == 0
    assert compare.main([str(a), str(b)]) == 1
    assert compare.main([str(a), str(tmp_path)]) == 2
    assert "expected a run with metrics.json" in capsys.readouterr().err


@pytest.mark.parametrize("value", [None, interval(None, None, None), [1.0, None]])
def test_an_undefined_number_equals_itself_and_nothing_else(tmp_path, value):
    a = folder(tmp_path / "a", {"x": value})
    assert compare.compare(a, a).agrees
    assert not compare.compare(a, folder(tmp_path / "b", {"x": 0.5})).agrees
