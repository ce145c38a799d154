"""The manifest: every problem named, same-looking frames kept together, splits that cannot leak."""

import hashlib
from collections import Counter
from itertools import combinations
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from small_images import encoded, speckle

from thyroid_lib import datasets, frames, manifest
from thyroid_lib.datasets import checks, contract, duplicates

CLASSES = ["benign", "malignant"]


@pytest.fixture
def collection(tmp_path):
    """40 frames of 20 patients in two classes, on disk, as a manifest."""
    found = contract.Collection("test", tmp_path)
    for number in range(40):
        Image.fromarray(speckle(number)).save(tmp_path / f"frame{number}.png")
        found.frame(f"frame{number}.png", CLASSES[number // 2 % 2], f"p{number // 2}")
    return found.manifest("test", contract.TWO)


def add(data, name, pixels, **values):
    """Adds a frame, written beside the first, to the manifest."""
    path = Path(data["path"][0]).with_name(name)
    Image.fromarray(pixels).save(path)
    own = {"image": name, "path": str(path), "group": values["patient"]}
    data.loc[len(data)] = {**data.loc[0], **own, **values}


def test_a_sound_collection_passes_whole_with_any_number_of_processes_and_says_so(collection, monkeypatch):
    clean, problems = manifest.check(collection, jobs=1)
    assert len(clean) == 40 and not len(problems)
    monkeypatch.setattr(checks, "WORTH_WORKERS", 1)
    pd.testing.assert_frame_equal(clean, manifest.check(collection, jobs=2)[0])
    assert set(clean.attrs["flow"]["images"]) == {40} and set(clean.attrs["flow"]["left_out"]) == {0}
    assert clean["sha256"].str.len().eq(64).all() and clean["phash"].str.len().eq(256).all()
    assert manifest.ready(clean, 5) == []
    collection.attrs["excluded"] = contract.Listing([("a.txt", "no image")], columns=["image", "reason"])
    clean, problems = manifest.check(collection, jobs=1)
    assert clean.attrs["flow"]["images"].iloc[0] == 41 and problems.iloc[0]["image"] == "a.txt"


def test_every_problem_is_listed_at_once_with_row_and_column_and_no_path_of_this_machine(
    collection, tmp_path
):
    bad = collection.assign(age="40", sex="F", box="1 2 3 4")
    bad["age"] = pd.Series([40.0] * 39 + [430.0], dtype=object)
    bad.loc[3, "age"], bad.loc[4, "sex"], bad.loc[5, "box"] = "old", "female?", "1,2,3,4"
    bad.loc[6, "patient"], bad.loc[7, "label"], bad.loc[8, "image"] = "", "mystery", "../elsewhere/frame8.png"
    bad.loc[[22, 23], "image"] = [f"{tmp_path}/frame22.png", "C:\\clinic\\frame23.png"]
    bad.loc[10, "image"], bad.loc[[20, 21], "label"] = bad.loc[9, "image"], ""
    clean, problems = manifest.check(bad, jobs=1)
    found = {(row.row, row.column): (row.problem, row.action) for row in problems.itertuples()}
    assert found[39, "age"] == ("not an age in years from 0 to 120; came 430.0", checks.BLANKED)
    assert found[3, "age"][1] == found[4, "sex"][1] == found[5, "box"][1] == checks.BLANKED
    assert found[6, "patient"] == ("empty; a value is expected; came ''", manifest.LEFT_OUT)
    assert found[7, "label"] == ("not one of benign, malignant; came 'mystery'", manifest.LEFT_OUT)
    assert found[8, "image"][1] == found[10, "image"][1] == manifest.LEFT_OUT
    assert (
        found[20, "label"] == found[21, "label"] == ("unlabelled: not used for training", manifest.LEFT_OUT)
    )
    assert {"…/frame22.png", "…/frame23.png"} < set(problems["image"])
    assert str(tmp_path) not in problems.to_csv() and "path" not in datasets.public(clean)
    assert len(clean) == 32 and clean["age"].isna().sum() == 2 and clean["age"].max() == 40


def test_a_manifest_without_a_needed_column_is_refused_with_all_that_is_missing(collection):
    with pytest.raises(manifest.ManifestError, match="missing: label, patient"):
        manifest.check(collection.drop(columns=["label", "patient"]))


def test_a_mask_that_cannot_be_used_is_blanked_and_its_frame_kept(collection, tmp_path):
    collection["mask"] = ""
    Image.fromarray(np.ones((10, 10), np.uint8)).save(tmp_path / "small.png")
    collection.loc[0, "mask"] = str(tmp_path / "small.png")
    collection.loc[1, "mask"] = str(tmp_path / "missing.png")
    collection.loc[2, "mask"] = "[[[10, 10], [60, 10], [60, 60]]]"
    clean, problems = manifest.check(collection, jobs=1)
    assert len(clean) == 40 and list(clean["mask"][:3].map(bool)) == [False, False, True]
    assert problems["column"].tolist() == ["mask", "mask"] and "10 x 10 px came" in problems["problem"][0]


CHANGES = {
    "same.bmp": lambda g: g,
    "enlarged.png": lambda g: np.asarray(Image.fromarray(g).resize((240, 180), Image.Resampling.LANCZOS)),
    "recompressed.png": lambda g: frames.read(encoded(g, "JPEG", quality=60)).gray,
    "brighter.png": lambda g: np.clip(g.astype(float) * 1.3 + 6, 0, 255).astype(np.uint8),
    "with a caliper.png": lambda g: cv2.line(g.copy(), (40, 60), (110, 60), 255, 1),
    "with a black margin.png": lambda g: np.pad(g, ((20, 30), (50, 10))),
}


def test_a_copy_joins_its_patients_whatever_became_of_it(collection):
    for number, (name, change) in enumerate(CHANGES.items()):
        add(collection, name, change(speckle(4 * number)), label=CLASSES[0], patient=f"stranger {number}")
    clean, problems = manifest.check(collection, jobs=1)
    pairs, group = clean.attrs["duplicates"], clean.set_index("image")["group"]
    copies = [(f"frame{4 * number}.png", name, name == "same.bmp") for number, name in enumerate(CHANGES)]
    assert sorted(pairs[["image_a", "image_b", "identical"]].itertuples(index=False, name=None)) == sorted(
        copies
    )
    assert not pairs["same_patient"].any()
    assert problems["action"].tolist() == [manifest.NOTE] * 2 * len(CHANGES)
    for number, name in enumerate(CHANGES):
        assert group[[f"frame{4 * number}.png", f"frame{4 * number + 1}.png", name]].nunique() == 1, name


def test_a_group_column_that_cuts_a_patient_is_mended(collection):
    clean, _ = manifest.check(collection.assign(group=[f"g{n}" for n in range(40)]), jobs=1)
    assert clean.groupby("patient")["group"].nunique().eq(1).all() and clean["group"].nunique() == 20


def test_groups_that_contradict_themselves_are_set_aside_whole(collection):
    for name, seed in (("copy.png", 0), ("other.png", 99)):
        add(collection, name, speckle(seed), label="malignant", patient="stranger")
    clean, problems = manifest.check(collection, jobs=1)
    aside = problems[problems["action"] == manifest.LEFT_OUT]
    assert set(aside["image"]) == {"frame0.png", "frame1.png", "copy.png", "other.png"}
    assert aside["problem"].str.contains("contradicting labels (benign, malignant)", regex=False).all()
    assert len(clean) == 38


def test_one_person_may_have_two_types_where_nodules_are_told_apart_but_not_on_the_same_frame(collection):
    changed = collection.assign(label=["benign", "malignant", *collection["label"][2:]])
    assert len(manifest.check(changed, jobs=1)[0]) == 38
    changed["nodule"] = ["left", "right"] + [""] * 38
    clean, _ = manifest.check(changed, jobs=1)
    assert len(clean) == 40 and clean["group"].nunique() == 20
    collection["nodule"] = [str(n) for n in range(40)]
    add(collection, "again.png", speckle(0), label="malignant", patient="p0", nodule="other")
    clean, problems = manifest.check(collection, jobs=1)
    assert len(clean) == 38 and "contradicting" in " ".join(problems["problem"])


def test_split_depends_on_the_seed_and_not_on_the_order_of_the_rows(collection):
    one = manifest.split(collection, seed=1)
    assert one.groupby(["fold", "label"]).size().tolist() == [4] * 10
    shuffled = manifest.split(collection.sample(frac=1, random_state=0), seed=1)
    assert one.set_index("image")["fold"].equals(shuffled.set_index("image")["fold"].loc[one["image"]])
    assert manifest.split_hash(one) == manifest.split_hash(shuffled)
    assert manifest.split_hash(one) != manifest.split_hash(manifest.split(collection, seed=2))
    lines = sorted(f"{r.image}\t{r.label}\t{r.group}\t{r.fold}" for r in one.itertuples())
    text = "\n".join(["image", "label", "group", "fold", *lines])
    assert manifest.split_hash(one) == hashlib.sha256(text.encode()).hexdigest()


def test_what_cannot_be_split_or_parted_is_refused_with_the_reason(collection):
    with pytest.raises(manifest.ManifestError, match="class benign: 10 independent groups"):
        manifest.split(collection, folds=11)
    with pytest.raises(manifest.ManifestError, match="no label"):
        manifest.split(collection.assign(label=[""] + list(collection["label"][1:])))
    with pytest.raises(manifest.ManifestError, match="no column fold"):
        manifest.partition(collection, 0)
    with pytest.raises(manifest.ManifestError, match="7 came"):
        manifest.partition(manifest.split(collection), 7)
    manifest.assert_disjoint([0, 0, 1], ["a", "a", "b"])
    with pytest.raises(AssertionError, match="'a'"):
        manifest.assert_disjoint([0, 1, 1], ["a", "a", "b"])


def frames_of(patients):
    """A manifest of what each patient has: {"p1": {"benign": 3}} is one patient with three benign frames."""
    rows = [(patient, label) for patient, counts in patients.items() for label in Counter(counts).elements()]
    data = pd.DataFrame(rows, columns=["group", "label"])
    return data.assign(image=data.index.astype(str))


def test_patients_with_two_classes_still_give_every_class_to_every_fold():
    data = frames_of({"a": {"benign": 3, "malignant": 1}, "b": {"benign": 2}, "c": {"malignant": 10}})
    for seed in range(12):
        done = manifest.split(data, folds=2, seed=seed)  # only a against b and c does it
        assert done.groupby("fold")["group"].agg(set).tolist() in ([{"a"}, {"b", "c"}], [{"b", "c"}, {"a"}])


def test_split_refuses_what_no_cut_between_patients_can_give():
    pairs = {"a": ("x", "y"), "b": ("x", "z"), "c": ("y", "z")}  # of two folds, one has a patient alone
    data = frames_of({patient: dict.fromkeys(labels, 4) for patient, labels in pairs.items()})
    with pytest.raises(manifest.ManifestError, match="No split into 2 folds puts every class into every"):
        manifest.split(data, folds=2)


@settings(max_examples=40, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 9), min_size=12, max_size=40),
    classes=st.integers(2, 4),
    folds=st.integers(2, 3),
    seed=st.integers(0, 99),
)
def test_no_split_or_partition_ever_cuts_a_group(sizes, classes, folds, seed):
    data = frames_of({f"g{g}": {f"c{g % classes}": size} for g, size in enumerate(sizes)})
    done = manifest.split(data, folds, seed)
    assert done.groupby("group")["fold"].nunique().eq(1).all()
    for fold in (None, *range(folds)):
        part = manifest.partition(done, fold, seed=seed)
        assert part.groupby(done["group"]).nunique().eq(1).all()
        assert {"train", "validation"} <= set(part)
        assert part.eq("test").equals(done["fold"].eq(fold).rename("part"))


