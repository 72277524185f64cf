"""Knowledge distillation: what a tuned model knows, in a smaller network."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from vtlite.methods.remapping.distillation.teaching import Distillation, answers_of, as_classes
from vtlite.ops.kd_loss import kd_loss


@dataclass
class KD(Distillation):
    """Train a shallower student to give the same soft answers as a tuned teacher.

        loss = (1 - weight) CE(z_s, y) + weight T^2 KL(softmax(z_t / T) || softmax(z_s / T))

    Hinton, Vinyals, Dean, "Distilling the Knowledge in a Neural Network", NIPS 2014 workshop, arXiv
    1503.02531 (T = 4, weight 0.9: the values of the usual repositories). The student is `depth`
    blocks of the backbone, evenly spaced, with its embedding and norm, all of it trained; copying
    blocks is the start that DistilBERT made popular (arXiv 1910.01108). Half of ViT-B/16:
    43,271,424 parameters. The teacher is given, or `fit` makes it first: the same backbone tuned
    with `teacher_method` on the same images.
    """

    temperature: float = 4.0  # T; higher makes the teacher's answer softer
    weight: float = 0.9  # of the teacher's answer against the label's

    def __post_init__(self) -> None:
        super().__post_init__()
        self.expect(self.temperature > 0, "temperature", "above 0")
        self.expect(0 <= self.weight <= 1, "weight", "in [0, 1]")

    def taught(self, model: Any, inputs: Tensor, targets: Tensor) -> Tensor:
        answers, teacher = model(inputs), answers_of(model, inputs)
        by_labels = model.task.loss(answers, targets)
        soft, wanted = (as_classes(z, model.task) for z in (answers, teacher))
        by_teacher = kd_loss(soft, wanted, self.temperature)
        return (1 - self.weight) * by_labels + self.weight * by_teacher
