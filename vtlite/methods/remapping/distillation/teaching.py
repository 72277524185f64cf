"""What all distillation shares: a student, and the teacher that it learns from."""

from __future__ import annotations

import copy
import warnings
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from vtlite.backbones.base import about
from vtlite.backbones.stages import attention_blocks, with_fewer_blocks
from vtlite.data.items import as_items, batches
from vtlite.method import LOW_LRS, Backbone, Method, Predictor, Train, Tuned, find_method, short
from vtlite.storage import VTError
from vtlite.task import Classification, MultiLabel, Several, Task
from vtlite.tuning import evaluating, tune


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
        # What brings maps of the two together. It trains with the student, inside `fit` alone:
        # the network that is saved and used never has it.
        self.connectors: Any = None


@dataclass
class Distillation(Method, shared=True):
    """Methods by which a student learns from a teacher: each says in `taught` what it learns.

    The student is `depth` blocks of the backbone, evenly spaced, with its embedding and norm, or a
    network of one's own. The teacher is given, or `fit` makes it first: the same backbone tuned
    with `teacher_method` on the same images.
    """

    lr = 2e-3
    lrs = LOW_LRS

    starts_elsewhere = "the student lacks some of the backbone's blocks"

    depth: int | None = None  # blocks of the student; half of the backbone's if not given
    teacher_method: str = "lora"  # how the teacher is tuned if none is given
    teacher_epochs: int = 10
    # a backbone to train instead of this one's blocks
    student: Any = field(default=None, repr=False, compare=False, metadata={"model": True})
    # images -> answers to the same task
    teacher: Any = field(default=None, repr=False, compare=False, metadata={"model": True})

    def __post_init__(self) -> None:
        self.expect(self.depth is None or self.depth >= 1, "depth", "of at least 1")
        self.expect(self.teacher_epochs >= 1, "teacher_epochs", "of at least 1")
        find_method(self.teacher_method)  # raises for an unknown name
        for name in ("student", "teacher"):
            given = getattr(self, name)
            self.expect(given is None or isinstance(given, nn.Module), name, "as a network")

    def taught(self, model: Any, inputs: Tensor, targets: Tensor) -> Tensor:
        """The loss of one batch, where there is a teacher -> scalar."""
        raise NotImplementedError

    def accept(self, student: Student, task: Task) -> None:
        """Raise `VTError` for a student or a task that this method can't teach."""

    def teach(self, model: Tuned, task: Task, train: Train) -> None:
        """The training of the student, when its teacher is there."""
        train(model, task.train)

    # The student

    def build(self, backbone: Backbone, task: Task) -> nn.Module:
        if isinstance(task, Several):
            raise VTError(
                f"{short(self.key)}: expected a task with one answer, found several; distil each "
                "of its parts, or choose another method"
            )
        student = self.network(self.small_backbone(backbone), task, backbone)
        if self.teacher is not None:
            student.teacher = Fixed(copy.deepcopy(self.teacher).requires_grad_(False).eval())
        self.accept(student, task)
        return student

    def network(self, small: Backbone, task: Task, source: Backbone) -> Student:
        """The student of this backbone."""
        return Student(small.requires_grad_(True), task.head(small), task, source)

    def small_backbone(self, backbone: Backbone) -> Backbone:
        """The student's backbone: the one given, or some of this one's blocks."""
        if self.student is not None:
            about(self.student)  # raises for a foreign network
            student = copy.deepcopy(self.student)
            student.reset_classifier(0)
            return student
        attention_blocks(backbone, f"{short(self.key)} without a student", plain=True)
        total = len(backbone.blocks)
        depth = total // 2 if self.depth is None else self.depth
        self.expect(1 <= depth <= total, "depth", f"of at most {total}, the backbone's blocks")
        return with_fewer_blocks(backbone, depth)

    # The teacher

    def fit(self, model: Tuned, task: Task, train: Train) -> None:
        student, device = model.network, next(model.parameters()).device
        if student.teacher is None:
            teacher = tune(student.source.network, self.teacher_method, task).to(device)
            own: Any = {"lr": teacher.method.lr, "epochs": self.teacher_epochs}
            train(teacher, task.train, **own, val=None, augment=None, progress=False)
            student.teacher = Fixed(teacher.requires_grad_(False).eval())
        student.teacher.network.to(device)
        self.expect_to_agree(model, task)
        self.teach(model, task, train)
        student.connectors = None

    def expect_to_agree(self, model: Tuned, task: Task) -> None:
        """Raise `VTError` for a teacher that sees other images or answers another question, and
        warn of one that is the smaller of the two."""
        name, teacher = short(self.key), model.network.teacher.network
        inputs = some_inputs(model, task)
        with evaluating(model):
            own = model(inputs)
            try:
                answers = teacher(inputs)
            except Exception as error:  # it is the user's
                reason = f"{type(error).__name__}: {error}".splitlines()[0]
                raise VTError(
                    f"{name}: expected a teacher of the student's images {list(inputs.shape[1:])}, "
                    f"found a {type(teacher).__name__} that fails on them ({reason}); tune one "
                    "that takes images of this size"
                ) from error
        if not isinstance(answers, Tensor) or answers.shape != own.shape:
            is_tensor = isinstance(answers, Tensor)
            found: Any = list(answers.shape) if is_tensor else type(answers).__name__
            wanted: Any = list(own.shape)
            if is_tensor and len(found) > 1 and found[1] != wanted[1]:
                wanted, found = f"{wanted[1]} classes", found[1]
            raise VTError(
                f"{name}: expected a teacher that answers as the student does, with {wanted}, "
                f"found {found}; tune it for this task"
            )
        ours, theirs = (sum(p.numel() for p in m.parameters()) for m in (model, teacher))
        if ours > theirs:
            warnings.warn(
                f"{name}: the student has {ours:,} numbers, more than its teacher's {theirs:,}; it "
                "may learn from it, but is no smaller",
                stacklevel=5,
            )

    def loss(self, model: Any, inputs: Tensor, targets: Tensor) -> Tensor:
        if model.network.teacher is None:
            return super().loss(model, inputs, targets)  # before `fit`: only the labels speak
        return self.taught(model, inputs, targets)


def some_inputs(model: Tuned, task: Task) -> Tensor:
    """Two of the training data, where the model is."""
    inputs, _ = next(iter(batches(as_items(task.train, "training"), 2)))
    return inputs.to(next(model.parameters()).device)


@torch.no_grad()
def answers_of(model: Any, inputs: Tensor) -> Tensor:
    """What a student's teacher answers."""
    return model.network.teacher.network(inputs)


def as_classes(answers: Tensor, task: Task) -> Tensor:
    """Answers with one distribution in each row: [B, C]; masks [B, C, h, w] -> [B, h, w, C]; several
    labels [B, C], each of them yes or no, -> [B, C, 2]."""
    if isinstance(task, MultiLabel):
        return torch.stack([answers, torch.zeros_like(answers)], -1)  # whose softmax is sigmoid
    return answers.movedim(1, -1)


def expect_classes(name: str, task: Task) -> None:
    """Raise `VTError` for a task other than one label of several for each image."""
    if not isinstance(task, Classification) or task.num_classes < 2:
        found = "one class" if isinstance(task, Classification) else f"a {type(task).__name__}"
        raise VTError(
            f"{name}: expected a classification of at least two classes, found {found}; use kd or "
            "attention_transfer"
        )
