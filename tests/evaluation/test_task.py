"""What a study may call its classes."""

import numpy as np
import pandas as pd
import pytest

from thyroid_lib import LESION_TYPES
from thyroid_lib.common.files import write_json
from thyroid_lib.data import audit
from thyroid_lib.data.crops import Crops
from thyroid_lib.datasets import contract
from thyroid_lib.evaluation import report, task
from thyroid_lib.study import checklists
from thyroid_lib.study.run import Run

GROUPS = {key: (f"TI-RADS {key}", f"TI-RADS {key} 类") for key in ("2-3", "4a", "4b", "4c-5")}
OTHERS = {"benign": ("benign", "良性"), "malignant": ("malignant", "恶性")}


@pytest.mark.parametrize("names, simulated, plural, statement, reference", [
    (GROUPS, False, "TI-RADS groups", "No pathology", "no pathology"),
    (LESION_TYPES, False, "lesion types", "histology", "that the data set gives"),
    (LESION_TYPES, True, "lesion types", "**simulated**", "simulator"),
    (OTHERS, False, "classes", "benign, malignant", "that the data set gives"),
])  # fmt: skip
def test_classes_are_called_what_they_are_and_tirads_groups_are_ordered(
    names, simulated, plural, statement, reference
):
    what = task.of(names, simulated=simulated)
    assert what.plural == plural and plural.startswith(what.noun)
    assert statement in what.statement and reference in what.reference
    assert ("simulated" in what.statement) == simulated
    assert task.is_ordered([*names]) == (names is GROUPS)
    assert task.is_ordered(["tirads_2", "tirads_4a"]) and task.is_ordered([*LESION_TYPES], "yes")


def metric(value=0.7):
    return {"value": value, "low": value - 0.1, "high": value + 0.1, "n_images": 90, "n_patients": 60}


def recorded(**image):
    image = dict.fromkeys(("accuracy", "macro_auroc", "balanced_accuracy", "brier"), metric()) | image
    return {"internal": {"finetuned": {"image": image, "patient": {"macro_auroc": metric()}}}}


def test_findings_on_real_grades_say_what_they_are_and_what_was_not_done():
    areas = {f"auroc/{key}": metric(0.9 - 0.1 * place) for place, key in enumerate(GROUPS)}
    text = report.findings(recorded(**areas, weighted_kappa=metric()), GROUPS, simulated=False)
    assert "TI-RADS groups" in text and "No pathology" in text
    assert "simulated" not in text and "lesion type" not in text
    assert "weakest TI-RADS group is TI-RADS 4c-5" in text
    assert "TI-RADS 2-3 against all the others: AUROC 0.90" in text
    assert "**External testing** was not done" in text


def test_findings_tell_what_print_on_real_frames_gives_away_and_on_which_classes():
    names, few = ("full frame", "crop", "difference"), ["2-3", "4c-5"]
    text = {
        "all frames": dict(zip(names, map(metric, (0.8, 0.6, 0.2)))) | {"classes": [*GROUPS]},
        "with text": dict(zip(names, map(metric, (0.7, 0.7, 0.0)))) | {"classes": few},
    }
    areas = {f"auroc/{key}": metric() for key in GROUPS}
    said = report.findings(recorded(**areas) | {"audit": {"text": text}}, GROUPS, simulated=False)
    first, second = (line for line in said.split("\n*") if "Real print" in line)
    assert "whole frames" in first and "crops leave it out" in first
    assert "TI-RADS 4a, TI-RADS 4b left out" in second and "crops leave it out" not in second


def role(folder, simulated, names, title=""):
    folder.mkdir(parents=True)
    about = {"simulated": simulated, "classes": [*names], "names": names, "title": title}
    write_json(folder / "crops.json", about)
    (folder / "index.csv").write_text("image,patient,label\na,p,x\n")


@pytest.mark.parametrize("simulated", [True, False])
def test_what_a_run_is_called_follows_the_data_it_is_tested_on(tmp_path, simulated):
    role(tmp_path / "data" / "pretrain", not simulated, OTHERS)
    role(tmp_path / "data" / "finetune", simulated, GROUPS)
    facts = checklists.facts(Run(tmp_path))
    assert ("simulated" in facts["identity"][1]) == simulated, "real patients are never called simulated"
    assert ("simulated" in facts["limitations"][1]) == simulated
    assert "TI-RADS grade given by readers" in facts["reference"][1]


def test_the_start_of_a_training_is_told_from_the_classifier(tmp_path):
    assert checklists.facts(Run(tmp_path))["initialization"][0] == "not done"
    role(tmp_path / "data" / "pretrain", False, OTHERS, "BUSI")
    for weights, said in (("none", "random"), ("0123abcd", "pre-trained on BUSI")):
        write_json(tmp_path / "classifier" / "classifier.json", {"training": {"pretrained_weights": weights}})
        assert checklists.facts(Run(tmp_path))["initialization"][1] == said


def test_a_set_without_patient_identifiers_claims_no_patients(tmp_path):
    index = pd.DataFrame({
        "image": ["a", "b"], "patient": ["a", "b"], "group": ["g", "g"], "label": ["x", "y"], "mask_inside": [1.0, 1.0],
        "box_width": 9, "box_height": 9, "frame_width": 9, "frame_height": 9, "frame_text_lines": 0, "text_lines": 0,
        "coloured_marks": [True, False],
    })  # fmt: skip
    pixels = np.zeros((2, 8, 8), np.uint8)
    crops = Crops(tmp_path, index, pixels, pixels, None, ["x", "y"], {}, False, "set", None, "")
    crops.__dict__["excluded"] = pd.DataFrame(columns=["image", "reason"])
    flow = pd.DataFrame({"step": ["files"], "images": [2], "patients": [2], "left_out": [0]})
    index.attrs = {"title": "set", "simulated": False}
    for known, problem in ((True, "its mask is empty"), (False, contract.NO_PATIENTS)):
        prepared = audit.Prepared("pretrain", index, pd.DataFrame({"problem": [problem]}), flow)
        said = audit.findings({"pretrain": prepared}, {"pretrain": crops}, None)
        (table,) = audit.flows({"pretrain": prepared}, {"pretrain": crops}).values()
        assert table["patients"].notna().all() == known == ("of 2 patients" in said)
        assert ("without patient identifiers, in 1 groups" in said) != known
        assert "Coloured marks, such as calipers, are on 1 of the crops" in said
