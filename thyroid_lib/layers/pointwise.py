"""1x1 convolution that becomes a matrix product where that is faster.

oneDNN's gradient of a 1x1 convolution wastes up to half of its time where pixels are few and channels many: the middle
and the exit flow, most of the network's work. On a CPU, with channels last, such a map is already the matrix (pixels,
channels), and a matrix product has fast gradients. The sums are the same, in another order.
"""

import torch.nn.functional as F
from torch import Tensor, nn

from thyroid_lib.layers.depthwise import has_slow_gradient

FEW = 32  # times the channels: as many pixels, at most, gain; measured with bfloat16 on two AVX-512 cores


class PointwiseConv2d(nn.Conv2d):
    """1x1 convolution; without a bias until BatchNorm is folded into it. Stride 2 reads every second pixel."""

    def __init__(self, in_channels: int, out_channels: int, stride: int = 1):
        super().__init__(in_channels, out_channels, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        if not has_slow_gradient(x, self.weight):
            return super().forward(x)
        if self.stride[0] > 1:  # pooled over one pixel: the gradient of a strided convolution is slower still
            x = F.avg_pool2d(x, 1, self.stride)
        if x.shape[0] * x.shape[2] * x.shape[3] > FEW * self.in_channels:
            return F.conv2d(x, self.weight, self.bias)
        return F.linear(x.permute(0, 2, 3, 1), self.weight.flatten(1), self.bias).permute(0, 3, 1, 2)
