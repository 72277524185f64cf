"""DTL: a thin side path that gathers from all blocks and gives back to the later ones."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from vtlite.backbones.stages import attention_blocks, stage_names
from vtlite.method import HIGH_LRS, Backbone, Method
from vtlite.methods.adapter.places import Places


class SidePath:
    """What the blocks of one forward pass have gathered so far."""

    def __init__(self) -> None:
        self.gathered: Tensor | None = None


class GatheringBlock(nn.Module):
    """A frozen block whose input goes on the side path, s <- s + x A^T B^T; with `gives`, what the
    path holds is added to its output: y = block(x) + F(swish(s))."""

    def __init__(
        self, block: nn.Module, dim: int, rank: int, path: SidePath, first: bool, last: bool
    ) -> None:
        super().__init__()
        self.block, self.path, self.first, self.last = block, path, first, last
        self.A = nn.Parameter(torch.empty(rank, dim))
        self.B = nn.Parameter(torch.zeros(dim, rank))
        nn.init.kaiming_uniform_(self.A, a=math.sqrt(5))
        self.gives: nn.Module | None = None

    def forward(self, x: Tensor, *more: Any, **named: Any) -> Tensor:
        s = x @ self.A.T @ self.B.T
        if not self.first:
            assert self.path.gathered is not None  # the first block begins it anew
            s = s + self.path.gathered
        self.path.gathered = None if self.last else s  # nothing is left behind
        y = self.block(x, *more, **named)
        return y if self.gives is None else y + self.gives(s)


class GiveBack(nn.Module):
    """s -> swish(s), and a depth-wise 3x3 convolution of it where there is one: [B, N, D] -> [B, N,
    D]. Tokens without a place pass unchanged."""

    def __init__(self, beta: float, places: Places, conv: nn.Conv2d | None) -> None:
        super().__init__()
        self.beta, self.places, self.conv = beta, places, conv

    def forward(self, s: Tensor) -> Tensor:
        s = s * torch.sigmoid(self.beta * s)
        if self.conv is None:
            return s
        prefix = s[:, : self.places.prefix]
        patches = Places(0, self.places.ratio).apply(self.conv, s[:, self.places.prefix :])
        return torch.cat([prefix, patches], 1)


@dataclass
class DTL(Method):
    """Gather from the input of every block on a side path of low rank, and give it back to the
    tokens of the later blocks alone.

        s <- s + x_b A_b^T B_b^T;   x_(b+1) = block_b(x_b) + [b >= start] F(s sigmoid(beta s)),   A_b [rank, dim], B_b [dim, rank]

    B_b starts at zero, so training starts from the backbone. No gradient goes back through the
    blocks before `start`: what enters them depends on nothing that trains. F is the identity, or
    with `conv` (the paper's DTL+) one depth-wise 3x3 convolution that all blocks share. Fu, Zhu,
    Wu, "DTL: Disentangled Transfer Learning for Visual Recognition", AAAI 2024, arXiv 2312.07856;
    github.com/heekhero/DTL. On ViT-B/16: 36,864 parameters, 43,776 with the convolution. The
    original classifies the mean of the patches; here features are pooled as the backbone does.
    """

    key = "adapter/sequential/dtl"
    lr = 3e-2
    lrs = HIGH_LRS

    unmergeable = "what it adds to the tokens is no linear change of any layer's weights"

    rank: int = 2
    beta: float = 100.0  # of the swish, which is nearly a ReLU
    start: float = 0.5  # the share of blocks to which nothing is given back
    conv: bool = False  # DTL+

    def __post_init__(self) -> None:
        self.expect(self.rank >= 1, "rank", "an integer of at least 1")
        self.expect(0 <= self.start < 1, "start", "in [0, 1)")

    def attach(self, backbone: Backbone) -> None:
        blocks = attention_blocks(backbone, "dtl", plain=True)
        dim, path, places = backbone.embed_dim, SidePath(), Places.of(backbone)
        conv = nn.Conv2d(dim, dim, 3, padding=1, groups=dim, bias=False) if self.conv else None
        gives = GiveBack(self.beta, places, conv)
        last = len(blocks) - 1
        for i, (name, block) in enumerate(zip(stage_names(backbone), blocks, strict=True)):
            gathering = GatheringBlock(block, dim, self.rank, path, i == 0, i == last)
            if i >= math.floor(self.start * len(blocks)):
                gathering.gives = gives
            parent, _, place = name.rpartition(".")
            setattr(backbone.get_submodule(parent), place, gathering)
