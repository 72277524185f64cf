"""FPET: half of the tokens are merged half-way, so that the tuned network is faster than the
backbone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vtlite.backbones.stages import attention_blocks, stage_names
from vtlite.method import Backbone
from vtlite.methods.adapter.bottleneck import Bottleneck
from vtlite.methods.adapter.parallel.adaptformer import AdaptFormer
from vtlite.methods.adapter.places import Places
from vtlite.methods.prompt.vision.vpt_deep import known
from vtlite.storage import VTError


class Sizes:
    """How many tokens each token stands for [B, N, 1], from where they are merged to the last
    block of the same forward pass."""

    def __init__(self) -> None:
        self.sizes: Tensor | None = None


class SizedAttention(nn.Module):
    """A block's attention to tokens that stand for several: each key counts that many times, by
    log(size) beside its score. [B, N, D] -> [B, N, D]"""

    def __init__(self, attn: Any, merged: Sizes) -> None:
        super().__init__()
        self.attn, self.merged = attn, merged

    def forward(self, x: Tensor, **named: Any) -> Tensor:
        assert self.merged.sizes is not None  # an earlier block has merged
        qkv = self.attn.qkv(x).unflatten(-1, (3, self.attn.num_heads, -1))
        q, k, v = (t.transpose(1, 2) for t in qkv.unbind(2))  # [B, H, N, D / H]
        bias = self.merged.sizes.log().to(x.dtype)[:, None, None, :, 0]
        y = F.scaled_dot_product_attention(q, k, v, bias.expand(-1, -1, x.shape[1], -1))
        return self.attn.proj(y.transpose(1, 2).flatten(2))


def matching(metric: Tensor, prefix: int, ratio: float) -> tuple[Tensor, Tensor, Tensor]:
    """Which tokens go where: metric [B, N, C] -> places of one colour of a checkerboard [A], of the
    others with the tokens without a place before them [K], and a matrix [B, A, K].

    Each row has a one at the most similar token (cosine) of the patches that stay, or the same
    value with the gradient of a sigmoid around it.
    """
    patches = metric.shape[1] - prefix
    height = max(1, round((patches * ratio) ** 0.5))
    place = torch.arange(patches, device="cpu")  # the colours are no question to a device
    even = (place // (patches // height) + place % (patches // height)) % 2 == 0
    goes, stays = (place[colour] + prefix for colour in (even, ~even))
    goes, stays = (
        goes.to(metric.device),
        torch.cat([torch.arange(prefix, device="cpu"), stays]).to(metric.device),
    )
    unit = metric / metric.norm(dim=-1, keepdim=True)
    scores = unit[:, goes] @ unit[:, stays].mT
    scores = torch.cat(
        [torch.full_like(scores[..., :prefix], -torch.inf), scores[..., prefix:]], -1
    )
    soft = torch.sigmoid(scores - scores.topk(2).values.mean(-1, keepdim=True))
    hard = F.one_hot(scores.argmax(-1), scores.shape[-1]).to(soft)
    return goes, stays, soft + (hard - soft).detach()


class MergingBlock(nn.Module):
    """A frozen block that merges half of the patches between its attention and its MLP: [B, N, D]
    -> [B, about N / 2, D]. What is similar is decided by the mean key of all heads, refined by a
    small bottleneck."""

    def __init__(self, block: Any, width: int, merged: Sizes, places: Places) -> None:
        super().__init__()
        self.block, self.merged, self.places = block, merged, places
        size = block.attn.qkv.in_features // block.attn.num_heads
        self.refine = Bottleneck(size, width, "relu", dropout=0.1)

    def forward(self, x: Tensor, **named: Any) -> Tensor:
        block = self.block
        normed = block.norm1(x)
        keys = block.attn.qkv(normed).chunk(3, -1)[1].unflatten(-1, (block.attn.num_heads, -1))
        metric = self.refine.bottleneck(keys.mean(2).detach())  # z + its refinement
        x = x + block.ls1(block.attn(normed))
        goes, stays, matrix = matching(metric, self.places.prefix, self.places.ratio)
        sizes = 1 + matrix.sum(1)[..., None]  # [B, K, 1]
        x = (x[:, stays] + matrix.mT @ x[:, goes]) / sizes
        self.merged.sizes = sizes
        return x + block.ls2(block.mlp(block.norm2(x)))


class LastBlock(nn.Module):
    """The last block, after which the sizes are forgotten."""

    def __init__(self, block: nn.Module, merged: Sizes) -> None:
        super().__init__()
        self.block, self.merged = block, merged

    def forward(self, x: Tensor, **named: Any) -> Tensor:
        x = self.block(x, **named)
        self.merged.sizes = None
        return x


@dataclass
class FPET(AdaptFormer):
    """Merge half of the patches in the middle of the network, where learned keys say that they are
    alike, and tune the rest with AdaptFormer.

        x_j <- (x_j + sum_i m_ij x_i) / (1 + sum_i m_ij),   m_i = onehot(argmax_j cos(r_i, r_j)),   r = k + U relu(D k + d) + u

    i runs over the patches of one colour of a checkerboard, j over those of the other, k are the
    mean keys of all heads [dim / heads]. Backwards m is sigmoid(cos - t), t half-way between the two
    highest values of a row. From there on a token of size s counts s times as a key. Kim, Kim, Kim,
    Lee, "Faster Parameter-Efficient Tuning with Token Redundancy Reduction", CVPR 2025, arXiv
    2503.20282; github.com/kyk120/fpet, whose settings these are. On ViT-B/16: 160,960 parameters
    with bottleneck 8, of which 4,192 refine the keys; the original keeps those in one bit. Where
    patches are pooled by their mean, a merged one counts once.
    """

    key = "adapter/mix/fpet"
    starts_elsewhere = "half of its patches are merged from the start"
    small = {"bottleneck": 8, "scale": 1.0}

    at: float = 0.5  # the share of the blocks before the one that merges
    refinement: int = 32  # width of the bottleneck on the keys

    def __post_init__(self) -> None:
        super().__post_init__()
        self.expect(0 <= self.at < 1, "at", "in [0, 1)")
        self.expect(self.refinement >= 1, "refinement", "an integer of at least 1")

    def attach(self, backbone: Backbone) -> None:
        blocks = attention_blocks(backbone, "fpet", ("norm2", "mlp.fc2"), plain=True)
        if not all(known(block) for block in blocks):
            raise VTError(
                "fpet: expected a ViT with the usual blocks, whose attention it computes for merged "
                f"tokens, found {type(backbone).__name__} with others; "
                "tune this backbone with adaptformer"
            )
        super().attach(backbone)
        merged, places = Sizes(), Places.of(backbone)
        # not the last one, which only the class token leaves
        middle = max(0, min(int(self.at * len(blocks)), len(blocks) - 2))
        for i, name in enumerate(stage_names(backbone)):
            parent, _, place = name.rpartition(".")
            block: Any = backbone.get_submodule(name)
            if i > middle:
                block.attn = SizedAttention(block.attn, merged)
            if i == middle:
                block = MergingBlock(block, self.refinement, merged, places)
            if i == len(blocks) - 1:
                block = LastBlock(block, merged)
            setattr(backbone.get_submodule(parent), place, block)
