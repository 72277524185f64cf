"""Several questions about one image: what an adapter that differs from one question to another
needs."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from vtlite.method import Backbone, Predictor
from vtlite.task import Heads, Several, Task


class Question:
    """The number of the task's question that is under way; a task that asks but one has number
    0."""

    def __init__(self) -> None:
        self.number = 0


def parts_of(task: Task) -> dict[str, Task]:
    """The questions of a task by name; one alone is a task of one question."""
    return dict(task.parts) if isinstance(task, Several) else {"": task}


def heads_of(task: Task, backbone: Backbone) -> nn.Module:
    """A fresh head for each question, whatever it reads."""
    if not isinstance(task, Several):
        return task.head(backbone)
    return Heads({name: part.head(backbone) for name, part in task.parts.items()})


class QuestionPredictor(Predictor):
    """A backbone and a head for each question. The network is run once for each of them, and tells
    its adapters, which share `question`, which it is."""

    def __init__(self, backbone: Backbone, head: nn.Module, task: Task, question: Question) -> None:
        super().__init__(backbone, head, task)
        self.question, self.several = question, isinstance(task, Several)
        self.reads = {name: part.features for name, part in parts_of(task).items()}

    def forward(self, inputs: Tensor) -> Any:
        if not self.several:
            return super().forward(inputs)
        heads: Any = self.head
        answers = {}
        try:
            for number, (name, read) in enumerate(self.reads.items()):
                self.question.number = number
                answers[name] = heads.heads[name](read(self.backbone, inputs))
        finally:
            self.question.number = 0
        return answers
