"""Xception and the invention's optimization of it: one network, read from top to bottom.

The original (claim C2) is entry flow -> middle flow -> exit flow -> fully connected layer. The optimized
network replaces every max-pooling layer by a dilated convolution (C2) and adds two dense connection modules
(C3) fed by two transition layers (C7):

    F1 = entry_flow(x)
    G1 = cat[F1, T1(x)]          dense connection module 1 (C4)
    F2 = middle_flow(P1 G1)
    G2 = cat[F2, T2(G1)]         dense connection module 2 (C5): G1 already carries x and F1
    y  = fc(mean(exit_flow(P2 G2)))                                                      (C6)

P1 and P2 are 1x1 projections back to the width of the flows, our addition. They start as "pass F, ignore the
rest", so that the optimized network starts out exactly equal to the one without dense connections.

References: Chollet 2017, "Xception" (arXiv 1610.02357), figure 5 and table 3; Huang et al. 2017, "DenseNet"
(arXiv 1608.06993), section 3 for transition layers; Yu & Koltun 2016 (arXiv 1511.07122) for dilation.
Layer names and initial values follow timm's `legacy_xception`, against which the original is proved.
"""

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from thyroid_lib.layers.depthwise import DepthwiseConv2d
from thyroid_lib.layers.inputs import DOWNSAMPLINGS, MIN_SIZE, check_images, check_switches, normalize  # noqa: F401
from thyroid_lib.layers.pointwise import PointwiseConv2d
from thyroid_lib.layers.weights import LoadReport, load_pretrained_body, load_timm_weights  # noqa: F401

STAGES = ("entry_flow", "middle_flow", "exit_flow")
"""Attribute paths of the modules whose outputs Grad-CAM and the walkthrough look at, in order of depth."""


class SeparableConv2d(nn.Sequential):
    """Depthwise 3x3, then pointwise 1x1, nothing between them, no bias (Chollet 2017, section 2)."""

    def __init__(self, in_channels: int, out_channels: int, stride: int = 1, dilation: int = 1):
        super().__init__()
        self.depthwise = DepthwiseConv2d(in_channels, stride, dilation)
        self.pointwise = PointwiseConv2d(in_channels, out_channels)


def make_downsampling(kind: str, channels: int, dilation: int, norm: bool) -> nn.Module:
    """What halves a map at the end of a block: the original's max-pooling, or its learnable replacement (C2).

    Both give ceil(n / 2) pixels from n. The dilated convolutions have stride 2, kernel 3, padding = dilation.

    Args:
        kind: "max_pool", or a convolution: "separable" (depthwise + pointwise), "depthwise" or "dense".
        channels: of the map, kept.
        dilation: of the convolution. 3 reads every pixel of a map of at least 5x5; 2 reads one in four.
        norm: whether a BatchNorm follows the convolution, as it follows all others of the network.
    """
    if kind == "max_pool":
        return nn.MaxPool2d(3, stride=2, padding=1)
    if kind == "separable":
        conv = SeparableConv2d(channels, channels, stride=2, dilation=dilation)
    elif kind == "depthwise":
        conv = DepthwiseConv2d(channels, stride=2, dilation=dilation)
    else:
        conv = nn.Conv2d(channels, channels, 3, stride=2, padding=dilation, dilation=dilation, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(channels) if norm else nn.Identity())


class Block(nn.Module):
    """Residual block: separable convolutions, a pluggable down-sampling, and a shortcut round both.

    Args:
        channels: of the input and after each separable convolution.
        down: the down-sampling (stride 2), or None to keep the size.
        leading_relu: whether the body starts with a ReLU (all blocks but the network's first).
    """

    def __init__(self, channels: tuple[int, ...], down: nn.Module | None, leading_relu: bool = True):
        super().__init__()
        layers = []
        for i, (before, after) in enumerate(pairwise(channels)):
            if i or leading_relu:
                layers.append(nn.ReLU(inplace=i > 0))  # the first one's input goes round by the shortcut, too
            layers += [SeparableConv2d(before, after), nn.BatchNorm2d(after)]
        self.body = nn.Sequential(*layers)
        self.down = down or nn.Identity()
        self.shortcut = nn.Identity()
        if down or channels[0] != channels[-1]:
            strided = PointwiseConv2d(channels[0], channels[-1], stride=2 if down else 1)
            self.shortcut = nn.Sequential(strided, nn.BatchNorm2d(channels[-1]))

    def forward(self, x: Tensor) -> Tensor:
        return self.down(self.body(x)) + self.shortcut(x)


