"""Statistics on predictions, against scikit-learn, closed forms and hand-made cases with known answers."""

import json

import numpy as np
import pandas as pd
import pytest
from scipy import special, stats
from sklearn import metrics as sk
from small_predictions import KEYS, study

from thyroid_lib.common.files import PROJECT, read_json
from thyroid_lib.evaluation import comparison, report, selective, summary
from thyroid_lib.evaluation import metrics as evaluation
from thyroid_lib.evaluation import predictions as predictions_file
from thyroid_lib.evaluation.bootstrap import Clusters, delong, estimate, rank_statistics, scarcer_sides
from thyroid_lib.evaluation.predictions import by_patient, covariates_of
from thyroid_lib.study import profiles
from thyroid_lib.training import summary as fine_tuning


def handmade(truth, probabilities, patients=None, classes=("a", "b")):
    """Predictions with these probabilities; a verdict is positive from 0.5."""
    owners = [f"p{i}" for i in (range(len(truth)) if patients is None else patients)]
    index = pd.DataFrame({"patient": owners, "group": owners, "dataset": "d", "label": truth})
    index["image"] = index.index.astype(str)
    about = {"model": "finetuned", "set": "internal", "fold": 0}
    with np.errstate(divide="ignore"):
        logits = np.log(np.asarray(probabilities, float))
    points = dict.fromkeys(classes, 0.5)
    return predictions_file.prediction_table(index, [*classes], logits, 1.0, points, **about)


def test_what_is_written_is_read_back_sorted_with_nine_digits(tmp_path):
    whole = pd.concat([study(place="external"), study()])
    path = predictions_file.write_predictions([whole], tmp_path / "predictions.csv")
    read = predictions_file.read_predictions(path)
    assert predictions_file.classes_of(read) == KEYS and covariates_of(read) == ["age", "printed_text", "sex"]
    again = predictions_file.write_predictions([read], tmp_path / "again.csv")
    assert path.read_bytes() == again.read_bytes()
    expected = whole.sort_values(["set", "image"])["p_nodular_goiter"]
    np.testing.assert_allclose(read["p_nodular_goiter"], expected, rtol=1e-8)


def test_free_text_and_paths_never_reach_the_predictions():
    row = {
        "image": "a.png", "path": "/home/x/a.png", "patient": "p", "group": "p", "dataset": "d", "label": "a",
        "text": "Mrs Jane Doe", "sha256": "f" * 64, "remark": "seen by Dr Who on the first of May in room 12",
    }  # fmt: skip
    about = {"model": "m", "set": "internal", "fold": 0}
    rows, points = pd.DataFrame([row]), {"a": 0.5, "b": 0.5}
    table = predictions_file.prediction_table(rows, ["a", "b"], [[1.0, 0.0]], 1.0, points, **about)
    assert covariates_of(table) == ["printed_text"]
    assert not any(word in table.to_csv() for word in ("Jane", "home", "Who"))


@pytest.mark.parametrize("damage, message", [
    (lambda t: t.assign(set="test"), "expected set to be one of"),
    (lambda t: t.assign(truth="lymphoma"), "expected every truth"),
    (lambda t: t.assign(p_nodular_goiter=0.9), "sum to 1"),
    (lambda t: pd.concat([t, t.head(1)]), "one row per model, set, image and fold"),
    (lambda t: t.assign(group="one"), "each group in one fold"),
    (lambda t: t.assign(image="/" + t["image"]), "relative to their data set.*first model finetuned"),
    (lambda t: t.drop(columns="truth"), "missing"),
])  # fmt: skip
def test_a_damaged_table_is_refused_with_the_reason_and_never_written(tmp_path, damage, message):
    with pytest.raises((ValueError, KeyError), match=message):
        predictions_file.write_predictions([damage(study(patients=20))], tmp_path / "p.csv")
    with pytest.raises(FileNotFoundError, match="04_finetune"):  # the notebook that writes it
        predictions_file.read_predictions(tmp_path / "p.csv")


