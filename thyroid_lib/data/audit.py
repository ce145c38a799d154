"""What notebook 01 asks of its data: do the crops hold what they should, and could a network cheat?"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd

from thyroid_lib import datasets, manifest, regions
from thyroid_lib.data.crops import Crops
from thyroid_lib.datasets import contract


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
    for role in sorted(
        (role for role in specs if specs[role]), key=("finetune", "external", "pretrain").index
    ):
        clean, problems = manifest.check(datasets.read(specs[role]), jobs=jobs)
        flow = clean.attrs["flow"]
        for earlier in found.values():
            clean, problems, flow = _apart(clean, problems, flow, earlier)
        if not len(clean):
            counted = problems.loc[problems["action"] == manifest.LEFT_OUT, "problem"].value_counts()
            reasons = "; ".join(f"{count} x {reason}" for reason, count in counted.head(5).items())
            raise manifest.ManifestError(f"{role} ({specs[role]}): no frame is left to use. {reasons}")
        if role == "finetune":
            attrs = clean.attrs
            clean = manifest.split(clean, folds, seed)
            clean.attrs = attrs
        found[role] = Prepared(role, clean, problems, pd.DataFrame(flow))
    return {role: found[role] for role in specs if role in found}


def _apart(clean, problems, flow, earlier: Prepared):
    shared = manifest.overlap(clean, earlier.clean)
    attrs = clean.attrs
    bad = clean["image"].isin(shared["image_a"])
    listed = [
        {"row": pd.NA, "column": "image", "image": image, "action": manifest.LEFT_OUT,
         "problem": f"shows the same as a frame of the {earlier.role} data"}
        for image in clean.loc[bad, "image"]
    ]  # fmt: skip
    clean = clean[~bad].reset_index(drop=True)
    clean.attrs = attrs
    step = {"step": f"not in the {earlier.role} data", "images": len(clean),
            "patients": clean["patient"].nunique(), "left_out": len(listed)}  # fmt: skip
    if listed:
        problems = pd.concat([problems, pd.DataFrame(listed)], ignore_index=True)
    return clean, problems, pd.concat([pd.DataFrame(flow), pd.DataFrame([step])], ignore_index=True)


def split_table(clean: pd.DataFrame) -> pd.DataFrame:
    """Images and patients of each class in each fold: one row per fold, "images / patients" per class."""
    classes = clean.attrs.get("classes") or sorted(set(clean["label"]))
    grouped = clean.groupby(["fold", "label"])
    images, patients = grouped.size(), grouped["patient"].nunique()
    rows = {
        fold: {
            **{key: f"{images.get((fold, key), 0)} / {patients.get((fold, key), 0)}" for key in classes},
            "all": f"{(clean['fold'] == fold).sum()} / {clean.loc[clean['fold'] == fold, 'patient'].nunique()}",
        }
        for fold in sorted(set(clean["fold"]))
    }
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("fold")


def crop_audit(crops: Crops, inside: float = 0.95) -> dict[str, float]:
    """How well the crops hold what they should.

    Args:
        crops: of one role.
        inside: part of the nodule's pixels that must lie in the crop for it to count as held.

    Returns:
        `crops`, `excluded`; `with_nodule` (frames with a mask), `nodule_held` (fraction of them with at least
        `inside` of it in the crop), `nodule_whole` (fraction with all of it); `print_in_frame` and
        `print_in_crop` (fractions of frames with lines of print), `kept_area` (median part of the frame).
    """
    index = crops.index
    held = index["mask_inside"].dropna()
    area = index["box_width"] * index["box_height"] / (index["frame_width"] * index["frame_height"])
    return {
        "crops": len(index),
        "excluded": len(crops.excluded),
        "with_nodule": len(held),
        "nodule_held": float((held >= inside).mean()) if len(held) else float("nan"),
        "nodule_whole": float((held >= 1).mean()) if len(held) else float("nan"),
        "print_in_frame": float((index["frame_text_lines"] > 0).mean()),
        "print_in_crop": float((index["text_lines"] > 0).mean()),
        "kept_area": float(area.median()),
    }


def worst(crops: Crops, count: int = 8) -> pd.DataFrame:
    """The crops to look at first: nodules cut off, then print inside, then the smallest part of the frame."""
    index = crops.index
    area = index["box_width"] * index["box_height"] / (index["frame_width"] * index["frame_height"])
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
    things = {
        "calipers on the image": ("caliper", "crop"),
        "coloured marks on the image": ("coloured_marks", "crop"),
        "print around the sector": ("text", "frame"),
        "scanner": ("device", "crop"),
        "view": ("view", "crop"),
        "frame size": (None, "frame"),
        "crop's proportions": (None, "crop"),
        "age": ("age", "table"),
        "sex": ("sex", "table"),
    }
    rows = []
    for what, (column, visible) in things.items():
        if what == "frame size":
            values = index["frame_width"].astype(str) + "x" + index["frame_height"].astype(str)
        elif what == "crop's proportions":
            values = _binned(index["box_width"] / index["box_height"])
        elif column not in index or index[column].isna().all():
            continue
        else:
            values = _binned(index[column]) if what == "age" else index[column].astype(str)
        rows.append({"what": what, "visible": visible, "association": cramers_v(values, index["label"])})
    return pd.DataFrame(rows).sort_values("association", ascending=False, ignore_index=True)


def cramers_v(a: pd.Series, b: pd.Series) -> float:
    """Bias-corrected Cramér's V of two categorical columns (Bergsma, J Korean Stat Soc 2013): 0 to 1."""
    table = pd.crosstab(a, b).to_numpy(np.float64)
    n, (rows, columns) = table.sum(), table.shape
    if min(rows, columns) < 2 or n < 2:
        return 0.0
    expected = np.outer(table.sum(1), table.sum(0)) / n
    phi = ((table - expected) ** 2 / expected).sum() / n
    phi = max(0.0, phi - (rows - 1) * (columns - 1) / (n - 1))
    rows, columns = rows - (rows - 1) ** 2 / (n - 1), columns - (columns - 1) ** 2 / (n - 1)
    return float(np.sqrt(phi / max(min(rows, columns) - 1, 1e-9)))


