"""Questions beside the class that a network is asked while it learns, and never afterwards.

A few hundred frames with one label each say little about where to look and what for. Many sources say more: the
nodule's outline, the signs that a reader described (composition, echogenicity, margins, calcifications), and what
can be measured under the outline. Auxiliary tasks ask for them during training: the nodule's mask, of the middle
flow's map F2; the signs, and the texture and shape that `texture.texture_features` measures, of the pooled features
that the class is read from (multitask learning: Caruana 1997, Machine Learning 28:41). Their layers are dropped with
the end of the training; the network that is kept needs a frame and nothing else.
"""

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from thyroid_lib.data.rows import RowReader
from thyroid_lib.training.settings import Settings
from thyroid_lib.training.texture import texture_features

PREFIX = "sign_"
RAREST = 5  # a value of a sign that fewer training images show cannot be learnt and is not asked for
UNKNOWN = -1


def described_signs(index: pd.DataFrame, train: np.ndarray) -> tuple[dict[str, list[str]], np.ndarray]:
    """The columns `sign_*` of a crops index as codes; values that the training part lacks or hardly has are unknown.

    Args:
        index: one row per crop. train: int (n,), rows of the training part.

    Returns:
        Sign -> its values, in the order of their codes; codes int64 (N, number of signs), -1 where unknown.
    """
    values, codes = {}, [np.zeros((len(index), 0), np.int64)]
    for column in (name for name in index.columns if name.startswith(PREFIX)):
        counts = index[column].iloc[train].value_counts()
        kept = sorted(str(value) for value, count in counts.items() if count >= RAREST and value != "")
        if len(kept) < 2:
            continue
        values[column.removeprefix(PREFIX)] = kept
        codes.append(pd.Index(kept).get_indexer(index[column].astype(str))[:, None])
    return values, np.concatenate(codes, 1)


def measured_texture(crops, train: np.ndarray, outlined: np.ndarray) -> np.ndarray:
    """Texture and shape under each outline, in standard deviations from the mean of the training part.

    Args:
        crops: with `images` and `masks`. train: int (n,), rows of the training part. outlined: bool (N,), which
            crops have an outline.

    Returns:
        float32 (N, K) within -3 to 3; 0 where there is no outline.
    """
    rows = np.flatnonzero(outlined)
    measured = texture_features(np.asarray(crops.images)[rows], np.asarray(crops.masks)[rows]).to_numpy()
    known = measured[np.isin(rows, train)]
    spread = known.std(0)
    varied = spread > 1e-6 * (1 + np.abs(known.mean(0)))
    scores = np.zeros((len(crops.images), int(varied.sum())), np.float32)
    scores[rows] = ((measured - known.mean(0))[:, varied] / spread[varied]).clip(-3, 3)
    return scores


class Pupil(nn.Module):
    """A network with the layers that answer the auxiliary questions.

    Args:
        model: of `network.build`; an Xception.
        mask: whether the nodule's mask is asked for.
        signs: number of values of each sign. texture: number of measures of texture and shape; 0 asks for none.

    Raises:
        ValueError: another network.
    """

    def __init__(self, model: nn.Module, *, mask: bool, signs: dict[str, int], texture: int = 0):
        super().__init__()
        if not hasattr(model, "forward_maps"):
            raise ValueError(
                f"auxiliary questions are asked of an Xception, {type(model).__name__} came; set mask_weight, "
                "sign_weight and texture_weight to 0"
            )
        self.model = model
        self.mask = nn.Conv2d(model.middle_flow[-1].body[-1].num_features, 1, 1) if mask else None
        self.signs = nn.ModuleDict({name: nn.Linear(model.fc.in_features, n) for name, n in signs.items()})
        self.texture = nn.Linear(model.fc.in_features, texture) if texture else None

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor | None, list[Tensor], Tensor | None]:
        """Images (N, in_chans, S, S) -> logits (N, C) and the answers.

        Returns:
            Class logits; mask logits (N, h, w) or None; sign logits (N, values) each; texture (N, K) or None.
        """
        maps = self.model.forward_maps(x)
        pooled = self.model.drop(maps["features"].mean((2, 3)))
        mask = self.mask(maps["F2"])[:, 0] if self.mask is not None else None
        texture = self.texture(pooled) if self.texture is not None else None
        return self.model.fc(pooled), mask, [head(pooled) for head in self.signs.values()], texture


