"""The 1x1 convolution as a matrix product is the plain one."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from thyroid_lib.layers import pointwise


def layer_and_map(n, channels, height, width, dtype=torch.float64):
    generator = torch.Generator().manual_seed(height * 100 + width)
    x = torch.randn(n, channels, height, width, generator=generator, dtype=dtype)
    return pointwise.PointwiseConv2d(channels, 7).to(dtype), x.to(memory_format=torch.channels_last)


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 3), st.integers(1, 40), st.integers(1, 9), st.integers(1, 9))
def test_output_gradients_and_layout_are_those_of_the_plain_convolution(n, channels, height, width):
    layer, x = layer_and_map(n, channels, height, width)
    x.requires_grad_()
    fast, plain = layer(x), F.conv2d(x, layer.weight)
    grad = torch.randn_like(plain)
    torch.testing.assert_close(fast, plain, rtol=1e-10, atol=1e-10)
    assert fast.is_contiguous(memory_format=torch.channels_last)
    for a, b in zip(*(torch.autograd.grad(y, (x, layer.weight), grad) for y in (fast, plain))):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


def test_autocast_gives_bfloat16_maps_and_float32_gradients():
    layer, x = layer_and_map(2, 64, 4, 4, torch.float32)
    x.requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        y = layer(x)
    y.sum().backward()
    assert (y.dtype, x.grad.dtype, layer.weight.grad.dtype) == (
        torch.bfloat16, torch.float32, torch.float32
    )  # fmt: skip


@pytest.mark.parametrize("case", ["few pixels", "many pixels", "no gradient wanted", "contiguous"])
def test_a_matrix_product_runs_only_where_it_is_faster(case, monkeypatch):
    layer, x = layer_and_map(1, 8, *((4, 8) if case != "many pixels" else (4, 9)), torch.float32)
    called = []
    linear = F.linear
    monkeypatch.setattr(pointwise.F, "linear", lambda *a: called.append(1) or linear(*a))
    x = x.contiguous() if case == "contiguous" else x
    with torch.set_grad_enabled(case != "no gradient wanted"):
        y = layer(x)
    assert bool(called) == (case == "few pixels")
    torch.testing.assert_close(y, F.conv2d(x, layer.weight))
