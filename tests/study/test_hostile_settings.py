"""Hostile settings: profiles, SPECs, run folders and classifier folders of any content end in words, not tracebacks."""

import contextlib
import copy
import functools
import hashlib
import json
import operator
import random
import shutil
import struct
import warnings

import psutil
import pytest
import small_classifier as small
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from thyroid_lib import datasets
from thyroid_lib.classifier import Classifier, definition
from thyroid_lib.common.files import DamagedFile
from thyroid_lib.deploy import command
from thyroid_lib.study import compare, profiles, runner

QUIET = dict(deadline=None, derandomize=True, database=None)
QUIET["suppress_health_check"] = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
plain = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9) | st.dates()
values = st.recursive(
    plain, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(plain, inner, max_size=3), max_leaves=8
)
NOTEBOOKS = st.sampled_from(["common", "01_preprocess", "04_finetune", "04", "99_none", ""])
PARAMETERS = st.sampled_from("epochs lr size finetune_data seed run_dir jobs folds_to_run cluster x".split())
BOOKS = st.dictionaries(PARAMETERS | plain, values, max_size=4)
PROFILES = st.dictionaries(NOTEBOOKS | plain, BOOKS | values, max_size=4)
DECLARED = functools.cache(profiles.declared)


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    """Where a person stands who starts a command; the notebooks are read once."""
    monkeypatch.setattr(profiles, "declared", DECLARED)
    monkeypatch.setenv("THYROID_CALLER", str(tmp_path))
    return tmp_path


def resolved_or_refused(profile: dict, settings: list[str]) -> None:
    """Parameters come of it, or every problem in words."""
    try:
        resolved = profiles.resolve(profile, settings, {})
    except profiles.ProfileError as error:
        assert all(str(error).split("\n"))
    else:
        assert all(isinstance(parameters, dict) for parameters in resolved.values())


@given(content=PROFILES.map(yaml.dump) | st.binary(max_size=80) | st.text(max_size=80))
@settings(max_examples=210, **QUIET)
def test_any_profile_is_resolved_or_refused_with_all_its_problems(place, content):
    (place / "p.yaml").write_bytes(content if isinstance(content, bytes) else content.encode())
    try:
        profile = profiles.load("p.yaml")
    except profiles.ProfileError as error:
        assert "p.yaml" in str(error)
    else:
        resolved_or_refused(profile, [])


