"""The simulator: physics with closed forms, truth that fits the image, and the same frames on any machine."""

from dataclasses import replace
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pandas as pd
import pytest
import yaml

from thyroid_lib import LESION_TYPES, datasets, regions
from thyroid_lib.datasets import phantom
from thyroid_lib.phantoms import frame as phantoms
from thyroid_lib.phantoms import nodule, signs
from thyroid_lib.phantoms.scene import Scene
from thyroid_lib.phantoms.signs import SIGNS

SCANNER = phantoms.SCANNERS["A"]


def even_tissue() -> Scene:
    scene = Scene.empty((320, 400), 8.0)
    scene.echo, scene.excess = np.zeros((2, 320, 400), np.float32)
    return scene


@pytest.fixture(scope="module")
def envelope() -> np.ndarray:
    rng = np.random.default_rng(0)
    return np.stack([phantoms.envelope(even_tissue(), SCANNER, rng) for _ in range(6)])[:, 8:-8, 12:-12]


def test_speckle_is_fully_developed(envelope):
    # Rayleigh: mean / deviation = sqrt(pi / (4 - pi)) = 1.913; in decibels the deviation is 5.57
    # (Burckhardt 1978)
    assert envelope.mean() / envelope.std() == pytest.approx(1.913, rel=0.03)
    assert (20 * np.log10(envelope)).std() == pytest.approx(5.57, rel=0.03)
    assert (envelope**2).mean() == pytest.approx(1.0, rel=0.05)
    # and its brightness does not depend on depth
    quarters = [part.mean() for part in np.array_split((envelope**2).mean((0, 2)), 4)]
    assert max(quarters) / min(quarters) < 1.25


def width_of(rows: np.ndarray) -> float:
    """Shift in px at which the speckle's autocorrelation along the rows has fallen to one half."""
    rows = rows - rows.mean(-1, keepdims=True)
    spectrum = np.abs(np.fft.rfft(rows, axis=-1)) ** 2
    correlation = np.fft.irfft(spectrum, axis=-1).reshape(-1, rows.shape[-1]).mean(0)
    correlation /= correlation[0]
    first = int(np.argmax(correlation < 0.5))
    return first - 1 + (correlation[first - 1] - 0.5) / (correlation[first - 1] - correlation[first])


def test_the_beam_widens_with_depth_and_is_wider_than_the_pulse(envelope):
    shallow, deep = width_of(envelope[:, :60] ** 2), width_of(envelope[:, -60:] ** 2)
    # the intensity of a Gaussian field correlates as exp(-x^2 / (2 sigma^2)): half at sigma sqrt(2 ln 2)
    depths = np.array([38, 282]) / 8.0
    expected = SCANNER.lateral * 8 * np.hypot(1, depths / SCANNER.spread) * np.sqrt(2 * np.log(2))
    assert shallow == pytest.approx(expected[0], rel=0.12)
    assert deep == pytest.approx(expected[1], rel=0.12)
    assert width_of(np.swapaxes(envelope, 1, 2)[:, :, :120] ** 2) < 0.7 * shallow


def test_what_attenuates_casts_a_shadow_of_as_many_decibels():
    scene = even_tissue()
    scene.excess[100:132, 150:250] = 3.0  # dB/mm over 32 px at 8 px/mm: 12 dB
    below = np.mean([phantoms.envelope(scene, SCANNER, np.random.default_rng(s)) ** 2 for s in range(4)], 0)
    shadow, beside = below[180:300, 170:230].mean(), below[180:300, 20:120].mean()
    assert 10 * np.log10(beside / shadow) == pytest.approx(12, abs=0.7)


def test_grey_levels_follow_the_dynamic_range():
    dark, bright = even_tissue(), even_tissue()
    bright.echo += 12.4
    images = [phantoms.b_mode(s, SCANNER, np.random.default_rng(1)) for s in (dark, bright)]
    levels = [float(image[60:260].mean()) for image in images]
    assert levels[1] - levels[0] == pytest.approx(12.4 / SCANNER.dynamic_range * 255, rel=0.05)


