"""AIM: the attention of an image model used twice, along time and over the image, with an adapter
for each."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from vtlite.backbones.stages import attention_blocks, stage_names
from vtlite.method import Backbone, Method
from vtlite.methods.adapter.bottleneck import After, Bottleneck
from vtlite.methods.adapter.clips import ClipPredictor, Frames
from vtlite.methods.prompt.vision.vpt_deep import known
from vtlite.storage import VTError
from vtlite.task import Task


class Beside(Bottleneck):
    """A frozen branch and a bottleneck beside it, on the same input."""

    def __init__(self, branch: nn.Module, dim: int, width: int, scale: float) -> None:
        super().__init__(dim, width, scale=scale)
        self.branch = branch

    def forward(self, x: Tensor) -> Tensor:
        return self.bottleneck(x, self.branch(x))


class TimeFirst(nn.Module):
    """A block whose attention first runs along time, where each token sees those at its place in the
    other frames of the clip: [B T, N, D] -> [B T, N, D]."""

    def __init__(self, block: Any, dim: int, width: int, before: bool, frames: Frames) -> None:
        super().__init__()
        self.block, self.frames = block, frames
        self.enter = Bottleneck(dim, width) if before else None
        self.leave = Bottleneck(dim, width)

    def forward(self, x: Tensor, **named: Any) -> Tensor:
        clips = self.frames.clips(x).transpose(1, 2)  # [B, N, T, D]
        sequences = clips.flatten(0, 1)
        z = self.block.norm1(sequences)
        if self.enter is not None:
            z = self.enter.bottleneck(z)
        z = self.block.ls1(self.block.attn.base(z))  # without the adapter of the attention
        x = self.leave.bottleneck(z, sequences).view(clips.shape)
        return self.block(x.transpose(1, 2).flatten(0, 1), **named)


class WithTimes(nn.Module):
    """A learned vector for each frame, added to all its tokens before `norm`: [B T, N, D] -> [B T,
    N, D]. Raises `VTError` for clips longer than it knows."""

    def __init__(self, norm: nn.Module, dim: int, most: int, frames: Frames) -> None:
        super().__init__()
        self.norm, self.frames = norm, frames
        self.times = nn.Parameter(torch.zeros(most, dim))

    def forward(self, x: Tensor) -> Tensor:
        count, most = self.frames.count, len(self.times)
        if count > most:
            raise VTError(
                f"expected clips of at most {most} frames, found {count}; "
                f"tune with frames={count}, or give shorter clips"
            )
        return self.norm((self.frames.clips(x) + self.times[:count, None]).flatten(0, 1))


@dataclass
class AIM(Method):
    """Let the frozen attention of each block run along time first, then over the image as before,
    and adapt both and the MLP by bottlenecks.

        x <- x + T(a_t),   a_t = attention(LN(x)) over the frames at one place;   x <- x + a + S(a),   a = attention(LN(x)) over the places of one frame;   x <- x + MLP(LN(x)) + s M(LN(x));   T(z), S(z), M(z) = U gelu(D z + d) + u

    U, d and u start at zero, D is drawn from N(0, 0.02), and a learned vector of each frame, added to
    all its tokens before the blocks, starts at zero: training starts from the backbone, frame by
    frame. The last norm trains, too. Yang et al., "AIM: Adapting Image Models for Efficient Video
    Action Recognition", ICLR 2023, arXiv 2302.03024; github.com/taoyang1122/adapt-image-models. On
    ViT-B/16: 10,651,392 parameters in the adapters, 6,144 of 8 frames and 1,536 in the norm;
    14,201,856 with a second adapter, which comes with a skip before the attention along time. The
    attention runs twice, which costs. With frames=1 it is the form for images, which sees each frame by
    itself, without T: 7,100,928 and the norm. The original also drops T and M at random in training. Where a branch has a gain
    (LayerScale), T stands after it, S and M before. With the embedded backbone and 800 clips of
    emoji-motion it learns the clips by heart and stays at chance on validation clips, at rates of
    1e-3, 3e-3 and 1e-2, with `before_time` and a scale of 1, and with batches of ten.
    """

    key = "adapter/parallel/aim"

    unmergeable = "its attention runs a second time, along the frames"

    frames: int = 8  # of the longest clip; 1: each frame by itself
    reduction: int = 4  # the width over that of the bottlenecks
    scale: float = 0.5  # s, fixed; 1 for SSv2
    before_time: bool = False  # a second adapter of the attention along time, as for SSv2

    def __post_init__(self) -> None:
        self.expect(self.frames >= 1, "frames", "an integer of at least 1")
        self.expect(self.reduction >= 1, "reduction", "an integer of at least 1")

    def build(self, backbone: Backbone, task: Task) -> nn.Module:
        blocks = attention_blocks(backbone, "aim", ("norm2", "mlp.fc2"), plain=True)
        if not all(known(block) for block in blocks):
            raise VTError(
                "aim: expected a ViT with the usual blocks, whose attention it uses along time, "
                f"found {type(backbone).__name__} with others; tune this backbone with st_adapter"
            )
        frames, dim = Frames(), backbone.embed_dim
        self.expect(self.reduction <= dim, "reduction", f"of at most {dim}, the backbone's width")
        shape = dim, dim // self.reduction
        for name, block in zip(stage_names(backbone), blocks, strict=True):
            block.attn = After(block.attn, *shape)
            block.mlp = Beside(block.mlp, *shape, self.scale)
            if self.frames > 1:
                parent, _, place = name.rpartition(".")
                timed = TimeFirst(block, *shape, self.before_time, frames)
                setattr(backbone.get_submodule(parent), place, timed)
        if self.frames > 1:
            backbone.norm_pre = WithTimes(backbone.norm_pre, dim, self.frames, frames)
        for module in backbone.modules():
            if isinstance(module, Bottleneck):
                nn.init.trunc_normal_(module.down.weight, std=0.02)
        for last in (backbone.norm, backbone.fc_norm):  # one of them is none
            last.requires_grad_(True)
        return ClipPredictor(backbone, task.head(backbone), task, frames)
