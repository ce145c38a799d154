"""A phantom "hospital": simulated patients exported the way a scanner archive hands them out.

Each frame is one DICOM file of a scanner that knows its ultrasound region; the lesion types are in a table by
PatientID, as a pathology department would send it. Names, numbers and places that must never come out again are planted
in headers and file names.
"""

import csv
from pathlib import Path

import numpy as np
from pydicom import uid
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.uid import ExplicitVRLittleEndian, generate_uid

from thyroid_lib import datasets, regions

SECRETS = ("Quisling", "Beatrix", "MRN-", "ACC-", "Elsewhere", "Zhivago", "19610203")


def export(folder: Path, spec: str, *, scanner: str = "Philips", labels: bool = True) -> Path:
    """Writes a hospital.

    Args:
        folder: made;  spec: of the phantoms, such as "phantom:clinic?patients=24&seed=5";  scanner: maker's name;
            labels: also write ``labels.csv`` with columns PatientID and label.

    Returns:
        The folder: ``<archive>/<number>.dcm`` and ``labels.csv``.
    """
    archive = folder / "archive of Saint Elsewhere"
    archive.mkdir(parents=True)
    known = {}
    for number, row in enumerate(datasets.read(spec).itertuples()):
        file = dataset(datasets.load_frame(row.path), row, scanner)
        known[file.PatientID] = row.label
        save(archive / f"Quisling_{number:04d}.dcm", file)
    if labels:
        with open(folder / "labels.csv", "w", newline="", encoding="utf-8") as table:
            writer = csv.writer(table)
            writer.writerow(["PatientID", "label"])
            writer.writerows(sorted(known.items()))
    return folder


def dataset(gray: np.ndarray, row, scanner: str) -> Dataset:
    """One frame as a scanner stores it, with an identity in every place that has one."""
    who = {"PatientName": f"Quisling^Beatrix {row.patient}", "PatientID": f"MRN-{row.patient}"}
    who |= {"PatientBirthDate": "19610203", "PatientSex": row.sex, "PatientAge": f"{int(row.age):03d}Y"}
    where = {"InstitutionName": "Saint Elsewhere", "ReferringPhysicianName": "Doctor^Zhivago"}
    where |= {"StudyDate": "20210506", "AccessionNumber": f"ACC-{row.Index}"}
    device = {"Manufacturer": scanner, "ManufacturerModelName": "EPIQ 7"}
    sector = [region(regions.largest_region(gray).box)]
    return scan(gray, SequenceOfUltrasoundRegions=sector, **who, **where, **device)


def region(box, data_type: int = 1, spatial: int = 1) -> Dataset:
    """An item of the ultrasound regions: box x, y, width, height in px; tissue in two dimensions unless told."""
    x, y, width, height = box
    item = Dataset()
    item.RegionSpatialFormat, item.RegionDataType, item.RegionFlags = spatial, data_type, 0
    item.RegionLocationMinX0, item.RegionLocationMinY0 = x, y
    item.RegionLocationMaxX1, item.RegionLocationMaxY1 = x + width - 1, y + height - 1
    item.PhysicalUnitsXDirection = item.PhysicalUnitsYDirection = 3
    item.PhysicalDeltaX = item.PhysicalDeltaY = 0.01
    return item


def scan(pixels: np.ndarray | None, photometric="", syntax=ExplicitVRLittleEndian, **header) -> Dataset:
    """An ultrasound DICOM dataset of pixels (H, W), (n, H, W), (H, W, 3) or (n, H, W, 3), or without any."""
    data = Dataset()
    data.file_meta = FileMetaDataset()
    data.file_meta.TransferSyntaxUID = syntax
    data.SOPClassUID = uid.UltrasoundImageStorage
    data.Modality = "US"
    if pixels is not None:
        colour = pixels.shape[-1] == 3
        data.SamplesPerPixel = 3 if colour else 1
        data.PhotometricInterpretation = photometric or ("RGB" if colour else "MONOCHROME2")
        if colour:
            data.PlanarConfiguration = 0
        if pixels.ndim - colour == 3:
            data.NumberOfFrames, data.FrameTime = len(pixels), "40"
            data.SOPClassUID = uid.UltrasoundMultiFrameImageStorage
        data.Rows, data.Columns = pixels.shape[-3:-1] if colour else pixels.shape[-2:]
        data.BitsAllocated = data.BitsStored = pixels.dtype.itemsize * 8
        data.HighBit, data.PixelRepresentation = data.BitsStored - 1, int(pixels.dtype.kind == "i")
        data.PixelData = pixels.tobytes() + b"\0" * (pixels.nbytes % 2)
    data.file_meta.MediaStorageSOPClassUID = data.SOPClassUID
    data.SOPInstanceUID = data.file_meta.MediaStorageSOPInstanceUID = generate_uid()
    data.StudyInstanceUID, data.SeriesInstanceUID = generate_uid(), generate_uid()
    for name, value in header.items():
        setattr(data, name, value)
    return data


def compressed(data: Dataset, syntax, *parts: bytes) -> Dataset:
    """The dataset with already encoded frames for its pixels."""
    data.file_meta.TransferSyntaxUID = syntax
    data.PixelData = encapsulate(list(parts))
    data["PixelData"].VR = "OB"
    data["PixelData"].is_undefined_length = True
    return data


def save(path: Path, data: Dataset) -> Path:
    """Writes a dataset, and the folders above it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    data.save_as(path, enforce_file_format=True)
    return path