def test_mean_predictions_average_probabilities_and_apply_the_given_points():
    one, swapped = study(patients=12, folds=1), ["p_papillary_carcinoma", "p_nodular_goiter"]
    two = one.assign(**dict(zip(swapped, one[swapped[::-1]].to_numpy().T)))
    mean = predictions_file.mean_predictions([one, two], dict.fromkeys(KEYS, 0.5))
    expected = one[swapped].mean(axis=1)
    np.testing.assert_allclose(mean["p_nodular_goiter"], expected)
    assert (mean["positive_nodular_goiter"] == (expected >= 0.5)).all() and (mean["fold"] == -1).all()


def test_every_metric_equals_scikit_learn_on_the_same_file(tmp_path):
    path = predictions_file.write_predictions([study(patients=80)], tmp_path / "predictions.csv")
    found = evaluation.evaluate(predictions_file.read_predictions(path), draws=50, ordered=True)
    raw = pd.read_csv(path)  # independent reading
    p, y = raw[[f"p_{k}" for k in KEYS]].to_numpy(), raw["truth"].map(KEYS.index)
    predicted = p.argmax(1)
    expected = {
        "macro_auroc": sk.roc_auc_score(y, p, multi_class="ovr"),
        "accuracy": sk.accuracy_score(y, predicted),
        "balanced_accuracy": sk.balanced_accuracy_score(y, predicted),
        "mcc": sk.matthews_corrcoef(y, predicted),
        "weighted_kappa": sk.cohen_kappa_score(y, predicted, weights="quadratic"),
        "brier": np.mean(np.sum((p - np.eye(4)[y]) ** 2, axis=1)),
        "log_loss": sk.log_loss(y, p),
    }
    for k, key in enumerate(KEYS):
        is_type, called, sure = y == k, raw[f"positive_{key}"], p[:, k] >= 0.35
        (_, alarms), (_, hits) = sk.confusion_matrix(is_type, sure)
        expected |= {
            f"auroc/{key}": sk.roc_auc_score(is_type, p[:, k]),
            f"average_precision/{key}": sk.average_precision_score(is_type, p[:, k]),
            f"sensitivity/{key}": sk.recall_score(is_type, called),
            f"specificity/{key}": sk.recall_score(~is_type, 1 - called),
            f"ppv/{key}": sk.precision_score(is_type, called),
            f"npv/{key}": sk.precision_score(~is_type, 1 - called),
            f"net_benefit/{key}/0.35": (hits - alarms * 0.35 / 0.65) / len(y),  # Vickers & Elkin 2006
        }
        everyone = is_type.mean() - (~is_type).mean() * 0.35 / 0.65
        assert found[f"net_benefit/{key}/0.35/all"] == pytest.approx(everyone)
    for name, value in expected.items():
        assert found[name]["value"] == pytest.approx(value, abs=1e-8), name
        assert found[name]["low"] <= found[name]["value"] <= found[name]["high"], name
        assert found[name]["n_patients"] == 80 or "/" in name
    matrix = [[found[f"confusion/{t}/{q}"] for q in KEYS] for t in KEYS]
    assert (np.array(matrix) == sk.confusion_matrix(y, predicted)).all()


def test_predictive_values_follow_bayes_at_the_stated_prevalence():
    shares = dict(zip(KEYS, (0.7, 0.1, 0.15, 0.05)))
    found = evaluation.evaluate(study(patients=80), draws=20, prevalence=shares)
    for key, share in shares.items():
        sens, spec = (found[f"{name}/{key}"]["value"] for name in ("sensitivity", "specificity"))
        by_bayes = sens * share / (sens * share + (1 - spec) * (1 - share))
        assert found[f"ppv/{key}"]["value"] == pytest.approx(by_bayes)
        assert found[f"prevalence/{key}"] == share


def test_weighted_rank_statistics_equal_scikit_learn_with_ties():
    rng = np.random.default_rng(3)
    positive, scores = rng.random(300) < 0.3, rng.integers(0, 12, 300) / 12
    clusters = Clusters(rng.integers(0, 70, 300), draws=30)
    auroc, precision = rank_statistics(scores, positive, clusters)
    for draw in (0, 7, 30):
        weights = {"sample_weight": clusters.multiplicities[draw][clusters.index]}
        assert auroc[draw] == pytest.approx(sk.roc_auc_score(positive, scores, **weights))
        assert precision[draw] == pytest.approx(sk.average_precision_score(positive, scores, **weights))