@pytest.mark.parametrize("validation", [0.1, 0.15, 0.3, 0.5])
@pytest.mark.parametrize("size", [1, 3])
def test_validation_takes_the_stated_share_of_each_class_to_half_a_patient(validation, size):
    counts = {"x": 40, "y": 100}
    data = frames_of({f"{key}{n}": {key: size} for key, count in counts.items() for n in range(count)})
    taken = data[manifest.partition(data, None, validation=validation, seed=5) == "validation"]
    for label, count in counts.items():
        assert abs(taken.loc[taken["label"] == label, "group"].nunique() - validation * count) <= 0.5


RARE = [  # patients with the rare class, besides those with the common one alone
    {"r": {"rare": 1}},
    {"r": {"rare": 1}, "s": {"rare": 1}},
    {"r": {"rare": 1}, "both": {"rare": 1, "common": 1}},
]


@pytest.mark.parametrize("validation", [0.15, 0.5, 0.9])
@pytest.mark.parametrize("rare", RARE)
def test_validation_never_takes_the_last_patient_of_a_class(validation, rare):
    data = frames_of(rare | {f"c{n}": {"common": 1} for n in range(4)})
    for seed in range(12):
        part = manifest.partition(data, None, validation=validation, seed=seed)
        assert set(data["label"][part == "train"]) == {"rare", "common"}
        assert data["label"][part == "train"].eq("rare").sum() == 1
        assert data["label"][part == "validation"].eq("rare").sum() == len(rare) - 1


