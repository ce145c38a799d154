"""A phantom "hospital": simulated patients exported the way a scanner archive hands them out.

Each frame is one DICOM file of a scanner that knows its ultrasound region; the lesion types are in a table by
PatientID, as a pathology department would send it. Names, numbers and places that must never come out again are planted
in headers and file names.
"""

import csv
from pathlib import Path

import numpy as np
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, UltrasoundImageStorage, generate_uid

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
        gray = datasets.load_frame(row.path)
        file = dataset(gray, row, scanner)
        known[file.PatientID] = row.label
        file.save_as(archive / f"Quisling_{number:04d}.dcm", enforce_file_format=True)
    if labels:
        with open(folder / "labels.csv", "w", newline="", encoding="utf-8") as table:
            writer = csv.writer(table)
            writer.writerow(["PatientID", "label"])
            writer.writerows(sorted(known.items()))
    return folder


def dataset(gray: np.ndarray, row, scanner: str) -> Dataset:
    """One frame as a scanner stores it, with an identity in every place that has one."""
    data = Dataset()
    data.file_meta = FileMetaDataset()
    data.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    data.SOPClassUID = data.file_meta.MediaStorageSOPClassUID = UltrasoundImageStorage
    data.SOPInstanceUID = data.file_meta.MediaStorageSOPInstanceUID = generate_uid()
    data.StudyInstanceUID, data.SeriesInstanceUID = generate_uid(), generate_uid()
    data.Modality, data.Manufacturer, data.ManufacturerModelName = "US", scanner, "EPIQ 7"
    data.PatientName, data.PatientID = f"Quisling^Beatrix {row.patient}", f"MRN-{row.patient}"
    data.PatientBirthDate, data.StudyDate, data.AccessionNumber = "19610203", "20210506", f"ACC-{row.Index}"
    data.InstitutionName, data.ReferringPhysicianName = "Saint Elsewhere", "Doctor^Zhivago"
    data.PatientSex, data.PatientAge = row.sex, f"{int(row.age):03d}Y"
    data.SamplesPerPixel, data.PhotometricInterpretation = 1, "MONOCHROME2"
    data.Rows, data.Columns = gray.shape
    data.BitsAllocated = data.BitsStored = 8
    data.HighBit, data.PixelRepresentation = 7, 0
    x, y, width, height = regions.largest_region(gray).box
    region = Dataset()
    region.RegionSpatialFormat, region.RegionDataType, region.RegionFlags = 1, 1, 0
    region.RegionLocationMinX0, region.RegionLocationMinY0 = x, y
    region.RegionLocationMaxX1, region.RegionLocationMaxY1 = x + width - 1, y + height - 1
    region.PhysicalUnitsXDirection = region.PhysicalUnitsYDirection = 3
    region.PhysicalDeltaX = region.PhysicalDeltaY = 0.01
    data.SequenceOfUltrasoundRegions = [region]
    data.PixelData = gray.tobytes() + b"\0" * (gray.size % 2)
    return data
