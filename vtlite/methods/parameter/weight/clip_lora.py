"""CLIP-LoRA: low-rank updates in the attention of both towers."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from vtlite.backbones.clip import ImageTower
from vtlite.method import Method, Predictor
from vtlite.methods.adapter.two_towers import TextHead
from vtlite.methods.parameter.updates import qkv_groups
from vtlite.methods.parameter.weight.lora import LoRALinear
from vtlite.methods.prompt.contexts import class_names
from vtlite.task import Task


class DroppedLoRALinear(LoRALinear):
    """LoRA whose update sees its input through dropout, in training."""

    def __init__(self, base: nn.Linear, rank: int, scale: float, targets: str, drop: float) -> None:
        super().__init__(base, rank, scale, qkv_groups("qkv", targets))
        self.drop = drop

    def forward(self, x: Tensor) -> Tensor:
        if not (self.training and self.drop):
            return super().forward(x)
        # a mask for each of q, k and v, as three layers side by side have
        seen = [F.dropout(x, self.drop) for _ in self.starts]
        y = self.base(x)
        for group, start in enumerate(self.starts):
            A = self.lora_A.chunk(len(self.starts))[group]
            B = self.lora_B.chunk(len(self.starts))[group]
            y[..., start : start + self.rows].add_(self.scale * (seen[group] @ A.T) @ B.T)
        return y


@dataclass
class CLIPLoRA(Method):
    """Update queries, keys and values of every block of both towers by products of thin matrices.

        y = x W_0^T + b + (alpha / sqrt(rank)) drop(x) A^T B^T,   A [rank, D], B [D, rank] for each of q, k, v;   logits = exp(logit_scale) f g_c

    For two-tower models; g_c is the text feature of a class in a `template`, and nothing but A and
    B trains. A starts Kaiming-uniform and B at zero, so training starts from zero-shot CLIP.
    Zanella, Ben Ayed, "Low-Rank Few-Shot Adaptation of Vision-Language Models", CVPR Workshops
    2024, arXiv 2405.18541; github.com/MaxZanella/CLIP-LoRA, whose one setting for all data sets
    this is (rank 2, alpha 1, dropout 0.25; AdamW, 500 steps a shot). On CLIP's ViT-B/16: 184,320
    parameters. The scale is the code's, where LoRA divides by the rank itself.
    """

    lr = 3e-2
    small = {"template": "an emoji of {}"}
    two_towers = True
    measured_on = "vtlite-clip"

    rank: int = 2  # inner width of each update
    alpha: float = 1.0  # the update is scaled by alpha / sqrt(rank)
    dropout: float = 0.25  # on what the update reads, in training
    targets: str = "qkv"  # which of queries, keys and values get an update
    template: str = "a photo of a {}"  # where a class name belongs

    def __post_init__(self) -> None:
        self.expect(self.rank >= 1, "rank", "an integer of at least 1")
        self.expect(0 <= self.dropout < 1, "dropout", "in [0, 1)")
        some = self.targets and set(self.targets) <= set("qkv")
        self.expect(bool(some), "targets", "some of the letters q, k, v")
        self.expect("{}" in self.template, "template", "with {} where the name belongs")

    def build(self, clip: Any, task: Task) -> nn.Module:
        names = class_names(clip, task, self)
        for block in (*clip.visual.blocks, *clip.text.blocks):
            qkv, scale = block.attn.qkv, self.alpha / math.sqrt(self.rank)
            block.attn.qkv = DroppedLoRALinear(qkv, self.rank, scale, self.targets, self.dropout)
        return Predictor(ImageTower(clip), TextHead(clip, names, self.template), task)
