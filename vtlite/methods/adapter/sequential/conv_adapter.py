"""Conv-Adapter: a bottleneck of two convolutions beside the 3x3 convolution of a residual block."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vtlite.backbones.stages import stages
from vtlite.method import Backbone, Method
from vtlite.storage import VTError


class ConvBottleneck(nn.Module):
    """a C2 relu(C1 x): C1 a 3x3 convolution in as many groups as it has outputs, C2 a 1x1
    convolution, a a gain per channel; maps [B, C, h, w] -> [B, D, h', w']."""

    def __init__(self, inputs: int, outputs: int, width: int, stride: Any) -> None:
        super().__init__()
        self.down = nn.Conv2d(inputs, width, 3, stride, padding=1, groups=width)
        self.up = nn.Conv2d(width, outputs, 1)
        self.gain = nn.Parameter(torch.ones(outputs, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.gain * self.up(F.relu(self.down(x)))


class Beside(nn.Module):
    """base(x) + adapter(x)"""

    def __init__(self, base: nn.Conv2d, adapter: nn.Module) -> None:
        super().__init__()
        self.base, self.adapter = base, adapter

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + self.adapter(x)


class Lending(nn.Module):
    """base(x); what the adapter makes of x waits for the block's last convolution."""

    def __init__(self, base: nn.Conv2d, adapter: nn.Module) -> None:
        super().__init__()
        self.base, self.adapter = base, adapter
        self.waiting: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        self.waiting[:] = [self.adapter(x)]
        return self.base(x)


class Taking(nn.Module):
    """base(h + what waits), h that came through the norm and the ReLU in the meantime."""

    def __init__(self, base: nn.Conv2d, waiting: list[Tensor]) -> None:
        super().__init__()
        self.base, self.waiting = base, waiting

    def forward(self, h: Tensor) -> Tensor:
        return self.base(h + self.waiting.pop())


@dataclass
class ConvAdapter(Method):
    """Let a bottleneck of a grouped 3x3 and a 1x1 convolution work beside the 3x3 convolution of
    every residual block.

        h = relu(norm(conv3x3(z))) + A(z),   A(z) = a * C2 relu(C1 z),   C1: out -> out / reduction channels, C2 back, a [out]

    In a block of two 3x3 convolutions it stands beside the first, before its norm. All starts as a
    layer of PyTorch, a at one, so training does not start from the backbone; `zero` starts C2 at
    zero. Chen et al., "Conv-Adapter: Exploring Parameter Efficient Transfer Learning for ConvNets",
    CVPR Workshops 2024, arXiv 2208.07463; github.com/Hhhhhhao/Conv-Adapter. For ResNets: 199,192
    parameters on ResNet-50, 356,848 with reduction 4. Each of C1's outputs sees `reduction`
    channels. Its released block of two 3x3 convolutions does not run; the place is the paper's.
    """

    key = "adapter/sequential/conv_adapter"
    measured_on = "vtlite-resnet"
    lr = 3e-2
    starts_elsewhere = "its convolutions start as those of any network do, as published"
    unmergeable = "its bottleneck has a ReLU inside, so it is no linear change of the weights"
    small = {"reduction": 4}

    reduction: int = 8  # how many times fewer channels lie between the two convolutions
    zero: bool = False  # start C2 at zero, and so from the backbone

    def __post_init__(self) -> None:
        self.expect(self.reduction >= 1, "reduction", "an integer of at least 1")

    def attach(self, backbone: Backbone) -> None:
        blocks = [m for stage in stages(backbone) for m in stage.modules() if _is_residual(m)]
        if not blocks:
            raise VTError(
                "conv_adapter: expected a ResNet with its blocks, found "
                f"{type(backbone).__name__} without; tune this backbone with houlsby or adaptformer"
            )
        for block in blocks:
            three = hasattr(block, "conv3")  # 1x1, 3x3, 1x1
            base = block.conv2 if three else block.conv1
            width = base.out_channels // self.reduction
            fits = width > 0 == base.out_channels % self.reduction == base.in_channels % width
            self.expect(
                fits, "reduction", f"that divides {base.in_channels} and {base.out_channels}"
            )
            adapter = ConvBottleneck(base.in_channels, base.out_channels, width, base.stride)
            if self.zero:
                for tensor in adapter.up.parameters():
                    nn.init.zeros_(tensor)
            if three:
                block.conv2 = Lending(base, adapter)
                block.conv3 = Taking(block.conv3, block.conv2.waiting)
            else:
                block.conv1 = Beside(base, adapter)


def _is_residual(module: nn.Module) -> bool:
    """Whether this is a block with two or three convolutions of which the right one is 3x3."""
    names = ("conv1", "conv2", "conv3") if hasattr(module, "conv3") else ("conv1", "conv2")
    found = [getattr(module, name, None) for name in names]
    middle = found[1] if len(found) == 3 else found[0]
    plain = all(type(conv) is nn.Conv2d for conv in found)
    return plain and middle.kernel_size == (3, 3) and middle.padding == (1, 1)  # type: ignore[union-attr]
