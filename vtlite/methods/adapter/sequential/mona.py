"""Mona: bottlenecks in the stream of tokens, with convolutions of three sizes inside."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vtlite.backbones.stages import attention_blocks, take_gain
from vtlite.method import Backbone, Method
from vtlite.methods.adapter.places import Places


class MonaAdapter(nn.Module):
    """What Mona adds to tokens [..., D] -> [..., D]."""

    def __init__(self, dim: int, width: int, dropout: float, places: Places) -> None:
        super().__init__()
        self.places, self.dropout = places, dropout
        self.norm = nn.LayerNorm(dim)
        self.gamma = nn.Parameter(torch.full((dim,), 1e-6))  # of the normed tokens
        self.gamma_x = nn.Parameter(torch.ones(dim))  # of the tokens as they are
        self.down, self.up = nn.Linear(dim, width), nn.Linear(width, dim)
        self.convs = nn.ModuleList(
            [nn.Conv2d(width, width, k, padding=k // 2, groups=width) for k in (3, 5, 7)]
        )
        self.mix = nn.Conv2d(width, width, 1)

    def over_places(self, z: Tensor) -> Tensor:
        """[B, R, h, w] -> [B, R, h, w]: the mean of three depth-wise convolutions, and a mixture of
        channels, each with a skip."""
        z = z + torch.stack([conv(z) for conv in self.convs]).mean(0)
        return z + self.mix(z)

    def forward(self, x: Tensor) -> Tensor:
        z = self.down(self.norm(x) * self.gamma + x * self.gamma_x)
        z = F.gelu(self.places.apply(self.over_places, z))
        return self.up(F.dropout(z, self.dropout, self.training))


class MonaMLP(nn.Module):
    """The second half of a pre-norm block with an adapter before it and one after it, both in the
    stream: x -> what is to be added to x."""

    def __init__(
        self, norm: nn.Module, mlp: nn.Module, gain: nn.Module, adapters: list[nn.Module]
    ) -> None:
        super().__init__()
        self.norm, self.mlp, self.gain = norm, mlp, gain
        self.before, self.after = adapters

    def forward(self, x: Tensor, *more: Any) -> Tensor:
        added = self.before(x)
        added = added + self.gain(self.mlp(self.norm(x + added), *more))
        return added + self.after(x + added)


@dataclass
class Mona(Method):
    """Put a bottleneck with depth-wise 3x3, 5x5 and 7x7 convolutions after the attention and after
    the MLP, in the stream of tokens.

        x <- x + U gelu(C(D (g LN(x) + g' x) + d)) + u,   C(z) = z' + P z',   z' = z + (conv3(z) + conv5(z) + conv7(z)) / 3

    g starts at 1e-6, g' at one, all else as a layer of PyTorch: training does not start from the
    backbone, as published. Yin et al., "5%>100%: Breaking Performance Shackles of Full Fine-Tuning
    on Visual Recognition Tasks", CVPR 2025, arXiv 2408.08345; github.com/Leiyi-Hu/mona (for Swin).
    On ViT-B/16: 2,684,928 parameters. Tokens without a place (class, registers) are maps of their
    own here, of which a convolution uses the middle of its kernel; the original has none.
    """

    starts_elsewhere = "its up projections start as those of any linear layer, as published"
    small = {"bottleneck": 8}

    unmergeable = "it has a GELU inside, so it is no linear change of the weights"

    bottleneck: int = 64  # width between down and up projection
    dropout: float = 0.1  # after the GELU, in training

    def __post_init__(self) -> None:
        self.expect(self.bottleneck >= 1, "bottleneck", "an integer of at least 1")
        self.expect(0 <= self.dropout < 1, "dropout", "in [0, 1)")

    def attach(self, backbone: Backbone) -> None:
        places = Places.of(backbone)
        for block in attention_blocks(backbone, "mona", ("norm2", "mlp.fc2")):
            shape = block.mlp.fc2.out_features, self.bottleneck, self.dropout, places
            adapters: list[nn.Module] = [MonaAdapter(*shape), MonaAdapter(*shape)]
            block.mlp = MonaMLP(block.norm2, block.mlp, take_gain(block), adapters)
            block.norm2 = nn.Identity()
