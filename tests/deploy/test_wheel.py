"""The wheel: what `pip install .` puts elsewhere has all that `thyroid classify` needs."""

import json
import os
import shutil
import subprocess
import sys
import zipfile

import pytest
import small_classifier as small
from PIL import Image

from thyroid_lib.common.files import PROJECT

BUILD = "from setuptools.build_meta import build_wheel; print(build_wheel('dist'))"


@pytest.mark.slow
def test_an_installed_wheel_classifies_a_folder_from_anywhere(classifier_folder, tmp_path):
    source, site, frames = (tmp_path / name for name in ("source", "site", "frames"))
    shutil.copytree(
        PROJECT / "thyroid_lib", source / "thyroid_lib", ignore=shutil.ignore_patterns("__pycache__")
    )
    for name in ("pyproject.toml", "README.md"):
        shutil.copy(PROJECT / name, source)
    built = subprocess.run([sys.executable, "-c", BUILD], cwd=source, capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    (wheel,) = (source / "dist").glob("*.whl")
    zipfile.ZipFile(wheel).extractall(site)
    (commands,) = site.glob("*.dist-info/entry_points.txt")
    assert "thyroid = thyroid_lib.__main__:main" in commands.read_text()

    frames.mkdir()
    for number in range(3):
        Image.fromarray(small.sector_frame(number)).save(frames / f"{number}.png")
    code = "import sys, thyroid_lib.__main__ as m; print(m.__file__, file=sys.stderr); sys.exit(m.main(sys.argv[1:]))"
    command = [sys.executable, "-c", code, *"classify frames --out pages --json --classifier".split()]
    environment = os.environ | {"PYTHONPATH": str(site)}
    done = subprocess.run(
        [*command, classifier_folder], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0 and done.stderr.startswith(str(site)), done.stderr
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(answers) == 3 and all("lesion_type" in answer for answer in answers)
    assert len(list((tmp_path / "pages").glob("*.html"))) == 4  # and their index
