"""What a person points `classify` at: files, folders, globs, DICOM studies; as a stream of frames.

Of a DICOM header nothing but hashes and the maker's name goes any further.

Nothing here decodes an image file: paths go through to the classifier. DICOM is opened here, one frame at a
time, through the reader that the study uses.
"""

import glob
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from thyroid_lib import frames
from thyroid_lib.common.files import natural

DICOM_SUFFIXES = (".dcm", ".dicom")
SYSTEM_NAMES = ("dicomdir", "thumbs.db", "desktop.ini")


@dataclass(frozen=True)
class Item:
    """One frame to classify.

    Attributes:
        path: of the file, as given or found.
        image: what `Classifier.classify_many` takes: a path, a decoded frame, or the error met on the way.
        frame: number of the frame in its clip, from 0; None for a still.
        frames: number of frames of the clip; None for a still.
        study: key under which reports are grouped; the path, or a keyed hash of the DICOM study.
        name: what a report calls the file: its own name, or a keyed hash of a DICOM file, as those are often
            named after the patient.
        scanner: maker and a hash of the model, of a DICOM file.
    """

    path: str
    image: object
    frame: int | None = None
    frames: int | None = None
    study: str = ""
    name: str = ""
    scanner: str = ""


def find(arguments: Iterable[str]) -> tuple[list[tuple[str, str]], list[str]]:
    """Turns files, folders and globs into files.

    Args:
        arguments: as a person types them.

    Returns:
        (path, reason) per file in natural order, "" where it may be an image; and notes on what was left out.
    """
    found, notes = [], []
    for argument in arguments:
        if os.path.isdir(argument):
            inside, others = _walk(argument)
            if not inside:
                found.append((argument, "no image files in this folder"))
            found += [(path, "") for path in inside]
            if others:
                kinds = ", ".join(sorted({Path(path).suffix.lower() or "no suffix" for path in others})[:6])
                plural = "files" if len(others) > 1 else "file"
                notes.append(f"{argument}: {len(others)} {plural} left out, no images by name ({kinds})")
        elif not os.path.lexists(argument) and glob.has_magic(argument):
            matches = sorted(glob.glob(argument, recursive=True), key=natural)
            found += [(path, "") for path in matches if not os.path.isdir(path)]
            if not matches:
                found.append((argument, "no file matches this pattern"))
        else:
            found.append((argument, ""))
    return found, notes


def items(paths: Iterable[tuple[str, str]]) -> Iterator[Item]:
    """The frames of the files that `find` gave, read as they are asked for."""
    for path, reason in paths:
        if reason:
            yield Item(path, frames.FrameError(reason, "nothing_found"), study=path, name=Path(path).name)
        elif is_dicom(path) or path.lower().endswith(DICOM_SUFFIXES):
            yield from _dicom_items(path)
        else:
            yield Item(path, path, study=path, name=Path(path).name)


def is_dicom(path: str) -> bool:
    """Whether a regular file has DICOM's mark after its preamble; what cannot be opened is none."""
    try:
        if not os.path.isfile(path):
            return False
        with open(path, "rb") as file:
            return file.read(132)[128:] == b"DICM"
    except (OSError, ValueError):
        return False


def dicom_frame(source) -> frames.Frame:
    """The first frame of a DICOM file or pydicom dataset, with a warning where there are more."""
    from thyroid_lib.datasets import dicom_frames

    found = dicom_frames.load(source, 0)
    with dicom_frames.quiet():
        dataset = dicom_frames.header(source) if isinstance(source, str | os.PathLike) else source
        count = dicom_frames.frame_count(dataset)
    if count == 1:
        return found
    return frames.Frame(found.gray, [*found.warnings, f"a clip of {count} frames: only the first was used"])


def _dicom_items(path: str) -> Iterator[Item]:
    from thyroid_lib.datasets import dicom, dicom_frames

    about = {"study": path, "name": dicom.identifier(os.path.abspath(path))}
    try:
        with dicom_frames.quiet():
            dataset = dicom_frames.header(path)
            problem = dicom_frames.unusable(dataset)
            count = dicom_frames.frame_count(dataset)
            if problem:
                raise problem
            about["scanner"] = dicom.scanner(dataset)
            if dataset.get("StudyInstanceUID"):
                about["study"] = f"study {dicom.study(dataset)}"
    except frames.FrameError as error:
        yield Item(path, error, **about)
        return
    for number in range(count):
        try:
            image = dicom_frames.load(path, number)
        except frames.FrameError as error:
            image = error
        yield Item(path, image, *((number, count) if count > 1 else (None, None)), **about)


def _walk(folder: str) -> tuple[list[str], list[str]]:
    images, others = [], []
    for place, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".") and name != "__MACOSX"]
        for name in names:
            path = os.path.join(place, name)
            suffix = os.path.splitext(name)[1].lower()
            if name.startswith(".") or name.lower() in SYSTEM_NAMES:
                continue
            wanted = suffix in frames.SUFFIXES + DICOM_SUFFIXES
            (images if wanted or is_dicom(path) else others).append(path)
    return sorted(images, key=natural), others
