"""The run: one folder, ``reports/<run>/``, in which every number and figure of a study is a file.

Notebooks open it with ``open_run``; the runner (``study.py``) keeps its ``run.json``.
"""

import base64
import io
import os
import re
import tempfile
from collections.abc import Mapping, Sequence
from html import escape
from itertools import cycle
from pathlib import Path

from thyroid_lib.common.files import REPORTS, merge, read_json, write_json

SCREEN = 105  # px that an inch of a figure takes in JupyterLab
EXPLORED = "explore"  # the run that notebooks write to when JupyterLab opens them
PICTURE = 24  # px: an array of this many a side is a picture, a smaller one a matrix


class Run:
    """One run's folder as a notebook sees it.

    Attributes:
        dir: the folder, which the notebook writes to.
        source: the run whose files it reads: the same, but for a notebook that is explored beside a finished run.
    """

    def __init__(self, folder: Path, source: Path | None = None):
        self.dir, self.source = Path(folder), Path(source or folder)

    def path(self, *parts: str) -> Path:
        """A path inside the run, its parent folder made."""
        path = self.dir.joinpath(*parts)
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    @property
    def metrics(self) -> dict:
        """Every number recorded so far: notebook -> key -> value."""
        return self._read("metrics.json")

    @property
    def facts(self) -> dict:
        """``run.json``: profile, parameters, environment, stages that succeeded, and ``notes``."""
        return self._read("run.json")

    def _read(self, name: str) -> dict:
        """A JSON file of the run, what was written here laid over what the source has."""
        own = read_json(self.dir / name)
        return own if self.source == self.dir else merge(read_json(self.source / name), own)

    def _lay(self, name: str, content: Mapping) -> None:
        """Lay content over a JSON file of the run."""
        write_json(self.dir / name, dict(sorted(merge(read_json(self.dir / name), content).items())))

    def record(self, stage: str, metrics: Mapping) -> None:
        """Keep numbers of one notebook in ``metrics.json``.

        Only what two runs with one seed have in common belongs here: results, no times. A metric with an
        uncertainty is ``{"value", "low", "high", "n_images", "n_patients"}``.

        Args:
            stage: the notebook, such as ``"05_evaluate"``.
            metrics: keys to numbers, texts, or dictionaries of them; laid over what is there.
        """
        self._lay("metrics.json", {stage: metrics})

    def note(self, stage: str, notes: Mapping) -> None:
        """Keep what differs from run to run (times, throughput, hardware, choices) in ``run.json``."""
        self.tell({"notes": {stage: notes}})

    def tell(self, facts: Mapping) -> None:
        """Lay facts over those in ``run.json``."""
        self._lay("run.json", facts)

    def forget(self, stage: str) -> None:
        """Drop what an earlier execution of a stage left in ``run.json`` and ``metrics.json``."""
        facts, metrics = self.facts, self.metrics
        for part in ("stages", "notes"):
            facts.get(part, {}).pop(stage, None)
        metrics.pop(stage, None)
        write_json(self.dir / "run.json", facts)
        write_json(self.dir / "metrics.json", metrics)

    def show(self, figure, name: str, *, caption: str, alt="", simulated=False, patient: bool | None = None):
        """Save a figure as ``figures/<name>.png`` and display it; the last statement of a cell.

        Args:
            figure: a matplotlib ``Figure``; it is closed.
            name: file name without ending, the notebook's number first: ``"03_curves"``.
            caption: what the figure shows, in one or two sentences.
            alt: what a reader who cannot see it should know, with the numbers; ``figure.alt`` by default.
            simulated: put the badge "simulated" on it.
            patient: whether it shows real frames, crops or maps of them: such a figure is kept out of what can
                be published. Where it is not said, a figure with a picture in it counts as one, unless simulated.

        Raises:
            ValueError: there is no alt text, or the name is no plain file name.
        """
        import matplotlib.pyplot as plt
        from IPython.display import Markdown, display

        from thyroid_lib.plots.style import WIDTH

        alt = alt or getattr(figure, "alt", "")
        if not alt.strip() or not caption.strip():
            raise ValueError(f"figure {name!r}: expected an alt text and a caption, one is empty; give both")
        if not re.fullmatch(r"\d\d_[a-z0-9_]+", name):
            raise ValueError(f"figure {name!r}: expected the notebook's number and words, like 03_curves")
        share = min(100, round(100 * figure.get_size_inches()[0] / WIDTH))  # letters of one size everywhere
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", metadata={"Software": None})
        plt.close(figure)
        self.path("figures", f"{name}.png").write_bytes(buffer.getvalue())
        if patient is None:
            shown = [image.get_array().shape for axes in figure.axes for image in axes.images]
            patient = not simulated and any(min(shape[:2]) >= PICTURE for shape in shown)
        words = dict(alt=alt, caption=caption, simulated=simulated, patient=patient, name=name, share=share)
        words["width"] = round(share / 100 * WIDTH * SCREEN)  # in JupyterLab; a report goes by the share
        data = {"image/png": base64.b64encode(buffer.getvalue()).decode("ascii"), "text/plain": alt}
        display(data, raw=True, metadata={"image/png": words})
        if "THYROID_STATUS" not in os.environ:  # a report draws the caption itself
            display(Markdown(f"*{'Simulated. ' if simulated else ''}{caption}*"))

    def table(self, frame, *, caption: str, digits: int = 3) -> None:
        """Display a DataFrame as a table with a caption; texts in it are escaped.

        Args:
            frame: a pandas ``DataFrame``; its index is shown where it has a name.
            caption: one sentence.
            digits: decimals of floating-point columns.
        """
        from IPython.display import HTML, display

        frame = frame if frame.index.name is None else frame.reset_index()
        body = frame.to_html(index=False, border=0, na_rep="–", float_format=f"{{:.{digits}f}}".format)
        numeric = cycle([_is_number(frame.iloc[:, k]) for k in range(frame.shape[1])])
        left, right = ' style="text-align: left"', ' class="number"'  # JupyterLab would set all to the right
        body = re.sub(r"<t[dh](?=>)", lambda cell: cell[0] + (right if next(numeric) else left), body)
        body = re.sub(r"(?<=>)[^<]+(?=</td>)", lambda text: _breaking_well(text[0]), body)
        body = re.sub(r"(<table[^>]*>)", rf"\1<caption{left}>{escape(caption)}</caption>", body, count=1)
        display(HTML(f'<div class="table">{body}</div>'))


