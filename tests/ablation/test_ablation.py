"""The grid and its jobs: arms alike but for what they test, each job done once, wherever and however often started."""

import sys
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import save_file
from small_grid import grid, spots

from thyroid_lib import network
from thyroid_lib.ablation import grid as ablation
from thyroid_lib.ablation.jobs import at_size, initial_weights, run_job, shuffled_labels
from thyroid_lib.data.crops import Crops
from thyroid_lib.inspection import structure
from thyroid_lib.layers import peers
from thyroid_lib.training import checkpoint, loop

SMALL = {"classes": 4, "width": 0.0625, "middle_blocks": 1}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return spots(tmp_path_factory.mktemp("spots") / "finetune")


def test_names_groups_and_all_become_arms_in_one_order_and_others_are_refused_with_the_known_ones():
    assert ablation.chosen(["invention", "original"]) == ["original", "invention"]
    assert ablation.chosen(["peers"]) == [*peers.PEERS]
    assert ablation.chosen(["all"]) == [*ablation.ARMS]
    assert ablation.chosen(["controls", "again"]) == ["shuffled", "again"]
    with pytest.raises(ValueError, match=r"among again, all, connected, .*; came 'inventoin'"):
        ablation.chosen(["inventoin"])
    with pytest.raises(ValueError, match="at least one arm"):
        ablation.chosen([])