def test_a_draw_takes_patients_whole_and_as_many_as_there_are():
    clusters = Clusters(["a", "a", "b", "c", "c", "c"], draws=500, seed=1)
    assert (clusters.multiplicities.sum(1) == 3).all() and (clusters.multiplicities[0] == 1).all()
    assert clusters.multiplicities[1:].mean() == pytest.approx(1.0)
    assert len({tuple(row) for row in clusters.multiplicities}) == 10  # all multisets of 3 out of 3


def test_a_perfect_classifier_has_an_honest_lower_bound_and_a_constant_one_chance():
    found = evaluation.evaluate(handmade(["a", "b"] * 10, [[1, 0], [0, 1]] * 10), draws=200)
    for name in ("macro_auroc", "accuracy", "balanced_accuracy", "mcc"):
        assert found[name]["value"] == 1 and found[name]["high"] == 1
    assert found["brier"]["value"] == 0
    # 10 of 10 patients: Clopper-Pearson's lower bound is 0.025 ** (1 / 10)
    assert found["sensitivity/a"]["low"] == pytest.approx(0.025**0.1)
    found = evaluation.evaluate(handmade(["a", "b"] * 15, [[0.6, 0.4]] * 30), draws=200)
    assert found["macro_auroc"]["value"] == 0.5 and found["macro_auroc"]["low"] == 0.5
    assert found["mcc"]["value"] == 0 and found["accuracy"]["value"] == 0.5
    assert found["average_precision/a"]["value"] == pytest.approx(0.5)


def test_an_absent_class_and_one_patient_give_a_reason_instead_of_a_number():
    table = handmade(["a", "b"] * 12, [[0.5, 0.3, 0.2], [0.2, 0.6, 0.2]] * 12, classes=("a", "b", "c"))
    found = evaluation.evaluate(table, draws=100)
    for name in ("auroc/c", "sensitivity/c", "macro_auroc", "balanced_accuracy"):
        assert found[name]["value"] is None and "too few: 0 patients" in found[name]["reason"], name
    assert found["accuracy"]["value"] == 1.0 and found["auroc/a"]["value"] == 1.0
    table = handmade(["a", "b"] * 50, [[0.9, 0.1], [0.2, 0.8]] * 50, patients=[1] * 100)
    found = evaluation.evaluate(table, draws=100)
    reason = {"reason": "too few: 1 patient, at least 5 needed", "n_images": 100, "n_patients": 1}
    assert found["accuracy"] == {"value": None, "low": None, "high": None} | reason


def test_copies_of_an_image_do_not_narrow_the_interval():
    rng = np.random.default_rng(2)
    p = np.clip(rng.normal(0.5, 0.2, 40) + np.repeat([0.15, -0.15], 20), 0.01, 0.99)
    once = handmade(["a"] * 20 + ["b"] * 20, np.c_[p, 1 - p])
    often = pd.concat([once.assign(image=f"{i}_" + once["image"]) for i in range(9)], ignore_index=True)
    a, b = (evaluation.evaluate(table, draws=400)["macro_auroc"] for table in (once, often))
    assert a["value"] == pytest.approx(b["value"])
    assert b["high"] - b["low"] == pytest.approx(a["high"] - a["low"], rel=1e-6)
    # as if every image were a patient of its own, the interval would be three times too narrow
    wrong = evaluation.evaluate(often.assign(patient=often["image"]), draws=400)["macro_auroc"]
    assert (wrong["high"] - wrong["low"]) < 0.5 * (a["high"] - a["low"])


def test_a_patients_probability_is_the_mean_over_images_and_mixed_patients_are_counted():
    p = [[0.9, 0.1], [0.3, 0.7], [0.2, 0.8], [0.4, 0.6], [1, 0], [0, 1]]
    table = handmade(["a", "a", "b", "b", "a", "b"], p, patients=[1, 1, 2, 2, 3, 3])
    patients, mixed = by_patient(table)
    assert mixed == ["p3"] and list(patients["p_a"]) == pytest.approx([0.6, 0.3])
    assert list(patients["positive_a"]) == [1, 0]
    assert evaluation.evaluate(table, draws=20, unit="patient", minimum=1)["patients_excluded_mixed"] == 1


