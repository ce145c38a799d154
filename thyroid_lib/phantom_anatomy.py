"""The neck of a simulated patient as maps of tissue: what the beam meets before it is an image.

A `Scene` is laid out in pixels of the ultrasound sector. Lengths are millimetres; anatomy follows the
usual transverse and longitudinal views of a thyroid lobe (skin, fat, strap muscles, lobe and isthmus,
carotid artery, trachea, long muscle of the neck). The nodule and its signs are drawn on top of it.
"""

from dataclasses import dataclass

import cv2
import numpy as np

# tissue: (echo in dB against thyroid parenchyma, attenuation in dB/mm beyond what the gain compensates)
TISSUES = {
    "fat": (-5.0, 0.02),
    "skin": (7.0, 0.0),
    "muscle": (-8.5, 0.03),
    "thyroid": (0.0, 0.0),
    "blood": (-38.0, -0.25),
    "wall": (5.0, 0.0),
    "cartilage": (-10.0, 0.2),
    "air": (-30.0, 2.5),
    "deep": (-3.0, 0.08),
    "bone": (2.0, 3.0),
}
CODE = {name: code for code, name in enumerate(TISSUES)}
ECHO = np.array([echo for echo, _ in TISSUES.values()], np.float32)
EXCESS = np.array([excess for _, excess in TISSUES.values()], np.float32)

ECHOGENICITY = {"hyperechoic": 5.0, "isoechoic": 0.0, "hypoechoic": -7.0, "markedly hypoechoic": -13.5}  # dB
FLUID = -36.0  # dB


@dataclass
class Scene:
    """Maps of one scan plane, float32 (H, W) of the sector.

    Attributes:
        scale: px per mm.
        echo: scattering strength in dB against thyroid parenchyma.
        excess: attenuation in dB/mm, there and back, beyond what the gain compensates.
        specular: amplitude of mirror-like echoes, 1 being the mean scattering of parenchyma.
        nodule: bool, the nodule.
    """

    scale: float
    echo: np.ndarray
    excess: np.ndarray
    specular: np.ndarray
    nodule: np.ndarray


def draw(
    shape: tuple[int, int],
    scale: float,
    view: str,
    signs: dict,
    patient: np.random.Generator,
    frame: np.random.Generator,
) -> Scene:
    """Draws the scan plane of one frame.

    Args:
        shape: (H, W) of the sector in px.
        scale: px per mm.
        view: "transverse" or "longitudinal".
        signs: as `phantom_signs.draw_signs` gives them.
        patient: generator seeded alike for every frame of a patient: what the frames share.
        frame: generator of this frame: what differs between them.
    """
    codes = np.full(shape, CODE["deep"], np.uint8)
    scene = Scene(
        scale,
        None,
        None,
        np.zeros(shape, np.float32),
        None,  # echo, excess and nodule follow from the codes
    )
    across, down = _nodule_axes(signs, patient, frame)
    gland_top = _layers(codes, scene, patient, frame)
    if view == "transverse":
        centre = _transverse(codes, scene, gland_top, across, down, patient, frame)
    else:
        centre = _longitudinal(codes, scene, gland_top, across, down, patient, frame)
    scene.echo = cv2.blur(ECHO[codes], (3, 3))
    scene.excess = EXCESS[codes]
    scene.echo += _texture(codes, scale, patient)
    _draw_nodule(scene, codes, centre, across, down, signs, frame)
    if patient.random() < 0.5:  # the other side of the neck
        for name in ("echo", "excess", "specular", "nodule"):
            setattr(scene, name, np.ascontiguousarray(getattr(scene, name)[:, ::-1]))
    return scene


def _nodule_axes(signs: dict, patient, frame) -> tuple[float, float]:
    """Half-axes of the nodule in this plane in mm: across and down."""
    tall = signs["shape"] == "taller than wide"
    ratio = patient.uniform(1.12, 1.45) if tall else patient.uniform(0.60, 0.92)
    largest = signs["size_mm"] / 2 * frame.uniform(0.92, 1.0)
    return (largest / ratio, largest) if tall else (largest, largest * ratio)


