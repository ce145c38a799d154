"""1x1 convolution that becomes a matrix product where that is faster.

oneDNN's gradient of a 1x1 convolution wastes up to half of its time where pixels are few and channels many: the middle
and the exit flow, most of the network's work. On a CPU, with channels last, such a map is already the matrix (pixels,
channels), and a matrix product has fast gradients. The sums are the same, in another order.
"""

import torch.nn.functional as F
from torch import Tensor, nn

from thyroid_lib.layers.depthwise import has_slow_gradient

FEW = 4  # times the channels: as many pixels, at most, gain; measured with bfloat16 on two AVX-512 cores


class PointwiseConv2d(nn.Conv2d):
    """1x1 convolution, stride 1; without a bias until BatchNorm is folded into it."""

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__(in_channels, out_channels, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        pixels = x.shape[0] * x.shape[2] * x.shape[3]
        if has_slow_gradient(x, self.weight) and pixels <= FEW * self.in_channels:
            return F.linear(x.permute(0, 2, 3, 1), self.weight.flatten(1), self.bias).permute(0, 3, 1, 2)
        return super().forward(x)
