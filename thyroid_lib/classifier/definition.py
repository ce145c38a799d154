"""classifier.json: what a classifier is, checked before anything else in its folder is believed.

The schema is ``templates/classify/classifier.schema.json``; `check` adds what a schema cannot say.
"""

import hashlib
import json
import math
from importlib import metadata
from pathlib import Path

import fastjsonschema

from thyroid_lib import __version__
from thyroid_lib.common.files import LIBRARY
from thyroid_lib.common.fingerprint import sha256
from thyroid_lib.common.messages import MORE, named, quoted

NAME, CARD = "classifier.json", "MODEL_CARD.md"
WEIGHTS, NOVELTY = "model.safetensors", "novelty.safetensors"
ONNX, ONNX_RECORD = "model.onnx", "model.onnx.json"
FORMAT, VERSION = "thyroid_lib classifier", 1
MAX_BYTES = 4 * 2**20
SCHEMA = LIBRARY / "templates" / "classify" / "classifier.schema.json"


class ClassifierError(ValueError):
    """A classifier that cannot be believed, or not be run here; the message says why and what to do."""


def read(folder: Path) -> dict:
    """classifier.json of a folder, checked.

    Raises:
        ClassifierError: missing, damaged, of another version, or not what the schema says.
    """
    path = folder / NAME
    try:
        if path.stat().st_size > MAX_BYTES:
            raise ValueError(f"it is larger than {MAX_BYTES // 2**20} MiB")
        definition = json.loads(path.read_text("utf-8"), parse_float=_finite, parse_constant=_finite)
    except OSError as error:
        whence = "Notebook 04 writes one to reports/<run>/classifier"
        problem = f"{folder} is no classifier folder: {NAME} cannot be opened ({error.strerror}). {whence}"
        raise ClassifierError(problem) from error
    except (ValueError, RecursionError) as error:
        problem = f"{path} is damaged: no classifier's JSON ({error}); copy the folder again"
        raise ClassifierError(problem) from error
    check(definition, str(path))
    return definition


def _finite(text: str) -> float:
    if not math.isfinite(number := float(text)):
        raise ValueError(f"{text} is no finite number")
    return number


def check(definition, where: str) -> None:
    """Raises ClassifierError unless the definition is of this version, complete and consistent."""
    if not isinstance(definition, dict) or definition.get("format") != FORMAT:
        raise ClassifierError(f"{where}: not the definition of a classifier ('format' must be {FORMAT!r})")
    if definition.get("format_version") != VERSION:
        raise ClassifierError(
            f"{where}: format version {quoted(definition.get('format_version'))} came, this thyroid_lib "
            f"{__version__} reads version {VERSION}; use the release that wrote it, or save it again"
        )
    try:
        fastjsonschema.compile(json.loads(SCHEMA.read_text("utf-8")))(definition)
        problem = _inconsistency(definition)
    except fastjsonschema.JsonSchemaValueException as error:
        problem = f"{named(error.message.removeprefix('data.'), MORE)}, {quoted(error.value)} came"
    if problem:
        raise ClassifierError(f"{where}: {problem}; copy the folder again or save it again")


def _inconsistency(d: dict) -> str:
    """The first rule that fields of a definition break together; "" where they break none."""
    keys, network = [entry["key"] for entry in d["classes"]], d["architecture"]
    rules = {
        "class keys are not unique": len(set(keys)) < len(keys),
        f"architecture.num_classes must be that of classes, {len(keys)}": network["num_classes"] != len(keys),
        "temperature needs one value per member": len(d["temperature"]) != d["members"],
        "operating_points name a class that is not among the classes": set(d["operating_points"]) - set(keys),
        "normalization.channels must be architecture.in_chans": d["normalization"]["channels"]
        != network["in_chans"],
        "the id is not that of the content (it was edited)": d["id"] != identity(d),
    }
    return next((problem for problem, broken in rules.items() if broken), "")


def identity(definition: dict) -> str:
    """Architecture's name and 12 digits of the hash over everything that changes an answer.

    Metrics and versions may be added or differ without making another classifier.
    """
    parts = {k: v for k, v in definition.items() if k not in ("id", "metrics", "versions")}
    text = json.dumps(parts, sort_keys=True, ensure_ascii=False)
    return f"{definition['architecture']['name']}-{hashlib.sha256(text.encode()).hexdigest()[:12]}"


def fingerprint(path: Path) -> dict:
    """SHA-256 in hexadecimal and size of a file, as ``files`` of classifier.json records them."""
    return {"sha256": sha256(path), "bytes": path.stat().st_size}


def verify(folder: Path, definition: dict, name: str) -> Path:
    """Path of a file of the folder.

    Raises:
        ClassifierError: it is missing, or its size or SHA-256 is not the recorded one.
    """
    path = folder / name
    if not path.is_file():
        raise ClassifierError(f"{path} is missing; copy the whole classifier folder")
    if fingerprint(path) != definition["files"].get(name):
        raise ClassifierError(f"{path} is damaged or was exchanged: its SHA-256 differs; copy it again")
    return path


def versions(*names: str) -> dict[str, str]:
    """Versions of installed packages, "not installed" where one is not."""
    found = {one.name: one.version for one in metadata.distributions()}
    return {name: found.get(name, "not installed") for name in names}
