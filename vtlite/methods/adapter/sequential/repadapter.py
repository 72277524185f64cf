"""RepAdapter: a linear bottleneck before the layers of a block, folded into them afterwards."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vtlite.backbones.stages import PROJECTIONS, attention_blocks, has_part
from vtlite.method import Backbone, Method
from vtlite.methods.parameter.updates import HeldLinear


class LinearBottleneck(nn.Module):
    """x [..., D] -> x + s (B (A x + a) + b), A [R, D], B [D, R] with blocks of [D / g, R / g] on
    its diagonal and zeros elsewhere."""

    def __init__(self, dim: int, width: int, groups: int, scale: float, dropout: float) -> None:
        super().__init__()
        self.scale, self.dropout = scale, dropout
        self.down = nn.Linear(dim, width)
        self.up = nn.Parameter(torch.zeros(groups, dim // groups, width // groups))
        self.up_bias = nn.Parameter(torch.zeros(dim))
        nn.init.xavier_uniform_(self.down.weight)
        nn.init.zeros_(self.down.bias)

    def forward(self, x: Tensor) -> Tensor:
        hidden = F.dropout(self.down(x), self.dropout, self.training)
        hidden = hidden.unflatten(-1, (len(self.up), -1))  # [..., g, R / g]
        up = torch.einsum("...gr,gdr->...gd", hidden, self.up).flatten(-2)
        return x + self.scale * (up + self.up_bias)

    def as_map(self) -> tuple[Tensor, Tensor]:
        """The same as x -> W x + c: W [D, D], c [D]."""
        B = torch.block_diag(*self.up)
        W = torch.eye(len(B), dtype=B.dtype, device=B.device) + self.scale * B @ self.down.weight
        return W, self.scale * (B @ self.down.bias + self.up_bias)


class RepLinear(HeldLinear):
    """A frozen linear layer on what a bottleneck gives: x -> W0 (W x + c) + b0."""

    def __init__(self, base: nn.Linear, adapter: LinearBottleneck) -> None:
        super().__init__(base)
        self.adapter = adapter

    def forward(self, x: Tensor) -> Tensor:
        return self.base(self.adapter(x))

    @property
    def weight(self) -> Tensor:
        return self.base.weight @ self.adapter.as_map()[0]

    @property
    def bias(self) -> Tensor:
        return F.linear(self.adapter.as_map()[1], self.base.weight, self.base.bias)

    def merged(self) -> nn.Linear:
        """The plain layer with W0 <- W0 W and b0 <- W0 c + b0."""
        weight, bias = self.weight, self.bias
        self.base.weight.copy_(weight)
        self.base.bias = nn.Parameter(bias, requires_grad=False)
        return self.base


@dataclass
class RepAdapter(Method):
    """Put a linear bottleneck between each norm and what follows it, and fold it in after training.

        x' = x + attention(R(LN(x)));   y = x' + MLP(R'(LN(x')));   R(z) = z + s (B (A z + a) + b),   A [bottleneck, dim], B [dim, bottleneck]

    B consists of `num_groups` blocks: output channels of one block see its hidden channels alone. B, a,
    b start at zero, so training starts from the backbone. Luo et al., "Towards Efficient Visual
    Adaption via Structural Re-parameterization", arXiv 2302.08106; github.com/luogen1996/
    RepAdapter. On ViT-B/16: 239,808 parameters, 119,904 before the attention alone. The scale is
    chosen for each data set there, from 0.1 to 10.
    """

    key = "adapter/sequential/repadapter"
    small = {"bottleneck": 8}

    bottleneck: int = 8  # width between A and B
    num_groups: int = 2  # blocks of B
    scale: float = 1.0  # s, fixed
    dropout: float = 0.1  # after A, in training
    attention_only: bool = False  # none before the MLP

    def __post_init__(self) -> None:
        self.expect(self.bottleneck >= 1, "bottleneck", "an integer of at least 1")
        fits = self.num_groups >= 1
        self.expect(
            fits and self.bottleneck % self.num_groups == 0, "num_groups", "that divide bottleneck"
        )
        self.expect(0 <= self.dropout < 1, "dropout", "in [0, 1)")

    def attach(self, backbone: Backbone) -> None:
        parts = () if self.attention_only else ("norm2", "mlp")
        for block in attention_blocks(backbone, "repadapter", parts):
            self._before(block.attn, [name for name in PROJECTIONS if has_part(block.attn, name)])
            if not self.attention_only:  # SwiGLU's first layer is one, or two
                firsts = ("fc1", "fc1_g", "fc1_x")
                self._before(block.mlp, [name for name in firsts if has_part(block.mlp, name)])

    def _before(self, module: Any, names: list[str]) -> None:
        """One bottleneck before the layers of these names, which see the same input."""
        dim: int = getattr(module, names[0]).in_features
        self.expect(dim % self.num_groups == 0, "num_groups", f"that divide the width {dim}")
        adapter = LinearBottleneck(dim, self.bottleneck, self.num_groups, self.scale, self.dropout)
        for name in names:
            setattr(module, name, RepLinear(getattr(module, name), adapter))
