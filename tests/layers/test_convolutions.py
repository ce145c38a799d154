"""The fast strided depthwise and 1x1 convolutions are the plain ones: output, gradients and layout."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from thyroid_lib.layers import depthwise, pointwise

LAST = torch.channels_last


def image(*shape, dtype=torch.float64):
    generator = torch.Generator().manual_seed(shape[-2] * 100 + shape[-1])
    return torch.randn(shape, generator=generator, dtype=dtype).to(memory_format=LAST).requires_grad_()


def assert_alike(fast, plain, x, weight, rtol=1e-10, atol=1e-10):
    grad = torch.randn_like(plain)
    for a, b in zip(*((y, *torch.autograd.grad(y, (x, weight), grad)) for y in (fast, plain))):
        torch.testing.assert_close(a, b, rtol=rtol, atol=atol)


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 5))
def test_a_depthwise_convolution_and_its_gradients_are_the_plain_ones(height, width, dilation):
    x, layer = image(2, 5, height, width), depthwise.DepthwiseConv2d(5, 2, dilation).double()
    assert depthwise.has_slow_gradient(x, layer.weight)
    assert_alike(layer(x), F.conv2d(x, layer.weight, None, 2, dilation, dilation, 5), x, layer.weight)


def test_in_bfloat16_the_gradients_agree_to_its_precision():
    x, layer = image(2, 5, 31, 24, dtype=torch.bfloat16), depthwise.DepthwiseConv2d(5, 2, 3).bfloat16()
    assert_alike(layer(x), F.conv2d(x, layer.weight, None, 2, 3, 3, 5), x, layer.weight, rtol=2e-2, atol=5e-2)


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 3), st.integers(1, 40), st.integers(1, 9), st.integers(1, 9), st.integers(1, 2))
def test_a_pointwise_convolution_its_gradients_and_layout_are_the_plain_ones(
    n, channels, height, width, step
):
    x, layer = image(n, channels, height, width), pointwise.PointwiseConv2d(channels, 7, step).double()
    assert layer(x).is_contiguous(memory_format=LAST)
    assert_alike(layer(x), F.conv2d(x, layer.weight, None, step), x, layer.weight)


@pytest.mark.parametrize("layer", [depthwise.DepthwiseConv2d(64, 2, 3), pointwise.PointwiseConv2d(64, 7)])
def test_autocast_gives_bfloat16_maps_and_float32_gradients(layer):
    x = image(2, 64, 4, 4, dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        y = layer(x)
    y.sum().backward()
    assert y.dtype == torch.bfloat16 and x.grad.dtype == layer.weight.grad.dtype == torch.float32


def test_a_frozen_filter_is_left_out_and_elsewhere_the_plain_convolution_runs(monkeypatch):
    x = image(1, 4, 9, 9, dtype=torch.float32)
    layer = depthwise.DepthwiseConv2d(4, 2, 3).requires_grad_(False)
    layer(x).sum().backward()
    assert layer.weight.grad is None and x.grad is not None
    assert not depthwise.has_slow_gradient(x.detach(), layer.weight), "no gradient is wanted"
    assert not depthwise.has_slow_gradient(x.contiguous(memory_format=torch.contiguous_format), layer.weight)
    monkeypatch.setattr(torch.jit, "is_tracing", lambda: True)
    assert not depthwise.has_slow_gradient(x, layer.weight)


@pytest.mark.parametrize("case", ["few pixels", "many pixels", "no gradient wanted", "contiguous"])
def test_a_matrix_product_runs_only_where_it_is_faster(case, monkeypatch):
    x = image(1, 8, 16, 17 if case == "many pixels" else 16, dtype=torch.float32).detach()
    layer, called, linear = pointwise.PointwiseConv2d(8, 7), [], F.linear
    monkeypatch.setattr(pointwise.F, "linear", lambda *a: called.append(1) or linear(*a))
    x = x.contiguous() if case == "contiguous" else x
    with torch.set_grad_enabled(case != "no gradient wanted"):
        y = layer(x)
    assert bool(called) == (case == "few pixels")
    torch.testing.assert_close(y, F.conv2d(x, layer.weight))
