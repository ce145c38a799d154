"""Depthwise 3x3 convolution whose gradients are as fast as its forward pass on a CPU.

oneDNN has no fast backward kernels for strided, dilated depthwise convolutions: written plainly, the four
convolutions that replace max-pooling take longer than the rest of the network's backward pass. Both gradients
can be had exactly from operations for which fast kernels exist:

* for the input: a strided convolution's gradient is an ordinary convolution, by the turned filter, of the
  output's gradient with zeros put between its pixels;
* for the filter: pixels whose distance is a multiple of the dilation see each other only, so the map falls
  apart into dilation x dilation lattices on which the convolution is not dilated. Stacked along the batch,
  one undilated filter gradient serves them all ("space to batch").

The sums are the same, in another order.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.grad import conv2d_weight


class DepthwiseConv2d(nn.Conv2d):
    """Depthwise 3x3 convolution, one filter per channel, no bias, padding = dilation.

    Args:
        channels: in and out.
        stride: 1 or 2; 2 gives ceil(n / 2) pixels from n.
        dilation: distance between the filter's taps, px.
    """

    def __init__(self, channels: int, stride: int = 1, dilation: int = 1):
        super().__init__(
            channels, channels, 3, stride, padding=dilation, dilation=dilation, groups=channels, bias=False
        )

    def forward(self, x: Tensor) -> Tensor:
        if self.stride[0] == 2 and has_slow_gradient(x, self.weight):
            weight = self.weight
            if torch.is_autocast_enabled("cpu"):
                dtype = torch.get_autocast_dtype("cpu")
                x, weight = x.to(dtype), weight.to(dtype)
            return HalvingDepthwise.apply(x, weight, self.dilation[0])
        return F.conv2d(x, self.weight, None, self.stride, self.padding, self.dilation, self.groups)


def has_slow_gradient(x: Tensor, weight: Tensor) -> bool:
    """Whether this call will be differentiated on a CPU, channels last; not when it is being exported."""
    if torch.jit.is_tracing() or torch.compiler.is_compiling() or x.device.type != "cpu":
        return False
    wanted = torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad)
    return wanted and x.is_contiguous(memory_format=torch.channels_last)


class HalvingDepthwise(torch.autograd.Function):
    """`conv2d(x, weight, stride=2, padding=dilation, dilation=dilation, groups=channels)`, 3x3, depthwise."""

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, dilation: int) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.dilation = dilation
        return F.conv2d(x, weight, None, 2, dilation, dilation, len(weight))

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        x, weight = ctx.saved_tensors
        d = ctx.dilation
        grad_x = grad_weight = None
        if ctx.needs_input_grad[0]:
            spread = torch.zeros_like(x)
            spread[:, :, ::2, ::2] = grad
            grad_x = F.conv2d(spread, weight.flip(2, 3), None, 1, d, d, len(weight))
        if ctx.needs_input_grad[1]:
            x, grad = lattices(x, grad, d)
            grad_weight = conv2d_weight(x, weight.shape, grad, stride=2, groups=len(weight))
        return grad_x, grad_weight, None


def lattices(x: Tensor, grad: Tensor, d: int) -> tuple[Tensor, Tensor]:
    """Split the input and the output's gradient into d x d lattices, stacked along the batch.

    Output d * j + r reads padded input 2 * (d * j + r) + d * k, k = 0, 1, 2: on the lattice that starts at
    2 * r with step d this is position 2 * j + k, a convolution of stride 2 without dilation or padding.

    Returns:
        Padded with zeros: (d * d * N, C, 2 * j + 1, ...) and (d * d * N, C, j, ...).
    """
    n, channels = x.shape[:2]
    like = {"dtype": x.dtype, "memory_format": torch.channels_last}
    steps = [-(-size // d) for size in grad.shape[2:]]
    inputs = torch.empty((d * d * n, channels, *(2 * j + 1 for j in steps)), **like)
    outputs = torch.empty((d * d * n, channels, *steps), **like)
    for lattice in range(d * d):
        rows, columns = divmod(lattice, d)
        batch = slice(lattice * n, (lattice + 1) * n)
        _put(outputs[batch], grad[:, :, rows::d, columns::d], 0, 0)
        (top, skip_y), (left, skip_x) = start(rows, d), start(columns, d)
        _put(inputs[batch], x[:, :, top::d, left::d], skip_y, skip_x)
    return inputs, outputs


def _put(place: Tensor, part: Tensor, top: int, left: int) -> None:
    """Writes `part` into `place` from (top, left) on, as far as it fits, and zeros around it."""
    height, width = min(part.shape[2], place.shape[2] - top), min(part.shape[3], place.shape[3] - left)
    place[:, :, top : top + height, left : left + width] = part[:, :, :height, :width]
    above, below = place[:, :, :top], place[:, :, top + height :]
    for margin in (above, below, place[..., :left], place[..., left + width :]):
        margin.zero_()


def start(r: int, d: int) -> tuple[int, int]:
    """First pixel of the lattice that starts at padded position 2 * r, and how many of its places are padding."""
    padding = 1 if 2 * r < d else 0
    return 2 * r + d * padding - d, padding
