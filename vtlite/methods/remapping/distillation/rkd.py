"""RKD: how images lie to one another."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from vtlite.methods.remapping.distillation.layers import pooled, trunk
from vtlite.methods.remapping.distillation.teaching import Distillation, Student
from vtlite.task import Task


def distances(e: Tensor) -> Tensor:
    """[B, D] -> [B, B], in units of their mean."""
    squares = (e[:, None] - e[None]).square().sum(2)
    d = squares.clamp(min=1e-12).sqrt() * (squares > 0)  # no gradient where two are the same
    return d / (d.sum() / (d > 0).sum().clamp(min=1)).clamp(min=1e-12)


def angles(e: Tensor) -> Tensor:
    """[B, D] -> the cosine of the angle at j between i and k, [B, B, B] as [j, i, k]."""
    directions = F.normalize(e[None] - e[:, None], dim=2)  # from j to i
    return directions @ directions.mT


@dataclass
class RKD(Distillation):
    """Match distances and angles between the images of a batch, whatever the features themselves.

        loss = CE(z_s, y) + distance mean_ij h(d_s - d_t) + angle mean_ijk h(a_s - a_t)
        d_ij = |e_i - e_j| / mean |e_i - e_j|,   a_ijk = cos(e_i - e_j, e_k - e_j),   h(x) = min(x^2, 2 |x| - 1) / 2

    e [B, D] are the features that the heads read; their widths need not agree, and nothing is
    learned but the student. Park, Kim, Lu, Cho, "Relational Knowledge Distillation", CVPR 2019,
    arXiv 1904.05068; code as in github.com/HobbitLong/RepDistiller (weights 25 and 50, which
    were worse on validation images of embedded tasks). Half of ViT-B/16: 43,271,424 parameters.
    """

    distance: float = 5.0  # the weight of distances
    angle: float = 10.0  # the weight of angles

    def __post_init__(self) -> None:
        super().__post_init__()
        self.expect(self.distance >= 0, "distance", "of at least 0")
        self.expect(self.angle >= 0, "angle", "of at least 0")

    def accept(self, student: Student, task: Task) -> None:
        if student.teacher is not None:
            trunk(student.teacher.network)  # raises for one without features

    def taught(self, model: Any, inputs: Tensor, targets: Tensor) -> Tensor:
        with torch.no_grad():
            wanted = pooled(model.network.teacher.network, inputs)[0].flatten(1)
        features, head = pooled(model.network, inputs)
        found = features.flatten(1)
        by_distance = F.smooth_l1_loss(distances(found), distances(wanted))
        by_angle = F.smooth_l1_loss(angles(found), angles(wanted))
        by_labels = model.task.loss(head(features), targets)
        return by_labels + self.distance * by_distance + self.angle * by_angle
