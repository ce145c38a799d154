"""The machine's part of a training: devices, ranks, precision and memory, through Lightning Fabric."""

import logging
import os

import numpy as np
import torch
from torch import nn

from thyroid_lib.common import memory
from thyroid_lib.training import checkpoint, hardware
from thyroid_lib.training.settings import Settings


def open_fabric(settings: Settings, state: dict, model: nn.Module, size: int):
    """Fabric for this process, alone or one of torchrun's.

    Args:
        settings: `precision` and `compile`.
        state: of the checkpoint; "environment" is kept from its first start, "choices", what was chosen for this
            machine and why, is written.
        model: to probe precisions with. size: side of the images, px.

    Returns:
        lightning_fabric.Fabric, launched.
    """
    from lightning_fabric import Fabric

    accelerator = "cuda" if torch.cuda.is_available() else "cpu"
    world = int(os.environ.get("WORLD_SIZE", 1)) if "LOCAL_RANK" in os.environ else 1
    local = int(os.environ.get("LOCAL_WORLD_SIZE", world)) if world > 1 else 1
    device = torch.device(accelerator)
    before = state.get("environment")
    if before and settings.precision == "auto":
        precision, why = before["precision"], "as the checkpoint began"
    else:
        precision, why = hardware.choose_precision(settings.precision, device, model, size)
    logging.getLogger("lightning_fabric").setLevel(logging.WARNING)  # the precision is told with the choices
    fabric = Fabric(
        accelerator=accelerator,
        devices=local,
        num_nodes=world // local,
        strategy="ddp" if world > 1 else "auto",
        precision=precision,
    )
    if world > 1:
        fabric.launch()
    now = {
        "precision": precision,
        "device": str(accelerator),
        "processes": world,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }
    choices = {
        **now,
        "precision_why": why,
        "memory_format": "channels-last",
        "optimizer": "fused AdamW" if accelerator in ("cpu", "cuda") else "AdamW",
        "compile": "asked for"
        if settings.compile
        else "off: slower on CPUs as measured, not measured elsewhere",
        "memory": "freed memory is kept for the next step"
        if memory.keep_memory()
        else "as the system does it",
    }
    if before and before != now:
        choices["resumed_elsewhere"] = "; ".join(checkpoint.differences(before, now)) + ": bits may differ"
    state.setdefault("environment", now)
    state["choices"] = choices
    return fabric


def gathered(fabric, array: np.ndarray) -> list[np.ndarray]:
    """The arrays of all ranks in order, on every rank; lengths may differ."""
    if fabric.world_size == 1:
        return [array]
    arrays = [None] * fabric.world_size
    torch.distributed.all_gather_object(arrays, array)
    return arrays
