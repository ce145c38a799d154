"""Simulated thyroid ultrasound with known truth: a physicist's sketch of B-mode imaging.

Tissue is a field of random scatterers (`phantom_anatomy`), the scanner a point-spread function that widens
with depth, attenuation with gain that compensates it, noise, and log compression; fully developed
speckle follows from that. The nodule shows signs drawn from `phantom_signs`. Around the sector lies what
scanners print: ruler, grey bar, probe mark, text, logo, calipers.

Three sources: `clinic` (four lesion types, scanner A), `external` (four types, scanner B) and `open` (benign
or malignant, scanners C and D). Everything follows from (seed, patient, frame), never from the number of
workers. Phantoms prove that the machinery works; they say nothing about patients.
"""

from dataclasses import dataclass, field
from itertools import pairwise

import cv2
import numpy as np

from thyroid_lib import LESION_TYPES, phantom_anatomy, phantom_nodule
from thyroid_lib.phantom_signs import (  # noqa: F401  (the module's public face)
    SIGNS,
    SOURCES,
    TYPES,
    ceiling,
    draw_person,
    draw_signs,
    label_of,
    sign_reader,
)


@dataclass(frozen=True)
class Scanner:
    """One make of scanner, as far as its frames show it.

    Attributes:
        frame: (H, W) of the whole frame in px. top, left: where the sector's column starts.
        height: of the sector in px. aspect: range of the sector's width over its height.
        axial: standard deviation of the pulse in mm. lateral: of the beam in mm at its narrowest.
        spread: depth in mm over which the beam widens by the square root of two.
        dynamic_range: dB shown between black and white. gain: grey level of parenchyma, 0 to 1.
        noise: dB of electronic noise against parenchyma at the skin; it grows with the gain's compensation.
        tapered: the sector's upper corners are cut, as a virtual convex probe does.
    """

    name: str
    frame: tuple[int, int]
    top: int
    left: int
    height: int
    aspect: tuple[float, float]
    axial: float
    lateral: float
    spread: float
    dynamic_range: float
    gain: float
    noise: float
    tapered: bool
    panel: str
    logo: str


