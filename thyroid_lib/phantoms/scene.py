"""The canvas of a simulated scan plane: maps of what the beam meets, and the shapes drawn on them.

Coordinates are px of the ultrasound sector, x across the probe and y down from the skin; `Scene.scale` is px
per mm. Random shapes take a NumPy generator, so that the same generator draws the same scene.
"""

from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import yaml

LOOKS = yaml.safe_load(Path(__file__).with_name("looks.yaml").read_text(encoding="utf-8"))
CODE = {name: code for code, name in enumerate(LOOKS["tissues"])}
ECHO, EXCESS = np.array([*LOOKS["tissues"].values()], np.float32).T


@dataclass
class Scene:
    """Maps of one scan plane, each (H, W) of the sector.

    Attributes:
        scale: px per mm.
        codes: uint8, the tissue (`CODE`).
        specular: float32, amplitude of mirror-like echoes; 1 is the mean scattering of parenchyma.
        ghost: float32, the same for reverberations, which shadow does not weaken.
        echo: float32, scattering in dB against parenchyma; set once the tissues are drawn.
        excess: float32, attenuation in dB/mm, there and back, beyond what the gain compensates.
        nodule: bool, the nodule.
    """

    scale: float
    codes: np.ndarray
    specular: np.ndarray
    ghost: np.ndarray
    echo: np.ndarray | None = None
    excess: np.ndarray | None = None
    nodule: np.ndarray | None = None

    @classmethod
    def empty(cls, shape: tuple[int, int], scale: float) -> "Scene":
        """Nothing but deep tissue."""
        return cls(scale, np.zeros(shape, np.uint8), np.zeros(shape, np.float32), np.zeros(shape, np.float32))

    @property
    def shape(self) -> tuple[int, int]:
        return self.codes.shape

    def mirror(self) -> None:
        """Turns left and right, for the other side of the neck."""
        for name in ("codes", "specular", "ghost", "echo", "excess", "nodule"):
            setattr(self, name, np.ascontiguousarray(getattr(self, name)[:, ::-1]))

    def fill(self, points: np.ndarray, tissue: str) -> None:
        """Fills a polygon, (n, 2) in px, with a tissue."""
        fill(self.codes, points, CODE[tissue])

    def line(self, rows, strength: float) -> None:
        """A border across the sector that mirrors sound: `rows` in px, a number or one per column."""
        columns = np.arange(self.shape[1])
        points = np.stack(np.broadcast_arrays(columns, rows), 1)[::4]
        cv2.polylines(self.specular, [fixed(points)], False, strength, self.thin, cv2.LINE_8, 4)

    def outline(self, points: np.ndarray, strength: float, canvas=None, closed: bool = True) -> None:
        """A border, (n, 2) in px, that mirrors sound where it lies across the beam; on `specular` by default."""
        step = np.roll(points, -1, 0) - points
        facing = np.abs(step[:, 0]) / np.maximum(np.hypot(step[:, 0], step[:, 1]), 1e-6)
        ends, thin = fixed(points).tolist(), self.thin
        canvas = self.specular if canvas is None else canvas
        segments = list(zip(ends, ends[1:] + ends[:1], (facing**3).tolist()))
        for start, end, along in segments if closed else segments[:-1]:
            if along > 0.1:
                cv2.line(canvas, start, end, strength * along, thin, cv2.LINE_8, 4)

    @property
    def thin(self) -> int:
        """Width of a border in px."""
        return max(1, round(0.15 * self.scale))


def noise(rng: np.random.Generator, shape: tuple[int, int], down: float, across: float) -> np.ndarray:
    """A smooth random field, float32 of this shape, mean 0 and deviation about 1; blobs of this size in px."""
    rows, columns = max(3, int(shape[0] / down) + 2), max(3, int(shape[1] / across) + 2)
    coarse = rng.standard_normal((rows, columns), np.float32)
    return cv2.resize(coarse, (shape[1], shape[0]), interpolation=cv2.INTER_CUBIC) * np.float32(1.3)


def wiggle(rng: np.random.Generator, width: int, size: float) -> np.ndarray:
    """A gently waving line: float64 (width,), about this amplitude."""
    x = np.linspace(0, 2 * np.pi, width)
    waves = [
        rng.uniform(0.2, 1) / order**0.5 * np.sin(order * rng.uniform(0.6, 1.3) * x + rng.uniform(0, 6.3))
        for order in (1, 2, 4)
    ]
    return size * sum(waves) / 1.3


def oval(x: float, y: float, across: float, down: float, rng: np.random.Generator, uneven=0.0) -> np.ndarray:
    """An ellipse with a little unevenness, (96, 2), in the unit of its arguments."""
    angle = np.linspace(0, 2 * np.pi, 97)[:-1]
    radius = 1 + uneven * (np.sin(2 * angle + rng.uniform(0, 6.3)) + np.sin(3 * angle + rng.uniform(0, 6.3)))
    return np.stack([x + across * radius * np.cos(angle), y + down * radius * np.sin(angle)], 1)


def fill(canvas: np.ndarray, points: np.ndarray, value: int) -> None:
    """Fills a polygon, (n, 2) in px, with a value."""
    cv2.fillPoly(canvas, [fixed(points)], value, cv2.LINE_8, 4)


def fixed(points: np.ndarray) -> np.ndarray:
    """Points in OpenCV's sixteenths of a px, int32."""
    return np.round(np.asarray(points) * 16).astype(np.int32)


def pair(values) -> tuple[int, int]:
    """Two numbers as whole px."""
    return round(float(values[0])), round(float(values[1]))
