"""The Vision Transformer (Dosovitskiy et al., "An Image is Worth 16x16 Words", ICLR 2021, arXiv
2010.11929), from scratch.

Modules and parameters carry timm's names, so published weights load without a translation table and
a method that attaches to this ViT attaches to timm's unchanged. Letters: B images, N tokens (class
token first), D width, H heads.

    tokens = [class token; patches W_patch] + positions                  # [B, N, D]
    tokens = tokens + attention(norm(tokens)),  tokens = tokens + MLP(norm(tokens))     in each block
    logits = head(pool(norm(tokens)))                                    # [B, num_classes]
"""

from __future__ import annotations

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vtlite.backbones.base import Pixels, VisionBackbone, check_images
from vtlite.storage import VTError

# Mean and spread of the pixels that all published CLIPs were trained on, and how they are resized.
CLIP_PIXELS = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711), "bicubic"


def initialise_linear(network: nn.Module) -> None:
    """The start of every linear layer in a Transformer: weights from a normal distribution of
    spread 0.02; biases zero."""
    for module in network.modules():
        if isinstance(module, nn.Linear):
            nn.init.trunc_normal_(module.weight, std=0.02)
            if module.bias is not None:
                nn.init.zeros_(module.bias)


class PatchEmbed(nn.Module):
    """Cut the image into patches and project each to the width: [B, C, S, S] -> [B, (S /
    patch_size)^2, D]."""

    def __init__(
        self, img_size: int, patch_size: int, in_chans: int, embed_dim: int, bias: bool = True
    ) -> None:
        super().__init__()
        if img_size % patch_size:
            raise VTError(
                f"expected an image size that is a multiple of the patch size {patch_size}, found"
                f" {img_size}; choose another of the two"
            )
        self.img_size, self.patch_size, self.in_chans = (
            (img_size, img_size),
            (patch_size, patch_size),
            in_chans,
        )
        self.num_patches = (img_size // patch_size) ** 2
        self.proj = nn.Conv2d(in_chans, embed_dim, patch_size, patch_size, bias=bias)

    def forward(self, images: Tensor) -> Tensor:
        check_images(images, self.in_chans, self.img_size)
        return self.proj(images).flatten(2).transpose(1, 2)  # [B, D, h, w] -> [B, h w, D]


class Attention(nn.Module):
    """Multi-head self-attention with one fused projection for queries, keys and values: [B, N, D]
    -> [B, N, D]; `causal`: token i sees the tokens up to i, as in a text tower."""

    def __init__(
        self, dim: int, num_heads: int, qkv_bias: bool = True, causal: bool = False
    ) -> None:
        super().__init__()
        if dim % num_heads:
            raise VTError(
                f"expected a width that is a multiple of the number of heads, found width {dim} and"
                f" {num_heads} heads"
            )
        self.num_heads, self.head_dim, self.causal = num_heads, dim // num_heads, causal
        self.qkv = nn.Linear(dim, 3 * dim, bias=qkv_bias)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        B, N, D = x.shape
        q, k, v = (
            t.transpose(1, 2)
            for t in self.qkv(x).view(B, N, 3, self.num_heads, self.head_dim).unbind(2)
        )  # each [B, H, N, D / H]
        # softmax(q k^T / sqrt(D / H)) v
        x = F.scaled_dot_product_attention(q, k, v, is_causal=self.causal)
        return self.proj(x.transpose(1, 2).reshape(B, N, D))


class QuickGELU(nn.Module):
    """x sigmoid(1.702 x), the approximation of GELU that OpenAI's CLIP was trained with."""

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(1.702 * x)


class Mlp(nn.Module):
    """Two linear layers with a GELU between them: [B, N, D] -> [B, N, D]."""

    def __init__(self, dim: int, hidden: int, quick_gelu: bool = False) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.act = QuickGELU() if quick_gelu else nn.GELU()
        self.fc2 = nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.act(self.fc1(x)))


class LayerScale(nn.Module):
    """A learned gain per channel on a residual branch (Touvron et al., 2021, arXiv 2103.17239)."""

    def __init__(self, dim: int, init: float) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.full((dim,), init))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gamma


class Block(nn.Module):
    """A pre-norm block: x + attention(norm(x)), then x + MLP(norm(x)); `init_values` turns
    LayerScale on, `causal` makes it one of a text tower."""

    def __init__(
        self,
        dim: int,
        num_heads: int,
        mlp_ratio: float = 4.0,
        qkv_bias: bool = True,
        init_values: float | None = None,
        norm_eps: float = 1e-6,
        quick_gelu: bool = False,
        causal: bool = False,
    ) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=norm_eps)
        self.attn = Attention(dim, num_heads, qkv_bias, causal)
        self.ls1 = LayerScale(dim, init_values) if init_values else nn.Identity()
        self.norm2 = nn.LayerNorm(dim, eps=norm_eps)
        self.mlp = Mlp(dim, int(dim * mlp_ratio), quick_gelu)
        self.ls2 = LayerScale(dim, init_values) if init_values else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.ls1(self.attn(self.norm1(x)))
        return x + self.ls2(self.mlp(self.norm2(x)))


