"""The nodule of a simulated patient, drawn with its sonographic signs (`signs.SIGNS`) as `looks.yaml` says."""

import cv2
import numpy as np

from thyroid_lib.phantoms.scene import LOOKS, Scene, fill, fixed, noise, pair


def axes(signs: dict, patient, frame) -> tuple[float, float]:
    """Half-axes of the nodule in a plane, in mm: across and down."""
    tall = signs["shape"] == "taller than wide"
    ratio = patient.uniform(1.12, 1.45) if tall else patient.uniform(0.60, 0.92)
    largest = signs["size_mm"] / 2 * frame.uniform(0.92, 1.0)
    return (largest / ratio, largest) if tall else (largest, largest * ratio)


def draw(scene: Scene, centre, across: float, down: float, signs: dict, rng: np.random.Generator) -> None:
    """Draws the nodule into a scene and sets its `nodule` mask.

    Args:
        scene: as `anatomy.draw` gives it.
        centre: (x, y) in mm.
        across, down: half-axes in mm.
        signs: as `signs.draw_signs` gives them.
        rng: of this frame.
    """
    scale = scene.scale
    contour = _contour(centre, across, down, signs["margin"], rng) * scale
    full = np.zeros(scene.shape, np.uint8)
    fill(full, contour, 1)
    scene.nodule = full.astype(bool)
    left, top = np.maximum(0, contour.min(0).astype(int) - int(4 * scale))
    right, bottom = contour.max(0).astype(int) + int(4 * scale)
    window = np.s_[top:bottom, left:right]
    mask, local = full[window], contour - [left, top]

    inside = LOOKS["uneven"][signs["echotexture"]] * noise(rng, mask.shape, 1.5 * scale, 1.7 * scale)
    inside += np.float32(LOOKS["echogenicity"][signs["echogenicity"]])
    fluid = _fluid(mask, local, np.array([across, down]) * scale, signs["composition"], scale, rng)
    inside += (np.float32(LOOKS["fluid"]) - inside) * fluid
    alpha = cv2.GaussianBlur(mask.astype(np.float32), (0, 0), LOOKS["blur"][signs["margin"]] * scale)
    echo, excess = scene.echo[window], scene.excess[window]
    if signs["halo"] == "complete":
        ring = np.zeros_like(mask)
        cv2.polylines(ring, [fixed(local)], True, 1, round(2.0 * scale), cv2.LINE_8, 4)
        rim = np.float32(9) * cv2.blur(ring.astype(np.float32), (3, 3))
        echo -= rim * (1 - alpha)
        inside -= rim * (1 - fluid)
    echo += (inside - echo) * alpha
    excess += (np.where(fluid > 0.5, np.float32(-0.45), np.float32(0.08)) - excess) * mask
    if signs["margin"] == "smooth":
        scene.outline(contour, 2.0)
    if signs["foci"] != "none":
        FOCI[signs["foci"]](scene, mask, contour, np.array([left, top]), fluid, rng)


def _contour(centre, across: float, down: float, margin: str, rng) -> np.ndarray:
    """The nodule's outline: (180, 2) in mm."""
    angle = np.linspace(0, 2 * np.pi, 181)[:-1]
    radius = np.ones_like(angle)
    for order, size in LOOKS["waves"][margin]:
        radius += size * rng.uniform(0.7, 1.3) * np.sin(order * angle + rng.uniform(0, 2 * np.pi))
    if margin == "irregular":  # spicules
        for place in rng.uniform(0, 2 * np.pi, 6):
            apart = np.abs((angle - place + np.pi) % (2 * np.pi) - np.pi)
            radius += rng.uniform(0.08, 0.25) * np.clip(1 - apart / 0.13, 0, None)
    return centre + np.stack([across * radius * np.cos(angle), down * radius * np.sin(angle)], 1)


