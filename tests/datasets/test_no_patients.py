"""No tracked file shows or holds a picture of a real patient; and the search that says so can find one."""

import base64
import hashlib
import io
import json
import subprocess

import cv2
import known_images
import matplotlib.pyplot as plt
import numpy as np
import pytest
from known_images import Known
from small_images import encoded

from thyroid_lib import datasets, regions
from thyroid_lib.common.files import PROJECT
from thyroid_lib.phantoms import frame as phantoms
from thyroid_lib.plots import data as data_plots
from thyroid_lib.plots.style import use_style

CLOSED = {"tests/data/known_images.npz"}  # tracked, neither text nor pictures: the hashes themselves


@pytest.fixture(scope="module")
def known():
    return Known.load()


@pytest.fixture(scope="module")
def patients():
    """Frames of twelve simulated patients, uint8 (H, W), standing for real ones."""
    people = phantoms.patients("clinic", 12, seed=77)
    return [phantoms.render(person).image for person in people]


def tracked() -> list[str]:
    done = subprocess.run(["git", "ls-files", "-z"], cwd=PROJECT, capture_output=True, text=True)
    if done.returncode:
        pytest.skip("not a git checkout: nothing is tracked")
    return [name for name in done.stdout.split("\0") if name and (PROJECT / name).is_file()]


def test_no_tracked_file_holds_a_known_picture_or_what_cannot_be_looked_into(known):
    names = tracked()
    assert len(names) > 100
    found = {
        name: known_images.search((PROJECT / name).read_bytes(), known)
        for name in names
        if name not in CLOSED
    }
    assert not any(found.values()), {name: lines for name, lines in found.items() if lines}


def test_the_hashes_are_hashes_and_nothing_else():
    with np.load(known_images.FILE) as stored:
        assert set(stored.files) == {"phash", "sha256"}
        assert stored["phash"].shape[1:] == (2, 32) and stored["sha256"].shape[1:] == (8,)
        assert len(stored["phash"]) > 4000, "the frames of three sets"


def figure(frames, outlined=False) -> bytes:
    """A figure of crops as notebook 01 draws it, PNG."""
    use_style()
    crops = np.stack([regions.extract(frame, 96)[0] for frame in frames])
    ellipse = cv2.ellipse(np.zeros((96, 96), np.uint8), (48, 48), (18, 12), 0, 0, 360, 1, -1)
    masks = np.stack([ellipse] * len(crops)) if outlined else None
    fig = data_plots.gallery(crops, masks, ["100% inside"] * len(crops), columns=4)
    buffer = io.BytesIO()
    fig.savefig(buffer, format="png")
    plt.close(fig)
    return buffer.getvalue()


def small(frame, share=0.5):
    return cv2.resize(frame, None, fx=share, fy=share, interpolation=cv2.INTER_AREA)


WAYS = {
    "PNG": lambda frame: encoded(frame, "PNG"),
    "half the size": lambda frame: encoded(small(frame), "PNG"),
    "a third of the size, JPEG 50": lambda frame: encoded(small(frame, 0.34), "JPEG", quality=50),
    "WebP in colour": lambda frame: encoded(cv2.cvtColor(frame, cv2.COLOR_GRAY2RGB), "WEBP", quality=60),
    "GIF": lambda frame: encoded(frame, "GIF"),
    "its crop": lambda frame: encoded(regions.extract(frame, 128)[0], "PNG"),
    "brighter": lambda frame: encoded(cv2.convertScaleAbs(frame, alpha=1.25), "PNG"),
    "a figure of crops": lambda frame: figure([frame] * 3),
    "a figure with outlines": lambda frame: figure([frame] * 3, outlined=True),
}


@pytest.mark.parametrize("way", WAYS)
def test_a_planted_picture_is_found_whatever_became_of_it_and_others_are_not(way, known, patients):
    planted, others = patients[:3], patients[3:9]
    watch = known.with_pictures(*planted)
    assert all(known_images.search(WAYS[way](frame), watch) for frame in planted)
    for frame in others:
        assert not known_images.search(WAYS[way](frame), watch)


def test_a_planted_picture_is_found_inside_reports_notebooks_and_drawings(known, patients):
    watch = known.with_pictures(patients[0])
    for frame, hit in ((patients[0], True), (patients[1], False)):
        text = base64.b64encode(figure([frame] * 2)).decode()
        webp = base64.b64encode(encoded(small(frame), "WEBP", lossless=True)).decode()
        wrapped = base64.encodebytes(encoded(small(frame))).decode()  # 76 letters a line, as in old notebooks
        for page in (
            f'<figure><img alt="x" src="data:image/png;base64,{text}"></figure>',
            f'<svg><image href="data:image/webp;base64,{webp}"/></svg>',
            json.dumps({"cells": [{"outputs": [{"data": {"image/png": wrapped}}]}]}),
        ):
            assert bool(known_images.search(page.encode(), watch)) == hit


def test_the_same_bytes_are_found_even_where_nothing_can_be_seen(known):
    mask = encoded(np.zeros((64, 64), np.uint8), "PNG")
    watch = Known(known.phash, known.sha256 | {hashlib.sha256(mask).hexdigest()[:16]})
    assert known_images.search(mask, watch) == ["the very bytes of a known file"]
    page = f"<img src='data:image/png;base64,{base64.b64encode(mask).decode()}'>".encode()
    assert known_images.search(page, watch) == ([] if len(mask) < 225 else ["the very bytes of a known file"])


def test_what_cannot_be_looked_into_is_refused(known):
    buffer = io.BytesIO()
    np.save(buffer, np.zeros((40, 40), np.uint8))
    assert "neither text nor a picture" in known_images.search(buffer.getvalue(), known)[0]
    page = b"<a href='data:;base64," + base64.b64encode(buffer.getvalue()) + b"'>"
    assert "embeds data" in known_images.search(page, known)[0]


def test_real_frames_and_figures_of_them_are_found(real_data, known, tmp_path):
    rng = np.random.default_rng(3)
    found = [path for name in ("ddti", "busi") for path in sorted((real_data / name).rglob("*"))]
    files = [path for path in found if path.suffix in (".jpg", ".png") and "_mask" not in path.name]
    for path in [files[k] for k in rng.choice(len(files), 12, replace=False)]:
        assert known_images.search(path.read_bytes(), known) == ["the very bytes of a known file"]
        frame = datasets.load_frame(path)
        for way in ("half the size", "a third of the size, JPEG 50", "its crop", "a figure of crops"):
            assert known_images.search(WAYS[way](frame), known), f"{path.name}: {way}"