def test_calibration_error_is_small_or_the_gap_of_the_overconfident_and_bins_never_part_equal_values():
    rng = np.random.default_rng(7)
    p = rng.uniform(0.5, 1, 4000)
    honest = handmade(np.where(rng.random(4000) < p, "a", "b"), np.c_[p, 1 - p])
    bold = handmade(np.where(rng.random(4000) < 0.7, "a", "b"), [[0.95, 0.05]] * 4000)
    assert evaluation.Sample(honest, draws=50).number("ece_top_label")["value"] < 0.02
    found = evaluation.Sample(bold, draws=50).number("ece_top_label")
    assert found["value"] == pytest.approx(0.25, abs=0.02)
    assert np.bincount(evaluation.bins(np.arange(100.0))).tolist() == [10] * 10
    assert len(np.unique(evaluation.bins(np.full(100, 0.25)))) == 1


def test_delong_equals_its_published_form_and_agrees_with_the_bootstrap():
    # Hanley & McNeil's and DeLong's textbook check: variance from the placement values by hand
    positive = np.array([1, 1, 1, 0, 0, 0, 0], bool)
    scores = np.array([0.9, 0.6, 0.4, 0.5, 0.3, 0.2, 0.4])
    above = np.heaviside(scores[positive][:, None] - scores[~positive], 0.5)
    v10, v01 = above.mean(1), above.mean(0)
    se = np.sqrt(v10.var(ddof=1) / 3 + v01.var(ddof=1) / 4)
    found = delong(scores, positive, np.arange(7))
    assert (found["auroc"], found["se"]) == pytest.approx((v10.mean(), se))
    table = study(patients=200)
    scores, chosen = table["p_nodular_goiter"], (table["truth"] == KEYS[0]).to_numpy()
    draws, _ = rank_statistics(scores, chosen, Clusters(table["patient"], 1000))
    clustered = delong(scores, chosen, table["patient"])["se"]
    assert clustered == pytest.approx(draws[1:].std(), rel=0.12)
    assert delong(scores, chosen, table["image"])["se"] < 0.85 * clustered  # images are not independent


def test_the_interval_of_a_mean_is_students_between_bounds_on_the_logit_scale():
    values = np.random.default_rng(11).normal(size=12)
    found = estimate(Clusters(np.arange(12), 20000, 1).means(values), n_images=12, n_patients=12)
    student = stats.t.interval(0.95, 11, values.mean(), stats.sem(values))
    assert (found["low"], found["high"]) == pytest.approx(student, abs=0.06)
    hit = np.random.default_rng(4).random(15) < 0.8
    draws, share = Clusters(np.arange(15), 20000, 2).means(hit), hit.mean()
    found = estimate(draws, n_images=15, n_patients=15, bounds=(0.0, 1.0))
    se = np.sqrt(share * (1 - share) / 14) / (share * (1 - share))  # of the logit, by the delta method
    student = special.expit(stats.t.interval(0.95, 14, special.logit(share), se))
    assert (found["low"], found["high"]) == pytest.approx(student, abs=0.01)


def test_the_interval_of_a_mean_over_classes_has_the_degrees_of_freedom_of_all_of_them():
    one, two = np.random.default_rng(12).normal(size=(2, 8))
    values, of = np.r_[one, two], np.repeat(np.eye(2, dtype=bool), 8, axis=0)
    means = Clusters(np.arange(16), 40000, 3).means(np.c_[values, values], of)
    found = estimate(means.mean(1), n_images=16, n_patients=16, effective=[8, 8])
    welch = stats.ttest_ind(one, -two, equal_var=True).confidence_interval(0.95)
    # the mean of two means is half the difference of one to the other's negative; 14 degrees of freedom
    assert found["value"] == pytest.approx((one.mean() + two.mean()) / 2)
    assert found["high"] - found["low"] == pytest.approx((welch.high - welch.low) / 2, rel=0.08)
    scarcest = estimate(means.mean(1), n_images=16, n_patients=16, effective=8)
    assert scarcest["high"] - scarcest["low"] > 1.05 * (found["high"] - found["low"])
    patients = np.array(["a", "a", "b", "c", "d"])  # two classes have one scarcer side
    assert scarcer_sides(patients, np.eye(2, dtype=bool)[[0, 0, 0, 1, 1]]) == [2]
    assert scarcer_sides(patients, np.eye(3, dtype=bool)[[0, 0, 1, 1, 2]]) == [1, 2, 1]


