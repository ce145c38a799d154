"""What must not leave: identifiers planted in headers, names, tables and pixels are searched for in every output.

They stand where hospitals put them: in DICOM headers and the folders of an export, in the columns of a table and in
file names made from them, in the metadata of image files, and printed beside the sector.
"""

import base64
import functools
import io
import itertools
import re
import sys
from pathlib import Path

import cv2
import hospital
import numpy as np
import pytest
import small_classifier as small
import yaml
from PIL import Image, PngImagePlugin

from thyroid_lib import datasets
from thyroid_lib.common.files import PROJECT, read_json
from thyroid_lib.data import audit, check_data, crops
from thyroid_lib.deploy import command
from thyroid_lib.phantoms import frame as phantoms
from thyroid_lib.study import runner

WHERE = yaml.safe_load((PROJECT / "tests" / "project" / "planted.yaml").read_text(encoding="utf-8"))
HEADER = WHERE["header"]
WORDS = {word for value in HEADER.values() for word in re.split(r"[\^ ]", value)}
PLANTED = sorted(WORDS - {"of", "left", "lobe", "thyroid", "neighbour", "EPIQ", "66", "Saint"})
PLANTED += WHERE["paths"] + WHERE["table"] + WHERE["files"]


def leaks(text: str) -> list[str]:
    text = text.casefold()
    return [word for word in PLANTED if word.casefold() in text]


def search(count, *texts: str) -> None:
    """Asserts that no planted word is in the texts, and counts what was searched."""
    found = {word for text in texts for word in leaks(text)}
    size = sum(len(text.encode("utf-8", "replace")) for text in texts)
    count(planted=len(PLANTED), searched=size, leaked=sum(len(word.encode()) for word in found))
    assert size > 100 and not found


def printed(gray: np.ndarray) -> np.ndarray:
    """A frame with a name burned in beside the sector: a row of white strokes that nothing else draws."""
    gray = gray.copy()
    gray[:14] = 0
    cv2.putText(gray, "QUISLING", (4, 11), cv2.FONT_HERSHEY_PLAIN, 0.9, 255)
    return gray


def dicom(path: Path, gray: np.ndarray, uid: int = 1, **header) -> Path:
    data = hospital.scan(gray, Manufacturer="Philips Healthcare", PatientSex="F", **HEADER | header)
    data.SOPInstanceUID = data.file_meta.MediaStorageSOPInstanceUID = f"1.2.840.77345.3.{uid}"
    return hospital.save(path, data)


@pytest.fixture(autouse=True)
def own_cache(monkeypatch, tmp_path_factory):
    monkeypatch.setenv("THYROID_CACHE", str(tmp_path_factory.mktemp("cache")))
    monkeypatch.delenv("THYROID_HASH_KEY", raising=False)


@functools.cache
def phantom_frames(patients: int) -> list[tuple[str, np.ndarray]]:
    """(label, frame): simulated frames, one per patient."""
    return [(one.label, phantoms.render(one, 0).image) for one in phantoms.patients("clinic", patients, 3)]


def export(root: Path, patients: int = 20) -> Path:
    """A DICOM export as hospitals make them: folders and files named after the patients."""
    for number, (label, gray) in enumerate(phantom_frames(patients)):
        who = {"PatientID": f"MRN-7734512-{number}", "StudyInstanceUID": f"1.2.840.77345.1.{number}"}
        dicom(root / label / "Karenina_Anna" / f"Dossier_{number}.dcm", printed(gray), number, **who)
    return root


def table(root: Path, patients: int = 20) -> Path:
    """A clinic's table with columns that name people, and file names made from them."""
    root.mkdir(parents=True)
    lines = ["image,label,patient,name,姓名,mrn,birth_date,phone,remark"]
    for number, (label, gray) in enumerate(phantom_frames(patients)):
        Image.fromarray(gray).save(root / f"raskolnikov_{number}.png")
        person = f"Raskolnikov {number}" if number % 2 else f"p{number}"
        who = f"{person},Rodion Raskolnikov {number},罗季昂,MRN-2718281,1866-01-15,13800138000"
        lines.append(f'raskolnikov_{number}.png,{label},{who},"called 罗季昂, seen twice"')
    (root / "manifest.csv").write_text("\n".join(lines), encoding="utf-8")
    return root


