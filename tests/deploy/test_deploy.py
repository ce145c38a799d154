"""Back-ends: one answer whatever runs the network, without PyTorch where that is promised."""

import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
import small_classifier as small
from PIL import Image

from thyroid_lib.classifier import Classifier, ClassifierError, backends
from thyroid_lib.deploy import export

pytest.importorskip("onnx")
pytest.importorskip("onnxscript")
pytest.importorskip("onnxruntime")
OPENVINO = ["openvino"] * backends.installed("openvino")
PAIRS = [("onnxruntime", "fp32"), ("torch", "bf16")]
PAIRS += [(name, precision) for name in OPENVINO for precision in ("fp32", "bf16")]


@pytest.fixture(scope="module")
def exported(classifier_folder, tmp_path_factory):
    """The classifier in a run with crops, and the ONNX that `export` wrote."""
    run = tmp_path_factory.mktemp("run")
    (run / "data/finetune").mkdir(parents=True)
    np.save(run / "data/finetune/crops.npy", small.crops_of(range(40)))
    shutil.copytree(classifier_folder, run / "classifier")
    assert export.main([str(run / "classifier")]) == 0
    return run / "classifier"


@pytest.fixture
def copy(exported, tmp_path):
    return shutil.copytree(exported, tmp_path / "classifier")


def test_export_records_parity_on_the_runs_own_crops_and_leaves_the_definition(exported, classifier_folder):
    record = json.loads((exported / "model.onnx.json").read_text(encoding="utf-8"))
    assert record["crops"] == 40 and record["crops_source"] == "crops of this run's data"
    assert {"torch fp32", "torch bf16", "onnxruntime fp32"} <= set(record["parity"])
    for name, found in record["parity"].items():
        assert found["passed"] and found["same_type"] >= 0.999
        assert found["max_difference"] <= 1e-4 or not name.endswith("fp32")
    assert (exported / "classifier.json").read_bytes() == (classifier_folder / "classifier.json").read_bytes()


@pytest.mark.parametrize("name, precision", PAIRS)
def test_every_backend_gives_pytorchs_answer_at_any_batch_size(exported, name, precision):
    expected = Classifier.load(exported, backend="torch")
    found = Classifier.load(exported, backend=name, precision=precision)
    assert found.id == expected.id
    tolerance = 1e-4 if precision == "fp32" else 0.02
    for count in (1, 2, 5):
        crops = small.crops_of(range(50, 50 + count))
        np.testing.assert_allclose(found.probabilities(crops), expected.probabilities(crops), atol=tolerance)
        if precision == "fp32":
            for ours, theirs in zip(found.run(crops)[1:], expected.run(crops)[1:]):  # features and maps
                np.testing.assert_allclose(ours, theirs, atol=1e-3)
    one, other = found.classify(small.sector_frame(60)), expected.classify(small.sector_frame(60))
    assert (one.box, one.lesion_type, one.warnings) == (other.box, other.lesion_type, other.warnings)


@pytest.mark.slow  # another export
def test_a_classifier_that_mirrors_does_so_in_every_backend(exported, tmp_path):
    mirror = small.make(tmp_path / "mirror", 1, mirror=True)
    crops = small.crops_of(range(50, 53))
    plain = Classifier.load(exported, backend="torch").run
    straight, mirrored = plain(crops).logits[:1], plain(crops[:, :, ::-1]).logits[:1]
    Image.fromarray(small.sector_frame(0)).save(tmp_path / "frame.png")
    assert export.main([str(mirror), "--images", str(tmp_path / "*.png")]) == 0
    for name in ("torch", "onnxruntime", *OPENVINO):
        run = Classifier.load(mirror, backend=name).run
        found, other = run(crops), run(crops[:, :, ::-1])
        np.testing.assert_allclose(found.logits, (straight + mirrored) / 2, atol=2e-3)
        # the map of an image and that of its mirror image, turned back, are one map
        np.testing.assert_allclose(found.maps, other.maps[..., ::-1], atol=2e-3)
    assert np.abs(straight - mirrored).max() > 0.01


