"""UPT: the prompts of both towers, made by one small layer of attention from one sequence."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vtlite.backbones.clip import ImageTower
from vtlite.method import Method, Predictor
from vtlite.methods.prompt.both_towers import Normed, put_into_images
from vtlite.methods.prompt.contexts import Texts, class_names, temperature
from vtlite.task import Task


class Unified(nn.Module):
    """One sequence U [2 M, D] -> its first half for the texts [M, D], its second for the images [M,
    D image], after the vectors have looked at each other."""

    def __init__(self, num: int, dim: int, width: int, dropout: float) -> None:
        super().__init__()
        self.num, self.dropout = num, dropout
        self.vectors = nn.Parameter(0.02 * torch.randn(2 * num, dim))
        self.attention = nn.MultiheadAttention(dim, 1, dropout, batch_first=True)
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.fc1, self.fc2 = nn.Linear(dim, dim), nn.Linear(dim, dim)
        self.project = nn.Linear(dim, width)
        self.waiting: list[Tensor] = []  # the half that the images have left for the texts

    def halves(self) -> tuple[Tensor, Tensor]:
        u = self.vectors[None]  # a batch of one: the vectors of one sequence see each other
        mixed, _ = self.attention(u, u, u, need_weights=False)
        s = self.norm1(u + self.drop(mixed))
        h = s + self.drop(self.fc2(self.drop(F.relu(self.fc1(self.norm2(s))))))
        return h[0, : self.num], self.project(h[0, self.num :])

    def drop(self, x: Tensor) -> Tensor:
        return F.dropout(x, self.dropout, self.training)

    def for_texts(self) -> Tensor:
        return self.waiting.pop() if self.waiting else self.halves()[0]

    def forward(self) -> Tensor:
        """The images' half; the other waits for the texts, so that both are of one pass, with one
        dropout."""
        texts, images = self.halves()
        self.waiting[:] = [texts]
        return images


class UnifiedHead(nn.Module):
    """Image features [B, E] -> logits [B, C], the context of the texts from `unified`."""

    scale: Tensor

    def __init__(self, texts: Texts, unified: Unified, scale: Tensor) -> None:
        super().__init__()
        self.texts, self.unified = texts, unified
        self.register_buffer("scale", scale, persistent=False)

    def forward(self, f: Tensor) -> Tensor:
        g = F.normalize(self.texts(self.unified.for_texts()[None]), dim=-1)
        return self.scale * F.normalize(f, dim=-1) @ g.T


@dataclass
class UPT(Method):
    """Learn one sequence of vectors, let them look at each other once, and use one half as the
    context of the texts, the other as prompts of the images.

        S = LN1(U + SA(U)),   H = S + W2 relu(W1 LN2(S));   V_text = H[:M],   V_image = H[M:] W^T + b,   U [2 M, D]

    The image prompts enter before the first block and flow on. SA has one head; dropout stands
    behind it and behind both layers. U from N(0, 0.02^2), all else as layers of PyTorch start. For
    two-tower models. Zang et al., "Unified Vision and Language Prompt Learning", arXiv 2210.07225
    (2022); github.com/yuhangzang/UPT. On CLIP's ViT-B/16 with M = 4: 1,976,064 parameters, of which
    the 2 M vectors that come out are all that has to be kept. The code gives the attention 2 M
    sequences of length one, so that nothing mixes; here it is the paper's.
    """

    lr = 3e-3
    starts_elsewhere = "its vectors take part in every softmax from the first step"
    unmergeable = "its prompts are extra tokens, which no weight of a tower can stand for"
    two_towers = True
    measured_on = "vtlite-clip"

    num_context: int = 4  # M, vectors for each tower
    dropout: float = 0.1

    def __post_init__(self) -> None:
        self.expect(self.num_context >= 1, "num_context", "an integer of at least 1")
        self.expect(0 <= self.dropout < 1, "dropout", "in [0, 1)")

    def build(self, clip: Any, task: Task) -> nn.Module:
        texts = Texts(clip, class_names(clip, task, self), self.num_context)
        D, width = clip.text.embed_dim, clip.visual.embed_dim
        unified = Unified(self.num_context, D, width, self.dropout)
        put_into_images(clip.visual, [Normed(unified, clip.visual.norm_pre)], self.num_context)
        return Predictor(ImageTower(clip), UnifiedHead(texts, unified, temperature(clip)), task)