@pytest.mark.parametrize("name", [name for name, arm in ablation.ARMS.items() if arm.model])
def test_every_network_of_the_grid_reads_one_grey_channel_and_learns(name):
    config = ablation.configuration(name, **SMALL)
    model = network.build(config)
    assert model.config == config
    logits = model(torch.randn(2, 1, 64, 64))
    assert logits.shape == (2, 4)
    logits.square().sum().backward()
    still = [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert not still


def test_arms_differ_in_what_they_test_and_in_nothing_else(data, tmp_path):
    arms = ["original", "dilated", "invention_ce", "invention", "again"]
    jobs = {job.arm: job.identity | job.identity["settings"][0] for job in grid(data, tmp_path, arms)}

    def different(a, b):
        return {line.partition(":")[0] for line in checkpoint.differences(jobs[a], jobs[b])} - {"arm"}

    assert different("original", "dilated") == {"model.name", "model.downsampling", "settings"}
    assert different("invention", "invention_ce") == {"settings", "loss"}
    assert different("invention", "again") == {"settings", "seed"}


def test_a_grid_has_every_arm_seed_and_fold_once(data, tmp_path):
    jobs = grid(data, tmp_path, ["original", "texture", "imagenet"], seeds=3, folds=2)
    names, keys = {(job.arm, job.seed, job.fold) for job in jobs}, {job.key for job in jobs}
    assert len(jobs) == len(names) == len(keys) == len({job.folder for job in jobs}) == 18
    assert sorted({job.settings[0].seed for job in jobs if job.arm == "original"}) == [0, 1, 2]
    with pytest.raises(ValueError, match="expected 1 to 2 folds"):
        grid(data, tmp_path, ["original"], folds=3)


def test_what_a_number_follows_from_is_in_the_jobs_name_and_where_it_runs_is_not(data, tmp_path):
    job = grid(data, tmp_path, ["invention"])[0]
    changes = {
        "shuffled": True, "seed": 1, "fold": 1, "data_hash": "other crops", "size": 48, "validation": 0.3,
        "split_seed": 1, "initial_hash": "other weights", "arm": "texture",
    }  # fmt: skip
    others = [{name: value} for name, value in changes.items()]
    for change in ({"model": job.model | {"dilation": 2}}, {"epochs": 3}, {"threads": 2}):
        others.append({"settings": (replace(job.settings[0], **change),)})
    keys = {replace(job, **other).key for other in others}
    assert len(keys | {job.key}) == len(others) + 1
    assert replace(job, root="elsewhere", data="moved").key == job.key


def test_shuffled_labels_keep_their_counts_and_their_rows():
    labels, rows = np.arange(40) % 4, np.arange(30)
    dealt = shuffled_labels(labels, rows, 0)
    assert (np.bincount(dealt) == np.bincount(labels)).all() and (dealt[30:] == labels[30:]).all()
    assert (dealt[:30] == labels[:30]).mean() < 0.6
    assert (shuffled_labels(labels, rows, 1) != dealt).any()


def test_crops_become_smaller_by_means_and_never_larger(data):
    crops = Crops.open(data)
    small = at_size(crops, 16)
    means = crops.images.reshape(-1, 16, 2, 16, 2).astype(float).mean((2, 4))
    assert np.abs(small.images - means).max() <= 0.5
    assert small.hash != crops.hash and (small.labels == crops.labels).all()
    assert at_size(crops, 32) is crops
    with pytest.raises(ValueError, match="expected at most 32 px"):
        at_size(crops, 64)


def test_a_grid_killed_half_way_does_only_what_is_left_with_the_same_numbers(data, tmp_path, monkeypatch):
    learnt, epoch = [], loop.Training.epoch

    def counted(self):
        if len(learnt) == 4:
            raise KeyboardInterrupt
        epoch(self)
        learnt.append((self.settings.model["name"], self.state["epoch"]))

    def jobs(where):
        return grid(data, tmp_path / where, ["original", "invention"], epochs=3)

    whole, _ = ablation.run(jobs("whole"))
    monkeypatch.setattr(loop.Training, "epoch", counted)
    with pytest.raises(KeyboardInterrupt):
        ablation.run(jobs("killed"))
    before, learnt[:] = learnt.copy(), []
    rest, _ = ablation.run(jobs("killed"))
    assert before == [("xception", 1), ("xception", 2), ("xception", 3), ("optimized_xception", 1)]
    assert learnt == [("optimized_xception", 2), ("optimized_xception", 3)]
    learnt.clear()
    _, failed = ablation.run(jobs("killed"))
    assert not learnt and not failed, "what is done is not done again"
    assert not list(tmp_path.glob("*/.work/*")), "checkpoints of finished jobs are gone"
    for one, other in zip(whole, rest):
        pd.testing.assert_frame_equal(one.predictions, other.predictions, check_exact=True)
        assert one.facts["gaze"] == other.facts["gaze"]
    assert {*whole[1].predictions["model"]} == {"invention/seed0", "invention+cut/seed0"}


@pytest.mark.parametrize("reference", ["texture", "imagenet"])
def test_half_a_result_is_no_result(reference, tmp_path):
    job = grid(data := spots(tmp_path / "finetune", simulated=False), tmp_path, [reference])[0]
    job.folder.mkdir(parents=True)
    (job.folder / "predictions.csv").write_text("cut off")
    assert not job.done
    assert run_job(job, "") == "" and len(job.predictions) == len(Crops.open(data)) / 2


def test_an_arm_that_diverges_is_named_and_left_out_and_the_others_go_on(data, tmp_path, monkeypatch):
    fit, asked = loop.fit, []

    def diverging(*arguments, **options):
        asked.append(options["title"])
        if len(asked) == 2:
            raise loop.TrainingError("the loss is not a finite number")
        return fit(*arguments, **options)

    monkeypatch.setattr(loop, "fit", diverging)
    done, failed = ablation.run(grid(data, tmp_path, ["original", "texture", "imagenet"], epochs=1, folds=2))
    assert len(done) == 3 and failed["original, seed 0, fold 1"] == "the loss is not a finite number"
    assert "expected real images" in failed["imagenet, seed 0, fold 0"], "phantoms are no photographs"
    assert {*ablation.collect(done, tmp_path / "predictions.csv")["model"]} == {"texture/seed0"}
    with pytest.raises(ValueError, match="at least one arm"):
        ablation.collect([], tmp_path / "predictions.csv")


def test_every_learning_rate_is_tried_and_validation_chooses(data, tmp_path):
    result = ablation.run(grid(data, tmp_path, ["original"], lrs=[1e-6, 4e-3], epochs=3))[0][0]
    tried = {row["lr"]: row["val_auroc"] for row in result.facts["tried"]}
    assert set(tried) == {1e-6, 4e-3} and result.facts["lr"] == max(tried, key=tried.get)


def test_no_more_threads_run_than_there_are_cores(data, tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(ablation.joblib, "cpu_count", lambda: 8)
    monkeypatch.setattr(ablation, "run_jobs", lambda *_, parallel, **__: asked.append(parallel) or [])
    for parallel, threads in [(-1, 1), (-1, 3), (4, 1), (6, 4), (1, 16)]:
        ablation.run(grid(data, tmp_path, ["original"], threads=threads), parallel=parallel)
    assert asked == [8, 2, 4, 2, 1]


def test_peers_have_the_published_numbers_of_parameters_and_multiplications():
    published = {  # parameters, GMACs and side, as torchvision's model pages list them
        "resnet50": (25_557_032, 4.09, 224),
        "densenet121": (7_978_856, 2.83, 224),
        "efficientnetv2_s": (21_458_488, 8.37, 384),
        "convnext_tiny": (28_589_128, 4.46, 224),
        "mobilenetv3": (5_483_032, 0.22, 224),
    }
    for name, (parameters, gmacs, side) in published.items():
        with torch.device("meta"):
            model = peers.Peer(name, 1000, in_chans=3)
        assert structure.parameters(model) == parameters
        assert structure.gmacs(model, side) == pytest.approx(gmacs, rel=0.02)


def test_a_peer_gives_timms_logits_with_timms_weights():
    import timm

    torch.manual_seed(0)
    reference = timm.create_model("mobilenetv3_large_100", num_classes=4, in_chans=1).eval()
    model = peers.Peer("mobilenetv3", 4).eval()
    source = reference.state_dict()
    model.body.load_state_dict({name: v for name, v in source.items() if not name.startswith("classifier.")})
    model.fc.load_state_dict({"weight": source["classifier.weight"], "bias": source["classifier.bias"]})
    x = torch.randn(2, 1, 64, 64)
    with torch.inference_mode():
        assert torch.equal(model(x), reference(x))


def test_imagenet_weights_are_for_all_networks_or_for_none(data, tmp_path):
    import timm

    torch.manual_seed(0)
    source = timm.create_model("mobilenetv3_large_100").state_dict()
    save_file(source, tmp_path / "mobilenetv3_large_100.safetensors")
    config = ablation.configuration("mobilenetv3", classes=4, width=1.0, middle_blocks=8)
    tensors, origin = initial_weights(config, str(tmp_path))
    name = "blocks.0.0.conv_dw.weight"
    assert torch.equal(tensors[f"body.{name}"], source[name]) and len(origin["sha256"]) == 16
    assert torch.allclose(tensors["body.conv_stem.weight"], source["conv_stem.weight"].sum(1, keepdim=True))
    report = network.load_pretrained_body(network.build(config), tensors)
    assert all(entry.startswith("fc.") for entry in report.kept)
    with pytest.raises(FileNotFoundError, match="Every arm starts alike"):
        grid(data, tmp_path / "jobs", ["original"], width=1.0, middle_blocks=8, initial=str(tmp_path))
    for reduced in ("original", "mobilenetv3"):
        with pytest.raises(ValueError, match="width 1"):
            grid(data, tmp_path / "jobs", [reduced], initial=str(tmp_path))


def test_an_unknown_peer_is_refused_and_a_missing_timm_explained(monkeypatch):
    with pytest.raises(ValueError, match="expected one of resnet50"):
        peers.Peer("vgg16", 4)
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(ImportError, match=r"thyroid_lib\[peers\]"):
        peers.Peer("resnet50", 4)


@pytest.mark.slow
@pytest.mark.parametrize("where", [{"parallel": 2}, {"cluster": "local:2"}])
def test_two_processes_and_two_dask_workers_give_one_processs_predictions(data, tmp_path, where):
    if "cluster" in where:
        pytest.importorskip("distributed")
    arms = ["original", "invention", "resnet50", "texture"]
    alone, _ = ablation.run(grid(data, tmp_path / "alone", arms, augment=1.0))
    beside, failed = ablation.run(grid(data, tmp_path / "beside", arms, augment=1.0), **where)
    assert not failed
    for one, two in zip(alone, beside, strict=True):
        pd.testing.assert_frame_equal(one.predictions, two.predictions, check_exact=True)
        assert one.facts.get("gaze") == two.facts.get("gaze")
