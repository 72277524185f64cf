"""LASP: learned prompts that classify the hand-written ones of their class, text to text."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vtlite.backbones.clip import ImageTower
from vtlite.backbones.stages import attention_blocks
from vtlite.method import Method, Predictor, Tuned
from vtlite.methods.adapter.two_towers import FixedTexts
from vtlite.methods.prompt.contexts import (
    Position,
    Texts,
    class_names,
    expect_context,
    first_context,
    temperature,
)
from vtlite.task import Task
from vtlite.zero_shot import class_features


class AwareHead(nn.Module):
    """Features [B, E] -> logits [B, C], the mean over groups of contexts; texts of more names than
    the C classes only serve the alignment."""

    scale: Tensor
    written: Tensor

    def __init__(
        self,
        texts: Texts,
        context: nn.Parameter,
        scale: Tensor,
        written: Tensor,
        C: int,
        noise: float,
    ) -> None:
        super().__init__()
        self.texts, self.context, self.C, self.noise = texts, context, C, noise
        self.offset = nn.Parameter(torch.zeros(written.shape[-1]))
        self.register_buffer("scale", scale, persistent=False)
        self.register_buffer("written", written, persistent=False)  # [G, templates, names, E]

    def prompts(self) -> Tensor:
        """The normalised features of the learned prompts [G, names, E]."""
        return F.normalize(self.texts(self.context) + self.offset, dim=-1)

    def answer(self, f: Tensor, prompts: Tensor) -> Tensor:
        return self.scale * F.normalize(f, dim=-1) @ prompts[:, : self.C].mean(0).T

    def forward(self, f: Tensor) -> Tensor:
        return self.answer(f, self.prompts())

    def merged(self) -> FixedTexts:
        return FixedTexts(self.prompts()[:, : self.C].mean(0), self.scale)

    def alignment(self, prompts: Tensor) -> Tensor:
        """The loss of the learned prompts as a classifier of the hand-written ones."""
        h = self.written
        if self.training and torch.rand(()) < 0.5:
            h = h + self.noise * torch.randn_like(h)
        logits = self.scale * h @ prompts[:, None].mT  # [G, templates, names, names of prompts]
        names = torch.arange(h.shape[2], device=h.device).expand(h.shape[:3])
        return F.cross_entropy(logits.flatten(0, 2), names.flatten())


@dataclass
class LASP(Method):
    """Train a context that also classifies hand-written texts of the classes, text to text, so that
    it keeps its place among them.

        loss = CE(logits, y) + weight mean_lj CE(exp(logit_scale) h_lj T^T, j);   t_c = normalised(text([start, V, name_c, end]) + b),   logits = exp(logit_scale) f t_c

    For two-tower models; h_lj is the feature of name j in the hand-written template l, and in half
    of the steps noise is added to all h. `others` are names of classes without images (LASP-V),
    which only take part in the second term. With `num_groups` G there are G contexts, each aligned
    with its share of the templates, and their logits are averaged. With `norms` the norms of the
    image tower's blocks train too, at a tenth of the rate. Bulat & Tzimiropoulos, "LASP:
    Text-to-Text Optimization for Language-Aware Soft Prompting of Vision & Language Models", CVPR
    2023, arXiv 2210.01115; github.com/1adrianb/lasp. On CLIP's ViT-B/16: 39,424 parameters, 2,560
    without norms. The original has 35 templates and, in its released settings, one group; those
    here are fewer.
    """

    lr = 3e-2
    small = {
        "num_context": 3,
        "words": "an emoji of",
        "templates": ("an emoji of {}", "{}", "an emoji with {}", "a picture of {}"),
    }

    frozen_features = True  # but for the norms, where they train
    two_towers = True
    measured_on = "vtlite-clip"

    num_context: int = 4  # vectors
    position: Position = "end"  # where the class name stands: "end", "middle" or "front"
    words: str = "a photo of a"  # words to start from; none: N(0, 0.02^2)
    num_groups: int = 1  # G
    weight: float = 5.0  # of the alignment with hand-written texts
    noise: float = 0.05  # its spread, added to the hand-written features in half of the steps
    norms: bool = True  # train the norms of the image tower's blocks
    others: tuple[str, ...] = ()  # names of further classes, to keep apart from the task's
    templates: tuple[str, ...] = (
        "a photo of a {}",
        "a photo of the {}",
        "a photo of one {}",
        "a photo of a large {}",
        "a photo of a small {}",
        "a bright photo of a {}",
        "a dark photo of a {}",
        "a drawing of a {}",
        "a picture of a {}",
        "a {} in a scene",
    )

    def __post_init__(self) -> None:
        expect_context(self, self.num_context, self.position)
        self.expect(self.num_groups >= 1, "num_groups", "an integer of at least 1")
        self.expect(self.weight >= 0, "weight", "of at least 0")
        self.expect(self.noise >= 0, "noise", "of at least 0")
        shared = len(self.templates) > 0 and len(self.templates) % self.num_groups == 0
        self.expect(shared, "templates", f"that {self.num_groups} groups can share out evenly")

    def build(self, clip: Any, task: Task) -> nn.Module:
        names = class_names(clip, task, self, others=self.others)
        texts = Texts(clip, names, self.num_context, self.position)
        context = first_context(clip, self.num_groups, 1, self.num_context, words=self.words)
        each = [class_features(clip, names, template) for template in self.templates]
        written = torch.stack(each).unflatten(0, (self.num_groups, -1))
        scale, C = temperature(clip), task.num_classes
        if self.norms:
            for block in attention_blocks(clip.visual, "lasp", ("norm1", "norm2")):
                block.norm1.requires_grad_(True)
                block.norm2.requires_grad_(True)
        head = AwareHead(texts, context, scale, written, C, self.noise)
        return Predictor(ImageTower(clip), head, task)

    def groups(self, model: Tuned) -> list[dict[str, Any]]:
        norms = [p for p in model.backbone.parameters() if p.requires_grad]
        texts = [p for p in model.head.parameters() if p.requires_grad]
        return [{"params": texts}, {"params": norms, "scale": lambda progress: 0.1}]

    def loss(self, model: Any, inputs: Tensor, targets: Tensor) -> Tensor:
        f, head = model.features(inputs), model.head
        prompts = head.prompts()  # read once, for both terms
        by_images = model.task.loss(head.answer(f, prompts), targets)
        return by_images + self.weight * head.alignment(prompts)
