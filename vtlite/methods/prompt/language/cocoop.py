"""CoCoOp: a context that a small network shifts for each image."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vtlite.backbones.clip import ImageTower
from vtlite.method import Method, Predictor
from vtlite.methods.prompt.contexts import (
    Position,
    Texts,
    class_names,
    expect_context,
    first_context,
    temperature,
)
from vtlite.task import Task

AT_ONCE = 1024  # texts in one pass of the tower, which bounds the memory of a large batch


class ConditionalHead(nn.Module):
    """Features [B, E] -> logits [B, C], by texts of the image's own [B, C, E]."""

    scale: Tensor

    def __init__(
        self, texts: Texts, context: nn.Parameter, scale: Tensor, E: int, reduction: int
    ) -> None:
        super().__init__()
        self.texts, self.context = texts, context
        self.down = nn.Linear(E, E // reduction)
        self.up = nn.Linear(E // reduction, context.shape[-1])
        self.register_buffer("scale", scale, persistent=False)

    def forward(self, f: Tensor) -> Tensor:
        images = F.normalize(f, dim=-1).split(max(1, AT_ONCE // len(self.texts.words)))
        return torch.cat([self.answer(part) for part in images])

    def answer(self, f: Tensor) -> Tensor:
        shift = self.up(F.relu(self.down(f)))  # [B, D]
        contexts = self.context + shift[:, None, None]  # [B, 1, M, D]
        g = F.normalize(self.texts(contexts), dim=-1)  # [B, C, E]
        return self.scale * (g @ f[:, :, None]).squeeze(2)


@dataclass
class CoCoOp(Method):
    """Shift the learned context by a vector that a small network computes from the image.

        V_i = V + W2 relu(W1 f_i + b1) + b2;   logits_i = exp(logit_scale) f_i g(V_i)_c,   W1 [E / reduction, E], W2 [D, E / reduction]

    For two-tower models; f_i is the normalised feature of image i, and its shift is the same for
    all M vectors. Each image has texts of its own, so the text tower reads B C of them in a step,
    where CoOp's reads C: a step costs up to B times CoOp's. Zhou et al., "Conditional Prompt
    Learning for Vision-Language Models", CVPR 2022, arXiv 2203.05557; github.com/KaiyangZhou/CoOp.
    On CLIP's ViT-B/16 (E = D = 512): 35,360 parameters. The paper trains on one image at a time,
    for that memory; the loop here takes any batch.
    """

    lr = 1e-2
    small = {"num_context": 3, "words": "an emoji of"}

    starts_elsewhere = "the small network shifts the context from the start"
    unmergeable = "its texts are other ones for each image"
    frozen_features = True
    two_towers = True
    measured_on = "vtlite-clip"

    num_context: int = 4  # vectors
    position: Position = "end"  # where the class name stands: "end", "middle" or "front"
    words: str = "a photo of a"  # words to start from; none: N(0, 0.02^2)
    reduction: int = 16  # how many times narrower the small network is than the features

    def __post_init__(self) -> None:
        expect_context(self, self.num_context, self.position)
        self.expect(self.reduction >= 1, "reduction", "an integer of at least 1")

    def build(self, clip: Any, task: Task) -> nn.Module:
        names, E = class_names(clip, task, self), clip.text_projection.shape[1]
        self.expect(E % self.reduction == 0, "reduction", f"that divides the features' width {E}")
        texts = Texts(clip, names, self.num_context, self.position)
        context = first_context(clip, 1, self.num_context, words=self.words)
        head = ConditionalHead(texts, context, temperature(clip), E, self.reduction)
        return Predictor(ImageTower(clip), head, task)
