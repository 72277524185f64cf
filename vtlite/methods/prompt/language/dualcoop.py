"""DualCoOp: a context for the presence of a class and one for its absence, at every place."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vtlite.method import Method, Predictor
from vtlite.methods.prompt.contexts import (
    Position,
    Texts,
    class_names,
    expect_context,
    first_context,
    temperature,
)
from vtlite.methods.prompt.language.places import PlaceTower
from vtlite.task import Classification, MultiLabel, Task


class DualHead(nn.Module):
    """Tokens [B, 1 + P, E] -> logits [B, C] of the presence of each class."""

    scale: Tensor

    def __init__(
        self, texts: Texts, context: nn.Parameter, scale: Tensor, sharpness: float
    ) -> None:
        super().__init__()
        self.texts, self.context, self.sharpness = texts, context, sharpness
        self.register_buffer("scale", scale, persistent=False)

    def forward(self, tokens: Tensor) -> Tensor:
        g = F.normalize(self.texts(self.context), dim=-1)  # [2, C, E]: present, absent
        cosines = torch.einsum("bpe,nce->nbpc", F.normalize(tokens, dim=-1), g)
        where = F.softmax(self.sharpness * cosines[0], dim=1)  # where each class shows
        present, absent = (where * cosines).sum(2)
        return self.scale * (present - absent)


def asymmetric_loss(
    logits: Tensor, targets: Tensor, positive: float, negative: float, margin: float
) -> Tensor:
    """The mean over images and classes of -(1 - p)^gamma log p, where p is the probability of the
    right answer; absent classes have gamma `negative` and are given `margin` more."""
    y, present = targets.to(logits.dtype), torch.sigmoid(logits)
    p = torch.where(y > 0.5, present, (1 - present + margin).clamp(max=1))
    log_p = torch.where(y > 0.5, F.logsigmoid(logits), p.clamp_min(torch.finfo(p.dtype).tiny).log())
    gamma = torch.where(y > 0.5, positive, negative)
    return -((1 - p).detach() ** gamma * log_p).mean()


@dataclass
class DualCoOp(Method):
    """Learn two contexts, for the presence and the absence of a class, and compare both at the
    places where the class shows.

        p(c present) = sigmoid(z_c),   z_c = exp(logit_scale) sum_p w_pc f_p (g+_c - g-_c),   w_pc = softmax_p(sharpness f_p g+_c)
        loss = - mean (1 - p)^gamma log p,   p of the right answer

    For two-tower models and tasks of several labels for an image; f_p are the normalised features
    of the places, g those of both prompts of a class. The loss is asymmetric: the probability of an
    absent class is raised by `margin`, its gamma is 2 and not 1, and the weight has no gradient. A
    classification is taken for one label of many. Sun, Hu, Saenko, "DualCoOp: Fast Adaptation to
    Multi-Label Recognition with Limited Annotations", NeurIPS 2022, arXiv 2206.09541;
    github.com/sunxm2357/DualCoOp. On CLIP's ViT-B/16: 16,384 parameters, with `per_class` (as in
    the paper, where labels are many) 16,384 a class. The released code has 20 * 5 in the place of
    CLIP's scale, which is that in published weights, and the loss is a sum times 0.03: AdamW does
    not mind. Its places are those of a ResNet's attention pooling, with their mean as one more; for a
    ViT see places.py, and the class token is the one more. Labels that are not known, which the original
    leaves out of the loss, are no part of the tasks here.
    """

    small = {"num_context": 4}

    starts_elsewhere = "two contexts stand in the place of one template"
    unmergeable = "its contexts belong to the texts, and it weighs the places of each image"
    frozen_features = True
    two_towers = True
    measured_on = "vtlite-clip"

    num_context: int = 16  # vectors of each of the two
    position: Position = "end"  # where the class name stands: "end", "middle" or "front"
    per_class: bool = False  # two contexts for each class, instead of two for all
    sharpness: float = 20.0  # of the softmax over places
    positive: float = 1.0  # gamma of the classes that an image shows
    negative: float = 2.0  # gamma of those that it does not
    margin: float = 0.05  # given to the probability of an absent class

    def __post_init__(self) -> None:
        expect_context(self, self.num_context, self.position)
        self.expect(self.sharpness >= 0, "sharpness", "of at least 0")
        self.expect(self.positive >= 0, "positive", "of at least 0")
        self.expect(self.negative >= 0, "negative", "of at least 0")
        self.expect(0 <= self.margin < 1, "margin", "in [0, 1)")

    def build(self, clip: Any, task: Task) -> nn.Module:
        names = class_names(clip, task, self, MultiLabel, Classification)
        texts = Texts(clip, names, self.num_context, self.position)
        sets = len(names) if self.per_class else 1
        context = first_context(clip, 2, sets, self.num_context)
        return Predictor(
            PlaceTower(clip, "dualcoop"),
            DualHead(texts, context, temperature(clip), self.sharpness),
            task,
        )

    def loss(self, model: Any, inputs: Tensor, targets: Tensor) -> Tensor:
        logits = model(inputs)
        if targets.ndim == 1:
            targets = F.one_hot(targets, logits.shape[1])
        return asymmetric_loss(logits, targets, self.positive, self.negative, self.margin)
