"""DFA: a search for how the teacher's layers are to be mixed into what the student learns."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import Subset

from vtlite.data.items import batches
from vtlite.method import Train, Tuned
from vtlite.methods.remapping.distillation.layers import look, matched
from vtlite.methods.remapping.distillation.teaching import Distillation, Student, some_inputs
from vtlite.storage import VTError
from vtlite.task import Task
from vtlite.training import to_device
from vtlite.tuning import evaluating

Group = tuple[int, list[int]]  # a layer of the student, and those of the teacher that it learns


class Mixture(nn.Module):
    """The teacher's maps, mixed for each of the student's layers: A_g [B, D, h, w] of its width and
    size."""

    def __init__(self, groups: list[Group], found: list[Tensor], wanted: list[Tensor]) -> None:
        super().__init__()
        self.groups, self.searched = groups, False
        self.alpha: Tensor
        # a buffer, as the optimiser of the weights is not to move it
        self.register_buffer("alpha", torch.zeros(len(groups), len(wanted)))
        self.project = nn.ModuleDict(
            {
                f"{s}-{t}": nn.Conv2d(wanted[t - 1].shape[1], found[s - 1].shape[1], 1)
                for s, group in groups
                for t in group
            }
        )

    def forward(self, found: list[Tensor], wanted: list[Tensor]) -> list[Tensor]:
        mixed = []
        for alpha, (s, group) in zip(self.alpha, self.groups, strict=True):
            shares, total = alpha[[t - 1 for t in group]].softmax(0), alpha.new_zeros(())
            for share, t in zip(shares, group, strict=True):
                height, width = found[s - 1].shape[2:]
                maps = F.adaptive_avg_pool2d(wanted[t - 1], (height, width))
                total = total + share * self.project[f"{s}-{t}"](maps)
            mixed.append(total)
        return mixed


@dataclass
class DFA(Distillation):
    """Learn on validation images how to mix the teacher's layers into one map for each of the
    student's, then train the student to give these maps.

        A_g = sum_i softmax(alpha_g)_i P_gi F_i,   loss = CE(z_s, y) + weight mean_g mean (S_g - A_g)^2
        search: alpha falls along loss + mean_g CE(z_s with A_g in the place of S_g, y) on one half of the images, all else on the other

    F_i [B, D, h, w] are the maps of the teacher's layers up to the depth of the student's layer g,
    after those of the layer before, and P 1x1 convolutions to its width. What is easy to learn pulls
    alpha to one side; what answers the question, when the rest of the student goes on from it alone,
    to the other (the mean of A_g is then the class token). Then alpha and P stay, and the student
    starts anew on all images. Guan et al., "Differentiable Feature Aggregation Search for Knowledge
    Distillation", ECCV 2020, arXiv 2008.00506; no official repository. Half of ViT-B/16: 43,271,424
    parameters. Of the paper only the abstract was read: two stages after DARTS, and a bridge loss of
    two paths against each other; the formulas above are one way to do that. alpha takes plain steps
    down its gradient, where DARTS has Adam, so that a search that was stopped goes on exactly.
    """

    search_epochs: int = 5  # before those that `fit` is asked for
    search_lr: float = 1.0  # of alpha
    weight: float = 1.0  # of the maps against the labels
    layers: tuple[int, ...] | None = None  # of the student, from 1; all of them if not given

    def __post_init__(self) -> None:
        super().__post_init__()
        self.expect(self.search_epochs >= 1, "search_epochs", "of at least 1")
        self.expect(self.search_lr > 0, "search_lr", "above 0")
        self.expect(self.weight >= 0, "weight", "of at least 0")

    def groups_of(self, student: Student) -> list[Group]:
        groups, before = [], 0
        for s, t in sorted(matched(self, student, self.layers)):
            groups.append((s, list(range(before + 1, t + 1)) or [t]))
            before = t
        if all(len(group) == 1 for _, group in groups):
            raise VTError(
                f"dfa: expected a teacher of more layers than the {len(groups)} that learn from it, "
                "found nothing to mix; make the student shallower, name fewer layers, or use fitnet"
            )
        return groups

    def accept(self, student: Student, task: Task) -> None:
        self.groups_of(student)

    def teach(self, model: Tuned, task: Task, train: Train) -> None:
        if len(task.train) < 2:
            raise VTError(
                "dfa: expected at least two training images, one to search on and one to train on, "
                "found one; use fitnet"
            )
        student = model.network
        start = {name: tensor.clone() for name, tensor in student.state_dict().items()}
        with evaluating(model):
            inputs = some_inputs(model, task)
            (_, found), (_, wanted) = (look(n, inputs) for n in (student, student.teacher.network))
        mixture = Mixture(self.groups_of(student), found, wanted)
        student.connectors = mixture.to(next(model.parameters()))
        ours, other = (Subset(task.train, range(i, len(task.train), 2)) for i in (0, 1))
        train(model, ours, lambda _: self.move(model, other), epochs=self.search_epochs)
        mixture.requires_grad_(False).searched = True
        student.load_state_dict(start, strict=False)
        train(model, task.train)

    def move(self, model: Tuned, data: Any) -> None:
        """One step of alpha, on images that the weights do not see."""
        inputs, targets = next(iter(batches(data, 50, shuffle=True)))
        alpha, device = model.network.connectors.alpha, next(model.parameters()).device
        inputs, targets = (to_device(each, device) for each in (inputs, model.task.check(targets)))
        alpha.requires_grad_(True)
        (slope,) = torch.autograd.grad(self.taught(model, inputs, targets), alpha)
        alpha.requires_grad_(False).sub_(self.search_lr * slope)

    def taught(self, model: Any, inputs: Tensor, targets: Tensor) -> Tensor:
        student = model.network
        if student.connectors is None:
            return model.task.loss(model(inputs), targets)
        with torch.no_grad():
            _, wanted = look(student.teacher.network, inputs)
        answers, found = look(student, inputs)
        loss, mixture = model.task.loss(answers, targets), student.connectors
        for (s, _), mixed in zip(mixture.groups, mixture(found, wanted), strict=True):
            terms = self.weight * F.mse_loss(found[s - 1], mixed)
            if not mixture.searched:
                bridged, _ = look(student, inputs, put={s - 1: mixed})
                terms = terms + model.task.loss(bridged, targets)
            loss = loss + terms / len(mixture.groups)
        return loss
