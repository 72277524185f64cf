"""FitNet: a hint from the middle of the teacher."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from vtlite.backbones.stages import stages
from vtlite.method import Train, Tuned
from vtlite.methods.remapping.distillation.layers import connectors, look, matched, same_size
from vtlite.methods.remapping.distillation.teaching import (
    Distillation,
    Student,
    answers_of,
    as_classes,
)
from vtlite.ops.kd_loss import kd_loss
from vtlite.task import Task


@dataclass
class FitNet(Distillation):
    """Train the first half of a student to give the teacher's map in the middle, then all of it to
    give the teacher's answers.

        first: mean (r(F_s) - F_t)^2,   then: (1 - weight) CE(z_s, y) + weight T^2 KL(softmax(z_t / T) || softmax(z_s / T))

    F [B, D, h, w] are maps of one layer each, the larger averaged to the size of the other; r, a 1x1
    convolution to the teacher's width, trains with the student and is then thrown away. Romero et
    al., "FitNets: Hints for Thin Deep Nets", ICLR 2015, arXiv 1412.6550. Half of ViT-B/16:
    43,271,424 parameters. The paper's r has a kernel that makes up for the size of the maps and, for
    networks of maxout and ReLU, a nonlinearity behind it, which tokens of a ViT do not have. It
    lessens the teacher's weight as training goes on, here it stays. The usual repositories
    (github.com/HobbitLong/RepDistiller, github.com/megvii-research/mdistiller) train once, on
    labels and 100 times the hint.
    """

    hint_epochs: int = 5  # on the hint alone, before those that `fit` is asked for
    layers: tuple[int, ...] | None = None  # of the student, from 1; the one in the middle
    teacher_layers: tuple[int, ...] | None = None  # one for each; that as deep, if not given
    temperature: float = 4.0
    weight: float = 0.5  # of the teacher's answer against the label's

    def __post_init__(self) -> None:
        super().__post_init__()
        self.expect(self.hint_epochs >= 1, "hint_epochs", "of at least 1")
        self.expect(self.temperature > 0, "temperature", "above 0")
        self.expect(0 <= self.weight <= 1, "weight", "in [0, 1]")

    def pairs(self, student: Student) -> list[tuple[int, int]]:
        middle = ((len(stages(student.backbone)) + 1) // 2,)
        layers = middle if self.layers is None else self.layers
        return matched(self, student, layers, self.teacher_layers)

    def accept(self, student: Student, task: Task) -> None:
        self.pairs(student)

    def teach(self, model: Tuned, task: Task, train: Train) -> None:
        student = model.network
        student.connectors = connectors(model, task, self.pairs(student))
        train(model, task.train, epochs=self.hint_epochs)
        student.connectors = None
        train(model, task.train)

    def taught(self, model: Any, inputs: Tensor, targets: Tensor) -> Tensor:
        student = model.network
        if student.connectors is None:
            answers, teacher = model(inputs), answers_of(model, inputs)
            soft, aim = (as_classes(z, model.task) for z in (answers, teacher))
            by_teacher = kd_loss(soft, aim, self.temperature)
            return (1 - self.weight) * model.task.loss(answers, targets) + self.weight * by_teacher
        with torch.no_grad():
            _, wanted = look(student.teacher.network, inputs)
        _, found = look(student, inputs)
        hints = [
            F.mse_loss(*same_size(regress(found[s - 1]), wanted[t - 1]))
            for regress, (s, t) in zip(student.connectors, self.pairs(student), strict=True)
        ]
        return torch.stack(hints).sum()
