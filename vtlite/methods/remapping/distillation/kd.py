"""Knowledge distillation: what a tuned model knows, in a smaller network."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vtlite.backbones.stages import attention_blocks, with_fewer_blocks
from vtlite.methods.base import Backbone, Method, method
from vtlite.ops.kd_loss import kd_loss

if TYPE_CHECKING:
    from torch.utils.data import Dataset

    from vtlite.tuning import Tuned


@method("remapping/distillation/kd")
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

    identity = "the student lacks some of the backbone's blocks"

    depth: int | None = None  # blocks of the student; half of the backbone's if not given
    temperature: float = 4.0  # T; higher makes the teacher's answer softer
    weight: float = 0.9  # of the teacher's answer against the label's
    teacher_method: str = "lora"  # how the teacher is tuned if none is given
    teacher_epochs: int = 10
    student: Any = field(
        default=None, repr=False, metadata={"model": True}
    )  # a backbone to train instead of this one's blocks
    teacher: nn.Module | None = field(
        default=None, repr=False, metadata={"model": True}
    )  # images -> logits over the same classes
    _source: nn.Module | None = field(
        default=None, init=False, repr=False
    )  # what the teacher is tuned from

    def __post_init__(self) -> None:
        self.expect(self.depth is None or self.depth >= 1, "depth", "of at least 1")
        self.expect(self.temperature > 0, "temperature", "above 0")
        self.expect(0 <= self.weight <= 1, "weight", "in [0, 1]")

    def attach(self, backbone: Backbone) -> nn.Module:
        self._source = backbone
        if self.student is not None:
            student = copy.deepcopy(self.student)
            student.reset_classifier(0)
            return student.requires_grad_(True)
        attention_blocks(backbone, "kd without a student", plain=True)
        total = len(backbone.blocks)
        depth = total // 2 if self.depth is None else self.depth
        self.expect(
            1 <= depth <= total, "depth", f"of at most {total}, the backbone's number of blocks"
        )
        return with_fewer_blocks(backbone, depth).requires_grad_(True)

    def prepare(self, model: Tuned, train: Dataset[Any]) -> None:
        if self.teacher is None and self._source is not None:
            from vtlite.training import fit
            from vtlite.tuning import tune

            self.teacher = tune(self._source, self.teacher_method, num_classes=model.num_classes)
            fit(self.teacher, train, epochs=self.teacher_epochs, progress=False)
        assert self.teacher is not None
        self.teacher = (
            copy.deepcopy(self.teacher)
            .to(next(model.parameters()).device)
            .requires_grad_(False)
            .eval()
        )

    def loss(self, model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
        student = model(images)
        if self.teacher is None:
            return F.cross_entropy(student, labels)  # before `prepare`: only the labels speak
        with torch.no_grad():
            teacher = self.teacher(images)
        return (1 - self.weight) * F.cross_entropy(student, labels) + self.weight * kd_loss(
            student, teacher, self.temperature
        )
