"""The reference models: features that mean what they are called."""

from dataclasses import replace

import cv2
import numpy as np
import pytest

from thyroid_lib.data.crops import Crops
from thyroid_lib.training import references, texture


def disc(side=64, centre=(32, 32), radii=(16, 16), grey=60, around=120) -> tuple[np.ndarray, np.ndarray]:
    image, mask = np.full((side, side), around, np.uint8), np.zeros((side, side), np.uint8)
    cv2.ellipse(mask, centre, radii, 0, 0, 360, 1, -1)
    image[mask > 0] = grey
    return image, mask


def features(*pictures):
    images, masks = zip(*pictures)
    return texture.texture_features(np.stack(images), np.stack(masks))


def test_shape_is_measured_in_fractions_of_the_crop_and_aspect_is_above_zero_where_taller_than_wide():
    table = features(disc(radii=(8, 16)), disc(radii=(16, 16)), disc(radii=(16, 8)))
    assert table.aspect.tolist() == pytest.approx([np.log(2), 0, -np.log(2)], abs=0.06)
    assert table.area[1] == pytest.approx(np.pi / 16, rel=0.06)  # cv2 draws the rim's pixels whole
    large = features(disc(128, (64, 64), (32, 32))).iloc[0]
    for name in ("area", "aspect", "centre_x", "centre_y"):
        assert table[name][1] == pytest.approx(large[name], abs=0.02)
    image, mask = disc(radii=(18, 18))
    rough = np.zeros_like(mask)  # a cross
    rough[28:36, 14:50] = rough[14:50, 28:36] = 1
    table = features((image, mask), (image, rough))
    assert table.roundness[0] > 0.8 > table.roundness[1]


def test_grey_levels_and_contrast_are_those_drawn_and_a_crop_without_a_mask_is_marked():
    image, mask = disc(grey=51, around=153)
    row = features((image, mask)).iloc[0]
    assert row["mean"] == pytest.approx(0.2)
    assert row.contrast_to_rim == pytest.approx(-0.4)
    assert row.spread == pytest.approx(0)
    assert row.glcm_contrast == 0 and row.glcm_homogeneity == 1 and row.glcm_energy == 1
    row = features((image, np.zeros_like(mask))).iloc[0]
    assert row.no_mask == 1 and row.area == 0 and np.isfinite(row).all()
    assert np.isfinite(texture.texture_features(image[None], None)).all(axis=None)


def test_a_shadow_is_below_zero_and_enhancement_above():
    image, mask = disc(centre=(32, 24), radii=(10, 10))
    shadow, bright = image.copy(), image.copy()
    shadow[36:, 22:43] = 40
    bright[36:, 22:43] = 200
    table = features((image, mask), (shadow, mask), (bright, mask))
    assert table.below_to_beside[1] < -0.2 < table.below_to_beside[0] < 0.2 < table.below_to_beside[2]


def test_cooccurrence_is_scikit_images():
    skimage = pytest.importorskip("skimage.feature")
    image = np.random.default_rng(0).integers(0, 256, (40, 40), np.uint8)
    row = texture.texture_features(image[None], np.ones((1, 40, 40))).iloc[0]
    levels = (image.astype(int) * 8 // 256).astype(np.uint8)
    counts = skimage.graycomatrix(levels, [1], [0, np.pi / 2], levels=8, symmetric=True).sum(3, keepdims=True)
    for name in ("contrast", "correlation"):
        expected = skimage.graycoprops(counts / counts.sum(), name).item()
        assert row[f"glcm_{name}"] == pytest.approx(expected, rel=1e-6, abs=1e-6)


def test_the_reference_ranks_what_the_features_separate():
    random, labels = np.random.default_rng(0), np.arange(60) % 3
    greys = 40 + 30 * labels + random.integers(20, size=60)
    table = features(*(disc(radii=(8 + 4 * i, 10), grey=int(grey)) for i, grey in zip(labels, greys)))
    logits = texture.fit_reference(table[:30], labels[:30], classes=4)(table[30:])
    assert logits.shape == (30, 4)
    assert (logits.argmax(1) == labels[30:]).mean() > 0.9
    assert (logits[:, 3] == -30).all()  # a class it never met


def test_an_outline_that_gives_the_class_away_is_named(data):
    crops = Crops.open(data / "finetune")
    masks = (crops.labels == 1)[:, None, None] * np.ones_like(crops.masks)  # only one class has an outline
    told = references.telling(replace(crops, masks=masks)).set_index("classes")["measures"]
    names = [crops.names[key][0] for key in crops.classes]
    assert "1.000" in told[f"{names[0]} / {names[1]}"] and "1.000" not in told[f"{names[0]} / {names[2]}"]


def test_real_images_have_references_of_described_signs_and_of_photographs(data):
    crops = replace(Crops.open(data / "finetune"), simulated=False)
    described, seen = references.signs_of_readers(crops), references.imagenet_features(crops)
    assert (described.filter(like="sign_echogenicity").sum(axis=1) == 1).all()
    assert seen.shape == (len(crops), 1280) and np.isfinite(seen).all(axis=None)