def test_overlap_finds_what_two_collections_share(collection):
    clean, _ = manifest.check(collection, jobs=1)
    other = clean.iloc[[5, 7]].assign(image=["x.png", "y.png"])
    found = manifest.overlap(clean, other)
    assert found[["image_a", "image_b"]].values.tolist() == [["frame5.png", "x.png"], ["frame7.png", "y.png"]]
    assert not len(manifest.overlap(clean.iloc[:5], other))


def test_pairs_agree_with_counting_bits_one_by_one_whatever_the_block_size(monkeypatch):
    random = np.random.default_rng(0)
    base = random.integers(0, 2, (30, 1024))
    base[20:] = base[:10] ^ (random.random((10, 1024)) < 0.1)
    words = [np.packbits(row).tobytes().hex() for row in base]
    bits = {(i, j): int((base[i] != base[j]).sum()) for i, j in combinations(range(30), 2)}
    expected = [(i, j, count) for (i, j), count in bits.items() if count <= duplicates.NEAR]
    assert len(expected) == 10
    for block in (duplicates.BLOCK, 120):
        monkeypatch.setattr(duplicates, "BLOCK", block)
        found = duplicates.pairs([str(i) for i in range(30)], words)
        assert list(found[["a", "b", "bits"]].itertuples(index=False, name=None)) == expected


