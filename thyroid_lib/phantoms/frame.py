"""Simulated thyroid ultrasound with known truth: a physicist's sketch of B-mode imaging.

Tissue is a field of random scatterers (`anatomy`), the scanner a point-spread function that widens
with depth, attenuation with gain that compensates it, noise, and log compression; fully developed
speckle follows from that. The nodule shows signs drawn from `signs`. Around the sector lies what
scanners print: ruler, grey bar, probe mark, text, logo, calipers.

Three sources: `clinic` (four lesion types, scanner A), `external` (four types, scanner B) and `open` (benign
or malignant, scanners C and D). Everything follows from (seed, patient, frame), never from the number of
workers. Phantoms prove that the machinery works; they say nothing about patients.
"""

from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import yaml

from thyroid_lib.phantoms import anatomy, nodule
from thyroid_lib.phantoms.signs import SOURCES, TYPES, draw_person, draw_signs, label_of

# name -> a make of scanner, as far as its frames show it; scanners.yaml says what each field means
_MAKES = yaml.safe_load(Path(__file__).with_name("scanners.yaml").read_text(encoding="utf-8"))
SCANNERS = {name: SimpleNamespace(name=name, **make) for name, make in _MAKES.items()}


@dataclass(frozen=True)
class Patient:
    """Who is examined: `number` counts from 0; `signs` hold what the nodule shows."""

    source: str
    seed: int
    number: int
    lesion_type: str
    signs: dict
    age: int
    sex: str
    scanner: SimpleNamespace
    frames: int

    @property
    def name(self) -> str:
        return f"{self.source[0].upper()}{self.number:05d}"

    @property
    def label(self) -> str:
        return label_of(self.source, self.lesion_type)


@dataclass(frozen=True)
class Frame:
    """One simulated frame and its truth.

    Attributes:
        image: uint8 (H, W). mask: bool (H, W), the nodule. sector: (x, y, width, height) in px.
        view: "transverse" or "longitudinal". caliper: the nodule is measured on the frame.
        text: the line printed under the sector.
    """

    image: np.ndarray
    mask: np.ndarray
    sector: tuple[int, int, int, int]
    view: str
    caliper: bool
    text: str


def patients(source: str, count: int, seed: int = 0) -> list[Patient]:
    """The first `count` patients of a source; more patients leave the first ones as they are.

    Args:
        source: `clinic`, `external` or `open`.
        count: number of patients. Every run of them holds the types in the source's proportions.
        seed: another seed gives other people.
    """
    mix, scanners = np.array(SOURCES[source]["mix"]), SOURCES[source]["scanners"]
    given = np.zeros(len(TYPES))
    people = []
    for number in range(count):
        rng = _generator(source, seed, number)
        lack = mix * (number + 1) - given + 0.3 * rng.random(len(TYPES))
        kind = int(lack.argmax())
        given[kind] += 1
        signs = draw_signs(TYPES[kind], rng)
        age, sex = draw_person(TYPES[kind], rng)
        scanner = SCANNERS[scanners[rng.integers(len(scanners))]]
        frames = int(rng.choice([1, 2, 3, 4], p=[0.25, 0.45, 0.2, 0.1]))
        people.append(Patient(source, seed, number, TYPES[kind], signs, age, sex, scanner, frames))
    return people