def test_sign_frequencies_are_those_of_the_table():
    rng = np.random.default_rng(0)
    for sign, table in SIGNS.items():
        assert np.allclose(np.sum(list(table.values()), 0), 1), f"{sign} does not sum to one for every type"
    for column, key in enumerate(LESION_TYPES):
        drawn = signs._draw(column, rng, 3000)[0]
        assert set(phantoms.draw_signs(key, rng)) == {*drawn, "size_mm"}
        for sign, table in SIGNS.items():
            for value, frequencies in table.items():
                came = (drawn[sign] == value).mean()
                assert came == pytest.approx(frequencies[column], abs=0.035), (key, sign, value)


def test_the_table_keeps_to_the_studies_it_cites():
    table = yaml.safe_load(Path(__file__).with_name("published.yaml").read_text(encoding="utf-8"))
    for sign, value, lesion, published, tolerance in table:
        share = SIGNS[sign][value][list(LESION_TYPES).index(lesion)]
        assert share == pytest.approx(published, abs=tolerance), (sign, value)
    # Sillery 2010: between carcinoma and adenoma
    follicular = list(LESION_TYPES).index("follicular_neoplasm")
    hypoechoic = sum(SIGNS["echogenicity"][key][follicular] for key in ("hypoechoic", "markedly hypoechoic"))
    assert 0.50 < hypoechoic < 0.82 and 0.36 < SIGNS["halo"]["complete"][follicular] < 0.58


def test_the_sign_reader_is_bayes_rule():
    # two nodules that differ in one sign: the posterior odds move by that sign's likelihood ratio
    row = {f"sign_{sign}": next(iter(table)) for sign, table in SIGNS.items()} | {"nodule_size_mm": 15.0}
    other = row | {"sign_foci": "punctate"}
    first, second = signs.sign_reader(pd.DataFrame([row, other]))
    assert first.sum() == pytest.approx(1) and second.sum() == pytest.approx(1)
    ratio = np.array(SIGNS["foci"]["punctate"]) / np.array(SIGNS["foci"]["none"])
    odds = (second[2] / second[0]) / (first[2] / first[0])
    assert odds == pytest.approx(ratio[2] / ratio[0])


def test_the_ceiling_leaves_room_above_chance_and_below_perfection():
    clinic, again = (signs.ceiling("clinic", draws=12_000, seed=seed) for seed in (0, 1))
    assert 0.90 < clinic["macro_auroc"] < 0.97 and 0.70 < clinic["accuracy"] < 0.85
    assert again["macro_auroc"] == pytest.approx(clinic["macro_auroc"], abs=0.01)
    open_ = signs.ceiling("open", draws=12_000)
    assert open_["macro_auroc"] == pytest.approx(open_["auroc/malignant"])


def test_patients_and_frames_depend_on_seed_and_number_only():
    few, many = phantoms.patients("clinic", 7, seed=3), phantoms.patients("clinic", 30, seed=3)
    assert few == many[:7]
    assert phantoms.patients("clinic", 7, seed=4) != few
    first = phantoms.render(few[2], 0)
    phantoms.render(phantoms.patients("external", 1)[0], 0)
    again = phantoms.render(many[2], 0)
    assert np.array_equal(first.image, again.image) and np.array_equal(first.mask, again.mask)
    assert not np.array_equal(first.image, phantoms.render(few[2], 1).image)


@pytest.mark.parametrize("source", phantoms.SOURCES)
def test_every_source_has_its_mix_and_frames_that_fit_their_truth(source):
    people = phantoms.patients(source, 100)
    types = [person.lesion_type for person in people]
    for share, key in zip(phantoms.SOURCES[source]["mix"], LESION_TYPES):
        assert types.count(key) == pytest.approx(100 * share, abs=2)
    assert {person.label for person in people} == set(phantoms.SOURCES[source]["labels"])
    assert {person.scanner.name for person in people} == set(phantoms.SOURCES[source]["scanners"])
    assert {person.frames for person in people} == {1, 2, 3, 4}
    for person in people[:6]:
        frame = phantoms.render(person, 0)
        assert frame.image.shape == frame.mask.shape == tuple(person.scanner.frame)
        assert frame.image.dtype == np.uint8 and frame.mask.dtype == bool
        boxes = frame.sector, regions.largest_region(frame.image).box
        inside, found = np.zeros((2, *frame.mask.shape), bool)
        for mask, (x, y, width, height) in zip((inside, found), boxes):
            mask[y : y + height, x : x + width] = True
        assert frame.mask.any() and not (frame.mask & ~inside).any() and not (frame.mask & ~found).any()
        assert frame.image[~inside].max() == 255  # print stands outside the sector
        assert (found & inside).sum() > 0.85 * inside.sum() and (found & ~inside).sum() < 0.05 * inside.sum()