def written(folder: Path) -> list[str]:
    """Names and contents of all files below a folder, bytes read as Latin letters, and again as UTF-8."""
    texts = []
    for path in sorted(folder.rglob("*")):
        texts.append(path.relative_to(folder).as_posix())
        if path.is_file():
            texts += [path.read_bytes().decode(code, "ignore") for code in ("latin-1", "utf-8", "utf-16-le")]
    return texts


@pytest.mark.parametrize("source", ["dicom", "manifest"])
def test_no_planted_identifier_is_in_what_preprocessing_shows(source, tmp_path, capfd, caplog, count):
    root = {"dicom": export, "manifest": table}[source](tmp_path / "in" / "Dossier")
    specs, out = {"finetune": f"{source}:{root}"}, tmp_path / "out"
    prepared = audit.prepare(specs, folds=2, jobs=1)
    cropped = crops.build(prepared["finetune"].clean, out / "finetune", size=32, jobs=1)
    assert len(cropped) >= 12
    options = ["--folds", "2", "--jobs", "1", "--all", "--table", str(out / "t.csv")]
    check_data.main([specs["finetune"], *options])
    public = prepared["finetune"].clean.drop(columns=["path", "mask"], errors="ignore")
    tables = [public, audit.problem_table(prepared), audit.duplicate_table(prepared), audit.worst(cropped)]
    titled = [prepared["finetune"].title, *capfd.readouterr(), *written(out)]
    if source == "manifest":  # its title is the folder's name, which the user may set with ?title=
        titled = [text.replace("manifest Dossier", "") for text in titled]
    search(count, caplog.text, *titled, *(table.to_csv() for table in tables))


def test_a_table_whose_cells_repeat_a_name_is_still_split_by_patient(tmp_path):
    root = table(tmp_path / "clinic")
    prepared = audit.prepare({"finetune": f"manifest:{root}"}, folds=2, jobs=1)["finetune"].clean
    assert prepared["image"].str.fullmatch(r"row \d+").all() and prepared["patient"].is_unique
    assert set(prepared.loc[prepared["patient"].str.startswith("p"), "patient"].str[0]) == {"p"}
    assert prepared["path"].map(lambda path: Path(path).is_file()).all()


def png_with_words(gray: np.ndarray) -> bytes:
    words = PngImagePlugin.PngInfo()
    words.add_text("Author", "Bovary")
    words.add_itxt("Description", "Flaubert-Hospital")
    exif, buffer = Image.Exif(), io.BytesIO()
    exif[0x010E], exif[0x013B] = "Bovary", "Flaubert-Hospital"
    Image.fromarray(gray).save(buffer, "PNG", pnginfo=words, exif=exif)
    assert b"Bovary" in buffer.getvalue()
    return buffer.getvalue()


def classified(classifier_folder, paths, out: Path, capfd, *options: str) -> tuple[list[str], str]:
    """The pages of `classify --out` and what it printed, the paths as given taken out: they are the user's words."""
    fixed = ["--classifier", str(classifier_folder), "--backend", "torch", "--out", str(out)]
    assert command.main([*map(str, paths), *fixed, *options]) in (0, 1)
    said = "".join(capfd.readouterr())
    for path in sorted(map(str, paths), key=len, reverse=True):
        said = re.sub(re.escape(path) + r"[^\s\",]*", "", said)
    return written(out), said


@pytest.mark.parametrize("json", [True, False])
def test_no_planted_identifier_is_in_the_reports_of_classify(classifier_folder, tmp_path, capfd, count, json):
    root = tmp_path / "Dossier"
    for number in range(3):
        name = f"Karenina_{number}.dcm"
        dicom(root / "study" / name, printed(small.sector_frame(number)), number)
    (root / "study" / "Karenina_cut.dcm").write_bytes((root / "study" / "Karenina_0.dcm").read_bytes()[:3000])
    dicom(root / "study" / "Karenina_mr.dcm", small.sector_frame(4), 4, Modality="MR")
    (root / "plain.png").write_bytes(png_with_words(printed(small.sector_frame(9))))
    texts, said = classified(classifier_folder, [root], tmp_path / "out", capfd, *["--json"] * json)
    search(count, *texts, said)
    pages = [p.read_text(encoding="utf-8") for p in (tmp_path / "out").glob("*.html")]
    assert (
        len(pages) == 4
    )  # the study with a file cut short, what is no ultrasound, the plain image, the index
    assert sum("Philips" in page for page in pages) == 1