def test_paired_differences_are_zero_for_the_same_model_and_narrower_than_two_separate_intervals():
    ours, other = study(patients=100), study(patients=100, model="scratch")
    same = comparison.compare(ours, other, draws=200)
    assert same["macro_auroc"]["value"] == same["macro_auroc"]["low"] == same["macro_auroc"]["high"] == 0
    columns = ["p_nodular_goiter", "p_follicular_neoplasm"]
    other[columns] = other[columns[::-1]].to_numpy() * 0.2 + other[columns].to_numpy() * 0.8
    pair = comparison.compare(ours, other, draws=500)["macro_auroc"]
    single = evaluation.evaluate(ours, draws=500)["macro_auroc"]
    assert pair["high"] - pair["low"] < single["high"] - single["low"]


def test_models_are_compared_on_shared_images_never_mixed_and_the_rest_is_counted():
    ours, other = study(patients=60), study(patients=60, model="scratch")
    other = other[other["fold"] < 3]
    found = comparison.compare(ours, other, draws=50)
    assert found["macro_auroc"]["n_images"] == len(other)
    assert found["images_left_out"] == len(ours) - len(other)
    with pytest.raises(ValueError, match="reference standard"):
        comparison.compare(ours, other.assign(truth=KEYS[0]), draws=50)
    with pytest.raises(ValueError, match="one model"):
        evaluation.evaluate(pd.concat([ours, other]))


def test_subgroups_below_the_minimum_say_so_and_thirds_of_a_number_are_named():
    table = study(patients=90)
    table["device"] = np.where(table["patient"] < "p0006", "rare", "common")
    found = comparison.subgroups(table, draws=50, minimum=10)
    assert "too few" in found["device"]["rare"]["macro_auroc"]["reason"]
    assert found["device"]["common"]["macro_auroc"]["value"] > 0.5
    assert len(found["age"]) == 3 and all(" to " in level for level in found["age"])
    assert set(found) == {"age", "sex", "device"}


def test_mean_and_sd_over_folds_are_those_of_the_folds():
    table = study(patients=100)
    predicted = table[[f"p_{k}" for k in KEYS]].to_numpy().argmax(1)
    truth = table["truth"].map(KEYS.index)
    folds = table.groupby("fold").groups.values()
    of = [sk.balanced_accuracy_score(truth[rows], predicted[rows]) for rows in folds]
    expected = {"mean": pytest.approx(np.mean(of)), "sd": pytest.approx(np.std(of, ddof=1)), "n_folds": 5}
    assert comparison.across_folds(table)["balanced_accuracy"] == expected


def test_referral_of_the_least_certain_half_keeps_the_accuracy_of_the_certain_half():
    truth = ["a"] * 40
    p = np.r_[np.full(20, 0.95), np.full(10, 0.6), np.full(10, 0.4)]
    found = selective.referral(evaluation.Sample(handmade(truth, np.c_[p, 1 - p]), draws=50))
    assert found["accuracy/0.0"]["value"] == pytest.approx(0.75)
    assert found["accuracy/0.5"]["value"] == 1.0
    assert found["accuracy/0.5"]["n_images"] == 20
    tied = evaluation.Sample(handmade(["a", "b"] * 20, [[0.7, 0.3]] * 40), draws=50)
    found = selective.referral(tied)  # ties are broken at random, not in favour
    assert [found[f"accuracy/{f:.1f}"]["value"] for f in (0.0, 0.3, 0.8)] == pytest.approx([0.5] * 3)


