"""Knowledge distillation: what a tuned model knows, in a smaller network."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from vtlite.backbones.base import about
from vtlite.backbones.stages import attention_blocks, with_fewer_blocks
from vtlite.method import LOW_LRS, Backbone, Method, Predictor, Train, Tuned, find_method
from vtlite.ops.kd_loss import kd_loss
from vtlite.storage import VTError
from vtlite.task import Several, Task
from vtlite.tuning import tune


class Fixed:
    """A network that never changes and is no part of the one that holds it: neither counted nor
    saved, and shared by copies."""

    def __init__(self, network: Any) -> None:
        self.network = network

    def __deepcopy__(self, memo: dict[int, Any]) -> Fixed:
        return self


class Student(Predictor):
    """The network that trains, beside what it learns from: inputs -> the task's answer."""

    def __init__(self, backbone: Backbone, head: nn.Module, task: Task, source: Backbone) -> None:
        super().__init__(backbone, head, task)
        self.source = Fixed(source)  # the backbone to make a teacher from
        self.teacher: Fixed | None = None


@dataclass
class KD(Method):
    """Train a shallower student to give the same soft answers as a tuned teacher.

        loss = (1 - weight) CE(z_s, y) + weight T^2 KL(softmax(z_t / T) || softmax(z_s / T))

    Hinton, Vinyals, Dean, "Distilling the Knowledge in a Neural Network", NIPS 2014 workshop, arXiv
    1503.02531 (T = 4, weight 0.9: the values of the usual repositories). The student is `depth`
    blocks of the backbone, evenly spaced, with its embedding and norm, all of it trained; copying
    blocks is the start that DistilBERT made popular (arXiv 1910.01108). Half of ViT-B/16:
    43,271,424 parameters. The teacher is given, or `fit` makes it first: the same backbone tuned
    with `teacher_method` on the same images.
    """

    lr = 2e-3
    lrs = LOW_LRS

    starts_elsewhere = "the student lacks some of the backbone's blocks"

    depth: int | None = None  # blocks of the student; half of the backbone's if not given
    temperature: float = 4.0  # T; higher makes the teacher's answer softer
    weight: float = 0.9  # of the teacher's answer against the label's
    teacher_method: str = "lora"  # how the teacher is tuned if none is given
    teacher_epochs: int = 10
    # a backbone to train instead of this one's blocks
    student: Any = field(default=None, repr=False, compare=False, metadata={"model": True})
    # images -> logits over the same classes
    teacher: Any = field(default=None, repr=False, compare=False, metadata={"model": True})

    def __post_init__(self) -> None:
        self.expect(self.depth is None or self.depth >= 1, "depth", "of at least 1")
        self.expect(self.temperature > 0, "temperature", "above 0")
        self.expect(0 <= self.weight <= 1, "weight", "in [0, 1]")
        self.expect(self.teacher_epochs >= 1, "teacher_epochs", "of at least 1")
        find_method(self.teacher_method)  # raises for an unknown name
        for name in ("student", "teacher"):
            given = getattr(self, name)
            self.expect(given is None or isinstance(given, nn.Module), name, "as a network")

    def build(self, backbone: Backbone, task: Task) -> nn.Module:
        if isinstance(task, Several):
            raise VTError(
                "kd: expected a task with one answer, found several; distil each of its parts, or "
                "choose another method"
            )
        small = self.small_network(backbone).requires_grad_(True)
        student = Student(small, task.head(small), task, backbone)
        if self.teacher is not None:
            student.teacher = Fixed(copy.deepcopy(self.teacher).requires_grad_(False).eval())
        return student

    def small_network(self, backbone: Backbone) -> Backbone:
        """The student's backbone: the one given, or some of this one's blocks."""
        if self.student is not None:
            about(self.student)  # raises for a foreign network
            student = copy.deepcopy(self.student)
            student.reset_classifier(0)
            return student
        attention_blocks(backbone, "kd without a student", plain=True)
        total = len(backbone.blocks)
        depth = total // 2 if self.depth is None else self.depth
        self.expect(1 <= depth <= total, "depth", f"of at most {total}, the backbone's blocks")
        return with_fewer_blocks(backbone, depth)

    def fit(self, model: Tuned, task: Task, train: Train) -> None:
        student, device = model.network, next(model.parameters()).device
        if student.teacher is None:
            teacher = tune(student.source.network, self.teacher_method, task).to(device)
            own: Any = {"lr": teacher.method.lr, "epochs": self.teacher_epochs}
            train(teacher, task.train, **own, val=None, augment=None, progress=False)
            student.teacher = Fixed(teacher.requires_grad_(False).eval())
        student.teacher.network.to(device)
        train(model, task.train)

    def loss(self, model: Any, inputs: Tensor, targets: Tensor) -> Tensor:
        by_labels = model.task.loss(student := model(inputs), targets)
        if model.network.teacher is None:
            return by_labels  # before `fit`: only the labels speak
        with torch.no_grad():
            teacher = model.network.teacher.network(inputs)
        by_teacher = kd_loss(student, teacher, self.temperature)
        return (1 - self.weight) * by_labels + self.weight * by_teacher
