"""What the tests of trainings share."""

import pytest

from thyroid_lib import datasets, manifest
from thyroid_lib.data.crops import Crops, build


@pytest.fixture(scope="package")
def crops(tmp_path_factory) -> Crops:
    """A small crops folder with two classes, as notebook 01 leaves it."""
    folder = tmp_path_factory.mktemp("crops")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("THYROID_CACHE", str(folder / "cache"))
        frames = manifest.split(datasets.read("phantom:open?patients=16"), folds=2)
        made = build(frames.head(32), folder / "data", size=32)
    assert len(made) == 32 and (made.labels >= 0).all()
    return made