def render(patient: Patient, number: int = 0) -> Frame:
    """Simulates one frame of a patient.

    Args:
        patient: one of `patients`.
        number: 0 to `patient.frames` - 1; even numbers are transverse views, odd ones longitudinal.
    """
    shared = _generator(patient.source, patient.seed, patient.number, 1)
    rng = _generator(patient.source, patient.seed, patient.number, 2 + number)
    scanner, size = patient.scanner, patient.signs["size_mm"]
    aspect, right, setting = shared.uniform(*scanner.aspect), shared.random() < 0.5, shared.normal(0, 2.0)
    half = nodule.axes(patient.signs, shared, rng)
    height, width = scanner.height, round(scanner.height * aspect)
    across = max(shared.uniform(30, 42), size / 0.6, aspect * (2 * half[1] + 12))  # mm
    scale = width / across
    view = "longitudinal" if number % 2 else "transverse"
    scene, centre = anatomy.draw((height, width), scale, view, half, shared, rng)
    nodule.draw(scene, centre, *half, patient.signs, rng)
    if not right:  # the windpipe lies on the image's right for the right lobe
        scene.mirror()
    sector = b_mode(scene, scanner, rng, gain=setting + rng.normal(0, 1.0))
    if scanner.tapered:
        rows, columns = np.indices(sector.shape, sparse=True)
        cut = 0.09 * width * np.clip(1 - rows / (0.9 * height), 0, 1)
        outside = (columns < cut) | (columns >= width - cut)
        sector[outside] = 0
        scene.nodule &= ~outside

    image, mask = np.zeros(scanner.frame, np.uint8), np.zeros(scanner.frame, bool)
    x, y = scanner.corner[0] + int(rng.integers(0, 24)), scanner.corner[1]
    image[y : y + height, x : x + width] = sector
    mask[y : y + height, x : x + width] = scene.nodule
    caliper = bool(rng.random() < 0.3)
    text = f"{'RT' if right else 'LT'} {'LONG' if number % 2 else 'TRANS'}"
    _furniture(image, x, y, width, height, scanner, scale, rng)
    below = min(image.shape[0] - 6, y + height + 26)
    _print(image, text, (x + 4, below), 1.0)
    if caliper and mask.any():
        after = x + 30 + cv2.getTextSize(text, cv2.FONT_HERSHEY_PLAIN, 1.0, 1)[0][0]
        _calipers(image, mask, scale, (after, below))
    return Frame(image, mask, (x, y, width, height), view, caliper, text)


def b_mode(scene, scanner: SimpleNamespace, rng: np.random.Generator, gain: float = 0.0) -> np.ndarray:
    """From scatterers to grey levels: `envelope`, gain that compensates most of the depth, log compression.

    Args:
        scene: a `scene.Scene` with `echo` and `excess` set.
        scanner: its point-spread function, noise and grey scale.
        rng: draws scatterers and noise.
        gain: dB on top of the scanner's own.

    Returns:
        uint8 (H, W) of the sector.
    """
    power = envelope(scene, scanner, rng)
    np.square(power, out=power)
    depth = np.linspace(0, 1, scene.shape[0], dtype=np.float32)[:, None]
    noise = 10 ** ((scanner.noise + 14 * depth) / 10)  # the gain that lifts deep echoes lifts it too
    power += rng.standard_exponential(scene.shape, np.float32) * noise
    decibel = cv2.log(power) * np.float32(10 / np.log(10)) - 4 * depth  # 4 dB are left uncompensated
    level = (decibel + np.float32(gain)) * np.float32(1 / scanner.dynamic_range) + np.float32(scanner.gain)
    level = cv2.GaussianBlur(level, (3, 3), 0.55)
    np.clip(level, 0, 1, out=level)
    return (level * 255).astype(np.uint8)


def envelope(scene, scanner: SimpleNamespace, rng: np.random.Generator) -> np.ndarray:
    """Magnitude of the received echo: float32 (H, W), with mean square 1 in parenchyma without loss.

    Many scatterers a resolution cell make the complex echo a Gaussian field, weighted by tissue and by what
    the sound lost on its way; mirror-like borders are added in phase. Blurring across the beam, wider with
    depth, and along the pulse turns it into fully developed speckle (Rayleigh; Burckhardt 1978,
    IEEE Trans Sonics Ultrason 25:1-6).
    """
    height, width = scene.shape
    to_exponent = np.float32(np.log(10) / 20)
    loss = np.cumsum(scene.excess, 0, dtype=np.float32)
    loss = cv2.blur(loss, (max(1, round(0.5 * scene.scale)), 1)) * np.float32(1 / scene.scale)
    np.minimum(loss, 34, out=loss)  # clutter never lets a shadow go black
    echo = rng.standard_normal((height, width, 2), np.float32)
    echo *= cv2.exp((scene.echo - loss) * to_exponent - np.float32(np.log(2) / 2))[..., None]
    echo[..., 0] += scene.specular * cv2.exp(loss * -to_exponent) + scene.ghost

    still = np.ones(1, np.float32)
    for top, bottom in pairwise(np.linspace(0, height, 9).astype(int)):
        depth = (top + bottom) / 2 / scene.scale
        lateral = scanner.lateral * scene.scale * np.hypot(1, depth / scanner.spread)
        echo[top:bottom] = cv2.sepFilter2D(echo[top:bottom], -1, _pulse(lateral), still)
    echo = cv2.sepFilter2D(echo, -1, still, _pulse(scanner.axial * scene.scale))
    return cv2.magnitude(echo[..., 0], echo[..., 1])


