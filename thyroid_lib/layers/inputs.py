"""What goes into the network, checked: images and switches."""

import torch
from torch import Tensor

MIN_SIZE = 32  # px: below it the exit flow has nothing left to read
DOWNSAMPLINGS = ("max_pool", "separable", "depthwise", "dense")
CHOICES = {
    "downsampling": DOWNSAMPLINGS,
    "downsampling_norm": (True, False),
    "dense_connections": (True, False),
    "second_connection": ("transition", "three_way"),
    "fusion": ("project", "widen"),
    "transition_pooling": ("average", "max"),
    "transition_order": ("conv_first", "norm_first"),
    "transition2_stride": (1, 2),
    "mirror": (True, False),
}


def normalize(images: Tensor, in_chans: int = 1) -> Tensor:
    """Grey levels to the network's input: (x / 255 - 0.5) / 0.5, as Xception's ImageNet weights expect.

    Args:
        images: uint8 (N, H, W) or (N, 1, H, W), 0 to 255.
        in_chans: channels to repeat the grey level over.

    Returns:
        float32 (N, in_chans, H, W), -1 to 1.
    """
    if images.dtype != torch.uint8 or images.ndim not in (3, 4) or images.shape[1:-2] not in ((), (1,)):
        raise ValueError(
            f"expected uint8 (N, H, W) or (N, 1, H, W), got {images.dtype} {tuple(images.shape)}"
        )
    grey = images if images.ndim == 4 else images[:, None]
    return ((grey.float() / 255 - 0.5) / 0.5).expand(-1, in_chans, -1, -1)


def check_switches(switches: dict) -> None:
    """Raise ValueError where a switch of `network.Xception` has a value that does not exist."""
    for name, allowed in CHOICES.items():
        if switches[name] not in allowed:
            raise ValueError(f"{name}: expected one of {allowed}, got {switches[name]!r}")
    if switches["second_connection"] == "three_way" and switches["transition2_stride"] == 2:
        raise ValueError("transition2_stride=2 needs second_connection='transition': the three-way has no T2")
    if not 0 <= switches["drop_rate"] < 1:
        raise ValueError(f"drop_rate: expected 0 or more, less than 1, got {switches['drop_rate']!r}")
    for name in ("num_classes", "in_chans", "dilation", "middle_blocks"):
        if not isinstance(switches[name], int):
            raise ValueError(f"{name}: expected a whole number, got {switches[name]!r}")
    for name in ("num_classes", "in_chans", "dilation", "width", "middle_blocks"):
        if switches[name] <= 0:
            raise ValueError(f"{name}: expected a positive number, got {switches[name]!r}")


def check_images(x: Tensor, in_chans: int) -> None:
    """Raise ValueError for anything but (N, in_chans, H, W) of at least `MIN_SIZE` px a side."""
    if x.ndim != 4 or x.shape[1] != in_chans:
        raise ValueError(f"expected images of shape (N, {in_chans}, H, W), got {tuple(x.shape)}")
    if min(x.shape[2:]) < MIN_SIZE:
        raise ValueError(
            f"expected images of at least {MIN_SIZE} px a side, got {tuple(x.shape[2:])}: "
            "the exit flow would have nothing left to read; letterbox to a larger size"
        )
