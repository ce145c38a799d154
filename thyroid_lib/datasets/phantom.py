"""phantom:clinic, phantom:external and phantom:open: simulated frames, written once into a cache.

Frames, masks and their table lie in ``$THYROID_CACHE``, else in the user's cache folder, under a name made
of everything they depend on, the simulator's own source included; a second read simulates nothing.
"""

import hashlib
import os
import shutil
import tempfile
from pathlib import Path
from typing import Annotated

import cv2
import pandas as pd
from joblib import Parallel, delayed, effective_n_jobs

from thyroid_lib import phantoms
from thyroid_lib.common.files import cache_folder
from thyroid_lib.common.progress import progress
from thyroid_lib.datasets import contract
from thyroid_lib.phantoms import frame as simulator
from thyroid_lib.phantoms.signs import SIGNS, SOURCES

WORTH_WORKERS = 96  # patients below which starting processes costs more than it saves


def read(
    source: str,
    *,
    patients: Annotated[int, 1] = 120,
    seed: Annotated[int, 0] = 0,
    jobs: Annotated[int, -1] = -1,
) -> pd.DataFrame:
    """Reads a phantom source, simulating it first where the cache has not got it.

    Args:
        source: `clinic`, `external` or `open`.
        patients: how many; each has 1 to 4 frames.
        seed: another seed gives other patients.
        jobs: worker processes, -1 for one per core; the frames do not depend on it.

    Returns:
        The manifest, with `mask`, `age`, `sex`, `device`, `view`, `nodule_size_mm`, `caliper`, `text`,
        `sector_x`, `sector_y`, `sector_width`, `sector_height` (px) and the drawn signs as `sign_*`.

    Raises:
        DatasetError: an unknown source.
    """
    if source not in SOURCES:
        came = f"expected one of {', '.join(SOURCES)}, came {source!r}"
        raise contract.DatasetError(f"phantom: {came}; for example phantom:clinic?patients=120.")
    digest = hashlib.sha256(cv2.__version__.encode())
    for path in sorted(Path(phantoms.__file__).parent.glob("*.*")):
        digest.update(path.read_bytes())
    name = f"{source}-p{patients}-s{seed}-{digest.hexdigest()[:12]}"
    folder = (cache_folder() / "phantoms" / name).absolute()
    if not (folder / "table.csv").is_file():
        _simulate(folder, simulator.patients(source, patients, seed), jobs)
    rows = pd.read_csv(folder / "table.csv", keep_default_na=False)
    rows["path"] = f"{folder.as_posix()}/" + rows["image"]
    rows["mask"] = f"{folder.as_posix()}/masks/" + rows["image"].str.removeprefix("frames/")
    found = contract.Collection(f"phantom:{source}", folder)
    found.rows = rows.to_dict("records")
    names = contract.named(SOURCES[source]["labels"])
    return found.manifest(SOURCES[source]["title"], names, simulated=True)


def _simulate(folder: Path, people: list[simulator.Patient], jobs: int) -> None:
    """Writes all frames into a folder that takes its name when it is whole."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    workers = Parallel(1 if len(people) < WORTH_WORKERS else effective_n_jobs(jobs), return_as="generator")
    partial = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        (partial / "frames").mkdir()
        (partial / "masks").mkdir()
        work = workers(delayed(_write)(partial, patient) for patient in people)
        done = progress(work, "simulating patients", len(people))
        pd.DataFrame([row for rows in done for row in rows]).to_csv(partial / "table.csv", index=False)
        os.replace(partial, folder)
    except OSError:
        if not (folder / "table.csv").is_file():  # else another process was first: its frames are the same
            raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _write(folder: Path, patient: simulator.Patient) -> list[dict]:
    """Writes a patient's frames; gives their rows of the table."""
    threads, rows = cv2.getNumThreads(), []
    cv2.setNumThreads(1)
    for number in range(patient.frames):
        frame = simulator.render(patient, number)
        name = f"{patient.name}_{number + 1}.png"
        for kind, picture in (("frames", frame.image), ("masks", frame.mask.astype("uint8") * 255)):
            if not cv2.imwrite(str(folder / kind / name), picture):
                raise OSError(f"{folder}: the frame {name} could not be written; is the disk full?")
        row = {"image": f"frames/{name}", "label": patient.label, "patient": patient.name, "age": patient.age}
        row |= {"sex": patient.sex, "device": patient.scanner.name, "view": frame.view}
        row |= {"nodule_size_mm": patient.signs["size_mm"], "caliper": frame.caliper, "text": frame.text}
        row |= zip(("sector_x", "sector_y", "sector_width", "sector_height"), frame.sector)
        rows.append(row | {f"sign_{sign}": patient.signs[sign] for sign in SIGNS})
    cv2.setNumThreads(threads)
    return rows
