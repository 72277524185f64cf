"""CLIP-Adapter: CLIP's image feature, blended with a bottleneck of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from vtlite.method import Method
from vtlite.methods.adapter.two_towers import answering, named_classes
from vtlite.task import Task


class BlendedHead(nn.Module):
    """Features [B, E] -> logits [B, C]: a bottleneck of the feature beside it, then the cosine with
    each class's text."""

    texts: Tensor
    scale: Tensor

    def __init__(self, texts: Tensor, scale: Tensor, reduction: int, ratio: float) -> None:
        super().__init__()
        E, self.ratio = texts.shape[1], ratio
        self.down = nn.Linear(E, E // reduction, bias=False)
        self.up = nn.Linear(E // reduction, E, bias=False)
        self.register_buffer("texts", texts, persistent=False)  # made anew from the class names
        self.register_buffer("scale", scale, persistent=False)

    def forward(self, f: Tensor) -> Tensor:
        adapted = F.relu(self.up(F.relu(self.down(f))))
        f = self.ratio * adapted + (1 - self.ratio) * f
        return self.scale * F.normalize(f, dim=-1) @ self.texts.T


@dataclass
class CLIPAdapter(Method):
    """Blend CLIP's image feature with a bottleneck of it, and compare with the class names as
    before.

        f' = ratio relu(U relu(D f)) + (1 - ratio) f;   logits = exp(logit_scale) normalised(f') t_c,   D [E / reduction, E], U [E, E / reduction]

    For two-tower models; t_c is the text feature of "a photo of a CLASS" or another `template`. D
    and U start as layers of PyTorch, so the first answers are not CLIP's. Gao et al.,
    "CLIP-Adapter: Better Vision-Language Models with Feature Adapters", IJCV 2024, arXiv
    2110.04544; github.com/gaopengcuhk/CLIP-Adapter. On CLIP's ViT-B/16 (E = 512): 131,072
    parameters. The paper chooses the ratio for each data set, where the released file has 0.2 fixed:
    choose it on validation images. A second adapter on the texts, which the paper finds no better,
    is not here.
    """

    key = "adapter/parallel/clip_adapter"
    lr = 3e-2
    small = {"template": "an emoji of {}"}

    starts_elsewhere = "the bottleneck has a share in the feature from the start"
    unmergeable = "its bottleneck has ReLUs inside, so it is no linear change of the weights"
    frozen_features = True
    two_towers = True
    measured_on = "vtlite-clip"

    reduction: int = 4  # how many times narrower the bottleneck is
    ratio: float = 0.2  # the bottleneck's share
    template: str = "a photo of a {}"  # where a class name belongs

    def __post_init__(self) -> None:
        self.expect(self.reduction >= 1, "reduction", "an integer of at least 1")
        self.expect(0 <= self.ratio <= 1, "ratio", "in [0, 1]")

    def build(self, clip: Any, task: Task) -> nn.Module:
        texts = named_classes(clip, task, self, self.template)
        E = texts.shape[1]
        self.expect(E % self.reduction == 0, "reduction", f"that divides the features' width {E}")
        head = BlendedHead(texts, clip.logit_scale.exp().detach(), self.reduction, self.ratio)
        return answering(clip, head, task)
