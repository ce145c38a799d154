import pytest
import torch

from thyroid_lib import network

timm = pytest.importorskip("timm")


def test_original_has_the_papers_number_of_parameters_and_timms_logits():
    torch.manual_seed(0)
    reference, model = timm.create_model("legacy_xception"), network.xception(1000)
    assert sum(p.numel() for p in model.parameters()) == 22_855_952
    report = network.load_timm_weights(model, reference.state_dict())
    assert not report.kept and not report.unused
    x = torch.randn(1, 3, 96, 128)
    with torch.inference_mode():
        torch.testing.assert_close(model.eval()(x), reference.eval()(x), rtol=0, atol=1e-5)


def test_config_rebuilds_the_same_network():
    model = network.optimized_xception(4, 1, width=0.125, middle_blocks=1)
    again = network.build(model.config)
    assert again.config == model.config
    assert {k: v.shape for k, v in again.state_dict().items()} == {
        k: v.shape for k, v in model.state_dict().items()
    }
