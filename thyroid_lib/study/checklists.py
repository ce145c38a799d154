"""The reviewer's tables: reporting items filled in by the run, the flow diagram's counts, and two cards.

Items of CLAIM 2024 (10.1148/ryai.240300), TRIPOD+AI (BMJ 2024;385:e078378) and STARD-AI (Nat Med 2025;
31:3283), in our own words, and the sentences that answer them are data: ``templates/reviewers/items.yaml``. They
are a help for authors; a journal wants its own form.
"""

from pathlib import Path

import jinja2
import pandas as pd
import yaml

from thyroid_lib.common.files import read_json, write_text
from thyroid_lib.common.templates import TEMPLATES, environment, render
from thyroid_lib.data.crops import Crops
from thyroid_lib.evaluation import task
from thyroid_lib.evaluation.predictions import OURS
from thyroid_lib.study.run import Run

REPORTED, NOT_DONE, NOT_APPLICABLE, AUTHORS = "reported", "not done", "not applicable", "for the authors"
STATES = (REPORTED, NOT_DONE, NOT_APPLICABLE, AUTHORS)
CARDS = {"STUDY_CARD.md": "reviewers/study_card.md.j2", "DATA_SHEET.md": "reviewers/data_sheet.md.j2"}


def source() -> dict:
    """``answers`` (name -> its templates) and ``standards`` (name -> items: item, asks, answer)."""
    return yaml.safe_load((TEMPLATES / "reviewers" / "items.yaml").read_text(encoding="utf-8"))


def facts(run: Run) -> dict[str, tuple[str, str, str]]:
    """What a run can say for itself: the answers of ``items.yaml``.

    Everything is read from the run's files; where they are silent the answer is "not done", never a guess.

    Args:
        run: the run.

    Returns:
        answer -> state (``REPORTED`` or ``NOT_DONE``), its words, the notebook or file where more is.
    """
    known, said = _known(run), {}
    words = environment().overlay(undefined=jinja2.ChainableUndefined)  # a run may lack any of it
    for name, answer in source()["answers"].items():
        done = "says" in answer and words.compile_expression(answer.get("when", "true"))(**known)
        texts = [answer.get(key, "") for key in (("says", "where") if done else ("otherwise", "look"))]
        value, place = (words.from_string(text).render(known) for text in texts)
        said[name] = REPORTED if done else NOT_DONE, value, place
    return said


def _known(run: Run) -> dict:
    """The names that an answer may speak of: what notebook 05 recorded, and the nine below."""
    classifier, found = (
        read_json(run.source / "classifier/classifier.json"),
        run.metrics.get("05_evaluate", {}),
    )
    roles = {
        role: read_json(run.source / "data" / role / "crops.json")
        | _people(run.source / "data" / role / "index.csv")
        for role in ("pretrain", "finetune", "external")
        if (run.source / "data" / role / "crops.json").is_file()
    }
    tested = [role["simulated"] for name, role in roles.items() if name != "pretrain"]
    simulated = bool(tested) and all(tested)  # whatever the network was pre-trained on
    clinic, images = roles.get("finetune", {}), classifier.get("training", {}).get("images_of", {})
    groups = found.get("internal", {}).get(OURS, {}).get("subgroups", {})
    return found | {
        "prepared": run.metrics.get("01_preprocess", {}),
        "environment": run.facts.get("environment", {}),
        "classifier": classifier,
        "roles": roles,
        "simulated": simulated,
        "task": task.of(clinic.get("names", {}), simulated=simulated),
        "images_of": {key: images[key] for key in [*clinic.get("classes", []), *images] if key in images},
        "subgroups": [one["macro_auroc"]["value"] for levels in groups.values() for one in levels.values()],
        "changes": [
            [*levels.values()][-1] | {"kind": kind} for kind, levels in found.get("robustness", {}).items()
        ],
    }


