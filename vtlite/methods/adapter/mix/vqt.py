"""VQT: learned queries that read every layer's tokens, and leave them as they are."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vtlite.backbones.base import VisionBackbone, about
from vtlite.backbones.stages import attention_blocks, patch_weight, stage_names
from vtlite.method import HIGH_LRS, Backbone, Method
from vtlite.methods.adapter.places import expect_whole, passing
from vtlite.methods.prompt.vision.vpt_deep import known
from vtlite.storage import VTError
from vtlite.task import Task


class Queries(nn.Module):
    """T learned tokens that go through one frozen block as queries alone: the block's input [B, N,
    D] -> what it makes of them [B, T, D].

    The keys and values are those of the image's tokens, which see no query; so the two streams are
    computed apart, and no gradient goes through the image's.
    """

    def __init__(self, block: Any, start: Tensor, dropout: float) -> None:
        super().__init__()
        self.block = (block,)  # the backbone's, not a part of this module
        self.queries, self.dropout = nn.Parameter(start), dropout

    def forward(self, x: Tensor) -> Tensor:
        block = self.block[0]
        p = F.dropout(self.queries, self.dropout, self.training)  # [T, D]
        attn, D = block.attn, p.shape[1]
        weight, bias = attn.qkv.weight, attn.qkv.bias
        q = F.linear(block.norm1(p), weight[:D], None if bias is None else bias[:D])
        kv = F.linear(block.norm1(x), weight[D:], None if bias is None else bias[D:])
        k, v = (t.transpose(1, 2) for t in kv.unflatten(-1, (2, attn.num_heads, -1)).unbind(2))
        q = q.unflatten(-1, (attn.num_heads, -1)).transpose(0, 1).expand(len(x), -1, -1, -1)
        read = F.scaled_dot_product_attention(q, k, v)  # [B, H, T, D / H]
        p = p + block.ls1(attn.proj(read.transpose(1, 2).flatten(2)))
        return p + block.ls2(block.mlp(block.norm2(p)))


class Queried(VisionBackbone):
    """A frozen ViT, and queries in each of its blocks: images [B, C, S, S] -> the pooled features
    beside what all queries read [B, (1 + L T) D], each of these pieces of length one."""

    def __init__(self, base: Backbone, queries: list[nn.Module], count: int) -> None:
        super().__init__()
        said = about(base)
        self.base: Backbone = base
        self.in_chans, self.input_size = said.in_chans, said.input_size
        self.queries = nn.ModuleList(queries)
        self.num_features = base.num_features + len(queries) * count * base.embed_dim

    def stage_names(self) -> list[str]:
        """The base's."""
        return [f"base.{name}" for name in stage_names(self.base)]

    def forward_features(self, images: Tensor) -> Tensor:
        """[B, C, S, S] -> [B, (1 + L T) D]"""
        # The image's own tokens depend on nothing that trains.
        tokens, (*inputs, _) = passing(self.base, images)
        pooled = self.base.forward_head(tokens, pre_logits=True)
        read = [queries(x).flatten(1) for queries, x in zip(self.queries, inputs, strict=True)]
        return torch.cat([F.normalize(piece, dim=-1) for piece in (pooled, *read)], -1)

    def forward_head(self, features: Tensor, pre_logits: bool = True) -> Tensor:
        return features  # they are pooled already

    def forward(self, images: Tensor) -> Tensor:
        return self.forward_features(images)

    def feature_maps(self, images: Tensor) -> Tensor:
        raise VTError(
            "vqt: expected a question about whole images, found one about places, which its "
            "queries forget; ask the frozen backbone, model.backbone.base"
        )


@dataclass
class VQT(Method):
    """Give each block learned queries that read its tokens, and classify all that they read beside
    the features.

        [q_l; Z_l] = block_l([P_l; Z_(l-1)]),   queries of both, keys and values of Z alone;   features = [pool(Z_L); q_1; ...; q_L],   P_l [num_queries, dim]

    So Z is what it is without queries. Each of the 1 + L pieces is divided by its length. P_l starts
    as in VPT, and nothing of q_l goes on. Tu, Mai, Chao, "Visual Query Tuning: Towards Effective
    Usage of Intermediate Representations for Parameter and Memory Efficient Transfer Learning",
    CVPR 2023, arXiv 2212.03220; github.com/andytu28/VQT. On ViT-B/16: 9,216 parameters with one
    query; but the head is 1 + L T times as wide, 921,600 more for 100 classes. The original can
    also choose among the features by a group lasso, and searches SGD learning rates up to 50.
    """

    key = "adapter/mix/vqt"
    lr = 1e-1
    lrs = HIGH_LRS
    starts_elsewhere = "its features are longer than the backbone's: what the queries read, too"
    unmergeable = "its queries stay a second path through every block"

    num_queries: int = 1  # T, in every block
    dropout: float = 0.0  # of the queries, in training

    def __post_init__(self) -> None:
        self.expect(self.num_queries >= 1, "num_queries", "an integer of at least 1")
        self.expect(0 <= self.dropout < 1, "dropout", "in [0, 1)")

    def build(self, backbone: Backbone, task: Task) -> nn.Module:
        expect_whole("vqt", task, "which its queries forget")
        return super().build(backbone, task)

    def attach(self, backbone: Backbone) -> nn.Module:
        blocks = attention_blocks(backbone, "vqt", plain=True)
        if not all(known(block) for block in blocks):
            raise VTError(
                "vqt: expected a ViT with the usual blocks, whose attention it computes for its "
                f"queries, found {type(backbone).__name__} with others; "
                "tune this backbone with vpt_deep or adaptformer"
            )
        D = backbone.embed_dim
        bound = math.sqrt(6 / (patch_weight(backbone, "vqt")[0].numel() + D))
        start = [torch.empty(self.num_queries, D).uniform_(-bound, bound) for _ in blocks]
        pairs = zip(blocks, start, strict=True)
        queries: list[nn.Module] = [Queries(block, p, self.dropout) for block, p in pairs]
        return Queried(backbone, queries, self.num_queries)
