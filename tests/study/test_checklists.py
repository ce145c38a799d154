"""Reviewers' tables: every item is answered by a fact of the run, by the authors, or by a reason."""

import json

from thyroid_lib.study import checklists
from thyroid_lib.study.checklists import NOT_DONE, REPORTED
from thyroid_lib.study.run import Run

METRIC = {"value": 0.81, "low": 0.7, "high": 0.9, "n_images": 50, "n_patients": 20}
IMAGE = {"macro_auroc": METRIC, "sensitivity/a": METRIC}


def test_every_item_is_answered_by_a_fact_the_authors_or_a_reason(tmp_path):
    answers, standards = (
        checklists.facts(Run(tmp_path)).keys() | {"authors"},
        checklists.source()["standards"],
    )
    assert set(standards) == {"CLAIM 2024", "TRIPOD+AI", "STARD-AI"} and len(standards["CLAIM 2024"]) == 44
    for items in standards.values():
        assert len({item["item"] for item in items}) == len(items)
        for item in items:
            assert item["answer"] in answers or item["answer"].startswith("na: ")


def test_a_run_fills_its_numbers_in_and_an_empty_one_claims_none(tmp_path):
    (tmp_path / "metrics.json").write_text("{}")
    filled = checklists.fill(Run(tmp_path))
    states = filled.set_index(["standard", "item"])["state"]["CLAIM 2024"]
    assert set(filled["state"]) <= set(checklists.STATES) and states["44"] == checklists.AUTHORS
    assert all(states[item] == NOT_DONE for item in ("30", "31", "32", "33"))
    assert checklists.summary(filled)["CLAIM 2024"][NOT_DONE] >= 4
    recorded = {"internal": {"finetuned": {"image": IMAGE}}, "draws": 2000}
    (tmp_path / "metrics.json").write_text(json.dumps({"05_evaluate": recorded}))
    filled = checklists.fill(Run(tmp_path))
    rows = filled.set_index(["standard", "item"]).loc["CLAIM 2024"]
    assert rows.loc["32", "state"] == REPORTED and "0.81 (0.70 to 0.90)" in rows.loc["32", "value"]
    assert "2000 draws" in rows.loc["29", "value"]
    cards = checklists.write_cards(Run(tmp_path), {"a": ("type a", "甲")})
    assert {path.name for path in cards} == {"STUDY_CARD.md", "DATA_SHEET.md"}
    assert "0.81 (0.70 to 0.90)" in (tmp_path / "STUDY_CARD.md").read_text()


def test_the_flow_loses_no_image():
    counts = {
        "title": "clinic", "files": 100, "left_out": {"cannot be read": 3, "no region": 1}, "crops": 96,
        "patients": 40, "unlabelled": 6, "tested": 18, "tested_patients": 8, "not_tested": 72,
    }  # fmt: skip
    ((files, cut, used),) = checklists.flow_steps({"finetune": counts})
    assert files == ["Clinical data: clinic\n100 files", ["3 × cannot be read", "1 × no region"]]
    assert cut[1] == ["6 × no label", "72 × in folds not tested in this run"]
    assert used[0].startswith("Internal testing\n18 images of 8 patients")
