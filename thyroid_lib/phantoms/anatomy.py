"""The neck of a simulated patient: what surrounds the nodule in the usual two views of a thyroid lobe.

Skin, fat, strap muscles, lobe, the long muscle of the neck and the front of the spine; in the transverse view
also isthmus, carotid artery, jugular vein and trachea. Lengths are mm until they are drawn.
"""

import numpy as np

from thyroid_lib.phantoms.scene import CODE, ECHO, EXCESS, Scene, noise, oval, wiggle


def draw(shape, scale: float, view: str, nodule, patient, frame) -> tuple[Scene, np.ndarray]:
    """Draws the scan plane of one frame, without its nodule.

    Args:
        shape: (H, W) of the sector in px.
        scale: px per mm.
        view: "transverse" or "longitudinal".
        nodule: half-axes in mm, (across, down): the lobe is large enough to hold it.
        patient: generator seeded alike for every frame of a patient: what the frames share.
        frame: generator of this frame: what differs between them.

    Returns:
        The scene, with `echo` and `excess` set, and where the nodule's centre is: (x, y) in mm.
    """
    scene = Scene.empty(shape, scale)
    gland_top = _layers(scene, patient, frame)
    plane = _transverse if view == "transverse" else _longitudinal
    centre = plane(scene, gland_top, *nodule, patient, frame)
    scene.echo = ECHO[scene.codes] + _texture(scene, patient, frame)
    scene.excess = EXCESS[scene.codes]
    scene.specular *= np.exp(0.55 * noise(frame, shape, 0.8 * scale, 2.2 * scale))  # no border is even
    return scene, centre


def _layers(scene: Scene, patient, frame) -> np.ndarray:
    """Skin, fat and strap muscles; returns where the gland may begin, in px along the sector's width."""
    (height, width), scale = scene.shape, scene.scale
    curve = patient.uniform(0, 1.4) * np.linspace(-1, 1, width) ** 2
    skin = patient.uniform(1.0, 1.7) * scale
    muscle_top = skin + (patient.uniform(1.0, 3.0) + curve + wiggle(frame, width, 0.35)) * scale
    gland_top = muscle_top + (patient.uniform(2.4, 4.4) + wiggle(frame, width, 0.45)) * scale
    rows = np.arange(height)[:, None]
    scene.codes[rows < gland_top] = CODE["muscle"]
    scene.codes[rows < muscle_top] = CODE["fat"]
    scene.codes[: int(skin)] = CODE["skin"]
    scene.line(0.2 * scale, 5.0)
    scene.line(skin, 2.0)
    scene.line(muscle_top, 3.6)
    scene.line(gland_top, 3.2)
    between = muscle_top + (gland_top - muscle_top) * patient.uniform(0.4, 0.6)
    scene.line(between + wiggle(frame, width, 0.2) * scale, 1.8)  # the two strap muscles
    for _ in range(int(patient.integers(1, 4))):  # septa of the fat
        at = skin + (muscle_top - skin) * frame.uniform(0.2, 0.9) + wiggle(frame, width, 0.2) * scale
        scene.line(at, frame.uniform(1.0, 2.4))
    return gland_top


def _transverse(scene: Scene, gland_top, across, down, patient, frame) -> np.ndarray:
    width, scale = scene.shape[1], scene.scale
    half_width = max(8.5, across + patient.uniform(1.5, 4))
    half_depth = max(7.5, down + patient.uniform(1, 3))
    top = float(np.median(gland_top)) / scale
    x, y = width / 2 / scale + frame.uniform(-2.5, 1), top + half_depth - 0.6
    _below(scene, y + half_depth + 0.8, patient, frame)
    wind_x, wind_y, wind = x + half_width + patient.uniform(3.5, 6.0), top + 11.5, patient.uniform(8.0, 9.5)
    thick = patient.uniform(2.2, 4.2)
    isthmus = [[x, top + 0.3], [wind_x + 14, top - 0.2], [wind_x + 14, top + thick - 1],
               [wind_x - 4, top + thick], [x, y]]  # fmt: skip
    lobe = oval(x, y, half_width, half_depth, patient, 0.05) * scale
    scene.fill(np.array(isthmus) * scale, "thyroid")
    _lobe(scene, gland_top, lobe, 1.6)
    _vessels(scene, x - half_width - patient.uniform(2.5, 4.5), y + patient.uniform(-1, 3), patient, frame)
    _trachea(scene, wind_x, wind_y, wind, patient, frame)
    room = np.maximum(0, [half_width - across - 1, half_depth - down - 1])
    return np.array([x, y]) + 0.8 * room * frame.uniform(-1, 1, 2)


