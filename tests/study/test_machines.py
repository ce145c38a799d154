"""Other machines: other Pythons and names of folders, no home, no git, no network, other processors."""

import os
import re
import shutil
import stat
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

import pytest
import small_classifier as small
import torch
from packaging.markers import default_environment
from packaging.requirements import Requirement
from PIL import Image
from small_study import child, make, whole

from thyroid_lib.common.files import PROJECT, cache_folder, read_json
from thyroid_lib.study import runner
from thyroid_lib.training import hardware

LOCK = (PROJECT / "requirements.lock").read_text(encoding="utf-8")
PINS = [Requirement(line.rstrip("\\ ")) for line in LOCK.splitlines() if re.match(r"[a-z0-9]", line)]
PYTHONS = ["3.11", "3.12", "3.13"]
SYSTEMS = ["linux Linux x86_64 posix", "darwin Darwin arm64 posix", "win32 Windows AMD64 nt"]
on_linux = pytest.mark.skipif(sys.platform != "linux", reason="/proc is a home where nothing can be written")
ODD = "Über 研究 (copy) 'a' & b"


@pytest.mark.parametrize("python", PYTHONS)
@pytest.mark.parametrize("system", SYSTEMS)
def test_the_lock_pins_each_package_once_for_every_python_and_system(python, system):
    environment = default_environment() | {"python_version": python, "python_full_version": f"{python}.4"}
    marks = ("sys_platform", "platform_system", "platform_machine", "os_name")
    environment |= zip(marks, system.split())
    here = [pin for pin in PINS if pin.marker is None or pin.marker.evaluate(environment)]
    pinned = {pin.name: next(iter(pin.specifier)).version for pin in here}
    assert len(here) == len(pinned) > 100
    project = tomllib.loads((PROJECT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    asked = [Requirement(text) for text in project["dependencies"]]
    asked += [Requirement(text) for extra in project["optional-dependencies"].values() for text in extra]
    for need in asked:
        if need.marker is None or need.marker.evaluate(environment):
            assert need.specifier.contains(pinned[need.name.lower()], prereleases=True), need


@pytest.mark.slow
@pytest.mark.parametrize("python", PYTHONS)
def test_the_lock_installs_for_every_python(python, tmp_path):
    uv = shutil.which("uv") or str(PROJECT / ".uv" / "bin" / "uv")
    if not Path(uv).exists():
        pytest.skip("uv is not here")
    command = [uv, *"pip install --dry-run --require-hashes --only-binary :all: --no-binary grad-cam".split()]
    command += ["--python-version", python, "--target", tmp_path / "site"]
    command += ["-r", PROJECT / "requirements.lock"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=280, cwd=tmp_path)
    unreachable = r"dns error|error sending request|failed to fetch|timed out"  # networkx is a package
    if done.returncode and re.search(unreachable, done.stderr, re.IGNORECASE):
        pytest.skip("the package index cannot be reached from here")
    assert done.returncode == 0, done.stderr[-1500:]
    assert re.search(r"Would install \d{3} packages", done.stderr)


HOOK = """
import os, sys
def refuse(event, arguments):
    if event in ("socket.connect", "socket.getaddrinfo", "socket.sendto"):
        host = arguments[1][0] if event != "socket.getaddrinfo" and isinstance(arguments[1], tuple) else arguments[0]
        if isinstance(host, str) and not host.startswith(("127.", "::1", "localhost", "/")):
            with open(os.environ["CALLS"], "a") as file:
                file.write(f"{event} {host}\\n")
            raise OSError(f"no network in this test: {host}")
sys.addaudithook(refuse)
"""


@on_linux
def test_blanks_other_letters_no_home_no_git_and_no_network_change_nothing(tmp_path, monkeypatch, count):
    place = make(tmp_path / ODD, monkeypatch)
    (place / "hook").mkdir()
    (place / "hook" / "sitecustomize.py").write_text(HOOK)
    own = ("THYROID", "JUPYTER", "XDG")
    environment = {name: os.environ[name] for name in os.environ if not name.startswith(own)} | {
        "HOME": "/proc/nobody", "PATH": str(place / "empty"), "TMPDIR": str(place), "CALLS": str(place / "calls"),
        "PYTHONPATH": f"{place / 'hook'}{os.pathsep}{PROJECT}", "THYROID_REPORTS": str(place / "reports"),
    }  # fmt: skip
    process = child(place, env=environment)
    _, said = process.communicate()
    assert process.returncode == 0, said[-2000:]
    assert whole(place)
    facts = read_json(place / "reports" / "quick" / "run.json")["environment"]
    assert facts["git_commit"] is None and facts["git_clean"] is None and facts["library_sha256"]

    folder, frame = small.make(place / "Classifier Ω", members=1), place / "bild ü 图.png"
    Image.fromarray(small.sector_frame(1)).save(frame)
    command = [sys.executable, *"-m thyroid_lib classify --classifier".split()]
    command += [folder, frame, "--out", place / "out put"]
    done = subprocess.run(command, cwd=PROJECT, env=environment, capture_output=True, encoding="utf-8")
    assert done.returncode == 0, done.stderr
    assert len(list((place / "out put").glob("*.html"))) == 1
    assert not (place / "calls").exists(), (place / "calls").read_text()
    count(faults=4)


@on_linux
def test_the_cache_of_a_user_without_a_home_is_private(monkeypatch, tmp_path):
    monkeypatch.delenv("THYROID_CACHE", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("HOME", "/proc/nobody")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    folder = cache_folder()
    assert folder.parent == tmp_path and stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert cache_folder() == folder
    folder.chmod(0o777)  # somebody else could have put a key there
    assert cache_folder() != folder
    folder.rmdir()
    folder.symlink_to(tmp_path)
    other = cache_folder()
    assert other != folder and stat.S_IMODE(other.stat().st_mode) == 0o700


def test_the_cache_lies_where_a_user_keeps_caches(monkeypatch, tmp_path):
    monkeypatch.delenv("THYROID_CACHE", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "x"))
    assert cache_folder().is_relative_to(tmp_path) and cache_folder().name == "thyroid_lib"
    monkeypatch.setenv("THYROID_CACHE", "~/mine")
    assert cache_folder() == tmp_path / "mine"


@pytest.mark.parametrize("flags, units", [("fpu sse2", ""), ("avx2", "avx2"), ("avx2 amx_bf16", "amx_bf16")])
def test_what_a_processor_has_is_read_from_its_flags(monkeypatch, flags, units):
    text = f"model name\t: Old CPU\nflags\t\t: {flags}\n"
    monkeypatch.setattr(hardware.Path, "read_text", lambda self, **options: text)
    said = hardware.processor()
    assert said.startswith("Old CPU") and (units in said if units else "(" not in said)


@pytest.mark.parametrize("bfloat16, expected", [(True, "bf16-mixed"), (False, "32-true")])
def test_a_gpu_is_used_with_the_precision_it_has_units_for(monkeypatch, bfloat16, expected):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **options: bfloat16)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda *device: "A GPU")
    chosen, why = hardware.choose_precision("auto", torch.device("cuda", 0))
    assert chosen == expected and why.startswith("A GPU has")


def test_a_stage_without_its_inputs_is_told(project, capsys, sees):
    assert runner.main(["--only", "02"]) == 2
    assert sees in capsys.readouterr().err
