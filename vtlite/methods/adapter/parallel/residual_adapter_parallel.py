"""Residual adapters in parallel: a 1x1 convolution beside every frozen convolution."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from vtlite.method import Backbone, Method
from vtlite.methods.adapter.convolutions import pointwise, replace_convolutions


class ConvolutionBeside(nn.Module):
    """y = base(x) + A x, A a 1x1 convolution: maps [B, C, h, w] -> [B, D, h', w']."""

    def __init__(self, base: nn.Conv2d) -> None:
        super().__init__()
        self.base = base
        self.adapter = pointwise(base.in_channels, base.out_channels, base.stride, base.groups)

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + self.adapter(x)

    def merged(self) -> nn.Conv2d:
        """The plain convolution with A added in the middle of its kernel."""
        self.base.weight[:, :, 1, 1] += self.adapter.weight[:, :, 0, 0]
        return self.base


@dataclass
class ResidualAdapterParallel(Method):
    """Let a 1x1 convolution work beside every frozen 3x3 convolution, and train all norms.

        y = conv(x) + A x;   then the network's own norm of y,   A [out, in] a 1x1 convolution

    A starts at N(0, 2 / out), as the network's own convolutions do, so training does not start from
    the backbone; `zero` starts it at zero. Rebuffi, Bilen, Vedaldi, "Efficient parametrization of
    multi-domain deep neural networks", CVPR 2018, arXiv 1803.10082; github.com/srebuffi/
    residual_adapters. For CNNs: on ResNet-50, whose 16 3x3 convolutions get one, 1,310,592
    parameters, of which 53,120 are those of its norms. Where groups of channels are convolved
    apart, so they are in the adapter. The original also has dropout before the adapters.
    """

    key = "adapter/parallel/residual_adapter_parallel"
    measured_on = "vtlite-resnet"
    lr = 3e-2
    starts_elsewhere = "its 1x1 convolutions start as those of any network do, as published"

    zero: bool = False  # start A at zero, and so from the backbone

    def attach(self, backbone: Backbone) -> None:
        def beside(convolution: nn.Conv2d, after: nn.Module | None) -> nn.Module:
            module = ConvolutionBeside(convolution)
            if self.zero:
                nn.init.zeros_(module.adapter.weight)
            return module

        replace_convolutions(backbone, "residual_adapter_parallel", beside)
