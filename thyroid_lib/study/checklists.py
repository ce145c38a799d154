"""The reviewer's tables: reporting items filled in by the run, the flow diagram's counts, and two cards.

Items of CLAIM 2024 (10.1148/ryai.240300), TRIPOD+AI (BMJ 2024;385:e078378) and STARD-AI (Nat Med 2025;
31:3283), in our own words, and the sentences that answer them are data: ``templates/reviewers/items.yaml``. They
are a help for authors; a journal wants its own form.
"""

from pathlib import Path

import pandas as pd
import yaml

from thyroid_lib.common.files import read_json, write_text
from thyroid_lib.common.templates import TEMPLATES, environment, render
from thyroid_lib.data.crops import Crops
from thyroid_lib.evaluation import task
from thyroid_lib.evaluation.predictions import OURS

REPORTED, NOT_DONE, NOT_APPLICABLE, AUTHORS = "reported", "not done", "not applicable", "for the authors"
STATES = (REPORTED, NOT_DONE, NOT_APPLICABLE, AUTHORS)
CARDS = {"STUDY_CARD.md": "reviewers/study_card.md.j2", "DATA_SHEET.md": "reviewers/data_sheet.md.j2"}


def source() -> dict:
    """``answers`` (name -> its templates) and ``standards`` (name -> items: item, asks, answer)."""
    return yaml.safe_load((TEMPLATES / "reviewers" / "items.yaml").read_text(encoding="utf-8"))


def facts(folder: Path) -> dict[str, tuple[str, str, str]]:
    """What a run can say for itself: the answers of ``items.yaml``.

    Everything is read from the run's files; where they are silent the answer is "not done", never a guess.

    Args:
        folder: the run's folder.

    Returns:
        answer -> state (``REPORTED`` or ``NOT_DONE``), its words, the notebook or file where more is.
    """
    import jinja2

    known, said = _known(Path(folder)), {}
    words = environment().overlay(undefined=jinja2.ChainableUndefined)  # a run may lack any of it
    for name, answer in source()["answers"].items():
        done = "says" in answer and words.compile_expression(answer.get("when", "true"))(**known)
        texts = (answer.get(key, "") for key in (("says", "where") if done else ("otherwise", "look")))
        said[name] = (
            REPORTED if done else NOT_DONE,
            *(words.from_string(text).render(known) for text in texts),
        )
    return said


