"""What the tests of trainings share."""

from pathlib import Path

import pytest

from thyroid_lib import datasets, manifest
from thyroid_lib.data.crops import Crops, build

ROLES = {"pretrain": "open?patients=16", "finetune": "clinic?patients=24", "external": "external?patients=8"}


@pytest.fixture(scope="package")
def data(tmp_path_factory) -> Path:
    """Crops of a small run, as notebook 01 leaves them."""
    folder = tmp_path_factory.mktemp("run")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("THYROID_CACHE", str(folder / "cache"))
        for role, spec in ROLES.items():
            frames = datasets.read(f"phantom:{spec}")
            frames = frames if role == "external" else manifest.split(frames, folds=2)
            build(frames, folder / "data" / role, size=32)
    return folder / "data"


@pytest.fixture(scope="package")
def crops(data) -> Crops:
    """Those to pre-train on, of two classes; the tests take the first 32."""
    crops = Crops.open(data / "pretrain")
    assert len(crops) >= 32 and (crops.labels >= 0).all()
    return crops
