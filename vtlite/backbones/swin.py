"""The Swin Transformer (Liu et al., "Swin Transformer: Hierarchical Vision Transformer using
Shifted Windows", ICCV 2021, arXiv 2103.14030).

From scratch, with timm's names. Attention stays inside windows of w x w tokens; every second block
shifts the windows by half, so that neighbouring windows talk to each other; between stages, 2 x 2
tokens merge into one of twice the width. Maps are [B, h, w, D].
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vtlite.backbones.base import VisionBackbone
from vtlite.backbones.vit import Mlp, PatchEmbed, initialise_linear
from vtlite.storage import VTError


def to_windows(x: Tensor, w: int) -> Tensor:
    """[B, h, w, D] -> [B * windows, w * w, D], windows in reading order."""
    B, height, width, D = x.shape
    return x.view(B, height // w, w, width // w, w, D).transpose(2, 3).reshape(-1, w * w, D)


def from_windows(windows: Tensor, w: int, height: int, width: int) -> Tensor:
    """The inverse of `to_windows`."""
    D = windows.shape[-1]
    return (
        windows.view(-1, height // w, width // w, w, w, D)
        .transpose(2, 3)
        .reshape(-1, height, width, D)
    )


class WindowAttention(nn.Module):
    """Attention inside each window, with a learned bias for every difference of positions: [B *
    windows, w * w, D] -> the same."""

    relative_position_index: Tensor

    def __init__(self, dim: int, num_heads: int, window: int) -> None:
        super().__init__()
        if dim % num_heads:
            raise VTError(
                f"expected a width that is a multiple of the number of heads, found width {dim} and"
                f" {num_heads} heads"
            )
        self.num_heads, self.window = num_heads, window
        self.relative_position_bias_table = nn.Parameter(
            torch.zeros((2 * window - 1) ** 2, num_heads)
        )
        nn.init.trunc_normal_(self.relative_position_bias_table, std=0.02)
        place = torch.cartesian_prod(torch.arange(window), torch.arange(window))  # [w * w, 2]
        difference = (
            place[:, None] - place[None] + window - 1
        )  # [w * w, w * w, 2], from 0 to 2 w - 2
        index = difference[..., 0] * (2 * window - 1) + difference[..., 1]
        self.register_buffer("relative_position_index", index, persistent=False)
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        windows, N, D = x.shape
        q, k, v = (
            t.transpose(1, 2) for t in self.qkv(x).view(windows, N, 3, self.num_heads, -1).unbind(2)
        )  # each [windows, H, N, D / H]
        bias = self.relative_position_bias_table[self.relative_position_index].permute(
            2, 0, 1
        )  # [H, N, N]
        if mask is not None:  # [windows of an image, N, N]: the same for every image of the batch
            bias = (bias + mask[:, None]).repeat(
                windows // len(mask), 1, 1, 1
            )  # [windows, H, N, N]
        x = F.scaled_dot_product_attention(q, k, v, attn_mask=bias)
        return self.proj(x.transpose(1, 2).reshape(windows, N, D))


class SwinBlock(nn.Module):
    """A pre-norm block with attention in windows, shifted by `shift` tokens: [B, h, w, D] -> [B, h,
    w, D]."""

    attn_mask: Tensor | None

    def __init__(
        self, dim: int, num_heads: int, resolution: int, window: int, shift: int, mlp_ratio: float
    ) -> None:
        super().__init__()
        self.window, self.shift = window, shift
        self.norm1 = nn.LayerNorm(dim)
        self.attn = WindowAttention(dim, num_heads, window)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = Mlp(dim, int(dim * mlp_ratio))
        self.register_buffer(
            "attn_mask", shift_mask(resolution, window, shift) if shift else None, persistent=False
        )

    def forward(self, x: Tensor) -> Tensor:
        _, height, width, _ = x.shape
        rolled = torch.roll(self.norm1(x), (-self.shift, -self.shift), (1, 2))
        windows = self.attn(to_windows(rolled, self.window), self.attn_mask)
        x = x + torch.roll(
            from_windows(windows, self.window, height, width), (self.shift, self.shift), (1, 2)
        )
        return x + self.mlp(self.norm2(x))


def shift_mask(resolution: int, window: int, shift: int) -> Tensor:
    """[windows, w * w, w * w]: -100 for two tokens that the roll brought into one window from
    opposite sides of the image, else 0."""
    part = torch.bucketize(
        torch.arange(resolution),
        torch.tensor([resolution - window, resolution - shift]),
        right=True,
    )  # 0, 1 or 2
    region = to_windows((3 * part[:, None] + part[None])[None, :, :, None], window)[
        ..., 0
    ]  # [windows, w * w]
    return torch.where(region[:, :, None] == region[:, None], 0.0, -100.0)


class PatchMerging(nn.Module):
    """2 x 2 tokens become one of twice the width: [B, h, w, D] -> [B, h / 2, w / 2, 2 D]."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(4 * dim)
        self.reduction = nn.Linear(4 * dim, 2 * dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        B, height, width, D = x.shape
        x = (
            x.view(B, height // 2, 2, width // 2, 2, D).permute(0, 1, 3, 4, 2, 5).flatten(3)
        )  # column by column, as published
        return self.reduction(self.norm(x))


class SwinStage(nn.Module):
    """Downsampling (but in the first stage) and `depth` blocks."""

    def __init__(
        self,
        dim: int,
        depth: int,
        num_heads: int,
        resolution: int,
        window: int,
        mlp_ratio: float,
        first: bool,
    ) -> None:
        super().__init__()
        self.downsample = nn.Identity() if first else PatchMerging(dim // 2)
        window, half = (
            min(window, resolution),
            window // 2 if window < resolution else 0,
        )  # one window needs no shift
        if resolution % window:
            raise VTError(
                f"expected a map of {resolution} x {resolution} tokens to hold whole windows of"
                f" {window}; choose another image size"
            )
        shifts = (0 if i % 2 == 0 else half for i in range(depth))
        self.blocks = nn.Sequential(
            *(SwinBlock(dim, num_heads, resolution, window, shift, mlp_ratio) for shift in shifts)
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.blocks(self.downsample(x))


class ClassifierHead(nn.Module):
    """Mean over positions, then a linear layer: [B, h, w, D] -> [B, num_classes]."""

    def __init__(self, dim: int, num_classes: int) -> None:
        super().__init__()
        self.fc: nn.Module = nn.Linear(dim, num_classes) if num_classes else nn.Identity()

    def forward(self, maps: Tensor, pre_logits: bool = False) -> Tensor:
        pooled = maps.mean(dim=(1, 2))
        return pooled if pre_logits else self.fc(pooled)


class SwinTransformer(VisionBackbone):
    """A Swin: images [B, in_chans, img_size, img_size] -> logits [B, num_classes], or features [B,
    num_features] when num_classes is 0."""

    def __init__(
        self,
        img_size: int = 224,
        patch_size: int = 4,
        in_chans: int = 3,
        num_classes: int = 0,
        embed_dim: int = 96,
        depths: Sequence[int] = (2, 2, 6, 2),
        num_heads: Sequence[int] = (3, 6, 12, 24),
        window_size: int = 7,
        mlp_ratio: float = 4.0,
    ) -> None:
        super().__init__()
        if len(depths) != len(num_heads) or not depths:
            raise VTError(
                f"expected depths and num_heads of as many stages, found {tuple(depths)} and "
                f"{tuple(num_heads)}; give one number of each for every stage"
            )
        if img_size // patch_size % 2 ** (len(depths) - 1):
            raise VTError(
                f"expected a map of {img_size // patch_size} x {img_size // patch_size} tokens that "
                f"can be halved {len(depths) - 1} times; choose another image size"
            )
        self.embed_dim, self.num_features = embed_dim, embed_dim * 2 ** (len(depths) - 1)
        self.in_chans, self.input_size = in_chans, (img_size, img_size)
        self.patch_embed = PatchEmbed(img_size, patch_size, in_chans, embed_dim)
        self.patch_embed.norm = nn.LayerNorm(embed_dim)
        grid = img_size // patch_size
        self.layers = nn.Sequential(
            *(
                SwinStage(
                    embed_dim * 2**i, depth, heads, grid // 2**i, window_size, mlp_ratio, i == 0
                )
                for i, (depth, heads) in enumerate(zip(depths, num_heads, strict=True))
            )
        )
        self.norm = nn.LayerNorm(self.num_features)
        self.head = ClassifierHead(self.num_features, num_classes)
        initialise_linear(self)

    def reset_classifier(self, num_classes: int) -> None:
        """Give the backbone a fresh head of `num_classes` outputs (0: none)."""
        self.head = ClassifierHead(self.num_features, num_classes)

    def get_classifier(self) -> nn.Module:
        return self.head.fc

    def stage_names(self) -> list[str]:
        """The blocks of all stages."""
        stages: Any = self.layers
        return [
            f"layers.{i}.blocks.{j}"
            for i, layer in enumerate(stages)
            for j in range(len(layer.blocks))
        ]

    def feature_maps(self, images: Tensor) -> Tensor:
        """[B, C, S, S] -> the last map after the norm [B, num_features, h, w]."""
        return self.forward_features(images).permute(0, 3, 1, 2)

    def forward_features(self, images: Tensor) -> Tensor:
        """[B, C, S, S] -> the last map after the norm [B, h, w, num_features]."""
        embed: Any = self.patch_embed
        tokens = embed.norm(embed(images))  # [B, N, D]
        side = round(tokens.shape[1] ** 0.5)
        return self.norm(self.layers(tokens.unflatten(1, (side, side))))

    def forward_head(self, maps: Tensor, pre_logits: bool = False) -> Tensor:
        """[B, h, w, num_features] -> logits [B, num_classes], or the pooled features [B,
        num_features] with `pre_logits`."""
        return self.head(maps, pre_logits)

    def forward(self, images: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(images))
