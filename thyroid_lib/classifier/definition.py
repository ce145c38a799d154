"""classifier.json: what a classifier is, checked against its schema before anything else is believed."""

import hashlib
import json
import math
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from thyroid_lib import __version__
from thyroid_lib.classifier import backends
from thyroid_lib.common.files import write_text
from thyroid_lib.common.messages import named, quoted

NAME = "classifier.json"
FORMAT, VERSION = "thyroid_lib classifier", 1
MAX_BYTES = 4 * 2**20
NUMBER = (int, float)
SCHEMA = {
    "format": str,
    "format_version": int,
    "id": str,
    "architecture": {"name": str, "num_classes": int, "in_chans": int, "...": object},
    "members": int,
    "classes": [{"key": str, "english": str, "chinese": str}],
    "recipe": {"...": object},
    "size": int,
    "normalization": {"mean": NUMBER, "std": NUMBER, "channels": int},
    "temperature": [NUMBER],
    "operating_points": {"...": NUMBER},
    "conformal": ({"coverage": NUMBER, "threshold": NUMBER, "n": int, "...": object}, None),
    "novelty": ({"false_warnings": NUMBER, "components": int}, None),
    "training": {"simulated": bool, "...": object},
    "metrics": {"...": object},
    "versions": {"...": str},
    "files": {"...": {"sha256": str, "bytes": int}},
}
"""Field -> type; a dict is an object ("..." stands for any other field), a list has items of one kind."""


class ClassifierError(ValueError):
    """A classifier folder that cannot be believed; the message says what is wrong and what to do."""


def read(folder: Path) -> dict:
    """classifier.json of a folder, checked.

    Raises:
        ClassifierError: missing, damaged, of another version, or not what the schema says.
    """
    path = folder / NAME
    try:
        if path.stat().st_size > MAX_BYTES:
            raise ClassifierError(
                f"{path}: larger than {MAX_BYTES // 2**20} MiB, so no classifier's definition"
            )
        definition = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ClassifierError(
            f"{folder} is no classifier folder: {NAME} cannot be opened ({error.strerror}). "
            "Notebook 04 writes one to reports/<run>/classifier"
        ) from error
    except (ValueError, RecursionError) as error:
        if isinstance(error, ClassifierError):
            raise
        raise ClassifierError(f"{path} is damaged: not JSON ({error}); copy the folder again") from error
    check(definition, str(path))
    return definition


def write(folder: Path, definition: dict) -> None:
    """Writes classifier.json, whole or not at all, after the same check that `read` makes."""
    check(definition, NAME)
    write_text(folder / NAME, json.dumps(definition, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def check(definition, where: str) -> None:
    """Raises ClassifierError unless the definition is of this version, complete and consistent."""
    if not isinstance(definition, dict) or definition.get("format") != FORMAT:
        raise ClassifierError(f"{where}: not the definition of a classifier ('format' must be {FORMAT!r})")
    if definition.get("format_version") != VERSION:
        raise ClassifierError(
            f"{where}: format version {quoted(definition.get('format_version'))} came, this thyroid_lib "
            f"{__version__} reads version {VERSION}; use the release that wrote it, or save it again"
        )
    problems = _problems(definition, SCHEMA, "")
    if not problems:
        problems = _inconsistencies(definition)
    if problems:
        raise ClassifierError(f"{where}: {'; '.join(problems[:5])}; copy the folder again or save it again")


def _problems(value, schema, at: str) -> list[str]:
    if isinstance(schema, tuple) and None in schema:
        return [] if value is None else _problems(value, schema[0], at)
    if isinstance(schema, dict):
        if not isinstance(value, dict):
            return [f"{at}: an object was expected, {type(value).__name__} came"]
        rest = schema.get("...")
        found = [f"{at}{key} is missing" for key in schema if key != "..." and key not in value]
        for key, item in value.items():
            if key in schema or rest:
                found += _problems(item, schema.get(key, rest), f"{at}{named(key)}.")
            else:
                found.append(f"{at}{named(key)} is unknown")
        return found
    if isinstance(schema, list):
        if not isinstance(value, list) or not value:
            return [f"{at} a list was expected, {type(value).__name__} came"]
        return [p for i, item in enumerate(value) for p in _problems(item, schema[0], f"{at}{i}.")]
    wrong = not isinstance(value, schema) or (isinstance(value, bool) and schema in (int, NUMBER))
    if wrong or (isinstance(value, float) and not math.isfinite(value)):
        names = "number" if schema == NUMBER else schema.__name__
        return [f"{at.rstrip('.')}: {names} was expected, {quoted(value)} came"]
    return []


def _inconsistencies(d: dict) -> list[str]:
    keys = [entry["key"] for entry in d["classes"]]
    rules = {
        "class keys are not unique": len(set(keys)) == len(keys),
        f"architecture.num_classes must be the number of classes, {len(keys)}": (
            d["architecture"]["num_classes"] == len(keys)
        ),
        "temperature needs one positive value per member": len(d["temperature"]) == d["members"]
        and min(d["temperature"]) > 0,
        "operating_points name a class that is not among the classes": set(d["operating_points"])
        <= set(keys),
        "size must be 16 to 2048 px": 16 <= d["size"] <= 2048,
        "architecture.middle_blocks must be a whole number from 1 to 64": (
            d["architecture"].get("middle_blocks", 8) in range(1, 65)
        ),
        "normalization must be mean 0.5, std 0.5 and the architecture's channels": d["normalization"]
        == {"mean": 0.5, "std": 0.5, "channels": d["architecture"]["in_chans"]},
        "files must be names in this folder": all(Path(name).name == name for name in d["files"]),
        f"files must name {backends.WEIGHTS}": backends.WEIGHTS in d["files"],
        "the id is not that of the content (it was edited)": not d["id"] or d["id"] == identity(d),
    }
    return [problem for problem, holds in rules.items() if not holds]


def identity(definition: dict) -> str:
    """Architecture's name and 12 digits of the hash over everything that changes an answer.

    Metrics and versions may be added or differ without making another classifier.
    """
    parts = {k: v for k, v in definition.items() if k not in ("id", "metrics", "versions")}
    text = json.dumps(parts, sort_keys=True, ensure_ascii=False)
    return f"{definition['architecture']['name']}-{hashlib.sha256(text.encode()).hexdigest()[:12]}"


def verify(folder: Path, definition: dict, name: str) -> None:
    """Raises ClassifierError unless a file of the folder has the size and SHA-256 that were recorded."""
    recorded, path = definition["files"].get(name), folder / name
    if recorded is None or not path.is_file():
        raise ClassifierError(f"{path} is missing; copy the whole classifier folder")
    if path.stat().st_size != recorded["bytes"]:
        came = path.stat().st_size
        raise ClassifierError(
            f"{path} is damaged: {recorded['bytes']} bytes expected, {came} came; copy it again"
        )
    if backends.sha256(path) != recorded["sha256"]:
        raise ClassifierError(f"{path} is damaged or was exchanged: its SHA-256 differs; copy it again")


def versions() -> dict[str, str]:
    """Versions of the packages that an answer depends on."""
    found = {"thyroid_lib": __version__}
    for name in ("torch", "numpy", "opencv-python-headless", "pillow", "safetensors"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found
