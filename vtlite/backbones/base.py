"""What a backbone says about itself: the pixels it takes, its stages, its features as a vector and as a map.

Our backbones are subclasses of `VisionBackbone` and say it in their own files; `about` says it for timm's
networks. Nobody else has to know what kind of network a backbone is.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from vtlite.storage import VTError

HEADS = ("head.", "head_dist.", "fc.")  # a classifier's parameters; a backbone is kept without it
_SHARED = ("forward_features", "forward_head", "reset_classifier", "get_classifier", "num_features")


@dataclass(frozen=True)
class Pixels:
    """What images a network was trained on: (pixel - mean) / std for pixels in [0, 1], and a size."""

    size: tuple[int, int] | None = None  # height and width; None: any
    mean: tuple[float, ...] = (0.5, 0.5, 0.5)
    std: tuple[float, ...] = (0.5, 0.5, 0.5)
    interpolation: str = "bilinear"


class VisionBackbone(nn.Module):
    """A network from images to features, with timm's names for what it does.

    A subclass sets `num_features` (D), `in_chans` and, where images have one size, `input_size`, and
    writes `forward_features`, `forward_head`, `reset_classifier`, `get_classifier` and the two
    methods below that raise `NotImplementedError`.
    """

    num_features: int
    in_chans: int = 3
    input_size: tuple[int, int] | None = None  # None: any
    forward_features: Any
    forward_head: Any

    @property
    def pixels(self) -> Pixels:
        """What images it expects; those of the embedded backbones lie in [-1, 1]."""
        return Pixels(self.input_size)

    def stage_names(self) -> list[str]:
        """The names of its blocks (or stages) from input to output."""
        raise NotImplementedError

    def feature_maps(self, images: Tensor) -> Tensor:
        """The last features at their places: [B, C, H, W] -> [B, D, h, w]."""
        raise NotImplementedError


class TimmNetwork:
    """What `VisionBackbone` says, said for a network of timm's."""

    def __init__(self, network: Any) -> None:
        self.network = network

    @property
    def in_chans(self) -> int | None:
        first = next((m for m in self.network.modules() if isinstance(m, nn.Conv2d)), None)
        return first.in_channels if first is not None else None

    @property
    def input_size(self) -> tuple[int, int] | None:
        embed = getattr(self.network, "patch_embed", None)
        return getattr(embed, "img_size", None)

    @property
    def pixels(self) -> Pixels:
        said = getattr(self.network, "pretrained_cfg", {})
        size = self.input_size or tuple(said.get("input_size", ())[1:]) or None
        mean, std = (tuple(said.get(name) or (0.5, 0.5, 0.5)) for name in ("mean", "std"))
        return Pixels(size, mean, std, said.get("interpolation") or "bilinear")

    def stage_names(self) -> list[str]:
        model = self.network
        if hasattr(model, "blocks"):
            return [f"blocks.{i}" for i in range(len(model.blocks))]
        if hasattr(model, "layers"):  # Swin: stages of blocks
            return [
                f"layers.{i}.blocks.{j}"
                for i, layer in enumerate(model.layers)
                for j in range(len(layer.blocks))
            ]
        if hasattr(model, "layer1"):
            return [
                name for name in ("layer1", "layer2", "layer3", "layer4") if hasattr(model, name)
            ]
        raise VTError(
            f"expected a ViT, Swin or ResNet, found {type(model).__name__}, "
            "whose blocks have no names known here"
        )

    def feature_maps(self, images: Tensor) -> Tensor:
        found = self.network.forward_features(images)
        if found.ndim == 3:  # tokens [B, prefix + h w, D]
            patches = found[:, getattr(self.network, "num_prefix_tokens", 0) :]
            height, width = self.network.patch_embed.grid_size
            return patches.mT.unflatten(2, (height, width))
        channels = self.network.num_features
        return found if found.shape[1] == channels else found.permute(0, 3, 1, 2)


def about(backbone: Any) -> Any:
    """Who answers for `backbone`: itself if it is one of ours, `TimmNetwork` for others.

    Raises `VTError` for a network that lacks the names which ours and timm's share.
    """
    if isinstance(backbone, VisionBackbone):
        return backbone
    if missing := [name for name in _SHARED if not hasattr(backbone, name)]:
        raise VTError(
            f"expected a backbone of vtlite's or timm's, found {type(backbone).__name__} without "
            f"{', '.join(missing)}; load one with vt.load_backbone or vt.create_backbone"
        )
    return TimmNetwork(backbone)


def pixels_of(backbone: Any) -> Pixels:
    """What images the backbone expects (see `Pixels`)."""
    return about(backbone).pixels


def features(backbone: Any, images: Tensor) -> Tensor:
    """The pooled features that a classifier reads: [B, C, H, W] -> [B, D]."""
    check_images(images, about(backbone).in_chans, about(backbone).input_size)
    return backbone.forward_head(backbone.forward_features(images), pre_logits=True)


def feature_maps(backbone: Any, images: Tensor) -> Tensor:
    """The last features at their places: [B, C, H, W] -> [B, D, h, w]."""
    check_images(images, about(backbone).in_chans, about(backbone).input_size)
    return about(backbone).feature_maps(images)


def check_images(images: Tensor, channels: int | None, size: tuple[int, int] | None) -> None:
    """Raise `VTError` unless `images` is a floating-point batch [B, channels, *size].

    `size` None: of any size; `channels` None: of any number.
    """
    height, width = size or ("H", "W")
    expected = f"float images [B, {channels or 'C'}, {height}, {width}]"
    if not images.is_floating_point():
        raise VTError(
            f"expected {expected}, found dtype {images.dtype}; "
            "scale the pixels to floats first, e.g. images.float() / 127.5 - 1"
        )
    if images.ndim != 4 or images.shape[1] != (channels or images.shape[1]):
        raise VTError(
            f"expected {expected}, found shape {list(images.shape)}; "
            "add the batch dimension or convert the channels"
        )
    if size and images.shape[2:] != size:
        raise VTError(
            f"expected {expected}, found {images.shape[2]}x{images.shape[3]} pixels; "
            f"resize, or load the task with image_size={size[0]}"
        )
