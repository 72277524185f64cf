"""VPT-deep: learned tokens beside the image's own, fresh ones in every block."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import torch.nn.functional as F
from torch import Tensor, nn

from vtlite.backbones.stages import PositionsWithPrompts, attention_blocks
from vtlite.method import Backbone, Method, short
from vtlite.methods.prompt.vision.tokens import insert, random_prompts, remove
from vtlite.ops.prompt_attention import prompt_attention
from vtlite.storage import VTError

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
        prompts, block = self.seen(), cast(Any, self.block)
        # A variant of timm's; or the block trains as well, perhaps with dropout inside
        if not self.known or block.training or any(value is not None for value in named.values()):
            return self.concatenated(x, prompts, self.positions(named))
        x = x + block.ls1(self.attention(block.norm1(x), block.norm1(prompts)))
        return x + block.ls2(block.mlp(block.norm2(x)))

    def seen(self) -> Tensor:
        """The prompts [P, D] as the block's tokens see them."""
        made = self.prompts() if isinstance(self.prompts, nn.Module) else self.prompts
        return F.dropout(made, self.dropout, self.training)

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
        x = self.block(insert(x, prompts, self.prefix), **named)  # [B, N + P, D]
        return remove(x, prompts.shape[-2], self.prefix)


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


def usual_blocks(backbone: Backbone, method: str, why: str) -> list[Any]:
    """The blocks of a ViT. Raises `VTError` for another network, or where some of them are not
    `known`, which the method needs for the reason `why`."""
    blocks = attention_blocks(backbone, method, plain=True)
    if not all(known(block) for block in blocks):
        raise VTError(
            f"{method}: expected a ViT with the usual blocks, {why}, found "
            f"{type(backbone).__name__} with others; tune this backbone with vpt_deep or lora"
        )
    return blocks


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
        self.expect(self.num_prompts >= 1, "num_prompts", "an integer of at least 1")
        self.expect(0 <= self.dropout < 1, "dropout", "in [0, 1)")

    def attach(self, backbone: Backbone) -> None:
        name = short(self.key)
        blocks = attention_blocks(backbone, name, plain=True)
        prefix = getattr(backbone, "num_prefix_tokens", 0)
        for i, block in enumerate(blocks):
            prompts = random_prompts(backbone, name, self.num_prompts)
            backbone.blocks[i] = self.prompted(block, prompts, prefix, self.dropout)

    def prompted(self, *parts: Any) -> PromptedBlock:
        """A block with its prompts, from the arguments of `PromptedBlock`."""
        return PromptedBlock(*parts)
