"""Frames that show the same: found by what they look like, not by their names.

Two frames are *identical* when the SHA-256 of their decoded pixels agrees (whatever the file format), and
*near duplicates* when the 1024-bit perceptual hashes (pHash: the 32 x 32 lowest DCT coefficients against their
median, Zauner 2010) of their sectors differ in at most `NEAR` bits; unrelated frames differ in about 490.

Only the sector is hashed, for a scanner prints the same furniture on every frame, and its local contrast is
made even first, for necks are alike: bright outlines of the trachea and the carotid would otherwise decide, and
speckle, which belongs to one frame alone, would not. docs/data.md gives the evidence for `NEAR`.
"""

import contextlib
import hashlib
from collections.abc import Sequence

import cv2
import imagehash
import numpy as np
import pandas as pd
from PIL import Image
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from thyroid_lib import regions

BITS = 1024
NEAR = 320  # most bits of `BITS` in which the hashes of near duplicates may differ
SIDE, SCALE = 128, 4.0  # px: side of the hashed image, and sigma of what counts as local in it
BLOCK = 2_000_000  # pairs compared at a time: 16 MB


def fingerprint(gray: np.ndarray) -> tuple[str, str]:
    """SHA-256 of a frame's pixels, uint8 (H, W), and pHash of its sector, both hexadecimal."""
    digest = hashlib.sha256(f"{gray.shape[0]}x{gray.shape[1]}:".encode())
    digest.update(np.ascontiguousarray(gray))
    with contextlib.suppress(regions.NoRegion):  # nothing stands out: the whole frame is hashed
        gray = regions.crop(gray, regions.largest_region(gray))
    bits = imagehash.phash(Image.fromarray(_even(gray)), hash_size=32).hash
    return digest.hexdigest(), np.packbits(bits).tobytes().hex()


def _even(gray: np.ndarray) -> np.ndarray:
    """A sector at 128 x 128 px with its local mean taken away and its local contrast made even, uint8."""
    small = cv2.resize(gray, (SIDE, SIDE), interpolation=cv2.INTER_AREA).astype(np.float32)
    detail = small - cv2.GaussianBlur(small, (0, 0), SCALE)
    spread = np.sqrt(cv2.GaussianBlur(detail * detail, (0, 0), SCALE))
    return np.clip(128 + 63 * detail / (spread + 2), 0, 255).astype(np.uint8)


def pairs(sha256: Sequence[str], phash: Sequence[str]) -> pd.DataFrame:
    """All pairs of frames that show the same.

    Args:
        sha256, phash: hashes of N frames, as `fingerprint` gives them.

    Returns:
        Columns `a`, `b` (positions, a < b), `bits` (that differ) and `identical` (bool), sorted.
    """
    words = np.array([np.frombuffer(bytes.fromhex(h), np.uint64) for h in phash]).reshape(-1, BITS // 64)
    digests = pd.factorize(pd.Series(list(sha256), dtype=object))[0]
    found = [np.empty((0, 4), np.int64)]
    step = max(1, BLOCK // max(1, len(words)))
    for start in range(0, len(words), step):
        block = np.s_[start : start + step, None]
        bits = sum(np.bitwise_count(word[block] ^ word[None, start:]).astype(np.uint16) for word in words.T)
        same = digests[block] == digests[None, start:]
        a, b = np.nonzero(np.triu((bits <= NEAR) | same, 1))
        found.append(np.column_stack([a + start, b + start, bits[a, b], same[a, b]]))
    table = pd.DataFrame(np.concatenate(found), columns=["a", "b", "bits", "identical"])
    return table.astype({"identical": bool})


def join(groups: Sequence[str], a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Groups joined by pairs of their members.

    Args:
        groups: N group names.
        a, b: positions of pairs that must stay together.

    Returns:
        N group names; a joined group takes the name of its first member's group.
    """
    codes, names = pd.factorize(pd.Series(list(groups), dtype=object))
    links = coo_array((np.ones(len(a)), (codes[a], codes[b])), shape=(len(names),) * 2)
    component = connected_components(links, directed=False)[1]
    first = pd.Series(np.arange(len(names))).groupby(component).min()
    return np.asarray(names)[first.to_numpy()[component]][codes]
