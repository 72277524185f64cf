"""Attention transfer: where a network looks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from vtlite.methods.remapping.distillation.layers import look, matched, same_size
from vtlite.methods.remapping.distillation.teaching import Distillation, Student
from vtlite.task import Task


@dataclass
class AttentionTransfer(Distillation):
    """Train a student whose maps are strong at the places where the teacher's are.

        loss = CE(z_s, y) + weight sum_l mean (q_s - q_t)^2,   q = v / |v|,   v = mean_c |F_c|^power   [B, h w]

    F [B, D, h, w] are the maps that leave a layer, the larger averaged to the size of the other;
    widths need not agree, and nothing is learned but the student. Zagoruyko, Komodakis, "Paying More
    Attention to Attention", ICLR 2017, arXiv 1612.03928; github.com/szagoruyko/attention-transfer.
    Half of ViT-B/16: 43,271,424 parameters. The attention is that of activations, as in the paper's
    convolutional networks, not the softmax of a Transformer. The repository has weight 1000, which
    was worse on validation images of embedded tasks.
    """

    weight: float = 100.0  # large, as the squares of one image's q sum to one
    power: float = 2.0
    layers: tuple[int, ...] | None = None  # of the student, from 1; all of them if not given
    teacher_layers: tuple[int, ...] | None = None  # one for each; those as deep, if not given

    def __post_init__(self) -> None:
        super().__post_init__()
        self.expect(self.weight >= 0, "weight", "of at least 0")
        self.expect(self.power > 0, "power", "above 0")

    def accept(self, student: Student, task: Task) -> None:
        matched(self, student, self.layers, self.teacher_layers)

    def taught(self, model: Any, inputs: Tensor, targets: Tensor) -> Tensor:
        student = model.network
        with torch.no_grad():
            _, wanted = look(student.teacher.network, inputs)
        answers, found = look(student, inputs)
        loss = model.task.loss(answers, targets)
        for s, t in matched(self, student, self.layers, self.teacher_layers):
            ours, theirs = same_size(found[s - 1], wanted[t - 1])
            loss = loss + self.weight * F.mse_loss(self.attention(ours), self.attention(theirs))
        return loss

    def attention(self, maps: Tensor) -> Tensor:
        """Where the maps are strong: [B, D, h, w] -> [B, h w], of length one."""
        return F.normalize(maps.abs().pow(self.power).mean(1).flatten(1), dim=1)
