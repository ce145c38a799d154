"""Profiles: plain YAML files of notebook parameters, checked before anything runs.

A profile maps a notebook's name to its parameters; ``common`` goes to every notebook that declares the
name. What a notebook declares is read from its cell tagged ``parameters``: ``name: type = default``.
"""

import ast
import contextlib
import difflib
import os
import re
from dataclasses import dataclass
from pathlib import Path

import yaml

from thyroid_lib.common.files import PROJECT
from thyroid_lib.common.messages import named, quoted
from thyroid_lib.datasets import SOURCES

NOTEBOOKS = PROJECT / "notebooks"
PROFILES = NOTEBOOKS / "profiles"
_NO_YAML = (yaml.YAMLError, ValueError, RecursionError)  # ValueError: no such date, another encoding


@dataclass(frozen=True)
class Stage:
    """A notebook, the stages whose files it reads, and whether it runs without being asked for."""

    name: str
    needs: tuple[str, ...] = ()
    default: bool = True


STAGES = (
    Stage("01_preprocess"),
    Stage("02_architecture"),
    Stage("03_pretrain", ("01_preprocess",)),
    Stage("04_finetune", ("01_preprocess", "03_pretrain")),
    Stage("05_evaluate", ("04_finetune",)),
    Stage("06_ablation", ("01_preprocess",), default=False),
    Stage("07_explore", ("04_finetune",), default=False),  # for JupyterLab; --only 07 makes a static page
)


class ProfileError(ValueError):
    """Everything that is wrong with the parameters of a run, a line for each problem."""


def declared(stage: str) -> dict[str, object]:
    """The parameters a notebook declares in its cell tagged ``parameters``, with their stored defaults.

    Without ``run_dir``, which the runner gives to each.

    Args:
        stage: the notebook, such as "01_preprocess".

    Raises:
        ProfileError: there is no such cell, or a line in it is no ``name: type = literal`` of that type.
    """
    import nbformat  # takes seconds: only the runner needs it, not the notebooks

    cells = nbformat.read(NOTEBOOKS / f"{stage}.ipynb", as_version=4).cells
    tagged = [cell for cell in cells if "parameters" in cell.metadata.get("tags", [])]
    if len(tagged) != 1:
        raise ProfileError(f"{stage}.ipynb: expected one cell tagged 'parameters', came {len(tagged)}")
    found = {}
    for line in ast.parse(tagged[0].source).body:
        try:
            found[line.target.id] = default = ast.literal_eval(line.value)
            typed = ast.unparse(line.annotation).partition("[")[0] == type(default).__name__
        except (AttributeError, ValueError, TypeError):
            typed = False
        if not typed:
            came = ast.unparse(line)
            raise ProfileError(f"{stage}.ipynb: expected 'name: type = literal', came '{came}'")
    return {name: found[name] for name in found if name != "run_dir"}


def load(profile: str) -> dict:
    """The profile of that name in ``notebooks/profiles``, or the YAML file of that path.

    Raises:
        ProfileError: there is none, or it does not map names to mappings.
    """
    path = PROFILES / f"{profile}.yaml"
    if not path.is_file():
        path = Path(os.environ.get("THYROID_CALLER", "."), profile)
        if path.suffix not in (".yaml", ".yml") or not path.is_file():
            known = ", ".join(sorted(file.stem for file in PROFILES.glob("*.yaml")))
            raise ProfileError(f"profile '{profile}': expected one of {known}, or the path of a .yaml file")
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except _NO_YAML as error:
        raise ProfileError(f"profile {path.name}: not readable as YAML: {error}") from None
    if not isinstance(content, dict) or not all(isinstance(part or {}, dict) for part in content.values()):
        raise ProfileError(f"profile {path.name}: expected notebooks, each with 'parameter: value' lines")
    return {str(book): {str(name): part[name] for name in part or {}} for book, part in content.items()}


