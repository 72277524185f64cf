"""ST-Adapter: a bottleneck with a depth-wise convolution over time inside, for clips."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from vtlite.backbones.stages import attention_blocks, stage_names, take_gain
from vtlite.method import Backbone, Method
from vtlite.methods.adapter.clips import ClipPredictor, Frames
from vtlite.methods.adapter.places import Places
from vtlite.task import Task


class SpaceTimeAdapter(nn.Module):
    """What is to be added to the tokens of all frames, [B T, N, D] or maps [B T, h, w, D] -> the
    same shape; those without a place (class, registers) get zero."""

    def __init__(
        self, dim: int, width: int, kernel: tuple[int, ...], places: Places, frames: Frames
    ) -> None:
        super().__init__()
        self.places, self.frames = places, frames
        self.down, self.up = nn.Linear(dim, width), nn.Linear(width, dim)
        t, h, w = kernel
        padding = t // 2, h // 2, w // 2
        self.conv = nn.Conv3d(width, width, (t, h, w), padding=padding, groups=width)
        for zero in (self.down.bias, self.conv.weight, self.conv.bias, self.up.bias):
            assert zero is not None
            nn.init.zeros_(zero)

    def over_time(self, maps: Tensor) -> Tensor:
        """[B T, R, h, w] -> [B T, R, h, w]: each channel by itself, over frames and places."""
        clips = self.frames.clips(maps).transpose(1, 2)  # [B, R, T, h, w]
        return self.conv(clips).transpose(1, 2).flatten(0, 1)

    def forward(self, x: Tensor) -> Tensor:
        prefix = self.places.prefix  # none where x is a map
        z = self.down(x[:, prefix:])
        z = self.up(Places(0, self.places.ratio).apply(self.over_time, z))
        return torch.cat([torch.zeros_like(x[:, :prefix]), z], 1) if prefix else z


class BeforeMLP(nn.Module):
    """The second half of a pre-norm block with an adapter in the stream before it: x -> what is to
    be added to x."""

    def __init__(
        self, adapter: nn.Module, norm: nn.Module, mlp: nn.Module, gain: nn.Module
    ) -> None:
        super().__init__()
        self.adapter, self.norm, self.mlp, self.gain = adapter, norm, mlp, gain

    def forward(self, x: Tensor, *more: Any) -> Tensor:
        added = self.adapter(x)
        return added + self.gain(self.mlp(self.norm(x + added), *more))


class BeforeBlock(nn.Module):
    """A block with an adapter in the stream before it."""

    def __init__(self, adapter: nn.Module, block: nn.Module) -> None:
        super().__init__()
        self.adapter, self.block = adapter, block

    def forward(self, x: Tensor, *more: Any, **named: Any) -> Tensor:
        return self.block(x + self.adapter(x), *more, **named)


@dataclass
class STAdapter(Method):
    """Before each MLP, add a bottleneck to the patches of a clip that looks at the neighbouring
    frames, by one depth-wise convolution over time.

        x[t] <- x[t] + U (sum_k c_k * (D x[t + k] + d) + c) + u,   k = -1, 0, 1,   D [bottleneck, dim], U [dim, bottleneck], c_k [bottleneck]

    The convolution starts at zero, so training starts from the backbone, frame by frame; it gets the
    first gradient. D and U start as a layer of PyTorch with biases of zero. Tokens without a place
    (class, registers) are left alone. An image is a clip of one frame, of which the convolution uses
    the middle of its kernel; `kernel=(1, 3, 3)` makes it one over places. Pan, Lin, Zhu, Shao, Li,
    "ST-Adapter: Parameter-Efficient Image-to-Video Transfer Learning", NeurIPS 2022, arXiv
    2206.13559; github.com/linziyi96/st-adapter, which has no non-linearity, as here. On ViT-B/16:
    7,110,144 parameters, 14,220,288 with a second one before each attention. Where the class token
    alone is read, as there, no answer depends on the adapter before the last MLP (592,512 of them),
    which comes after all attention. The original has a dropout of 0.5 before its head, which reads
    the mean before the last norm; here every method has the same linear head, on the mean of the
    frames' features.
    """

    key = "adapter/parallel/st_adapter"
    lr = 3e-3
    small = {"bottleneck": 48}

    unmergeable = "it mixes the tokens of neighbouring frames, which no layer of the backbone does"

    bottleneck: int = 384  # width between down and up projection
    kernel: tuple[int, ...] = (3, 1, 1)  # over frames, rows and columns
    before_attention: bool = False  # a second adapter in each block, as published for SSv2

    def __post_init__(self) -> None:
        self.expect(self.bottleneck >= 1, "bottleneck", "an integer of at least 1")
        odd = len(self.kernel) == 3 and all(k >= 1 and k % 2 for k in self.kernel)
        self.expect(odd, "kernel", "as three odd numbers, for frames, rows and columns")

    def build(self, backbone: Backbone, task: Task) -> nn.Module:
        frames, places = Frames(), Places.of(backbone)
        blocks = attention_blocks(backbone, "st_adapter", ("norm2", "mlp.fc2"))
        for name, block in zip(stage_names(backbone), blocks, strict=True):
            shape = block.mlp.fc2.out_features, self.bottleneck, self.kernel, places, frames
            gain = take_gain(block)
            block.mlp = BeforeMLP(SpaceTimeAdapter(*shape), block.norm2, block.mlp, gain)
            block.norm2 = nn.Identity()
            if self.before_attention:
                parent, _, place = name.rpartition(".")
                before = BeforeBlock(SpaceTimeAdapter(*shape), block)
                setattr(backbone.get_submodule(parent), place, before)
        return ClipPredictor(backbone, task.head(backbone), task, frames)
