"""Differences, corrections and verdicts: numbers from closed forms, and rules that say no more than the data."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from scipy import stats
from sklearn.metrics import recall_score, roc_auc_score
from small_grid import grid, spots
from small_predictions import KEYS as CLASSES
from small_predictions import study

from thyroid_lib.ablation import grid as ablation
from thyroid_lib.ablation import report
from thyroid_lib.ablation import results as ar
from thyroid_lib.ablation import verdicts as av
from thyroid_lib.ablation.results import Measured
from thyroid_lib.evaluation import comparison, summary
from thyroid_lib.evaluation.bootstrap import Clusters
from thyroid_lib.plots import ablation as charts


def predictions(patients: int = 80, **strength: list[float]) -> pd.DataFrame:
    """Of models "<arm>/seed<k>" on the same images; the larger an arm's strength, the better its trainings do."""
    models = {f"{arm}/seed{k}": by for arm, each in strength.items() for k, by in enumerate(each)}
    tables = [study(patients, model=model, signal=by, folds=1) for model, by in models.items()]
    whole = pd.concat(tables, ignore_index=True)
    whole.attrs["classes"] = CLASSES
    return whole


def drawn(values: dict[str, list[float]], spread: float = 0.02) -> Measured:
    """Arms with given macro AUROCs of their trainings; the draws of each are their value plus the same noise."""
    random, made = np.random.default_rng(0), {}
    for arm, each in values.items():
        noise = np.append(0, random.normal(0, spread, 400))
        made[arm] = {ar.MAIN: np.array(each)[:, None] + noise}
    return Measured(made, {"n_images": 120, "n_patients": 60, "effective": 15, "minimum": 5}, watched=[])


WEIGHTS = {"invention": 1.0, "original": -1.0}
VERDICTS = yaml.safe_load(Path(__file__).with_name("verdicts.yaml").read_text(encoding="utf-8"))


def test_p_values_of_a_family_are_adjusted_by_holm_and_only_tests_with_one_count():
    p = {"a": 0.01, "b": 0.04, "c": 0.03, "d": 0.005, "e": None}
    found = ar.corrected({name: {"p": value} for name, value in p.items()})
    adjusted = [found[name]["p_holm"] for name in "abcd"]
    assert adjusted == pytest.approx([0.03, 0.06, 0.06, 0.02])  # R: p.adjust(p, "holm")
    assert found["e"]["p_holm"] is None


def test_metrics_of_an_arm_are_the_mean_over_its_trainings():
    table = predictions(original=[1.0, 2.0])
    found = ar.per_arm(ar.measure(table, draws=200), "original")
    each = [table[table["model"] == model] for model in ("original/seed0", "original/seed1")]
    p = [rows[["p_" + key for key in CLASSES]].to_numpy() for rows in each]
    truth = each[0]["truth"].map(CLASSES.index).to_numpy()
    areas = [np.mean([roc_auc_score(truth == k, q[:, k]) for k in range(4)]) for q in p]
    assert found["macro_auroc"]["trainings"] == pytest.approx(areas)
    assert found["macro_auroc"]["value"] == pytest.approx(np.mean(areas))
    key = "medullary_carcinoma"
    recalls = [recall_score(rows["truth"] == key, rows["positive_" + key]) for rows in each]
    assert found[f"sensitivity/{key}"]["value"] == pytest.approx(np.mean(recalls))
    assert found["macro_auroc"]["n_patients"] == 80 and found["macro_auroc"]["low"] < np.mean(areas)


def test_a_difference_is_the_paired_one_of_the_comparison_module():
    table = predictions(invention=[1.2], original=[0.8])
    measured = ar.measure(table, draws=500)
    ours = ar.contrast(measured, WEIGHTS)
    parts = [table[table["model"] == f"{arm}/seed0"] for arm in ("invention", "original")]
    for part in parts:
        part.attrs["classes"] = CLASSES
    theirs = comparison.compare(*parts, draws=500)["macro_auroc"]
    assert ours["value"] == pytest.approx(theirs["value"])
    assert [ours["low"], ours["high"]] == pytest.approx([theirs["low"], theirs["high"]], abs=0.01)
    assert not ours["trainings_counted"]


