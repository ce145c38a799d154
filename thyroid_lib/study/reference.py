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
import base64
import html
import io
import re
import shutil
import sys
import tempfile
from functools import cached_property
from pathlib import Path

import pandas as pd

from thyroid_lib.common.files import PROJECT, REPORTS, read_json, write_json, write_text
from thyroid_lib.study import profiles
from thyroid_lib.study.run import Run

FOLDER = REPORTS / "reference"
MOST = 8 * 2**20
"""Bytes of a reference folder above which it is refused: a repository is no archive of pictures."""

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
        missing = [
            name
            for name in ("metrics.json", "predictions.csv", "run.json")
            if not (self.run / name).is_file()
        ]
        if missing or not self.profile:
            raise NotPublishable(
                f"{self.run}: expected a finished run, missing: {', '.join(missing) or 'its profile'}; "
                "run the notebooks first, then name the folder under reports/"
            )
        stale = [name for name in self.stages if not (self.run / f"{name}.ipynb").is_file()]
        if stale or "05_evaluate" not in self.stages:
            raise NotPublishable(
                f"{self.run}: expected the executed notebooks up to 05_evaluate, missing: "
                f"{', '.join(stale) or '05_evaluate'}; run ./run_all.sh again"
            )

    @property
    def stages(self) -> list[str]:
        """The notebooks that ran."""
        return sorted(self.facts.get("stages", {}))

    @cached_property
    def roles(self) -> dict[str, dict]:
        """Role -> its crops' description (``crops.json``), of every role that the run has."""
        found = {path.parent.name: read_json(path) for path in sorted(self.run.glob("data/*/crops.json"))}
        if not found:
            raise NotPublishable(
                f"{self.run}: expected data/<role>/crops.json to tell whether patients are shown, found none; "
                "run notebook 01 into this run again"
            )
        return found

    @cached_property
    def simulated(self) -> bool:
        """Whether every source of the run is the phantom simulator."""
        return all(about["simulated"] for about in self.roles.values())

    @cached_property
    def names(self) -> dict[str, str]:
        """Every name of a real image, used or not, and the pseudonym that stands for it in texts."""
        found = set()
        for role, about in self.roles.items():
            if not about["simulated"]:
                for name in ("index", "excluded", "problems"):
                    path = self.run / "data" / role / f"{name}.csv"
                    if path.is_file():
                        table = pd.read_csv(path, dtype=str, keep_default_na=False, usecols=["image"])
                        found |= set(table["image"]) - {""}
        return {name: f"image {self._pseudonym('image', name)}" for name in sorted(found)}

    def _pseudonym(self, kind: str, value: str) -> str:
        from thyroid_lib.datasets.identity import pseudonym

        return pseudonym("reference", self.profile, kind, value)

    def write(self, folder: Path) -> dict:
        """Writes the reference folder, whole or not at all.

        Args:
            folder: replaced where it is a reference already.

        Returns:
            ``{"figures": kept, "left_out": names of figures, "bytes": size of the folder}``.

        Raises:
            NotPublishable: a text of it names a path of this machine or a real image, or it is too large.
        """
        from thyroid_lib.study import report

        folder.parent.mkdir(parents=True, exist_ok=True)
        if folder.exists() and not (folder / "run.json").is_file():
            raise NotPublishable(
                f"{folder}: expected no folder or a reference to replace, found something else"
            )
        room = Path(tempfile.mkdtemp(prefix=".reference.", dir=folder.parent))
        try:
            partial = room / folder.name
            partial.mkdir()
            about = self._fill(partial)
            report.write_index(Run(partial))
            self._refuse(partial)
            about["bytes"] = sum(path.stat().st_size for path in partial.iterdir())
            if about["bytes"] > MOST:
                raise NotPublishable(
                    f"{folder}: {about['bytes'] / 2**20:.1f} MiB, at most {MOST / 2**20:.0f} MiB are meant to be "
                    "committed; fewer folds or smaller figures make it smaller"
                )
            if folder.exists():
                shutil.rmtree(folder)
            partial.rename(folder)
        finally:
            shutil.rmtree(room, ignore_errors=True)
        report.write_list(folder.parent)
        return about

    def _fill(self, folder: Path) -> dict:
        about = {"figures": 0, "left_out": []}
        for stage in self.stages:
            kept, left = self._page(stage, folder / f"{stage}.html")
            about["figures"] += kept
            about["left_out"] += left
        write_json(folder / "metrics.json", read_json(self.run / "metrics.json"))
        write_text(folder / "predictions.csv", self._predictions())
        for name in TEXTS:
            if (self.run / name).is_file():
                write_text(folder / name, self._without_names((self.run / name).read_text(encoding="utf-8")))
        facts = {
            key: self.facts[key]
            for key in ("run", "environment", "notes", "parameters", "stages")
            if key in self.facts
        }
        facts |= {"profile": self.profile, "parameters": profiles.public(self.facts.get("parameters", {}))}
        facts["stages"] = {
            name: {key: stage[key] for key in ("seconds", "finished") if key in stage}
            for name, stage in self.facts["stages"].items()
        }
        facts["reference"] = {
            "figures": about["figures"],
            "figures_left_out": about["left_out"],
            "identities": "as simulated"
            if self.simulated
            else "HMAC-SHA-256 under a key that is not published",
        }
        write_json(folder / "run.json", facts)
        return about

    # predictions

    def _predictions(self) -> str:
        """``predictions.csv`` with pseudonyms for real images; rows in an order that tells nothing of the names."""
        from thyroid_lib.evaluation.comparison import SUBGROUPS
        from thyroid_lib.evaluation.predictions import covariates_of, read_predictions

        if self.simulated:
            return (self.run / "predictions.csv").read_text(encoding="utf-8")
        table = read_predictions(self.run / "predictions.csv")
        real = table["set"].map({"internal": "finetune", "validation": "finetune", "external": "external"})
        real = ~real.map({role: about["simulated"] for role, about in self.roles.items()}).astype(bool)
        for column in ("image", "patient", "group"):
            hidden = {value: self._pseudonym(column, value) for value in set(table.loc[real, column])}
            table.loc[real, column] = table.loc[real, column].map(hidden)
        table = table.drop(columns=[c for c in covariates_of(table) if not c.startswith(SUBGROUPS)])
        if "age" in table:
            table["age"] = pd.to_numeric(table["age"], errors="coerce").clip(upper=OLDEST)
        table = table.sort_values(["model", "set", "image", "fold"], kind="stable")
        return table.to_csv(index=False, float_format="%.9g", lineterminator="\n")

    # pages

    def _page(self, stage: str, page: Path) -> tuple[int, list[str]]:
        """One report, drawn anew from its executed notebook; gives how many figures stay, and which do not."""
        import nbformat

        from thyroid_lib.study import report

        notebook = nbformat.read(self.run / f"{stage}.ipynb", as_version=4)
        kept, left = 0, []
        for cell in notebook.cells:
            cell.source = self._without_layout(cell.source)
            for output in cell.get("outputs", []):
                words = output.get("metadata", {}).get("image/png", {})
                if "image/png" in output.get("data", {}):
                    if self.simulated or words.get("patient") is False:
                        kept += 1
                        continue
                    left.append(words.get("name", stage))
                    output.data, output.metadata = nbformat.from_dict({"text/html": _left_out(words)}), {}
                elif "data" in output:
                    output.data = nbformat.from_dict(
                        {kind: self._without_names(text) for kind, text in output.data.items()}
                    )
                elif output.output_type == "stream":
                    output.text = self._without_names(output.text)
        if left:
            notebook.cells.insert(1, nbformat.v4.new_markdown_cell(_notice(len(left))))
        text = report.to_html(notebook, stage)
        write_text(page, re.sub(r"data:image/png;base64,([A-Za-z0-9+/=]+)", _smaller, text))
        return kept, left

    @cached_property
    def _private(self) -> dict[str, str]:
        """Parameters of the run that name a path, and what is published of each."""
        return {
            value: short
            for values in self.facts.get("parameters", {}).values()
            for name, value in values.items()
            if (short := profiles.public_value(name, value)) != value
        }

    def _without_layout(self, text: str) -> str:
        for value, short in sorted(self._private.items(), key=lambda item: -len(item[0])):
            text = text.replace(value, short)
        return text

    @cached_property
    def _pattern(self) -> re.Pattern | None:
        words = {html.escape(name, quote=False) for name in self.names} | set(self.names)
        if not words:
            return None
        longest_first = sorted(words, key=len, reverse=True)
        return re.compile(rf"(?<![\w/.-])(?:{'|'.join(map(re.escape, longest_first))})(?![\w-])")

    def _without_names(self, text):
        """A text of an output (or a list of lines) with a pseudonym in place of every real image's name."""
        if not isinstance(text, str):
            return text
        text = self._without_layout(text)
        if self._pattern is None:
            return text
        return self._pattern.sub(lambda found: self.names[html.unescape(found[0])], text)

    def _refuse(self, folder: Path) -> None:
        """Raises where a file of the folder names a path of this machine or a real image."""
        own = [str(place) for place in (PROJECT, Path.home(), Path(tempfile.gettempdir()), *self._private)]
        for path in sorted(folder.iterdir()):
            text = re.sub(r"base64,[A-Za-z0-9+/=]+", "", path.read_text(encoding="utf-8"))
            found = [place for place in own if len(place) > 1 and place in text]
            patterns = [_LAYOUT] + [self._pattern] * (self._pattern is not None)
            found += [match[0] for pattern in patterns if (match := pattern.search(text))]
            if found:
                raise NotPublishable(
                    f"{path.name}: expected no path of this machine and no name of a real image, found {found[0]!r}; "
                    "nothing was published"
                )


