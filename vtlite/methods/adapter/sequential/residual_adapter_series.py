"""Residual adapters in series: a 1x1 convolution with a skip after every frozen convolution."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from vtlite.method import Backbone, Method
from vtlite.methods.adapter.convolutions import as_matrix, pointwise, replace_convolutions
from vtlite.storage import VTError


class AdaptedConvolution(nn.Module):
    """z = base(x), y = z + A norm(z): maps [B, C, h, w] -> [B, D, h', w']."""

    def __init__(self, base: nn.Conv2d, after: nn.Module | None) -> None:
        super().__init__()
        self.base = base
        self.norm: Any = nn.BatchNorm2d(base.out_channels)
        self.adapter = pointwise(base.out_channels, base.out_channels, (1, 1), base.groups)
        self.after: Any = (after,)  # not a part of this module: the network's norm that comes next

    def forward(self, x: Tensor) -> Tensor:
        z = self.base(x)
        return z + self.adapter(self.norm(z))

    def merged(self) -> nn.Conv2d:
        """The plain convolution with W <- (I + A diag(g / s)) W; what else the adapter adds is a
        constant, which the norm that follows subtracts."""
        norm, A = self.norm, as_matrix(self.adapter)
        scale = norm.weight / (norm.running_var + norm.eps).sqrt()
        change = torch.eye(len(A), dtype=A.dtype, device=A.device) + A * scale
        shift = A @ (norm.bias - scale * norm.running_mean)
        rows = change.split(len(A) // self.base.groups)
        size = len(A) // self.base.groups
        blocks = [part[:, i * size : (i + 1) * size] for i, part in enumerate(rows)]
        weights = self.base.weight.chunk(self.base.groups)
        both = zip(blocks, weights, strict=True)
        self.base.weight.copy_(torch.cat([torch.einsum("ij,jkhw->ikhw", b, w) for b, w in both]))
        if self.base.bias is not None:
            self.base.bias.copy_(change @ self.base.bias)
        self.after[0].running_mean.sub_(shift)
        return self.base


@dataclass
class ResidualAdapterSeries(Method):
    """Put a 1x1 convolution with a norm and a skip after every frozen 3x3 convolution, and train
    all norms.

        z = conv(x);   y = z + A norm'(z);   then the network's own norm of y,   A [out, out] a 1x1 convolution

    A starts at N(0, 2 / out), as the network's own convolutions do, so training does not start from
    the backbone; `zero` starts it at zero. Rebuffi, Bilen, Vedaldi, "Learning multiple visual
    domains with residual adapters", NeurIPS 2017, arXiv 1705.08045; github.com/srebuffi/
    residual_adapters. For CNNs: on ResNet-50, whose 16 3x3 convolutions get one, 1,318,144
    parameters, of which 53,120 are those of its norms and 7,552 those of the new ones. Where groups
    of channels are convolved apart, so they are in the adapter. In the authors' comparison the
    series form needs adapters present in pre-training; on a network that never saw them it is far
    behind the parallel one.
    """

    key = "adapter/sequential/residual_adapter_series"
    measured_on = "vtlite-resnet"
    lr = 3e-2
    starts_elsewhere = "its 1x1 convolutions start as those of any network do, as published"

    zero: bool = False  # start A at zero, and so from the backbone

    def attach(self, backbone: Backbone) -> None:
        def adapted(convolution: nn.Conv2d, after: nn.Module | None) -> nn.Module:
            if not isinstance(after, nn.BatchNorm2d):
                raise VTError(
                    "residual_adapter_series: expected a batch norm after each 3x3 convolution, "
                    f"found {type(after).__name__} in {type(backbone).__name__}; tune this "
                    "backbone with residual_adapter_parallel"
                )
            module = AdaptedConvolution(convolution, after)
            if self.zero:
                nn.init.zeros_(module.adapter.weight)
            return module

        replace_convolutions(backbone, "residual_adapter_series", adapted)