def _fluid(mask, contour, half, kind: str, scale: float, rng) -> np.ndarray:
    """Where the nodule holds fluid: float32 (h, w), 0 to 1."""
    fluid = np.zeros(mask.shape, np.uint8)
    centre = contour.mean(0)
    if kind == "cystic":  # one cyst, a thin wall, a solid part that grows into it
        fill(fluid, centre + (contour - centre) * 0.86, 1)
        place = centre + half * 0.62 * _direction(rng)
        cv2.ellipse(fluid, pair(place), pair(half * rng.uniform(0.2, 0.38)), 0, 0, 360, 0, -1)
    elif kind == "mixed":
        for share in (0.50, 0.34, 0.26):
            place = centre + half * rng.uniform(0.15, 0.55) * _direction(rng)
            size = np.maximum(2, half * share * rng.uniform(0.8, 1.1, 2))
            cv2.ellipse(fluid, pair(place), pair(size), rng.uniform(0, 180), 0, 360, 1, -1)
    elif kind == "spongiform":  # tiny cysts in more than half of it
        fluid = (noise(rng, mask.shape, 0.9 * scale, 1.2 * scale) > -0.15).astype(np.uint8)
    return cv2.blur((fluid * mask).astype(np.float32), (3, 3))


def _punctate(scene, mask, contour, corner, fluid, rng) -> None:
    radius = max(1, round(0.2 * scene.scale))
    # about one in 6 square mm
    count = np.clip(mask.sum() / scene.scale**2 / 6 * rng.uniform(0.8, 1.3), 5, 24)
    for x, y in _places(mask, corner, int(count), 0.4 * scene.scale, rng):
        cv2.circle(scene.specular, (x, y), radius, rng.uniform(8, 18), -1)


def _comet_tail(scene, mask, contour, corner, fluid, rng) -> None:
    where = mask * (fluid > 0.5) if (fluid * mask).max() > 0.5 else mask
    for x, y in _places(where, corner, int(rng.integers(3, 8)), 0.0, rng):
        for step in range(8):
            half = max(0, round((0.55 - 0.06 * step) * scene.scale))
            row = y + round(0.45 * step * scene.scale)
            cv2.line(scene.ghost, (x - half, row), (x + half, row), 11 * 0.7**step, max(1, scene.thin - 1))


def _coarse(scene, mask, contour, corner, fluid, rng) -> None:
    for x, y in _places(mask, corner, int(rng.integers(1, 4)), 0.8 * scene.scale, rng):
        half = rng.uniform(0.9, 2.0) * scene.scale, rng.uniform(0.35, 0.7) * scene.scale
        cv2.ellipse(scene.specular, (x, y), pair(half), rng.uniform(-25, 25), 0, 360, 13, -1)
        _shadow(scene, x, y + half[1], half[0], rng.uniform(14, 24))


def _rim(scene, mask, contour, corner, fluid, rng) -> None:
    """An eggshell of calcium over most of the front."""
    turn = np.degrees(np.arctan2(*(contour - contour.mean(0)).T[::-1])) % 360
    front = contour[(turn > rng.uniform(180, 215)) & (turn < rng.uniform(325, 360))]
    front = front[np.argsort(front[:, 0])]
    cv2.polylines(scene.specular, [fixed(front)], False, 13, max(1, round(0.5 * scene.scale)), cv2.LINE_8, 4)
    x, y = front.mean(0)
    _shadow(scene, x, y + 0.8 * scene.scale, 0.85 * np.ptp(front[:, 0]) / 2, rng.uniform(9, 15))


FOCI = {
    "punctate": _punctate,
    "comet tail": _comet_tail,
    "coarse with shadow": _coarse,
    "rim with shadow": _rim,
}


def _places(mask, corner, count: int, inset: float, rng) -> list[tuple[int, int]]:
    """Random px of the sector inside a mask, at least `inset` px from its border where it is wide enough."""
    side = 2 * round(inset) + 1
    core = cv2.erode(mask, np.ones((side, side), np.uint8))
    rows, columns = np.nonzero(core if core.any() else mask)
    pick = rng.integers(0, len(rows), count)
    return list(zip((columns[pick] + corner[0]).tolist(), (rows[pick] + corner[1]).tolist()))


def _shadow(scene: Scene, x: float, y: float, half: float, loss: float) -> None:
    """A sliver that takes `loss` dB: everything below it lies in its shadow."""
    height = scene.shape[0]
    top = int(np.clip(y, 0, height - 2))
    bottom = min(height, top + max(1, round(0.8 * scene.scale)))
    sliver = np.s_[top:bottom, int(max(0, x - half)) : int(x + half + 1)]
    scene.excess[sliver] += loss * scene.scale / (bottom - top)


def _direction(rng) -> np.ndarray:
    angle = rng.uniform(0, 2 * np.pi)
    return np.array([np.cos(angle), np.sin(angle)])
