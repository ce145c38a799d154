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

GROUPS = {key: (f"TI-RADS {key}", f"TI-RADS {key} 类") for key in ("2-3", "4a", "4b", "4c-5")}


def test_grades_are_called_grades_and_never_pathology():
    what = task.of(GROUPS)
    assert (what.noun, what.plural) == ("TI-RADS group", "TI-RADS groups")
    assert "No pathology" in what.statement and "no pathology" in what.reference
    assert "simulated" not in what.statement


def test_lesion_types_are_simulated_only_where_they_are():
    real, phantom = task.of(LESION_TYPES), task.of(LESION_TYPES, simulated=True)
    assert real.noun == phantom.noun == "lesion type"
    assert "simulated" not in real.statement and "**simulated**" in phantom.statement
    assert "histology" in real.statement and "simulator" in phantom.reference


def test_other_labels_are_classes_in_their_own_names():
    what = task.of({"benign": ("benign", "良性"), "malignant": ("malignant", "恶性")})
    assert (what.noun, what.plural) == ("class", "classes") and "benign, malignant" in what.statement


def metric(value=0.7):
    return {"value": value, "low": value - 0.1, "high": value + 0.1, "n_images": 90, "n_patients": 60}


def recorded(**image):
    image = {
        "accuracy": metric(),
        "macro_auroc": metric(),
        "balanced_accuracy": metric(),
        "brier": metric(),
    } | image
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
    text = {
        "all frames": {"full frame": metric(0.8), "crop": metric(0.6), "difference": metric(0.2), "classes": [*GROUPS]},
        "with text": {
            "full frame": metric(0.7), "crop": metric(0.7), "difference": metric(0.0), "classes": ["2-3", "4c-5"],
        },
    }  # fmt: skip
    areas = {f"auroc/{key}": metric() for key in GROUPS}
    said = report.findings(recorded(**areas) | {"audit": {"text": text}}, GROUPS, simulated=False)
    first, second = (line for line in said.split("\n*") if "Real print" in line)
    assert "whole frames" in first and "crops leave it out" in first
    assert "TI-RADS 4a, TI-RADS 4b left out" in second and "crops leave it out" not in second


def role(folder, *, simulated, names, title):
    folder.mkdir(parents=True)
    about = {"simulated": simulated, "classes": [*names], "names": names, "title": title}
    write_json(folder / "crops.json", about)
    (folder / "index.csv").write_text("image,patient,label\na,p,x\n")


@pytest.mark.parametrize("simulated", [True, False])
def test_what_a_run_is_called_follows_the_data_it_is_tested_on(tmp_path, simulated):
    role(
        tmp_path / "data" / "pretrain",
        simulated=not simulated,
        names={"benign": ("benign", "良性")},
        title="open",
    )
    role(tmp_path / "data" / "finetune", simulated=simulated, names=GROUPS, title="clinic")
    facts = checklists.facts(tmp_path)
    assert ("simulated" in facts["identity"][1]) == simulated, "real patients are never called simulated"
    assert ("simulated" in facts["limitations"][1]) == simulated
    assert "TI-RADS grade given by readers" in facts["reference"][1]


def test_the_start_of_a_training_is_told_from_the_classifier(tmp_path):
    assert checklists.facts(tmp_path)["initialization"][0] == "not done"
    role(tmp_path / "data" / "pretrain", simulated=False, names={"benign": ("benign", "良性")}, title="BUSI")
    for weights, said in (("none", "random"), ("0123abcd", "pre-trained on BUSI")):
        write_json(tmp_path / "classifier" / "classifier.json", {"training": {"pretrained_weights": weights}})
        assert checklists.facts(tmp_path)["initialization"][1] == said


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
    clean = index[["image", "patient", "group", "label"]].copy()
    clean.attrs = {"title": "set", "simulated": False}
    said = {}
    for known, problem in ((True, "its mask is empty"), (False, contract.NO_PATIENTS)):
        prepared = audit.Prepared("pretrain", clean, pd.DataFrame({"problem": [problem]}), flow)
        said[known] = audit.findings({"pretrain": prepared}, {"pretrain": crops}, None)
        (table,) = audit.flows({"pretrain": prepared}, {"pretrain": crops}).values()
        assert table["patients"].notna().all() == known
    assert "of 2 patients" in said[True]
    assert "without patient identifiers, in 1 groups" in said[False] and "of 2 patients" not in said[False]
    assert "Coloured marks, such as calipers, are on 1 of the crops" in said[False]