KNOTS = ["a: &a [*a]", "&a [" * 400, "a: " + "[" * 1000, "? ? ? ?", "x: 2026-99-99", "a: 0o9", "---\n---\n"]
LAUGHS = [f"b{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 30)]  # multiplies itself
KNOTS.append("\n".join(["a: &a0 [lol, lol, lol, lol, lol, lol, lol, lol, lol]", *LAUGHS]))


@pytest.mark.parametrize("text", KNOTS, ids=range(len(KNOTS)))
def test_yaml_that_ties_itself_in_knots_is_refused_in_few_words(place, capsys, text):
    (place / "k.yaml").write_text(text)
    assert runner.main(["--profile", "k.yaml"]) == 2
    said = capsys.readouterr().err
    assert "Nothing was started" in said and "Traceback" not in said and len(said) < 2000


SETTINGS = "= x .=1 04.epochs= 04.epochs=[[[ 04.epochs=1e99 04.lr=nan 04_finetune.run_dir=/etc".split()
SETTINGS += [
    "common.epochs={a: 1}",
    "\0=1",
    " =",
    "04.epochs=" + "[" * 1000,
    "04.epochs=!!python/name:os.system",
]


@pytest.mark.parametrize("setting", SETTINGS, ids=range(len(SETTINGS)))
def test_any_setting_on_the_command_line_is_taken_or_refused(setting):
    resolved_or_refused({}, [setting])


SPECS = """: x:y manifest: dicom:~nobody/x phantom:clinic?patients=1e9 phantom:clinic?patients=-1
phantom:../../etc?patients=2 phantom:clinic?patients=2&seed=x phantom:clinic?jobs=x busi:/proc ddti:/dev/null
stanford:/dev/zero manifest:/dev/zero tn3k:http://127.0.0.1:9/ folder:/proc/self/fd?patient=x""".split()
SPECS += ["", "dicom:.?frames=-1", "manifest:\0", "\ud800:x", "manifest:\ud800", "folder:" + "x" * 5000]
SPECS += ["manifest:.?classes=" + "," * 999, "folder:.?title=" + "<b>" * 500]


@pytest.mark.parametrize("spec", SPECS, ids=range(len(SPECS)))
def test_any_spec_is_read_or_refused_in_words(spec, monkeypatch, tmp_path, count):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("THYROID_CACHE", str(tmp_path / "cache"))
    with pytest.raises(datasets.DatasetError) as error:
        datasets.read(spec)
    assert 20 < len(str(error.value)) < 10_000
    assert isinstance(profiles.spec_problem(spec), str)
    count(inputs=1)


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    return small.make(tmp_path_factory.mktemp("run") / "classifier", members=1)


@pytest.fixture
def folder(sound, tmp_path):
    """A sound classifier that a test may spoil."""
    Image.fromarray(small.sector_frame(1)).save(tmp_path / "frame.png")
    return shutil.copytree(sound, tmp_path / "classifier")


@pytest.fixture
def content(folder):
    """Its definition."""
    return json.loads((folder / "classifier.json").read_text(encoding="utf-8"))


def put(folder, content: dict) -> None:
    """Writes a definition whose id and hashes are in order where they can be, as an attacker would."""
    with contextlib.suppress(AttributeError, KeyError, TypeError, ValueError):
        for name, facts in content["files"].items():
            if (folder / name).is_file():
                facts |= definition.fingerprint(folder / name)
    with contextlib.suppress(KeyError, TypeError, ValueError):
        content["id"] = definition.identity(content)
    (folder / "classifier.json").write_text(json.dumps(content), encoding="utf-8")


def answer(folder, capsys) -> int:
    """Exit status of classifying one sound frame; 0 and 1 give an answer or its error, 2 says what is wrong."""
    frame = str(folder.parent / "frame.png")
    with warnings.catch_warnings(action="ignore"):
        status = command.main([frame, "--classifier", str(folder), "--backend", "torch", "--json"])
    captured = capsys.readouterr()
    assert "Traceback" not in captured.err and len(captured.err) < 5000
    assert captured.err.startswith("error: ") if status == 2 else json.loads(captured.out)
    return status


def paths_of(value, at=()) -> list[tuple]:
    """Where each value of nested dictionaries and lists is."""
    pairs = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [at] * bool(at) + [path for key, inner in pairs for path in paths_of(inner, (*at, key))]


EXTREMES = [None, True, 0, -1, 1, 2**31, 10**30, 0.5, 1e-300, 1e300, float("inf"), float("nan")]
EXTREMES += ["", "x", "../../etc/passwd", "\0", "<script>", [], [[]], {}, {"a": {}}, [0] * 3, "x" * 9999]


@pytest.mark.parametrize("examples", [60, pytest.param(4000, marks=pytest.mark.slow)])
def test_any_value_anywhere_in_a_classifiers_definition_is_survived(folder, content, capsys, count, examples):
    places, chance, statuses = paths_of(content), random.Random(7), set()
    for _ in range(examples):
        spoilt = copy.deepcopy(content)
        for _ in range(chance.choice((1, 1, 2))):
            *way, last = chance.choice(places)
            with contextlib.suppress(
                KeyError, IndexError, TypeError
            ):  # the first change took this place away
                target = functools.reduce(operator.getitem, way, spoilt)
                if chance.random() < 0.2:
                    del target[last]
                else:
                    target[last] = chance.choice(EXTREMES)
        put(folder, spoilt)
        statuses.add(answer(folder, capsys))
    assert statuses == {0, 2} or statuses == {0, 1, 2}
    count(inputs=examples)


def weights(header, body: bytes) -> bytes:
    """A safetensors file."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + body


def changed(header: dict, first: str = "", **entries) -> dict:
    """A header with other entries for every array, or for the first one."""
    names = [name for name in header if name != "__metadata__"][: 1 if first else None]
    return header | {name: header[name] | entries for name in names}


CHANGES = {
    "overlapping": lambda header, body: weights(changed(header, data_offsets=[0, 8]), body),
    "huge": lambda header, body: weights(changed(header, "first", shape=[2**40, 2**20]), body),
    "far": lambda header, body: weights(changed(header, "first", data_offsets=[0, 2**60]), body),
    "strange": lambda header, body: weights(changed(header, "first", dtype="PICKLE"), body),
    "empty": lambda header, body: weights({}, body),
    "half": lambda header, body: weights(b"{", body),
    "list": lambda header, body: weights(b"[]", body),
    "no text": lambda header, body: weights(b"\xff" * 64, body),
    "cut": lambda header, body: weights(header, body)[:-100],
    "long": lambda header, body: struct.pack("<Q", 2**62) + bytes(100),
    "zeros": lambda header, body: weights(header, bytes(len(body))),
}


@pytest.mark.parametrize("name", ["model.safetensors", "novelty.safetensors"])
@pytest.mark.parametrize("change", CHANGES)
def test_a_classifiers_arrays_of_any_content_are_refused(folder, content, capsys, count, name, change):
    data = (folder / name).read_bytes()
    end = 8 + struct.unpack("<Q", data[:8])[0]
    (folder / name).write_bytes(CHANGES[change](json.loads(data[8:end]), data[end:]))
    put(folder, content)
    assert answer(folder, capsys) in ((0, 1, 2) if change == "zeros" else (2,))
    count(inputs=1)


OUTSIDE = ["../outside.safetensors", "/etc/passwd", "model.safetensors/../../outside.safetensors"]


@pytest.mark.parametrize("name", OUTSIDE)
def test_a_classifier_names_no_file_outside_its_folder(folder, content, capsys, name):
    content["files"][name] = {"sha256": hashlib.sha256(b"").hexdigest(), "bytes": 0}
    put(folder, content)
    assert answer(folder, capsys) == 2


def test_a_changed_classifier_is_refused(folder, sees):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    with pytest.raises(definition.ClassifierError) as error:
        Classifier.load(folder, backend="torch")
    assert sees in str(error.value)


METRICS = ["", "{", "[]", "null", "\0", json.dumps("x" * 10**6)]
METRICS += ['{"a": NaN}', '{"04": "x"}', '{"a": {"value": "x"}}']


@pytest.mark.parametrize("text", METRICS, ids=range(len(METRICS)))
def test_a_run_with_any_metrics_can_be_compared_or_is_refused(tmp_path, capsys, text):
    for run in ("a", "b"):
        (tmp_path / run).mkdir()
        (tmp_path / run / "metrics.json").write_text(text)
        (tmp_path / run / "run.json").write_text(text)
    try:
        status = compare.main([str(tmp_path / "a"), str(tmp_path / "b")])
    except (SystemExit, DamagedFile) as stopped:
        status = getattr(stopped, "code", 2)
    assert status in (0, 1, 2)
    assert "Traceback" not in "".join(capsys.readouterr())


def test_many_files_can_be_open_at_once_and_none_is_left(sound, capsys, tmp_path):
    before = psutil.Process().num_fds()
    for number in range(40):
        (tmp_path / f"{number}.png").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(number))
    for _ in range(3):
        command.main([str(tmp_path), "--classifier", str(sound), "--backend", "torch"])
    capsys.readouterr()
    assert psutil.Process().num_fds() <= before + 3