def write(run: Path, folder: Path | None = None, profile: str = "") -> tuple[Path, dict]:
    """Publishes a run.

    Args:
        run: the run's folder;  folder: where to; ``reports/reference/<profile>`` when not given;  profile: as
            ``run.json`` says when not given.

    Returns:
        The folder, and what :meth:`Reference.write` says of it.
    """
    reference = Reference(run, profile)
    folder = Path(folder) if folder else FOLDER / reference.profile
    return folder, reference.write(folder)


def main(argv: list[str] | None = None) -> int:
    """``python -m thyroid_lib reference RUN``.

    Returns:
        0 when the reference was written, 2 when the run cannot be published.
    """
    parser = argparse.ArgumentParser(
        prog="python -m thyroid_lib reference",
        description="Turn a finished run into reports/reference/<profile>: no image and no name of a patient.",
    )
    parser.add_argument("run", type=Path, help="a folder of reports/")
    parser.add_argument("--profile", default="", help="name of the reference (the run's profile)")
    options = parser.parse_args(argv)
    try:
        folder, about = write(options.run, profile=options.profile)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    print(f"{folder}: {about['figures']} figures, {about['bytes'] / 2**20:.1f} MiB")
    if about["left_out"]:
        print(f"left out, as they show real patients: {', '.join(about['left_out'])}")
    return 0


def _left_out(words: dict) -> str:
    caption, alt = (html.escape(str(words.get(key, ""))) for key in ("caption", "alt"))
    return (
        '<figure class="left-out"><p><strong>Left out here: a figure that shows images of real patients.</strong></p>'
        f"<p>In words: {alt}</p><figcaption>{caption}</figcaption></figure>"
    )


def _notice(count: int) -> str:
    figures = "one figure that shows" if count == 1 else f"{count} figures that show"
    return (
        f"> This is a published copy: {figures} images of real patients {'is' if count == 1 else 'are'} left out, each "
        "with a word in its place, and names of images are keyed hashes. A run of your own on the same data shows all."
    )


def _smaller(found: re.Match) -> str:
    """The same picture as lossless WebP, or as it was where that is no smaller."""
    from PIL import Image

    original = base64.b64decode(found[1])
    buffer = io.BytesIO()
    Image.open(io.BytesIO(original)).convert("RGB").save(buffer, "WEBP", lossless=True, quality=100, method=4)
    if buffer.tell() >= len(original):
        return found[0]
    return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
