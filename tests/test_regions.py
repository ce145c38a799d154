"""Largest connected region: against SciPy's labelling, on odd images, and on real frames where there are any."""

import json
from dataclasses import replace

import cv2
import numpy as np
import pytest
from scipy import ndimage

from thyroid_lib import datasets, frames, regions
from thyroid_lib.regions import Recipe

PLAIN = Recipe(median=1, threshold=10, closing=0, opening=0, margin=0, min_area=0)


def speckled(height: int, width: int, seed: int = 0, mean: float = 90) -> np.ndarray:
    """Fully developed speckle, uint8: what tissue looks like."""
    rng = np.random.default_rng(seed)
    return np.clip(mean * rng.rayleigh(0.8, (height, width)), 0, 255).astype(np.uint8)


def scanner_frame(box=(100, 20, 340, 280), shape=(360, 560)) -> np.ndarray:
    """A sector on black with ruler, grey bar, settings and a finding printed below it."""
    frame = np.zeros(shape, np.uint8)
    x, y, width, height = box
    frame[y : y + height, x : x + width] = speckled(height, width)
    frame[150:250, 8:16] = np.linspace(255, 20, 100)[:, None]
    frame[y : y + height : 30, x - 9 : x - 6] = 255
    cv2.putText(frame, "12L6 9.0", (480, 30), cv2.FONT_HERSHEY_PLAIN, 0.9, 255, 1)
    cv2.putText(frame, "TIRADS 4C (4C)", (x + 40, y + height + 28), cv2.FONT_HERSHEY_PLAIN, 1.1, 255, 1)
    return frame


def test_regions_come_largest_first_with_their_boxes_areas_and_pixels():
    image = np.zeros((200, 300), np.uint8)
    order = [(100, 50, 150, 100), (20, 120, 30, 60), (10, 20, 40, 30)]  # x, y, width, height
    for x, y, width, height in order[::-1]:
        image[y : y + height, x : x + width] = 120
    found = regions.connected_regions(image, PLAIN)
    assert [(region.box, region.area) for region in found] == [(box, box[2] * box[3]) for box in order]
    for region, (x, y, width, height) in zip(found, order):
        expected = np.zeros(image.shape, bool)
        expected[y : y + height, x : x + width] = True
        assert np.array_equal(region.mask, expected)
        assert set(map(tuple, region.coordinates)) == {(c, r) for r, c in np.argwhere(expected)}
    assert regions.largest_region(image, PLAIN).box == order[0]


@pytest.mark.parametrize("threshold", [1, 6, 40, 200])
def test_a_pixel_counts_from_one_grey_level_above_the_threshold(threshold):
    image = np.zeros((60, 80), np.uint8)
    image[10:30, 10:30], image[30:50, 40:70] = threshold, threshold + 1
    found = regions.connected_regions(image, replace(PLAIN, threshold=threshold))
    assert [region.box for region in found] == [(40, 30, 30, 20)]


