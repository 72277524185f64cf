"""AdaptFormer: a small bottleneck beside the MLP of every block."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from vtlite.backbones.stages import attention_blocks, take_gain
from vtlite.method import Backbone, Method
from vtlite.ops.adapter import adapter


class AdaptMLP(nn.Module):
    """The frozen second half of a pre-norm block (norm, MLP, its gain), and a bottleneck beside it:
    tokens [..., D] -> [..., D]."""

    def __init__(
        self,
        norm: nn.Module,
        mlp: nn.Module,
        gain: nn.Module,
        dim: int,
        bottleneck: int,
        scale: float,
        dropout: float,
    ) -> None:
        super().__init__()
        self.norm, self.mlp, self.gain, self.scale, self.dropout = norm, mlp, gain, scale, dropout
        self.down = nn.Linear(dim, bottleneck)
        self.up = nn.Linear(bottleneck, dim)
        nn.init.kaiming_uniform_(self.down.weight, a=math.sqrt(5))
        for zero in (self.down.bias, self.up.weight, self.up.bias):
            nn.init.zeros_(zero)

    def forward(self, x: Tensor, *more: Any) -> Tensor:  # PVT's MLP is also told the map's size
        beside = self.gain(self.mlp(self.norm(x), *more))
        weights = self.down.weight, self.up.weight, self.down.bias, self.up.bias
        dropout = self.dropout if self.training else 0.0
        return adapter(
            x, *weights, residual=beside, scale=self.scale, activation="relu", dropout=dropout
        )  # from x before its norm


@dataclass
class AdaptFormer(Method):
    """Let a small trainable bottleneck work in parallel to each frozen MLP.

        x' = x + attention(LN(x));   y = x' + MLP(LN(x')) + s * (ReLU(x' D^T + d) U^T + u),   D [bottleneck, dim], U [dim, bottleneck]

    U, d, u start at zero, so training starts from the backbone. Chen et al., "AdaptFormer: Adapting
    Vision Transformers for Scalable Visual Recognition", NeurIPS 2022, arXiv 2205.13535;
    github.com/ShoufaChen/AdaptFormer. On ViT-B/16: 1,189,632 parameters with bottleneck 64, 156,768
    with 8. The paper's figure puts a norm before D; the authors' code, which they call right, has
    none, as here. The original's head has a batch norm; here every method has the same linear head.
    """

    lr = 3e-2
    small = {"bottleneck": 8, "scale": 1.0}

    unmergeable = "its bottleneck has a ReLU inside, so it is no linear change of the weights"

    bottleneck: int = 64  # width between down and up projection
    scale: float = 0.1  # s, fixed
    dropout: float = 0.1  # after the ReLU, in training

    def __post_init__(self) -> None:
        self.expect(
            self.bottleneck >= 1,
            "bottleneck",
            "an integer of at least 1",
        )
        self.expect(0 <= self.dropout < 1, "dropout", "in [0, 1)")

    def attach(self, backbone: Backbone) -> None:
        for block in attention_blocks(backbone, "adaptformer", ("norm2", "mlp.fc2")):
            # The block computes x + gain(mlp(norm2(x))): the new module takes all three parts, so
            # that it sees x before the norm.
            gain, dim = take_gain(block), block.mlp.fc2.out_features
            block.mlp = AdaptMLP(
                block.norm2, block.mlp, gain, dim, self.bottleneck, self.scale, self.dropout
            )
            block.norm2 = nn.Identity()
