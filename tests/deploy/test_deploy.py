"""Back-ends: one answer whatever runs the network, without PyTorch where that is promised."""

import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
import small_classifier as small
from PIL import Image

from thyroid_lib.classifier import Classifier
from thyroid_lib.classifier import backends as deploy
from thyroid_lib.deploy import command, export

pytest.importorskip("onnx")
pytest.importorskip("onnxscript")
pytest.importorskip("onnxruntime")
HAS_OPENVINO = deploy.installed("openvino")
COMMAND = "import sys; from thyroid_lib.deploy.command import main; sys.exit(main())"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run folder with a classifier, its crops, and the ONNX that `export` wrote."""
    run = tmp_path_factory.mktemp("run")
    small.make(run / "classifier")
    (run / "data/finetune").mkdir(parents=True)
    np.save(run / "data/finetune/crops.npy", small.crops_of(range(40)))
    assert command.export_main([str(run / "classifier")]) == 0
    return run


@pytest.fixture
def copy(run, tmp_path):
    return shutil.copytree(run / "classifier", tmp_path / "classifier")


def backends():
    pairs = [("onnxruntime", "fp32"), ("torch", "bf16")]
    return pairs + ([("openvino", "fp32"), ("openvino", "bf16")] if HAS_OPENVINO else [])


def test_export_records_parity_on_the_runs_own_crops(run):
    record = json.loads((run / "classifier/model.onnx.json").read_text(encoding="utf-8"))
    assert record["crops"] == 40 and record["crops_source"] == "crops of this run's data"
    assert {"torch fp32", "torch bf16", "onnxruntime fp32"} <= set(record["parity"])
    for name, found in record["parity"].items():
        assert found["passed"]
        assert found["same_type"] >= 0.999
        if name.endswith("fp32"):
            assert found["max_difference"] <= 1e-4


@pytest.mark.parametrize("name, precision", backends())
@pytest.mark.parametrize("count", [1, 2, 5])
def test_every_backend_gives_pytorchs_answer_at_any_batch_size(run, name, precision, count):
    crops = small.crops_of(range(50, 50 + count))
    expected = Classifier.load(run / "classifier", backend="torch")
    found = Classifier.load(run / "classifier", backend=name, precision=precision)
    assert found.backend.name == name and found.id == expected.id
    tolerance = 1e-4 if precision == "fp32" else 0.02
    np.testing.assert_allclose(found.probabilities(crops), expected.probabilities(crops), atol=tolerance)
    ours, theirs = found.backend.run(crops), expected.backend.run(crops)
    if precision == "fp32":
        np.testing.assert_allclose(ours.features, theirs.features, atol=1e-3)
        np.testing.assert_allclose(ours.maps, theirs.maps, atol=1e-3)
    one, other = found.classify(small.sector_frame(60)), expected.classify(small.sector_frame(60))
    assert (one.box, one.lesion_type, one.warnings) == (other.box, other.lesion_type, other.warnings)


def test_a_classifier_that_mirrors_does_so_in_every_backend(tmp_path):
    small.make(tmp_path / "plain")
    small.make(tmp_path / "mirror", mirror=True)
    crops = small.crops_of(range(50, 53))
    plain = Classifier.load(tmp_path / "plain", backend="torch").backend
    (straight, _, maps), (mirrored, _, _) = plain.run(crops), plain.run(crops[:, :, ::-1])
    assert command.export_main([str(tmp_path / "mirror")]) == 0
    for name in ("torch", "onnxruntime", *["openvino"] * HAS_OPENVINO):
        found = Classifier.load(tmp_path / "mirror", backend=name).backend.run(crops)
        np.testing.assert_allclose(found.logits, (straight + mirrored) / 2, atol=2e-3)
        # the map of an image and that of its mirror image, turned back, are one map
        other = Classifier.load(tmp_path / "mirror", backend=name).backend.run(crops[:, :, ::-1])
        np.testing.assert_allclose(found.maps, other.maps[..., ::-1], atol=2e-3)
    assert np.abs(straight - mirrored).max() > 0.01 and np.isfinite(maps).all()


@pytest.mark.parametrize("name", ["onnxruntime"] + ["openvino"] * HAS_OPENVINO)
def test_classifying_without_torch_or_pandas_with_the_deploy_extra(run, tmp_path, name):
    Image.fromarray(small.sector_frame(1)).save(tmp_path / "f.png")
    code = (
        "import sys\n"
        "for blocked in ('torch', 'pandas', 'scipy', 'matplotlib', 'torchvision', 'safetensors.torch'):\n"
        "    sys.modules[blocked] = None\n"
        "from thyroid_lib.deploy.command import main\n"
        f"sys.exit(main([{str(tmp_path / 'f.png')!r}, '--classifier', {str(run / 'classifier')!r}, "
        f"'--json', '--backend', {name!r}, '--out', {str(tmp_path / 'out')!r}]))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["lesion_type"] in small.CLASSES


def test_auto_takes_an_exported_network_and_falls_back_to_torch(run, copy):
    chosen = deploy.choose(run / "classifier")
    assert chosen == ("openvino" if HAS_OPENVINO else "onnxruntime")
    (copy / "model.onnx").unlink()
    assert deploy.choose(copy) == "torch"
    with pytest.raises(deploy.BackendError, match="export CLASSIFIER_DIR"):
        deploy.choose(copy, "onnxruntime")
    with pytest.raises(deploy.BackendError, match="was expected"):
        deploy.choose(copy, "abacus")


def test_a_backend_that_is_not_installed_says_what_to_install(copy, monkeypatch):
    monkeypatch.setattr(deploy, "installed", lambda name: name == "torch")
    assert deploy.choose(copy) == "torch"
    with pytest.raises(deploy.BackendError, match=r"thyroid_lib\[deploy\]"):
        deploy.choose(copy, "openvino")
    monkeypatch.setattr(deploy, "installed", lambda name: False)
    with pytest.raises(deploy.BackendError, match="install torch"):
        deploy.choose(copy)


def test_an_onnx_file_that_was_changed_or_is_anothers_is_refused(copy):
    definition = json.loads((copy / "classifier.json").read_text(encoding="utf-8"))
    data = bytearray((copy / "model.onnx").read_bytes())
    data[len(data) // 2] ^= 1
    (copy / "model.onnx").write_bytes(data)
    with pytest.raises(deploy.BackendError, match="SHA-256"):
        deploy.check_onnx(copy, definition)
    with pytest.raises(deploy.BackendError, match="belongs to classifier"):
        deploy.check_onnx(copy, definition | {"id": "another"})
    (copy / "model.onnx.json").write_text("[]")
    with pytest.raises(deploy.BackendError, match="missing or damaged"):
        deploy.check_onnx(copy, definition)


def test_onnx_runtime_has_no_bfloat16_and_says_so(run):
    with pytest.raises(deploy.BackendError, match="fp32 only"):
        Classifier.load(run / "classifier", backend="onnxruntime", precision="bf16")


def test_in_bfloat16_only_close_calls_are_decided_again_in_fp32():
    class Backend:
        def __init__(self, name, logits):
            self.name, self.logits, self.asked = name, np.asarray(logits, np.float32), []

        def run(self, crops):
            self.asked.append(len(crops))
            rows = crops[:, 0, 0]
            return deploy.Outputs(
                self.logits[None, rows], self.logits[rows], self.logits[rows, :, None, None]
            )

    quick = Backend("quick", [[2.0, 0.0], [0.0, 0.01], [0.0, 3.0]])  # the second: p = 0.4975 and 0.5025
    exact = Backend("exact", [[9.0, 0.0], [0.01, 0.0], [9.0, 0.0]])
    crops = np.repeat(np.arange(3, dtype=np.uint8), 16).reshape(3, 4, 4)
    both = deploy.Refereed(quick, lambda: exact, [1.0])
    outputs = both.run(crops)
    assert (quick.asked, exact.asked) == ([3], [1])
    np.testing.assert_allclose(outputs.logits[0], [[2.0, 0.0], [0.01, 0.0], [0.0, 3.0]])
    np.testing.assert_allclose(outputs.features[1], [0.01, 0.0])
    both.run(crops[::2])
    assert exact.asked == [1]


def test_an_export_that_does_not_agree_with_pytorch_leaves_nothing_behind(copy, monkeypatch, capsys):
    for name in ("model.onnx", "model.onnx.json"):
        (copy / name).unlink()
    monkeypatch.setattr(export, "MAX_DIFFERENCE", -1.0)
    assert command.export_main([str(copy), "--images", str(_frames(copy.parent))]) == 2
    assert "was not kept" in capsys.readouterr().err
    assert not list(copy.glob("model.onnx*"))


def test_export_without_usable_images_or_classifier_says_so(copy, tmp_path, capsys):
    (tmp_path / "x.png").write_text("x")
    assert command.export_main([str(copy), "--images", str(tmp_path / "x.png")]) == 2
    assert "at least one ultrasound frame" in capsys.readouterr().err
    assert command.export_main([str(tmp_path)]) == 2
    assert "no classifier folder" in capsys.readouterr().err


def test_the_id_and_the_definition_are_untouched_by_an_export(run, tmp_path):
    before = small.make(tmp_path / "fresh")
    assert (before / "classifier.json").read_bytes() == (run / "classifier/classifier.json").read_bytes()


def _frames(folder):
    for seed in range(2):
        Image.fromarray(small.sector_frame(seed)).save(folder / f"frame{seed}.png")
    return folder
