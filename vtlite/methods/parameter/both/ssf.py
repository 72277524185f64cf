"""SSF: a scale and a shift after every operation, folded into it afterwards."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from vtlite.backbones.base import is_norm
from vtlite.method import Backbone, Method
from vtlite.methods.parameter.changes import change_modules
from vtlite.ops.scale_shift import scale_shift


class ScaleShift(nn.Module):
    """operation(x) * scale + shift, one pair per output channel; channels last, or dimension 1
    after a convolution."""

    def __init__(self, operation: Any) -> None:
        super().__init__()
        self.operation, channels = operation, len(operation.weight)
        self.scale = nn.Parameter(torch.empty(channels).normal_(1, 0.02))
        self.shift = nn.Parameter(torch.empty(channels).normal_(0, 0.02))

    def forward(self, x: Tensor) -> Tensor:
        operation = self.operation
        if is_norm(operation):
            # A norm ends in a scale and a shift anyway: as one pair with these, it keeps x alone.
            return functional_call(operation, {"weight": self.weight, "bias": self.bias}, x)
        if isinstance(operation, nn.Conv2d):
            return operation(x) * self.scale.view(-1, 1, 1) + self.shift.view(-1, 1, 1)
        return scale_shift(operation(x), self.scale, self.shift)

    # To whoever reads them, the weight and bias that it is merged into.

    @property
    def weight(self) -> Tensor:
        weight = self.operation.weight
        return weight * self.scale.view(-1, *[1] * (weight.ndim - 1))

    @property
    def bias(self) -> Tensor:
        return self.operation.bias * self.scale + self.shift

    @property
    def in_features(self) -> int:
        return self.operation.in_features

    @property
    def out_features(self) -> int:
        return self.operation.out_features

    def merged(self) -> nn.Module:
        """The plain operation with w <- scale w (per output channel) and b <- scale b + shift."""
        weight, bias = self.weight, self.bias
        self.operation.weight.copy_(weight)
        self.operation.bias.copy_(bias)
        return self.operation


@dataclass
class SSF(Method):
    """Scale and shift the features after every operation that has parameters.

        y = gamma * operation(x) + beta,   gamma, beta [channels]

    After the patch embedding, both norms, qkv, proj, fc1 (before its GELU) and fc2 of each block,
    and the final norm; after the batch norms of a ResNet. Lian et al., "Scaling & Shifting Your
    Features: A New Baseline for Efficient Model Tuning", NeurIPS 2022, arXiv 2210.08823;
    github.com/dongzelian/SSF. On ViT-B/16: 205,824 parameters, all folded into the backbone by
    `merge` (the original has no merge).
    """

    lr = 3e-2

    starts_elsewhere = (
        "gamma starts at N(1, 0.02) and beta at N(0, 0.02), as published, so the first output is"
        " near the backbone's, not equal"
    )

    def attach(self, backbone: Backbone) -> None:
        change_modules(
            backbone, lambda name, operation: ScaleShift(operation) if folds(operation) else None
        )


def folds(operation: Any) -> bool:
    """Whether a scale and a shift of an operation's output fold into its weight and bias: not
    without a bias (the norm that follows such a layer gets a pair of its own), nor where the weight
    is normalised before its use."""
    known = isinstance(operation, nn.Linear | nn.Conv2d) or is_norm(operation)
    normalised = type(operation).__name__.startswith(("StdConv", "ScaledStdConv"))
    return known and getattr(operation, "bias", None) is not None and not normalised
