"""What a person points `classify` at: files, folders, globs, DICOM studies; as a stream of frames.

Nothing here decodes an image file: paths go through to the classifier. DICOM is opened here, one frame at a
time, through the reader that the study uses; of its header nothing but hashes and the maker's name goes any further.
"""

import glob
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from thyroid_lib import frames
from thyroid_lib.common.files import natural

DICOM_SUFFIXES = (".dcm", ".dicom")
SYSTEM_NAMES = ("dicomdir", "thumbs.db", "desktop.ini")


@dataclass(frozen=True)
class Item:
    """One frame to classify, or a file of several.

    Attributes:
        path: of the file, as given or found.
        image: what `Classifier.classify_many` takes: a path, a decoded frame, or the error met on the way.
        name: what a report calls the file: its own name, or a keyed hash of a DICOM file, as those are often
            named after the patient.
        study: key under which reports are grouped; the path, or a keyed hash of the DICOM study.
        frame: number of the frame in its clip, from 0; None for a still and for the clip as a whole.
        frames: number of frames of the clip; None for a still.
        scanner: maker and a hash of the model, of a DICOM file.
    """

    path: str
    image: object
    name: str
    study: str
    frame: int | None = None
    frames: int | None = None
    scanner: str = ""

    @property
    def place(self) -> str:
        """What follows the file's name in a line or a title: "", ": frame 3 of 9" or ": whole clip, 9 frames"."""
        if self.frames is None:
            return ""
        if self.frame is None:
            return f": whole clip, {self.frames} frames"
        return f": frame {self.frame + 1} of {self.frames}"


def find(arguments: Iterable[str]) -> tuple[list[Item], list[str]]:
    """Turns files, folders and globs into files.

    Args:
        arguments: as a person types them.

    Returns:
        An item per file in natural order, with an error as image where nothing was found; and notes on what was
        left out.
    """
    found, notes = [], []
    for argument in arguments:
        paths, reason = [argument], ""
        if os.path.isdir(argument):
            paths, others = _walk(argument)
            reason = "no image files in this folder"
            if others:
                kinds = ", ".join(sorted({Path(path).suffix.lower() or "no suffix" for path in others})[:6])
                notes.append(f"{argument}: files left out, no images by name: {len(others)} ({kinds})")
        elif not os.path.lexists(argument) and glob.has_magic(argument):
            paths = [path for path in glob.glob(argument, recursive=True) if not os.path.isdir(path)]
            reason = "no file matches this pattern"
        found += [Item(path, path, Path(path).name, path) for path in sorted(paths, key=natural)]
        if not paths:
            missing = frames.FrameError(reason, "nothing_found")
            found.append(Item(argument, missing, Path(argument).name, argument))
    return found, notes


def _walk(folder: str) -> tuple[list[str], list[str]]:
    """Files below a folder that may be images, and the others; hidden ones and those of systems left out."""
    images, others = [], []
    for place, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".") and name != "__MACOSX"]
        for name in names:
            path = os.path.join(place, name)
            if not name.startswith(".") and name.lower() not in SYSTEM_NAMES:
                wanted = name.lower().endswith(frames.SUFFIXES) or is_dicom(path)
                (images if wanted else others).append(path)
    return images, others


def items(files: Iterable[Item]) -> Iterator[Item]:
    """The frames of the files that `find` gave, read as they are asked for."""
    for file in files:
        yield from _dicom_items(file.path) if file.image == file.path and is_dicom(file.path) else [file]


def _dicom_items(path: str) -> Iterator[Item]:
    from thyroid_lib.datasets import dicom, dicom_frames

    file = Item(path, None, dicom.identifier(os.path.abspath(path)), path)
    try:
        with dicom_frames.quiet():
            dataset = dicom_frames.usable(path)
            count = dicom_frames.frame_count(dataset)
            study = f"study {dicom.study(dataset)}" if dataset.get("StudyInstanceUID") else path
            several = count if count > 1 else None
            file = replace(file, study=study, scanner=dicom.scanner(dataset), frames=several)
    except frames.FrameError as error:
        yield replace(file, image=error)
        return
    for number in range(count):
        try:
            image = dicom_frames.load(path, number)
        except frames.FrameError as error:
            image = error
        yield replace(file, image=image, frame=number if count > 1 else None)


def is_dicom(source) -> bool:
    """Whether a source is a pydicom dataset, or a file that is DICOM by its suffix or the mark after its preamble."""
    if not isinstance(source, str | os.PathLike):
        return type(source).__module__.startswith("pydicom.")
    if str(source).lower().endswith(DICOM_SUFFIXES):
        return True
    try:
        with open(source if os.path.isfile(source) else os.devnull, "rb") as file:
            return file.read(132)[128:] == b"DICM"
    except (OSError, ValueError):  # what cannot be opened is none
        return False


def dicom_frame(source) -> frames.Frame:
    """The first frame of a DICOM file or pydicom dataset, with a warning where there are more."""
    from thyroid_lib.datasets import dicom_frames

    found = dicom_frames.load(source, 0)
    with dicom_frames.quiet():
        count = dicom_frames.frame_count(dicom_frames.usable(source))
    more = [f"a clip of {count} frames: only the first was used"] if count > 1 else []
    return frames.Frame(found.gray, [*found.warnings, *more])
