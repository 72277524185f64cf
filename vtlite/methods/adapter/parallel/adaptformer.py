"""AdaptFormer: a small bottleneck beside the MLP of every block."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from vtlite.backbones.stages import attention_blocks, take_gain
from vtlite.method import Backbone, Method
from vtlite.methods.adapter.bottleneck import Bottleneck


class AdaptMLP(Bottleneck):
    """The frozen second half of a pre-norm block (norm, MLP, its gain), and a bottleneck beside it:
    tokens [..., D] -> [..., D]."""

    def __init__(
        self, norm: nn.Module, mlp: nn.Module, gain: nn.Module, dim: int, width: int, **more: Any
    ) -> None:
        super().__init__(dim, width, "relu", **more)
        self.norm, self.mlp, self.gain = norm, mlp, gain

    def forward(self, x: Tensor, *more: Any) -> Tensor:  # PVT's MLP is also told the map's size
        beside = self.gain(self.mlp(self.norm(x), *more))
        return self.bottleneck(x, beside)  # from x before its norm


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
            parts = block.norm2, block.mlp, gain, dim, self.bottleneck
            block.mlp = AdaptMLP(*parts, scale=self.scale, dropout=self.dropout)
            block.norm2 = nn.Identity()
