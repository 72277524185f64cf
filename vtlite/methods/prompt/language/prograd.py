"""ProGrad: CoOp's gradient without the part that contradicts zero-shot CLIP."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vtlite.method import Predictor
from vtlite.methods.prompt.contexts import PromptedHead
from vtlite.methods.prompt.language.coop import CoOp
from vtlite.task import Task
from vtlite.zero_shot import class_features


class GuidedHead(PromptedHead):
    """A prompted head that also knows what zero-shot CLIP answers."""

    fixed: Tensor

    def __init__(self, head: PromptedHead, fixed: Tensor) -> None:
        super().__init__(head.texts, head.context, head.scale)
        self.register_buffer("fixed", fixed, persistent=False)  # made anew from the class names

    def zero_shot(self, f: Tensor) -> Tensor:
        """Features [B, E] -> the logits of the hand-written template [B, C]."""
        return self.scale * F.normalize(f, dim=-1) @ self.fixed.T


def aligned(gradient: Tensor, general: Tensor, strength: float) -> Tensor:
    """The gradient less its part against the direction `general`, if it has such a part."""
    square = general.square().sum().clamp_min(torch.finfo(general.dtype).tiny)  # it may be zero
    along = (gradient * general).sum() / square
    return gradient - strength * along.clamp(max=0) * general


@dataclass
class ProGrad(CoOp):
    """Train CoOp's context, but drop the part of its gradient that contradicts zero-shot CLIP.

        g = g_d - strength min(0, <g_d, u>) u,   u = g_g / |g_g|;   g_d of CE(z, y),   g_g of T^2 KL(softmax(z_0 / T) || softmax(z / T))

    For two-tower models; z_0 are the logits of the hand-written `template`. The divergence only
    gives a direction and is no part of the loss; T^2 is a length, and changes nothing. Each tensor
    is projected by itself, here the context alone. Zhu et al., "Prompt-aligned Gradient for Prompt
    Tuning", ICCV 2023, arXiv 2205.14865; github.com/BeierZhu/Prompt-align. On CLIP's ViT-B/16:
    8,192 parameters, as CoOp. The optimiser here is AdamW, whose moments mix projected gradients of
    several steps, and scale each number by itself; the paper's is SGD.
    """

    lr = 1e-2
    small = {"num_context": 3, "words": "an emoji of", "template": "an emoji of {}"}

    starts_elsewhere = "a context longer than its words begins with zeros"

    words: str = "a photo of a"  # words to start from, in the context's last places
    template: str = "a photo of a {}"  # of the zero-shot answers, with a place for the name
    temperature: float = 1.0  # T
    strength: float = 1.0  # how much of the contradicting part is dropped

    def __post_init__(self) -> None:
        super().__post_init__()
        self.expect(self.temperature > 0, "temperature", "above 0")
        self.expect(0 <= self.strength <= 1, "strength", "in [0, 1]")

    def build(self, clip: Any, task: Task) -> nn.Module:
        network: Any = super().build(clip, task)
        names = tuple(name.replace("_", " ") for name in task.classes)
        head = GuidedHead(network.head, class_features(clip, names, self.template))
        return Predictor(network.backbone, head, task)

    def backward(self, model: Any, inputs: Tensor, targets: Tensor) -> Tensor:
        f, T = model.features(inputs), self.temperature
        logits = model.head(f)
        loss = model.task.loss(logits, targets)
        with torch.no_grad():
            soft = F.softmax(model.head.zero_shot(f) / T, dim=1)
        general = F.cross_entropy(logits / T, soft)  # the divergence but for a constant
        parameters = [p for p in model.parameters() if p.requires_grad]
        by_labels = torch.autograd.grad(loss, parameters, retain_graph=True)
        by_general = torch.autograd.grad(general, parameters)
        for p, g, u in zip(parameters, by_labels, by_general, strict=True):
            p.grad = aligned(g, u, self.strength)
        return loss.detach()
