"""The recipes tried on real data: scored on validation parts alone, every one told, resumable."""

import json
import subprocess
import sys

import pytest

from thyroid_lib.common.files import PROJECT
from thyroid_lib.study import profiles

SCRIPT = PROJECT / "benchmarks" / "recipes.py"


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    folder = tmp_path_factory.mktemp("recipes")
    command = [sys.executable, str(SCRIPT), "--pretrain-data", "phantom:open?patients=16", "--finetune-data"]
    command += ["phantom:clinic?patients=40", "--smoke", "--work", str(folder / "work"), "--jobs", "1"]
    command += ["--out", str(folder / "recipes.json")]
    said = [
        subprocess.check_output([*command, "--only", name], text=True, cwd=folder)
        for name in ("plain", "scratch")
    ]
    return folder, json.loads((folder / "recipes.json").read_text()), "".join(said)


def test_each_recipe_is_one_row_and_a_second_call_adds_its_own(found):
    _, content, said = found
    assert list(content["recipes"]) == ["plain", "scratch"]
    assert content["recipes"]["scratch"]["pretrain"] is None
    assert said.count("macro AUROC") == 2
    for row in content["recipes"].values():
        scores = [fold["macro_auroc"] for fold in row["by_fold"]]
        assert 0 <= row["validation_macro_auroc"] <= 1
        assert row["validation_macro_auroc"] == pytest.approx(sum(scores) / len(scores))


def test_held_out_folds_are_not_looked_at(found):
    folder, content, _ = found
    from thyroid_lib.data.crops import Crops

    crops = Crops.open(folder / "work" / "finetune-32")
    for row in content["recipes"].values():
        for fold in row["by_fold"]:
            assert fold["images"] < (crops.index["fold"] != fold["fold"]).sum() / 3


def test_the_profile_does_what_the_recipe_taken_did():
    profile = profiles.load("open_data")
    content = json.loads((PROJECT / "benchmarks" / "results" / "recipes.json").read_text())
    taken = content["recipes"][content["taken"]]
    asked = [row for row in content["recipes"].values() if row["pretrain_data"] == "as asked for"]
    assert taken in asked  # a profile asks for the set, and its command names it
    assert taken["validation_macro_auroc"] == max(row["validation_macro_auroc"] for row in asked)
    for stage, settings in (("03_pretrain", taken["pretrain"]), ("04_finetune", taken["finetune"])):
        assert {name: profile[stage][name] for name in settings} == settings
        assert profile[stage]["monitor"] == "last"
    assert profile["common"]["size"] == taken["size"]
    assert profile["04_finetune"]["network"].get("mirror", False) == taken["mirror"]
