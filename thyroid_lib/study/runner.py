"""The study: numbered notebooks, run in order by papermill into one folder of reports.

Each notebook is a stage. A stage whose notebook, parameters, library code, lock, inputs and data have not
changed since it last succeeded is skipped. A stage is executed aside, in ``.work/``, and its report takes
the old one's place only when it has succeeded.
"""

import argparse
import fcntl
import logging
import os
import re
import shutil
import sys
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

import nbformat
import papermill

from thyroid_lib.common.files import PROJECT, DamagedFile, write_json, write_text
from thyroid_lib.common.fingerprint import digest
from thyroid_lib.common.templates import render
from thyroid_lib.study import profiles, provenance, report
from thyroid_lib.study.compare import against_reference
from thyroid_lib.study.run import Run, open_run, reports_folder
from thyroid_lib.study.watch import Watch, clock

DAY = 24 * 60.0  # minutes
NOT_OURS = (".ipynb_checkpoints", ".git", ".gitignore", ".DS_Store", ".lock")
DATA = {
    "pretrain_data": "open data for pre-training",
    "finetune_data": "labelled clinical data",
    "external_data": "another source, for external testing",
}


class StageFailed(Exception):
    """A notebook stopped with an error; the message says where and what to look at."""


def main(argv: list[str] | None = None) -> int:
    """Run the study; the command ``./run_all.sh``.

    Returns:
        0 when every stage succeeded or was unchanged, 1 when one failed, 2 when nothing could be started,
        130 after Ctrl-C.
    """
    options = _parser().parse_args(argv)
    try:
        data = {name: profiles.locate(spec) for name in DATA if (spec := getattr(options, name)) is not None}
        resolved = profiles.resolve(profiles.load(options.profile), options.set, data)
        name = options.run or Path(options.profile).stem
        if not re.fullmatch(r"[\w.-]+", name) or name in (".", "..", "reference"):
            raise ValueError(f"--run {name}: expected a plain folder name, such as quick")
        folder = reports_folder() / name
        stages = _chosen(options, Run(folder).facts.get("stages", {}))
        run = open_run(folder)
        lock = open(folder / ".lock", "w")  # the system lets go of it on any exit
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (ValueError, OSError) as error:
        busy = isinstance(error, BlockingIOError) and f"{_shown(folder)}: another run is writing to it."
        print(f"Nothing was started.\n{busy or error}", file=sys.stderr)
        return 2
    try:
        with lock:
            return _run(run, options, stages, resolved)
    except KeyboardInterrupt:
        print("\nStopped. What had finished is kept; the same command goes on from here.", file=sys.stderr)
        return 130
    except (StageFailed, DamagedFile, OSError) as error:
        print(error, file=sys.stderr)
        return 1


def _run(run: Run, options: argparse.Namespace, stages: list[profiles.Stage], resolved: dict) -> int:
    _sweep(run.dir)
    (run.dir / ".work").mkdir()
    run.tell({
        "run": run.dir.name, "profile": options.profile, "environment": provenance.environment(),
        "parameters": {name: profiles.declared(name) | resolved[name] for name in resolved},
    })  # fmt: skip
    prints, renderer = _fingerprints(resolved), provenance.renderer_hash()
    for stage in stages:
        done = run.facts.get("stages", {}).get(stage.name, {})
        if options.force or done.get("fingerprint") != prints[stage.name] or not _complete(run, stage, done):
            _execute(run, stage, resolved[stage.name], prints[stage.name], options.time_limit)
            continue
        if done.get("renderer") != renderer:
            notebook = nbformat.read(run.dir / f"{stage.name}.ipynb", as_version=4)
            write_text(run.dir / f"{stage.name}.html", report.to_html(notebook, stage.name))
            run.tell({"stages": {stage.name: {"renderer": renderer}}})
        news = "skipped" if done.get("renderer") == renderer else "report drawn anew"
        print(f"{stage.name:<16} unchanged, {news}", flush=True)
    report.write_index(run)
    _sweep(run.dir)
    print(f"\nReports: {_shown(run.dir / 'index.html')}")
    if found := against_reference(run.dir, options.profile):
        print(f"{found.verdict}\nKey by key: {_shown(run.dir / 'comparison.txt')}")
    else:
        print(f"No reference results of the profile {Path(options.profile).stem} to compare with.")
    return 0


