"""Compacter: PHM adapters with one rule for the whole network and weights of rank one."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from vtlite.method import HIGH_LRS, Backbone, Method
from vtlite.methods.parameter.weight.phm_adapter import add_adapters


@dataclass
class Compacter(Method):
    """Share one rule among all PHM adapters of the network, and keep only rank-one weights in each.

        z -> z + U gelu(D z + d) + u,   D [bottleneck, dim] and U [dim, bottleneck] each = sum_i A_i (x) (s_i t_i),   i = 1 .. n

    A [n, n, n] is one tensor for all adapters and both projections; s_i [out / n, rank], t_i [rank,
    in / n] belong to one projection. Karimi Mahabadi, Henderson, Ruder, "Compacter: Efficient
    Low-Rank Hypercomplex Adapter Layers", NeurIPS 2021, arXiv 2106.04647;
    github.com/rabeehk/compacter. On ViT-B/16: 57,088 parameters; 28,576 with `after_mlp_only`,
    which is Compacter++. A starts normal with spread 1e-4 as there: D and U are products with A, so
    the change is of order 1e-8 and training starts from the backbone up to rounding. The bottleneck
    is given as a width, 24 = 768 / 32 as there. The original trains the LayerNorms as well (38,400
    more), and has GELU's tanh approximation.
    """

    lr = 3e-2
    lrs = HIGH_LRS

    unmergeable = "its bottleneck has a GELU inside, so it is no linear change of the weights"

    bottleneck: int = 24  # width between down and up projection; a multiple of n
    n: int = 4  # number of products, and size of the rule
    rank: int = 1  # inner width of s_i t_i
    after_mlp_only: bool = False  # no bottleneck after the attention: Compacter++

    def __post_init__(self) -> None:
        self.expect(self.n >= 1, "n", "an integer of at least 1")
        self.expect(self.rank >= 1, "rank", "an integer of at least 1")
        fits = self.n * max(1, self.bottleneck // self.n)
        self.expect(
            self.bottleneck % self.n == 0 < self.bottleneck,
            "bottleneck",
            f"that is a multiple of n = {self.n}, such as {fits}",
        )

    def attach(self, backbone: Backbone) -> None:
        rule = nn.Parameter(1e-4 * torch.randn(self.n, self.n, self.n))
        add_adapters(
            backbone,
            "compacter",
            self.bottleneck,
            self.n,
            lambda: rule,
            self.rank,
            self.after_mlp_only,
        )