def test_phantom_patients_are_not_taken_for_one_another(tmp_path, monkeypatch):
    monkeypatch.setenv("THYROID_CACHE", str(tmp_path))
    clean, problems = manifest.check(datasets.read("phantom:external?patients=40&seed=11"), jobs=1)
    assert clean["group"].nunique() == clean["patient"].nunique() == 40
    assert not len(problems[problems["action"] == manifest.LEFT_OUT])


@pytest.mark.slow
def test_ddti_known_copies_are_found_and_nothing_else(real_data):
    notes = pd.read_csv(real_data / "ddti_notes.csv", dtype=str, keep_default_na=False)
    data = datasets.read(f"ddti:{real_data / 'ddti'}")
    data["group"] = data["patient"]  # as if the notes were not there
    data["label"] = data.attrs["classes"][0]  # as if all were labelled, and alike
    clean, _ = manifest.check(data)
    assert len(clean) == len(data), "every frame is read, none is taken for a coloured one"
    known = notes.set_index("image")["group"].loc[clean["image"]]
    assert clean.groupby(known.to_numpy())["group"].nunique().eq(1).all()
    assert clean["group"].nunique() == known.nunique()
    pairs = clean.attrs["duplicates"]
    copies = notes[notes["exact_dup_of"] != ""]
    identical = {frozenset(pair) for pair in pairs.loc[pairs["identical"], ["image_a", "image_b"]].to_numpy()}
    assert {frozenset((r.image, f"{r.exact_dup_of}.jpg")) for r in copies.itertuples()} <= identical


@pytest.mark.slow
def test_busi_near_duplicate_list_is_found_again_from_the_pixels(real_data):
    data = datasets.read(f"busi:{real_data / 'busi'}")
    listed = data["group"].copy()
    data["group"] = data["patient"]
    clean, _ = manifest.check(data)
    listed = listed[data["image"].isin(clean["image"])].to_numpy()
    several = pd.Series(listed).map(pd.Series(listed).value_counts()).to_numpy() > 1
    whole = clean[several].groupby(listed[several])["group"].nunique().eq(1)
    assert whole.mean() > 0.9