def _is_number(column) -> bool:
    """Whether a table's column is set as numbers: it holds some, or their digits."""
    from pandas.api.types import is_numeric_dtype

    return is_numeric_dtype(column) or bool(column.astype(str).str.fullmatch(r"[-−]?[\d,.]+").all())


def _breaking_well(text: str) -> str:
    """A table cell's text: an interval and a word or two stay on one line, a long name may break after _, / or -."""
    if len(text) <= 12:
        return f'<span class="whole">{text}</span>' if " " in text else text
    interval, name = r"(?<=\d )\([-−+\d.]+ to [-−+\d.]+\)", r"(?<![<\w&\"])[\w./-]{18,}(?![\w;])"
    text = re.sub(interval, lambda found: f'<span class="whole interval">{found[0]}</span>', text)
    return re.sub(name, lambda found: re.sub(r"(?<=[_/-])(?=\w)", "<wbr>", found[0]), text)


def reports_folder() -> Path:
    """Where the runs lie: ``$THYROID_REPORTS``, else ``reports`` of the checkout."""
    return Path(os.environ.get("THYROID_REPORTS") or REPORTS).resolve()


def open_run(run_dir: str | os.PathLike = "", *reads: str) -> Run:
    """Open a run's folder, made where it is missing, and switch to the study's figure style.

    A notebook that is opened in JupyterLab names no run: it writes to ``reports/explore`` and reads the newest run
    that has what it reads, or ``$THYROID_SOURCE``, which ``./run_all.sh lab RUN`` sets; it says which.

    Args:
        run_dir: the folder, to read and to write; where empty, ``$THYROID_RUN``.
        reads: files or folders of earlier notebooks that this one reads, such as ``"classifier"``.

    Raises:
        FileNotFoundError: no run has what is read.
        OSError: the folder cannot be made or written to.
    """
    from thyroid_lib.plots.style import use_style

    named = run_dir or os.environ.get("THYROID_RUN")
    reports = reports_folder()
    folder = Path(named or reports / EXPLORED).resolve()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise OSError(
            f"run folder {folder}: expected a folder that can be written to, came {error.strerror}; "
            "choose another with --run or run_dir, or another place with THYROID_REPORTS"
        ) from None
    use_style()
    return Run(folder, newest(reports, reads) if reads and not named else None)


def newest(reports: Path, reads: Sequence[str]) -> Path:
    """The run that a notebook in JupyterLab reads: ``$THYROID_SOURCE``, else the newest in ``reports``; shows which.

    Raises:
        FileNotFoundError: it lacks one of ``reads``, or no run has them all.
    """
    from IPython.display import Markdown, display

    chosen = os.environ.get("THYROID_SOURCE")
    places = [reports / chosen] if chosen else list(reports.glob("*/"))
    found = [place for place in places if all((place / name).exists() for name in reads)]
    if not found:
        came = f"none in the run {chosen}" if chosen else f"no run in {reports}"
        raise FileNotFoundError(
            f"expected {' and '.join(reads)} of a finished run, came {came}; ./run_all.sh makes one, "
            "./run_all.sh lab RUN chooses one"
        )
    run = max(found, key=lambda place: (place / reads[0]).stat().st_mtime)
    display(Markdown(f"Opened: the run **{run.name}**. What is written goes to `{reports.name}/{EXPLORED}`."))
    return run
