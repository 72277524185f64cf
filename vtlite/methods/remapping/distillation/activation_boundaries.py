"""Activation boundaries: which neurons fire."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from vtlite.method import Train, Tuned
from vtlite.methods.remapping.distillation.layers import connectors, look, matched, same_size
from vtlite.methods.remapping.distillation.teaching import Distillation, Student
from vtlite.task import Task

NEURONS = "mlp.fc1"  # a Transformer's lie before the GELU of its MLP


def boundary(s: Tensor, t: Tensor, margin: float = 1.0) -> Tensor:
    """How far neurons s lie from the side of the boundary on which t lie, [B, ...] each -> scalar:
    the sum over neurons, the mean over the batch."""
    silent = (s + margin).square() * ((s > -margin) & (t <= 0))
    firing = (s - margin).square() * ((s <= margin) & (t > 0))
    return (silent + firing).sum() / len(s)


@dataclass
class ActivationBoundaries(Distillation):
    """Train a student until its neurons fire where the teacher's do, then on the labels from there.

        first: sum_l 2^(l - L) sum_i [t_i <= 0] max(0, s_i + m)^2 + [t_i > 0] max(0, m - s_i)^2,   then: CE(z_s, y)

    t are the teacher's neurons before their nonlinearity at one of the L matched layers, s the
    student's through a connector, a 1x1 convolution with batch norm, that is thrown away before the
    labels come. Heo, Lee, Yun, Choi, "Knowledge Transfer via Distillation of Activation Boundaries
    Formed by Hidden Neurons", AAAI 2019, arXiv 1811.03233; github.com/bhheo/AB_distillation
    (margin m = 1). Half of ViT-B/16: 43,271,424 parameters. A Transformer's neurons are those
    before the GELU of its MLPs, at the patches. Of a ResNet the maps after ReLU are read, not before:
    for the teacher it is the same, as they are positive where its neurons fire.
    """

    starting_epochs: int = 5  # on the boundaries alone, before those that `fit` is asked for
    margin: float = 1.0
    layers: tuple[int, ...] | None = None  # of the student, from 1; all of them if not given
    teacher_layers: tuple[int, ...] | None = None  # one for each; those as deep, if not given

    def __post_init__(self) -> None:
        super().__post_init__()
        self.expect(self.starting_epochs >= 1, "starting_epochs", "of at least 1")
        self.expect(self.margin > 0, "margin", "above 0")

    def pairs(self, student: Student) -> list[tuple[int, int]]:
        return matched(self, student, self.layers, self.teacher_layers)

    def accept(self, student: Student, task: Task) -> None:
        self.pairs(student)

    def teach(self, model: Tuned, task: Task, train: Train) -> None:
        student, pairs = model.network, self.pairs(model.network)
        student.connectors = connectors(model, task, pairs, NEURONS, norm=True)
        train(model, task.train, epochs=self.starting_epochs)
        student.connectors = None
        train(model, task.train)

    def taught(self, model: Any, inputs: Tensor, targets: Tensor) -> Tensor:
        student = model.network
        if student.connectors is None:
            return model.task.loss(model(inputs), targets)
        with torch.no_grad():
            _, wanted = look(student.teacher.network, inputs, NEURONS)
        _, found = look(student, inputs, NEURONS)
        pairs, losses = self.pairs(student), []
        for number, (connect, (s, t)) in enumerate(zip(student.connectors, pairs, strict=True), 1):
            ours, theirs = same_size(connect(found[s - 1]), wanted[t - 1])
            losses.append(boundary(ours, theirs, self.margin) * 2.0 ** (number - len(pairs)))
        return torch.stack(losses).sum()
