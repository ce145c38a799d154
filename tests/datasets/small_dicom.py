"""DICOM files for the tests of this room: sound ones, small, with an identity planted in every header."""

import numpy as np
from hospital import region, scan
from pydicom.uid import ExplicitVRLittleEndian

PLANTED = {
    "PatientName": "Quisling^Beatrix", "PatientID": "MRN-7734512", "PatientBirthDate": "19610203",
    "PatientAddress": "Elmstreet 66", "OtherPatientIDs": "OLD-998877", "AccessionNumber": "ACC-55120",
    "InstitutionName": "Saint Elsewhere", "ReferringPhysicianName": "Doctor^Zhivago", "OperatorsName": "Sono^Grapher",
    "StudyDescription": "thyroid of Beatrix", "PatientComments": "neighbour of the mayor", "StationName": "ROOM-4711",
    "DeviceSerialNumber": "SN-31337", "StudyDate": "20210506", "StudyID": "STUDY-808",
}  # fmt: skip
SECRETS = [word for value in PLANTED.values() for word in value.split("^")] + ["Dossier", "Moriarty"]
SECTOR = (40, 20, 160, 120)  # x, y, width, height of the bright part of `picture`
INSIDE = np.s_[20:140, 40:200]


def picture(seed=0):
    """A grey frame, uint8 (160, 240), with a sector of speckle on black, and bright "text" above it."""
    random = np.random.default_rng(seed)
    gray = np.zeros((160, 240), np.uint8)
    blocks = random.integers(60, 200, (15, 20)).repeat(8, 0).repeat(8, 1)
    gray[INSIDE] = blocks + random.integers(-30, 30, (120, 160))
    gray[4:12, 60:180:4] = 255
    return gray


def make(pixels, photometric="", syntax=ExplicitVRLittleEndian, regions=None, **header):
    """A dataset of `pixels`, see `hospital.scan`; one tissue region, the sector, unless others (or []) are given."""
    known = {"PatientSex": "F", "Manufacturer": "Philips Medical Systems", **PLANTED}
    regions = [region(SECTOR)] if regions is None else regions
    if regions:
        known["SequenceOfUltrasoundRegions"] = regions
    known["ManufacturerModelName"] = "EPIQ of Moriarty"
    return scan(pixels, photometric, syntax, **known | header)


def leaks(text):
    """The planted words that are in a text."""
    return [word for word in SECRETS if word.casefold() in text.casefold()]