class Questions:
    """What is asked beside the class in one training: targets, heads and loss.

    Args:
        crops: with `images`, `masks` and `index`. train: int (n,), rows of the training part.
        settings: whose `mask_weight`, `sign_weight` and `texture_weight` weigh each question's loss, beside 1 for the
            class; 0 does not ask.

    Raises:
        ValueError: the crops have no masks, or no described signs, that were asked for.
    """

    def __init__(self, crops, train: np.ndarray, settings: Settings):
        self.settings = settings
        self.outlined = crops.index["mask_inside"].notna().to_numpy()
        # without an outline, "normal" says that there is no nodule; any other frame's nodule is not known
        self.answered = self.outlined | (crops.index["label"] == "normal").to_numpy()
        self.values, self.codes = described_signs(crops.index, train) if settings.sign_weight else ({}, None)
        masked, learnt, outlines = (
            crops.masks is not None,
            self.outlined[train].sum(),
            "crops with nodule masks",
        )
        signs = f"an index that describes signs (columns {PREFIX}*), at least two values of {RAREST} training images"
        needs = {
            "mask_weight": (masked and self.answered[train].any(), f"{outlines}, these have none"),
            "sign_weight": (self.values, f"{signs} each, this has none"),
            "texture_weight": (
                masked and learnt > 1,
                f"{outlines}, at least two to learn from; {learnt} came",
            ),
        }
        for name, (there, expected) in needs.items():
            weight = getattr(settings, name)
            if weight and not there:
                raise ValueError(f"{name}={weight}: expected {expected}; set {name}=0")
        self.masks = RowReader(crops.masks) if settings.mask_weight else None
        self.texture = measured_texture(crops, train, self.outlined) if settings.texture_weight else None

    def pupil(self, model: nn.Module) -> Pupil:
        """The network with the heads that answer."""
        counts = {name: len(values) for name, values in self.values.items()}
        measures = 0 if self.texture is None else self.texture.shape[1]
        return Pupil(model, mask=self.masks is not None, signs=counts, texture=measures)

    def loss(self, answers: tuple, targets: Tensor | None, mine: np.ndarray, batch: np.ndarray) -> Tensor:
        """Weighted auxiliary loss of a rank's share of a batch: the shares add up to a mean over what is known.

        Args:
            answers: mask, signs and texture as `Pupil.forward` gives them.
            targets: (n, S, S) in 0..1, the masks after augmentation; None where they are not asked for.
            mine: int (n,), rows of the share. batch: int (m,), rows of the whole batch.
        """
        mask, signs, texture = answers
        losses = []

        def add(weight: float, each: Tensor, known: np.ndarray) -> None:
            counted = each * torch.from_numpy(known[mine]).to(each.device)
            losses.append(weight * counted.sum() / max(1, known[batch].sum()))

        if mask is not None:
            add(self.settings.mask_weight, mask_loss(mask.float(), targets.float()), self.answered)
        if signs:
            codes = torch.from_numpy(self.codes[mine]).to(signs[0].device)
            options = {"ignore_index": UNKNOWN, "reduction": "sum"}
            each = [F.cross_entropy(logits.float(), code, **options) for logits, code in zip(signs, codes.T)]
            known = max(1, (self.codes[batch] != UNKNOWN).sum())
            losses.append(self.settings.sign_weight * torch.stack(each).sum() / known)
        if texture is not None:
            measured = torch.from_numpy(self.texture[mine]).to(texture.device)
            each = F.smooth_l1_loss(texture.float(), measured, reduction="none").mean(1)
            add(self.settings.texture_weight, each, self.outlined)
        return torch.stack(losses).sum()


def mask_loss(mask: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy plus half the soft Dice loss (Milletari et al. 2016, arXiv 1606.04797) of each image.

    Args:
        mask: float32 (N, h, w), logits. targets: float32 (N, S, S) in 0..1, averaged to the size of `mask`.

    Returns:
        float32 (N,).
    """
    truth = F.adaptive_avg_pool2d(targets[:, None], mask.shape[1:])[:, 0].clamp(0, 1)
    entropy = F.binary_cross_entropy_with_logits(mask, truth, reduction="none").mean((1, 2))
    found = torch.sigmoid(mask)
    both, sizes = (found * truth).sum((1, 2)), found.sum((1, 2)) + truth.sum((1, 2))
    return entropy + 0.5 * (1 - (2 * both + 1) / (sizes + 1))
