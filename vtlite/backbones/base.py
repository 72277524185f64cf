"""What a backbone says about itself: the pixels it takes, its stages, its features as a vector and
as a map.

Our backbones are subclasses of `VisionBackbone` and say it in their own files; `about` says it for
timm's networks. Nobody else has to know what kind of network a backbone is.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from vtlite.storage import VTError

HEADS = ("head.", "head_dist.", "fc.")  # a classifier's parameters; a backbone is kept without it
_SHARED = ("forward_features", "forward_head", "reset_classifier", "get_classifier", "num_features")


@dataclass(frozen=True)
class Pixels:
    """What images a network was trained on: (pixel - mean) / std for pixels in [0, 1], and a
    size."""

    size: tuple[int, int] | None = None  # height and width; None: any
    mean: tuple[float, ...] = (0.5, 0.5, 0.5)
    std: tuple[float, ...] = (0.5, 0.5, 0.5)
    interpolation: str = "bilinear"


class VisionBackbone(nn.Module):
    """A network from images to features, with timm's names for what it does.

    A subclass sets `num_features` (D), `in_chans` and, where images have one size, `input_size`,
    and writes `forward_features`, `forward_head`, `reset_classifier`, `get_classifier` and the two
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

    @property
    def map_features(self) -> int:
        """The width of `feature_maps`."""
        return self.num_features

    def prepare(self) -> None:
        """Nothing: our networks call each of their layers (see `TimmNetwork.prepare`)."""

    def sample(self) -> Tensor | None:
        """None: what works on our networks is known (see `TimmNetwork.sample`)."""
        return None


# What timm's networks call the parts that follow one another. Those of the first kind hold the
# blocks (or stages, which hold them as `blocks`), those of the second are stages themselves.
_HOLD_BLOCKS = ("blocks", "layers", "stages", "levels", "cls_attn_blocks", "blocks_token_only")
_STAGE = re.compile(r"layer\d|s\d|network\d|stage\d|serial_blocks\d")


class TimmNetwork:
    """What `VisionBackbone` says, said for a network of timm's."""

    def __init__(self, network: Any) -> None:
        self.network = network
        self.published: dict[str, Any] = getattr(network, "pretrained_cfg", None) or {}

    @property
    def num_features(self) -> int:
        """The width that a classifier reads; MobileNet V3 and others widen their maps before it."""
        return getattr(self.network, "head_hidden_size", None) or self.network.num_features

    @property
    def map_features(self) -> int:
        return self.network.num_features

    @property
    def in_chans(self) -> int | None:
        first = self.published.get("first_conv") or ""
        names = [first] if isinstance(first, str) else [*first]
        seen = (part for name in names for part in _part(self.network, name).modules())
        convolution = next((m for m in seen if isinstance(m, nn.Conv2d)), None)
        if convolution is not None:
            return convolution.in_channels
        return getattr(self.network, "in_chans", None)

    @property
    def input_size(self) -> tuple[int, int] | None:
        for name in ("patch_embed", "stem"):
            embed: Any = getattr(self.network, name, None)
            if getattr(embed, "img_size", None) and getattr(embed, "strict_img_size", True):
                return tuple(embed.img_size)
        return None

    @property
    def pixels(self) -> Pixels:
        said = self.published
        size = self.input_size or tuple(said.get("input_size") or ())[1:] or None
        mean, std = (tuple(said.get(name) or (0.5, 0.5, 0.5)) for name in ("mean", "std"))
        return Pixels(size, mean, std, said.get("interpolation") or "bilinear")

    def stage_names(self) -> list[str]:
        """The blocks of a network that has them, else its stages, else its parts with
        parameters."""
        names = []
        for name, child in self.network.named_children():
            if name in _HOLD_BLOCKS:
                for i, stage in child.named_children():
                    inner = getattr(stage, "blocks", None)
                    inside = [j for j, _ in inner.named_children()] if inner is not None else []
                    names += [f"{name}.{i}.blocks.{j}" for j in inside] or [f"{name}.{i}"]
            elif _STAGE.fullmatch(name):
                names.append(name)
            elif name == "features":  # DenseNet: its stem and last norm stand beside the blocks
                parts = child.named_children()
                names += [f"{name}.{i}" for i, m in parts if list(m.children()) and not is_norm(m)]
        return names or [n for n, part in self.network.named_children() if list(part.parameters())]

    def feature_maps(self, images: Tensor) -> Tensor:
        found = self.network.forward_features(images)
        channels = self.map_features
        if not isinstance(found, Tensor) or found.ndim not in (3, 4):
            raise VTError(
                f"expected a network with one last map, found {type(self.network).__name__}"
                " without; choose another backbone for a task that asks about places"
            )
        if found.ndim == 3:  # tokens [B, prefix + h w, D]
            patches = found[:, getattr(self.network, "num_prefix_tokens", 0) :]
            height = round((patches.shape[1] * images.shape[2] / images.shape[3]) ** 0.5)
            return patches.mT.unflatten(2, (height, -1))
        last = getattr(self.network, "output_fmt", "NCHW") == "NHWC" or found.shape[1] != channels
        return found.permute(0, 3, 1, 2) if last else found

    def prepare(self) -> None:
        """Make the network, a copy that is to be tuned, call each of its layers.

        The attention of BEiT, EVA and Swin V2 reads the weight of `qkv` instead, to give it a bias
        with a part that is always zero; timm has a switch for the other way.
        """
        for module in self.network.modules():
            if hasattr(module, "qkv_bias_separate"):
                module.qkv_bias_separate = True

    def sample(self) -> Tensor | None:
        """Two random images that the network takes, to try a change of it on; None where it has no
        values to compute with."""
        like = next(self.network.parameters())
        if like.is_meta:
            return None
        published = tuple(self.published.get("input_size") or (3, 224, 224))[1:]
        generator = torch.Generator().manual_seed(0)
        for size in (self.input_size or (64, 64), published):
            images = torch.randn(2, self.in_chans or 3, *size, generator=generator, device="cpu")
            images = images.to(like)
            try:
                with torch.no_grad():
                    self.network.forward_features(images)
            except (RuntimeError, AssertionError, ValueError):  # too small for this network
                continue
            return images
        return None


