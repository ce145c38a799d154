"""What the real sets look like, as hashes only, and a search for them in any picture or text.

``known_images.npz`` holds, for every frame of DDTI, BUSI and TG3K, two 256-bit perceptual hashes (of its sector and of
the frame without its black margins; pHash, Zauner 2010, after the local contrast is made even, as in
`datasets.duplicates`) and, for every file, masks too, the first 8 bytes of its SHA-256. Neither can be turned back
into a picture. Written once, where the sets lie:

    python tests/known_images.py DATA_FOLDER

Measured on 150 frames of the sets: a frame or its crop at another size, recompressed or with an outline drawn on it
differs in at most 50 bits from its own hashes; 557 phantoms, whole and cropped, in at least 76 from all of them. Under
a heat map about one frame in twenty differs in more than ``NEAR``: figures of patients are kept out by what they
declare (``patient`` of ``Run.show``), this search is the second lock.
"""

import base64
import hashlib
import io
import re
import sys
from dataclasses import dataclass
from pathlib import Path

import cv2
import imagehash
import numpy as np
from PIL import Image

from thyroid_lib import regions
from thyroid_lib.datasets import duplicates

FILE = Path(__file__).parent / "data" / "known_images.npz"
NEAR = 64  # most bits of 256 in which the hashes of one picture may differ
SIDE = 40  # px: a tile of a figure smaller than this shows nobody
_BASE64 = re.compile(rb"[A-Za-z0-9+/]{300,}={0,2}")
_MAGIC = (b"\x89PNG", b"\xff\xd8\xff", b"GIF8", b"RIFF", b"BM", b"II*\0", b"MM\0*")
_CONTAINERS = (b"PK\x03\x04", b"\x1f\x8b", b"\x93NUMPY", b"\x89HDF")


@dataclass
class Known:
    """Hashes of known pictures: ``phash`` uint8 (n, 32), ``sha256`` of 16 hexadecimal digits."""

    phash: np.ndarray
    sha256: set[str]

    @classmethod
    def load(cls) -> "Known":
        """The hashes of the real sets."""
        with np.load(FILE) as stored:
            return cls(stored["phash"].reshape(-1, 32), {row.tobytes().hex() for row in stored["sha256"]})

    def with_pictures(self, *pictures: np.ndarray) -> "Known":
        """These and the given ones, grey uint8 (H, W)."""
        return Known(np.concatenate([self.phash, *(hashes(picture) for picture in pictures)]), self.sha256)

    def find(self, data: bytes) -> list[str]:
        """What is wrong with a file or an embedded picture: known bytes, a known picture, or no telling."""
        if hashlib.sha256(data).hexdigest()[:16] in self.sha256:
            return ["the very bytes of a known file"]
        found = []
        for picture in pictures(data):
            for channel in (picture[..., 1], cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY)):
                for tile in tiles(channel):
                    bits = min(np.bitwise_count(self.phash ^ own).sum(axis=1).min() for own in hashes(tile))
                    if bits <= NEAR:
                        size = f"{tile.shape[1]} x {tile.shape[0]} px"
                        found.append(f"a tile of {size} is a known picture, but for {bits} of 256 bits")
        return found


def hashes(gray: np.ndarray) -> np.ndarray:
    """Hashes of the sector and of the picture without black margins: uint8 (2, 32)."""
    try:
        sector = regions.crop(gray, regions.largest_region(gray))
    except regions.NoRegion:
        sector = gray
    return np.stack([_phash(sector), _phash(_trimmed(gray))])


def _phash(gray: np.ndarray) -> np.ndarray:
    return np.packbits(imagehash.phash(Image.fromarray(duplicates._even(gray)), hash_size=16).hash)


def _trimmed(gray: np.ndarray) -> np.ndarray:
    rows, columns = (np.flatnonzero((gray > 16).mean(axis) > 0.02) for axis in (1, 0))
    if not len(rows) or not len(columns):
        return gray
    return gray[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]


def tiles(gray: np.ndarray) -> list[np.ndarray]:
    """The whole picture, and every rectangle in it that white paper surrounds and that shows more than a surface."""
    ink = cv2.morphologyEx((gray < 248).astype(np.uint8), cv2.MORPH_OPEN, np.ones((9, 9), np.uint8))
    _, _, boxes, _ = cv2.connectedComponentsWithStats(ink)
    found = [gray[y : y + h, x : x + w] for x, y, w, h, _ in boxes[1:] if min(w, h) >= SIDE]
    return [tile for tile in [gray, *found] if min(tile.shape) >= SIDE and tile.std() > 4]


def pictures(data: bytes) -> list[np.ndarray]:
    """Every frame of an image file, uint8 (H, W, 3); transparent parts are white."""
    if not data.startswith(_MAGIC):
        return []
    image, found = Image.open(io.BytesIO(data)), []
    for number in range(min(getattr(image, "n_frames", 1), 500)):
        image.seek(number)
        rgba = image.convert("RGBA")
        paper = Image.new("RGBA", rgba.size, "white")
        found.append(np.asarray(Image.alpha_composite(paper, rgba).convert("RGB")))
    return found


def embedded(text: bytes) -> list[bytes]:
    """Every base64 payload of a text (HTML, SVG, notebook, style sheet) that is a picture or a container of data."""
    text = text.replace(b"\\n", b"").replace(b"\r", b"").replace(b"\n", b"\n ")
    found = []
    for run in _BASE64.findall(text):
        payload = base64.b64decode(run[: len(run) // 4 * 4])
        if payload.startswith(_MAGIC + _CONTAINERS):
            found.append(payload)
    return found


def search(data: bytes, known: Known) -> list[str]:
    """What a tracked file must not hold: known pictures, or data that nobody can look into.

    Args:
        data: the file.
        known: what to look for.

    Returns:
        One line per finding; none for a clean file.
    """
    found = known.find(data)
    try:
        text = "\0" not in data.decode("utf-8")
    except UnicodeDecodeError:
        text = False
    if text:
        for payload in embedded(data):
            closed = payload.startswith(_CONTAINERS)
            found += [f"embeds data of kind {payload[:4]!r}"] if closed else known.find(payload)
    elif not data.startswith(_MAGIC):
        found.append(f"is neither text nor a picture that can be looked into (starts with {data[:4]!r})")
    return found


def main() -> None:
    """Hashes the sets in a folder and writes ``known_images.npz``."""
    root = Path(sys.argv[1])
    found = [path for folder in ("ddti", "busi", "tg3k") for path in sorted((root / folder).rglob("*"))]
    files = [path for path in found if path.suffix.lower() in (".jpg", ".jpeg", ".png", ".bmp")]
    frames = [path for path in files if "mask" not in path.as_posix().lower()]
    phash = [hashes(np.asarray(Image.open(path).convert("L"))) for path in frames]
    digests = {hashlib.sha256(path.read_bytes()).digest()[:8] for path in files}
    sha256 = np.array([np.frombuffer(digest, np.uint8) for digest in sorted(digests)])
    FILE.parent.mkdir(exist_ok=True)
    np.savez_compressed(FILE, phash=np.stack(phash), sha256=sha256)
    print(f"{FILE}: {len(frames)} frames, {len(sha256)} different files, {FILE.stat().st_size >> 10} KiB")


if __name__ == "__main__":
    main()
