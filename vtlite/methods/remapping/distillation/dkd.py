"""DKD: what the teacher says of the true class, apart from what it says of the others."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from vtlite.methods.remapping.distillation.teaching import (
    Distillation,
    Student,
    answers_of,
    expect_classes,
)
from vtlite.ops.kd_loss import kd_loss
from vtlite.task import Task


def split(answers: Tensor, true: Tensor) -> tuple[Tensor, Tensor]:
    """Logits [B, C] -> those of the true class against all others together [B, 2], and those of the
    others among themselves [B, C - 1]."""
    mask = torch.zeros_like(answers, dtype=torch.bool).scatter(1, true[:, None], True)
    others = answers[~mask].view(len(answers), -1)
    return torch.stack([answers[mask], others.logsumexp(1)], 1), others


@dataclass
class DKD(Distillation):
    """Match how likely the true class is and how the others compare as two terms with weights of
    their own.

        loss = CE(z_s, y) + alpha T^2 KL(b_t || b_s) + beta T^2 KL(o_t || o_s),   p = softmax(z / T)

    b = (p_y, 1 - p_y) is the true class against the rest, o = softmax of the others' z / T alone.
    KD is alpha = 1 with beta = 1 - p_y of the teacher: the surer it is, the less of what it knows
    about the others comes across. Zhao et al., "Decoupled Knowledge Distillation", CVPR 2022, arXiv
    2203.08679; github.com/megvii-research/mdistiller (alpha 1, beta 8, T 4 on CIFAR-100). Half of
    ViT-B/16: 43,271,424 parameters. There both terms grow over the first 20 of 240 epochs; here the
    learning rate does.
    """

    alpha: float = 1.0
    beta: float = 8.0
    temperature: float = 4.0

    def __post_init__(self) -> None:
        super().__post_init__()
        self.expect(self.alpha >= 0, "alpha", "of at least 0")
        self.expect(self.beta >= 0, "beta", "of at least 0")
        self.expect(self.temperature > 0, "temperature", "above 0")

    def accept(self, student: Student, task: Task) -> None:
        expect_classes("dkd", task)

    def taught(self, model: Any, inputs: Tensor, targets: Tensor) -> Tensor:
        answers = model(inputs)
        T, teacher = self.temperature, answers_of(model, inputs)
        # T^2 KL at temperature one of what was softened before
        (b_s, o_s), (b_t, o_t) = split(answers / T, targets), split(teacher / T, targets)
        true, others = kd_loss(b_s, b_t, 1.0), kd_loss(o_s, o_t, 1.0)
        by_teacher = T**2 * (self.alpha * true + self.beta * others)
        return model.task.loss(answers, targets) + by_teacher