def resolve(profile: dict, settings: list[str], data: dict[str, str]) -> dict[str, dict]:
    """Every notebook's parameters: the profile, then data sources, then ``--set`` on top.

    Args:
        profile: what ``load`` gives.
        settings: ``NOTEBOOK.NAME=VALUE`` or ``NAME=VALUE`` (every notebook that declares it).
        data: parameter name (``finetune_data``) to SPEC.

    Returns:
        notebook name -> parameters that differ from its stored defaults or are set explicitly.

    Raises:
        ProfileError: with all problems at once.
    """
    notebooks = {stage.name: declared(stage.name) for stage in STAGES}
    problems: list[str] = []
    resolved: dict[str, dict] = {name: {} for name in notebooks}

    def give(target: str, name: str, value: object, origin: str) -> None:
        takers = notebooks if target == "common" else [target]
        try:
            if target not in ("common", *notebooks):
                raise ValueError(f"no notebook '{named(target)}'{_nearest(target, notebooks)}")
            known = {parameter for book in takers for parameter in notebooks[book]}
            if name not in known:
                who = "no notebook has a" if target == "common" else f"{target} has no"
                raise ValueError(f"{who} parameter '{named(name)}'{_nearest(name, known)}")
            for book in takers:
                if name in notebooks[book]:
                    before = resolved[book].get(name, notebooks[book][name])
                    resolved[book][name] = _typed(name, value, before)
        except ValueError as error:
            problems.append(f"{origin}: {error}")

    for target in sorted(profile, key=lambda name: name != "common"):  # common first, the rest on top
        for name, value in profile[target].items():
            give(target, name, value, f"profile, {named(target)}.{named(name)}")
    for name, spec in data.items():
        give("common", name, spec, f"--{name.replace('_', '-')}")
    for setting in settings:
        name, separator, text = setting.partition("=")
        target, _, name = name.strip().rpartition(".")
        if not separator or not name:
            problems.append(f"--set {setting}: expected NOTEBOOK.NAME=VALUE, such as 04_finetune.epochs=3")
            continue
        target = next((book for book in notebooks if target and book.startswith(target)), target or "common")
        try:
            give(target, name, yaml.safe_load(text), f"--set {setting}")
        except _NO_YAML:
            give(target, name, text, f"--set {setting}")
    problems += [
        f"{book}.{name}: {problem}"
        for book, parameters in resolved.items()
        for name, value in parameters.items()
        if name.endswith("_data") and (problem := spec_problem(value))
    ]
    if problems:
        raise ProfileError("\n".join(dict.fromkeys(problems)))
    return resolved


def _parts(spec: str) -> tuple[str, str, str] | None:
    """Of a SPEC its kind, its path, and ``?options`` or nothing; ``None`` where it names no path (phantoms)."""
    kind, separator, rest = spec.partition(":")
    path, mark, options = rest.partition("?")
    return (kind, path, mark + options) if separator and kind != "phantom" else None


def locate(spec: str) -> str:
    """A SPEC given on the command line with its path as the notebooks will see it.

    A path beside or in the checkout becomes relative to ``notebooks/``, so that reports do not carry the
    layout of somebody's disk; any other becomes absolute.
    """
    if (parts := _parts(spec)) is None:
        return spec
    kind, path, options = parts
    full = Path(os.environ.get("THYROID_CALLER", "."), path).expanduser().resolve()
    if full.is_relative_to(PROJECT.parent):
        full = Path(os.path.relpath(full, NOTEBOOKS))
    return f"{kind}:{full.as_posix()}{options}"


def public_value(name: str, value: object) -> object:
    """A parameter's value without the layout of a disk: of a path, its last part stays.

    Args:
        name: the parameter's;  value: its value. ``finetune_data`` and the like are SPECs:
            ``ddti:../data/ddti?labels=two`` becomes ``ddti:ddti?labels=two``; any other text that is a path keeps
            its last part.
    """
    if not isinstance(value, str):
        return value
    if name.endswith("_data") and (parts := _parts(value)):
        kind, path, options = parts
        return f"{kind}:{Path(path).name}{re.sub(r'=[^&]*/', '=', options)}"
    return Path(value).name if re.match(r"(\.{0,2}/|[A-Za-z]:\\|~)", value) else value


def public(parameters: dict[str, dict]) -> dict[str, dict]:
    """``public_value`` over notebook -> name -> value."""
    return {book: {name: public_value(name, of[name]) for name in of} for book, of in parameters.items()}


def spec_path(spec: str) -> Path | None:
    """The file or folder a SPEC names, ``None`` where it names none (phantoms, an empty text)."""
    parts = _parts(spec)
    return Path(os.path.normpath(NOTEBOOKS / parts[1])) if parts else None


def spec_problem(spec: str) -> str:
    """What keeps a SPEC from being read, before anything is opened; empty where nothing does."""
    kind, separator, _ = spec.partition(":")
    if not spec:
        return ""
    if not separator or kind not in SOURCES:
        near = _nearest(kind, SOURCES)
        return f"'{named(spec)}': expected KIND:PATH with KIND one of {', '.join(SOURCES)}{near}"
    path = spec_path(spec)
    there = path is None or os.path.exists(path)
    return "" if there else f"'{named(spec)}': {named(str(path))} is not there"


def _typed(name: str, value: object, before: object) -> object:
    """``value`` in the type of what it replaces; YAML reads 1e-3 as a text, which is meant as a number."""
    wanted, given = type(before), type(value)
    if wanted is str and (value is None or given in (int, float)):
        return "" if value is None else str(value)
    with contextlib.suppress(ValueError, OverflowError):
        value = float(value) if wanted is float and given in (int, str) else value
    if type(value) is not wanted:
        raise ValueError(f"'{name}' expects {wanted.__name__}, came {quoted(value)}")
    return before | value if wanted is dict else value  # what a mapping does not name stays as it was


def _nearest(name: str, known) -> str:
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f"; did you mean '{close[0]}'?" if close else ""


def used(run, stage: str, name: str):
    """The value of a notebook's parameter in a run: of run.json, else the notebook's stored default.

    Args:
        run: ``study.run.Run``. stage: the notebook, such as "01_preprocess". name: of the parameter.
    """
    return run.facts.get("parameters", {}).get(stage, {}).get(name) or declared(stage)[name]
