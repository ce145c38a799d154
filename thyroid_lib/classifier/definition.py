"""classifier.json: what a classifier is, checked before anything else in its folder is believed.

The schema is ``templates/classify/classifier.schema.json``; `check` adds what a schema cannot say.
"""

import hashlib
import json
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
        definition = json.loads(path.read_text("utf-8"))
        json.dumps(definition, allow_nan=False)  # Python reads NaN and infinities, which are no JSON
    except (OSError, ValueError, RecursionError) as error:
        why = getattr(error, "strerror", None) or error
        problem = f"{folder} is no classifier folder: {NAME} is missing or damaged ({why})"
        raise ClassifierError(
            f"{problem}. Notebook 04 writes reports/<run>/classifier; copy all of it"
        ) from error
    check(definition, str(path))
    return definition


def check(definition, where: str) -> None:
    """Raises ClassifierError unless the definition is of this version, complete and consistent."""
    try:
        fastjsonschema.compile(json.loads(SCHEMA.read_text("utf-8")))(definition)
    except fastjsonschema.JsonSchemaValueException as error:
        said = error.message.removeprefix("data.").replace("be same as const definition:", "be")
        problem = f"{named(said, MORE)}, {quoted(error.value)} came"
    else:
        keys, members = {entry["key"] for entry in definition["classes"]}, definition["members"]
        counts = {len(keys), len(definition["classes"]), definition["architecture"]["num_classes"]}
        without = set(definition["operating_points"]) - keys
        rules = {
            "classes must differ in their keys and be as many as architecture.num_classes": len(counts) == 1,
            "temperature needs one value per member": len(definition["temperature"]) == members,
            "operating_points name a class that is not among the classes": not without,
            "the id is not that of the content (it was edited)": definition["id"] == identity(definition),
        }
        problem = next((rule for rule, kept in rules.items() if not kept), "")
    if problem:
        advice = f"copy the folder or save it again, or use the release that wrote it (this is {__version__})"
        raise ClassifierError(f"{where}: {problem}; {advice}")


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


def verify(path: Path, recorded: dict) -> Path:
    """A file's path, after comparing its `fingerprint` with the recorded one.

    Raises:
        ClassifierError: it is missing, or its size or SHA-256 is not the recorded one.
    """
    if not path.is_file():
        raise ClassifierError(f"{path} is missing; copy the whole classifier folder")
    if fingerprint(path) != recorded:
        raise ClassifierError(f"{path} is damaged or was exchanged: its SHA-256 differs; copy it again")
    return path


def versions(*names: str) -> dict[str, str]:
    """Versions of installed packages, "not installed" where one is not."""
    found = {one.name: one.version for one in metadata.distributions()}
    return {name: found.get(name, "not installed") for name in names}