def _people(path: Path) -> dict:
    """Of an index of crops: patients, their median age in years, women in percent (None: not stated), devices."""
    index = pd.read_csv(path, low_memory=False).reindex(columns=["patient", "age", "sex", "device"])
    patients = index.drop_duplicates("patient")
    return {
        "patients": len(patients),
        "age": patients["age"].median() if patients["age"].notna().any() else None,
        "female": 100 * (patients["sex"] == "F").mean() if patients["sex"].notna().any() else None,
        "devices": sorted({str(device) for device in index["device"].dropna()}),
    }


def fill(run: Run) -> pd.DataFrame:
    """Fills every item from a run.

    Args:
        run: the run, notebooks 01, 04 and 05 done.

    Returns:
        Columns standard, item, asks, state (one of ``STATES``), value, place.
    """
    said = facts(run) | {"authors": (AUTHORS, "", "")}
    standards = source()["standards"].items()
    table = pd.DataFrame([{"standard": name} | item for name, items in standards for item in items])
    table[["state", "value", "place"]] = [
        said.get(one) or (NOT_APPLICABLE, one.removeprefix("na: "), "") for one in table.pop("answer")
    ]
    return table


def summary(filled: pd.DataFrame) -> dict:
    """How many items of each standard are in each state.

    Args:
        filled: of :func:`fill`.

    Returns:
        standard -> state -> number of items.
    """
    counts = pd.crosstab(filled["standard"], filled["state"]).reindex(columns=list(STATES), fill_value=0)
    return counts.to_dict("index")


def flow_counts(run: Run, predictions: pd.DataFrame) -> dict:
    """From files to tested images, for the clinic's data and the external source.

    Args:
        run: the run;  predictions: of ``read_predictions``.

    Returns:
        role -> {"title", "files", "left_out": {reason: files}, "crops", "patients", "unlabelled", "tested",
        "tested_patients", "not_tested"}.
    """
    result = {}
    for role, place in (("finetune", "internal"), ("external", "external")):
        if not (run.source / "data" / role / "crops.json").is_file():
            continue
        crops = Crops.open(run.source / "data" / role)
        left = crops.excluded["reason"].value_counts().to_dict()
        problems = crops.folder / "problems.csv"
        if problems.is_file():
            table = pd.read_csv(problems, dtype=str, keep_default_na=False)
            gone = table[table["action"] == "row left out"]
            left |= gone.drop_duplicates("row")["problem"].value_counts().to_dict()
        used = predictions[(predictions["model"] == OURS) & (predictions["set"] == place)]
        labelled = int((crops.labels >= 0).sum())
        result[role] = {
            "title": crops.title,
            "files": run.metrics["01_preprocess"][role]["files"],
            "left_out": left,
            "crops": len(crops),
            "patients": int(crops.index["patient"].nunique()),
            "unlabelled": len(crops) - labelled,
            "tested": len(used),
            "tested_patients": int(used["patient"].nunique()),
            "not_tested": labelled - len(used),
        }
    return result


def flow_steps(counts: dict) -> list[list[tuple[str, list[str]]]]:
    """Boxes for ``plots.evaluation.flow``: of each role its steps, and what each leaves out.

    Args:
        counts: of :func:`flow_counts`.
    """
    return yaml.safe_load(render("reviewers/flow.yaml.j2", counts=counts)) or []


def write_cards(run: Run, names: dict) -> list[Path]:
    """Writes STUDY_CARD.md and DATA_SHEET.md into a run.

    Args:
        run: the run;  names: class key -> (English, Chinese).

    Returns:
        The two paths. The card follows Mitchell 2019 (arXiv 1810.03993), the sheet Gebru 2021 (arXiv
        1803.09010), filled with this run's facts.
    """
    known = _known(run)
    known["said"] = {name: words or NOT_DONE for name, (_, words, _) in facts(run).items()}
    flow = known.get("flow", {})
    for role in flow:
        labels = Crops.open(run.source / "data" / role).index["label"]
        flow[role]["classes"] = labels.value_counts().to_dict()
    written = [run.dir / name for name in CARDS]
    known |= {"names": names, "flow": flow, "maps": known.get("maps", {})}
    for path in written:
        write_text(path, render(CARDS[path.name], **known))
    return written
