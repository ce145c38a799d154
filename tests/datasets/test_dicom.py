"""DICOM: every way a scanner stores a frame, and never whose it is.

The files are written here with pydicom, with a name, a birth date, numbers and free text planted in every header
and in the names of files and folders; `leaks` searches what comes out for each of them.
"""

import hashlib
import json
import logging
import re
import stat
import traceback

import numpy as np
import pydicom
import pytest
from hospital import compressed, region, save, scan
from pydicom import uid
from pydicom.pixels import get_decoder
from pydicom.uid import ImplicitVRLittleEndian, JPEG2000Lossless, JPEGBaseline8Bit
from small_dicom import INSIDE, SECRETS, SECTOR, leaks, make, picture
from small_images import encoded

from thyroid_lib import datasets, frames, manifest, regions
from thyroid_lib.common.files import cache_folder
from thyroid_lib.data import check_data
from thyroid_lib.datasets import dicom, dicom_frames, identity
from thyroid_lib.datasets.contract import DatasetError


@pytest.fixture(autouse=True)
def own_key(monkeypatch, tmp_path_factory):
    monkeypatch.delenv("THYROID_HASH_KEY", raising=False)
    monkeypatch.setenv("THYROID_CACHE", str(tmp_path_factory.mktemp("cache")))
    monkeypatch.delenv("THYROID_STATUS", raising=False)


def everything(data):
    """All that a manifest says in public."""
    attrs = {key: value.to_csv() if hasattr(value, "to_csv") else value for key, value in data.attrs.items()}
    return datasets.public(data).to_csv() + json.dumps(attrs)


def read(folder, *files, options=""):
    """What the reader makes of a folder with these files of one class."""
    for number, data in enumerate(files):
        save(folder / "nodular_goiter" / f"{number}.dcm", data)
    return datasets.read(f"dicom:{folder}{options}")


@pytest.fixture
def tree(tmp_path):
    """Two classes, five patients with two frames each, in folders and files that name them."""
    root = tmp_path / "export"
    for number in range(5):
        header = {"PatientID": f"MRN-7734512-{number}", "PatientName": f"Quisling^Beatrix{number}"}
        folder = root / ("nodular goiter" if number % 2 else "papillary_carcinoma") / "Quisling_Beatrix"
        for frame in range(2):
            save(folder / f"Dossier_{number}_{frame}.dcm", make(picture(10 * number + frame), **header))
    return root


def test_a_tree_becomes_a_manifest_of_pseudonyms(tree):
    data = datasets.read(f"dicom:{tree}")
    assert data.attrs["classes"] == ["nodular_goiter", "papillary_carcinoma"]
    assert len(data) == 10 and data["patient"].nunique() == 5 and data["study"].nunique() == 10
    assert data["patient"].str.fullmatch(r"[0-9a-f]{16}").all()
    assert data["image"].str.fullmatch(r"dicom/[0-9a-f]{16}").all() and data["image"].is_unique
    assert set(data["sex"]) == {"F"} and set(data["age"]) == {60.0}  # 1961-02-03 to 2021-05-06
    assert data["device"].str.startswith("Philips ").all()
    assert (data["region_agreement"] > 0.9).all()
    assert not leaks(everything(data))


def test_no_planted_word_is_in_any_output(tree, tmp_path, capfd, caplog):
    folder = tree / "medullary_carcinoma"
    with dicom_frames.quiet():
        save(folder / "Dossier_a.dcm", make(picture(50), PatientAge="not an age", PatientSex="?"))
    (folder / "Dossier_b.dcm").write_bytes(b"\0" * 128 + b"DICM" + b"MRN-7734512 Quisling")
    whole = save(folder / "Dossier_c.dcm", make(picture(51)))
    whole.write_bytes(whole.read_bytes()[:-2000])
    save(folder / "Dossier_d.dcm", make(picture(52), Modality="MR"))
    wrong = save(folder / "Dossier_e.dcm", make(picture(53), NumberOfFrames="00000001"))
    wrong.write_bytes(wrong.read_bytes().replace(b"00000001", b"Quisling"))
    (tree / "Quisling.txt").write_text("Beatrix")
    data = datasets.read(f"dicom:{tree}")
    clean, problems = manifest.check(data, jobs=1)
    found = tmp_path / "found.csv"
    assert check_data.main([f"dicom:{tree}", "--folds", "2", "--table", str(found), "--jobs", "1"]) in (0, 1)
    public = everything(data) + everything(clean) + problems.to_csv() + found.read_text()
    assert not leaks(public + "".join(capfd.readouterr()) + caplog.text)
    assert len(data) >= 10 and len(data.attrs["excluded"]) >= 4
    for excluded in data.attrs["excluded"].itertuples():
        assert excluded.image.startswith("dicom/") and excluded.reason


