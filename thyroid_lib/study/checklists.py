"""The reviewer's tables: reporting items filled in by the run, the flow diagram's counts, and two cards.

Items of CLAIM 2024 (10.1148/ryai.240300), TRIPOD+AI (BMJ 2024;385:e078378) and STARD-AI (Nat Med 2025;
31:3283), in our own words, are data: ``templates/reviewers/items.json``. They are a help for authors; a
journal wants its own form.
"""

import json
from importlib.resources import files
from pathlib import Path

import pandas as pd

from thyroid_lib.common.files import read_json, write_text
from thyroid_lib.data.crops import Crops
from thyroid_lib.evaluation.results import OURS
from thyroid_lib.study.facts import NOT_DONE, REPORTED, Facts

AUTHORS, NOT_APPLICABLE = "for the authors", "not applicable"
STATES = (REPORTED, NOT_DONE, NOT_APPLICABLE, AUTHORS)


def items() -> list[dict]:
    """The reporting items: {"standard", "item", "asks", "answer"}."""
    text = (files("thyroid_lib") / "templates" / "reviewers" / "items.json").read_text(encoding="utf-8")
    return json.loads(text)["items"]


def fill(folder: Path) -> pd.DataFrame:
    """Fills every item from a run.

    Args:
        folder: the run's folder, notebooks 01, 04 and 05 done.

    Returns:
        Columns standard, item, asks, state (one of ``STATES``), value, place.
    """
    facts, rows = Facts(folder), []
    for item in items():
        answer = item["answer"]
        if answer == "authors":
            state, value, place = AUTHORS, "", ""
        elif answer.startswith("na:"):
            state, value, place = NOT_APPLICABLE, answer.removeprefix("na:").strip(), ""
        else:
            state, value, place = getattr(facts, answer)()
        rows.append(
            {
                **{k: item[k] for k in ("standard", "item", "asks")},
                "state": state,
                "value": value,
                "place": place,
            }
        )
    return pd.DataFrame(rows)


def summary(filled: pd.DataFrame) -> dict:
    """How many items of each standard are in each state.

    Args:
        filled: of :func:`fill`.

    Returns:
        standard -> state -> number of items.
    """
    counts = pd.crosstab(filled["standard"], filled["state"]).reindex(columns=list(STATES), fill_value=0)
    return {standard: {state: int(n) for state, n in row.items()} for standard, row in counts.iterrows()}


def write(filled: pd.DataFrame, path: Path) -> None:
    """Writes the table as CSV.

    Args:
        filled: of :func:`fill`;  path: of the file.
    """
    write_text(Path(path), filled.to_csv(index=False, lineterminator="\n"))


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
        left = {str(k): int(n) for k, n in crops.excluded["reason"].value_counts().items()}
        problems = crops.folder / "problems.csv"
        if problems.is_file():
            frame = pd.read_csv(problems, dtype=str, keep_default_na=False)
            gone = frame[frame["action"] == "row left out"].drop_duplicates(
                "row" if "row" in frame else "image"
            )
            left |= {str(k): int(n) for k, n in gone["problem"].value_counts().items()}
        used = predictions[(predictions["model"] == OURS) & (predictions["set"] == place)]
        labelled = int((crops.labels >= 0).sum())
        result[role] = {
            "title": crops.title,
            "files": int(recorded.get(role, {}).get("files", len(crops) + sum(left.values()))),
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
    """Boxes for ``plots.evaluation.flow``.

    Args:
        counts: of :func:`flow_counts`.
    """
    chains = []
    for role, c in counts.items():
        steps = []
        where = "External source" if role == "external" else "Clinical data"
        left = [f"{n} × {reason}" for reason, n in list(c["left_out"].items())[:4]]
        if len(c["left_out"]) > 4:
            left.append(f"{len(c['left_out']) - 4} further reasons in problems.csv")
        unexplained = c["files"] - c["crops"] - sum(c["left_out"].values())
        steps.append(
            (
                f"{where}: {c['title']}\n{c['files']} files",
                left + [f"{unexplained} × other"] * (unexplained > 0),
            )
        )
        after = [f"{c['unlabelled']} × no label"] * (c["unlabelled"] > 0)
        after += [f"{c['not_tested']} × in folds not tested in this run"] * (c["not_tested"] > 0)
        steps.append((f"Crops\n{c['crops']} images of {c['patients']} patients", after))
        kind = "External testing, frozen classifier" if role == "external" else "Internal testing"
        steps.append((f"{kind}\n{c['tested']} images of {c['tested_patients']} patients", []))
        chains.append(steps)
    return chains


def write_cards(folder: Path, names: dict) -> list[Path]:
    """Writes STUDY_CARD.md and DATA_SHEET.md into a run.

    Args:
        folder: the run's folder;  names: class key -> (English, Chinese).

    Returns:
        The two paths. The card follows Mitchell 2019 (arXiv 1810.03993), the sheet Gebru 2021 (arXiv
        1803.09010), filled with this run's facts.
    """
    facts = Facts(folder)
    metrics = read_json(Path(folder) / "metrics.json").get("05_evaluate", {})
    environment = markdown_environment()
    said = {name: getattr(facts, name)()[1] or "not done" for name in _needed()}
    roles = {}
    for role, c in metrics.get("flow", {}).items():
        index = Crops.open(Path(folder) / "data" / role).index
        roles[role] = c | {"classes": {k: int(n) for k, n in index["label"].value_counts().items()}}
    written = []
    for name, template in (("STUDY_CARD.md", "study_card.md.j2"), ("DATA_SHEET.md", "data_sheet.md.j2")):
        text = environment.get_template(template).render(
            said=said, metrics=metrics, names=names, roles=roles, ours=OURS, task=facts.task
        )
        write_text(Path(folder) / name, text)
        written.append(Path(folder) / name)
    return written


def markdown_environment():
    """Jinja environment of the cards: undefined names are errors, and no text brings HTML into the Markdown."""
    import jinja2

    room = files("thyroid_lib") / "templates" / "reviewers"
    return jinja2.Environment(
        loader=jinja2.FunctionLoader(lambda name: (room / name).read_text(encoding="utf-8")),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=lambda value: value.replace("<", "&lt;") if isinstance(value, str) else value,
    )


def _needed() -> list[str]:
    return sorted(
        {i["answer"] for i in items() if i["answer"] != "authors" and not i["answer"].startswith("na:")}
    )