def test_patients_and_trainings_pooled_within_arms_add_up_in_the_interval_of_a_difference():
    arms = {"original": [0.70, 0.80], "invention": [0.60, 0.64], "shuffled": [0.2, 0.9]}
    measured = drawn(arms | {"texture": [0.7, 0.7]})
    noise = (0.005 + 0.0008) / 2
    assert ar.training_noise(measured) == (pytest.approx(noise), 2)
    found, n = ar.contrast(measured, WEIGHTS), measured.rests_on["effective"]
    values = (measured.draws["invention"][ar.MAIN] - measured.draws["original"][ar.MAIN]).mean(0)
    over_patients, over_trainings = values[1:].var() * n / (n - 1), 2 * noise / 2
    total = over_patients + over_trainings
    df = total**2 / (over_patients**2 / (n - 1) + over_trainings**2 / 2)
    half = stats.t.isf(0.025, df) * total**0.5
    assert [found["low"], found["high"]] == pytest.approx([-0.13 - half, -0.13 + half])
    assert found["p"] == pytest.approx(2 * stats.t.sf(0.13 / total**0.5, df))
    alone = ar.contrast(measured, WEIGHTS, trainings=False)
    assert alone["high"] - alone["low"] < found["high"] - found["low"]


def test_trainings_of_one_network_are_not_called_different():
    random, patients, rejected, naive = np.random.default_rng(0), 50, 0, 0
    clusters, rounds = Clusters(np.arange(patients), 200), 300
    rests_on = {"n_images": patients, "n_patients": patients, "effective": patients, "minimum": 5}
    for _ in range(rounds):
        made = {}
        for arm in ("original", "dilated", "connected", "invention"):
            each = 0.75 + 0.03 * random.normal(size=(2, 1)) + 0.1 * random.normal(size=(2, patients))
            draws = np.array([clusters.sums(scores)[:, 0] / patients for scores in each])
            made[arm] = {ar.MAIN: draws}
        measured = Measured(made, rests_on, [])
        rejected += ar.contrast(measured, WEIGHTS)["p"] < 0.05
        naive += ar.contrast(measured, WEIGHTS, trainings=False)["p"] < 0.05
    assert rejected / rounds < 0.06
    assert naive / rounds > 0.2, "without the spread of trainings one in five would be called different"


def test_a_real_difference_is_found():
    measured = ar.measure(predictions(invention=[2.0, 2.0], original=[1.0, 1.0]), draws=300)
    found = ar.differences(measured, "original")["macro_auroc"]["invention"]
    assert found["low"] > 0 and found["p_holm"] < 0.05


def test_too_few_patients_give_no_number():
    measured = ar.measure(predictions(16, original=[1.0], invention=[1.0]), draws=100)
    found = ar.contrast(measured, WEIGHTS)
    assert found["value"] is None and found["p"] is None and "too few" in found["reason"]
    assert ar.per_arm(measured, "original")["macro_auroc"]["trainings"] == []


def test_arms_that_were_tested_on_other_images_are_refused():
    table = predictions(original=[1.0], invention=[1.0])
    with pytest.raises(ValueError, match="tested on the same images; 'original/seed0' was not"):
        ar.measure(table.iloc[:-1].assign(model=table["model"]).reset_index(drop=True), draws=100)


@pytest.mark.parametrize("test, options, wanted", VERDICTS)
def test_the_verdict_follows_the_stated_rule(test, options, wanted):
    word, why = av.verdict({"weights": WEIGHTS, **test}, margin=0.02, **options)
    assert word == wanted and why


def test_a_claim_without_its_arms_is_not_tested():
    found = av.claims(drawn({"original": [0.8, 0.8], "texture": [0.7, 0.7]}), margin=0.02)
    assert {claim["verdict"] for claim in found.values()} == {av.NOT_TESTED}


def test_both_pairs_of_an_effect_are_averaged_where_both_are_there():
    values = {"original": 0.70, "dilated": 0.72, "connected": 0.75, "invention": 0.80}
    found = av.claims(drawn({arm: [v, v + 0.002] for arm, v in values.items()}), margin=0.02)
    assert found["shallow_features_help"]["value"] == pytest.approx((0.05 + 0.08) / 2)
    assert found["learnable_downsampling"]["value"] == pytest.approx((0.02 + 0.05) / 2)
    assert found["accuracy"]["value"] == pytest.approx(0.10)
    assert all(claim.get("p_holm") is None or claim["p_holm"] >= claim["p"] for claim in found.values())
    fewer = av.claims(drawn({arm: [values[arm]] * 2 for arm in ("original", "dilated")}), margin=0.02)
    assert fewer["learnable_downsampling"]["value"] == pytest.approx(0.02)