def _layers(codes, scene: Scene, patient, frame):
    """Skin, fat and strap muscles; returns where the gland begins, in px along the width."""
    height, width = codes.shape
    scale = scene.scale
    bulge = patient.uniform(0, 1.2) * (np.linspace(-1, 1, width) ** 2)
    skin = (patient.uniform(1.0, 1.6) + 0 * bulge) * scale
    fat = patient.uniform(1.2, 3.0)
    strap = patient.uniform(2.6, 4.6)
    muscle_top = skin + (fat + bulge + _wiggle(frame, width, 0.25)) * scale
    gland_top = muscle_top + (strap + _wiggle(frame, width, 0.35)) * scale
    rows = np.arange(height, dtype=np.float32)[:, None]
    codes[rows < gland_top] = CODE["muscle"]
    codes[rows < muscle_top] = CODE["fat"]
    codes[rows < skin] = CODE["skin"]
    _line(scene, np.full(width, 0.15 * scale), 5.0)
    _line(scene, skin, 2.5)
    _line(scene, muscle_top, 4.5)
    _line(scene, gland_top, 4.0)
    middle = muscle_top + (gland_top - muscle_top) * patient.uniform(0.4, 0.6)
    _line(scene, middle + _wiggle(frame, width, 0.15) * scale, 2.2)  # between the two strap muscles
    for _ in range(int(patient.integers(1, 4))):  # septa of the fat
        _line(scene, skin + (muscle_top - skin) * frame.uniform(0.2, 0.9), frame.uniform(1.0, 2.5))
    return gland_top


def _transverse(codes, scene: Scene, gland_top, across, down, patient, frame):
    height, width = codes.shape
    scale = scene.scale
    half_width, half_depth = (
        max(8.5, across + patient.uniform(1.5, 4)),
        max(7.5, down + patient.uniform(1, 3)),
    )
    x = width / 2 / scale + frame.uniform(-2, 1)
    top = float(np.median(gland_top)) / scale
    y = top + half_depth - 0.6
    _below(codes, scene, y + half_depth + 0.8, patient, frame)
    trachea_x, trachea_y, radius = (
        x + half_width + patient.uniform(3.5, 6.0),
        top + 11.5,
        patient.uniform(8.0, 9.5),
    )
    isthmus = np.array(
        [
            [x, top + 0.3],
            [trachea_x + 14, top - 0.2],
            [trachea_x + 14, top + 3.0],
            [trachea_x - 4, top + 4.0],
            [x, y],
        ]
    )
    _fill(codes, isthmus * scale, "thyroid")
    _fill(codes, _oval(x, y, half_width, half_depth, patient, 0.05) * scale, "thyroid")
    above = (
        np.arange(height, dtype=np.float32)[:, None] < gland_top
    )  # the gland does not grow into the muscles
    codes[above & (codes == CODE["thyroid"])] = CODE["muscle"]
    outline = _oval(x, y, half_width, half_depth, patient, 0.0)
    _specular_outline(scene, outline * scale, 2.4)
    _carotid(codes, scene, x - half_width - patient.uniform(2.5, 4.5), y + patient.uniform(-1, 3), patient)
    _trachea(codes, scene, trachea_x, trachea_y, radius, patient, frame)
    shift = frame.uniform(-1, 1, 2) * np.maximum(0, [half_width - across - 1, half_depth - down - 1]) * 0.8
    return x + shift[0], y + shift[1]


def _longitudinal(codes, scene: Scene, gland_top, across, down, patient, frame):
    height, width = codes.shape
    scale = scene.scale
    half_depth = max(7.0, down + patient.uniform(1, 3))
    length = max(0.5 * width / scale, across + 4) * patient.uniform(1.0, 1.25)
    x = width / 2 / scale + frame.uniform(-3, 3)
    top = float(np.median(gland_top)) / scale
    y = top + half_depth - 0.6
    _below(codes, scene, y + half_depth + 0.6, patient, frame)
    lobe = _oval(x, y, length, half_depth, patient, 0.03)
    _fill(codes, lobe * scale, "thyroid")
    above = np.arange(height, dtype=np.float32)[:, None] < gland_top
    codes[above & (codes == CODE["thyroid"])] = CODE["muscle"]
    _specular_outline(scene, lobe * scale, 2.4)
    shift = frame.uniform(-1, 1, 2) * np.maximum(0, [0.35 * (length - across), half_depth - down - 1]) * 0.8
    return x + shift[0], y + shift[1]


