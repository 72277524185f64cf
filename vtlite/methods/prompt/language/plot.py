"""PLOT: several prompts for each class, matched with the places of the image."""

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
from vtlite.task import Task


@torch.no_grad()
def sinkhorn(cost: Tensor, eps: float, iterations: int) -> Tensor:
    """The plan [..., P, N] that carries equal weights of P places to equal weights of N prompts at
    the least cost [..., P, N], smoothed by the entropy: Sinkhorn's scaling of rows and columns."""
    P, N = cost.shape[-2:]
    kernel = torch.exp(-cost.float() / eps)  # exp(-20) needs more than half precision
    rows, columns = kernel.new_ones(*cost.shape[:-1], 1), kernel.new_ones(*cost.shape[:-2], N, 1)
    for _ in range(iterations):
        rows = 1 / P / (kernel @ columns)
        columns = 1 / N / (kernel.mT @ rows)
    return rows * kernel * columns.mT


class TransportHead(nn.Module):
    """Tokens [B, 1 + P, E] -> logits [B, C]: how well the places of the image match the prompts of
    each class."""

    scale: Tensor

    def __init__(
        self, texts: Texts, context: nn.Parameter, scale: Tensor, eps: float, iterations: int
    ) -> None:
        super().__init__()
        self.texts, self.context = texts, context
        self.eps, self.iterations = eps, iterations
        self.register_buffer("scale", scale, persistent=False)

    def forward(self, tokens: Tensor) -> Tensor:
        f = F.normalize(tokens[:, 1:], dim=-1)  # the places, without the class token
        g = F.normalize(self.texts(self.context), dim=-1)  # [N, C, E]
        similarity = torch.einsum("bpe,nce->bcpn", f, g)
        plan = sinkhorn(1 - similarity, self.eps, self.iterations)
        return self.scale * (plan * similarity).sum((2, 3))


@dataclass
class PLOT(Method):
    """Learn several prompts for each class, and match them with the places of the image by optimal
    transport.

        logits_c = exp(logit_scale) sum_pn T_pn S_pn,   S = F G_c^T [P, N],   T = argmin_T <T, 1 - S> - eps H(T)

    For two-tower models; F are the normalised features of P places, G_c those of the N prompts of
    class c, and the plan T gives each place 1/P and each prompt 1/N. Sinkhorn's iterations find it;
    the gradient passes through S alone. Chen et al., "PLOT: Prompt Learning with Optimal Transport
    for Vision-Language Models", ICLR 2023, arXiv 2210.01253; github.com/CHENGY12/PLOT. On CLIP's
    ViT-B/16: 32,768 parameters. The released code stops the iterations when they change little in
    the mean of a batch, so that an answer depends on its company; here their number is fixed. Its
    places are those of a ResNet's attention pooling; for a ViT see places.py. The pooled features that it adds on ImageNet are not here.
    """

    lr = 3e-2
    small = {"num_context": 4}

    starts_elsewhere = "contexts stand in the place of a template, and places in that of the image"
    unmergeable = "its contexts belong to the texts, and matching them is no linear layer"
    frozen_features = True
    two_towers = True
    measured_on = "vtlite-clip"

    num_prompts: int = 4  # N, for each class
    num_context: int = 16  # vectors of each prompt
    position: Position = "end"  # where the class name stands: "end", "middle" or "front"
    eps: float = 0.1  # how much the entropy smooths the plan
    iterations: int = 100  # of Sinkhorn

    def __post_init__(self) -> None:
        expect_context(self, self.num_context, self.position)
        self.expect(self.num_prompts >= 1, "num_prompts", "an integer of at least 1")
        # a cost of at most 2: below, its exponential is zero in single precision
        self.expect(self.eps >= 0.025, "eps", "of at least 0.025")
        self.expect(self.iterations >= 1, "iterations", "an integer of at least 1")

    def build(self, clip: Any, task: Task) -> nn.Module:
        texts = Texts(clip, class_names(clip, task, self), self.num_context, self.position)
        # drawn, never from words: contexts that start alike stay alike
        context = first_context(clip, self.num_prompts, 1, self.num_context)
        head = TransportHead(texts, context, temperature(clip), self.eps, self.iterations)
        return Predictor(PlaceTower(clip, "plot"), head, task)