def _pulse(sigma: float) -> np.ndarray:
    """A Gaussian of unit energy, so that speckle keeps its mean brightness at every depth."""
    half = max(1, int(np.ceil(2.5 * sigma)))
    taps = np.exp(-0.5 * (np.arange(-half, half + 1) / max(sigma, 1e-3)) ** 2)
    return (taps / np.sqrt((taps**2).sum())).astype(np.float32)


def _generator(source: str, *numbers: int) -> np.random.Generator:
    return np.random.Generator(np.random.SFC64([list(SOURCES).index(source), *numbers]))


# --- what the scanner prints around the sector -----------------------------------------------------------------


def _furniture(image, x: int, y: int, width: int, height: int, scanner, scale: float, rng) -> None:
    """Ruler, grey bar, probe mark, settings and logo around the sector's box."""
    ruler, digits = (
        (x - 11, -10) if scanner.panel == "right" else (x + width + 6, 7)
    )  # where the settings are not
    for tick in range(int(height / scale / 5) + 1):
        row = min(image.shape[0] - 2, int(y + tick * 5 * scale))
        image[row : row + 2, ruler : ruler + (2 if tick % 2 else 5)] = 255
        if tick and tick % 2 == 0:
            _print(image, str(tick // 2), (ruler + digits, row + 4), 0.7)
    image[height // 2 : height // 2 + 96, 8:16] = np.linspace(255, 0, 96).astype(np.uint8)[:, None]
    _print(image, "T", (x + width + 14, y + 12), 0.9)
    settings = (f"P{rng.integers(80, 101)}", scanner.probe, f"{rng.uniform(8, 13):.1f}",
                f"{rng.integers(18, 40)}fps", f"DR{scanner.dynamic_range:.0f}", "2DG",
                f"{rng.integers(70, 100)}")  # fmt: skip
    for number, setting in enumerate(settings):
        column = {"top": x + 62 * number, "right": scanner.frame[1] - 48, "left": 4}[scanner.panel]
        row = max(12, y - 22) if scanner.panel == "top" else 14 + 13 * number
        _print(image, setting, (column, row), 0.75)
    cv2.putText(image, scanner.logo, (10, 18), cv2.FONT_HERSHEY_DUPLEX, 0.55, 235, 1)


def _print(image, text: str, place: tuple[int, int], size: float) -> None:
    cv2.putText(image, text, place, cv2.FONT_HERSHEY_PLAIN, size, 255, 1)


def _calipers(image, mask, scale: float, place: tuple[int, int]) -> None:
    """Crosses at the nodule's ends, dots between them, and the two diameters under the sector."""
    rows, columns = np.nonzero(mask)
    (top, bottom), (left, right) = (rows.min(), rows.max()), (columns.min(), columns.max())
    row, column = int(rows.mean()), int(columns.mean())
    for x, y in ((left, row), (right, row), (column, top), (column, bottom)):
        cv2.drawMarker(image, (int(x), int(y)), 255, cv2.MARKER_CROSS, 9, 1)
    image[row, left:right:6] = 230
    image[top:bottom:6, column] = 230
    across, down = (right - left + 1) / scale, (bottom - top + 1) / scale
    _print(image, f"+ {across:.1f} mm  x {down:.1f} mm", place, 0.8)
