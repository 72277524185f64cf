"""LoRA: a low-rank update beside each frozen projection."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from vtlite.method import Backbone, Method
from vtlite.methods.parameter.updates import LowRankLinear, check_rank, qkv_groups, replace_layers


class LoRALinear(LowRankLinear):
    """A linear layer with an update B A of its own in each of the groups of output rows that
    `groups` turns on (see `UpdatedLinear`)."""

    def __init__(
        self, base: nn.Linear, rank: int, scale: float, groups: Sequence[bool] = (True,)
    ) -> None:
        super().__init__(base, scale, groups)
        check_rank(
            type(self).__name__.removesuffix("Linear").lower(), rank, self.rows, base.in_features
        )
        self.lora_A = nn.Parameter(torch.empty(rank * len(self.starts), base.in_features))
        self.lora_B = nn.Parameter(torch.zeros(self.rows * len(self.starts), rank))
        nn.init.kaiming_uniform_(self.lora_A, a=math.sqrt(5))

    def factors(self) -> tuple[Tensor, Tensor]:
        return self.lora_A, self.lora_B


class LoRAConv2d(nn.Module):
    """A convolution whose change, read as a matrix [out k / groups, in k], is B A: images [B, in,
    H, W] -> [B, out, H', W']."""

    def __init__(self, base: nn.Conv2d, rank: int, scale: float) -> None:
        super().__init__()
        k, rows = base.kernel_size[0], base.out_channels // base.groups * base.kernel_size[1]
        check_rank("lora", rank, base.out_channels // base.groups, base.in_channels)
        self.base, self.scale = base, scale
        self.lora_A = nn.Parameter(torch.empty(rank * k, base.in_channels * k))
        self.lora_B = nn.Parameter(torch.zeros(rows, rank * k))
        nn.init.kaiming_uniform_(self.lora_A, a=math.sqrt(5))

    @property
    def weight(self) -> Tensor:
        return self.base.weight + self.delta()

    @property
    def bias(self) -> Tensor | None:
        return self.base.bias

    def delta(self) -> Tensor:
        return self.scale * (self.lora_B @ self.lora_A).view_as(
            self.base.weight
        )  # small beside the images, so here it is formed

    def forward(self, images: Tensor) -> Tensor:
        # by its own forward, which may pad in its own way, or normalise its kernel
        return functional_call(self.base, {"weight": self.weight}, images)

    def merged(self) -> nn.Conv2d:
        """The plain convolution with W <- W + delta."""
        self.base.weight += self.delta()
        return self.base


@dataclass
class LoRA(Method):
    """Learn the change of each attention projection as a product of two thin matrices.

        y = x W_0^T + b + (alpha / rank) x A^T B^T,   A [rank, in], B [out, rank]

    A starts Kaiming-uniform and B at zero, so training starts from the backbone. Hu et al., "LoRA:
    Low-Rank Adaptation of Large Language Models", ICLR 2022, arXiv 2106.09685;
    github.com/microsoft/LoRA. On ViT-B/16 with rank 8 on queries and values: 294,912 parameters. As
    in the original's fused layer, each of q, k, v has its own A and B. A convolution's kernel is
    read as a matrix [out k, in k] with factors of rank k times `rank`, as in the original. No
    dropout on the low-rank path.
    """

    rank: int = 8  # inner width of the update; parameters grow in proportion
    alpha: float = 8.0  # the update is scaled by alpha / rank; kept while the rank changes
    # which of q, k, v of a fused projection get an update of their own; "" gives the fused matrix a
    # single one
    targets: str = "qv"
    # which layers of each block, linear or convolutions, by their last names
    layers: tuple[str, ...] = ("qkv", "conv1", "conv2")

    def __post_init__(self) -> None:
        self.expect(self.rank >= 1, "rank", "an integer of at least 1")
        self.expect(set(self.targets) <= set("qkv"), "targets", "some of the letters q, k, v")

    def attach(self, backbone: Backbone) -> None:
        kinds = (nn.Linear, nn.Conv2d)
        replace_layers(backbone, "lora", self.layers, self.updated, kinds, self.targets)

    def updated(self, layer: Any, name: str) -> nn.Module:
        scale = self.alpha / self.rank
        if isinstance(layer, nn.Conv2d):
            return LoRAConv2d(layer, self.rank, scale)
        return LoRALinear(layer, self.rank, scale, qkv_groups(name, self.targets))