def _below(codes, scene: Scene, depth: float, patient, frame) -> None:
    """The long muscle of the neck, its fascia, and the front of the spine."""
    height, width = codes.shape
    top = (depth + 1.2 * _wiggle(frame, width, 1.0) * 0.5) * scene.scale
    bottom = top + (patient.uniform(5, 8) + _wiggle(frame, width, 0.6)) * scene.scale
    rows = np.arange(height, dtype=np.float32)[:, None]
    codes[(rows > top) & (rows < bottom)] = CODE["muscle"]
    codes[rows > bottom + 1.0 * scene.scale] = CODE["bone"]
    _line(scene, top, 3.0)
    _line(scene, bottom, 3.5)


def _carotid(codes, scene: Scene, x: float, y: float, patient) -> None:
    radius = patient.uniform(2.6, 3.6)
    outer = _oval(x, y, radius + 0.7, radius + 0.6, patient, 0.02) * scene.scale
    _fill(codes, outer, "wall")
    inner = _oval(x, y, radius, radius - 0.1, patient, 0.02) * scene.scale
    _fill(codes, inner, "blood")
    _specular_outline(scene, inner, 4.0)


def _trachea(codes, scene: Scene, x: float, y: float, radius: float, patient, frame) -> None:
    _fill(codes, _oval(x, y, radius, radius, patient, 0.0) * scene.scale, "cartilage")
    lumen = _oval(x, y, radius - 1.5, radius - 1.5, patient, 0.0) * scene.scale
    _fill(codes, lumen, "air")
    _specular_outline(scene, lumen, 9.0)
    for echo in range(1, 4):  # the sound runs to and fro between wall and skin
        _specular_outline(scene, lumen + [0, echo * 2.4 * scene.scale], 9.0 * 0.85**echo * 8.0**echo)


def _texture(codes, scale: float, patient) -> np.ndarray:
    """Slow unevenness of every tissue and the streaks of muscle, in dB."""
    even = _noise(patient, codes.shape, 3.5 * scale, 3.5 * scale) * 1.0
    streaks = _noise(patient, codes.shape, 0.55 * scale, 5.0 * scale) * 3.2
    muscle = (codes == CODE["muscle"]) | (codes == CODE["fat"]) | (codes == CODE["deep"])
    return even + streaks * muscle


def _draw_nodule(scene: Scene, codes, centre, across: float, down: float, signs: dict, rng) -> None:
    height, width = codes.shape
    scale = scene.scale
    contour = _contour(centre, across, down, signs["margin"], rng) * scale
    full = np.zeros(codes.shape, np.uint8)
    _fill_mask(full, contour)
    scene.nodule = full.astype(bool)
    pad = int(4 * scale)
    left, top = np.maximum(0, contour.min(0).astype(int) - pad)
    right, bottom = contour.max(0).astype(int) + pad
    window = np.s_[top : min(height, bottom), left : min(width, right)]
    mask, local = full[window], contour - [left, top]

    inside = np.full(mask.shape, ECHOGENICITY[signs["echogenicity"]], np.float32)
    uneven = 3.4 if signs["echotexture"] == "heterogeneous" else 0.7
    inside += uneven * _noise(rng, mask.shape, 1.5 * scale, 1.7 * scale)
    fluid = _fluid(mask, local, across, down, signs["composition"], scale, rng)
    inside += (FLUID - inside) * fluid
    blur = {"ill-defined": 1.1, "irregular": 0.2, "smooth": 0.15}[signs["margin"]] * scale
    alpha = cv2.GaussianBlur(mask.astype(np.float32), (0, 0), blur)
    echo = scene.echo[window]
    if signs["halo"] == "complete":
        ring = np.zeros_like(mask)
        cv2.polylines(ring, [_fixed(local)], True, 1, round(2.2 * scale), cv2.LINE_8, 4)
        echo -= 9.0 * cv2.blur(ring.astype(np.float32), (3, 3)) * (alpha < 0.5)
        inside -= 9.0 * ring * (signs["margin"] != "ill-defined")
    echo += (inside - echo) * alpha
    excess = scene.excess[window]
    excess += (np.where(fluid > 0.5, -0.45, 0.1).astype(np.float32) - excess) * mask
    if signs["margin"] == "smooth":
        _specular_outline(scene, contour, 1.8)
    _foci(scene, mask, contour, (left, top), signs["foci"], fluid, rng)


