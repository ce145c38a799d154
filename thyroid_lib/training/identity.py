"""What a training is: its settings, data, initial weights and code, so that no checkpoint is taken for another's."""

import os
import shutil
from pathlib import Path

from thyroid_lib.common import fingerprint
from thyroid_lib.common.files import LIBRARY
from thyroid_lib.training import checkpoint

CODE = (
    "network.py",
    "losses.py",
    "layers/inputs.py",
    "layers/depthwise.py",
    "layers/pointwise.py",
    "evaluation/calibration.py",
    "training/augmentation.py",
    "training/auxiliary.py",
    "training/settings.py",
    "training/loop.py",
)


class InitialWeightsMissing(FileNotFoundError):
    """The file with the weights to start from is not there."""


def identity_of(settings, crops, train, validation, labels, initial) -> dict:
    """What a checkpoint must agree in to be continued."""
    code = [LIBRARY / name for name in CODE]
    return {
        "settings": settings.identity(),
        "data": {
            "crops": str(crops.hash),
            "training rows": fingerprint.digest(train),
            "validation rows": fingerprint.digest(validation),
            "labels": fingerprint.digest(labels),
        },
        "initial weights": digest_of(initial),
        "code": fingerprint.digest(*code),
    }


def put_aside(folder: Path, identity: dict) -> str:
    """Renames a folder that holds another training; says in what it differs, "" where there is none."""
    state = checkpoint.read_state(folder)
    different = checkpoint.differences(state["identity"], identity) if state else []
    if different and int(os.environ.get("RANK", 0)) == 0:
        before = folder.with_name(folder.name + ".before")
        shutil.rmtree(before, ignore_errors=True)
        folder.rename(before)
    return "; ".join(different)


def digest_of(initial: str | Path | dict | None) -> str:
    """A short hash of initial weights, by their values; "none" without any."""
    if initial is None:
        return "none"
    if isinstance(initial, dict):
        return fingerprint.digest(initial)
    if not Path(initial).is_file():
        raise InitialWeightsMissing(
            f"Expected the weights to start from in {initial}; there is no such file."
        )
    return fingerprint.digest(checkpoint.load_weights(Path(initial))[0])
