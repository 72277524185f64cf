"""AdapterBias: one learned vector per block, added to each token by as much as the token asks
for."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from vtlite.backbones.stages import attention_blocks
from vtlite.method import HIGH_LRS, Backbone, Method


class AdapterBiasLinear(nn.Module):
    """A frozen linear layer, and beside it a vector v with a weight per token: u [..., K] -> [...,
    N]."""

    def __init__(self, base: nn.Linear) -> None:
        super().__init__()
        self.base = base
        self.alpha = nn.Linear(
            base.in_features, 1
        )  # random, while v is zero: with both at zero no gradient would ever flow
        self.vector = nn.Parameter(torch.zeros(base.out_features))

    def forward(self, u: Tensor) -> Tensor:
        return self.base(u) + self.alpha(u) * self.vector

    def merged(self) -> nn.Linear:
        """The plain layer with W <- W + v w^T and b <- b + c v."""
        weight, bias = self.weight, self.bias
        self.base.weight.copy_(weight)
        self.base.bias = nn.Parameter(bias)
        return self.base

    @property
    def weight(self) -> Tensor:
        return self.base.weight + torch.outer(self.vector, self.alpha.weight[0])

    @property
    def bias(self) -> Tensor:
        bias = self.alpha.bias * self.vector
        return bias if self.base.bias is None else self.base.bias + bias

    @property
    def in_features(self) -> int:
        return self.base.in_features

    @property
    def out_features(self) -> int:
        return self.base.out_features


@dataclass
class AdapterBias(Method):
    """Shift the output of each MLP by a learned vector, weighted for each token by a linear
    function of its hidden units.

        y = W_0 u + b + (w^T u + c) v,   u [hidden], w [hidden], c scalar, v [dim]

    v starts at zero, so training starts from the backbone. Fu, Chen, Lee, Lee, "AdapterBias:
    Parameter-efficient Token-dependent Representation Shift for Adapters in NLP Tasks", Findings of
    NAACL 2022, arXiv 2205.00305; github.com/Allen0307/AdapterBias. On ViT-B/16: 46,092 parameters,
    or 64,524 with the norms before the MLPs, which stand for those that the original trains after
    BERT's. The paper speaks of a bias for each token; as the weight is linear in u, it is an update
    of W of rank 1, W_0 + v w^T, and merges.
    """

    lr = 3e-2
    lrs = HIGH_LRS

    norms: bool = False  # also train the norm before each MLP

    def attach(self, backbone: Backbone) -> None:
        parts = ("mlp.fc2", "norm2") if self.norms else ("mlp.fc2",)
        for block in attention_blocks(backbone, "adapterbias", parts):
            block.mlp.fc2 = AdapterBiasLinear(block.mlp.fc2)
            if self.norms:
                block.norm2.requires_grad_(True)
