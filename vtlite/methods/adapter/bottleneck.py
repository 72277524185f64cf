"""The small block of which the adapters of Transformers are made: down, act, up, with a scale.

A method says where it sits (after a layer, beside a branch), what goes in and how it is added.
"""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor, nn

from vtlite.ops.adapter import adapter


class Bottleneck(nn.Module):
    """x [..., D] -> beside + s (act(x D^T + d) U^T + u); `beside` is x itself where none is given.

    U, d and u start at zero, so that it starts as `beside`, and D as an nn.Linear: with both at
    zero no gradient would reach either.
    """

    def __init__(
        self,
        dim: int,
        width: int,
        activation: str = "gelu",
        scale: float = 1.0,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.activation, self.scale, self.dropout = activation, scale, dropout
        self.down = nn.Linear(dim, width)
        self.up = nn.Linear(width, dim)
        nn.init.kaiming_uniform_(self.down.weight, a=math.sqrt(5))
        for zero in (self.down.bias, self.up.weight, self.up.bias):
            nn.init.zeros_(zero)

    def bottleneck(self, x: Tensor, beside: Tensor | None = None) -> Tensor:
        """The formula above: [..., D] -> [..., D]."""
        return adapter(
            x,
            *(self.down.weight, self.up.weight, self.down.bias, self.up.bias),
            residual=beside,
            scale=self.scale,
            activation=self.activation,
            dropout=self.dropout if self.training else 0.0,
        )


class After(Bottleneck):
    """In series: a frozen layer or branch and a bottleneck with its own skip on what it gives: z =
    base(x), y = z + U act(D z + d) + u."""

    def __init__(self, base: nn.Module, dim: int, width: int, **more: Any) -> None:
        super().__init__(dim, width, **more)
        self.base = base

    def forward(self, x: Tensor, **named: Any) -> Tensor:
        return self.bottleneck(self.base(x, **named))