def test_conformal_sets_keep_their_promise_and_equal_the_quantile_by_hand():
    # exchangeable: one draw of patients, calibrated on one half of them
    table = study(patients=1200, images=1, folds=1)
    calibration, tested = table[table["patient"] < "p0600"], table[table["patient"] >= "p0600"]
    calibration = calibration.assign(set="validation")
    metrics, sets = selective.conformal(evaluation.Sample(tested, draws=200), calibration)
    assert metrics["coverage"]["value"] == pytest.approx(0.9, abs=0.04)
    own = calibration.apply(lambda row: row["p_" + row["truth"]], axis=1)
    level = np.sort(1 - own)[int(np.ceil(601 * 0.9)) - 1]  # the ceil((n + 1) x coverage)-th smallest
    by_hand = tested[[f"p_{k}" for k in KEYS]].to_numpy() >= 1 - level - 1e-9
    assert (sets.to_numpy() == by_hand).mean() > 0.999
    few = calibration.head(8)  # of which no rank is high enough to promise anything
    assert selective.threshold(few[[f"p_{k}" for k in KEYS]].to_numpy(), np.zeros(8, int)) == 1
    assert metrics["set_size"]["value"] == pytest.approx(by_hand.sum(1).mean(), abs=0.01)


def test_sets_are_refused_where_too_few_calibrate_and_halves_calibrate_each_other_where_none_do():
    sample, validation = evaluation.Sample(study(patients=100), draws=50), study(patients=3)
    metrics, _ = selective.conformal(sample, validation.assign(set="validation"))
    assert "too few" in metrics["reason"] and "coverage" not in metrics
    metrics, sets = selective.conformal(sample, validation.head(0))
    assert metrics["calibrated_on"].startswith("the other half") and len(sets) == len(sample.truth)


def test_the_summary_of_a_run_is_complete_repeatable_and_states_what_fine_tuning_states():
    tables = [study(), study(model="scratch", signal=0.8), study(place="external", signal=1.0, folds=1)]
    whole, options = pd.concat(tables, ignore_index=True), {"draws": 100, "seed": 3}
    one, two = (summary.summarize(whole, **options) for _ in range(2))
    assert json.dumps(one) == json.dumps(two) and summary.complete(one)
    ours, number = one["internal"]["finetuned"], one["internal"]["finetuned"]["image"]["accuracy"]
    without_n = {name: value for name, value in number.items() if name != "n_images"}
    assert not summary.complete([number | {"low": None}]) and not summary.complete({"x": without_n})
    assert ours["folds"]["macro_auroc"]["n_folds"] == 5 and "net_benefit/nodular_goiter/0.50" in ours["image"]
    assert set(one["difference"]["internal"]) == {"scratch"} and "finetuned" in one["drop"]
    text = report.findings(one, {}, simulated=True)
    assert f"{ours['image']['macro_auroc']['value']:.2f}" in text and "simulated" in text
    for place, models in fine_tuning.scores(whole, **options).items():
        for model, metric in models.items():
            assert metric == one[place][model]["image"]["macro_auroc"]
    effect = fine_tuning.effect_of_pretraining(whole, **options)
    assert effect == one["difference"]["internal"]["scratch"]["macro_auroc"]


@pytest.mark.parametrize("profile", sorted(path.stem for path in profiles.PROFILES.glob("*.yaml")))
def test_every_profile_gives_both_notebooks_the_same_draws(profile):
    asked = profiles.load(profile)

    def given(book: str, name: str):
        stored = profiles.declared(book)[name]
        return asked.get(book, {}).get(name, asked.get("common", {}).get(name, stored))

    for name in ("draws", "seed"):
        assert given("04_finetune", name) == given("05_evaluate", name)


def test_the_coverage_that_the_documentation_states_was_measured_and_holds():
    found = read_json(PROJECT / "benchmarks" / "results" / "bootstrap_coverage.json")
    text = (PROJECT / "docs" / "evaluation.md").read_text(encoding="utf-8")
    assert found["studies"] == 500 and found["simulated"]
    for name, metric in found["metrics"].items():
        patients, images = metric["patients"]["coverage"], metric["images"]["coverage"]
        assert 0.92 <= patients <= 0.98 and images < 0.8
        (row,) = [line for line in text.splitlines() if line.startswith("| ") and f"(`{name}`)" in line]
        assert f"| {100 * patients:.1f} % (" in row and f"| {100 * images:.1f} % (" in row
