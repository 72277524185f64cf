"""CoOp: learned vectors around a class name, in place of words."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn

from vtlite.backbones.clip import ImageTower
from vtlite.method import Method, Predictor
from vtlite.methods.prompt.contexts import (
    Position,
    PromptedHead,
    Texts,
    class_names,
    expect_context,
    first_context,
    temperature,
)
from vtlite.task import Task


@dataclass
class CoOp(Method):
    """Put learned vectors around each class name, in place of words, and train only these.

        logits = exp(logit_scale) f g_c;   g_c = normalised(text([start, v_1 ... v_M, name_c, end])),   V [M, D], or [C, M, D] with `per_class`

    For two-tower models; f is the normalised image feature. The gradient passes through the frozen
    text tower, which reads all classes once per step; the image features never change. Zhou et al.,
    "Learning to Prompt for Vision-Language Models", IJCV 2022, arXiv 2109.01134;
    github.com/KaiyangZhou/CoOp. On CLIP's ViT-B/16 (D = 512): 8,192 parameters, with `per_class`
    8,192 a class. The released code writes a full stop behind the name, of which the paper's
    formula knows nothing; nor does this file. `words` shorter than the context stand in its last
    places, with zeros before them (as ProGrad starts); CoOp takes as many vectors as words. Trained,
    the texts are constants: merged, it is the image tower and one product.
    """

    lr = 3e-2
    small = {"num_context": 3, "words": "an emoji of"}

    starts_elsewhere = "the context stands in the place of the words of a template"
    frozen_features = True
    two_towers = True
    measured_on = "vtlite-clip"

    num_context: int = 16  # vectors
    position: Position = "end"  # where the class name stands: "end", "middle" or "front"
    per_class: bool = False  # a context for each class, instead of one for all
    words: str = ""  # words to start from, e.g. "a photo of a"; none: N(0, 0.02^2)

    def __post_init__(self) -> None:
        expect_context(self, self.num_context, self.position)

    def build(self, clip: Any, task: Task) -> nn.Module:
        names = class_names(clip, task, self)
        texts = Texts(clip, names, self.num_context, self.position)
        sets = len(names) if self.per_class else 1
        context = first_context(clip, sets, self.num_context, words=self.words)
        return Predictor(ImageTower(clip), PromptedHead(texts, context, temperature(clip)), task)
