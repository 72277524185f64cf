"""LST: a ladder of thin blocks beside a frozen backbone, which no gradient enters."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from vtlite.backbones.base import VisionBackbone, about
from vtlite.backbones.stages import attention_blocks, stage_names
from vtlite.backbones.vit import Block, initialise_linear
from vtlite.method import Backbone, Method
from vtlite.methods.adapter.places import Places, passing
from vtlite.storage import VTError

TEMPERATURE = 0.1  # of the gates


class Ladder(VisionBackbone):
    """A frozen ViT and a thin one beside it, which reads what enters the first block and leaves
    each: images [B, C, S, S] -> tokens [B, N, D]."""

    def __init__(self, base: Backbone, width: int, heads: int, side: list[Block]) -> None:
        super().__init__()
        said = about(base)
        self.base: Backbone = base
        self.in_chans, self.input_size = said.in_chans, said.input_size
        self.num_features, self.places = said.num_features, Places.of(base)
        dim = base.embed_dim
        self.reads = nn.ModuleList([nn.Linear(dim, width) for _ in range(len(side) + 1)])
        self.side = nn.ModuleList(side)
        self.gates = nn.Parameter(torch.zeros(len(side)))  # before sigmoid(gate / temperature)
        self.norm, self.back = nn.LayerNorm(width, eps=1e-6), nn.Linear(width, dim)
        initialise_linear(self.reads)
        initialise_linear(self.back)

    def stage_names(self) -> list[str]:
        """The base's."""
        return [f"base.{name}" for name in stage_names(self.base)]

    def forward_features(self, images: Tensor) -> Tensor:
        """[B, C, S, S] -> tokens of the base's width [B, N, D]."""
        _, (first, *rungs) = passing(self.base, images)
        s = self.reads[0](first)
        gates = torch.sigmoid(self.gates / TEMPERATURE)
        for block, read, rung, g in zip(self.side, self.reads[1:], rungs, gates, strict=True):
            s = block(g * s + (1 - g) * read(rung))  # [B, N, width]
        return self.back(self.norm(s))

    def forward_head(self, tokens: Tensor, pre_logits: bool = True) -> Tensor:
        """[B, N, D] -> [B, D], pooled as the base does it."""
        return self.base.forward_head(tokens, pre_logits=True)

    def forward(self, images: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(images))

    def feature_maps(self, images: Tensor) -> Tensor:
        """[B, C, S, S] -> the patches' tokens at their places [B, D, h, w]."""
        return self.places.maps(self.forward_features(images))


def strongest(importance: Tensor, count: int) -> Tensor:
    """The places of the `count` largest values, in order."""
    return importance.topk(count).indices.sort().values


@torch.no_grad()
def pruned(blocks: list[Any], width: int) -> list[Block]:
    """Thin blocks made of the rows and columns with the largest weights (L1) of the given ones.

    All keep the same channels of the stream; each keeps as many of every head and of the hidden
    layer as makes it thin in the same proportion.
    """
    reads = [layer.weight.abs().sum(0) for b in blocks for layer in (b.attn.qkv, b.mlp.fc1)]
    writes = [layer.weight.abs().sum(1) for b in blocks for layer in (b.attn.proj, b.mlp.fc2)]
    stream = strongest(torch.stack(reads + writes).sum(0), width)
    return [_thin(block, stream) for block in blocks]


def _usual(block: Any, dim: int) -> bool:
    """Whether a block has the layers, in the shapes, of which a thin one of ours is made."""
    qkv, proj, fc1, fc2 = block.attn.qkv, block.attn.proj, block.mlp.fc1, block.mlp.fc2
    square = (qkv.out_features, proj.in_features, fc2.in_features)
    biased = (proj, fc1, fc2, block.norm1, block.norm2)
    return square == (3 * dim, dim, fc1.out_features) and all(
        getattr(module, "bias", None) is not None for module in biased
    )