@pytest.mark.parametrize("connectivity", [4, 8])
def test_regions_are_those_of_scipy(connectivity):
    image = (ndimage.gaussian_filter(np.random.default_rng(0).random((180, 240)), 4) > 0.503).astype(np.uint8)
    image = np.pad(200 * image[4:-4, 4:-4], 4)
    image[:40, :50] = 0
    image[5:15, 5:20] = image[15:30, 20:40] = 200  # these touch at a corner
    labels, count = ndimage.label(image, ndimage.generate_binary_structure(2, connectivity // 4))
    slices, areas = ndimage.find_objects(labels), ndimage.sum_labels(image > 0, labels, range(1, count + 1))
    boxes = [(x.start, y.start, x.stop - x.start, y.stop - y.start) for y, x in slices]
    found = regions.connected_regions(image, replace(PLAIN, connectivity=connectivity))
    assert sorted((region.area, region.box) for region in found) == sorted(zip(areas, boxes))
    assert all(np.count_nonzero(region.mask) == region.area for region in found)
    assert (5, 5, 15, 10) in boxes if connectivity == 4 else (5, 5, 35, 25) in boxes


def test_the_sector_is_found_and_what_is_printed_around_it_stays_behind():
    frame = scanner_frame((100, 20, 340, 280))
    region, margin = regions.largest_region(frame), Recipe().margin
    x, y, width, height = region.box
    assert np.array_equal(regions.crop(frame, region), frame[y : y + height, x : x + width])
    found = x + margin, y + margin, x + width - margin, y + height - margin
    assert found == pytest.approx((100, 20, 440, 300), abs=2)


def test_a_black_line_between_two_panels_and_a_dark_cyst_do_not_cut_the_sector():
    line, cyst = scanner_frame(), scanner_frame()
    line[20:300, 268:272] = 0
    cv2.ellipse(cyst, (270, 150), (90, 110), 0, 0, 360, 0, -1)
    for broken in (line, cyst):
        x, _, width, _ = regions.largest_region(broken).box
        assert x <= 100 and x + width >= 440


def test_an_inverted_frame_gives_the_same_crop():
    frame = scanner_frame()
    upright, region = regions.extract(frame, 96)
    turned, turned_region = regions.extract(255 - frame, 96)
    assert turned_region.inverted and not region.inverted
    assert turned_region.box == region.box
    assert np.abs(upright.astype(int) - turned.astype(int)).max() <= 1


def test_a_sector_on_a_white_page_is_not_inverted():
    page = np.full((400, 600), 255, np.uint8)
    page[60:320, 120:460] = speckled(260, 340, mean=60)
    crop, region = regions.extract(page, 64)
    assert not region.inverted
    assert abs(region.box[0] - 117) <= 3 and abs(region.box[2] - 346) <= 6
    assert crop.mean() < 128


def test_an_already_cropped_image_is_kept_whole():
    assert regions.largest_region(speckled(240, 320)).box == (0, 0, 320, 240)


@pytest.mark.parametrize("level", [0, 7, 255])
def test_a_frame_without_a_region_is_refused(level):
    with pytest.raises(regions.NoRegion, match=r"Expected a bright sector.*Recipe\.threshold"):
        regions.largest_region(np.full((200, 300), level, np.uint8))
    assert regions.connected_regions(np.full((200, 300), level, np.uint8)) == []


def test_depth_and_colour_of_the_file_do_not_matter():
    frame = scanner_frame()
    expected, region = regions.extract(frame, 64)
    colour = np.repeat(frame[..., None], 3, 2)
    deep = frame.astype(np.uint16) * 257  # fills all 16 bits
    for image in (colour, frame[..., None], np.dstack([colour, np.full_like(frame, 255)]), deep):
        crop, found = regions.extract(image, 64)
        assert found.box == region.box and np.array_equal(crop, expected)
    for wrong in (np.zeros((4, 4, 7), np.uint8), np.zeros((0, 5), np.uint8), np.zeros(9)):
        with pytest.raises(frames.FrameError):
            regions.as_gray(wrong)


@pytest.mark.parametrize("scale", [0.5, 2.0, 3.0])
def test_the_recipe_scales_with_the_frame(scale):
    frame = scanner_frame()
    box = np.array(regions.largest_region(frame).box)
    size = (round(frame.shape[1] * scale), round(frame.shape[0] * scale))
    larger = cv2.resize(frame, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_NEAREST)
    region = regions.largest_region(larger)
    assert np.abs(np.array(region.box) / scale - box).max() <= 6
    assert region.mask.shape == larger.shape


def test_letterbox_keeps_proportions_and_centres():
    image = np.full((50, 200), 90, np.uint8)
    square = regions.letterbox(image, 100)
    assert square.shape == (100, 100) and square.dtype == np.uint8
    assert regions.letterbox_box(image.shape, 100) == (0, 37, 100, 25)
    assert (square[37:62] == 90).all() and (square[:37] == 0).all() and (square[62:] == 0).all()
    tall = regions.letterbox(np.full((7, 3), 200, np.uint8), 70)
    assert (tall[:, 20:50] == 200).all() and (tall[:, :20] == 0).all() and (tall[:, 50:] == 0).all()


def test_letterbox_of_a_mask_stays_a_mask_and_keeps_its_share():
    mask = cv2.circle(np.zeros((300, 400), np.uint8), (200, 150), 80, 1, -1)
    small = regions.letterbox(mask.astype(bool), 100)
    assert set(np.unique(small)) == {0, 1}
    assert small.sum() == pytest.approx(mask.sum() / 16, rel=0.02)


IMPOSSIBLE = {"median": 4, "connectivity": 6, "threshold": 0, "opening": -1, "min_area": -0.1}


@pytest.mark.parametrize("name, value", IMPOSSIBLE.items())
def test_an_impossible_recipe_is_refused(name, value):
    with pytest.raises(ValueError, match=rf"Recipe\.{name}: expected .* came"):
        Recipe(**{name: value})


def test_lines_of_print_are_counted_and_tissue_is_not():
    frame = scanner_frame()
    boxes = (0, 0, 560, 360), (100, 20, 340, 280), (100, 302, 340, 58)
    whole, crop, below = regions.printed_lines(frame, *boxes)
    assert (crop, below) == (0, 1) and whole >= 2


# --- real frames -----------------------------------------------------------------------------------------------


def test_ddti_crops_hold_the_nodule_and_no_printed_finding(real_data):
    held, survived = [], []
    for row in datasets.read(f"ddti:{real_data / 'ddti'}").to_dict("records"):
        gray = datasets.load_frame(row)
        x, y, width, height = regions.largest_region(gray).box
        if row["mask"]:
            corners = [np.asarray(polygon, float) for polygon in json.loads(row["mask"])]
            sides = [np.linspace(polygon, np.roll(polygon, -1, 0), 20, endpoint=False) for polygon in corners]
            points = np.concatenate([side.reshape(-1, 2) for side in sides])
            inside = (points >= (x - 1, y - 1)).all(1) & (points <= (x + width, y + height)).all(1)
            held.append(inside.mean() >= 0.95)
        if row["text"]:
            lower = (x, y + height // 2, width, height - height // 2)
            below = (x, y + height // 2, width, gray.shape[0] - y - height // 2)
            in_crop, in_frame = regions.printed_lines(gray, lower, below)
            assert in_frame >= 1, f"the text of {row['image']} is not seen even in the whole frame"
            survived.append(in_crop > 0)
    assert len(held) > 300 and np.mean(held) >= 0.99
    assert len(survived) > 50 and np.mean(survived) <= 0.01


def test_busi_crops_lose_nothing_that_matters(real_data):
    whole = []
    for row in datasets.read(f"busi:{real_data / 'busi' / 'Dataset_BUSI_with_GT'}").to_dict("records"):
        gray = datasets.load_frame(row)
        mask = datasets.load_mask(row, gray.shape)
        if mask is not None and mask.any():
            x, y, width, height = regions.largest_region(gray).box
            whole.append(mask[y : y + height, x : x + width].sum() == mask.sum())
    assert len(whole) > 500 and np.mean(whole) >= 0.99
