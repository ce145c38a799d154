"""A finished run becomes a reference that can be published: ``python -m thyroid_lib reference RUN``.

``reports/reference/<profile>/`` then holds the reports, ``metrics.json``, ``predictions.csv`` and ``run.json``
of the run, without what must stay at home:

* figures that show real frames, crops or maps of them: a sentence stands in their place, with their caption and
  what they say in words;
* identities of real images, patients and groups: a keyed hash (HMAC-SHA-256, 16 digits, the key of
  ``datasets.identity``), so that nobody without the key can try out file names;
* covariates that no subgroup of the evaluation reads, and ages above 90;
* the layout of the machine: of a data SPEC the last part of its path stays.

Phantoms have no patients: of a run on them alone everything stays but the layout of the machine.
"""

import argparse
import html
import re
import shutil
import sys
import tempfile
from functools import cached_property, partial
from pathlib import Path

import nbformat
import pandas as pd

from thyroid_lib.common.files import PROJECT, REPORTS, read_json, write_json, write_text
from thyroid_lib.common.templates import render
from thyroid_lib.datasets.identity import pseudonym
from thyroid_lib.evaluation.comparison import SUBGROUPS
from thyroid_lib.evaluation.predictions import covariates_of, read_predictions
from thyroid_lib.study import profiles, report
from thyroid_lib.study.run import Run

FOLDER = REPORTS / "reference"
# Bytes of a reference folder above which it is refused: a repository is no archive of pictures.
MOST = 8 * 2**20

OLDEST = 90  # years; above, an age alone may tell who it is
TEXTS = ("STUDY_CARD.md", "DATA_SHEET.md", "reviewers.csv")
_LAYOUT = re.compile(
    r"(?<![\w.:/])/(?:home|Users|root|tmp|work|mnt|media|data|srv|scratch|var|opt|private|workspaces?)/[\w.-]+"
    r"|(?<![\w/])[A-Za-z]:\\[\w. -]+\\"
)


class NotPublishable(ValueError):
    """A run that cannot be published as it is: what was found, where, and what to do."""