def test_the_nodule_is_as_large_and_as_tall_as_its_signs_say():
    everyone = phantoms.patients("clinic", 40)
    people = [p for p in everyone if p.signs["margin"] == "smooth" and p.signs["size_mm"] <= 25]
    assert len(people) >= 8
    for person in people:
        frame = phantoms.render(person, 0)
        down, across = (np.ptp(places) + 1 for places in np.nonzero(frame.mask))
        assert (down > across) == (person.signs["shape"] == "taller than wide")
        assert 0.12 < max(across, down) / frame.sector[2] < 0.62


PLAIN = {"composition": "solid", "echogenicity": "isoechoic", "shape": "wider than tall", "margin": "smooth",
         "halo": "none", "foci": "none", "echotexture": "homogeneous", "size_mm": 16.0}  # fmt: skip


def test_signs_can_be_seen_in_the_image():
    person = phantoms.patients("clinic", 1)[0]

    def level(**chosen) -> float:  # mean grey level inside a nodule of plain signs but for these
        frame = phantoms.render(replace(person, signs=PLAIN | chosen), 0)
        return float(frame.image[frame.mask].mean())

    order = ["markedly hypoechoic", "hypoechoic", "isoechoic", "hyperechoic"]
    levels = [level(echogenicity=echo) for echo in order]
    assert min(np.diff(levels)) > 10
    assert level(composition="cystic") < levels[2] - 30
    assert level(echogenicity=order[0], foci="punctate") > levels[0] + 3


def test_coarse_calcium_casts_a_shadow_and_points_do_not():
    def below(foci):
        scene = even_tissue()
        nodule.draw(scene, (25.0, 15.0), 6.0, 5.0, PLAIN | {"foci": foci}, np.random.default_rng(2))
        return scene.excess.sum(0).max() / scene.scale

    assert min(below("coarse with shadow"), below("rim with shadow")) > below("none") + 6
    assert below("punctate") == pytest.approx(below("none"))


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("THYROID_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_the_reader_writes_frames_once_and_the_same_with_any_number_of_workers(cache, monkeypatch):
    table = datasets.read("phantom:clinic?patients=4&seed=2")
    assert table.attrs["classes"] == list(LESION_TYPES) and table.attrs["simulated"] is True
    people = phantoms.patients("clinic", 4, seed=2)
    assert len(table) == sum(person.frames for person in people)
    row, person = table.iloc[-1], people[-1]
    frame = phantoms.render(person, person.frames - 1)
    assert np.array_equal(datasets.load_frame(row), frame.image)
    assert np.array_equal(datasets.load_mask(row, frame.image.shape), frame.mask)
    truth = [person.label, person.name, person.signs["size_mm"], person.signs["margin"]]
    assert row[["label", "patient", "nodule_size_mm", "sign_margin"]].tolist() == truth
    before = {path: path.stat().st_mtime_ns for path in cache.rglob("*.png")}
    assert datasets.read("phantom:clinic?patients=4&seed=2").equals(table)
    assert before == {path: path.stat().st_mtime_ns for path in cache.rglob("*.png")}
    assert signs.sign_reader(table).shape == (len(table), 4)
    monkeypatch.setattr(phantom, "WORTH_WORKERS", 1)
    monkeypatch.setenv("THYROID_CACHE", str(cache / "two"))
    again = phantom.read("clinic", patients=4, seed=2, jobs=2)
    for one, two in zip([*table["path"], *table["mask"]], [*again["path"], *again["mask"]], strict=True):
        assert one != two and Path(one).read_bytes() == Path(two).read_bytes()


def test_a_broken_off_simulation_leaves_nothing_behind(cache, monkeypatch):
    with monkeypatch.context() as broken, pytest.raises(KeyboardInterrupt):
        broken.setattr(phantoms, "render", Mock(side_effect=KeyboardInterrupt))
        phantom.read("open", patients=2)
    assert not list((cache / "phantoms").iterdir())
    table = phantom.read("open", patients=2)
    assert set(table["label"]) <= {"benign", "malignant"}
    assert all(datasets.load_frame(row).any() for row in table.itertuples())
