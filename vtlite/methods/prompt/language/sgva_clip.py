"""SgVA-CLIP: a context in the texts and an adapter of the image feature, taught by one another."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vtlite.method import Method, Predictor, Train, Tuned
from vtlite.methods.prompt.contexts import (
    Position,
    Texts,
    class_names,
    expect_context,
    first_context,
    temperature,
)
from vtlite.task import Task
from vtlite.training import extract_features


class GuidedAdapter(nn.Module):
    """Features before CLIP's projection [B, D] -> logits [B, C]: the nearest prototype of adapted
    images, blended with the nearest text."""

    scale: Tensor
    prototypes: Tensor
    blend: Tensor

    def __init__(
        self,
        texts: Texts,
        context: nn.Parameter,
        scale: Tensor,
        projection: Tensor,
        hidden: int,
        blend: float,
    ) -> None:
        super().__init__()
        self.texts, self.context, self.projection = texts, context, projection
        D, C = len(projection), len(texts.words)
        self.up, self.down = nn.Linear(D, hidden, bias=False), nn.Linear(hidden, D, bias=False)
        self.alpha = nn.Parameter(torch.tensor(0.5))  # the adapter's share
        self.register_buffer("scale", scale, persistent=False)
        self.register_buffer("prototypes", torch.zeros(C, D))  # until it has seen images
        self.register_buffer("blend", torch.tensor(blend))

    def adapted(self, h: Tensor) -> Tensor:
        """Normalised features of the adapter [B, D]."""
        v = self.alpha * self.down(F.relu(self.up(h))) + (1 - self.alpha) * h
        return F.normalize(F.relu(v), dim=-1)

    def by_texts(self, h: Tensor, g: Tensor) -> Tensor:
        return self.scale * F.normalize(h @ self.projection, dim=-1) @ g.T

    def read(self) -> Tensor:
        """The normalised features of the classes' texts [C, E]."""
        return F.normalize(self.texts(self.context), dim=-1)

    def forward(self, h: Tensor) -> Tensor:
        by_images = self.scale * self.adapted(h) @ self.prototypes.T
        return self.blend * by_images + (1 - self.blend) * self.by_texts(h, self.read())


def among_themselves(v: Tensor, labels: Tensor, C: int, scale: Tensor) -> Tensor:
    """The loss of images [B, D] as each other's support: the prototype of a class is the mean of
    its other images in the batch. An image without another of its class has no loss."""
    member = F.one_hot(labels, C).to(v.dtype)  # [B, C]
    counts = member.sum(0) - member  # [B, C]: without the image itself
    sums = (v @ v.T).fill_diagonal_(0) @ member  # of the cosines with the others
    logits = scale * sums / counts.clamp_min(1)
    logits = logits.masked_fill(counts == 0, -torch.inf)
    asked = counts.gather(1, labels[:, None]).squeeze(1) > 0
    losses = F.cross_entropy(logits[asked], labels[asked], reduction="sum")
    return losses / asked.sum().clamp_min(1)


