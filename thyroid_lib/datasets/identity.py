"""Pseudonyms: a person's identity becomes a keyed hash, and the key stays on this machine."""

import contextlib
import hashlib
import hmac
import os
import secrets
import tempfile
from functools import lru_cache
from pathlib import Path

from thyroid_lib.common.files import cache_folder
from thyroid_lib.datasets.contract import DatasetError

KEY_FILE = "hash_key"


def pseudonym(*words: str) -> str:
    """HMAC-SHA-256 of the words under this machine's key, 16 hexadecimal digits.

    The key is $THYROID_HASH_KEY (at least 16 characters), else the file `hash_key` in the cache folder, which is
    made at the first need and can be read by its owner only. The same person gets the same pseudonym wherever the
    key is the same, and nobody without the key can try out names.

    Raises:
        DatasetError: the key is too short, or its file damaged.
    """
    message = "\0".join(map(str, words)).encode("utf-8", "surrogatepass")
    given = os.environ.get("THYROID_HASH_KEY", "").encode()
    key = given or _stored(cache_folder() / KEY_FILE)
    if len(key) < 16:
        source = "THYROID_HASH_KEY" if given else f"The key file {KEY_FILE} in the cache folder is damaged"
        came = f"at least 16 characters are expected; {len(key)} came"
        make = "python -c 'import secrets; print(secrets.token_hex(32))'"
        raise DatasetError(f"{source}: {came}. Make a key with {make} and keep it to yourself.")
    return hmac.new(key, message, hashlib.sha256).hexdigest()[:16]


@lru_cache(maxsize=4)
def _stored(path: Path) -> bytes:
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.exists():
        with tempfile.NamedTemporaryFile(dir=path.parent) as fresh, contextlib.suppress(FileExistsError):
            fresh.write(secrets.token_hex(32).encode())
            fresh.flush()
            os.link(fresh.name, path)  # whole or not at all, and the first of two processes wins
    return path.read_bytes()