SCANNERS = {
    "A": Scanner(
        "A", (360, 560), 8, 70, 304, (1.0, 1.32), 0.085, 0.20, 26, 62, 0.40, -38, False, "right", ""
    ),
    "B": Scanner(
        "B", (480, 640), 58, 60, 372, (1.0, 1.30), 0.12, 0.27, 20, 54, 0.34, -32, True, "top", "SONUS B"
    ),
    "C": Scanner(
        "C", (400, 560), 40, 40, 320, (1.0, 1.30), 0.10, 0.22, 24, 66, 0.44, -36, False, "top", "UNO"
    ),
    "D": Scanner("D", (420, 600), 12, 90, 350, (1.0, 1.25), 0.09, 0.24, 22, 58, 0.36, -34, True, "left", ""),
}
SCANNERS_OF = {"clinic": "A", "external": "B", "open": "CD"}


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
    scanner: Scanner
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
        facts: `view`, `caliper` (measured on the frame) and `text` (printed around the sector).
    """

    image: np.ndarray
    mask: np.ndarray
    sector: tuple[int, int, int, int]
    facts: dict = field(default_factory=dict)


def patients(source: str, count: int, seed: int = 0) -> list[Patient]:
    """The first `count` patients of a source; more patients leave the first ones as they are.

    Args:
        source: `clinic`, `external` or `open`.
        count: number of patients. Every run of them holds the types in the source's proportions.
        seed: another seed gives other people.

    Raises:
        ValueError: an unknown source, or fewer than one patient.
    """
    if source not in SOURCES:
        raise ValueError(f"phantom source: expected one of {', '.join(SOURCES)}, came {source!r}.")
    if count < 1:
        raise ValueError(f"phantom:{source}: expected at least one patient, came patients={count}.")
    mix = np.array(SOURCES[source]["mix"])
    given = np.zeros(len(TYPES))
    people = []
    for number in range(count):
        rng = _generator(source, seed, number)
        lack = mix * (number + 1) - given + 0.3 * rng.random(len(TYPES))
        kind = int(lack.argmax())
        given[kind] += 1
        signs = draw_signs(TYPES[kind], rng)
        age, sex = draw_person(TYPES[kind], rng)
        scanners = SCANNERS_OF[source]
        scanner = SCANNERS[scanners[rng.integers(len(scanners))]]
        frames = int(rng.choice([1, 2, 3, 4], p=[0.25, 0.45, 0.2, 0.1]))
        people.append(Patient(source, seed, number, TYPES[kind], signs, age, sex, scanner, frames))
    return people


def render(patient: Patient, number: int = 0, answer: bool = False) -> Frame:
    """Simulates one frame of a patient.

    Args:
        patient: one of `patients`.
        number: 0 to `patient.frames` - 1; even numbers are transverse views, odd ones longitudinal.
        answer: print the label under the sector, as some real frames have their grade printed: what a
            network that sees the whole frame can read, and one that sees the crop cannot.
    """
    shared = _generator(patient.source, patient.seed, patient.number, 1)
    rng = _generator(patient.source, patient.seed, patient.number, 2 + number)
    scanner, size = patient.scanner, patient.signs["size_mm"]
    aspect, right, setting = shared.uniform(*scanner.aspect), shared.random() < 0.5, shared.normal(0, 2.0)
    height, width = scanner.height, round(scanner.height * aspect)
    field_of_view = np.clip(24 + 1.15 * size * shared.uniform(0.9, 1.1), 30, 60)  # mm, the probe and its zoom
    scale = width / field_of_view
    view = "longitudinal" if number % 2 else "transverse"
    half = phantom_nodule.axes(patient.signs, shared, rng)
    scene, centre = phantom_anatomy.draw((height, width), scale, view, half, shared, rng)
    phantom_nodule.draw(scene, centre, *half, patient.signs, rng)
    if right:
        scene.mirror()
    sector = b_mode(scene, scanner, rng, gain=setting + rng.normal(0, 1.0))
    if scanner.tapered:
        outside = _corners(sector.shape)
        sector[outside] = 0
        scene.nodule &= ~outside

    image = np.zeros(scanner.frame, np.uint8)
    mask = np.zeros(scanner.frame, bool)
    x = scanner.left + int(rng.integers(0, 24))
    y = scanner.top
    image[y : y + height, x : x + width] = sector
    mask[y : y + height, x : x + width] = scene.nodule
    box = (x, y, width, height)
    facts = {"view": view, "caliper": bool(rng.random() < 0.3)}
    words = f"{'RT' if right else 'LT'} {'LONG' if number % 2 else 'TRANS'}"
    if answer:
        words += f"   {LESION_TYPES.get(patient.label, (patient.label,))[0].upper()}"
    facts["text"] = words
    _furniture(image, mask, box, scanner, scale, words, facts["caliper"], rng)
    return Frame(image, mask, box, facts)


def b_mode(scene, scanner: Scanner, rng: np.random.Generator, gain: float = 0.0) -> np.ndarray:
    """From scatterers to grey levels: uint8 (H, W) of the sector.

    The complex echo is a random field weighted by tissue and attenuation plus mirror-like borders, blurred
    across the beam (wider away from the focus) and along the pulse; its magnitude, log-compressed, is the image.

    Args:
        scene: a `phantom_anatomy.Scene`.
        scanner: its point-spread function, noise and grey scale.
        rng: draws scatterers and noise.
        gain: dB on top of the scanner's own.
    """
    height, width = scene.shape
    to_exponent = np.float32(np.log(10) / 20)
    loss = np.cumsum(scene.excess, 0, dtype=np.float32)
    loss = cv2.blur(loss, (max(1, round(0.5 * scene.scale)), 1)) * np.float32(1 / scene.scale)
    np.minimum(loss, 34, out=loss)  # clutter never lets a shadow go black
    echo = rng.standard_normal((height, width, 2), np.float32)
    echo *= cv2.exp((scene.echo - loss) * to_exponent)[..., None]
    echo[..., 0] += scene.specular * cv2.exp(loss * -to_exponent) + scene.ghost

    axial = scanner.axial * scene.scale
    bands = np.linspace(0, height, 9).astype(int)
    for top, bottom in pairwise(bands):
        depth = (top + bottom) / 2 / scene.scale
        lateral = scanner.lateral * scene.scale * np.hypot(1, depth / scanner.spread)
        echo[top:bottom] = cv2.sepFilter2D(echo[top:bottom], -1, _pulse(lateral), np.ones(1, np.float32))
    echo = cv2.sepFilter2D(echo, -1, np.ones(1, np.float32), _pulse(axial))

    depth = np.arange(height, dtype=np.float32) / height
    noise = 10 ** ((scanner.noise + 14 * depth) / 20)
    power = echo[..., 0] ** 2 + echo[..., 1] ** 2
    power += (rng.random((height, width), np.float32) * 2 * (noise[:, None] ** 2)).astype(np.float32)
    shown = cv2.log(power) * np.float32(10 / np.log(10))  # dB
    slope = 4.0 * depth[:, None]  # what the gain leaves uncompensated
    level = (shown + np.float32(gain) - slope) / np.float32(scanner.dynamic_range) + np.float32(scanner.gain)
    level = cv2.GaussianBlur(level, (3, 3), 0.55)
    np.clip(level, 0, 1, out=level)
    return (level * 255).astype(np.uint8)


def _pulse(sigma: float) -> np.ndarray:
    """A Gaussian of unit energy, so that speckle keeps its mean brightness at every depth."""
    half = max(1, int(np.ceil(2.5 * sigma)))
    taps = np.exp(-0.5 * (np.arange(-half, half + 1) / max(sigma, 1e-3)) ** 2)
    return (taps / np.sqrt((taps**2).sum())).astype(np.float32)


def _generator(source: str, *numbers: int) -> np.random.Generator:
    key = (list(SOURCES).index(source), *(int(number) for number in numbers))
    return np.random.Generator(np.random.SFC64(np.random.SeedSequence(key)))


# --- what the scanner prints around the sector -----------------------------------------------------------------


def _corners(shape: tuple[int, int]) -> np.ndarray:
    height, width = shape
    cut = 0.09 * width * np.clip(1 - np.arange(height) / (0.9 * height), 0, 1)
    columns = np.arange(width)
    return (columns < cut[:, None]) | (columns >= width - cut[:, None])


def _furniture(image, mask, box, scanner: Scanner, scale, words: str, caliper: bool, rng) -> None:
    x, y, width, height = box
    right = x + width
    _ruler(image, right + 5 if scanner.panel != "right" else x - 9, y, height, scale)
    bar = np.linspace(255, 0, 96).astype(np.uint8)[:, None]
    image[height // 2 : height // 2 + 96, 8:16] = bar
    cv2.putText(image, "T", (right + 14, y + 12), cv2.FONT_HERSHEY_PLAIN, 0.9, 255, 1)
    lines = (f"P{rng.integers(80, 101)}", "12L6", f"{rng.uniform(8, 13):.1f}", f"{rng.integers(18, 40)}fps",
             f"DR{scanner.dynamic_range:.0f}", "2DG", f"{rng.integers(70, 100)}")  # fmt: skip
    for row, line in enumerate(lines):
        if scanner.panel == "top":
            place = (x + 62 * row, max(12, y - 22))
        else:
            place = ((scanner.frame[1] - 48) if scanner.panel == "right" else 4, 14 + 13 * row)
        cv2.putText(image, line, place, cv2.FONT_HERSHEY_PLAIN, 0.75, 220, 1)
    if scanner.logo:
        cv2.putText(image, scanner.logo, (10, 18), cv2.FONT_HERSHEY_DUPLEX, 0.55, 235, 1)
    baseline = min(scanner.frame[0] - 6, y + height + 26)
    cv2.putText(image, words, (x + 4, baseline), cv2.FONT_HERSHEY_PLAIN, 1.0, 255, 1)
    if caliper and mask.any():
        _calipers(image, mask, box, scale, scanner, baseline)


def _ruler(image, column: int, top: int, height: int, scale: float) -> None:
    for tick in range(int(height / scale / 5) + 1):
        row = min(image.shape[0] - 2, int(top + tick * 5 * scale))
        long = 5 if tick % 2 == 0 else 2
        image[row : row + 2, column : min(image.shape[1], column + long)] = 255
        if tick and tick % 2 == 0:
            cv2.putText(image, str(tick // 2), (column + 7, row + 4), cv2.FONT_HERSHEY_PLAIN, 0.7, 255, 1)


def _calipers(image, mask, box, scale: float, scanner: Scanner, baseline: int) -> None:
    rows, columns = np.nonzero(mask)
    middle_row, middle_column = int(rows.mean()), int(columns.mean())
    ends = (
        (int(columns.min()), middle_row), (int(columns.max()), middle_row),
        (middle_column, int(rows.min())), (middle_column, int(rows.max())),
    )  # fmt: skip
    for x, y in ends:
        cv2.drawMarker(image, (x, y), 255, cv2.MARKER_CROSS, 9, 1)
    for (x0, y0), (x1, y1) in (ends[:2], ends[2:]):
        for part in np.linspace(0, 1, max(2, int(max(x1 - x0, y1 - y0) / 6))):
            image[int(y0 + part * (y1 - y0)), int(x0 + part * (x1 - x0))] = 230
    across, down = (np.ptp(columns) + 1) / scale, (np.ptp(rows) + 1) / scale
    text = f"+ {across:.1f} mm  x {down:.1f} mm"
    place = (box[0] + 210, baseline)
    cv2.putText(image, text, place, cv2.FONT_HERSHEY_PLAIN, 0.8, 255, 1)
