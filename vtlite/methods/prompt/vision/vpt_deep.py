"""VPT-deep: learned tokens beside the image's own, fresh ones in every block."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vtlite.backbones.stages import PositionsWithPrompts, attention_blocks, patch_weight
from vtlite.method import Backbone, Method
from vtlite.ops.prompt_attention import prompt_attention

KNOWN = ("vtlite.backbones.vit.Block", "timm.models.vision_transformer.Block")


class PromptedBlock(nn.Module):
    """A frozen block whose tokens see P prompts as well: [B, N, D] -> [B, N, D].

    What a block makes of its prompts is dropped at its end, as the next one brings its own: the
    same function as the paper's replacing them there, with the sequence outside the block
    unchanged, so that pooling and heads need not know of prompts. So prompts need neither queries
    nor an MLP; and their keys and values, the same for every image, are made once. `prompts` are
    [P, D], or a module that makes them.
    """

    def __init__(
        self, block: nn.Module, prompts: Any, prefix: int, dropout: float, count: int | None = None
    ) -> None:
        super().__init__()
        self.block, self.prefix, self.dropout, self.known = block, prefix, dropout, known(block)
        self.prompts = prompts if isinstance(prompts, nn.Module) else nn.Parameter(prompts)
        self.positions = PositionsWithPrompts(block, prefix, count or len(prompts))
        self.on = True  # off: the block as it was

    def forward(self, x: Tensor, **named: Any) -> Tensor:
        if not self.on:
            return self.block(x, **named)
        made = self.prompts() if isinstance(self.prompts, nn.Module) else self.prompts
        prompts = F.dropout(made, self.dropout, self.training)
        block: Any = self.block
        # A variant of timm's; or the block trains as well, perhaps with dropout inside
        if not self.known or block.training or any(value is not None for value in named.values()):
            return self.concatenated(x, prompts, self.positions(named))
        x = x + block.ls1(self.attention(block.norm1(x), block.norm1(prompts)))
        return x + block.ls2(block.mlp(block.norm2(x)))

    def attention(self, x: Tensor, prompts: Tensor) -> Tensor:
        """The block's own, with P more keys and values: x [B, N, D], prompts [P, D] -> [B, N, D]"""
        attn: Any = self.block.attn
        q, k, v = (
            t.transpose(1, 2) for t in attn.qkv(x).unflatten(-1, (3, attn.num_heads, -1)).unbind(2)
        )  # each [B, H, N, D / H]
        _, pk, pv = (
            t.transpose(0, 1)
            for t in attn.qkv(prompts).unflatten(-1, (3, attn.num_heads, -1)).unbind(1)
        )  # [H, P, D / H]
        return attn.proj(prompt_attention(q, k, v, pk, pv).transpose(1, 2).flatten(2))

    def concatenated(self, x: Tensor, prompts: Tensor, named: dict[str, Any]) -> Tensor:
        """As in the paper, for any block: the prompts of each image go through it beside its
        tokens."""
        x = torch.cat(
            [x[:, : self.prefix], prompts.expand(len(x), -1, -1), x[:, self.prefix :]], dim=1
        )  # [B, N + P, D]
        x = self.block(x, **named)
        return torch.cat([x[:, : self.prefix], x[:, self.prefix + len(prompts) :]], dim=1)


def known(block: Any) -> bool:
    """Whether this is our block or timm's usual one, with nothing in its attention but the two
    projections."""
    name = f"{type(block).__module__}.{type(block).__qualname__}"
    parts = (
        (part for key, part in block.attn.named_children() if key not in ("qkv", "proj"))
        if name in KNOWN
        else ()
    )
    return name in KNOWN and all(isinstance(part, nn.Identity | nn.Dropout) for part in parts)


@dataclass
class VPTDeep(Method):
    """Give every block its own learned tokens, and let the frozen attention read them.

        [x_cls, _, x_patches] <- block_i([x_cls, P_i, x_patches]),   P_i [num_prompts, D]

    Prompts are drawn from U(-v, v), v = sqrt(6 / (channels * patch^2 + D)), and get no position.
    Jia et al., "Visual Prompt Tuning", ECCV 2022, arXiv 2203.12119; github.com/KMnP/vpt. On
    ViT-B/16: 460,800 parameters with 50 prompts. The paper searches SGD learning rates up to 50 and
    gives the head a bias of -4.6; here AdamW and a plain head are used, as in most later work.
    """

    lr = 3e-2
    small = {"num_prompts": 8}

    starts_elsewhere = "random prompts take part in every softmax from the first step"
    unmergeable = "its prompts are extra tokens, which no weight of the backbone can stand for"

    num_prompts: int = 8  # tokens added per block; attention cost grows with them
    dropout: float = 0.0  # on the prompts, in training

    def __post_init__(self) -> None:
        self.expect(
            self.num_prompts >= 1,
            "num_prompts",
            "an integer of at least 1",
        )
        self.expect(0 <= self.dropout < 1, "dropout", "in [0, 1)")

    def attach(self, backbone: Backbone) -> None:
        blocks = attention_blocks(backbone, "vpt_deep", plain=True)
        prefix = getattr(backbone, "num_prefix_tokens", 0)
        patches = patch_weight(backbone, "vpt_deep")  # [D, C, patch, patch]
        bound = math.sqrt(6 / (patches[0].numel() + backbone.embed_dim))
        for i, block in enumerate(blocks):
            prompts = torch.empty(self.num_prompts, backbone.embed_dim).uniform_(-bound, bound)
            backbone.blocks[i] = PromptedBlock(block, prompts, prefix, self.dropout)