@pytest.mark.parametrize("name", ["onnxruntime", *OPENVINO])
def test_classifying_without_torch_or_pandas_with_the_deploy_extra(exported, tmp_path, name):
    Image.fromarray(small.sector_frame(1)).save(tmp_path / "f.png")
    blocked = "torch pandas scipy matplotlib torchvision safetensors.torch".split()
    code = f"import sys; sys.modules |= dict.fromkeys({blocked})\n"
    code += "from thyroid_lib.deploy.command import main; sys.exit(main(sys.argv[1:]))"
    arguments = [tmp_path / "f.png", "--classifier", exported, "--backend", name, "--out", tmp_path / "out"]
    command = [sys.executable, "-c", code, "--json", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["lesion_type"] in small.CLASSES


def test_auto_takes_an_exported_network_and_falls_back_to_torch(copy):
    assert backends.choose(copy) == [*OPENVINO, "onnxruntime"][0]
    (copy / "model.onnx").unlink()
    assert backends.choose(copy) == "torch"
    with pytest.raises(ClassifierError, match="export CLASSIFIER_DIR"):
        backends.choose(copy, "onnxruntime")


@pytest.mark.parametrize("how, said", [
    ({"backend": "abacus"}, "back-end 'abacus': one of auto, .*was expected"),
    ({"precision": "fp8"}, "precision 'fp8': one of fp32, bf16 was expected"),
    ({"backend": "onnxruntime", "precision": "bf16"}, "fp32 only"),
])  # fmt: skip
def test_a_backend_or_precision_that_is_not_there_says_so(exported, how, said):
    with pytest.raises(ClassifierError, match=said):
        Classifier.load(exported, **how)


def test_a_backend_that_is_not_installed_says_what_to_install(exported, monkeypatch):
    monkeypatch.setattr(backends, "installed", lambda name: name == "torch")
    assert backends.choose(exported) == "torch"
    with pytest.raises(ClassifierError, match=r"thyroid_lib\[deploy\]"):
        backends.choose(exported, "openvino")
    monkeypatch.setattr(backends, "installed", lambda name: False)
    with pytest.raises(ClassifierError, match="pip install torch"):
        backends.choose(exported)


def test_an_onnx_file_that_was_changed_or_is_anothers_is_refused(copy):
    record = json.loads((copy / "model.onnx.json").read_text(encoding="utf-8"))
    for content, said in (
        (json.dumps(record | {"classifier": "another"}), "of another classifier"),
        (json.dumps(record | {"sha256": "0"}), "SHA-256"),
        ("[]", "expected a JSON object, came list"),
    ):
        (copy / "model.onnx.json").write_text(content)
        with pytest.raises(ClassifierError, match=said):
            Classifier.load(copy, backend="onnxruntime")


def test_in_bfloat16_only_close_calls_are_decided_again_in_fp32():
    asked = []

    def backend(name, logits):
        def run(crops):
            asked.append((name, len(crops)))
            rows = np.asarray(logits, np.float32)[crops[:, 0, 0]]
            return backends.Outputs(rows[None], rows, rows[:, :, None, None])

        return run

    quick = backend("quick", [[2.0, 0.0], [0.0, 0.01], [0.0, 3.0]])  # the second: p = 0.4975 and 0.5025
    exact = backend("exact", [[9.0, 0.0], [0.01, 0.0], [9.0, 0.0]])
    crops = np.repeat(np.arange(3, dtype=np.uint8), 16).reshape(3, 4, 4)
    both = backends.refereed(quick, lambda: exact, [1.0])
    outputs = both(crops)
    assert asked == [("quick", 3), ("exact", 1)]
    np.testing.assert_allclose(outputs.logits[0], [[2.0, 0.0], [0.01, 0.0], [0.0, 3.0]])
    np.testing.assert_allclose(outputs.features[1], [0.01, 0.0])
    both(crops[::2])
    assert asked[2:] == [("quick", 2)]


def test_an_export_that_disagrees_with_pytorch_leaves_nothing_behind(copy, tmp_path, monkeypatch, capsys):
    Image.fromarray(small.sector_frame(1)).save(tmp_path / "frame.png")
    network = (copy / "model.onnx").read_bytes()  # the exporter takes its time, and other tests run it
    monkeypatch.setattr("torch.onnx.export", lambda whole, crops, file, **_: file.write_bytes(network))
    monkeypatch.setattr(export, "MAX_DIFFERENCE", -1.0)
    assert export.main([str(copy), "--images", str(tmp_path / "frame.png")]) == 2
    assert "was not kept" in capsys.readouterr().err
    assert not list(copy.glob("*model.onnx*"))


def test_export_without_usable_images_or_classifier_says_so(exported, tmp_path, capsys):
    (tmp_path / "x.png").write_text("x")
    assert export.main([str(exported), "--images", str(tmp_path / "x.png")]) == 2
    assert "at least one ultrasound frame" in capsys.readouterr().err
    assert export.main([str(tmp_path)]) == 2
    assert "no classifier folder" in capsys.readouterr().err
