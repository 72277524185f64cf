"""Consolidator: a block-diagonal layer beside every linear layer, folded into it afterwards."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from vtlite.backbones.base import is_norm
from vtlite.method import Backbone, Method
from vtlite.methods.parameter.updates import UpdatedLinear, replace_layers


class ConsolidatedLinear(UpdatedLinear):
    """A frozen weight and a grouped linear layer beside it: y = W0 x + b0 + drop(G x + c), G with
    `num_groups` blocks [N / g, K / g] on its diagonal; b0 and c train."""

    def __init__(self, base: nn.Linear, groups: int, drop: float) -> None:
        super().__init__(base)
        self.drop = drop
        shape = groups, base.out_features // groups, base.in_features // groups
        self.blocks = nn.Parameter(torch.empty(shape).uniform_(-1e-3, 1e-3))
        self.shift = nn.Parameter(torch.empty(base.out_features).uniform_(-1e-3, 1e-3))
        if base.bias is not None:
            base.bias.requires_grad_(True)

    def update(self, x: Tensor, group: int = 0) -> Tensor:
        beside = torch.einsum(
            "...gk,gnk->...gn", x.unflatten(-1, (len(self.blocks), -1)), self.blocks
        ).flatten(-2)
        beside = beside + self.shift
        if not (self.training and self.drop):
            return beside
        # the whole of it, for some images of the batch
        kept = torch.rand(len(x), *[1] * (x.ndim - 1), device=x.device) >= self.drop
        return beside * kept / (1 - self.drop)

    def delta(self, group: int = 0) -> Tensor:
        return torch.block_diag(*self.blocks)

    @property
    def bias(self) -> Tensor:
        return self.shift if self.base.bias is None else self.base.bias + self.shift

    def merged(self) -> nn.Linear:
        """The plain layer with W <- W + G and b <- b + c."""
        bias = self.bias
        layer = super().merged()
        layer.bias = nn.Parameter(bias.detach().clone(), requires_grad=False)
        return layer


@dataclass
class Consolidator(Method):
    """Put a grouped linear layer beside every linear layer of every block, and add the two up after
    training.

        y = W0 x + b0 + drop(G x + c),   G = diag(G_1 .. G_g), each [N / g, K / g]

    b0 and all norms train as well. G and c start uniform in +-0.001. `drop` leaves out the whole
    second term for an image, in training. Hao et al., "Consolidator: Mergeable Adapter with Grouped
    Connections for Visual Adaptation", ICLR 2023, arXiv 2305.00603; github.com/THU-MIG/
    Consolidator. On ViT-B/16: 425,472 parameters, of which c and b0, 82,944 each, become one when
    merged. The paper may have several G with other numbers of groups and shuffled channels; the
    released code's default is one, not shuffled, as here.
    """

    starts_elsewhere = "the grouped layers start small, not at zero, as published"
    small = {"num_groups": 48}

    num_groups: int = 384  # blocks of G; each is 2 x 2 where 768 channels enter and leave
    drop: float = 0.0  # how often an image is trained without the grouped layer

    def __post_init__(self) -> None:
        self.expect(self.num_groups >= 1, "num_groups", "an integer of at least 1")
        self.expect(0 <= self.drop < 1, "drop", "in [0, 1)")

    def attach(self, backbone: Backbone) -> None:
        def beside(layer: Any, name: str) -> nn.Module:
            sizes = layer.in_features, layer.out_features
            wanted = f"that divide the {sizes[0]} inputs and {sizes[1]} outputs of {name}"
            self.expect(not any(size % self.num_groups for size in sizes), "num_groups", wanted)
            return ConsolidatedLinear(layer, self.num_groups, self.drop)

        names = ("qkv", "proj", "fc1", "fc1_g", "fc1_x", "fc2")
        replace_layers(backbone, "consolidator", names, beside)
        for module in backbone.modules():
            if is_norm(module):
                module.requires_grad_(True)
