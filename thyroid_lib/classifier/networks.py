"""The members of a classifier as PyTorch networks; what every other back-end is exported from or held against."""

from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from thyroid_lib import network
from thyroid_lib.classifier.definition import WEIGHTS, verify
from thyroid_lib.layers.pointwise import PointwiseConv2d


def load_members(folder: Path, definition: dict) -> nn.ModuleList:
    """The members in eval mode, from model.safetensors.

    Raises:
        ClassifierError: the file was changed.
        RuntimeError: its names or shapes are not those of the architecture.
    """
    tensors = load_file(verify(folder / WEIGHTS, definition["files"][WEIGHTS]))
    state = {key.removeprefix("member"): value for key, value in tensors.items()}
    config, count = definition["architecture"], definition["members"]
    with torch.device("meta"):  # no random initialization that is overwritten at once
        members = nn.ModuleList(network.build(config) for _ in range(count))
    members.load_state_dict(state, assign=True)
    return members.eval()


class Ensemble(nn.Module):
    """All members as one network.

    Args:
        members: networks of `network.build`, of one architecture.
    """

    def __init__(self, members: Iterable[nn.Module]):
        super().__init__()
        self.members = nn.ModuleList(members)

    def forward(self, crops: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Crops uint8 (N, S, S) -> logits, features and maps, as in `backends.Outputs`."""
        x = network.normalize(crops, self.members[0].config["in_chans"])
        x = x.contiguous(memory_format=torch.channels_last)
        logits, features, maps = [], None, 0
        for member in self.members:
            found = [member.forward_features(view) for view in network.views(x, member.config)]
            logits.append(sum(member.forward_head(each) for each in found) / len(found))
            features = found[0].mean((2, 3)) if features is None else features
            weight = member.fc.weight[:, :, None, None].to(found[0].dtype)
            seen = [F.conv2d(each, weight) for each in found]
            straight = [seen[0], *(each.flip(3) for each in seen[1:])]
            maps = maps + sum(straight) / (len(found) * len(self.members))
        return torch.stack(logits), features, maps


def fold_batch_norm(module: nn.Module) -> None:
    """Folds every BatchNorm into the convolution before it, in place; exact up to rounding."""
    for chain in [part for part in module.modules() if isinstance(part, nn.Sequential)]:
        for number, (before, norm) in enumerate(pairwise(list(chain))):
            conv = before[-1] if isinstance(before, nn.Sequential) else before  # of a separable one, the last
            if type(conv) in (nn.Conv2d, PointwiseConv2d) and isinstance(norm, nn.BatchNorm2d):
                folded = fuse_conv_bn_eval(conv, norm)
                conv.weight, conv.bias = folded.weight, folded.bias
                chain[number + 1] = nn.Identity()