def _contour(centre, across: float, down: float, margin: str, rng) -> np.ndarray:
    """The nodule's outline: (n, 2) in mm."""
    angle = np.linspace(0, 2 * np.pi, 181)[:-1]
    radius = np.ones_like(angle)
    waves = {"smooth": ((2, 0.02), (3, 0.02)), "ill-defined": ((2, 0.03), (3, 0.04), (5, 0.02))}.get(
        margin, ((3, 0.05), (5, 0.06), (7, 0.06), (9, 0.05), (13, 0.03))
    )
    for order, size in waves:
        radius += size * rng.uniform(0.7, 1.3) * np.sin(order * angle + rng.uniform(0, 2 * np.pi))
    if margin == "irregular":  # spicules
        for place in rng.uniform(0, 2 * np.pi, 6):
            apart = np.abs((angle - place + np.pi) % (2 * np.pi) - np.pi)
            radius += rng.uniform(0.08, 0.25) * np.clip(1 - apart / 0.13, 0, None)
    return np.stack(
        [centre[0] + across * radius * np.cos(angle), centre[1] + down * radius * np.sin(angle)], 1
    )


def _fluid(mask, contour, across, down, composition: str, scale: float, rng) -> np.ndarray:
    """Where the nodule holds fluid: float32 0 to 1."""
    fluid = np.zeros(mask.shape, np.uint8)
    centre = contour.mean(0)
    half = np.array([across, down]) * scale
    if composition == "cystic":
        cyst = centre + (contour - centre) * 0.84 + rng.uniform(-0.05, 0.05, 2) * half
        _fill_mask(fluid, cyst)
        place = centre + half * 0.62 * _direction(rng)
        cv2.ellipse(fluid, _pair(place), _pair(half * rng.uniform(0.2, 0.35)), 0, 0, 360, 0, -1)
    elif composition == "mixed":
        for share in (0.50, 0.34, 0.26):
            place = centre + half * rng.uniform(0.15, 0.55) * _direction(rng)
            axes = np.maximum(2, half * share * rng.uniform(0.8, 1.1, 2))
            cv2.ellipse(fluid, _pair(place), _pair(axes), rng.uniform(0, 180), 0, 360, 1, -1)
    elif composition == "spongiform":
        fluid = (_noise(rng, mask.shape, 1.0 * scale, 1.3 * scale) > -0.1).astype(np.uint8)
    return cv2.blur((fluid * mask).astype(np.float32), (3, 3))


def _foci(scene: Scene, mask, contour, corner, kind: str, fluid, rng) -> None:
    if kind == "none":
        return
    scale = scene.scale
    core = cv2.erode(mask, np.ones((3, 3), np.uint8), iterations=max(1, int(0.3 * scale)))
    if kind == "comet tail" and (fluid * core).max() > 0.5:
        core = core * (fluid > 0.5)
    rows, columns = np.nonzero(core)
    if not len(rows):
        return

    def places(count):
        pick = rng.integers(0, len(rows), count)
        return np.stack([columns[pick] + corner[0], rows[pick] + corner[1]], 1)

    if kind == "punctate":
        for x, y in places(int(rng.integers(9, 22))):
            cv2.circle(scene.specular, (int(x), int(y)), max(1, round(0.22 * scale)), rng.uniform(9, 20), -1)
    elif kind == "comet tail":
        for x, y in places(int(rng.integers(3, 7))):
            for step in range(7):
                half = max(0, round((0.5 - 0.06 * step) * scale))
                row = int(y + step * 0.5 * scale)
                cv2.line(scene.specular, (int(x) - half, row), (int(x) + half, row), 16 * 0.72**step, 1)
    elif kind == "coarse with shadow":
        for x, y in places(int(rng.integers(1, 4))):
            half = (rng.uniform(0.9, 2.0) * scale, rng.uniform(0.35, 0.7) * scale)
            cv2.ellipse(scene.specular, (int(x), int(y)), _pair(half), rng.uniform(-25, 25), 0, 360, 16, -1)
            _shadow(scene, x, y + half[1], half[0], rng.uniform(14, 24))
    else:  # an eggshell of calcium; sound passes least at its sides
        start, stop = rng.uniform(160, 200), rng.uniform(340, 380)
        angle = np.linspace(0, 360, len(contour), endpoint=False)
        shell = np.concatenate([contour, contour])[
            (np.arange(2 * len(contour)) * 360 / len(contour) >= start)
        ]
        shell = shell[: int((stop - start) / 360 * len(angle))]
        cv2.polylines(scene.specular, [_fixed(shell)], False, 15, max(1, round(0.5 * scale)), cv2.LINE_8, 4)
        x, y = shell.mean(0)
        _shadow(scene, x, y + 0.5 * scale, np.ptp(shell[:, 0]) / 2, rng.uniform(8, 14))


