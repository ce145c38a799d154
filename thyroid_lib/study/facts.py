"""What a run can say for itself: one short answer, with its place, per question that a reviewer asks.

Everything is read from the run's files (metrics.json, predictions.csv, classifier.json, the crops' indices);
where they are silent the answer is "not done", never a guess. ``thyroid_lib.study.checklists`` puts these answers
into the reporting items of CLAIM 2024, TRIPOD+AI and STARD-AI.
"""

from functools import cached_property
from pathlib import Path

import pandas as pd

from thyroid_lib.common.files import read_json
from thyroid_lib.common.messages import say
from thyroid_lib.evaluation import task as tasks
from thyroid_lib.evaluation.results import OURS

REPORTED, NOT_DONE = "reported", "not done"


class Facts:
    """Answers of one run; every public method without arguments is a fact.

    Args:
        folder: the run's folder.

    Each fact returns (state, value, place): state is ``REPORTED`` or ``NOT_DONE``; value says it in a few
    words; place is the notebook or file where more is.
    """

    def __init__(self, folder: Path):
        self._folder = Path(folder)
        self._all = read_json(self._folder / "metrics.json")
        self._m = self._all.get("05_evaluate", {})
        self._run = read_json(self._folder / "run.json")
        self._classifier = read_json(self._folder / "classifier" / "classifier.json")

    def __contains__(self, name: str) -> bool:
        return not name.startswith("_") and callable(getattr(type(self), name, None))

    @cached_property
    def _roles(self) -> dict[str, dict]:
        folders = {role: self._folder / "data" / role for role in ("pretrain", "finetune", "external")}
        return {
            role: read_json(folder / "crops.json")
            | {"index": pd.read_csv(folder / "index.csv", low_memory=False)}
            for role, folder in folders.items()
            if (folder / "crops.json").is_file()
        }

    @property
    def _training(self) -> dict:
        return self._classifier.get("training", {})

    @property
    def _simulated(self) -> bool:
        """Whether what is tested on is simulated, whatever the network was pre-trained on."""
        tested = [role["simulated"] for name, role in self._roles.items() if name != "pretrain"]
        return bool(tested) and all(tested)

    @cached_property
    def task(self) -> tasks.Task:
        """What the classes are."""
        return tasks.of(self._roles.get("finetune", {}).get("names", {}), simulated=self._simulated)

    @property
    def _images_of(self) -> dict[str, int]:
        counts, order = (
            self._training.get("images_of", {}),
            self._roles.get("finetune", {}).get("classes", []),
        )
        return {key: counts[key] for key in [*order, *(set(counts) - set(order))] if key in counts}

    def _image(self, place: str) -> dict:
        return self._m.get(place, {}).get(OURS, {}).get("image", {})

    def design(self):
        """Prospective or retrospective."""
        text = (
            "simulated images, neither prospective nor retrospective" if self._simulated else "retrospective"
        )
        return REPORTED, text, "01_preprocess"

    def goal(self):
        """Goal of the study."""
        return (
            REPORTED,
            f"development and evaluation of a classifier of {self.task.plural}; feasibility",
            "02, 04, 05",
        )

    def sources(self):
        """Sources of the data."""
        titles = [f"{name}: {role['title']}" + (" (simulated)" if role["simulated"] else "")
                  for name, role in self._roles.items()]  # fmt: skip
        return REPORTED, "; ".join(titles), "01_preprocess, DATA_SHEET.md"

    def exclusions(self):
        """Who was left out."""
        flow = self._m.get("flow", {}).get("finetune", {})
        left = sum(flow.get("left_out", {}).values())
        return (
            REPORTED,
            f"{left} of {flow.get('files', '?')} files left out, each with its reason",
            "05, flow diagram",
        )

    def preprocessing(self):
        """Pre-processing."""
        recipe = ", ".join(f"{k} {v}" for k, v in self._classifier.get("recipe", {}).items())
        size = self._classifier.get("size", "?")
        return (
            REPORTED,
            f"largest connected region ({recipe}), letterboxed to {size} px, grey",
            "01_preprocess",
        )

    def subsets(self):
        """Subsets of the data."""
        return REPORTED, "all labelled frames that could be read", "01_preprocess"

    def identity(self):
        """De-identification."""
        if self._simulated:
            return REPORTED, "simulated: there is no person behind an image", "01_preprocess"
        return (
            NOT_DONE,
            "images are taken as given; the names of their files are in predictions.csv, free text is not",
            "",
        )

    def missing(self):
        """Missing data."""
        return (
            REPORTED,
            "no imputation: unlabelled frames are left out, empty covariates are 'not stated'",
            "05",
        )

    def acquisition(self):
        """Acquisition."""
        devices = {name: sorted({str(d) for d in role["index"].get("device", pd.Series(dtype=str)).dropna()})
                   for name, role in self._roles.items()}  # fmt: skip
        known = [f"{name}: {', '.join(values)}" for name, values in devices.items() if values]
        return (
            (REPORTED, "devices " + "; ".join(known), "01")
            if known
            else (NOT_DONE, "no device is stated", "")
        )

    def reference(self):
        """Reference standard."""
        title = self._roles.get("finetune", {}).get("title", "")
        return REPORTED, f"{self.task.reference} ({title})", "01_preprocess"

    def agreement_raters(self):
        """Agreement of raters."""
        return NOT_DONE, "the data hold one label per image", ""

    def partitions(self):
        """Assignment to partitions."""
        folds = len(self._training.get("folds", [])) or "?"
        kept = self._all.get("01_preprocess", {}).get("finetune", {}).get("split_hash", "")
        return (
            REPORTED,
            f"stratified folds between groups, {folds} tested; split {kept[:12]}",
            "01_preprocess",
        )

    def disjoint(self):
        """Level of disjointness."""
        return REPORTED, "patient plus near-duplicates (group); asserted when cut, read and tested", "01, 04"

    def sample_size(self):
        """Sample size."""
        return NOT_DONE, "taken as given; every interval shows what the size allows", "05"

    def model(self):
        """The model."""
        config = self._classifier.get("architecture", {})
        words = ", ".join(f"{k} {config[k]}" for k in ("width", "middle_blocks", "dilation") if k in config)
        return REPORTED, f"{config.get('name', '?')} ({words})", "02_architecture, classifier/classifier.json"

    def software(self):
        """Software."""
        versions = self._classifier.get("versions", {})
        return REPORTED, ", ".join(f"{k} {v}" for k, v in versions.items()), "run.json, requirements.lock"

    def initialization(self):
        """Initialization."""
        if "pretrained_weights" not in self._training:
            return NOT_DONE, "the classifier does not say", ""
        if self._training["pretrained_weights"] == "none":
            return REPORTED, "random", "04_finetune"
        source = self._roles.get("pretrain", {}).get("title", "open data")
        return REPORTED, f"pre-trained on {source}", "03_pretrain"

    def training(self):
        """Training."""
        s = self._training.get("settings", {})
        keys = (
            "loss",
            "focal_weight",
            "gamma",
            "epochs",
            "batch_size",
            "lr",
            "weight_decay",
            "augment",
            "seed",
        )
        return (
            REPORTED,
            ", ".join(f"{k} {s[k]}" for k in keys if k in s) or "see classifier.json",
            "04_finetune",
        )

    def selection(self):
        """Selection of the final model."""
        return REPORTED, "epoch with the highest macro AUROC on the validation part", "04_finetune"

    def ensemble(self):
        """Ensembling."""
        n = self._classifier.get("members", 1)
        text = f"mean probability of {n} folds' networks" if n > 1 else "none, one network"
        return REPORTED, text + "; internal testing always by one network", "classifier/classifier.json"

    def metrics(self):
        """Performance metrics."""
        text = (
            "AUROC, average precision, operating point, MCC, calibration, net benefit, by image and patient"
        )
        return REPORTED, text, "05, docs/evaluation.md"

    def uncertainty(self):
        """Uncertainty."""
        draws = self._m.get("draws", "?")
        return REPORTED, f"95 % patient-cluster bootstrap, {draws} draws; DeLong as a cross-check", "05"

    def robustness(self):
        """Robustness."""
        found = self._m.get("robustness", {})
        worst = {kind: list(levels.values())[-1]["loss"] for kind, levels in found.items()}
        known = {kind: loss for kind, loss in worst.items() if loss["value"] is not None}
        if not known:
            return NOT_DONE, "too few patients, or not run", ""
        kind = max(known, key=lambda name: known[name]["value"])
        return REPORTED, f"{len(found)} changes; worst {kind}: macro AUROC falls by {say(known[kind])}", "05"

    def maps(self):
        """Explanations and their check."""
        verdicts = list(self._m.get("maps", {}).get("trained", {}).get("verdicts", {}).values())
        if not verdicts:
            return NOT_DONE, "", ""
        count = {state: verdicts.count(state) for state in ("pass", "fail", "not done")}
        return REPORTED, f"checks of the maps: {', '.join(f'{n} {s}' for s, n in count.items())}", "05"

    def internal(self):
        """Internal testing."""
        return self._score("internal")

    def external(self):
        """External testing."""
        return self._score("external")

    def _score(self, place: str):
        metrics = self._image(place)
        if not metrics:
            return NOT_DONE, f"the run has no {place} predictions", ""
        return REPORTED, f"macro AUROC {say(metrics['macro_auroc'])}", f"05, {place} testing"

    def flow(self):
        """Flow diagram."""
        flow = self._m.get("flow", {}).get("finetune", {})
        return REPORTED, f"{flow.get('files', '?')} files to {flow.get('tested', '?')} tested images", "05"

    def characteristics(self):
        """Characteristics of patients."""
        words = []
        for name, role in self._roles.items():
            patients = role["index"].drop_duplicates("patient")
            known = self._all.get("01_preprocess", {}).get(name, {}).get("patients_known", True)
            text = f"{name}: {len(patients)} {'patients' if known else 'images without patient identifiers'}"
            if "age" in patients and patients["age"].notna().any():
                text += f", median age {patients['age'].median():.0f}"
            if "sex" in patients and patients["sex"].notna().any():
                text += f", {(patients['sex'] == 'F').mean():.0%} female"
            words.append(text)
        return REPORTED, "; ".join(words), "01, DATA_SHEET.md"

    def performance(self):
        """Performance on every set."""
        parts = [
            f"{p} {say(self._image(p).get('macro_auroc'))}"
            for p in ("internal", "external")
            if self._image(p)
        ]
        return REPORTED, "macro AUROC " + ", ".join(parts), "05, predictions.csv"

    def operating(self):
        """Accuracy at the operating point."""
        image = self._image("internal")
        parts = [f"{k.partition('/')[2]} {say(v)}" for k, v in image.items() if k.startswith("sensitivity/")]
        return REPORTED, "sensitivity " + ", ".join(parts), "05, internal testing"

    def thresholds(self):
        """Thresholds."""
        return REPORTED, "one per type, largest Youden's J on the validation part, then frozen", "04_finetune"

    def confusion(self):
        """Cross tabulation."""
        return REPORTED, "counts by reference standard and prediction, both sets", "05"

    def failures(self):
        """Failures."""
        errors = self._m.get("errors", {})
        wrong = sum(v["errors"] for v in errors.values())
        total = sum(v["images"] for v in errors.values())
        return REPORTED, f"{wrong} errors in {total} images, the most confident shown with maps", "05"

    def limitations(self):
        """Limitations."""
        if self._simulated:
            return REPORTED, "simulated data: no clinical meaning", "05, STUDY_CARD.md"
        n = self._image("internal").get("accuracy", {}).get("n_patients", 0)
        text = f"{n} patients tested; reference standard: {self.task.reference}"
        text += "" if self._image("external") else "; one source, external testing not done"
        return REPORTED, text, "05, STUDY_CARD.md"

    def availability(self):
        """Availability."""
        commit = (self._run.get("environment", {}).get("git_commit") or "")[:12]
        return (
            REPORTED,
            f"code Apache-2.0{', commit ' + commit if commit else ''}; weights in the run",
            "run.json",
        )

    def dates(self):
        """Dates."""
        return NOT_DONE, "simulated" if self._simulated else "the data do not state dates", ""

    def predictors(self):
        """Predictors."""
        return (
            REPORTED,
            "the grey pixels of the crop and nothing else; age, sex and device are not read",
            "01",
        )

    def sites(self):
        """Differences between sources."""
        found = self._m.get("drop", {}).get(OURS, {}).get("macro_auroc")
        if not found:
            return NOT_DONE, "one source only", ""
        return REPORTED, f"another source; macro AUROC falls by {say(found)}", "05, external testing"

    def frozen(self):
        """How predictions were calculated."""
        return REPORTED, "weights, temperature and operating points frozen before testing", "04, 05"

    def imbalance(self):
        """Class imbalance."""
        counts = self._images_of
        s = self._training.get("settings", {})
        how = f"sampling {s.get('sampling', '?')}, class weights {s.get('class_weights', '?')}"
        return REPORTED, f"{', '.join(f'{k} {n}' for k, n in counts.items())}; {how}", "04_finetune"

    def fairness(self):
        """Fairness."""
        groups = self._m.get("internal", {}).get(OURS, {}).get("subgroups", {})
        values = [v["macro_auroc"]["value"] for levels in groups.values() for v in levels.values()]
        if not any(v is not None for v in values):
            return NOT_DONE, f"{len(values)} subgroups, all with too few patients", "05, subgroups"
        return REPORTED, f"{sum(v is not None for v in values)} of {len(values)} subgroups large enough", "05"

    def output(self):
        """Output."""
        return (
            REPORTED,
            f"a calibrated probability per {self.task.noun}, a verdict per operating point",
            "04, 07",
        )

    def blind(self):
        """Blinding."""
        return (
            REPORTED,
            "the network sees the crop alone; print outside the sector is cut away",
            "01, 05 audit",
        )

    def indeterminate(self):
        """Indeterminate results."""
        found = self._m.get("internal", {}).get(OURS, {}).get("conformal", {})
        if "coverage" not in found:
            return NOT_DONE, found.get("reason", ""), "05, selective use"
        return (
            REPORTED,
            f"prediction sets: coverage {say(found['coverage'])}, size {say(found['set_size'])}",
            "05",
        )

    def spectrum(self):
        """Spectrum of disease."""
        counts = self._images_of
        return REPORTED, ", ".join(f"{k} {n} images" for k, n in counts.items()), "01, 04"

    def weights(self):
        """Identity of the model."""
        digest = self._classifier.get("files", {}).get("model.safetensors", {}).get("sha256", "")
        return REPORTED, f"{self._classifier.get('id', '?')}, SHA-256 {digest[:16]}…", "classifier/"

    def novelty(self):
        """Poor input at the point of use."""
        if not self._classifier.get("novelty"):
            return NOT_DONE, "the classifier has no model of unlike images", ""
        return (
            REPORTED,
            "refuses unreadable frames, warns of frames unlike the training data",
            "07, classifier/",
        )

    def shortcuts(self):
        """Shortcuts."""
        views = self._m.get("audit", {}).get("views", {})
        return (REPORTED, f"{len(views)} views, three readers", "05, audit") if views else (NOT_DONE, "", "")
