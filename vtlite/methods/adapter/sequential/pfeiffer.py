"""Pfeiffer adapters: one bottleneck per block, after the MLP."""

from __future__ import annotations

from dataclasses import dataclass

from vtlite.method import Backbone, Method
from vtlite.methods.adapter.bottleneck import After
from vtlite.methods.parameter.updates import replace_layers


@dataclass
class Pfeiffer(Method):
    """Put one bottleneck with its own skip after the MLP of every block.

        y = x' + A(MLP(LN(x')));   A(z) = z + U gelu(D z + d) + u,   D [bottleneck, dim], U [dim, bottleneck]

    U, d, u start at zero, so training starts from the backbone. Pfeiffer et al., "AdapterFusion:
    Non-Destructive Task Composition for Transfer Learning", EACL 2021, arXiv 2005.00247;
    github.com/adapter-hub/adapters. On ViT-B/16: 156,768 parameters with bottleneck 8, 1,779,840
    with 96. Two known ports to ViTs start D at zero as well; then no gradient reaches D or U, and
    only u learns. The adapter stands before the gain of a branch (LayerScale), where there is one.
    """

    small = {"bottleneck": 8}

    unmergeable = "its bottleneck has a GELU inside, so it is no linear change of the weights"

    bottleneck: int = 8  # width between down and up projection
    dropout: float = 0.0  # after the GELU, in training

    def __post_init__(self) -> None:
        self.expect(self.bottleneck >= 1, "bottleneck", "an integer of at least 1")
        self.expect(0 <= self.dropout < 1, "dropout", "in [0, 1)")

    def attach(self, backbone: Backbone) -> None:
        replace_layers(
            backbone,
            "pfeiffer",
            ("fc2",),  # the last layer of the MLP
            lambda layer, name: After(
                layer, layer.out_features, self.bottleneck, dropout=self.dropout
            ),
        )
