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
    x, y, width, height = regions.largest_region(gray).box
    region = Dataset()
    region.RegionSpatialFormat, region.RegionDataType, region.RegionFlags = 1, 1, 0
    region.RegionLocationMinX0, region.RegionLocationMinY0 = x, y
    region.RegionLocationMaxX1, region.RegionLocationMaxY1 = x + width - 1, y + height - 1
    region.PhysicalUnitsXDirection = region.PhysicalUnitsYDirection = 3
    region.PhysicalDeltaX = region.PhysicalDeltaY = 0.01
    return scan(
        gray,
        StudyInstanceUID=generate_uid(),
        SeriesInstanceUID=generate_uid(),
        Manufacturer=scanner,
        ManufacturerModelName="EPIQ 7",
        PatientName=f"Quisling^Beatrix {row.patient}",
        PatientID=f"MRN-{row.patient}",
        PatientBirthDate="19610203",
        StudyDate="20210506",
        AccessionNumber=f"ACC-{row.Index}",
        InstitutionName="Saint Elsewhere",
        ReferringPhysicianName="Doctor^Zhivago",
        PatientSex=row.sex,
        PatientAge=f"{int(row.age):03d}Y",
        SequenceOfUltrasoundRegions=[region],
    )


def scan(pixels: np.ndarray | None, **header) -> Dataset:
    """An ultrasound DICOM dataset of pixels uint8 (H, W), (n, H, W) or (H, W, 3), or without any."""
    data = Dataset()
    data.file_meta = FileMetaDataset()
    data.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    data.SOPClassUID = data.file_meta.MediaStorageSOPClassUID = UltrasoundImageStorage
    data.SOPInstanceUID = data.file_meta.MediaStorageSOPInstanceUID = generate_uid()
    data.Modality = "US"
    if pixels is not None:
        colour = pixels.shape[2:] == (3,)
        data.SamplesPerPixel, data.PhotometricInterpretation = (3, "RGB") if colour else (1, "MONOCHROME2")
        if colour:
            data.PlanarConfiguration = 0
        elif pixels.ndim == 3:
            data.NumberOfFrames = len(pixels)
        data.Rows, data.Columns = pixels.shape[:2] if colour else pixels.shape[-2:]
        data.BitsAllocated = data.BitsStored = 8
        data.HighBit, data.PixelRepresentation = 7, 0
        data.PixelData = pixels.tobytes() + b"\0" * (pixels.size % 2)
    for name, value in header.items():
        setattr(data, name, value)
    return data
