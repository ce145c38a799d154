"""How fast frames become crops, on one core and two, beside the same steps written with scikit-image.

    python benchmarks/preprocess.py                  # two CPU cores: about four minutes
    python benchmarks/preprocess.py --ten-thousand   # also 10,000 phantom frames: simulated, checked, cropped, split
    python benchmarks/preprocess.py --smoke          # seconds; its numbers mean nothing

Contestants take turns, round after round, so that a busy machine disturbs all alike; medians count. All read
the same 560 x 360 px files and write the same three arrays.

    one_core, two_cores   thyroid_lib.data.crops.build with one and two processes (and its audit of printed text)
    scikit_image          decode, median, threshold, closing, opening, labels, largest, crop, letterbox; one core
    phantoms              frames simulated a second, one core
    memory_mib            peak of a fresh process that crops few and many frames

Writes benchmarks/results/preprocess.json.
"""

import argparse
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import turns

from thyroid_lib import datasets, manifest, regions
from thyroid_lib.data import crops
from thyroid_lib.phantoms import frame

SIZE = 128


def scikit_image(rows: list[dict], folder: Path) -> list[tuple]:
    """The steps of the recipe with scikit-image; returns the boxes it found."""
    from skimage import filters, io, measure, morphology, transform

    recipe = regions.RECIPE

    def square(side):
        return morphology.footprint_rectangle((side, side), decomposition="separable")

    def letterbox(image, order=1):
        left, top, width, height = regions.letterbox_box(image.shape, SIZE)
        smooth = image.dtype != bool and max(image.shape) > SIZE
        small = transform.resize(
            image, (height, width), order=order, anti_aliasing=smooth, preserve_range=True
        )
        canvas = np.zeros((SIZE, SIZE), np.uint8)
        canvas[top : top + height, left : left + width] = small
        return canvas

    arrays = [
        np.lib.format.open_memmap(folder / f"{name}.npy", "w+", np.uint8, (len(rows), SIZE, SIZE))
        for name in crops.ARRAYS
    ]
    boxes = []
    for number, row in enumerate(rows):
        gray = io.imread(row["path"])
        mask = io.imread(row["mask"]) > 127
        binary = filters.median(gray, np.ones((recipe.median,) * 2)) > recipe.threshold
        binary = morphology.closing(binary, square(recipe.closing))
        binary = morphology.opening(binary, square(recipe.opening))
        labels = measure.label(binary, connectivity=1)
        region = max(measure.regionprops(labels), key=lambda found: found.area)
        top, left, bottom, right = region.bbox
        top, left = max(0, top - recipe.margin), max(0, left - recipe.margin)
        bottom, right = min(gray.shape[0], bottom + recipe.margin), min(gray.shape[1], right + recipe.margin)
        arrays[0][number] = letterbox(gray[top:bottom, left:right])
        arrays[1][number] = letterbox(gray)
        arrays[2][number] = letterbox(mask[top:bottom, left:right], order=0)
        boxes.append((left, top, right - left, bottom - top))
    return boxes


def rate(function, count: int) -> float:
    start = time.perf_counter()
    function()
    return count / (time.perf_counter() - start)