def _thin(block: Any, stream: Tensor) -> Block:
    heads, width, dim = block.attn.num_heads, len(stream), block.norm1.weight.numel()
    thin = Block(width, heads, block.mlp.fc1.out_features / dim)
    weight = block.attn.qkv.weight.unflatten(0, (3, heads, -1))  # [3, H, d, D]
    out = block.attn.proj.weight.unflatten(1, (heads, -1))  # [D, H, d]
    size = width // heads
    for head in range(heads):
        scores, values = weight[:2, head].abs().sum((0, 2)), weight[2, head].abs().sum(1)
        values = values + out[:, head].abs().sum(0)
        kept = [strongest(scores, size), strongest(scores, size), strongest(values, size)]
        here = slice(head * size, (head + 1) * size)
        for part, rows in enumerate(kept):
            place = slice(part * width + here.start, part * width + here.stop)
            thin.attn.qkv.weight[place] = weight[part, head][rows][:, stream]
            if block.attn.qkv.bias is not None:
                bias = block.attn.qkv.bias.unflatten(0, (3, heads, -1))
                thin.attn.qkv.bias[place] = bias[part, head][rows]
        thin.attn.proj.weight[:, here] = out[:, head][stream][:, kept[2]]
    thin.attn.proj.bias.copy_(block.attn.proj.bias[stream])
    fc1, fc2 = block.mlp.fc1, block.mlp.fc2
    importance = fc1.weight.abs().sum(1) + fc2.weight.abs().sum(0)
    hidden = strongest(importance, thin.mlp.fc1.out_features)
    thin.mlp.fc1.weight.copy_(fc1.weight[hidden][:, stream])
    thin.mlp.fc1.bias.copy_(fc1.bias[hidden])
    thin.mlp.fc2.weight.copy_(fc2.weight[stream][:, hidden])
    thin.mlp.fc2.bias.copy_(fc2.bias[stream])
    for name in ("norm1", "norm2"):
        for kind in ("weight", "bias"):
            getattr(getattr(thin, name), kind).copy_(getattr(getattr(block, name), kind)[stream])
    return thin


@dataclass
class LST(Method):
    """Train a thin network that climbs beside the frozen one, so that no gradient enters the
    latter.

        s_i = B_i(g_i s_(i-1) + (1 - g_i) P_i h_i),   g_i = sigmoid(a_i / 0.1),   s_0 = P_0 h_0,   tokens = U LN(s_L)

    h_0 enters the backbone's first block and h_i leaves block i; P_i maps to a width smaller by
    `reduction`, B_i is a block of that width with as many heads, a_i starts at zero. Sung, Cho,
    Bansal, "LST: Ladder Side-Tuning for Parameter and Memory Efficient Transfer Learning", NeurIPS
    2022, arXiv 2206.06522; github.com/ylsung/Ladder-Side-Tuning. On ViT-B/16: 2,376,492 parameters.
    The paper's networks read text, and leave out every fourth rung. The thin blocks start as the
    backbone's blocks without their small weights (start="pruned": by the sum of magnitudes, as one
    of the paper's ways), or anew (start="random"). P_i and U start as the layers of a ViT.
    """

    key = "adapter/sequential/lst"
    lr = 3e-2
    lrs = (1e-3, 3e-3, 1e-2, 3e-2)
    small = {"reduction": 4}

    starts_elsewhere = "its features come from the ladder"
    unmergeable = "its ladder stays a second network beside the backbone"

    reduction: int = 8  # how many times thinner the ladder is
    start: str = "pruned"  # what the thin blocks start as: "pruned" or "random"

    def __post_init__(self) -> None:
        self.expect(self.reduction >= 1, "reduction", "an integer of at least 1")
        self.expect(self.start in ("pruned", "random"), "start", '"pruned" or "random"')

    def attach(self, backbone: Backbone) -> nn.Module:
        parts = ("attn.qkv", "attn.proj", "norm1", "norm2", "mlp.fc1", "mlp.fc2")
        blocks = attention_blocks(
            backbone, "lst", parts if self.start == "pruned" else (), plain=True
        )
        dim, heads = backbone.embed_dim, blocks[0].attn.num_heads
        width = dim // self.reduction
        fits = dim % self.reduction == 0 == width % heads
        self.expect(
            fits, "reduction", f"that leaves each of {heads} heads of {dim // heads} a part"
        )
        if self.start == "pruned":
            if not all(_usual(block, dim) for block in blocks):
                raise VTError(
                    "lst: expected a ViT with the usual blocks, from whose weights its own are "
                    f"taken, found {type(backbone).__name__} with others; "
                    'start them anew with start="random"'
                )
            side = pruned(blocks, width)
        else:
            side = [Block(width, heads) for _ in blocks]
            for block in side:
                initialise_linear(block)
        return Ladder(backbone, width, heads, side)
