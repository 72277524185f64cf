"""Houlsby adapters: a bottleneck after the attention and after the MLP of every block."""

from __future__ import annotations

from dataclasses import dataclass

from vtlite.backbones.base import is_norm
from vtlite.method import Backbone, Method
from vtlite.methods.adapter.bottleneck import After
from vtlite.methods.parameter.updates import replace_layers


@dataclass
class Houlsby(Method):
    """Put a bottleneck with its own skip after the attention and after the MLP of every block.

        x' = x + A(attention(LN(x)));   y = x' + A'(MLP(LN(x')));   A(z) = z + U gelu(D z + d) + u,   D [bottleneck, dim], U [dim, bottleneck]

    U, d, u start at zero, so training starts from the backbone. Houlsby et al., "Parameter-
    Efficient Transfer Learning for NLP", ICML 2019, arXiv 1902.00751; github.com/google-research/
    adapter-bert. On ViT-B/16: 313,536 parameters with bottleneck 8, 2,379,264 with 64. The adapter
    stands before the gain of a branch (LayerScale), where there is one. The original also trains
    all layer norms (38,400 more: `norms=True`), and starts D and U both near zero.
    """

    small = {"bottleneck": 8}

    unmergeable = "its bottlenecks have a GELU inside, so they are no linear change of the weights"

    bottleneck: int = 8  # width between down and up projection
    dropout: float = 0.0  # after the GELU, in training
    norms: bool = False  # train the weights and biases of the norms, too

    def __post_init__(self) -> None:
        self.expect(self.bottleneck >= 1, "bottleneck", "an integer of at least 1")
        self.expect(0 <= self.dropout < 1, "dropout", "in [0, 1)")

    def attach(self, backbone: Backbone) -> None:
        replace_layers(
            backbone,
            "houlsby",
            ("proj", "fc2"),  # the last layers of the attention and of the MLP
            lambda layer, name: After(
                layer, layer.out_features, self.bottleneck, dropout=self.dropout
            ),
        )
        for module in backbone.modules() if self.norms else ():
            if is_norm(module):
                module.requires_grad_(True)
