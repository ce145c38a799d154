"""The recipes tried on real data: scored on validation parts alone, every one told, resumable."""

import json
import runpy

import pytest

from thyroid_lib.common.files import PROJECT
from thyroid_lib.data.crops import Crops
from thyroid_lib.study import profiles

SCRIPT = PROJECT / "benchmarks" / "recipes.py"


@pytest.mark.slow
def test_each_recipe_is_one_row_scored_without_the_held_out_fold_and_a_second_call_adds_its_own(
    tmp_path, monkeypatch, capsys
):
    command = (
        "recipes --pretrain-data phantom:open?patients=16 --finetune-data phantom:clinic?patients=40 --smoke "
    )
    command += f"--jobs 1 --work {tmp_path / 'work'} --out {tmp_path / 'recipes.json'} --only"
    for name in ("plain", "scratch"):
        monkeypatch.setattr("sys.argv", [*command.split(), name])
        runpy.run_path(str(SCRIPT), run_name="__main__")
        assert capsys.readouterr().out.count("macro AUROC") == 1
    content = json.loads((tmp_path / "recipes.json").read_text())
    crops = Crops.open(tmp_path / "work" / "finetune-32")
    assert list(content["recipes"]) == ["plain", "scratch"]
    assert content["recipes"]["scratch"]["pretrain"] is None
    for row in content["recipes"].values():
        scores = [fold["macro_auroc"] for fold in row["by_fold"]]
        assert 0 <= row["validation_macro_auroc"] <= 1
        assert row["validation_macro_auroc"] == pytest.approx(sum(scores) / len(scores))
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
