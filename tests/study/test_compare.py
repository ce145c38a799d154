"""Two runs held against each other."""

import pytest

from thyroid_lib.common.files import write_json
from thyroid_lib.study import compare


def interval(value, low, high):
    return {"value": value, "low": low, "high": high, "n_images": 9, "n_patients": 3}


def folder(path, metrics, **facts):
    write_json(path / "metrics.json", metrics)
    write_json(path / "run.json", facts)
    return path


def test_each_number_gets_the_verdict_of_the_stated_rule(tmp_path):
    ours = {"same": 1.0, "near": 100.5, "far": 2.0, "in": interval(0.80, 0.7, 0.9), "name": "a"}
    theirs = {"same": 1.0, "near": 100.0, "far": 1.0, "in": interval(0.85, 0.75, 0.95), "name": "b", "old": 1}
    ours["wide"], theirs["wide"] = interval(0.9, 0.1, 1.0), interval(0.5, 0.45, 0.55)  # holds it one way only
    runs = [folder(tmp_path / name, {"05": metrics}) for name, metrics in (("a", ours), ("b", theirs))]
    result = compare.compare(*runs)
    assert result.lines("identical") == ["05/same"] and result.lines("close") == ["05/in", "05/near"]
    far, name, wide = result.lines("different")
    assert far.startswith("05/far:") and name.startswith("05/name:")
    assert wide == "05/wide: 0.9000 (0.1000 to 1.0000), reference 0.5000 (0.4500 to 0.5500)"
    assert result.lines("missing") == ["05/old: only in the reference"]
    assert not result.agrees


def test_a_new_metric_and_a_stage_on_request_that_one_side_lacks_are_told_and_decide_nothing(tmp_path):
    reference = folder(tmp_path / "b", {"05_evaluate": {"x": 1.0}})
    more = folder(tmp_path / "a", {"05_evaluate": {"x": 1.0, "w": 2.0}, "06_ablation": {"y": 2.0, "z": 3.0}})
    result = compare.compare(more, reference)
    assert result.agrees and not result.lines("missing")
    assert result.lines("new") == ["05_evaluate/w: only in the run"]
    assert not compare.compare(folder(tmp_path / "c", {"06_ablation": {"y": 2.0}}), reference).agrees
    assert result.around["stages"] == ["06_ablation: 2 numbers, not in the reference"]
    assert "stages (1)" in result.verdict and "06_ablation" in result.report()
    back = compare.compare(reference, more)  # the stage was not asked for, the metric is missing
    assert not back.agrees and back.lines("missing") == ["05_evaluate/w: only in the reference"]
    assert back.around["stages"] == ["06_ablation: 2 numbers, not in the run"]


def many(outside, headline=0.8):
    """Metrics of which `outside` of 100 lie outside the interval of those of `many(0)`."""
    metrics = {f"m{n:03}": interval(0.8, 0.7, 0.9) for n in range(100)}
    metrics |= {f"m{n:03}": interval(0.95, 0.92, 0.98) for n in range(outside)}
    key = {"label": "Macro AUROC", "metric": interval(headline, headline - 0.1, headline + 0.1)}
    return {"05_evaluate": {**metrics, "headline": {"first": key}}}


def test_of_many_intervals_one_in_twenty_may_miss_but_no_key_number(tmp_path, capsys):
    reference = folder(tmp_path / "b", many(0))
    few = compare.compare(folder(tmp_path / "few", many(5)), reference)
    assert few.agrees and len(few.lines("outside")) == 5 and "5 outside an interval as may be" in few.verdict
    more = compare.compare(folder(tmp_path / "more", many(6)), reference)
    assert not more.agrees and len(more.lines("different")) == 6
    key = compare.compare(folder(tmp_path / "key", many(0, headline=0.5)), reference)
    assert [row.split(":")[0] for row in key.lines("different")] == ["05_evaluate/headline/first/metric"]
    assert compare.main([str(tmp_path / "few"), str(reference), "--all"]) == 0
    said = capsys.readouterr().out
    assert all(f"05_evaluate/m{n:03}" in said for n in range(100)) and compare.rule() in said


