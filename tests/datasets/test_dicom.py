"""DICOM: every way a scanner stores a frame, and never whose it is.

The files are written here with pydicom, with a name, a birth date, numbers and free text planted in every header
and in the names of files and folders; `leaks` searches what comes out for each of them.
"""

import copy
import io
import json
import stat
import traceback

import numpy as np
import pytest
from hardening import goes_wrong
from PIL import Image
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    MRImageStorage,
    RLELossless,
    UltrasoundImageStorage,
    UltrasoundMultiFrameImageStorage,
    generate_uid,
)

from thyroid_lib import datasets, frames, manifest, regions
from thyroid_lib.common.files import cache_folder
from thyroid_lib.data import check_data
from thyroid_lib.datasets import dicom, dicom_frames, identity
from thyroid_lib.datasets.contract import DatasetError

PLANTED = {
    "PatientName": "Quisling^Beatrix",
    "PatientID": "MRN-7734512",
    "PatientBirthDate": "19610203",
    "PatientAddress": "Elmstreet 66",
    "OtherPatientIDs": "OLD-998877",
    "AccessionNumber": "ACC-55120",
    "InstitutionName": "Saint Elsewhere",
    "ReferringPhysicianName": "Doctor^Zhivago",
    "OperatorsName": "Sono^Grapher",
    "StudyDescription": "thyroid of Beatrix",
    "PatientComments": "neighbour of the mayor",
    "StationName": "ROOM-4711",
    "DeviceSerialNumber": "SN-31337",
    "StudyDate": "20210506",
    "StudyID": "STUDY-808",
}
SECRETS = [word for value in PLANTED.values() for word in value.split("^")] + ["Dossier", "Moriarty"]
SECTOR = (40, 20, 160, 120)  # x, y, width, height of the bright part of `picture`


@pytest.fixture(autouse=True)
def own_key(monkeypatch, tmp_path_factory):
    monkeypatch.delenv("THYROID_HASH_KEY", raising=False)
    monkeypatch.setenv("THYROID_CACHE", str(tmp_path_factory.mktemp("cache")))
    monkeypatch.delenv("THYROID_STATUS", raising=False)


