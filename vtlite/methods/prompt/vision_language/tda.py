"""TDA: a cache of sure test images, and one of unsure ones, filled while they are answered."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vtlite.method import Method, Train, Tuned
from vtlite.methods.adapter.two_towers import answering
from vtlite.methods.prompt.contexts import class_names
from vtlite.task import Task
from vtlite.zero_shot import class_features


class Kept(nn.Module):
    """For each class the `places` images with the lowest entropy so far: their features, and what
    was thought of them."""

    features: Tensor
    answers: Tensor
    entropy: Tensor

    def __init__(self, places: int, classes: int, width: int) -> None:
        super().__init__()
        self.register_buffer("features", torch.zeros(classes, places, width))
        self.register_buffer("answers", torch.zeros(classes, places, classes))
        self.free = 1 + math.log(classes)  # an entropy that no image has
        self.register_buffer("entropy", torch.full((classes, places), self.free))

    def tensors(self) -> list[Tensor]:
        return [self.features, self.answers, self.entropy]

    @staticmethod
    def put(kept: list[Tensor], f: Tensor, answer: Tensor, entropy: Tensor) -> None:
        """Take in an image of the class it is thought to be, in the place of the least sure one if
        it is surer."""
        label = int(answer.argmax())
        worst = int(kept[2][label].argmax())
        if entropy < kept[2][label, worst]:
            for tensor, value in zip(kept, (f, answer, entropy), strict=True):
                tensor[label, worst] = value

    def votes(self, kept: list[Tensor], f: Tensor, beta: float, values: Tensor) -> Tensor:
        """sum over the kept images of exp(-beta (1 - f key)) values: values [C, places, C] -> [C]"""
        here = kept[2] < self.free
        near = torch.exp(-beta * (1 - kept[0] @ f)) * here
        return torch.einsum("cp,cpk->k", near, values.to(near.dtype))


class Stream(nn.Module):
    """Features [B, E] -> logits [B, C], one image after the other: each is first taken into the
    caches and then answered with them. They begin as the last `keep` left them."""

    texts: Tensor
    scale: Tensor

    def __init__(self, texts: Tensor, scale: Tensor, method: TDA) -> None:
        super().__init__()
        C, E = texts.shape
        self.method = method
        self.register_buffer("texts", texts, persistent=False)
        self.register_buffer("scale", scale, persistent=False)
        self.sure, self.unsure = Kept(method.sure, C, E), Kept(method.unsure, C, E)

    def forward(self, f: Tensor) -> Tensor:
        return self.answer(f)[0]

    @torch.no_grad()
    def keep(self, f: Tensor) -> Tensor:
        """The same, and the caches stay as they are then."""
        logits, after = self.answer(f)
        for old, new in zip((*self.sure.tensors(), *self.unsure.tensors()), after, strict=True):
            old.copy_(new)
        return logits

    @torch.no_grad()
    def answer(self, f: Tensor) -> tuple[Tensor, list[Tensor]]:
        m, f = self.method, F.normalize(f, dim=-1)
        sure, unsure = ([t.clone() for t in k.tensors()] for k in (self.sure, self.unsure))
        own = torch.eye(len(self.texts), device=f.device)[:, None].expand_as(sure[1])
        zero_shot, answers = self.scale * f @ self.texts.T, []
        for one, logits in zip(f, zero_shot, strict=True):
            p = logits.softmax(0)
            entropy = -(p * logits.log_softmax(0)).sum()
            Kept.put(sure, one, p, entropy)
            if m.between[0] < entropy / math.log2(len(p)) < m.between[1]:
                Kept.put(unsure, one, p, entropy)
            positive = self.sure.votes(sure, one, m.betas[0], own)
            negative = self.unsure.votes(unsure, one, m.betas[1], unsure[1] > m.doubt)
            answers.append(logits + m.alphas[0] * positive - m.alphas[1] * negative)
        return torch.stack(answers), [*sure, *unsure]


@dataclass
class TDA(Method):
    """Keep the surest test images of each class with the class they were thought to be, and some
    unsure ones with the classes they are not; their votes are added to zero-shot CLIP.

        logits = exp(logit_scale) f t_c + a+ sum_k exp(-b+ (1 - f k)) onehot(k) - a- sum_k exp(-b- (1 - f k)) [p_k > doubt]

    For two-tower models; no label, no gradient, nothing to fit. Images come one after the other: a
    class keeps the `sure` ones of lowest entropy, and `unsure` ones of those whose entropy, over
    log2 C, lies `between`. Each batch goes on from the caches that `model.head.keep(features)` left,
    which are empty at first: `model(images)` itself changes nothing. Karmanov et al., "Efficient
    Test-Time Adaptation of Vision-Language Models", CVPR 2024, arXiv 2403.18293; github.com/kdiAAA/
    TDA, whose settings for ImageNet these are. No parameters. With more than one view of an image
    the code uses the mean of the surest tenth; this file takes the image as it is.
    """

    starts_elsewhere = "an image is in the cache when it is answered"
    unmergeable = "it keeps test images beside the model"
    frozen_features = True
    two_towers = True
    measured_on = "vtlite-clip"
    small = {"template": "an emoji of {}"}

    sure: int = 3  # images kept for each class
    unsure: int = 2
    alphas: tuple[float, float] = (2.0, 0.117)  # a+, a-: how much the votes count
    betas: tuple[float, float] = (5.0, 1.0)  # b+, b-: how fast a vote falls with distance
    between: tuple[float, float] = (0.2, 0.5)  # of the entropies of unsure images
    doubt: float = 0.03  # a class of higher probability is one that an unsure image may be
    template: str = "a photo of a {}"  # where a class name belongs

    def __post_init__(self) -> None:
        self.expect(self.sure >= 1, "sure", "an integer of at least 1")
        self.expect(self.unsure >= 1, "unsure", "an integer of at least 1")

    def build(self, clip: Any, task: Task) -> nn.Module:
        texts = class_features(clip, class_names(clip, task, self), self.template)
        return answering(clip, Stream(texts, clip.logit_scale.exp().detach(), self), task)

    def fit(self, model: Tuned, task: Task, train: Train) -> None:
        """Nothing: it learns from the images that it is asked about."""
