"""Normalised KD: a temperature for each image."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from vtlite.methods.remapping.distillation.layers import pooled, trunk
from vtlite.methods.remapping.distillation.teaching import Distillation, Student, expect_classes
from vtlite.ops.kd_loss import kd_loss
from vtlite.task import Task


@dataclass
class NormalizedKD(Distillation):
    """Soften answers by the length of each image's feature, which says how sure the network is.

        loss = CE(W f + b, y) + weight KL(softmax(n_t) || softmax(n_s)),   n = W tau f / |f| + b

    f [B, D] is the feature that the head (W, b) reads, of student and teacher each; |f| / tau takes
    the place of the temperature. Xu, Rui, Li, Gu, "Feature Normalized Knowledge Distillation for
    Image Classification", ECCV 2020; github.com/aztc/FNKD (tau 2, weight 9 on CIFAR, worse
    here on validation images of embedded tasks). Half of ViT-B/16: 43,271,424 parameters. The paper's cross-entropy of soft answers has
    the same gradient as the divergence here. The repository leaves features shorter than tau alone.
    """

    tau: float = 5.0  # the length that all features get
    weight: float = 3.0

    def __post_init__(self) -> None:
        super().__post_init__()
        self.expect(self.tau > 0, "tau", "above 0")
        self.expect(self.weight >= 0, "weight", "of at least 0")

    def accept(self, student: Student, task: Task) -> None:
        expect_classes("normalized_kd", task)
        if student.teacher is not None:
            trunk(student.teacher.network)  # raises for one without features

    def taught(self, model: Any, inputs: Tensor, targets: Tensor) -> Tensor:
        with torch.no_grad():
            wanted = self.normalised(*pooled(model.network.teacher.network, inputs))
        features, head = pooled(model.network, inputs)
        found = self.normalised(features, head)
        return model.task.loss(head(features), targets) + self.weight * kd_loss(found, wanted, 1.0)

    def normalised(self, features: Tensor, head: Any) -> Tensor:
        """Answers to features of one length: [B, D] -> [B, C]."""
        return head(self.tau * F.normalize(features, dim=1))
