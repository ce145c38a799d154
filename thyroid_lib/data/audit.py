"""What notebook 01 asks of its data: do the crops hold what they should, and could a network cheat?"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
import yaml
from scipy.stats import chi2_contingency

from thyroid_lib import datasets, manifest, regions
from thyroid_lib.common.templates import TEMPLATES, render
from thyroid_lib.data.crops import Crops
from thyroid_lib.datasets import contract

# (column of the index, what it is, where a network could see it: "crop", "frame" or "table")
RECORDED = yaml.safe_load((TEMPLATES / "data" / "recorded.yaml").read_text(encoding="utf-8"))


@dataclass(frozen=True)
class Prepared:
    """One role's data on the way from files to crops.

    Attributes:
        role: `pretrain`, `finetune` or `external`.
        clean: the manifest that is cropped. problems: what was wrong, as `manifest.check` lists it.
        flow: columns `step`, `images`, `patients`, `left_out`.
    """

    role: str
    clean: pd.DataFrame
    problems: pd.DataFrame
    flow: pd.DataFrame

    @property
    def title(self) -> str:
        return self.clean.attrs.get("title") or self.role

    @property
    def simulated(self) -> bool:
        return bool(self.clean.attrs.get("simulated"))

    @property
    def patients_known(self) -> bool:
        """Whether the source says which frames are of one patient."""
        return not self.problems["problem"].eq(contract.NO_PATIENTS).any()


def prepare(specs: Mapping[str, str], *, folds: int, seed: int = 0, jobs: int = -1) -> dict[str, Prepared]:
    """Reads and checks every role's data, and keeps the roles apart.

    Frames that show the same as a frame of an earlier role are left out, in the order finetune, external,
    pretrain: fine-tuning keeps its own, external testing sees none of them, pre-training sees neither.
    The fine-tuning data are split into folds.

    Args:
        specs: role -> SPEC; an empty SPEC leaves the role out.
        folds: folds of the fine-tuning data.
        seed: of the split.
        jobs: worker processes.

    Returns:
        role -> Prepared, in the order of `specs`.

    Raises:
        ManifestError: a role is left without a frame, or the fine-tuning data cannot be split; with reasons.
    """
    found = {}
    for role in ("finetune", "external", "pretrain"):
        if not specs.get(role):
            continue
        clean, problems = manifest.check(datasets.read(specs[role]), jobs=jobs)
        data = Prepared(role, clean, problems, pd.DataFrame(clean.attrs["flow"]))
        for earlier in found.values():
            data = _apart(data, earlier)
        if data.clean.empty:
            counted = data.problems.loc[
                data.problems["action"] == manifest.LEFT_OUT, "problem"
            ].value_counts()
            reasons = "; ".join(f"{count} x {reason}" for reason, count in counted.head(5).items())
            raise manifest.ManifestError(f"{role} ({specs[role]}): no frame is left to use. {reasons}")
        if role == "finetune":
            data = replace(data, clean=manifest.split(data.clean, folds, seed))
        found[role] = data
    return {role: found[role] for role in specs if role in found}


def _apart(data: Prepared, earlier: Prepared) -> Prepared:
    """The data without the frames that an earlier role shows."""
    same = data.clean["image"].isin(manifest.overlap(data.clean, earlier.clean)["image_a"])
    problem = f"shows the same as a frame of the {earlier.role} data"
    listed = data.clean.loc[same, ["image"]].assign(column="image", action=manifest.LEFT_OUT, problem=problem)
    clean = data.clean[~same].reset_index(drop=True)
    flow = _with_step(data.flow, f"not in the {earlier.role} data", clean, len(listed))
    return Prepared(data.role, clean, pd.concat([data.problems, listed], ignore_index=True), flow)


def _with_step(flow: pd.DataFrame, step: str, rows: pd.DataFrame, left_out: int) -> pd.DataFrame:
    last = {"step": step, "images": len(rows), "patients": rows["patient"].nunique(), "left_out": left_out}
    return pd.concat([flow, pd.DataFrame([last])], ignore_index=True)


def split_table(clean: pd.DataFrame) -> pd.DataFrame:
    """Images and patients of each class in each fold: one row per fold, "images / patients" per class."""
    classes = clean.attrs.get("classes") or sorted(set(clean["label"]))
    cells = pd.concat([clean, clean.assign(label="all")]).groupby(["fold", "label"])
    texts = cells.size().astype(str) + " / " + cells["patient"].nunique().astype(str)
    return texts.unstack().reindex(columns=[*classes, "all"]).fillna("0 / 0").rename_axis(columns=None)


def _kept_area(index: pd.DataFrame) -> pd.Series:
    """Part of each frame that its crop keeps."""
    return index["box_width"] * index["box_height"] / (index["frame_width"] * index["frame_height"])


def crop_audit(crops: Crops) -> dict[str, float]:
    """How well the crops hold what they should.

    Args:
        crops: of one role.

    Returns:
        `crops`, `excluded`; `with_nodule` (frames with a mask), `nodule_held` (fraction of them with at least
        95 % of its pixels in the crop), `nodule_whole` (fraction with all of it); `print_in_frame` and
        `print_in_crop` (fractions of frames with lines of print), `kept_area` (median part of the frame).
    """
    index, held = crops.index, crops.index["mask_inside"].dropna()
    return {
        "crops": len(index),
        "excluded": len(crops.excluded),
        "with_nodule": len(held),
        "nodule_held": float((held >= 0.95).mean()),
        "nodule_whole": float((held >= 1).mean()),
        "print_in_frame": float((index["frame_text_lines"] > 0).mean()),
        "print_in_crop": float((index["text_lines"] > 0).mean()),
        "kept_area": float(_kept_area(index).median()),
    }


def worst(crops: Crops, count: int = 8) -> pd.DataFrame:
    """The crops to look at first: nodules cut off, then print inside, then the smallest part of the frame."""
    index, area = crops.index, _kept_area(crops.index)
    doubt = (1 - index["mask_inside"].fillna(1)) * 10 + index["text_lines"] + (area < 0.2) + (1 - area) * 1e-3
    return index.assign(doubt=doubt).nlargest(min(count, len(index)), "doubt", keep="first")


def shortcuts(crops: Crops) -> pd.DataFrame:
    """What a network could use instead of the nodule: how far each recorded thing goes with the label.

    Args:
        crops: of one role, labelled.

    Returns:
        One row per thing: `what`, `association` (Cramér's V with the label, corrected for chance as in
        Bergsma 2013: 0 none, 1 one decides the other) and `visible` ("crop", "frame" or "table").
    """
    index = crops.index
    frame_size = index["frame_width"].astype(str) + "x" + index["frame_height"].astype(str)
    proportions = _quarter(index["box_width"] / index["box_height"])
    values = index.assign(frame_size=frame_size, proportions=proportions)
    if "age" in index:
        values["age"] = _quarter(index["age"])
    rows = [
        (what, visible, cramers_v(values[column].astype(str), index["label"]))
        for column, what, visible in RECORDED
        if column in values and values[column].notna().any()
    ]
    table = pd.DataFrame(rows, columns=["what", "visible", "association"])
    return table.sort_values("association", ascending=False, ignore_index=True)


def cramers_v(a: pd.Series, b: pd.Series) -> float:
    """Bias-corrected Cramér's V of two categorical columns (Bergsma, J Korean Stat Soc 2013): 0 to 1."""
    table = pd.crosstab(a, b).to_numpy(np.float64)
    n, (rows, columns) = table.sum(), table.shape
    if min(rows, columns) < 2 or n < 2:
        return 0.0
    phi = chi2_contingency(table, correction=False).statistic / n
    phi = max(0.0, phi - (rows - 1) * (columns - 1) / (n - 1))
    rows, columns = rows - (rows - 1) ** 2 / (n - 1), columns - (columns - 1) ** 2 / (n - 1)
    return float(np.sqrt(phi / max(min(rows, columns) - 1, 1e-9)))