@pytest.mark.parametrize("kind", ["dicom", "png"])
def test_print_beside_the_sector_cannot_be_read_in_a_report(classifier_folder, tmp_path, capfd, kind):
    bare = small.sector_frame(2)
    bare[:14] = 0
    dicom(tmp_path / "frame.dicom", printed(bare))
    Image.fromarray(printed(bare)).save(tmp_path / "frame.png")
    classified(classifier_folder, [tmp_path / f"frame.{kind}"], tmp_path / "out", capfd)
    (page,) = [p.read_text(encoding="utf-8") for p in (tmp_path / "out").glob("*.html")]
    embedded = re.findall(r"data:image/\w+;base64,([A-Za-z0-9+/=]+)", page)
    shown = [np.asarray(Image.open(io.BytesIO(base64.b64decode(text))).convert("L")) for text in embedded]
    frame = next(picture for picture in shown if picture.shape == bare.shape)
    strokes = printed(bare)[:14]
    assert strokes.max() == 255 and np.abs(np.diff(frame[:14].astype(int))).max() < 100
    around = frame[:14, 4:76]
    seen = np.corrcoef(around.ravel(), strokes[:, 4:76].ravel())[0, 1] if around.std() else 0
    assert seen < 0.35
    assert (frame[60:120, 120:160] == bare[60:120, 120:160]).all()  # the tissue itself is as it was


def test_a_study_has_one_name_in_all_and_another_by_another_key(
    classifier_folder, tmp_path, capfd, monkeypatch
):
    path = dicom(tmp_path / "papillary_carcinoma" / "a.dcm", small.sector_frame(1))
    row = datasets.read(f"dicom:{tmp_path}").iloc[0]
    paths = [path, dicom(tmp_path / "b.dcm", small.sector_frame(2), 2)]
    texts, _ = classified(classifier_folder, paths, tmp_path / "1", capfd)
    assert any(f"files of study {row['study']}" in text for text in texts)
    assert any(row["device"] in text for text in texts)
    monkeypatch.setenv("THYROID_HASH_KEY", "another key of the same hospital")
    texts, _ = classified(classifier_folder, paths, tmp_path / "2", capfd)
    assert not any(row["study"] in text for text in texts)


def test_an_error_names_the_hash_of_a_file_and_its_owner_finds_it(tmp_path, capsys, sees, count):
    root = export(tmp_path / "export", patients=4)
    broken = next(root.rglob("Dossier_0.dcm"))
    broken.write_bytes(broken.read_bytes()[:-5000])
    assert check_data.main([f"dicom:{root}", "--jobs", "1"]) == 1
    out = "".join(capsys.readouterr())
    assert sees in out
    search(count, out)
    name = re.search(r"dicom/[0-9a-f]{16}", out[out.index(sees) :])[0]
    check_data.main([f"dicom:{root}", "--find", name])
    assert capsys.readouterr().out.strip() == broken.relative_to(root).as_posix()


@pytest.mark.slow
def test_no_planted_identifier_is_in_any_file_of_a_whole_run(tmp_path, monkeypatch, capfd, count):
    monkeypatch.setenv("THYROID_REPORTS", str(tmp_path / "reports"))
    monkeypatch.delenv("THYROID_STATUS", raising=False)
    root = export(tmp_path / "Karenina" / "export", patients=60)
    link = tmp_path / "clinic"  # the path of the data is a parameter of the run, chosen by its owner
    link.symlink_to(root)
    monkeypatch.setattr(runner.profiles, "locate", lambda spec: spec)
    assert runner.main(["--profile", "smoke", "--finetune-data", f"dicom:{link}", "--external-data", ""]) == 0
    run = tmp_path / "reports" / "smoke"
    assert set(read_json(run / "run.json")["stages"]) >= {"01_preprocess", "04_finetune", "05_evaluate"}
    search(count, *written(tmp_path / "reports"), *capfd.readouterr())


def test_the_search_itself_finds_what_is_there(tmp_path, count):
    (tmp_path / "x" / "Karenina").mkdir(parents=True)
    (tmp_path / "x" / "Karenina" / "a.bin").write_bytes("罗季昂".encode("utf-16-le") + b"\0")
    found = set(itertools.chain.from_iterable(map(leaks, written(tmp_path / "x"))))
    assert found == {"Karenina", "罗季昂"} and sys.byteorder == "little"
