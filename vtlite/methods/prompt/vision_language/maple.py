"""MaPLe: prompts in the blocks of both towers, those of the images made of those of the texts."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from vtlite.backbones.clip import ImageTower
from vtlite.method import Method, Predictor
from vtlite.methods.prompt.both_towers import Normed, put_into_images, put_into_texts, shared_depth
from vtlite.methods.prompt.contexts import (
    PromptedHead,
    Texts,
    class_names,
    first_context,
    temperature,
)
from vtlite.task import Task


class Coupling(nn.Module):
    """The prompts of an image block, made of the context of the text block beside it: F P."""

    def __init__(self, context: nn.Parameter, project: nn.Module) -> None:
        super().__init__()
        self.context, self.project = context, project  # [.., M, D text]

    def forward(self) -> Tensor:
        return self.project(self.context.flatten(0, -2))  # [M, D image]


@dataclass
class MaPLe(Method):
    """Put learned vectors into the first blocks of both towers: those of the texts are learned,
    those of the images are a linear map of them.

        text block j:  [start, P_j, name, end],   image block j:  [class token, patches, F_j P_j],   j < depth;   from there on the last ones flow on

    P_j [M, D text], F_j [D image, D text] with a bias. P_0 starts as the first M of `words`, whose
    others stay before the class names; the others from N(0, 0.02^2), all F_j alike. For two-tower
    models. Khattak et al., "MaPLe: Multi-modal Prompt Learning", CVPR 2023, arXiv 2210.03117;
    github.com/muzairkhattak/multimodal-prompt-learning. On CLIP's ViT-B/16: 3,555,072 parameters
    with M = 2 and depth 9. `coupled=False` gives the images vectors of their own, drawn from N(0,
    0.02^2): the independent prompts that the paper compares with (IVLP), 23,040 parameters.
    """

    lr = 3e-2
    small = {"words": "an emoji of a"}

    starts_elsewhere = "its first vectors take part in every softmax from the first step"
    unmergeable = "its prompts are extra tokens, which no weight of a tower can stand for"
    two_towers = True
    measured_on = "vtlite-clip"

    num_context: int = 2  # M, vectors in each block
    depth: int = 9  # blocks of each tower that get vectors of their own, if it has as many
    words: str = "a photo of a"  # in front of the class names; none: P_0 from N(0, 0.02^2)
    coupled: bool = True  # image prompts made of the text's; without, of their own

    def __post_init__(self) -> None:
        self.expect(self.num_context >= 1, "num_context", "an integer of at least 1")
        self.expect(self.depth >= 1, "depth", "an integer of at least 1")

    def build(self, clip: Any, task: Task) -> nn.Module:
        names, M, D = class_names(clip, task, self), self.num_context, clip.text.embed_dim
        learned, kept = self.words.split()[:M], self.words.split()[M:]
        texts = Texts(clip, tuple(" ".join([*kept, name]) for name in names), M)
        first = first_context(clip, 1, M, words=" ".join(learned))
        deep = [
            nn.Parameter(0.02 * torch.randn(M, D))
            for _ in range(shared_depth(clip, self.depth) - 1)
        ]
        put_into_texts(clip.text, deep)
        made = self.image_prompts(clip.visual.embed_dim, [first, *deep])
        made[0] = Normed(made[0], clip.visual.norm_pre)
        put_into_images(clip.visual, made, M)
        return Predictor(ImageTower(clip), PromptedHead(texts, first, temperature(clip)), task)

    def image_prompts(self, width: int, contexts: list[nn.Parameter]) -> list[nn.Module]:
        """What makes the prompts of each image block: a linear map for each, all starting alike; or
        vectors of their own."""
        if not self.coupled:
            own = [nn.Parameter(0.02 * torch.randn(self.num_context, width)) for _ in contexts]
            return [Coupling(prompts, nn.Identity()) for prompts in own]
        first = nn.Linear(contexts[0].shape[-1], width)
        return [Coupling(context, copy.deepcopy(first)) for context in contexts]
