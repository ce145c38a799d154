"""Do the 95 % intervals hold the truth in 95 of 100 studies? The evidence for `thyroid_lib.evaluation.bootstrap`.

    OMP_NUM_THREADS=1 python benchmarks/bootstrap_coverage.py            # 500 studies, some minutes on two cores
    OMP_NUM_THREADS=1 python benchmarks/bootstrap_coverage.py --studies 20 --draws 200 --out /tmp/coverage.json

Each simulated study has 80 patients of four lesion types (shares 0.40, 0.25, 0.20, 0.15) with 1 to 8 images.
The images of a patient share three quarters of the variance of their logits. `metrics.evaluate` is run as notebook
05 runs it, once with patients resampled and once with images resampled, and the truth comes from a million
images. Writes benchmarks/results/bootstrap_coverage.json.
"""

import argparse
import json
import time
from pathlib import Path

import numpy as np
import pandas as pd
from joblib import Parallel, delayed
from scipy import stats
from scipy.special import softmax

from thyroid_lib.common.progress import progress
from thyroid_lib.evaluation import metrics

KEYS = ["a", "b", "c", "d"]
SHARES = np.array([0.40, 0.25, 0.20, 0.15])
SIGNAL, SHARED = 1.6, 0.75  # size of the true type's logit; share of the noise's variance that a patient has
MOST_IMAGES = 8
METRICS = ("macro_auroc", "auroc/a", "auroc/d", "average_precision/a", "accuracy", "balanced_accuracy", "mcc",
           "sensitivity/a", "specificity/a", "sensitivity/d", "brier", "log_loss")  # fmt: skip


def study(patients: int, seed: int) -> pd.DataFrame:
    """Predictions of one simulated study.

    Args:
        patients: how many, each with 1 to ``MOST_IMAGES`` images.
        seed: of the study.
    """
    rng = np.random.default_rng(seed)
    lesion = rng.choice(len(KEYS), patients, p=SHARES)
    owner = np.repeat(np.arange(patients), rng.integers(1, MOST_IMAGES + 1, patients))
    own = rng.normal(size=(patients, len(KEYS)))[owner]
    noise = np.sqrt(SHARED) * own + np.sqrt(1 - SHARED) * rng.normal(size=own.shape)
    logits = SIGNAL * np.eye(len(KEYS))[lesion[owner]] + noise
    p = softmax(1.5 * logits, axis=1)
    names = owner.astype(str)
    table = pd.DataFrame({"model": "m", "set": "internal", "patient": names, "group": names, "fold": 0})
    table["image"] = np.arange(len(owner)).astype(str)
    table["truth"], table["dataset"] = np.array(KEYS)[lesion[owner]], "simulated"
    for k, key in enumerate(KEYS):
        table["p_" + key] = table["raw_" + key] = p[:, k]
        table["positive_" + key] = (p[:, k] >= 0.3).astype(int)
    return table


def covered(seed: int, patients: int, draws: int, truth: dict[str, float]) -> dict:
    """Whether each interval of one study holds the truth, and how wide it is."""
    table, result = study(patients, seed), {}
    for unit, rows in (("patients", table), ("images", table.assign(patient=table["image"]))):
        found = metrics.evaluate(rows, draws=draws, seed=seed)
        for name in METRICS:
            metric = found[name]
            if metric["value"] is not None:
                holds = metric["low"] <= truth[name] <= metric["high"]
                result[unit, name] = (bool(holds), metric["high"] - metric["low"])
    return result


def main() -> None:
    """Runs the experiment and writes its result."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--studies", type=int, default=500)
    parser.add_argument("--patients", type=int, default=80)
    parser.add_argument("--draws", type=int, default=2000)
    parser.add_argument("--jobs", type=int, default=-1)
    default = Path(__file__).parent / "results" / "bootstrap_coverage.json"
    parser.add_argument("--out", type=Path, default=default)
    options = parser.parse_args()
    started = time.time()
    many = study(222_000, seed=10**6)
    found = metrics.evaluate(many.assign(patient=many["image"]), draws=1)
    truth = {name: found[name]["value"] for name in METRICS}
    jobs = Parallel(n_jobs=options.jobs, return_as="generator")(
        delayed(covered)(seed, options.patients, options.draws, truth) for seed in range(options.studies)
    )
    results = list(progress(jobs, "studies", options.studies))
    table = {}
    for unit in ("patients", "images"):
        for name in METRICS:
            known = [r[unit, name] for r in results if (unit, name) in r]
            hits = sum(holds for holds, _ in known)
            low, high = stats.binomtest(hits, len(known)).proportion_ci(method="wilson")
            table.setdefault(name, {"truth": truth[name]})[unit] = {
                "coverage": round(hits / len(known), 4),
                "coverage_interval": [round(low, 4), round(high, 4)],
                "mean_width": round(float(np.mean([width for _, width in known])), 4),
                "studies": len(known),
            }
    report = {
        "simulated": True,
        "studies": options.studies,
        "patients": options.patients,
        "images_per_patient": [1, MOST_IMAGES],
        "draws": options.draws,
        "shared_variance": SHARED,
        "metrics": table,
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    print(f"{'metric':22}{'patients':>10}{'images':>10}{'too narrow by':>16}")
    for name, row in table.items():
        p, i = row["patients"], row["images"]
        print(f"{name:22}{p['coverage']:10.3f}{i['coverage']:10.3f}{p['mean_width'] / i['mean_width']:16.2f}")
    print(f"{options.studies} studies in {time.time() - started:.0f} s, written to {options.out}")


if __name__ == "__main__":
    main()