def _quarter(values: pd.Series) -> pd.Series:
    """In which quarter of all each number lies, 1 to 4."""
    return np.ceil(values.rank(pct=True) * 4)


def step_examples(prepared: Mapping[str, Prepared], size: int) -> list[dict]:
    """One frame per role through every step, for `plots.steps`: the middle one of those with a nodule.

    Returns:
        Per role `source`, `frame`, `binary`, `regions` (list), `crop` (uint8, size x size), `mask` (bool or None).
    """
    examples = []
    for role, data in prepared.items():
        rows = data.clean
        if "mask" in rows and rows["mask"].fillna("").ne("").any():
            rows = rows[rows["mask"].fillna("").ne("")]
        row = rows.iloc[len(rows) // 2].to_dict()
        gray = datasets.load_frame(row)
        example = {
            "source": f"{role}: {row['dataset']}",
            "frame": gray,
            "binary": regions.binarize(gray),
            "regions": regions.connected_regions(gray),
            "crop": regions.extract(gray, size)[0],
            "mask": datasets.load_mask(row, gray.shape),
        }
        examples.append(example)
    return examples


def problem_table(prepared: Mapping[str, Prepared]) -> pd.DataFrame:
    """Findings of the checks, counted: `data`, `action`, `problem`, `images` and one `example`.

    Problems that differ in a number or a name only are counted together. The 20 most frequent kinds; every
    single problem is in `problems.csv` beside the crops.
    """
    tables = []
    for role, data in prepared.items():
        kinds = data.problems["problem"].str.replace(r"'[^']*'|\d[\d.]*", "…", regex=True)
        counted = data.problems.assign(problem=kinds).groupby(["action", "problem"], sort=False)["image"]
        tables.append(counted.agg(images="size", example="first").reset_index().assign(data=role))
    table = pd.concat(tables).sort_values("images", ascending=False, kind="stable", ignore_index=True)
    columns = ["data", "action", "problem", "images", "example"]
    nothing = pd.DataFrame([("all", "none", "nothing was found wrong", 0, "")], columns=columns)
    return table[columns].head(20) if len(table) else nothing


def duplicate_table(prepared: Mapping[str, Prepared]) -> pd.DataFrame:
    """Pairs of frames that show the same, by role: `identical` and `near`, within and across patients."""
    rows = []
    for role, data in prepared.items():
        pairs = data.clean.attrs["duplicates"]
        one, row = pairs["same_patient"], {"data": role}
        for kind, chosen in (("identical", pairs["identical"]), ("near", ~pairs["identical"])):
            row[f"{kind}, one patient"] = (chosen & one).sum()
            row[f"{kind}, two patients"] = (chosen & ~one).sum()
        row["example"] = " = ".join(pairs.loc[~one, ["image_a", "image_b"]].head(1).to_numpy().flat)
        row["patients"] = data.clean["patient"].nunique() if data.patients_known else "not known"
        rows.append(row | {"groups": data.clean["group"].nunique()})
    return pd.DataFrame(rows)


def flows(prepared: Mapping[str, Prepared], cropped: Mapping[str, Crops]) -> dict[str, pd.DataFrame]:
    """The flow of each role down to its crops, for `plots.flow`."""
    result = {}
    for role, data in prepared.items():
        table = _with_step(data.flow, "crops", cropped[role].index, len(cropped[role].excluded))
        result[f"{role}: {data.title}"] = table if data.patients_known else table.assign(patients=pd.NA)
    return result


def audit_table(cropped: Mapping[str, Crops]) -> pd.DataFrame:
    """`crop_audit` of each role, one row each."""
    return pd.DataFrame({role: crop_audit(found) for role, found in cropped.items()}).T


def pictures(crops: Crops, rows: pd.DataFrame) -> tuple[np.ndarray, np.ndarray | None, list[str]]:
    """Images, masks and captions of some rows of the index, for `plots.gallery`."""
    place = rows.index.to_numpy()
    captions = [
        ("" if np.isnan(row.mask_inside) else f"{row.mask_inside:.0%} inside, ") + f"{row.text_lines} lines"
        for row in rows.itertuples()
    ]
    return crops.images[place], None if crops.masks is None else crops.masks[place], captions


def summary(prepared: Mapping[str, Prepared], cropped: Mapping[str, Crops], ceiling: Mapping | None) -> dict:
    """What notebook 01 keeps in `metrics.json`, and the full lists of problems beside the crops."""
    kept = {}
    for role, data in prepared.items():
        crops = cropped[role]
        data.problems.to_csv(crops.folder / "problems.csv", index=False)
        labels = crops.index["label"].value_counts()
        kept[role] = crop_audit(crops) | {
            "title": data.title,
            "simulated": data.simulated,
            "patients": crops.index["patient"].nunique(),
            "patients_known": data.patients_known,
            "groups": crops.index["group"].nunique(),
            "files": int(data.flow["images"].iloc[0]),
            "images_per_class": labels.reindex(crops.classes, fill_value=0).to_dict(),
            "crops_hash": crops.hash,
        }
        if "fold" in data.clean:
            kept[role]["split_hash"] = manifest.split_hash(data.clean)
    return kept | ({"sign_reader": dict(ceiling)} if ceiling else {})


def findings(prepared: Mapping[str, Prepared], crops: Mapping[str, Crops], ceiling: Mapping | None) -> str:
    """What notebook 01 found, in Markdown, from this run's numbers."""
    roles = [(data, crops[role], crop_audit(crops[role])) for role, data in prepared.items()]
    found = shortcuts(crops.get("finetune") or next(iter(crops.values())))
    strong = found[(found["association"] > 0.3) & (found["visible"] != "table")]
    return render("data/findings.md.j2", roles=roles, strong=strong, ceiling=ceiling)