@pytest.mark.parametrize("values, claim, wanted, because", [
    ((0.7, 0.699, 0.9, 0.901), "shallow_features_help", av.SUPPORTED, "above 0"),
    ((0.7, 0.699, 0.9, 0.901), "learnable_downsampling", av.NOT_SUPPORTED, "ruled out"),
    ((0.5, 0.5, 0.5, 0.5), "accuracy", av.UNDECIDED, "no network of this comparison is above chance"),
    ((0.7, 0.7, 0.9, 0.9, 0.7), "accuracy", av.UNDECIDED, "a control failed: shuffled"),
])  # fmt: skip
def test_claims_are_decided_by_what_the_arms_and_the_controls_show(values, claim, wanted, because):
    arms = dict(zip(("original", "dilated", "connected", "invention", "shuffled"), values))
    measured = drawn({arm: [value, value + 0.001] for arm, value in arms.items()}, spread=0.003)
    found = av.claims(measured, margin=0.02)[claim]
    assert found["verdict"] == wanted and because in found["why"]


def test_luck_in_dealing_out_labels_is_part_of_the_shuffled_arms_interval():
    assert av.controls(drawn({"shuffled": [0.44, 0.61]}, spread=0.005))["shuffled"]["passed"]
    assert not av.controls(drawn({"shuffled": [0.60, 0.61]}, spread=0.005))["shuffled"]["passed"]


def test_compute_is_under_control_up_to_the_stated_multiple_and_is_so_at_the_published_size():
    here = pd.DataFrame({"gmacs": {"original": 4.0, "invention": 5.0}})
    found = report.compute_claims(here, {"limit": 1.25, "classes": 4})
    assert found["compute"]["verdict"] == av.SUPPORTED and found["compute"]["multiple"] == 1.25
    assert found["compute_published"]["multiple"] == pytest.approx(9.44 / 8.36, abs=0.01)
    over = report.compute_claims(here, {"limit": 1.24, "classes": 4})["compute"]
    assert over["verdict"] == av.NOT_SUPPORTED and over["why"] == "more than 1.24 times the original's"
    assert report.compute_claims(here[:1], {"limit": 1.25, "classes": 4}) == {}


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A whole grid on a task that tiny networks learn, with both controls: jobs, results, what was measured."""
    folder = tmp_path_factory.mktemp("controls")
    data = spots(folder / "data", patients=48, side=32)
    jobs = grid(data, folder / "grid", ["original", "invention", "controls", "texture"], seeds=2, epochs=7)
    found, failed = ablation.run(jobs)
    assert not failed
    return jobs, found, ar.measure(ablation.collect(found, folder / "predictions.csv"), draws=300)


def test_shuffled_labels_come_out_at_chance_and_the_same_network_again_without_a_difference(small):
    _, _, measured = small
    learnt, found = ar.per_arm(measured, "invention")["macro_auroc"], av.controls(measured)
    assert learnt["low"] > 0.8, "the task is learnt where labels are right"
    assert found["shuffled"]["low"] <= 0.5 <= found["shuffled"]["high"]
    assert found["again"]["low"] <= 0 <= found["again"]["high"]
    assert found["shuffled"]["passed"] and found["again"]["passed"]


def test_what_is_recorded_is_complete_and_said_in_words_and_figures(small):
    jobs, found, measured = small
    spent, speed = report.computed_costs(jobs), report.measured_speed(jobs, rounds=1)
    numbers = report.summary(measured, found, spent, {"margin": 0.02, "limit": 1.25, "classes": 4})
    assert summary.complete(numbers)
    claim = report.throughput_claim(speed, 1.25)
    text = report.findings(numbers, claim, {"resnet50, seed 0, fold 0": "it diverged"}, jobs, True)
    assert "**simulated**" in text and "it diverged" in text
    for verdict in numbers["claims"].values():
        assert verdict["verdict"] == av.NOT_TESTED or verdict["claim"] in text
    assert len(report.claim_table(numbers["claims"] | claim)) == len(numbers["claims"]) + 1
    assert len(report.difference_table(numbers["difference"])) == 3  # no controls
    both = {report.TITLES[arm] for arm in ("original", "invention")}
    assert {*report.cost_table(spent, speed, 8).index} == both
    assert "texture" not in numbers["gaze"] and numbers["gaze"]["original"]["reach"] < 1
    arms, looks = numbers["arms"], report.gaze_maps(found)
    points, lines = report.cost_points(arms, spent, speed), report.references(arms)
    figures = [
        charts.arms(report.arm_rows(arms), "macro AUROC"),
        charts.accuracy_against_cost(points, lines, "macro AUROC"),
        charts.gaze(looks, {report.TITLES[arm]: own for arm, own in numbers["gaze"].items()}),
    ]
    assert "logistic regression on texture" in figures[1].alt
    for figure in figures:
        figure.canvas.draw()
        assert "both: the invention" in figure.alt and any(map(str.isdigit, figure.alt))