def _binned(values: pd.Series, bins: int = 4) -> pd.Series:
    ranks = pd.to_numeric(values, errors="coerce").rank(method="average", pct=True)
    return np.ceil(ranks * bins).fillna(0).astype(int).astype(str)


def steps(row, size: int, recipe: regions.Recipe = regions.RECIPE) -> dict:
    """Every step from one frame to its crop, for a figure or a slider.

    Returns:
        `frame`, `binary`, `regions` (list), `box`, `crop` (uint8, size x size), `mask` (bool or None).
    """
    gray = datasets.load_frame(row)
    image, _ = regions.extract(gray, size, recipe)
    return {
        "frame": gray,
        "binary": regions.binarize(gray, recipe),
        "regions": regions.connected_regions(gray, recipe),
        "crop": image,
        "mask": datasets.load_mask(row, gray.shape),
        "title": row["label"] if isinstance(row, Mapping) else row.label,
    }


def step_examples(prepared: Mapping[str, Prepared], size: int, recipe=regions.RECIPE) -> list[dict]:
    """One frame per role through every step, for `plots.steps`: the middle one of those with a nodule."""
    examples = []
    for role, data in prepared.items():
        rows = data.clean
        if "mask" in rows and rows["mask"].fillna("").ne("").any():
            rows = rows[rows["mask"].fillna("").ne("")]
        row = rows.iloc[len(rows) // 2].to_dict()
        examples.append({**steps(row, size, recipe), "source": f"{role}: {row['dataset']}"})
    return examples


def problem_table(prepared: Mapping[str, Prepared], longest: int = 20) -> pd.DataFrame:
    """Findings of the checks, counted: `data`, `action`, `problem`, `images` and one `example`.

    Problems that differ in a number or a name only are counted together.
    """
    rows = []
    for role, data in prepared.items():
        kind = data.problems["problem"].str.replace(r"'[^']*'|\d[\d.]*", "…", regex=True)
        for (action, problem), found in data.problems.groupby([data.problems["action"], kind], sort=False):
            rows.append({"data": role, "action": action, "problem": problem, "images": len(found),
                         "example": found["image"].iloc[0]})  # fmt: skip
    table = pd.DataFrame(rows, columns=["data", "action", "problem", "images", "example"])
    table = table.sort_values("images", ascending=False, kind="stable", ignore_index=True)
    if len(table) > longest:
        rest = table.iloc[longest - 1 :]
        more = {
            "data": "",
            "action": "",
            "problem": f"{len(rest)} more kinds",
            "images": rest["images"].sum(),
        }
        table = pd.concat(
            [table.iloc[: longest - 1], pd.DataFrame([{**more, "example": "see problems.csv"}])]
        )
    if not len(table):
        table.loc[0] = ["all", "none", "nothing was found wrong", 0, ""]
    return table


def duplicate_table(prepared: Mapping[str, Prepared]) -> pd.DataFrame:
    """Pairs of frames that show the same, by role: `identical` and `near`, within and across patients."""
    rows = []
    for role, data in prepared.items():
        found = data.clean.attrs["duplicates"]
        identical, same = found["identical"].astype(bool), found["same_patient"].astype(bool)
        rows.append({"data": role, "identical, one patient": int((identical & same).sum()),
                     "identical, two patients": int((identical & ~same).sum()),
                     "near, one patient": int((~identical & same).sum()),
                     "near, two patients": int((~identical & ~same).sum()),
                     "example": " = ".join(found[["image_a", "image_b"]][~same].head(1).to_numpy().ravel()),
                     "patients": data.clean["patient"].nunique() if data.patients_known else "not known",
                     "groups": data.clean["group"].nunique()})  # fmt: skip
    return pd.DataFrame(rows)


def flows(prepared: Mapping[str, Prepared], cropped: Mapping[str, Crops]) -> dict[str, pd.DataFrame]:
    """The flow of each role down to its crops, for `plots.flow`."""
    result = {}
    for role, data in prepared.items():
        index = cropped[role].index
        step = {"step": "crops", "images": len(index), "patients": index["patient"].nunique(),
                "left_out": len(cropped[role].excluded)}  # fmt: skip
        table = pd.concat([data.flow, pd.DataFrame([step])], ignore_index=True)
        if not data.patients_known:
            table["patients"] = pd.NA
        result[f"{role}: {data.title}"] = table
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
        data.problems.to_csv(cropped[role].folder / "problems.csv", index=False)
        labels = cropped[role].index["label"].value_counts()
        kept[role] = {
            **crop_audit(cropped[role]),
            "title": data.title,
            "simulated": data.simulated,
            "patients": cropped[role].index["patient"].nunique(),
            "patients_known": data.patients_known,
            "groups": cropped[role].index["group"].nunique(),
            "files": int(data.flow["images"].iloc[0]),
            "images_per_class": {key: int(labels.get(key, 0)) for key in cropped[role].classes},
            "crops_hash": cropped[role].hash,
        }
        if "fold" in data.clean:
            kept[role]["split_hash"] = manifest.split_hash(data.clean)
    if ceiling:
        kept["sign_reader"] = dict(ceiling)
    return kept


def findings(prepared: Mapping[str, Prepared], crops: Mapping[str, Crops], ceiling: Mapping | None) -> str:
    """What notebook 01 found, in Markdown, from this run's numbers."""
    lines = []
    for role, data in prepared.items():
        audit = crop_audit(crops[role])
        left = int(data.flow["left_out"].sum()) + audit["excluded"]
        index = crops[role].index
        people = (
            f"of {index['patient'].nunique()} patients"
            if data.patients_known
            else f"without patient identifiers, in {index['group'].nunique()} groups of frames that look alike"
        )
        text = (
            f"**{role}** ({data.title}): {audit['crops']} crops {people}; {left} files were left out, each listed "
            "above with its reason."
        )
        if audit["with_nodule"]:
            text += (
                f" At least 95 % of the nodule is in the crop in {audit['nodule_held']:.1%} of the "
                f"{audit['with_nodule']} frames that have one outlined."
            )
        text += (
            f" Print stands in {audit['print_in_frame']:.1%} of the frames and in "
            f"{audit['print_in_crop']:.1%} of the crops."
        )
        if "coloured_marks" in index:
            text += f" Coloured marks, such as calipers, are on {int(index['coloured_marks'].sum())} of the crops."
        if data.simulated:
            text += " These frames are simulated."
        lines.append(text)
    first = shortcuts(crops.get("finetune") or next(iter(crops.values())))
    strong = first[(first["association"] > 0.3) & (first["visible"] != "table")]
    lines.append(
        "Shortcuts: "
        + (
            ", ".join(f"{row.what} ({row.association:.2f})" for row in strong.itertuples())
            + f" go{'es' * (len(strong) == 1)} with the label (Cramér's V above 0.3). "
            "Notebook 05 tests what the network makes of it."
            if len(strong)
            else "nothing that is recorded beside the tissue goes with the label (Cramér's V below 0.3)."
        )
    )
    if ceiling:
        lines.append(
            f"A reader who sees every drawn sign and knows their frequencies would reach a macro AUROC of "
            f"{ceiling['macro_auroc']:.3f} and an accuracy of {ceiling['accuracy']:.3f} on the simulated "
            "fine-tuning data: no network can do better there, except by chance."
        )
    return "\n\n".join(lines)
