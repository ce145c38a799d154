"""Augmentation fit for ultrasound, on whole batches, the same on any number of workers.

A probe can be turned round (horizontal flip), held elsewhere (shift, scale), set otherwise (gain, gamma),
gives another speckle pattern each time, and casts shadows that deepen with depth. It is never upside down
and has no colour, so there is no vertical flip, no hue. Every random number is a hash of (seed, epoch,
sample): it depends neither on the batch a sample falls into, nor on worker count or world size.
"""

from dataclasses import asdict, dataclass
from functools import cache

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import grid_sample

_TILE = 509  # side of the fixed speckle field, prime so that offsets do not repeat with image sizes
_DRAWS = 12


@dataclass(frozen=True)
class Augmentation:
    """Ranges of the random changes. `Augmentation().scaled(s)` widens all of them by a strength s.

    Attributes:
        flip: probability of a left-right flip.
        shift: largest shift, as a fraction of the side, each way.
        scale: largest natural logarithm of the zoom factor, each way.
        gain: largest change of brightness, as a fraction.
        gamma: largest natural logarithm of the exponent, each way.
        speckle: largest standard deviation of the multiplicative noise.
        shadow: probability of an acoustic shadow.
        shadow_depth: largest attenuation of a shadow at the bottom edge, in nepers (1 leaves 37 %).
    """

    flip: float = 0.5
    shift: float = 0.06
    scale: float = 0.10
    gain: float = 0.12
    gamma: float = 0.20
    speckle: float = 0.12
    shadow: float = 0.25
    shadow_depth: float = 1.0

    def scaled(self, strength: float) -> "Augmentation":
        """The same with every range multiplied by `strength`; probabilities stop at 1/2."""
        if not 0 <= strength <= 3:
            raise ValueError(f"augmentation strength: expected 0 (none) to 3, {strength} came")
        values = {name: value * strength for name, value in asdict(self).items()}
        values |= {name: min(values[name], 0.5) for name in ("flip", "shadow")}
        return Augmentation(**values)

    def __call__(
        self, images: Tensor, samples: np.ndarray, *, seed: int, epoch: int, masks: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """Changes a batch.

        Args:
            images: uint8 (N, S, S), 0 black, on any device.
            samples: int (N,), what identifies each image in its data set: its row.
            seed: of the training.
            epoch: counted from 0.
            masks: uint8 (N, S, S) of 0 and 1, to be moved as the images are; or None.

        Returns:
            uint8 (N, S, S) on the same device: the changed images are 8-bit images again and go the same
            way as unchanged ones. The masks moved alike, float32 (N, S, S) in 0..1, or None.
        """
        if images.dtype != torch.uint8 or images.ndim != 3:
            raise ValueError(f"expected uint8 (N, S, S), {images.dtype} {tuple(images.shape)} came")
        draws = uniforms(seed, epoch, samples, _DRAWS)
        u = torch.from_numpy(draws.astype(np.float32)).to(images.device, non_blocking=True)
        signed, offsets = 2 * u - 1, torch.from_numpy((draws[:, 10:12] * _TILE).astype(np.int64))
        grid = self._grid(u, images.shape[-1])
        x = _sampled(images.to(torch.float32) / 255, grid)
        x = self._cast_shadow(x, u)
        x = x.clamp_(1e-6, 1) ** (signed[:, 4] * self.gamma).exp()[:, None, None]
        x *= 1 + (signed[:, 3] * self.gain)[:, None, None]
        x *= 1 + (u[:, 5] * self.speckle)[:, None, None] * _speckle(offsets.to(x.device), x.shape[-1])
        changed = x.mul_(255).round_().clamp_(0, 255).to(torch.uint8)
        return changed, None if masks is None else _sampled(masks.to(torch.float32), grid)

    def _grid(self, u: Tensor, side: int) -> Tensor:
        """Where each pixel of the moved images comes from: float32 (N, side, side, 2), as `grid_sample` takes it."""
        signed = 2 * u - 1
        zoom = (signed[:, 2] * self.scale).exp()
        mirror = torch.where(u[:, 9] < self.flip, -1.0, 1.0)
        axis = (torch.arange(side, device=u.device, dtype=torch.float32) * 2 + 1) / side - 1
        across = axis[None] * (zoom * mirror)[:, None] + 2 * (signed[:, 0] * self.shift)[:, None]
        down = axis[None] * zoom[:, None] + 2 * (signed[:, 1] * self.shift)[:, None]
        square = (len(u), side, side)
        return torch.stack((across[:, None].expand(square), down[:, :, None].expand(square)), 3)

    def _cast_shadow(self, x: Tensor, u: Tensor) -> Tensor:
        axis = torch.linspace(0, 1, x.shape[-1], device=x.device)
        present = u[:, 6] < self.shadow
        depth = torch.where(present, self.shadow_depth * (0.4 + 0.6 * u[:, 6] / max(self.shadow, 1e-9)), 0.0)
        width = 0.04 + 0.10 * u[:, 8]
        profile = torch.exp(-0.5 * ((axis[None] - u[:, 7, None]) / width[:, None]) ** 2)
        begins = 0.6 * (u[:, 7] * 7 % 1)
        below = ((axis[None] - begins[:, None]) / (1 - begins[:, None])).clamp_(min=0)
        return x * torch.exp(-depth[:, None, None] * below[:, :, None] * profile[:, None, :])


def uniforms(seed: int, epoch: int, samples: np.ndarray, count: int) -> np.ndarray:
    """Random numbers that depend on nothing but their names.

    SplitMix64 (Steele, Lea and Flood 2014, OOPSLA) of the three keys and a counter.

    Args:
        seed: any integer. epoch: from 0.
        samples: int (N,).
        count: numbers per sample.

    Returns:
        float64 (N, count), uniform in [0, 1).
    """
    state = np.zeros(len(samples), np.uint64)
    for key in (np.full(1, seed), np.full(1, epoch), samples):
        state = _mix(state ^ np.asarray(key).astype(np.int64).view(np.uint64))
    counter = np.arange(1, count + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    return (_mix(_mix(state)[:, None] + counter) >> np.uint64(11)) * 2.0**-53


def _mix(z: np.ndarray) -> np.ndarray:
    z = z + np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def _sampled(x: Tensor, grid: Tensor) -> Tensor:
    return grid_sample(x[:, None], grid, padding_mode="zeros", align_corners=False)[:, 0]


@cache
def _field(device: torch.device) -> Tensor:
    white = np.random.Generator(np.random.Philox(20)).standard_normal((_TILE, _TILE)).astype(np.float32)
    beside, across = np.roll(white, 1, 0) + np.roll(white, 1, 1), np.roll(white, (1, 1), (0, 1))
    smooth = white + 0.7 * beside + 0.5 * across
    return torch.from_numpy(smooth / smooth.std()).to(device)


def _speckle(offsets: Tensor, side: int) -> Tensor:
    """float32 (N, side, side) of unit-variance correlated noise: windows of one fixed periodic field."""
    axis = torch.arange(side, device=offsets.device)
    rows = (offsets[:, 0, None] + axis) % _TILE
    columns = (offsets[:, 1, None] + axis) % _TILE
    return _field(offsets.device)[rows[:, :, None], columns[:, None, :]]
