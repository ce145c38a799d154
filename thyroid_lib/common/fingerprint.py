"""Fingerprints: what is equal has the same one, on any machine."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np


def digest(*parts: Any) -> str:
    """A short SHA-256 (16 hex digits) of arrays, files (Path), state dicts or plain JSON values."""
    hashed = hashlib.sha256()
    for part in parts:
        if isinstance(part, Path):
            hashed.update(bytes.fromhex(sha256(part)))
        elif isinstance(part, np.ndarray):
            hashed.update(f"{part.dtype.str}{part.shape}".encode() + np.ascontiguousarray(part).tobytes())
        elif isinstance(part, Mapping) and any(hasattr(value, "detach") for value in part.values()):
            import torch  # here: the runner's prints need none

            for name in sorted(part):
                tensor = part[name].detach().to("cpu").contiguous()
                hashed.update(f"{name}{tensor.dtype}{tuple(tensor.shape)}".encode())
                hashed.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
        else:
            hashed.update(json.dumps(part, sort_keys=True).encode())
    return hashed.hexdigest()[:16]


def sha256(path: Path) -> str:
    """SHA-256 of a file as hexadecimal, as ``sha256sum`` prints it."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
