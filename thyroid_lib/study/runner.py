"""The study: numbered notebooks, run in order by papermill into one folder of reports.

Each notebook is a stage. A stage whose notebook, parameters, library code, lock, inputs and data have not
changed since it last succeeded is skipped. A stage is executed aside, in ``.work/``, and its report takes
the old one's place only when it has succeeded.
"""

import argparse
import logging
import os
import re
import shutil
import sys
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path

from thyroid_lib.common.files import PROJECT, REPORTS, DamagedFile, merge, read_json, write_json, write_text
from thyroid_lib.study import profiles, provenance
from thyroid_lib.study.compare import against_reference
from thyroid_lib.study.run import Run, open_run
from thyroid_lib.study.watch import Watch, clock

DAY = 24 * 60.0  # minutes
NOT_OURS = (".ipynb_checkpoints", ".git", ".gitignore", ".DS_Store")


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
        resolved = profiles.resolve(
            profiles.load(options.profile),
            options.set,
            {
                name: profiles.locate(spec)
                for name in ("pretrain_data", "finetune_data", "external_data")
                if (spec := getattr(options, name)) is not None
            },
        )
        stages = _chosen(options)
        name = options.run or Path(options.profile).stem
        if not re.fullmatch(r"[\w.-]+", name) or name in (".", "..", "reference"):
            raise profiles.ProfileError([f"--run {name}: expected a plain folder name, such as quick"])
        folder = Path(os.environ.get("THYROID_REPORTS") or REPORTS).resolve() / name
        missing = [
            f"--from/--only: {stage.name} reads the files of {need}, which this run does not have yet"
            for stage in stages
            for need in stage.needs
            if need not in {chosen.name for chosen in stages}
            and need not in read_json(folder / "run.json").get("stages", {})
        ]
        if missing:
            raise profiles.ProfileError(missing)
    except (profiles.ProfileError, ValueError) as error:
        print(f"Nothing was started.\n{error}", file=sys.stderr)
        return 2
    try:
        with _locked(folder):
            return _run(folder, options, stages, resolved)
    except KeyboardInterrupt:
        print("\nStopped. What had finished is kept; the same command goes on from here.", file=sys.stderr)
        return 130
    except BlockingIOError:
        print(f"Nothing was started: another run is writing to {_shown(folder)}.", file=sys.stderr)
        return 2
    except (StageFailed, DamagedFile, OSError) as error:
        print(error, file=sys.stderr)
        return 1


def _run(folder: Path, options: argparse.Namespace, stages: list[profiles.Stage], resolved: dict) -> int:
    from thyroid_lib.study import report

    run = open_run(folder)
    _sweep(run.dir)
    (run.dir / ".work").mkdir()
    _update(run, {"run": folder.name, "profile": options.profile, "environment": provenance.environment()})
    _update(run, {"parameters": {stage.name: _parameters(stage, resolved) for stage in profiles.STAGES}})
    prints = _fingerprints(resolved)
    for stage in stages:
        done = read_json(run.dir / "run.json").get("stages", {}).get(stage.name, {})
        fresh = done.get("fingerprint") == prints[stage.name] and _complete(run, stage, done)
        if fresh and not options.force:
            if done.get("renderer") != provenance.renderer_hash():
                report.render(run.dir / f"{stage.name}.ipynb", run.dir / f"{stage.name}.html")
                _update(run, {"stages": {stage.name: {"renderer": provenance.renderer_hash()}}})
                print(f"{stage.name:<16} unchanged, report drawn anew", flush=True)
            else:
                print(f"{stage.name:<16} unchanged, skipped", flush=True)
            continue
        _execute(run, stage, resolved[stage.name], prints[stage.name], options.time_limit)
    report.write_index(run)
    _sweep(run.dir)
    if (verdict := against_reference(run.dir, options.profile)) is not None:
        closing = [f"{verdict.verdict}", f"Key by key: {_shown(run.dir / 'comparison.txt')}"]
    else:
        closing = [f"No reference results of the profile {Path(options.profile).stem} to compare with."]
    print(f"\nReports: {_shown(run.dir / 'index.html')}", *closing, sep="\n")
    return 0