def conv_bn_relu(conv: nn.Module, channels: int) -> list[nn.Module]:
    return [conv, nn.BatchNorm2d(channels), nn.ReLU(inplace=True)]


class EntryFlow(nn.Sequential):
    """Image (N, in_chans, H, W) -> F1 (N, channels[4], h, w), h = ceil(floor((H - 5) / 2) / 8)."""

    def __init__(self, in_chans: int, channels: tuple[int, ...], down):
        super().__init__()
        stem1, stem2, c1, c2, c3 = channels
        self.stem = nn.Sequential(
            *conv_bn_relu(nn.Conv2d(in_chans, stem1, 3, stride=2, bias=False), stem1),
            *conv_bn_relu(nn.Conv2d(stem1, stem2, 3, bias=False), stem2),
        )
        self.block1 = Block((stem2, c1, c1), down(c1), leading_relu=False)
        self.block2 = Block((c1, c2, c2), down(c2))
        self.block3 = Block((c2, c3, c3), down(c3))


class MiddleFlow(nn.Sequential):
    """`blocks` times three separable convolutions with an identity shortcut; size and channels are kept."""

    def __init__(self, channels: int, blocks: int):
        super().__init__(*(Block((channels,) * 4, None) for _ in range(blocks)))


class ExitFlow(nn.Sequential):
    """(N, in_channels, h, w) -> the feature map of C6, (N, channels[3], ceil(h / 2), ceil(w / 2))."""

    def __init__(self, in_channels: int, channels: tuple[int, ...], down):
        super().__init__()
        c0, c1, c2, c3 = channels
        self.block = Block((in_channels, c0, c1), down(c1))
        self.tail = nn.Sequential(
            *conv_bn_relu(SeparableConv2d(c1, c2), c2), *conv_bn_relu(SeparableConv2d(c2, c3), c3)
        )


class Transition(nn.Module):
    """Transition layer (C7): a 1x1 convolution sets the channels, pooling sets the size.

    Convolution first, then BatchNorm and ReLU: DenseNet's order (BatchNorm, ReLU, convolution; "norm_first")
    would drop the negative half of a normalized image. Half of the shrinking (in octaves) comes before the
    convolution and half after it: with all of it before, a grey image would give only its local mean; with
    all of it after, this layer of 32 weights would take a sixth of the training time.

    Args:
        strides: of the pooling before and after the convolution; 1 leaves it out.
        pooling: "average" or "max".
        order: "conv_first" or "norm_first".
    """

    def __init__(
        self, in_channels: int, out_channels: int, strides: tuple[int, int], pooling: str, order: str
    ):
        super().__init__()
        conv = nn.Conv2d(in_channels, out_channels, 1, bias=False)
        if order == "conv_first":
            self.reduce = nn.Sequential(*conv_bn_relu(conv, out_channels))
        else:
            self.reduce = nn.Sequential(nn.BatchNorm2d(in_channels), nn.ReLU(), conv)
        self.strides = strides
        self.pooling = pooling

    def forward(self, x: Tensor, size: tuple[int, int]) -> Tensor:
        """Return a map of exactly `size`, every pixel of `x` read."""
        before, after = self.strides
        x = self.reduce(pool(x, before, shrunk(x.shape[2:], before), self.pooling))
        return pool(x, after, size, self.pooling)