def test_no_planted_word_is_in_an_error_even_with_its_traceback(tree):
    broken = save(tree / "Quisling" / "Dossier.dcm", make(picture()))
    broken.write_bytes(broken.read_bytes()[:-5000])
    for read, source in ((datasets.load_frame, broken), (datasets.read, f"dicom:{tree / SECRETS[-1]}")):
        with pytest.raises(ValueError) as error:
            read(source)
        text = "".join(traceback.format_exception(error.value))
        assert "Error: " in text and not leaks(text)


def test_pseudonyms_are_the_same_under_one_key_and_others_under_another(tree, monkeypatch, capsys):
    first = datasets.read(f"dicom:{tree}")
    assert first["patient"].equals(datasets.read(f"dicom:{tree}")["patient"])
    assert check_data.main([f"dicom:{tree}", "--find", first["image"][0]]) == 0
    assert "Dossier_" in capsys.readouterr().out, "a public name leads back to the file for who has the key"
    monkeypatch.setenv("THYROID_HASH_KEY", "another key, long enough")
    assert not set(first["patient"]) & set(datasets.read(f"dicom:{tree}")["patient"])
    assert check_data.main([f"dicom:{tree}", "--find", first["image"][0]]) == 1
    monkeypatch.setenv("THYROID_HASH_KEY", "short")
    with pytest.raises(DatasetError, match="at least 16 characters"):
        datasets.read(f"dicom:{tree}")


def test_pseudonym_is_hmac_sha256_by_hand(monkeypatch):
    key = b"0123456789abcdef"
    monkeypatch.setenv("THYROID_HASH_KEY", key.decode())
    inner, outer = (bytes(b ^ pad for b in key.ljust(64, b"\0")) for pad in (0x36, 0x5C))
    within = hashlib.sha256(inner + b"patient\0MRN").digest()
    assert identity.pseudonym("patient", "MRN") == hashlib.sha256(outer + within).hexdigest()[:16]


def test_the_key_file_is_for_its_owner_only():
    identity.pseudonym("patient", "MRN")
    key = cache_folder() / identity.KEY_FILE
    assert stat.S_IMODE(key.stat().st_mode) == 0o600 and len(key.read_bytes()) == 64


def test_without_a_stated_region_what_lies_outside_the_largest_one_is_blanked(tmp_path):
    frame = dicom_frames.load(save(tmp_path / "a.dcm", make(picture(), regions=[])))
    assert not frame.gray[:12].any() and frame.gray[60:100, 80:160].mean() > 60
    assert "names no ultrasound region" in frame.warnings[0]


def off(gray, seed=0):
    """By how much pixels differ at most from a picture of which only the stated region is left."""
    expected = np.zeros_like(picture())
    expected[INSIDE] = picture(seed)[INSIDE]
    return np.abs(gray.astype(int) - expected).max()


def palette():
    data = make(picture(), "PALETTE COLOR")
    for colour in ("Red", "Green", "Blue"):
        setattr(data, f"{colour}PaletteColorLookupTableDescriptor", [256, 0, 16])
        values = (np.arange(256, dtype=np.uint16) * 257).tobytes()
        setattr(data, f"{colour}PaletteColorLookupTableData", values)
    return data


def ybr_422():
    pairs = np.full((160, 120, 4), 128, np.uint8)
    pairs[..., 0], pairs[..., 1] = picture()[:, ::2], picture()[:, 1::2]
    return make(ybr(picture()), "YBR_FULL_422", PixelData=pairs.tobytes())


def rgb(gray):
    return np.repeat(gray[..., None], 3, axis=-1)


def ybr(gray):
    return np.stack([gray, np.full_like(gray, 128), np.full_like(gray, 128)], axis=-1)


def jpeg(*pixels):
    return [encoded(part, "JPEG", quality=95) for part in pixels]


def run_length_encoded():
    data = make(picture())
    data.compress(uid.RLELossless)
    return data