def _longitudinal(scene: Scene, gland_top, across, down, patient, frame) -> np.ndarray:
    width, scale = scene.shape[1], scene.scale
    half_depth = max(7.0, down + patient.uniform(1, 3))
    half_length = max(0.5 * width / scale, across + 4) * patient.uniform(1.0, 1.3)
    top = float(np.median(gland_top)) / scale
    x, y = width / 2 / scale + frame.uniform(-4, 4), top + half_depth - 0.6
    _below(scene, y + half_depth + 0.6, patient, frame)
    _lobe(scene, gland_top, oval(x, y, half_length, half_depth, patient, 0.03) * scale, 1.8)
    room = np.maximum(0, [0.45 * width / scale - across, half_depth - down - 1])
    return np.array([width / 2 / scale, y]) + 0.7 * room * frame.uniform(-1, 1, 2)


def _lobe(scene: Scene, gland_top, outline, strength: float) -> None:
    """The lobe; the gland does not grow into the muscles in front of it."""
    scene.fill(outline, "thyroid")
    above = np.arange(scene.shape[0])[:, None] < gland_top
    scene.codes[above & (scene.codes == CODE["thyroid"])] = CODE["muscle"]
    scene.outline(outline, strength)


def _below(scene: Scene, depth: float, patient, frame) -> None:
    """The long muscle of the neck, its fascia, and the front of the spine."""
    (height, width), scale = scene.shape, scene.scale
    top = (depth + wiggle(frame, width, 0.6)) * scale
    bottom = top + (patient.uniform(5, 8) + wiggle(frame, width, 0.5)) * scale
    rows = np.arange(height)[:, None]
    scene.codes[(rows > top) & (rows < bottom)] = CODE["muscle"]
    scene.codes[rows > bottom + 0.8 * scale] = CODE["bone"]
    scene.line(top, 2.6)
    scene.line(bottom, 3.6)


def _vessels(scene: Scene, x: float, y: float, patient, frame) -> None:
    """Carotid artery, round with a bright wall, and the jugular vein that the probe flattens."""
    radius, scale = patient.uniform(2.6, 3.6), scene.scale
    vein = oval(x - 4.0, y - 3.5, patient.uniform(2, 4), frame.uniform(0.7, 2.2), patient, 0.04) * scale
    scene.fill(vein, "blood")
    scene.outline(vein, 1.5)
    scene.fill(oval(x, y, radius + 0.7, radius + 0.6, patient, 0.02) * scale, "wall")
    inner = oval(x, y, radius, radius - 0.1, patient, 0.02) * scale
    scene.fill(inner, "blood")
    scene.outline(inner, 3.0)


def _trachea(scene: Scene, x: float, y: float, radius: float, patient, frame) -> None:
    """A ring of cartilage around air: bright front, then the haze of sound running to and fro."""
    scale = scene.scale
    scene.fill(oval(x, y, radius, radius, patient) * scale, "cartilage")
    lumen = oval(x, y, radius - 1.6, radius - 1.6, patient) * scale
    scene.fill(lumen, "air")
    front = lumen[lumen[:, 1] < y * scale]
    front = front[np.argsort(front[:, 0])]
    scene.outline(front, 5.5, closed=False)
    for echo in range(1, 5):
        down = [0, echo * frame.uniform(1.6, 2.6) * scale]
        scene.outline(front[4:-4] + down, 0.9 * 0.62**echo, scene.ghost, closed=False)


def _texture(scene: Scene, patient, frame) -> np.ndarray:
    """Slow unevenness of every tissue and the streaks of muscle and fat: float32 (H, W), dB."""
    scale = scene.scale
    uneven = noise(patient, scene.shape, 4.0 * scale, 5.0 * scale)
    streaks = noise(frame, scene.shape, 0.5 * scale, 4.5 * scale) * np.float32(3.6)
    return uneven + streaks * np.isin(scene.codes, [CODE[tissue] for tissue in ("muscle", "fat", "deep")])