def _known(folder: Path) -> dict:
    """The names that an answer may speak of: what notebook 05 recorded, and the eleven below."""
    recorded, classifier = (
        read_json(folder / name) for name in ("metrics.json", "classifier/classifier.json")
    )
    found, training = recorded.get("05_evaluate", {}), classifier.get("training", {})
    roles = {
        role: read_json(folder / "data" / role / "crops.json") | _people(folder / "data" / role / "index.csv")
        for role in ("pretrain", "finetune", "external")
        if (folder / "data" / role / "crops.json").is_file()
    }
    tested = [role["simulated"] for name, role in roles.items() if name != "pretrain"]
    simulated = bool(tested) and all(tested)  # whatever the network was pre-trained on
    clinic, images = roles.get("finetune", {}), training.get("images_of", {})
    groups = found.get("internal", {}).get(OURS, {}).get("subgroups", {})
    return found | {
        "prepared": recorded.get("01_preprocess", {}),
        "commit": read_json(folder / "run.json").get("environment", {}).get("git_commit"),
        "classifier": classifier,
        "training": training,
        "roles": roles,
        "simulated": simulated,
        "task": task.of(clinic.get("names", {}), simulated=simulated),
        "images_of": {key: images[key] for key in [*clinic.get("classes", []), *images] if key in images},
        "subgroups": [one["macro_auroc"]["value"] for levels in groups.values() for one in levels.values()],
        "changes": [
            {"kind": kind, "loss": list(levels.values())[-1]["loss"]}
            for kind, levels in found.get("robustness", {}).items()
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


def fill(folder: Path) -> pd.DataFrame:
    """Fills every item from a run.

    Args:
        folder: the run's folder, notebooks 01, 04 and 05 done.

    Returns:
        Columns standard, item, asks, state (one of ``STATES``), value, place.
    """
    said = facts(folder) | {"authors": (AUTHORS, "", "")}
    rows = [
        (standard, item["item"], item["asks"])
        + (said.get(item["answer"]) or (NOT_APPLICABLE, item["answer"].removeprefix("na: "), ""))
        for standard, items in source()["standards"].items()
        for item in items
    ]
    return pd.DataFrame(rows, columns=["standard", "item", "asks", "state", "value", "place"])


def summary(filled: pd.DataFrame) -> dict:
    """How many items of each standard are in each state.

    Args:
        filled: of :func:`fill`.

    Returns:
        standard -> state -> number of items.
    """
    counts = pd.crosstab(filled["standard"], filled["state"]).reindex(columns=list(STATES), fill_value=0)
    return counts.to_dict("index")


def write(filled: pd.DataFrame, path: Path) -> None:
    """Writes the table as CSV.

    Args:
        filled: of :func:`fill`;  path: of the file.
    """
    write_text(path, filled.to_csv(index=False, lineterminator="\n"))


def flow_counts(folder: Path, predictions: pd.DataFrame) -> dict:
    """From files to tested images, for the clinic's data and the external source.

    Args:
        folder: the run's folder;  predictions: of ``read_predictions``.

    Returns:
        role -> {"title", "files", "left_out": {reason: files}, "crops", "patients", "unlabelled", "tested",
        "tested_patients", "not_tested"}.
    """
    recorded = read_json(Path(folder) / "metrics.json").get("01_preprocess", {})
    result = {}
    for role, place in (("finetune", "internal"), ("external", "external")):
        if not (Path(folder) / "data" / role / "crops.json").is_file():
            continue
        crops = Crops.open(Path(folder) / "data" / role)
        left = crops.excluded["reason"].value_counts().to_dict()
        problems = crops.folder / "problems.csv"
        if problems.is_file():
            table = pd.read_csv(problems, dtype=str, keep_default_na=False)
            gone = table[table["action"] == "row left out"]
            gone = gone.drop_duplicates("row" if "row" in gone else "image")
            left |= gone["problem"].value_counts().to_dict()
        used = predictions[(predictions["model"] == OURS) & (predictions["set"] == place)]
        labelled = int((crops.labels >= 0).sum())
        result[role] = {
            "title": crops.title,
            "files": int(recorded.get(role, {}).get("files", len(crops) + sum(left.values()))),
            "left_out": {str(reason): int(count) for reason, count in left.items()},
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
    chains = []
    for role, c in counts.items():
        where, kind = ("Clinical data", "Internal testing")
        if role == "external":
            where, kind = ("External source", "External testing, frozen classifier")
        reasons = [*c["left_out"].items()]
        left = reasons[:4] + [("other", c["files"] - c["crops"] - sum(c["left_out"].values()))]
        more = [f"{len(reasons) - 4} further reasons in problems.csv"] * (len(reasons) > 4)
        after = [("no label", c["unlabelled"]), ("in folds not tested in this run", c["not_tested"])]
        chains.append([
            (f"{where}: {c['title']}\n{c['files']} files", _counted(left[:-1]) + more + _counted(left[-1:])),
            (f"Crops\n{c['crops']} images of {c['patients']} patients", _counted(after)),
            (f"{kind}\n{c['tested']} images of {c['tested_patients']} patients", []),
        ])  # fmt: skip
    return chains


def _counted(left_out: list[tuple[str, int]]) -> list[str]:
    return [f"{count} × {reason}" for reason, count in left_out if count > 0]


def write_cards(folder: Path, names: dict) -> list[Path]:
    """Writes STUDY_CARD.md and DATA_SHEET.md into a run.

    Args:
        folder: the run's folder;  names: class key -> (English, Chinese).

    Returns:
        The two paths. The card follows Mitchell 2019 (arXiv 1810.03993), the sheet Gebru 2021 (arXiv
        1803.09010), filled with this run's facts.
    """
    known = _known(Path(folder))
    said = {name: words or NOT_DONE for name, (_, words, _) in facts(folder).items()}
    flow = {}
    for role, counts in known.get("flow", {}).items():
        labels = Crops.open(Path(folder) / "data" / role).index["label"]
        flow[role] = counts | {"classes": labels.value_counts().to_dict()}
    maps = known.get("maps", {}).get("trained", {}).get("verdicts", {})
    written = [Path(folder) / name for name in CARDS]
    for path in written:
        text = render(CARDS[path.name], said=said, verdicts=maps, names=names, roles=flow, task=known["task"])
        write_text(path, text)
    return written