TWELVE = (picture().astype(np.uint32) * 4095 // 255).astype(np.uint16)
CLIP = np.stack([picture(number) for number in range(5)])
JPEG2000 = encoded(picture(), "JPEG2000", irreversible=False, no_jp2=True)
WINDOW = {"WindowCenter": 510.5, "WindowWidth": 1021}  # PS3.3 C.11.2.1.2.1: 0 to 1020 over the whole range
STORED = {  # name -> (what makes the file, grey levels that are lost)
    "MONOCHROME2": (lambda: make(picture()), 1),
    "MONOCHROME1": (lambda: make(255 - picture(), "MONOCHROME1"), 1),
    "12 of 16 bits": (lambda: make(TWELVE, BitsStored=12, HighBit=11), 1),
    "16 bits": (lambda: make(picture().astype(np.uint16) * 257), 1),
    "signed 16 bits": (lambda: make((picture().astype(np.int32) * 257 - 32768).astype(np.int16)), 1),
    "window": (lambda: make(picture().astype(np.uint16) * 4, BitsStored=12, HighBit=11, **WINDOW), 1),
    "RGB": (lambda: make(rgb(picture()), "RGB"), 1),
    "YBR_FULL": (lambda: make(ybr(picture()), "YBR_FULL"), 1),
    "YBR_FULL_422": (ybr_422, 1),
    "PALETTE COLOR": (palette, 1),
    "implicit": (lambda: make(picture(), syntax=ImplicitVRLittleEndian), 1),
    "deflated": (lambda: make(picture(), syntax=uid.DeflatedExplicitVRLittleEndian), 1),
    "RLE": (run_length_encoded, 0),
    "JPEG": (lambda: compressed(make(picture()), JPEGBaseline8Bit, *jpeg(picture())), 24),
    "JPEG 2000": (lambda: compressed(make(picture()), JPEG2000Lossless, JPEG2000), 0),
    "colour": (lambda: compressed(ybr_422(), JPEGBaseline8Bit, *jpeg(rgb(picture()))), 24),
    "clip": (lambda: compressed(make(CLIP), JPEGBaseline8Bit, *jpeg(*CLIP)), 24),
}


@pytest.mark.parametrize("name", STORED)
def test_every_way_of_storing_grey_gives_the_same_frame_without_what_is_outside_the_region(tmp_path, name):
    create, tolerance = STORED[name]
    path = save(tmp_path / "a.dcm", data := create())
    if not get_decoder(data.file_meta.TransferSyntaxUID).is_available:
        pytest.skip("no decoder: the extra dicom is not installed")
    for number in range(int(data.get("NumberOfFrames", 1))):
        gray = datasets.load_frame(f"{path}#{number}")
        assert gray.dtype == np.uint8 and off(gray, number) <= tolerance


def test_a_codec_that_is_not_installed_is_named_with_what_to_install(monkeypatch, sees):
    class Nothing:
        is_available = False

    monkeypatch.setattr(dicom_frames, "get_decoder", lambda syntax: Nothing)
    with pytest.raises(frames.FrameError, match=f"JPEG 2000.*{re.escape(sees)}") as error:
        dicom_frames.usable(compressed(make(picture()), JPEG2000Lossless, b"\0\0"))
    assert error.value.kind == "codec"


def test_an_old_file_without_preamble_is_read(tmp_path):
    data = make(picture(), syntax=ImplicitVRLittleEndian)
    del data.file_meta
    data.save_as(tmp_path / "a.dcm", implicit_vr=True, little_endian=True)
    assert off(datasets.load_frame(tmp_path / "a.dcm")) == 0


@pytest.mark.parametrize("asked, taken", [("1", [2]), ("2", [1, 3]), ("all", range(5)), ("9", range(5))])
def test_frames_of_a_clip_are_taken_evenly(tmp_path, asked, taken):
    data = read(tmp_path, make(CLIP), options=f"?frames={asked}")
    assert [int(image.rpartition("#")[2]) for image in data["image"]] == [*taken]
    assert all(off(datasets.load_frame(row), number) == 0 for row, number in zip(data.itertuples(), taken))
    with pytest.raises(frames.FrameError, match="frame 5 was asked for; the file holds 5"):
        datasets.load_frame(data["path"][0].rpartition("#")[0] + "#5")


def painted(where, colour):
    pixels = rgb(picture())
    pixels[where] = colour
    return pixels


FLOW = [region(SECTOR), region(SECTOR, 2)]
RED = painted(np.s_[60:90, 80:120], (200, 20, 20))
REFUSED = {
    "colour Doppler by its pixels": (make(RED, regions=[]), "coloured"),
    "colour Doppler by its header": (make(rgb(picture()), regions=FLOW), "colour flow region"),
    "spectral Doppler": (make(picture(), regions=[region(SECTOR, 3, 3)]), "no two-dimensional tissue region"),
    "another modality": (make(picture(), Modality="MR", SOPClassUID=uid.MRImageStorage), "not an ultrasound"),
    "constant": (make(np.full((160, 240), 90, np.uint8), regions=[]), "constant"),
    "tiny": (make(picture()[:40, :40].copy(), regions=[]), "too small"),
    "a bomb": (make(picture(), Rows=60000, Columns=60000), "too large: 3600 million pixels"),
    "cut short": (make(picture()[:80].copy(), Rows=160), "damaged or cut short"),
    "a report": (scan(None), "holds no image"),
    "empty": (b"", "empty file"),
    "another format": (b"%PDF-1.4", "not a DICOM file"),
}


def test_what_is_no_grey_ultrasound_frame_is_listed_with_its_reason(tmp_path):
    for name, (bad, _) in REFUSED.items():
        path = tmp_path / "nodular_goiter" / f"bad {name}.dcm"
        save(path, bad) if not isinstance(bad, bytes) else path.write_bytes(bad)
        with pytest.raises(frames.FrameError):
            datasets.load_frame(path)
    (tmp_path / "DICOMDIR").write_bytes(b"\0" * 128 + b"DICM")
    data = read(tmp_path, make(picture(), regions=[]))
    reasons = dict(zip(data.attrs["excluded"]["image"], data.attrs["excluded"]["reason"]))
    assert len(data) == 1 and len(reasons) == len(REFUSED) + 1
    assert "index of the medium" in reasons[dicom.identifier("DICOMDIR")]
    for name, (_, words) in REFUSED.items():
        assert words in reasons[dicom.identifier(f"nodular_goiter/bad {name}.dcm")], name
    buttons = make(painted(np.s_[145:158, 5:60], (0, 80, 220)))  # beside the region: no Doppler
    assert len(read(tmp_path / "buttons", buttons)) == 1


def test_a_stated_region_that_the_largest_one_misses_is_reported(tmp_path):
    data = read(tmp_path, make(picture(), regions=[region((0, 0, 240, 160))]))
    ours = regions.largest_region(picture()).box
    expected = ours[2] * ours[3] / (240 * 160)
    assert data["region_agreement"][0] == pytest.approx(expected, abs=1e-3) and expected < dicom.AGREE
    assert "disagree" in data.attrs["notes"]["note"][0]


@pytest.mark.parametrize("header, age", [
    ({"PatientAge": "045Y"}, 45),
    ({"PatientAge": "030M"}, 2),
    ({"PatientAge": "101Y"}, 90),
    ({"PatientBirthDate": "20000507", "StudyDate": "20210506"}, 20),
    ({"PatientBirthDate": "", "StudyDate": ""}, None),
])  # fmt: skip
def test_age_comes_from_the_header_and_tells_no_very_old_person(tmp_path, header, age):
    value = read(tmp_path, make(picture(), **header))["age"][0]
    assert np.isnan(value) if age is None else value == age


def test_labels_may_come_from_a_table_by_any_identifier(tmp_path):
    uids = []
    for number in range(3):
        data = make(picture(number), PatientID=f"MRN-{number}", AccessionNumber=f"A{number}")
        uids.append(data.SOPInstanceUID)
        save(tmp_path / "all" / f"{number}.dcm", data)
    words = ["nodular goiter", "medullary_carcinoma", "甲状腺乳头状癌"]
    by = {
        "PatientID": ["MRN-0", "MRN-1", "MRN-2"],
        "AccessionNumber": ["A0", "A1", "A2"],
        "SOPInstanceUID": uids,
    }
    by["file"] = ["all/0.dcm", "all/1.dcm", "all/2.dcm"]
    for column, keys in by.items():
        rows = "".join(f"{key},{word}\n" for key, word in zip(keys, words))
        (tmp_path / "labels.csv").write_text(f"{column},label\n{rows}", encoding="utf-8")
        data = datasets.read(f"dicom:{tmp_path}?labels=labels.csv")
        assert sorted(data["label"]) == ["medullary_carcinoma", "nodular_goiter", "papillary_carcinoma"]


@pytest.mark.parametrize("rows, words", [
    ("MRN-1,nodular goiter\nMRN-1,medullary carcinoma\n", "a second, other label"),
    ("MRN-1,Moriarty\n", "1 labels of the table are none of"),
])  # fmt: skip
def test_a_table_with_two_labels_for_one_patient_or_unknown_labels_is_refused(tmp_path, rows, words):
    (tmp_path / "labels.csv").write_text(f"PatientID,label\n{rows}")
    with pytest.raises(DatasetError, match=words) as error:
        read(tmp_path, make(picture()), options="?labels=labels.csv")
    assert not leaks(str(error.value))


def test_a_folder_that_is_no_class_gives_no_label(tmp_path):
    save(tmp_path / "Quisling" / "a.dcm", make(picture()))
    data = datasets.read(f"dicom:{tmp_path}")
    assert data["label"][0] == "" and not leaks(everything(data))
    assert datasets.read(f"dicom:{tmp_path}?classes=quisling,other")["label"][0] == "quisling"


def test_two_patients_with_one_number_from_two_issuers_are_two_and_pydicom_stays_as_it_was(tmp_path):
    settings, log = pydicom.config.settings, logging.getLogger("pydicom")
    before = settings.reading_validation_mode, log.level
    data = read(tmp_path, *(make(picture(), IssuerOfPatientID=issuer) for issuer in ("one", "two")))
    assert data["patient"].nunique() == 2
    assert (settings.reading_validation_mode, log.level) == before