def _execute(run: Run, stage: profiles.Stage, parameters: dict, fingerprint: str, minutes: float) -> None:
    """Run one notebook aside, for so many minutes at most, render it, and put both in the place of the last ones."""
    import papermill

    from thyroid_lib.study import report

    logging.getLogger("papermill").setLevel(logging.ERROR)  # parameters are checked before, by profiles.py
    before = _snapshot(run.dir)
    metrics = run.metrics
    _forget(run, stage.name)
    work = run.dir / ".work"
    partial = work / f"{stage.name}.ipynb"
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
            try:
                notebook = papermill.execute_notebook(
                    str(profiles.NOTEBOOKS / f"{stage.name}.ipynb"),
                    str(partial),
                    {"run_dir": run_dir, **parameters},
                    kernel_name="python3",
                    progress_bar=False,
                    cwd=str(profiles.NOTEBOOKS),
                    extra_arguments=["--IPKernelApp.log_level=50"],  # its notices are no news
                )
            except papermill.PapermillExecutionError as error:
                raise StageFailed(_failure(run, stage, partial, error, watch)) from None
            except Exception as error:  # a kernel that died or never came up
                raise StageFailed(_failure(run, stage, partial, error, watch)) from error
            try:
                for key in ("input_path", "output_path"):
                    notebook.metadata.papermill[key] = f"{stage.name}.ipynb"
                page = report.to_html(notebook, stage.name)
            except report.ReportError as error:
                raise StageFailed(f"\n{stage.name} ran, but its report cannot be made: {error}") from None
    except BaseException:
        write_json(run.dir / "metrics.json", metrics)
        raise
    import nbformat

    write_text(run.dir / f"{stage.name}.ipynb", nbformat.writes(notebook))
    write_text(run.dir / f"{stage.name}.html", page)
    after, seconds = _snapshot(run.dir), watch.seconds
    content = read_json(run.dir / "run.json")
    outputs = {name: after[name][0] for name in after if after[name] != before.get(name)}
    for other in content.setdefault("stages", {}).values():  # a file belongs to the stage that wrote it last
        other["outputs"] = {name: size for name, size in other["outputs"].items() if name not in outputs}
    content["stages"][stage.name] = {
        "fingerprint": fingerprint,
        "renderer": provenance.renderer_hash(),
        "seconds": round(seconds, 1),
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        "outputs": outputs,
    }
    write_json(run.dir / "run.json", content)
    print(f"{stage.name:<16} {clock(seconds):>7}  {_shown(run.dir / f'{stage.name}.html')}", flush=True)


def _failure(run: Run, stage: profiles.Stage, partial: Path, error: Exception, watch: Watch) -> str:
    """What a person needs to mend a notebook that stopped."""
    lines = [
        f"\n{stage.name} failed after {clock(watch.seconds)}",
        f"  notebook  notebooks/{stage.name}.ipynb",
    ]
    if watch.late:
        lines += [
            f"  error     stopped: it took longer than the {watch.limit / 60:g} minutes that a stage may take",
            "  next      the same command goes on from the last checkpoint; --time-limit MINUTES gives it longer",
        ]
    elif type(error).__name__ == "DeadKernelError":
        lines += [
            "  error     its process died: killed from outside, or by the system for want of memory",
            "  next      the same command goes on from the last checkpoint; with less memory: --set batch_size=8, "
            "--set jobs=1",
        ]
    elif hasattr(error, "ename"):
        source = next((line for line in error.source.splitlines() if line.strip()), "")
        lines += [
            f"  cell      {error.cell_index} (In [{error.exec_count}]): {source}",
            f"  error     {error.ename}: {error.evalue}",
        ]
    else:
        lines += [f"  error     {type(error).__name__}: {error}"]
    lines += [f"  partial   {_shown(partial)}"]
    kept = run.dir / f"{stage.name}.html"
    if kept.exists():
        when = datetime.fromtimestamp(kept.stat().st_mtime).strftime("%Y-%m-%d %H:%M")
        lines += [f"  kept      {_shown(kept)}, the last good report, of {when}"]
    return "\n".join(lines)


def _fingerprints(resolved: dict[str, dict]) -> dict[str, str]:
    """Per stage, a hash of all it depends on, the stages it reads from included."""
    common = (provenance.library_hash(), provenance.lock_hash())
    prints: dict[str, str] = {}
    for stage in profiles.STAGES:
        parameters = resolved[stage.name]
        data = [
            provenance.data_fingerprint(profiles.spec_path(value))
            for name, value in sorted(parameters.items())
            if name.endswith("_data")
        ]
        notebook = (profiles.NOTEBOOKS / f"{stage.name}.ipynb").read_bytes()
        needs = [prints[need] for need in stage.needs]
        prints[stage.name] = provenance.digest(
            notebook, repr(sorted(parameters.items())), *common, *data, *needs
        )
    return prints


def _parameters(stage: profiles.Stage, resolved: dict) -> dict:
    stored = profiles.declared(profiles.NOTEBOOKS / f"{stage.name}.ipynb")
    values = {name: parameter.default for name, parameter in stored.items()} | resolved[stage.name]
    return {name: value for name, value in values.items() if name != "run_dir"}


