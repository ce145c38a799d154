"""Fingerprints: what is equal has the same one, on any machine."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch


def digest(*parts: Any) -> str:
    """A short SHA-256 (16 hex digits) of arrays, files (Path), state dicts or plain JSON values."""
    hashed = hashlib.sha256()
    for part in parts:
        if isinstance(part, Path):
            with open(part, "rb") as file:
                hashed.update(hashlib.file_digest(file, "sha256").digest())
        elif isinstance(part, np.ndarray):
            hashed.update(f"{part.dtype.str}{part.shape}".encode() + np.ascontiguousarray(part).tobytes())
        elif isinstance(part, Mapping) and any(isinstance(v, torch.Tensor) for v in part.values()):
            for name in sorted(part):
                tensor = part[name].detach().to("cpu").contiguous()
                hashed.update(f"{name}{tensor.dtype}{tuple(tensor.shape)}".encode())
                hashed.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
        else:
            hashed.update(json.dumps(part, sort_keys=True).encode())
    return hashed.hexdigest()[:16]