def picture(seed=0, shape=(160, 240)):
    """A grey frame with a sector of speckle on black, and bright "text" above it."""
    random = np.random.default_rng(seed)
    gray = np.zeros(shape, np.uint8)
    x, y, width, height = SECTOR
    blocks = random.integers(60, 200, (height // 8, width // 8)).repeat(8, 0).repeat(8, 1)
    gray[y : y + height, x : x + width] = blocks + random.integers(-30, 30, (height, width))
    gray[4:12, 60:180:4] = 255
    return gray


def region(data_type=1, spatial=1, box=SECTOR):
    item = Dataset()
    item.RegionSpatialFormat, item.RegionDataType, item.RegionFlags = spatial, data_type, 0
    item.RegionLocationMinX0, item.RegionLocationMinY0 = box[0], box[1]
    item.RegionLocationMaxX1, item.RegionLocationMaxY1 = box[0] + box[2] - 1, box[1] + box[3] - 1
    item.PhysicalUnitsXDirection = item.PhysicalUnitsYDirection = 3
    item.PhysicalDeltaX = item.PhysicalDeltaY = 0.01
    return item


def make(
    pixels, photometric="MONOCHROME2", *, bits=None, regions=None, syntax=ExplicitVRLittleEndian, **header
):
    """A dataset with `pixels` (H, W), (H, W, 3) or, with frames > 1, one axis more in front."""
    data = Dataset()
    data.file_meta = FileMetaDataset()
    clip = pixels.ndim == (4 if photometric not in ("MONOCHROME1", "MONOCHROME2", "PALETTE COLOR") else 3)
    data.SOPClassUID = UltrasoundMultiFrameImageStorage if clip else UltrasoundImageStorage
    data.file_meta.MediaStorageSOPClassUID = data.SOPClassUID
    data.SOPInstanceUID = data.file_meta.MediaStorageSOPInstanceUID = generate_uid()
    data.StudyInstanceUID, data.SeriesInstanceUID = generate_uid(), generate_uid()
    data.file_meta.TransferSyntaxUID = syntax
    data.Modality, data.PatientSex, data.Manufacturer = "US", "F", "Philips Medical Systems"
    data.ManufacturerModelName = "EPIQ of Moriarty"
    for name, value in PLANTED.items():
        setattr(data, name, value)
    colour = photometric not in ("MONOCHROME1", "MONOCHROME2", "PALETTE COLOR")
    data.SamplesPerPixel = 3 if colour else 1
    if colour:
        data.PlanarConfiguration = 0
    data.PhotometricInterpretation = photometric
    if clip:
        data.NumberOfFrames = len(pixels)
        data.FrameTime = "40"
    data.Rows, data.Columns = pixels.shape[1:3] if clip else pixels.shape[:2]
    data.BitsAllocated = pixels.dtype.itemsize * 8
    data.BitsStored = bits or data.BitsAllocated
    data.HighBit = data.BitsStored - 1
    data.PixelRepresentation = int(pixels.dtype.kind == "i")
    data.PixelData = pixels.tobytes()
    if regions is not None:
        data.SequenceOfUltrasoundRegions = regions
    for name, value in header.items():
        setattr(data, name, value)
    return data


def save(path, data):
    path.parent.mkdir(parents=True, exist_ok=True)
    data.save_as(path, enforce_file_format=True)
    return path


def leaks(text):
    return [word for word in SECRETS if word.casefold() in text.casefold()]


def everything(data):
    """All that a manifest says in public."""
    return datasets.public(data).to_csv() + json.dumps(
        {key: value.to_csv() if hasattr(value, "to_csv") else value for key, value in data.attrs.items()}
    )


@pytest.fixture
def tree(tmp_path):
    """Two classes, six patients with two frames each, in folders and files that name them."""
    root = tmp_path / "export"
    for number in range(6):
        for frame in range(2):
            header = {"PatientID": f"MRN-7734512-{number}", "PatientName": f"Quisling^Beatrix{number}"}
            data = make(picture(10 * number + frame), regions=[region()], **header)
            lesion = "nodular goiter" if number % 2 else "papillary_carcinoma"
            save(root / lesion / "Quisling_Beatrix" / f"Dossier_{number}_{frame}.dcm", data)
    return root


def test_a_tree_becomes_a_manifest_of_pseudonyms(tree):
    data = datasets.read(f"dicom:{tree}")
    assert data.attrs["classes"] == ["nodular_goiter", "papillary_carcinoma"]
    assert len(data) == 12 and data["patient"].nunique() == 6 and data["study"].nunique() == 12
    assert data["patient"].str.fullmatch(r"[0-9a-f]{16}").all()
    assert data["image"].str.fullmatch(r"dicom/[0-9a-f]{16}").all() and data["image"].is_unique
    assert set(data["sex"]) == {"F"} and set(data["age"]) == {60.0}  # 1961-02-03 to 2021-05-06
    assert data["device"].str.startswith("Philips ").all()
    assert (data["region_agreement"] > 0.9).all()
    assert not leaks(everything(data))


def test_no_planted_word_is_in_any_output(tree, tmp_path, capfd, caplog):
    with dicom_frames.quiet():
        odd = make(picture(50), PatientAge="not an age", PatientSex="?")
        save(tree / "medullary_carcinoma" / "Dossier_a.dcm", odd)
    (tree / "medullary_carcinoma" / "Dossier_b.dcm").write_bytes(
        b"\0" * 128 + b"DICM" + b"MRN-7734512 Quisling"
    )
    whole = save(tree / "medullary_carcinoma" / "Dossier_c.dcm", make(picture(51)))
    whole.write_bytes(whole.read_bytes()[:-2000])
    save(tree / "medullary_carcinoma" / "Dossier_d.dcm", make(picture(52), Modality="MR"))
    wrong = save(tree / "medullary_carcinoma" / "Dossier_e.dcm", make(picture(53), NumberOfFrames="00000001"))
    wrong.write_bytes(wrong.read_bytes().replace(b"00000001", b"Quisling"))
    (tree / "Quisling.txt").write_text("Beatrix")
    data = datasets.read(f"dicom:{tree}")
    clean, problems = manifest.check(data, jobs=1)
    status = check_data.main(
        [f"dicom:{tree}", "--folds", "2", "--table", str(tmp_path / "found.csv"), "--jobs", "1"]
    )
    out, err = capfd.readouterr()
    public = everything(data) + everything(clean) + problems.to_csv() + (tmp_path / "found.csv").read_text()
    assert not leaks(public + out + err + caplog.text)
    assert len(data) >= 12 and len(data.attrs["excluded"]) >= 4 and status in (0, 1)
    for excluded in data.attrs["excluded"].itertuples():
        assert excluded.image.startswith("dicom/") and excluded.reason


def test_no_planted_word_is_in_an_error_even_with_its_traceback(tree):
    broken = tree / "Quisling" / "Dossier.dcm"
    save(broken, make(picture()))
    broken.write_bytes(broken.read_bytes()[:-5000])
    gone = tree / SECRETS[-1]
    for action in (lambda: datasets.load_frame(broken), lambda: datasets.read(f"dicom:{gone}")):
        with pytest.raises(ValueError) as error:
            action()
        text = "".join(traceback.format_exception(error.value))
        assert "Error: " in text and not leaks(text)


def test_pseudonyms_are_the_same_under_one_key_and_others_under_another(tree, monkeypatch):
    first = datasets.read(f"dicom:{tree}")
    assert first["patient"].equals(datasets.read(f"dicom:{tree}")["patient"])
    monkeypatch.setenv("THYROID_HASH_KEY", "another key, long enough")
    assert not set(first["patient"]) & set(datasets.read(f"dicom:{tree}")["patient"])
    monkeypatch.setenv("THYROID_HASH_KEY", "short")
    with pytest.raises(DatasetError, match="at least 16 characters"):
        datasets.read(f"dicom:{tree}")


def test_pseudonym_is_hmac_sha256(monkeypatch):
    # RFC 4231 test case 2 has a 4-byte key; this is the same construction by hand for a longer one.
    import hashlib

    key = b"0123456789abcdef"
    monkeypatch.setenv("THYROID_HASH_KEY", key.decode())
    inner = hashlib.sha256(bytes(b ^ 0x36 for b in key.ljust(64, b"\0")) + b"patient\0MRN").digest()
    outer = hashlib.sha256(bytes(b ^ 0x5C for b in key.ljust(64, b"\0")) + inner).hexdigest()
    assert identity.pseudonym("patient", "MRN") == outer[:16]


def test_the_key_file_is_for_its_owner_only(tree):
    datasets.read(f"dicom:{tree}")
    (key,) = [p for p in cache_folder().iterdir() if p.name == identity.KEY_FILE]
    assert stat.S_IMODE(key.stat().st_mode) == 0o600 and len(key.read_bytes()) == 64


def test_a_public_name_leads_back_to_the_file_for_who_has_the_key(tree, capsys, monkeypatch):
    image = datasets.read(f"dicom:{tree}")["image"][0]
    assert check_data.main([f"dicom:{tree}", "--find", image]) == 0
    assert "Dossier_" in capsys.readouterr().out
    monkeypatch.setenv("THYROID_HASH_KEY", "another key, long enough")
    assert check_data.main([f"dicom:{tree}", "--find", image]) == 1


def test_text_outside_the_ultrasound_region_is_blanked(tmp_path):
    path = save(tmp_path / "a.dcm", make(picture(), regions=[region()]))
    gray = datasets.load_frame(path)
    x, y, width, height = SECTOR
    assert gray[y : y + height, x : x + width].mean() > 60
    gray[y : y + height, x : x + width] = 0
    assert not gray.any()


def test_without_a_stated_region_what_lies_outside_the_largest_one_is_blanked(tmp_path):
    frame = dicom_frames.load(save(tmp_path / "a.dcm", make(picture())))
    assert not frame.gray[:12].any() and frame.gray[60:100, 80:160].mean() > 60
    assert "names no ultrasound region" in frame.warnings[0]


def reference():
    x, y, width, height = SECTOR
    gray = np.zeros_like(picture())
    gray[y : y + height, x : x + width] = picture()[y : y + height, x : x + width]
    return gray


def palette():
    gray = picture()
    data = make(gray, "PALETTE COLOR", regions=[region()])
    table = np.arange(256, dtype=np.uint16) * 257
    for colour in ("Red", "Green", "Blue"):
        setattr(data, f"{colour}PaletteColorLookupTableDescriptor", [256, 0, 16])
        setattr(data, f"{colour}PaletteColorLookupTableData", table.tobytes())
    return data


def ybr_422():
    gray = picture()
    pairs = np.empty((*gray.shape[:1], gray.shape[1] // 2, 4), np.uint8)
    pairs[..., 0], pairs[..., 1] = gray[:, ::2], gray[:, 1::2]
    pairs[..., 2:] = 128
    data = make(np.zeros((*gray.shape, 3), np.uint8), "YBR_FULL_422", regions=[region()])
    data.PixelData = pairs.tobytes()
    return data


def rgb(gray):
    return np.repeat(gray[..., None], 3, axis=-1)


def ybr(gray):
    return np.stack([gray, np.full_like(gray, 128), np.full_like(gray, 128)], axis=-1)


def twelve():
    return (picture().astype(np.uint32) * 4095 // 255).astype(np.uint16)


VARIANTS = {
    "MONOCHROME2": lambda: make(picture(), regions=[region()]),
    "MONOCHROME1": lambda: make(255 - picture(), "MONOCHROME1", regions=[region()]),
    "12 of 16 bits": lambda: make(twelve(), bits=12, regions=[region()]),
    "16 bits": lambda: make(picture().astype(np.uint16) * 257, regions=[region()]),
    "signed 16 bits": lambda: make(
        (picture().astype(np.int32) * 257 - 32768).astype(np.int16), regions=[region()]
    ),
    "RGB": lambda: make(rgb(picture()), "RGB", regions=[region()]),
    "YBR_FULL": lambda: make(ybr(picture()), "YBR_FULL", regions=[region()]),
    "YBR_FULL_422": ybr_422,
    "PALETTE COLOR": palette,
    "implicit": lambda: make(picture(), regions=[region()], syntax=ImplicitVRLittleEndian),
    "deflated": lambda: make(picture(), regions=[region()], syntax=DeflatedExplicitVRLittleEndian),
}


@pytest.mark.parametrize("name", VARIANTS)
def test_every_way_of_storing_grey_gives_the_same_frame(tmp_path, name):
    gray = datasets.load_frame(save(tmp_path / "a.dcm", VARIANTS[name]()))
    assert gray.dtype == np.uint8 and np.abs(gray.astype(int) - reference()).max() <= 1


def test_a_window_in_the_header_is_used(tmp_path):
    data = make(picture().astype(np.uint16) * 4, bits=12, regions=[region()])
    data.WindowCenter, data.WindowWidth = 510.5, 1021  # PS3.3 C.11.2.1.2.1: 0 to 1020 over the whole range
    gray = datasets.load_frame(save(tmp_path / "a.dcm", data))
    assert np.abs(gray.astype(int) - reference()).max() <= 1


def jpeg_bytes(gray, **options):
    buffer = io.BytesIO()
    Image.fromarray(gray).save(buffer, **options)
    return buffer.getvalue()


COMPRESSED = {
    "RLE": (RLELossless, None, 0),
    "JPEG": (JPEGBaseline8Bit, {"format": "JPEG", "quality": 95}, 24),
    "JPEG 2000": (JPEG2000Lossless, {"format": "JPEG2000", "irreversible": False, "no_jp2": True}, 0),
}


@pytest.mark.parametrize("name", COMPRESSED)
def test_compressed_frames_are_decoded(tmp_path, name):
    syntax, options, tolerance = COMPRESSED[name]
    data = make(picture(), regions=[region()])
    if options is None:
        data.compress(syntax)
    else:
        data.PixelData = encapsulate([jpeg_bytes(picture(), **options)])
        data["PixelData"].VR = "OB"
        data.file_meta.TransferSyntaxUID = syntax
    if dicom_frames.unusable(data):
        pytest.skip("no decoder: the extra dicom is not installed")
    gray = datasets.load_frame(save(tmp_path / "a.dcm", data))
    assert np.abs(gray.astype(int) - reference()).max() <= tolerance


def test_colour_and_clips_compressed_as_scanners_do_are_decoded(tmp_path):
    clip = np.stack([picture(n) for n in range(3)])
    still = make(np.zeros((*picture().shape, 3), np.uint8), "YBR_FULL_422", regions=[region()])
    several = make(clip, regions=[region()])
    for data, parts in ((still, [rgb(picture())]), (several, clip)):
        data.PixelData = encapsulate([jpeg_bytes(part, format="JPEG", quality=95) for part in parts])
        data["PixelData"].VR = "OB"
        data.file_meta.TransferSyntaxUID = JPEGBaseline8Bit
    if dicom_frames.unusable(still):
        pytest.skip("no decoder: the extra dicom is not installed")
    gray = datasets.load_frame(save(tmp_path / "still.dcm", still))
    assert np.abs(gray.astype(int) - reference()).max() <= 24
    path = save(tmp_path / "clip.dcm", several)
    x, y, width, height = SECTOR
    for number in range(3):
        found = datasets.load_frame(f"{path}#{number}")[y : y + height, x : x + width]
        assert np.abs(found.astype(int) - clip[number][y : y + height, x : x + width]).max() <= 24


@goes_wrong(
    "A DICOM file is compressed in a way that nothing installed decodes",
    sees="install thyroid_lib[dicom]",
    do="Install the extra that is named.",
)
def test_a_codec_that_is_not_installed_is_named_with_what_to_install(tmp_path, monkeypatch, sees):
    class Nothing:
        is_available = False

    monkeypatch.setattr(dicom_frames, "get_decoder", lambda syntax: Nothing)
    data = make(picture())
    data.PixelData = encapsulate([b"\0\0"])
    data.file_meta.TransferSyntaxUID = JPEG2000Lossless
    problem = dicom_frames.unusable(data)
    assert problem.kind == "codec" and "JPEG 2000" in str(problem) and sees in str(problem)


def test_an_old_file_without_preamble_is_read(tmp_path):
    path = tmp_path / "a.dcm"
    data = make(picture(), regions=[region()], syntax=ImplicitVRLittleEndian)
    del data.file_meta
    data.save_as(path, implicit_vr=True, little_endian=True)
    assert np.array_equal(datasets.load_frame(path), reference())


@pytest.mark.parametrize(
    "asked, taken", [("1", [2]), ("2", [1, 3]), ("all", [0, 1, 2, 3, 4]), ("9", [0, 1, 2, 3, 4])]
)
def test_frames_of_a_clip_are_taken_evenly(tmp_path, asked, taken):
    clip = np.stack([picture(n) for n in range(5)])
    save(tmp_path / "nodular_goiter" / "clip.dcm", make(clip, regions=[region()]))
    data = datasets.read(f"dicom:{tmp_path}?frames={asked}")
    assert [int(image.rpartition("#")[2]) for image in data["image"]] == taken
    x, y, width, height = SECTOR
    for row in data.itertuples():
        number = int(row.image.rpartition("#")[2])
        expected = clip[number][y : y + height, x : x + width]
        assert np.array_equal(datasets.load_frame(row)[y : y + height, x : x + width], expected)


def test_a_frame_that_the_clip_does_not_hold_is_an_error(tmp_path):
    path = save(tmp_path / "a.dcm", make(np.stack([picture(), picture(1)])))
    with pytest.raises(frames.FrameError, match="frame 2 was asked for; the file holds 2"):
        datasets.load_frame(f"{path}#2")


def doppler():
    pixels = rgb(picture())
    pixels[60:90, 80:120] = (200, 20, 20)
    return pixels


REFUSED = {
    "colour Doppler by its pixels": (lambda: make(doppler(), "RGB"), "coloured"),
    "colour Doppler by its header": (
        lambda: make(rgb(picture()), "RGB", regions=[region(), region(data_type=2)]),
        "colour flow region",
    ),
    "spectral Doppler": (lambda: make(picture(), regions=[region(3, 3)]), "no two-dimensional tissue region"),
    "another modality": (
        lambda: make(picture(), Modality="MR", SOPClassUID=MRImageStorage),
        "not an ultrasound",
    ),
    "constant": (lambda: make(np.full((160, 240), 90, np.uint8)), "constant"),
    "tiny": (lambda: make(picture()[:40, :40].copy()), "too small"),
    "a bomb": (lambda: make(picture(), Rows=60000, Columns=60000), "too large: 3600 million pixels"),
    "cut short": (lambda: make(picture()[:80].copy(), Rows=160), "damaged or cut short"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_grey_ultrasound_frame_is_listed_with_its_reason(tmp_path, name):
    make_it, words = REFUSED[name]
    save(tmp_path / "nodular_goiter" / "good.dcm", make(picture()))
    bad = save(tmp_path / "nodular_goiter" / "bad.dcm", make_it())
    data = datasets.read(f"dicom:{tmp_path}")
    assert len(data) == 1
    (excluded,) = data.attrs["excluded"].itertuples()
    assert words in excluded.reason and excluded.image == dicom.identifier("nodular_goiter/bad.dcm")
    with pytest.raises(frames.FrameError):
        datasets.load_frame(bad)


def test_reports_empty_files_and_other_files_are_listed(tmp_path):
    save(tmp_path / "nodular_goiter" / "good.dcm", make(picture()))
    report = make(picture())
    del report.PixelData
    save(tmp_path / "report.dcm", report)
    (tmp_path / "empty.dcm").write_bytes(b"")
    (tmp_path / "notes.pdf").write_bytes(b"%PDF-1.4")
    (tmp_path / "DICOMDIR").write_bytes(b"\0" * 128 + b"DICM")
    data = datasets.read(f"dicom:{tmp_path}")
    reasons = dict(zip(data.attrs["excluded"]["image"], data.attrs["excluded"]["reason"]))
    expected = {
        "report.dcm": "holds no image",
        "empty.dcm": "empty file",
        "notes.pdf": "not a DICOM file",
        "DICOMDIR": "index of the medium",
    }
    assert len(reasons) == 4
    for name, words in expected.items():
        assert words in reasons[dicom.identifier(name)]


def test_coloured_buttons_beside_the_region_are_no_doppler(tmp_path):
    pixels = rgb(picture())
    pixels[145:158, 5:60] = (0, 80, 220)
    save(tmp_path / "nodular_goiter" / "a.dcm", make(pixels, "RGB", regions=[region()]))
    assert len(datasets.read(f"dicom:{tmp_path}")) == 1


def test_a_stated_region_that_the_largest_one_misses_is_reported(tmp_path):
    wide = region(box=(0, 0, 240, 160))
    save(tmp_path / "nodular_goiter" / "a.dcm", make(picture(), regions=[wide]))
    data = datasets.read(f"dicom:{tmp_path}")
    ours = regions.largest_region(picture()).box
    expected = ours[2] * ours[3] / (240 * 160)
    assert data["region_agreement"][0] == pytest.approx(expected, abs=1e-3) and expected < dicom.AGREE
    assert "disagree" in data.attrs["notes"]["note"][0]


def test_overlap_of_boxes_is_their_intersection_over_union():
    assert dicom.overlap((0, 0, 10, 10), (5, 0, 10, 10)) == pytest.approx(50 / 150)
    assert dicom.overlap((0, 0, 10, 10), (20, 20, 5, 5)) == 0
    assert dicom.overlap((1, 2, 3, 4), (1, 2, 3, 4)) == 1


@pytest.mark.parametrize(
    "header, age",
    [
        ({"PatientAge": "045Y"}, 45),
        ({"PatientAge": "030M"}, 2),
        ({"PatientAge": "101Y"}, 90),
        ({"PatientBirthDate": "20000507", "StudyDate": "20210506"}, 20),
        ({"PatientBirthDate": "", "StudyDate": ""}, None),
    ],
)
def test_age_comes_from_the_header_and_tells_no_very_old_person(tmp_path, header, age):
    save(tmp_path / "nodular_goiter" / "a.dcm", make(picture(), **header))
    value = datasets.read(f"dicom:{tmp_path}")["age"][0]
    assert np.isnan(value) if age is None else value == age


def test_labels_may_come_from_a_table_by_any_identifier(tmp_path):
    uids = []
    for number in range(3):
        data = make(picture(number), PatientID=f"MRN-{number}", AccessionNumber=f"A{number}")
        uids.append(data.SOPInstanceUID)
        save(tmp_path / "all" / f"{number}.dcm", data)
    words = ["nodular goiter", "medullary_carcinoma", "甲状腺乳头状癌"]
    for column, keys in (
        ("PatientID", ["MRN-0", "MRN-1", "MRN-2"]),
        ("AccessionNumber", ["A0", "A1", "A2"]),
        ("SOPInstanceUID", uids),
        ("file", ["all/0.dcm", "all/1.dcm", "all/2.dcm"]),
    ):
        rows = "".join(f"{key},{word}\n" for key, word in zip(keys, words))
        (tmp_path / "labels.csv").write_text(f"{column},label\n{rows}", encoding="utf-8")
        data = datasets.read(f"dicom:{tmp_path}?labels=labels.csv")
        assert sorted(data["label"]) == ["medullary_carcinoma", "nodular_goiter", "papillary_carcinoma"]


def test_a_table_with_two_labels_for_one_patient_or_unknown_labels_is_refused(tmp_path):
    save(tmp_path / "a.dcm", make(picture()))
    (tmp_path / "labels.csv").write_text("PatientID,label\nMRN-1,nodular goiter\nMRN-1,medullary carcinoma\n")
    with pytest.raises(DatasetError, match="a second, other label"):
        datasets.read(f"dicom:{tmp_path}?labels=labels.csv")
    (tmp_path / "labels.csv").write_text("PatientID,label\nMRN-1,Moriarty\n")
    with pytest.raises(DatasetError, match="1 labels of the table are none of") as error:
        datasets.read(f"dicom:{tmp_path}?labels=labels.csv")
    assert not leaks(str(error.value))


def test_a_folder_that_is_no_class_gives_no_label(tmp_path):
    save(tmp_path / "Quisling" / "a.dcm", make(picture()))
    data = datasets.read(f"dicom:{tmp_path}")
    assert data["label"][0] == "" and not leaks(everything(data))
    assert datasets.read(f"dicom:{tmp_path}?classes=quisling,other")["label"][0] == "quisling"


def test_two_patients_with_the_same_number_from_two_issuers_are_two(tmp_path):
    for issuer in ("one", "two"):
        save(tmp_path / "nodular_goiter" / f"{issuer}.dcm", make(picture(), IssuerOfPatientID=issuer))
    assert datasets.read(f"dicom:{tmp_path}")["patient"].nunique() == 2


def test_reading_leaves_pydicom_as_it_was(tree):
    import logging

    import pydicom

    before = copy.copy(pydicom.config.settings.reading_validation_mode), logging.getLogger("pydicom").level
    datasets.read(f"dicom:{tree}")
    after = pydicom.config.settings.reading_validation_mode, logging.getLogger("pydicom").level
    assert before == after
