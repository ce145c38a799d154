"""The evidence for `datasets.duplicates.NEAR`: how many bits differ between frames that do and do not show the same.

    python benchmarks/near_duplicates.py phantom:clinic?patients=400 ddti:PATH busi:PATH

For each set: the smallest distances between frames of different groups, the quantiles of all of them, and how
many pairs within a group (frames of one patient; for BUSI the pairs of its near-duplicate list) lie at most at
NEAR. Needs about 10 ms a frame and core.
"""

import argparse

import numpy as np
from joblib import Parallel, delayed

from thyroid_lib import datasets
from thyroid_lib.common.progress import progress
from thyroid_lib.datasets import duplicates


def distances(phash: list[str]) -> np.ndarray:
    """uint16 (N, N), number of differing bits."""
    words = np.array([np.frombuffer(bytes.fromhex(h), np.uint64) for h in phash])
    return np.stack([np.bitwise_count(word ^ words).sum(1, dtype=np.uint16) for word in words])


def fingerprint(path: str) -> str:
    """pHash of one frame."""
    return duplicates.fingerprint(datasets.load_frame(path))[1]


def main() -> None:
    """Prints one block for each data set."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("specs", nargs="+", metavar="SPEC")
    for spec in parser.parse_args().specs:
        data = datasets.read(spec)
        jobs = Parallel(n_jobs=-1, return_as="generator")(delayed(fingerprint)(p) for p in data["path"])
        bits = distances(list(progress(jobs, f"hashing {len(data)} frames", len(data))))
        groups = data["group"].to_numpy()
        upper = np.triu(np.ones(bits.shape, bool), 1)
        same = groups[:, None] == groups[None]
        across, within = bits[upper & ~same], bits[upper & same]
        quantiles = np.quantile(across, [1e-4, 1e-3, 0.5]) if len(across) else []
        title = data.attrs["title"] + (" (simulated)" if data.attrs["simulated"] else "")
        print(f"{title}: {len(data)} frames, {len(set(groups))} groups, NEAR = {duplicates.NEAR}")
        print(f"  across groups: {len(across)} pairs, smallest {np.sort(across)[:12].tolist()}")
        print(f"  across groups: quantiles 0.0001, 0.001, 0.5: {[float(round(q)) for q in quantiles]}")
        print(f"  across groups: {int((across <= duplicates.NEAR).sum())} at most NEAR")
        print(f"  within groups: {int((within <= duplicates.NEAR).sum())} of {len(within)} at most NEAR")


if __name__ == "__main__":
    main()