def cropping(table: pd.DataFrame, count: int, slow: int, rounds: int, folder: Path) -> dict:
    """Frames a second of every contestant, round by round."""
    rows = pd.concat([table] * (count // len(table) + 1), ignore_index=True).iloc[:count]
    rows["image"] = [f"{number}.png" for number in range(count)]
    rows.attrs = {}
    few = rows.iloc[:slow].to_dict("records")
    crops.WORTH_WORKERS = 0

    def ours(jobs):
        return crops.build(rows, folder / "ours", size=SIZE, jobs=jobs)

    boxes = scikit_image(few, folder)
    found = ours(2).index.iloc[:slow]  # the workers are started now
    same = np.array(boxes) == found[["box_x", "box_y", "box_width", "box_height"]].to_numpy()
    contestants = {
        "one_core": (lambda: ours(1), count),
        "two_cores": (lambda: ours(2), count),
        "scikit_image": (lambda: scikit_image(few, folder), slow),
    }
    rates = {name: [] for name in contestants}
    for _ in range(rounds):
        for name, (function, frames) in contestants.items():
            rates[name].append(rate(function, frames))
    middle = {name: statistics.median(values) for name, values in rates.items()}
    return {
        "frames": count,
        "frames_scikit_image": slow,
        "frames_per_second": middle,
        "rounds": rates,
        "same_boxes": float(same.all(1).mean()),
        "times_scikit_image": middle["one_core"] / middle["scikit_image"],
        "second_core": middle["two_cores"] / middle["one_core"],
    }


def simulating(patients: int, rounds: int) -> dict:
    """Frames of scanner A a second, on one core."""
    cv2.setNumThreads(1)
    people = frame.patients("clinic", patients)
    count = sum(person.frames for person in people)

    def work():
        for person in people:
            for number in range(person.frames):
                frame.render(person, number)

    work()
    rates = [rate(work, count) for _ in range(rounds)]
    return {"frames": count, "frames_per_second": statistics.median(rates), "rounds": rates}


def memory(table: pd.DataFrame, counts: tuple[int, int], folder: Path) -> dict:
    """Peak memory in MiB of a fresh process that crops so many frames."""
    table.to_csv(folder / "table.csv", index=False)
    script = """
import resource, sys
import pandas as pd
from thyroid_lib.data import crops
table = pd.read_csv(sys.argv[1] + "/table.csv", keep_default_na=False)
rows = pd.concat([table] * (int(sys.argv[2]) // len(table) + 1), ignore_index=True).iloc[: int(sys.argv[2])]
crops.build(rows, sys.argv[1] + "/memory", size=128, jobs=1)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
"""
    peaks = {}
    for count in counts:
        command = [sys.executable, "-c", script, str(folder), str(count)]
        peaks[str(count)] = float(subprocess.run(command, capture_output=True, check=True, text=True).stdout)
    return peaks


def ten_thousand(frames: int, folder: Path) -> dict:
    """Phantom frames simulated, checked, grouped, split and cropped on two cores: seconds and peak MiB."""
    os.environ["THYROID_CACHE"] = str(folder / "cache")
    people, count = 0, 0
    while count < frames:
        people += 500
        count = sum(person.frames for person in frame.patients("clinic", people))
    seconds, start = {}, time.perf_counter()

    def lap(name):
        seconds[name] = time.perf_counter() - start - sum(seconds.values())

    table = datasets.read(f"phantom:clinic?patients={people}")
    lap("simulate")
    clean, _ = manifest.check(table, jobs=2)
    lap("check and group")
    attrs = clean.attrs
    clean = manifest.split(clean, 5)
    clean.attrs = attrs
    lap("split")
    found = crops.build(clean, folder / "many", size=SIZE, jobs=2)
    lap("crop")
    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    workers = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss  # the largest of them
    return {
        "frames": len(found),
        "patients": people,
        "seconds": seconds,
        "total_seconds": sum(seconds.values()),
        "memory_mib": {"parent": used / 1024, "largest_worker": workers / 1024},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--smoke", action="store_true")
    parser.add_argument("--ten-thousand", action="store_true")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    os.environ.setdefault("THYROID_STATUS", os.devnull)  # no bars among the numbers
    cv2.setNumThreads(1)  # a core is a core
    small = options.smoke
    rounds = 1 if small else options.rounds
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        os.environ["THYROID_CACHE"] = str(folder / "cache")
        table = datasets.read(f"phantom:clinic?patients={4 if small else 60}")
        result = {
            "smoke": small,
            "machine": {
                "processor": _processor(),
                "cores": os.cpu_count(),
                "python": platform.python_version(),
                "opencv": cv2.__version__,
            },
            "size": SIZE,
            "cropping": cropping(table, 64 if small else 1500, 8 if small else 60, rounds, folder),
            "phantoms": simulating(4 if small else 60, rounds),
            "memory_mib": memory(table, (64, 128) if small else (1000, 8000), folder),
        }
        if options.ten_thousand:
            result["ten_thousand"] = ten_thousand(100 if small else 10_000, folder)
    turns.report("preprocess", result, small)


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


if __name__ == "__main__":
    main()
