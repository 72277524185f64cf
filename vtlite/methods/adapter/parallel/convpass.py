"""Convpass: a bottleneck with a convolution inside beside the attention and beside the MLP."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vtlite.backbones.stages import attention_blocks
from vtlite.method import Backbone, Method
from vtlite.methods.adapter.places import Places


def quick_gelu(x: Tensor) -> Tensor:
    """x sigmoid(1.702 x)"""
    return x * torch.sigmoid(1.702 * x)


class Bypass(nn.Module):
    """A frozen branch, and beside it, on the same input, a bottleneck with a 3x3 convolution over
    the patches: [..., D] -> [..., D]."""

    def __init__(
        self, branch: nn.Module, dim: int, width: int, scale: float, dropout: float, places: Places
    ) -> None:
        super().__init__()
        self.branch, self.scale, self.dropout, self.places = branch, scale, dropout, places
        self.down, self.up = nn.Linear(dim, width), nn.Linear(width, dim)
        self.conv = nn.Conv2d(width, width, 3, padding=1)
        for layer in (self.down, self.conv):
            nn.init.xavier_uniform_(layer.weight)
        zeros: Any = (self.down.bias, self.conv.bias, self.up.weight, self.up.bias)
        for zero in zeros:
            nn.init.zeros_(zero)

    def forward(self, x: Tensor, *more: Any, **named: Any) -> Tensor:
        z = self.places.apply(self.conv, quick_gelu(self.down(x)))
        z = F.dropout(quick_gelu(z), self.dropout, self.training)
        return self.branch(x, *more, **named) + self.scale * self.up(z)


@dataclass
class Convpass(Method):
    """Let a bottleneck with a 3x3 convolution over the patches work beside the attention and beside
    the MLP.

        x' = x + attention(LN(x)) + s C(LN(x));   y = x' + MLP(LN(x')) + s C'(LN(x'));   C(z) = U q(conv(q(D z + d))) + u,   q(v) = v sigmoid(1.702 v)

    U and u start at zero, so training starts from the backbone; D and the convolution are
    Xavier-uniform, all biases zero. Jie, Deng, "Convolutional Bypasses Are Better Vision
    Transformer Adapters", arXiv 2207.07039; github.com/JieShibo/PETL-ViT. On ViT-B/16: 327,552
    parameters, 163,776 beside the attention alone. A token without a place (class, registers) is a
    map of its own, of which the convolution uses the middle of its kernel; in Swin each window of
    the attention is a map. The scale is chosen for each data set there, from 0.01 to 100; for some
    the convolution starts as the identity. Where a branch has a gain (LayerScale), the bypass
    stands before it.
    """

    small = {"bottleneck": 8}

    unmergeable = "it has non-linearities inside, so it is no linear change of the weights"

    bottleneck: int = 8  # width between down and up projection
    scale: float = 1.0  # s, fixed
    dropout: float = 0.1  # before the up projection, in training
    attention_only: bool = False  # none beside the MLP

    def __post_init__(self) -> None:
        self.expect(self.bottleneck >= 1, "bottleneck", "an integer of at least 1")
        self.expect(0 <= self.dropout < 1, "dropout", "in [0, 1)")

    def attach(self, backbone: Backbone) -> None:
        more = self.bottleneck, self.scale, self.dropout, Places.of(backbone)
        for block in attention_blocks(backbone, "convpass", ("attn.proj", "norm2", "mlp.fc2")):
            block.attn = Bypass(block.attn, block.attn.proj.out_features, *more)
            if not self.attention_only:
                block.mlp = Bypass(block.mlp, block.mlp.fc2.out_features, *more)