def test_noisy_keys_are_listed_and_do_not_decide(tmp_path):
    def training(epoch, loss, threshold, pixels, curve):
        return {
            "01_preprocess": {"finetune": {"crops_hash": pixels, "files": 40}},
            "03_pretrain": {"best_epoch": epoch, "images": {"train": 9}},
            "04_finetune": {
                "trainings": {"finetuned, fold 0": {"val_loss": loss}},
                "fixed_on_validation": {"finetuned/fold0": {"operating_points": {"a": threshold}}},
            },
            "05_evaluate": {"internal": {"finetuned": {"curves": {"a": {"sensitivity": curve}}}}},
        }

    other = training(3, 1.2, 0.2, "aa", [0, 0.5, 1])
    a, b = folder(tmp_path / "a", other), folder(tmp_path / "b", training(5, 0.8, 0.4, "bb", [0, 0.7, 1]))
    result = compare.compare(a, b)
    assert result.agrees and len(result.lines("noisy")) == 5 and len(result.lines("identical")) == 2
    assert result.around["data"] == ["01_preprocess/finetune/crops_hash: aa, reference bb"]
    other["01_preprocess"]["finetune"]["files"] = 30
    assert not compare.compare(a, folder(tmp_path / "c", other)).agrees, "other data are no noise"


@pytest.mark.parametrize("key, forgiven", [("internal/finetuned/image/sensitivity/a", True),
    ("internal/finetuned/conformal/coverage", True), ("maps/trained/masks/energy", True),
    ("internal/finetuned/image/auroc/a", False), ("headline/first/metric", False)])  # fmt: skip
def test_between_processors_what_rests_on_one_networks_operating_points_is_noisy(tmp_path, key, forgiven):
    def run(name, value, processor):
        metrics = {"05_evaluate": {key: interval(value, value - 0.05, value + 0.05)}}
        return folder(tmp_path / name, metrics, environment={"processor": processor})

    reference = run("reference", 0.6, "A")
    assert not compare.compare(run("same", 0.8, "A"), reference).agrees, "the same processor repeats it"
    found = compare.compare(run("other", 0.8, "B"), reference)
    assert found.agrees == forgiven and len(found.lines("noisy")) == forgiven


def test_the_exit_status_tells_agreement_whatever_the_parameters_difference_and_misuse(tmp_path, capsys):
    for data, epochs, torch in (("ddti:../../data/ddti", 3, "2.15"), ("ddti:ddti", 4, "2.11")):
        parameters = {"04": {"epochs": epochs, "finetune_data": data}}
        folder(tmp_path / torch, {"x": 1}, parameters=parameters, environment={"packages": {"torch": torch}})
    assert compare.main([str(tmp_path / "2.15"), str(tmp_path / "2.11")]) == 0
    said = capsys.readouterr().out
    assert "Around: parameters:\n  04/epochs: 3, reference 4" in said and "finetune_data" not in said
    assert "Around: environment:\n  packages/torch: 2.15, reference 2.11" in said
    assert "Around it: parameters (1), environment (1) differ." in said
    a, b = folder(tmp_path / "a", {"x": 1}), folder(tmp_path / "b", {"x": 2})
    assert [compare.main([str(a), str(other)]) for other in (a, b, tmp_path)] == [0, 1, 2]
    said = capsys.readouterr()
    assert "same data, parameters and environment" in said.out
    assert "expected a run with metrics.json" in said.err


@pytest.mark.parametrize("value", [None, interval(None, None, None), [1.0, None]])
def test_an_undefined_number_equals_itself_and_nothing_else(tmp_path, value):
    a = folder(tmp_path / "a", {"x": value})
    assert compare.compare(a, a).agrees
    assert not compare.compare(a, folder(tmp_path / "b", {"x": 0.5})).agrees