def _shadow(scene: Scene, x: float, y: float, half: float, loss: float) -> None:
    """An attenuating sliver of `loss` dB: everything below it lies in its shadow."""
    height, width = scene.excess.shape
    left, right = int(max(0, x - half)), int(min(width, x + half + 1))
    top = int(np.clip(y, 0, height - 2))
    bottom = min(height, top + max(1, round(0.8 * scene.scale)))
    scene.excess[top:bottom, left:right] += loss * scene.scale / max(1, bottom - top)


# --- shapes and fields -----------------------------------------------------------------------------------------


def _noise(rng, shape, down: float, across: float) -> np.ndarray:
    """A smooth random field, mean 0, variance about 1, with blobs of this size in px; float32."""
    rows, columns = max(3, int(shape[0] / down) + 2), max(3, int(shape[1] / across) + 2)
    coarse = rng.standard_normal((rows, columns), np.float32)
    return cv2.resize(coarse, (shape[1], shape[0]), interpolation=cv2.INTER_CUBIC) * 1.3


def _wiggle(rng, width: int, size: float) -> np.ndarray:
    """A gently waving line: float32 (width,), of this amplitude."""
    x = np.linspace(0, 2 * np.pi, width, dtype=np.float32)
    waves = (
        rng.uniform(0.3, 1) * np.sin(k * x * rng.uniform(0.6, 1.2) + rng.uniform(0, 6.3)) for k in (1, 2, 4)
    )
    return size * sum(waves) / 1.5


def _oval(x: float, y: float, across: float, down: float, rng, uneven: float) -> np.ndarray:
    angle = np.linspace(0, 2 * np.pi, 97)[:-1]
    radius = (
        1
        + uneven * np.sin(2 * angle + rng.uniform(0, 6.3))
        + uneven * np.sin(3 * angle + rng.uniform(0, 6.3))
    )
    return np.stack([x + across * radius * np.cos(angle), y + down * radius * np.sin(angle)], 1)


def _direction(rng) -> np.ndarray:
    angle = rng.uniform(0, 2 * np.pi)
    return np.array([np.cos(angle), np.sin(angle)])


def _fixed(points) -> np.ndarray:
    """Points in OpenCV's sixteenths of a px."""
    return np.round(np.asarray(points) * 16).astype(np.int32)


def _pair(values) -> tuple[int, int]:
    return round(float(values[0])), round(float(values[1]))


def _fill(codes, points, tissue: str) -> None:
    cv2.fillPoly(codes, [_fixed(points)], CODE[tissue], cv2.LINE_8, 4)


def _fill_mask(mask, points) -> None:
    cv2.fillPoly(mask, [_fixed(points)], 1, cv2.LINE_8, 4)


def _line(scene: Scene, rows, strength: float) -> None:
    """A border across the whole sector that mirrors the sound: rows in px, one per column."""
    width = scene.specular.shape[1]
    points = np.stack([np.arange(width), np.broadcast_to(rows, width)], 1)[::4]
    cv2.polylines(scene.specular, [_fixed(points)], False, strength, max(1, round(0.12 * scene.scale)), 8, 4)


def _specular_outline(scene: Scene, points, strength: float) -> None:
    """A closed border that mirrors sound where it lies across the beam."""
    step = np.roll(points, -1, 0) - points
    facing = np.abs(step[:, 0]) / np.maximum(np.hypot(step[:, 0], step[:, 1]), 1e-6)
    fixed = _fixed(points)
    thickness = max(1, round(0.15 * scene.scale))
    for start, end, along in zip(fixed, np.roll(fixed, -1, 0), facing**3):
        if along > 0.1:
            cv2.line(scene.specular, start.tolist(), end.tolist(), float(strength * along), thickness, 8, 4)