def shrunk(size: tuple[int, int], stride: int) -> tuple[int, int]:
    """Size of a map after a layer of this stride that drops nothing: ceil(n / stride)."""
    return -(-size[0] // stride), -(-size[1] // stride)


def pool(x: Tensor, stride: int, size: tuple[int, int], kind: str) -> Tensor:
    """Pool to exactly `size`: the last window may be cut short, or all be a little longer than the stride.

    Unlike adaptive pooling it is deterministic on CUDA and can be exported.
    """
    if stride == 1:
        return x
    kernel = [max(stride, n - stride * (m - 1)) for n, m in zip(x.shape[2:], size)]
    if kind == "max":
        return F.max_pool2d(x, kernel, stride, ceil_mode=True)
    return F.avg_pool2d(x, kernel, stride, ceil_mode=True, count_include_pad=False)


class DenseConnection(nn.Module):
    """Dense connection module (C3): concatenates maps of one size over their channels."""

    def forward(self, *maps: Tensor) -> Tensor:
        return torch.cat(maps, dim=1)


class Projection(PointwiseConv2d):
    """1x1 convolution, no bias, that starts as "the first channels unchanged, the others ignored"."""


class Xception(nn.Module):
    """Both networks; the factories `xception` and `optimized_xception` are its two settings.

    Args:
        name: of the factory, kept in `config`.
        num_classes: outputs of the fully connected layer.
        in_chans: channels of the image; 1 for grey-scale, 3 for ImageNet weights as they are.
        downsampling: what halves the maps, four times: "max_pool", "separable", "depthwise" or "dense".
        dilation: of the convolutions that replace max-pooling.
        downsampling_norm: whether a BatchNorm follows them.
        dense_connections: whether dense connection modules and transition layers exist (C3-C5, C7).
        second_connection: how x and F1 reach dense module 2: "transition" = cat[F2, T2(G1)], or "three_way" =
            cat[F2, F1, T1(x)], the literal three-way concatenation, which has no use for T2.
        fusion: after a concatenation, "project" back to the flow's width or "widen" the flow.
        transition_channels: of T1 and T2, at width 1.
        transition_pooling: "average" or "max".
        transition_order: "conv_first" or "norm_first".
        transition2_stride: 1, or 2 to let T2 halve the size as well; F2 is then pooled to match it.
        width: multiplies every number of channels, rounded to multiples of 8.
        middle_blocks: blocks of the middle flow.
        drop_rate: of the dropout before the fully connected layer, 0 to 1.
        zero_init_residual: start the middle flow's blocks as identities (Goyal et al. 2017, arXiv 1706.02677,
            section 5.1), which steadies short trainings from random weights.
        mirror: a prediction is the mean of the logits of an image and its mirror image; `forward` itself, what
            is trained and explained, sees one image. See `views`.

    Attributes:
        config: dict of plain values from which `build` makes the same network again.

    Raises:
        ValueError: a switch has a value that does not exist.
    """

    def __init__(
        self,
        name: str,
        num_classes: int,
        in_chans: int = 3,
        *,
        downsampling: str,
        dense_connections: bool,
        dilation: int = 3,
        downsampling_norm: bool = True,
        second_connection: str = "transition",
        fusion: str = "project",
        transition_channels: tuple[int, int] = (32, 364),
        transition_pooling: str = "average",
        transition_order: str = "conv_first",
        transition2_stride: int = 1,
        width: float = 1.0,
        middle_blocks: int = 8,
        drop_rate: float = 0.0,
        zero_init_residual: bool = False,
        mirror: bool = False,
    ):
        super().__init__()
        arguments = {k: v for k, v in locals().items() if k not in ("self", "__class__")}
        check_switches(arguments)
        self.config = {**arguments, "transition_channels": list(transition_channels)}

        def scaled(*channels):
            return tuple(c if width == 1 else max(8, round(c * width / 8) * 8) for c in channels)

        def down(channels):
            return make_downsampling(downsampling, channels, dilation, downsampling_norm)

        entry, exit = scaled(32, 64, 128, 256, 728), scaled(728, 1024, 1536, 2048)
        t1, t2 = scaled(*transition_channels)
        f1 = f2 = into_exit = entry[-1]
        self.entry_flow = EntryFlow(in_chans, entry, down)
        if dense_connections:
            g1 = f1 + t1
            f2 = f1 if fusion == "project" else g1
            self.transition1 = Transition(in_chans, t1, (4, 4), transition_pooling, transition_order)
            self.dense1 = DenseConnection()
            self.project1 = Projection(g1, f2) if fusion == "project" else nn.Identity()
        self.middle_flow = MiddleFlow(f2, middle_blocks)
        if dense_connections:
            if second_connection == "transition":
                strides = (1, transition2_stride)
                self.transition2 = Transition(g1, t2, strides, transition_pooling, transition_order)
            g2 = f2 + (t2 if second_connection == "transition" else f1 + t1)
            into_exit = f2 if fusion == "project" else g2
            self.dense2 = DenseConnection()
            self.project2 = Projection(g2, into_exit) if fusion == "project" else nn.Identity()
        self.exit_flow = ExitFlow(into_exit, exit, down)
        self.drop = nn.Dropout(drop_rate)
        self.fc = nn.Linear(exit[-1], num_classes)
        self.apply(initialize)
        if zero_init_residual:
            for block in self.middle_flow:
                nn.init.zeros_(block.body[-1].weight)

    def forward_maps(self, x: Tensor) -> dict[str, Tensor]:
        """Every named map on the way, from images (N, in_chans, H, W) of at least 32 px a side.

        Returns:
            x, F1, [T1, G1,] F2, [T2, G2,] features; those in brackets where dense connections exist.

        Raises:
            ValueError: the images are smaller than `MIN_SIZE`, or not of shape (N, in_chans, H, W).
        """
        if not torch.jit.is_tracing():
            check_images(x, self.config["in_chans"])
        maps = {"x": x, "F1": self.entry_flow(x)}
        if not self.config["dense_connections"]:
            maps["F2"] = self.middle_flow(maps["F1"])
            maps["features"] = self.exit_flow(maps["F2"])
            return maps
        maps["T1"] = self.transition1(x, maps["F1"].shape[2:])
        maps["G1"] = self.dense1(maps["F1"], maps["T1"])
        maps["F2"] = self.middle_flow(self.project1(maps["G1"]))
        if self.config["second_connection"] == "three_way":
            maps["G2"] = self.dense2(maps["F2"], maps["F1"], maps["T1"])
        else:
            stride = self.config["transition2_stride"]
            size = shrunk(maps["F2"].shape[2:], stride)
            maps["T2"] = self.transition2(maps["G1"], size)
            main = pool(maps["F2"], stride, size, "average")
            maps["G2"] = self.dense2(main, maps["T2"])
        maps["features"] = self.exit_flow(self.project2(maps["G2"]))
        return maps

    def forward_features(self, x: Tensor) -> Tensor:
        """Images (N, in_chans, H, W) -> the exit flow's feature map (N, 2048 at width 1, h, w)."""
        return self.forward_maps(x)["features"]

    def forward_head(self, features: Tensor) -> Tensor:
        """Feature map (N, C, h, w) -> logits (N, num_classes): global average, fully connected layer (C6)."""
        return self.fc(self.drop(features.mean((2, 3))))

    def forward(self, x: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(x))


def views(x: Tensor, config: dict) -> list[Tensor]:
    """What a prediction averages over: images (N, C, H, W), and their mirror images where `config` says so."""
    return [x, x.flip(3)] if config.get("mirror") else [x]


def xception(num_classes: int, in_chans: int = 3, **switches) -> Xception:
    """The original fully grouped network (Chollet 2017): max-pooling, no dense connections (C2)."""
    switches = {"downsampling": "max_pool", "dense_connections": False} | switches
    return Xception("xception", num_classes, in_chans, **switches)


def optimized_xception(num_classes: int, in_chans: int = 3, **switches) -> Xception:
    """The invention's network: dilated separable down-sampling, two dense connection modules (C2-C7)."""
    switches = {"downsampling": "separable", "dense_connections": True} | switches
    return Xception("optimized_xception", num_classes, in_chans, **switches)


def build(config: dict) -> nn.Module:
    """Make a network from its `config`: "name" (a factory, or "peer"), "num_classes" and any switches."""
    factories = {"xception": xception, "optimized_xception": optimized_xception}
    arguments = dict(config)
    name = arguments.pop("name", None)
    if name == "peer":
        from thyroid_lib.layers.peers import Peer  # imported only where it is asked for: timm is optional

        return Peer(**arguments)
    if name not in factories:
        raise ValueError(
            f"expected a network named {' or '.join(factories)}, got {name!r} in the configuration"
        )
    return factories[name](**arguments)


def initialize(module: nn.Module) -> None:
    """He-normal (fan out) for convolutions, as the reference; identity for the projections."""
    if getattr(getattr(module, "weight", None), "is_meta", False):
        return  # no memory yet: saved weights take this place (drawing numbers here would import the compiler)
    if isinstance(module, Projection):
        nn.init.dirac_(module.weight)
    elif isinstance(module, nn.Conv2d):
        nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