class VisionTransformer(VisionBackbone):
    """A ViT: images [B, in_chans, img_size, img_size] -> logits [B, num_classes], or features [B,
    D] when num_classes is 0.

    `global_pool` is "token" (the class token after the last norm) or "avg" (the mean of the patch
    tokens, then the norm). `init_values` is the initial LayerScale gain, None for a ViT without
    (DINOv2 has 1e-5). `distilled` adds DeiT's distillation token and its head (Touvron et al., ICML
    2021, arXiv 2012.12877): features and logits are then means over both tokens. `pre_norm`,
    `norm_eps` 1e-5 and, for OpenAI's weights, `quick_gelu` make it the image tower of a published
    CLIP (Radford et al., ICML 2021, arXiv 2103.00020): a norm before the blocks, and patches
    without bias. Raises `VTError` for sizes that do not divide.
    """

    def __init__(
        self,
        img_size: int = 224,
        patch_size: int = 16,
        in_chans: int = 3,
        num_classes: int = 0,
        global_pool: Literal["token", "avg"] = "token",
        embed_dim: int = 768,
        depth: int = 12,
        num_heads: int = 12,
        mlp_ratio: float = 4.0,
        qkv_bias: bool = True,
        init_values: float | None = None,
        distilled: bool = False,
        pre_norm: bool = False,
        norm_eps: float = 1e-6,
        quick_gelu: bool = False,
    ) -> None:
        super().__init__()
        if global_pool not in ("token", "avg"):
            raise VTError(f'expected global_pool "token" or "avg", found {global_pool!r}')
        self.embed_dim, self.num_features, self.num_heads = embed_dim, embed_dim, num_heads
        self.global_pool, self.num_prefix_tokens = global_pool, 2 if distilled else 1
        self.in_chans, self.input_size = in_chans, (img_size, img_size)
        self.pre_norm = pre_norm
        self.patch_embed = PatchEmbed(img_size, patch_size, in_chans, embed_dim, not pre_norm)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, embed_dim))
        self.dist_token = nn.Parameter(torch.zeros(1, 1, embed_dim)) if distilled else None
        self.pos_embed = nn.Parameter(
            torch.zeros(1, self.num_prefix_tokens + self.patch_embed.num_patches, embed_dim)
        )
        self.norm_pre = nn.LayerNorm(embed_dim, eps=norm_eps) if pre_norm else nn.Identity()
        self.blocks = nn.Sequential(
            *(
                Block(embed_dim, num_heads, mlp_ratio, qkv_bias, init_values, norm_eps, quick_gelu)
                for _ in range(depth)
            )
        )
        # With mean pooling timm normalises after the mean, under another name.
        last, none = nn.LayerNorm(embed_dim, eps=norm_eps), nn.Identity()
        self.norm: nn.Module = last if global_pool == "token" else none
        self.fc_norm: nn.Module = none if global_pool == "token" else last
        self.head: nn.Module
        self.head_dist: nn.Module | None = None
        self.reset_classifier(num_classes)
        self._initialise()

    def _initialise(self) -> None:
        nn.init.normal_(self.cls_token, std=1e-6)
        nn.init.trunc_normal_(self.pos_embed, std=0.02)
        if self.dist_token is not None:
            nn.init.normal_(self.dist_token, std=1e-6)
        initialise_linear(self)

    def reset_classifier(self, num_classes: int) -> None:
        """Give the backbone a fresh head of `num_classes` outputs (0: none)."""
        self.head = nn.Linear(self.embed_dim, num_classes) if num_classes else nn.Identity()
        if self.dist_token is not None:
            self.head_dist = (
                nn.Linear(self.embed_dim, num_classes) if num_classes else nn.Identity()
            )

    def get_classifier(self) -> nn.Module | tuple[nn.Module, nn.Module]:
        return self.head if self.head_dist is None else (self.head, self.head_dist)

    @property
    def pixels(self) -> Pixels:
        """Those of the published CLIPs have a mean and spread of their own."""
        return Pixels(self.input_size, *CLIP_PIXELS) if self.pre_norm else super().pixels

    def stage_names(self) -> list[str]:
        """The blocks."""
        return [f"blocks.{i}" for i in range(len(self.blocks))]

    def feature_maps(self, images: Tensor) -> Tensor:
        """[B, C, S, S] -> the patch tokens after the last norm, at their places [B, D, h, w]."""
        patches = self.forward_features(images)[:, self.num_prefix_tokens :]
        side = math.isqrt(patches.shape[1])
        return patches.mT.unflatten(2, (side, side))

    def forward_features(self, images: Tensor) -> Tensor:
        """[B, C, S, S] -> all tokens after the last norm [B, N, D]."""
        x = self.patch_embed(images)
        prefix = (
            self.cls_token
            if self.dist_token is None
            else torch.cat([self.cls_token, self.dist_token], dim=1)
        )
        x = torch.cat([prefix.expand(len(x), -1, -1), x], dim=1) + self.pos_embed
        return self.norm(self.blocks(self.norm_pre(x)))

    def forward_head(self, tokens: Tensor, pre_logits: bool = False) -> Tensor:
        """[B, N, D] -> logits [B, num_classes], or the pooled features [B, D] with `pre_logits`."""
        if self.head_dist is not None and not pre_logits:
            return (self.head(tokens[:, 0]) + self.head_dist(tokens[:, 1])) / 2
        prefix, patches = tokens[:, : self.num_prefix_tokens], tokens[:, self.num_prefix_tokens :]
        pooled = self.fc_norm((prefix if self.global_pool == "token" else patches).mean(dim=1))
        return pooled if pre_logits else self.head(pooled)

    def forward(self, images: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(images))