def _part(network: nn.Module, name: str) -> nn.Module:
    """The submodule of that name, or the network itself where it has none of that name."""
    try:
        return network.get_submodule(name)
    except AttributeError:
        return network


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
    images = images.to(next(backbone.parameters()).dtype)
    return backbone.forward_head(backbone.forward_features(images), pre_logits=True)


def feature_maps(backbone: Any, images: Tensor) -> Tensor:
    """The last features at their places: [B, C, H, W] -> [B, D, h, w]."""
    check_images(images, about(backbone).in_chans, about(backbone).input_size)
    return about(backbone).feature_maps(images.to(next(backbone.parameters()).dtype))


def outside(pixels: Pixels, images: Sequence[Any]) -> str:
    """Why images can't be in the range that a network was trained on; empty where they may be.

    Augmented and normalised images leave the range a little, ones of another scale by far; images
    without a negative number were not normalised.
    """
    images = [x for x in images if isinstance(x, Tensor) and x.is_floating_point() and x.numel()]
    if not images:
        return ""
    low = min(-m / s for m, s in zip(pixels.mean, pixels.std, strict=True))
    high = max((1 - m) / s for m, s in zip(pixels.mean, pixels.std, strict=True))
    margin = 2 * (high - low)
    least, most = min(x.min().item() for x in images), max(x.max().item() for x in images)
    raw = low < 0 <= least < most <= 1
    if not raw and low - margin <= least and most <= high + margin:
        return ""
    return (
        f"expected pixels between {low:.1f} and {high:.1f}, as the network was trained on, "
        f"found {least:.1f} to {most:.1f}; scale them, or load the task with like=backbone"
    )


NORMS = (nn.LayerNorm, nn.GroupNorm, nn.RMSNorm, nn.modules.batchnorm._BatchNorm)


def is_norm(layer: nn.Module) -> bool:
    """Whether a layer normalises and has a scale of its own; timm has more kinds than torch."""
    known = isinstance(layer, NORMS) or "Norm" in type(layer).__name__
    return known and isinstance(getattr(layer, "weight", None), Tensor)


def channel_dim(layer: nn.Module) -> int:
    """Where a layer's output has its channels: 1 for maps [B, C, H, W], -1 for tokens [..., C]."""
    maps = isinstance(layer, nn.Conv2d | nn.GroupNorm | nn.modules.batchnorm._BatchNorm)
    return 1 if maps or "2d" in type(layer).__name__ else -1  # timm's LayerNorm2d


def check_images(images: Tensor, channels: int | None, size: tuple[int, int] | None) -> None:
    """Raise `VTError` unless `images` is a floating-point batch [B, channels, *size].

    `size` None: of any size; `channels` None: of any number.
    """
    height, width = size or ("H", "W")
    expected = f"float images [B, {channels or 'C'}, {height}, {width}]"
    if not isinstance(images, Tensor):
        raise VTError(
            f"expected {expected}, found {type(images).__name__}; pass a tensor, e.g. "
            "torch.stack(images)"
        )
    if not images.is_floating_point():
        raise VTError(
            f"expected {expected}, found dtype {images.dtype}; "
            "scale the pixels to floats first, e.g. images.float() / 127.5 - 1"
        )
    if images.ndim != 4 or images.shape[1] != (channels or images.shape[1]):
        last = images.ndim == 4 and images.shape[3] == channels
        raise VTError(
            f"expected {expected}, found shape {list(images.shape)}; "
            + (
                "put the channels first: images.permute(0, 3, 1, 2)"
                if last
                else "add the batch dimension or convert the channels"
            )
        )
    if size and images.shape[2:] != size:
        raise VTError(
            f"expected {expected}, found {images.shape[2]}x{images.shape[3]} pixels; "
            f"resize, or load the task with image_size={size[0]}"
        )