@dataclass
class SgVACLIP(Method):
    """Learn a context and a visual adapter together: the adapter keeps images of a class together,
    and is taught by the texts what they mean.

        v = normalised(relu(alpha W2 relu(W1 h) + (1 - alpha) h));   logits = exp(logit_scale) (blend v p_c + (1 - blend) f g_c)
        loss = CE(f g_c) + CE(v p_c) + weight CE(softmax(f g_c / T), softmax(v P g_c / T)),   each with exp(logit_scale)

    For two-tower models; h is the image feature before CLIP's projection P and f the one behind it,
    normalised; g_c is the text of a class behind a learned context, p_c the mean of v over its
    training images. The three terms: CoOp's for the context; images among themselves, and what the
    texts say (without gradient), for the adapter. Peng et al., "SgVA-CLIP: Semantic-guided Visual
    Adapting of Vision-Language Models for Few-shot Image Classification", IEEE TMM 2023, arXiv
    2211.16191; github.com/FannierPeng/SgVA-CLIP. On CLIP's ViT-B/16: 2,361,345 parameters. The
    original draws episodes of support and query images; here the images of a batch are each other's
    support, none its own, and the prototypes of all training images are kept at the end. It
    computes h back from f by a pseudo-inverse, has two optimisers, which AdamW need not, draws ten
    values of blend on validation images (`search`: eleven even ones), and does not detach the
    teacher; alpha, meant to be learned, stays at 0.5 in its half precision.
    """

    lr = 1e-2
    lrs = (3e-4, 1e-3, 3e-3, 1e-2)
    small = {"num_context": 3, "words": "an emoji of", "search": True}

    starts_elsewhere = "prototypes have a share in the answer"
    unmergeable = "its adapter has ReLUs inside, so it is no linear change of the weights"
    frozen_features = True
    two_towers = True
    measured_on = "vtlite-clip"

    num_context: int = 4  # vectors
    position: Position = "end"  # where the class name stands: "end", "middle" or "front"
    words: str = "a photo of a"  # words to start from; none: N(0, 0.02^2)
    widening: int = 2  # how many times wider the adapter is than the features
    weight: float = 1.0  # of what the texts teach
    temperature: float = 5.0  # T
    blend: float = 0.5  # the share of the prototypes in the answer
    search: bool = False  # choose blend on validation images

    def __post_init__(self) -> None:
        expect_context(self, self.num_context, self.position)
        self.expect(self.widening >= 1, "widening", "an integer of at least 1")
        self.expect(self.weight >= 0, "weight", "of at least 0")
        self.expect(self.temperature > 0, "temperature", "above 0")
        self.expect(0 <= self.blend <= 1, "blend", "in [0, 1]")

    def build(self, clip: Any, task: Task) -> nn.Module:
        texts = Texts(clip, class_names(clip, task, self), self.num_context, self.position)
        context = first_context(clip, 1, self.num_context, words=self.words)
        scale, projection = temperature(clip), clip.visual_projection
        hidden = self.widening * len(projection)
        head = GuidedAdapter(texts, context, scale, projection, hidden, self.blend)
        return Predictor(clip.visual, head, task)

    def loss(self, model: Any, inputs: Tensor, targets: Tensor) -> Tensor:
        h, head, T = model.features(inputs), model.head, self.temperature
        v, g = head.adapted(h), head.read()
        by_texts = head.by_texts(h, g)
        taught = head.scale * v @ head.projection @ g.detach().T
        teaching = F.cross_entropy(taught / T, F.softmax(by_texts.detach() / T, dim=1))
        images = among_themselves(v, targets, by_texts.shape[1], head.scale)
        return F.cross_entropy(by_texts, targets) + images + self.weight * teaching

    def fit(self, model: Tuned, task: Task, train: Train) -> None:
        train(model, task.train)
        train.once(model, lambda: self.fill(model, task.train))
        if self.search and task.val is not None:
            train.once(model, lambda: self.choose(model, task.val))

    @torch.no_grad()
    def fill(self, model: Tuned, data: Any) -> None:
        """Keep the mean adapted feature of each class's training images."""
        h, labels = extract_features(model, data).tensors
        member = F.one_hot(labels, model.num_classes).to(h)
        sums = member.T @ model.head.adapted(h)
        model.head.prototypes.copy_(sums / member.sum(0).clamp_min(1)[:, None])

    @torch.no_grad()
    def choose(self, model: Tuned, data: Any) -> None:
        """Set the blend to the best of eleven on these images."""
        (h, labels), blend = extract_features(model, data).tensors, model.head.blend

        def right(value: float) -> int:
            blend.fill_(value)
            return int((model.head(h).argmax(1) == labels.to(h.device)).sum())

        blend.fill_(max((i / 10 for i in range(11)), key=right))
