"""The fast gradients of the strided depthwise convolution are the plain ones."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from thyroid_lib.layers import depthwise


def both(height, width, dilation, dtype=torch.float64, channels=5):
    generator = torch.Generator().manual_seed(height * 100 + width)
    x = torch.randn(2, channels, height, width, generator=generator, dtype=dtype)
    x = x.to(memory_format=torch.channels_last).requires_grad_()
    layer = depthwise.DepthwiseConv2d(channels, 2, dilation).to(dtype)
    assert depthwise.has_slow_gradient(x, layer.weight)
    plain = F.conv2d(x, layer.weight, None, 2, dilation, dilation, channels)
    fast = layer(x)
    grad = torch.randn(fast.shape, generator=generator, dtype=dtype)
    return (
        (fast, *torch.autograd.grad(fast, (x, layer.weight), grad)),
        (plain, *torch.autograd.grad(plain, (x, layer.weight), grad)),
    )


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 5))
def test_output_and_gradients_are_those_of_the_plain_convolution(height, width, dilation):
    for fast, plain in zip(*both(height, width, dilation)):
        torch.testing.assert_close(fast, plain, rtol=1e-10, atol=1e-10)


def test_in_bfloat16_the_gradients_agree_to_its_precision():
    for fast, plain in zip(*both(31, 24, 3, torch.bfloat16)):
        torch.testing.assert_close(fast, plain, rtol=2e-2, atol=5e-2)


def test_autocast_gives_bfloat16_maps_and_float32_gradients():
    layer = depthwise.DepthwiseConv2d(4, 2, 3)
    x = torch.randn(1, 4, 9, 9).to(memory_format=torch.channels_last).requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        y = layer(x)
    y.sum().backward()
    assert (y.dtype, x.grad.dtype, layer.weight.grad.dtype) == (
        torch.bfloat16, torch.float32, torch.float32
    )  # fmt: skip


def test_a_frozen_filter_or_a_frozen_input_is_left_out():
    layer = depthwise.DepthwiseConv2d(4, 2, 3).requires_grad_(False)
    x = torch.randn(1, 4, 9, 9).to(memory_format=torch.channels_last).requires_grad_()
    layer(x).sum().backward()
    assert layer.weight.grad is None and x.grad is not None


@pytest.mark.parametrize("case", ["no gradient wanted", "contiguous", "tracing"])
def test_elsewhere_the_plain_convolution_runs(case, monkeypatch):
    x = torch.randn(1, 4, 9, 9).requires_grad_()
    weight = torch.randn(4, 1, 3, 3)
    channels_last = x.to(memory_format=torch.channels_last)
    if case == "no gradient wanted":
        assert not depthwise.has_slow_gradient(channels_last.detach(), weight)
    elif case == "contiguous":
        assert not depthwise.has_slow_gradient(x, weight)
    else:
        monkeypatch.setattr(torch.jit, "is_tracing", lambda: True)
        assert not depthwise.has_slow_gradient(channels_last, weight)
