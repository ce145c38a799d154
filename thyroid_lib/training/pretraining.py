"""Pre-training on open data (C8): what it reads, how it starts, and where the fine-tuning finds it."""

import inspect
from pathlib import Path

import numpy as np
import torch

from thyroid_lib import network
from thyroid_lib.data.crops import Crops
from thyroid_lib.training import checkpoint, loop
from thyroid_lib.training.augmentation import Augmentation

OF_THE_DATA = ("self", "num_classes", "in_chans")  # what the crops decide, not the one who asks for a network


def open_data(folder: Path) -> Crops:
    """The crops to pre-train on.

    Raises:
        FileNotFoundError: notebook 01 made none.
        ValueError: they have fewer than two classes with labels.
    """
    crops = Crops.open(folder)
    present = sorted({crops.classes[label] for label in crops.labels if label >= 0})
    if len(present) < 2:
        raise ValueError(
            f"{folder}: expected open data with at least two labelled classes, {present or 'none'} came; choose "
            "another --pretrain-data, or skip this notebook and set 04_finetune.pretrained=false"
        )
    return crops


def model_config(crops: Crops, switches: dict, initial: Path | None = None) -> dict:
    """Configuration of a grey-scale network for the classes of the crops, complete, for `network.build`.

    Args:
        crops: what it will see.
        switches: of `network.Xception`, any of them; "name" is "optimized_xception" (without it) or "xception".
        initial: weights that it will start from, whose switches hold where nothing else is said.

    Raises:
        ValueError: there is no such switch, or it has no such value.
    """
    known = [name for name in inspect.signature(network.Xception).parameters if name not in OF_THE_DATA]
    if not isinstance(switches, dict) or set(switches) - set(known):
        raise ValueError(f"network: expected switches among {', '.join(known)}; {switches!r} came")
    defaults = {"name": "optimized_xception", "zero_init_residual": True}
    brought = checkpoint.load_weights(initial, tensors=False)[1]["model"] if initial else {}
    try:
        with torch.device("meta"):
            config = defaults | brought | switches | {"num_classes": len(crops.classes), "in_chans": 1}
            return network.build(config).config
    except (TypeError, ValueError) as error:
        raise ValueError(f"network={switches!r}: {error}") from error


def fit(
    settings: loop.Settings, crops: Crops, rows: dict, folder: Path, initial: str = "", on_epoch=None
) -> tuple[loop.Fit, dict[str, str]]:
    """Pre-trains, or goes on with it.

    Args:
        settings: what to do. crops: the open data. rows: "train" and "validation" -> int (n,), rows of it.
        folder: for the checkpoints; those of other settings are set aside.
        initial: weights to start from: a safetensors file of the same network, `weights.HUB` for ImageNet's (width 1,
            8 middle blocks; needs timm and the network), or "" for random ones.
        on_epoch: as `loop.fit`.

    Returns:
        The training, and where its initial weights came from: source, sha256, licence; empty for random ones.
    """
    start, origin = imagenet_weights(settings.model, initial) if initial else (None, {})
    options = {"initial": start, "title": "pre-training", "on_epoch": on_epoch, "set_aside": True}
    return loop.fit(settings, crops, rows["train"], rows["validation"], folder, **options), origin


def imagenet_weights(config: dict, source: str) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """A state dict for the network of `config` with the body of `source`, its own head and new layers.

    Args:
        config: for `network.build`. source: `weights.HUB`, or a file of timm's legacy_xception or of this network.

    Returns:
        The state dict, and where it came from: source, sha256, licence.
    """
    from thyroid_lib.layers import weights

    tensors, origin = weights.read_weights(source)
    if "conv1.weight" not in tensors:
        return tensors, origin
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = network.build(config)
    network.load_timm_weights(model, tensors)
    body = {name: value for name, value in model.state_dict().items() if not name.startswith("fc.")}
    return body, origin


def weights_of(folder: Path) -> Path | None:
    """The pre-trained weights of a run, for the fine-tuning; None where no pre-training is finished there.

    Raises:
        CheckpointError: it was begun and is not finished.
    """
    state = checkpoint.read_state(folder)
    if state is None:
        return None
    if state["epoch"] < state["identity"]["settings"]["epochs"]:
        raise checkpoint.CheckpointError(
            f"Expected a finished pre-training in {folder}; it stopped after epoch {state['epoch']}. Run notebook 03 "
            "again, it goes on from there."
        )
    return Path(folder) / checkpoint.BEST


def augmented_examples(
    crops: Crops, rows: np.ndarray, strength: float, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Three crops and what augmentation makes of them in five successive epochs.

    Returns:
        uint8 (3, S, S) and uint8 (3, 5, S, S); fewer where there are fewer rows.
    """
    chosen = rows[np.linspace(0, len(rows) - 1, min(3, len(rows))).astype(int)]
    images, change = np.array(crops.images[chosen]), Augmentation().scaled(strength)
    seen = [change(torch.from_numpy(images), chosen, seed=seed, epoch=epoch)[0] for epoch in range(5)]
    return images, torch.stack(seen, dim=1).numpy()
