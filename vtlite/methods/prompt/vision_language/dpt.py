"""DPT: prompts in both towers, those of the last image block made of the classes that the image is
likely to show."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vtlite.backbones.clip import CLIP, ImageTower
from vtlite.method import Method, Predictor, Train, Tuned
from vtlite.methods.prompt.contexts import (
    PromptedHead,
    Texts,
    class_names,
    first_context,
    temperature,
)
from vtlite.methods.prompt.vision.vpt_deep import PromptedBlock
from vtlite.task import Task
from vtlite.zero_shot import class_features


class ClassAware(nn.Module):
    """The last block of the image tower, in front of which each image gets a prompt for each of its
    `likely` classes: tokens [B, N, D] -> [B, N, D].

        Q = W_t g(likely classes),   O = softmax(Q Wq (X Wk)^T / sqrt(32)) X Wv,   prompts = LN(O + Q),   X = [tokens, extra]
    """

    def __init__(self, block: nn.Module, extra: int, sizes: tuple[int, int, int]) -> None:
        super().__init__()
        E, D, C = sizes
        self.block = block
        self.from_text = nn.Linear(E, D)
        self.query, self.key = nn.Linear(D, 32, bias=False), nn.Linear(D, 32, bias=False)
        self.value = nn.Linear(D, D, bias=False)
        self.norm1, self.norm2 = nn.LayerNorm(D), nn.LayerNorm(D)
        self.extra = nn.Parameter(0.02 * torch.randn(extra, D))
        self.classify = nn.Linear(D, C, bias=False)
        self.texts: Tensor | None = None  # [B, K, E] of the likely classes; None: a plain block
        self.answers: Tensor | None = None  # [B, K, C], what the prompts say of themselves

    def forward(self, x: Tensor, **named: Any) -> Tensor:
        if self.texts is None:
            return self.block(x, **named)
        seen = torch.cat([x.detach(), self.extra.expand(len(x), -1, -1)], dim=1)
        q = self.from_text(self.texts)  # [B, K, D]
        scores = self.query(q) @ self.key(seen).mT / math.sqrt(32)
        o = self.value(scores.softmax(-1) @ seen)
        self.answers = self.classify(self.norm1(o))
        prompts = self.norm2(o + q)
        return self.block(torch.cat([x, prompts], dim=1), **named)[:, : x.shape[1]]


class TwoPasses(Predictor):
    """Images [B, 3, S, S] -> logits [B, C]: a pass without prompts says which classes are likely, a
    second one with them is the answer."""

    zero_shot: Tensor

    def __init__(
        self, clip: CLIP, head: PromptedHead, task: Task, zero_shot: Tensor, num_likely: int
    ) -> None:
        super().__init__(ImageTower(clip), head, task)
        self.num_likely, self.guided = num_likely, False
        self.register_buffer("zero_shot", zero_shot, persistent=False)

    def parts(self) -> tuple[list[PromptedBlock], ClassAware]:
        *prompted, last = self.backbone.visual.blocks
        return prompted, last

    def plain(self, images: Tensor) -> Tensor:
        """Normalised features without any prompt [B, E], which need no gradient."""
        prompted, last = self.parts()
        last.texts = None
        for block in prompted:
            block.on = False
        try:
            with torch.no_grad():
                return F.normalize(self.backbone(images), dim=-1)
        finally:
            for block in prompted:
                block.on = True

    def forward(self, images: Tensor) -> Tensor:
        return self.answer(images)[0]

    def answer(self, images: Tensor) -> tuple[Tensor, ...]:
        """Logits [B, C]; the prompted and the plain image features [B, E], the texts [C, E], all
        normalised; the likely classes [B, K] and what their prompts say of themselves [B, K, C]."""
        f0, last = self.plain(images), self.parts()[1]
        head: Any = self.head
        likely = (f0 @ self.zero_shot.T).topk(self.num_likely, dim=1).indices
        texts = head.texts(head.context)  # not normalised for the prompts
        last.texts = texts[likely]
        f, g = F.normalize(self.backbone(images), dim=-1), F.normalize(texts, dim=-1)
        answers, last.texts, last.answers = last.answers, None, None
        assert answers is not None
        return head.scale * f @ g.T, f, f0, g, likely, answers


@dataclass
class DPT(Method):
    """Learn a context for the texts and prompts for all image blocks but the last, where each image
    gets prompts made of its likeliest classes.

        loss = CE(logits, y) + weight CE(what the prompt of class y says of itself, y),   the second where y is among the likely ones

    The K likely classes are zero-shot CLIP's, of an image pass without prompts; their learned texts
    ask the image's tokens, and `extra` learned ones, by one head of attention, and the answers
    are the prompts. During the first `guidance` of the training zero-shot CLIP guides: CE(f0 g) +
    CE(f g0) + 0.1 CE(f g) in the place of CE(logits), f0 and g0 its features. For two-tower models.
    Xing et al., "Dual Modality Prompt Tuning for Vision-Language Pre-Trained Model", IEEE TMM 2023,
    arXiv 2208.08340; github.com/fanrena/DPT. On CLIP's ViT-B/16: 1,136,384 parameters and 768 a
    class. There images and texts have learning rates of their own (0.01, 0.002); here one.
    """

    lr = 3e-3
    starts_elsewhere = "its first prompts take part in every softmax from the first step"
    unmergeable = "its prompts are extra tokens, which no weight of a tower can stand for"
    two_towers = True
    measured_on = "vtlite-clip"
    small = {"num_context": 4, "num_prompts": 4, "num_likely": 3, "template": "an emoji of {}"}

    num_context: int = 16  # vectors of the texts
    num_prompts: int = 10  # in each image block but the last, and learned tokens beside the image's
    num_likely: int = 10  # K, classes that an image gets prompts of
    weight: float = 0.3  # of what the prompts say of themselves
    guidance: float = 0.3  # the share of the training that zero-shot CLIP guides
    template: str = "a photo of a {}"  # zero-shot CLIP's

    def __post_init__(self) -> None:
        for name in ("num_context", "num_prompts", "num_likely"):
            self.expect(getattr(self, name) >= 1, name, "an integer of at least 1")
        self.expect(self.weight >= 0, "weight", "of at least 0")
        self.expect(0 <= self.guidance <= 1, "guidance", "in [0, 1]")

    def build(self, clip: Any, task: Task) -> nn.Module:
        names, visual = class_names(clip, task, self), clip.visual
        zero_shot, D = class_features(clip, names, self.template), visual.embed_dim
        for i in range(len(visual.blocks) - 1):
            prompts = 0.02 * torch.randn(self.num_prompts, D)
            block = PromptedBlock(visual.blocks[i], prompts, visual.num_prefix_tokens, 0.0)
            visual.blocks[i] = block
        sizes = zero_shot.shape[1], D, len(names)
        visual.blocks[-1] = ClassAware(visual.blocks[-1], self.num_prompts, sizes)
        context = first_context(clip, 1, self.num_context)
        head = PromptedHead(Texts(clip, names, self.num_context), context, temperature(clip))
        return TwoPasses(clip, head, task, zero_shot, min(self.num_likely, len(names)))

    def loss(self, model: Any, inputs: Tensor, targets: Tensor) -> Tensor:
        network, ce = model.network, model.task.loss
        logits, f, f0, g, likely, answers = network.answer(inputs)
        loss = ce(logits, targets)
        if network.guided:
            scale = network.head.scale
            loss = ce(scale * f0 @ g.T, targets) + ce(scale * f @ network.zero_shot.T, targets)
            loss = loss + 0.1 * ce(logits, targets)
        row, place = (likely == targets[:, None]).nonzero(as_tuple=True)
        if len(row):
            loss = loss + self.weight * ce(answers[row, place], targets[row])
        return loss

    def fit(self, model: Tuned, task: Task, train: Train) -> None:
        def guide(progress: float) -> None:
            model.network.guided = progress < self.guidance

        train(model, task.train, each=guide)
        model.network.guided = False