def _chosen(options: argparse.Namespace) -> list[profiles.Stage]:
    """The stages asked for, in order."""

    def find(number: str, option: str) -> int:
        for position, stage in enumerate(profiles.STAGES):
            if stage.name == number or stage.name.partition("_")[0] == number.zfill(2):
                return position
        known = ", ".join(stage.name for stage in profiles.STAGES)
        raise profiles.ProfileError([f"{option} {number}: expected one of {known}, or its number"])

    if options.only:
        return [
            profiles.STAGES[position]
            for position in sorted({find(number, "--only") for number in options.only})
        ]
    first = find(options.first, "--from") if options.first else 0
    return [
        stage
        for stage in profiles.STAGES[first:]
        if stage.default or (options.with_ablation and stage.name == "06_ablation")
    ]


def _update(run: Run, content: dict) -> None:
    write_json(run.dir / "run.json", merge(read_json(run.dir / "run.json"), content))


def _forget(run: Run, stage: str) -> None:
    """Drop what an earlier execution of a stage left in ``run.json`` and ``metrics.json``."""
    content = read_json(run.dir / "run.json")
    for part in ("stages", "notes"):
        content.get(part, {}).pop(stage, None)
    write_json(run.dir / "run.json", content)
    write_json(run.dir / "metrics.json", {key: value for key, value in run.metrics.items() if key != stage})


def _complete(run: Run, stage: profiles.Stage, done: dict) -> bool:
    """Whether all files a stage wrote are still there at their size."""
    pages = [run.dir / f"{stage.name}{ending}" for ending in (".html", ".ipynb")]
    files = {run.dir / name: size for name, size in done.get("outputs", {}).items()}
    return all(page.is_file() for page in pages) and all(
        path.is_file() and path.stat().st_size == size for path, size in files.items()
    )


def _snapshot(folder: Path) -> dict[str, tuple[int, int]]:
    """Size and time of every result in a run, by name."""
    shared = {"run.json", "metrics.json", "index.html", "comparison.txt"}
    return {
        path.relative_to(folder).as_posix(): (path.stat().st_size, path.stat().st_mtime_ns)
        for path in folder.rglob("*")
        if path.is_file()
        and not path.relative_to(folder).parts[0].startswith(".")
        and path.name not in shared
        and path.suffix != ".tmp"
    }


def _sweep(folder: Path) -> None:
    """Removes what a run that was killed left behind: in a run, a name that begins with a dot is unfinished work."""
    import fcntl

    for path in sorted(folder.rglob(".*")):
        if path == folder / ".lock" or path.name in NOT_OURS or not path.exists():
            continue
        if path.name.endswith(".lock"):
            with open(path, "a") as file, suppress(OSError):  # a training started by hand may hold it
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                path.unlink()
        elif path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink()


@contextmanager
def _locked(folder: Path):
    """Hold a run's folder; a second run into it gets ``BlockingIOError``. The system lets go on any exit."""
    import fcntl

    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = open(folder / ".lock", "w")
    except OSError as error:
        raise OSError(
            f"Nothing was started: run folder {_shown(folder)}: expected a folder that can be written to, came "
            f"{error.strerror}; choose another with --run, or another place with THYROID_REPORTS"
        ) from None
    with file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield


def _shown(path: Path) -> str:
    """A path as short as a reader of a terminal can use it."""
    return os.path.relpath(path) if path.is_relative_to(Path.cwd()) else str(path)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="./run_all.sh", description="Run the study's notebooks into a folder of HTML reports."
    )
    parser.add_argument("--profile", default="quick", help="notebooks/profiles/NAME.yaml, or a path (quick)")
    parser.add_argument("--run", help="name of the folder under reports/ (the profile's name)")
    parser.add_argument("--pretrain-data", metavar="SPEC", help="open data for pre-training")
    parser.add_argument("--finetune-data", metavar="SPEC", help="labelled clinical data")
    parser.add_argument("--external-data", metavar="SPEC", help="another source, for external testing")
    parser.add_argument("--from", dest="first", metavar="NN", help="start with this notebook")
    parser.add_argument(
        "--only", action="append", metavar="NN", help="this notebook and no other; repeatable"
    )
    parser.add_argument("--with-ablation", action="store_true", help="run 06_ablation too")
    parser.add_argument(
        "--time-limit",
        type=_minutes,
        default=DAY,
        metavar="MINUTES",
        help="that one notebook may take; 0 for any time (a day)",
    )
    parser.add_argument("--force", action="store_true", help="run stages even if nothing changed")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="NN.NAME=VALUE",
        help="one parameter, on top of the profile",
    )
    return parser


def _minutes(text: str) -> float:
    minutes = float(text)
    if not 0 <= minutes < float("inf"):
        raise ValueError(text)
    return minutes
