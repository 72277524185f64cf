"""A ViT whose patches pass some convolutions first (Xiao et al., "Early Convolutions Help
Transformers See Better", NeurIPS 2021).

arXiv 2106.14881. A few 3x3 convolutions of stride 2 replace most of the patch's stride; the names
are those of timm's hybrid ViTs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from vtlite.backbones.base import check_images
from vtlite.backbones.vit import PatchEmbed, VisionTransformer
from vtlite.storage import VTError


class ConvNormAct(nn.Module):
    """A 3x3 convolution of stride 2, batch norm and ReLU; the last of a stem has neither norm nor
    ReLU: [B, in, h, w] -> [B, out, h/2, w/2]."""

    def __init__(self, in_channels: int, out_channels: int, last: bool) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, 3, 2, 1, bias=last)
        self.bn = nn.Identity() if last else nn.BatchNorm2d(out_channels)
        self.last = last

    def forward(self, x: Tensor) -> Tensor:
        x = self.bn(self.conv(x))
        return x if self.last else F.relu(x)


class HybridEmbed(PatchEmbed):
    """Convolutions of stride 2, then the patch projection of what stride is left: [B, C, S, S] ->
    [B, (S / patch_size)^2, D]."""

    def __init__(
        self, img_size: int, patch_size: int, in_chans: int, embed_dim: int, channels: Sequence[int]
    ) -> None:
        left = patch_size // 2 ** len(channels)
        if not channels or left * 2 ** len(channels) != patch_size:
            raise VTError(
                f"expected a patch size that {len(channels)} halvings divide, found {patch_size};"
                " give the stem other channels"
            )
        super().__init__(img_size, patch_size, in_chans, embed_dim)
        del (
            self.proj
        )  # made again below, so that the modules stand in the order in which the image passes them
        inputs = (in_chans, *channels[:-1])
        self.backbone = nn.Sequential(
            *(
                ConvNormAct(a, b, last=i == len(channels) - 1)
                for i, (a, b) in enumerate(zip(inputs, channels, strict=True))
            )
        )
        self.proj = nn.Conv2d(channels[-1], embed_dim, left, left)

    def forward(self, images: Tensor) -> Tensor:
        check_images(images, self.in_chans, self.img_size)
        return self.proj(self.backbone(images)).flatten(2).transpose(1, 2)


class HybridViT(VisionTransformer):
    """A ViT with a convolutional stem of the given `stem_channels`; all other arguments are the
    ViT's."""

    def __init__(self, stem_channels: Sequence[int] = (24, 48, 96), **arguments: Any) -> None:
        super().__init__(**arguments)
        embed = self.patch_embed
        self.patch_embed = HybridEmbed(
            embed.img_size[0], embed.patch_size[0], embed.in_chans, self.embed_dim, stem_channels
        )