def _execute(run: Run, stage: profiles.Stage, parameters: dict, fingerprint: str, minutes: float) -> None:
    """Run one notebook aside, for so many minutes at most, render it, and put both in the place of the last ones."""
    logging.getLogger("papermill").setLevel(logging.ERROR)  # parameters are checked before, by profiles.py
    before, metrics, work, book = _snapshot(run.dir), run.metrics, run.dir / ".work", f"{stage.name}.ipynb"
    run.forget(stage.name)
    # outside the checkout a path would name the machine: there the folder comes from the environment
    inside = run.dir.is_relative_to(PROJECT)
    run_dir = os.path.relpath(run.dir, profiles.NOTEBOOKS) if inside else ""
    os.environ.update(
        THYROID_STATUS=str(work / "status"),
        THYROID_RUN=str(run.dir),
        IPYTHONDIR=str(work / "ipython"),  # nobody's start-up files
        JUPYTER_PREFER_ENV_PATH="1",
        PYTHONHASHSEED="0",
        PYTHONPATH=os.pathsep.join([str(PROJECT), os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep),
    )
    try:
        with Watch(stage.name, work / "status", 60 * minutes) as watch:
            notebook = papermill.execute_notebook(
                str(profiles.NOTEBOOKS / book), str(work / book),
                {"run_dir": run_dir, **parameters}, cwd=str(profiles.NOTEBOOKS), kernel_name="python3",
                progress_bar=False, extra_arguments=["--IPKernelApp.log_level=50"],  # its notices are no news
            )  # fmt: skip
            notebook.metadata.papermill.update(input_path=book, output_path=book)
            page = report.to_html(notebook, stage.name)
    except BaseException as error:
        write_json(run.dir / "metrics.json", metrics)
        if isinstance(error, Exception):  # of a cell, of the report, or a kernel that died or never came up
            raise StageFailed(_failure(run, stage.name, error, watch)) from error
        raise
    write_text(run.dir / book, nbformat.writes(notebook))
    write_text(run.dir / f"{stage.name}.html", page)
    after, facts = _snapshot(run.dir), run.facts
    outputs = {name: after[name][0] for name in after if after[name] != before.get(name)}
    for other in facts.setdefault("stages", {}).values():  # a file belongs to the stage that wrote it last
        other["outputs"] = {name: size for name, size in other["outputs"].items() if name not in outputs}
    facts["stages"][stage.name] = {
        "fingerprint": fingerprint,
        "renderer": provenance.renderer_hash(),
        "seconds": round(watch.seconds, 1),
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        "outputs": outputs,
    }
    write_json(run.dir / "run.json", facts)
    print(f"{stage.name:<16} {clock(watch.seconds):>7}  {_shown(run.dir / f'{stage.name}.html')}", flush=True)


def _failure(run: Run, stage: str, error: Exception, watch: Watch) -> str:
    """What a person needs to mend a notebook that stopped."""
    kept = run.dir / f"{stage}.html"
    when = kept.exists() and datetime.fromtimestamp(kept.stat().st_mtime).strftime("%Y-%m-%d %H:%M")
    return "\n" + render(
        "study/failure.txt.j2", stage=stage, took=clock(watch.seconds), late=watch.late, minutes=watch.limit / 60,
        error=error, kind=type(error).__name__, partial=_shown(run.dir / ".work" / f"{stage}.ipynb"),
        kept=kept.exists() and _shown(kept), when=when,
    )  # fmt: skip


def _fingerprints(resolved: dict[str, dict]) -> dict[str, str]:
    """Per stage, of all it depends on, the stages it reads from included."""
    common, prints = (provenance.library_hash(), PROJECT / "requirements.lock"), {}
    for stage in profiles.STAGES:
        given = sorted(resolved[stage.name].items())
        data = [profiles.spec_path(value) for name, value in given if name.endswith("_data")]
        before = (*map(provenance.data_fingerprint, data), *(prints[need] for need in stage.needs))
        prints[stage.name] = digest(profiles.NOTEBOOKS / f"{stage.name}.ipynb", repr(given), *common, *before)
    return prints


def _chosen(options: argparse.Namespace, done: dict) -> list[profiles.Stage]:
    """The stages asked for, in order; their inputs are there, or come before them."""
    extra = "06_ablation" if options.with_ablation else ""
    usual = [stage.name for stage in profiles.STAGES if stage.default or stage.name == extra]
    asked = options.only or [name for name in usual if name >= options.first]
    stages = [stage for stage in profiles.STAGES if stage.name in asked]
    there = {stage.name for stage in stages} | set(done)
    words = "--from/--only: {} reads the files of {}, which this run does not have yet"
    missing = [words.format(stage.name, need) for stage in stages for need in sorted({*stage.needs} - there)]
    if missing:
        raise profiles.ProfileError("\n".join(missing))
    return stages


def _complete(run: Run, stage: profiles.Stage, done: dict) -> bool:
    """Whether all files a stage wrote are still there at their size."""
    sizes = {name: size for name, (size, _) in _snapshot(run.dir).items()}
    return (run.dir / f"{stage.name}.html").is_file() and done["outputs"].items() <= sizes.items()


def _snapshot(folder: Path) -> dict[str, tuple[int, int]]:
    """Size and time of every result in a run, by name; a report is drawn from its notebook, and may be again."""
    shared, files = {"run.json", "metrics.json", "comparison.txt"}, {}
    for path in folder.rglob("*"):
        name = path.relative_to(folder).as_posix()
        if not name.startswith(".") and path.name not in shared and path.suffix != ".html" and path.is_file():
            files[name] = (path.stat().st_size, path.stat().st_mtime_ns)
    return files


def _sweep(folder: Path) -> None:
    """Removes what a run that was killed left behind: in a run, a name that begins with a dot is unfinished work."""
    for path in sorted(folder.rglob(".*")):
        if path.name in NOT_OURS or not path.exists():
            continue
        if path.name.endswith(".lock"):
            with open(path, "a") as file, suppress(OSError):  # a training started by hand may hold it
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                path.unlink()
        elif path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink()


def _shown(path: Path) -> str:
    """A path as short as a reader of a terminal can use it."""
    return os.path.relpath(path) if path.is_relative_to(Path.cwd()) else str(path)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("./run_all.sh", description="Run the notebooks into HTML reports.")
    add = parser.add_argument
    add("--profile", default="quick", help="notebooks/profiles/NAME.yaml, or a path (quick)")
    add("--run", help="name of the folder under reports/ (the profile's name)")
    for name, words in DATA.items():
        add(f"--{name.replace('_', '-')}", metavar="SPEC", help=words)
    one = {"type": _stage, "choices": [stage.name for stage in profiles.STAGES], "metavar": "NN"}
    add("--from", dest="first", default="", **one, help="start with this notebook, or its number")
    add("--only", action="append", **one, help="this notebook and no other, or its number; repeatable")
    add("--with-ablation", action="store_true", help="run 06_ablation too")
    add("--time-limit", type=_minutes, default=DAY, metavar="MINUTES", help="of one notebook; 0: no limit")
    add("--force", action="store_true", help="run stages even if nothing changed")
    add("--set", action="append", default=[], metavar="NN.NAME=VALUE", help="one parameter, over the profile")
    return parser


def _stage(text: str) -> str:
    """The name of a stage, of its name or number."""
    names = (stage.name for stage in profiles.STAGES)
    return next((name for name in names if text.zfill(2) == name.partition("_")[0]), text)


def _minutes(text: str) -> float:
    minutes = float(text)
    if not 0 <= minutes < float("inf"):
        raise ValueError(text)
    return minutes
