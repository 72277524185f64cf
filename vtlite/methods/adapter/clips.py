"""Clips in a network of images: what an adapter that looks from one frame to another needs."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from vtlite.method import Backbone, Predictor
from vtlite.task import Task


class Frames:
    """How many frames follow one another in the batch that is under way, `count` of each clip; an
    image is a clip of one."""

    def __init__(self) -> None:
        self.count = 1

    def clips(self, x: Tensor) -> Tensor:
        """Frames [B T, ...] -> clips [B, T, ...]."""
        return x.unflatten(0, (-1, self.count))


class ClipPredictor(Predictor):
    """A backbone of images and a head, which tells `frames`, that its blocks share, how long the
    clips are: [B, T, C, H, W], or images [B, C, H, W] -> the task's answer."""

    def __init__(self, backbone: Backbone, head: nn.Module, task: Task, frames: Frames) -> None:
        super().__init__(backbone, head, task)
        self.frames = frames

    def features(self, inputs: Any) -> Tensor:
        if isinstance(inputs, Tensor) and inputs.ndim == 5:
            self.frames.count = inputs.shape[1]
        try:
            return super().features(inputs)
        finally:
            self.frames.count = 1
