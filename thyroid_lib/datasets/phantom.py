"""phantom:clinic, phantom:external and phantom:open: simulated frames, written once into a cache.

Frames, masks and their table lie in ``$THYROID_CACHE``, else in the user's cache folder, under a name made
of everything they depend on, the simulator's own source included; a second read simulates nothing.
"""

import hashlib
import os
import shutil
import tempfile
from pathlib import Path

import cv2
import pandas as pd
from joblib import Parallel, delayed, effective_n_jobs

from thyroid_lib import LESION_TYPES
from thyroid_lib.common.files import cache_folder
from thyroid_lib.common.progress import progress
from thyroid_lib.datasets import contract
from thyroid_lib.phantoms import anatomy, nodule, scene, signs
from thyroid_lib.phantoms import frame as phantoms

CHUNK = 16  # patients handed to a worker at a time
WORTH_WORKERS = 96  # patients below which starting processes costs more than it saves
TITLES = {
    "clinic": "simulated clinic, scanner A",
    "external": "simulated second hospital, scanner B",
    "open": "simulated open data, scanners C and D",
}
NAMES = {**LESION_TYPES, "benign": ("benign", "良性"), "malignant": ("malignant", "恶性")}


def read(
    source: str, *, patients: str = "120", seed: str = "0", answer: str = "0", jobs: int = -1
) -> pd.DataFrame:
    """Reads a phantom source, simulating it first where the cache has not got it.

    Args:
        source: `clinic`, `external` or `open`.
        patients: how many; each has 1 to 4 frames.
        seed: another seed gives other patients.
        answer: 1 prints the label on every frame, outside the sector, for the shortcut audit.
        jobs: worker processes, -1 for one per core; the frames do not depend on it.

    Returns:
        The manifest, with `mask`, `age`, `sex`, `device`, `view`, `nodule_size_mm`, `caliper`, `text`,
        `sector_x`, `sector_y`, `sector_width`, `sector_height` (px) and the drawn signs as `sign_*`.

    Raises:
        DatasetError: an unknown source, or an option that is no number.
    """
    values = {}
    for name, text, least in (
        ("patients", patients, 1),
        ("seed", seed, 0),
        ("answer", answer, 0),
        ("jobs", jobs, -1),
    ):
        try:
            values[name] = int(text)
        except ValueError:
            raise contract.DatasetError(
                f"phantom:{source}: expected a whole number for {name}, came {text!r}."
            ) from None
        if values[name] < least:
            raise contract.DatasetError(f"phantom:{source}: expected {name} of {least} or more, came {text}.")
    if source not in phantoms.SOURCES:
        raise contract.DatasetError(
            f"phantom: expected one of {', '.join(phantoms.SOURCES)}, came {source!r}; "
            "for example phantom:clinic?patients=120."
        )
    folder = cache_folder() / "phantoms" / _name(source, values)
    if not (folder / "table.csv").is_file():
        _simulate(folder, source, values, int(jobs))
    text_columns = ["image", "label", "patient", "sex", "device", "view", "text"]
    rows = pd.read_csv(folder / "table.csv", dtype=dict.fromkeys(text_columns, str), keep_default_na=False)
    root = folder.absolute().as_posix()
    rows["path"] = root + "/" + rows["image"]
    rows["mask"] = root + "/masks/" + rows["image"].str.removeprefix("frames/")
    classes = phantoms.SOURCES[source]["labels"]
    return contract.table(
        rows.to_dict("records"),
        dataset=f"phantom:{source}",
        title=TITLES[source],
        classes=classes,
        names={key: NAMES[key] for key in classes},
        simulated=True,
    )


def _name(source: str, values: dict) -> str:
    digest = hashlib.sha256(cv2.__version__.encode())
    for module in (phantoms, anatomy, nodule, scene, signs):
        digest.update(Path(module.__file__).read_bytes())
    words = [
        source,
        f"p{values['patients']}",
        f"s{values['seed']}",
        *(["answer"] if values["answer"] else []),
    ]
    return "-".join([*words, digest.hexdigest()[:12]])


def _simulate(folder: Path, source: str, values: dict, jobs: int) -> None:
    people = phantoms.patients(source, values["patients"], values["seed"])
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        (partial / "frames").mkdir()
        (partial / "masks").mkdir()
        serial = len(people) < WORTH_WORKERS
        starts = range(0, len(people), CHUNK)
        results = Parallel(n_jobs=1 if serial else effective_n_jobs(jobs), return_as="generator")(
            delayed(_write)(partial, people[start : start + CHUNK], bool(values["answer"]))
            for start in starts
        )
        done = progress(results, "simulating patients", len(people), size=_patients_of)
        rows = [row for chunk in done for row in chunk]
        pd.DataFrame(rows).to_csv(partial / "table.csv", index=False)
        os.replace(partial, folder)
    except OSError:
        if not (folder / "table.csv").is_file():  # else another process was first: its frames are the same
            raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _patients_of(rows: list[dict]) -> int:
    return len({row["patient"] for row in rows})


def _write(folder: Path, people: list[phantoms.Patient], answer: bool) -> list[dict]:
    threads = cv2.getNumThreads()
    cv2.setNumThreads(1)
    rows = []
    for patient in people:
        for number in range(patient.frames):
            frame = phantoms.render(patient, number, answer)
            name = f"{patient.name}_{number + 1}.png"
            done = cv2.imwrite(str(folder / "frames" / name), frame.image)
            done &= cv2.imwrite(str(folder / "masks" / name), frame.mask.astype("uint8") * 255)
            if not done:
                raise OSError(f"{folder}: the frame {name} could not be written; is the disk full?")
            rows.append(
                {
                    "image": f"frames/{name}",
                    "label": patient.label,
                    "patient": patient.name,
                    "age": patient.age,
                    "sex": patient.sex,
                    "device": patient.scanner.name,
                    "view": frame.view,
                    "nodule_size_mm": patient.signs["size_mm"],
                    "caliper": frame.caliper,
                    "text": frame.text,
                    **dict(zip(("sector_x", "sector_y", "sector_width", "sector_height"), frame.sector)),
                    **{f"sign_{sign}": patient.signs[sign] for sign in signs.SIGNS},
                }
            )
    cv2.setNumThreads(threads)
    return rows