class Reference:
    """A run on its way out of the house.

    Args:
        run: the run's folder.
        profile: its profile's name; as ``run.json`` says when not given.

    Raises:
        NotPublishable: the folder is no finished run.
    """

    def __init__(self, run: Path, profile: str = ""):
        self.run, self.facts = Path(run), read_json(Path(run) / "run.json")
        self.profile = profile or Path(self.facts.get("profile", "")).stem
        self.stages = sorted(self.facts.get("stages", {}))
        found = {path.parent.name: read_json(path) for path in sorted(self.run.glob("data/*/crops.json"))}
        self.roles = {role: crops["simulated"] for role, crops in found.items()}
        self.simulated = all(self.roles.values())
        files = ["metrics.json", "predictions.csv", "run.json", "05_evaluate.ipynb"]
        files += [f"{name}.ipynb" for name in self.stages]
        missing = [name for name in files if not (self.run / name).is_file()]
        missing += ["its profile"] * (not self.profile) + ["data/<role>/crops.json"] * (not found)
        if missing:
            advice = (
                f"missing: {', '.join(missing)}; run ./run_all.sh first, then name the folder under reports/"
            )
            raise NotPublishable(f"{self.run}: expected a finished run, {advice}")
        self.figures, self.left_out = 0, []  # how many stay, and the names of those that do not
        self._pseudonym = partial(pseudonym, "reference", self.profile)

    @cached_property
    def names(self) -> dict[str, str]:
        """Every name of a real image, used or not, as texts and pages write it, and what stands for it in them."""
        real = [self.run / "data" / role for role, simulated in self.roles.items() if not simulated]
        paths = [folder / f"{name}.csv" for folder in real for name in ("index", "excluded", "problems")]
        read = partial(pd.read_csv, dtype=str, keep_default_na=False, usecols=["image"])
        found = {name for path in paths if path.is_file() for name in read(path)["image"]} - {""}
        hidden = {name: f"image {self._pseudonym('image', name)}" for name in found}
        return {html.escape(name, quote=False): hidden[name] for name in found} | hidden

    def write(self, folder: Path | None = None) -> tuple[Path, dict]:
        """Writes the reference folder, whole or not at all.

        Args:
            folder: replaced where it is a reference already; ``reports/reference/<profile>`` when not given.

        Returns:
            The folder, and ``{"figures": kept, "left_out": names of figures, "bytes": size of the folder}``.

        Raises:
            NotPublishable: a text of it names a path of this machine or a real image, or it is too large.
        """
        folder = FOLDER / self.profile if folder is None else Path(folder)
        folder.parent.mkdir(parents=True, exist_ok=True)
        if folder.exists() and not (folder / "run.json").is_file():
            raise NotPublishable(f"{folder}: expected a reference to replace, found something else")
        with tempfile.TemporaryDirectory(prefix=".reference.", dir=folder.parent) as room:
            made = Path(room) / folder.name
            made.mkdir()
            self._fill(made)
            report.write_index(Run(made))
            self._refuse(made)
            size = sum(path.stat().st_size for path in made.iterdir())
            if size > MOST:
                advice = "are meant to be committed; fewer folds or smaller figures make it smaller"
                raise NotPublishable(f"{folder}: {size / 2**20:.1f} MiB, at most {MOST / 2**20:.0f} {advice}")
            if folder.exists():
                shutil.rmtree(folder)
            made.rename(folder)
        report.write_list(folder.parent)
        return folder, {"figures": self.figures, "left_out": self.left_out, "bytes": size}

    def _fill(self, folder: Path) -> None:
        for stage in self.stages:
            write_text(folder / f"{stage}.html", self._page(stage))
        write_json(folder / "metrics.json", read_json(self.run / "metrics.json"))
        write_text(folder / "predictions.csv", self._predictions())
        for name in TEXTS:
            if (self.run / name).is_file():
                write_text(folder / name, self._without_names((self.run / name).read_text(encoding="utf-8")))
        facts = {name: self.facts[name] for name in ("run", "environment", "notes") if name in self.facts}
        stages = self.facts["stages"].items()
        hidden = "HMAC-SHA-256 under a key that is not published"
        facts["reference"] = {
            "figures": self.figures,
            "figures_left_out": self.left_out,
            "identities": "as simulated" if self.simulated else hidden,
        }
        facts |= {
            "profile": self.profile,
            "parameters": profiles.public(self.facts.get("parameters", {})),
            "stages": {name: {key: stage[key] for key in ("seconds", "finished")} for name, stage in stages},
        }
        write_json(folder / "run.json", facts)

    def _predictions(self) -> str:
        """``predictions.csv`` with pseudonyms for real images; rows in an order that tells nothing of the names."""
        if self.simulated:
            return (self.run / "predictions.csv").read_text(encoding="utf-8")
        table = read_predictions(self.run / "predictions.csv")
        roles = {"internal": "finetune", "validation": "finetune", "external": "external"}
        real = ~table["set"].map(roles).map(self.roles).astype(bool)
        for column in ("image", "patient", "group"):
            hidden = {value: self._pseudonym(column, value) for value in set(table.loc[real, column])}
            table.loc[real, column] = table.loc[real, column].map(hidden)
        table = table.drop(columns=[c for c in covariates_of(table) if not c.startswith(SUBGROUPS)])
        if "age" in table:
            table["age"] = pd.to_numeric(table["age"], errors="coerce").clip(upper=OLDEST)
        table = table.sort_values(["model", "set", "image", "fold"], kind="stable")
        return table.to_csv(index=False, float_format="%.9g", lineterminator="\n")

    def _page(self, stage: str) -> str:
        """One report, drawn anew from its executed notebook without what must stay at home."""
        notebook, left = nbformat.read(self.run / f"{stage}.ipynb", as_version=4), []
        for cell in notebook.cells:
            cell.source = self._without_names(cell.source)
            for output in cell.get("outputs", []):
                words = output.get("metadata", {}).get("image/png", {})
                data = output.get("data", {})
                if "image/png" in data and (self.simulated or words.get("patient") is False):
                    self.figures += 1
                elif "image/png" in data:
                    left.append(words.get("name", stage))
                    said = {key: str(words.get(key, "")) for key in ("caption", "alt")}
                    output.data = {"text/html": render("study/left_out.html.j2", **said)}
                    output.metadata = {}
                elif "data" in output:
                    output.data = {kind: self._without_names(data[kind]) for kind in data}
                elif output.output_type == "stream":
                    output.text = self._without_names(output.text)
        if left:
            notice = render("study/notice.md.j2", count=len(left))
            notebook.cells.insert(1, nbformat.v4.new_markdown_cell(notice))
        self.left_out += left
        return re.sub(r"data:image/png;base64,[A-Za-z0-9+/=]+", _smaller, report.to_html(notebook, stage))

    @cached_property
    def _private(self) -> dict[str, str]:
        """Parameters of the run that name a path, the longest first, and what is published of each."""
        stages = self.facts.get("parameters", {}).values()
        pairs = [pair for values in stages for pair in values.items() if isinstance(pair[1], str)]
        known = {value: profiles.public_value(name, value) for name, value in pairs}
        longest = sorted(known, key=len, reverse=True)
        return {value: known[value] for value in longest if known[value] != value}

    @cached_property
    def _pattern(self) -> re.Pattern:
        names = "|".join(map(re.escape, sorted(self.names, key=len, reverse=True)))
        return re.compile(rf"(?<![\w/.-])(?:{names})(?![\w-])" if names else "(?!)")  # this matches nothing

    def _without_names(self, text):
        """A text of a notebook (or what else an output holds) without paths of the run and names of real images."""
        if not isinstance(text, str):
            return text
        for value, short in self._private.items():
            text = text.replace(value, short)
        return self._pattern.sub(lambda found: self.names[found[0]], text)

    def _refuse(self, folder: Path) -> None:
        """Raises where a file of the folder names a path of this machine or a real image."""
        own = [str(place) for place in (PROJECT, Path.home(), Path(tempfile.gettempdir()), *self._private)]
        for path in sorted(folder.iterdir()):
            text = re.sub(r"base64,[A-Za-z0-9+/=]+", "", path.read_text(encoding="utf-8"))
            found = [place for place in own if len(place) > 1 and place in text]
            found += [match[0] for one in (_LAYOUT, self._pattern) if (match := one.search(text))]
            if found:
                wanted = "expected no path of this machine and no name of a real image"
                raise NotPublishable(f"{path.name}: {wanted}, found {found[0]!r}; nothing was published")


def main(argv: list[str] | None = None) -> int:
    """``python -m thyroid_lib reference RUN``.

    Returns:
        0 when the reference was written, 2 when the run cannot be published.
    """
    words = "Turn a finished run into reports/reference/<profile>: no image and no name of a patient."
    parser = argparse.ArgumentParser("python -m thyroid_lib reference", description=words)
    parser.add_argument("run", type=Path, help="a folder of reports/")
    parser.add_argument("--profile", default="", help="name of the reference (the run's profile)")
    options = parser.parse_args(argv)
    try:
        folder, about = Reference(options.run, options.profile).write()
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    print(f"{folder}: {about['figures']} figures, {about['bytes'] / 2**20:.1f} MiB")
    if about["left_out"]:
        print(f"left out, as they show real patients: {', '.join(about['left_out'])}")
    return 0


def _smaller(found: re.Match) -> str:
    """The same picture as lossless WebP, or as it was where that is no smaller."""
    small = report.address(report.picture(found[0]), "webp", lossless=True, quality=100, method=4)
    return min(found[0], small, key=len)
