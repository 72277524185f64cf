"""L2-SP: full fine-tuning on a leash."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vtlite.methods.base import Backbone, Method, method


@method("finetuning/l2_sp")
@dataclass
class L2SP(Method):
    """Pull the weights towards their pre-trained values, where weight decay would pull them towards
    zero.

        loss = CE + alpha / 2 |theta - theta_0|^2 + beta / 2 |w|^2,   w: the head

    Li, Grandvalet, Davoine, "Explicit Inductive Bias for Transfer Learning with Convolutional
    Networks", ICML 2018, arXiv 1802.01483; github.com/holyseven/TransferLearningClassification. As
    there, the sums run over weight matrices, not over biases and norms. All 85,798,656 parameters
    of ViT-B/16 train. Call `fit` with weight_decay=0: the penalty takes its place.
    """

    lr = 2e-3

    alpha: float = 0.1  # towards the pre-trained weights
    beta: float = 0.01  # of the head towards zero
    _start: dict[str, Tensor] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        self.expect(self.alpha >= 0, "alpha", "of at least 0")
        self.expect(self.beta >= 0, "beta", "of at least 0")

    def attach(self, backbone: Backbone) -> None:
        backbone.requires_grad_(True)
        self._start = {
            name: p.detach().clone() for name, p in backbone.named_parameters() if p.ndim >= 2
        }

    def loss(self, model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
        tuned: Any = getattr(model, "_orig_mod", model)  # what torch.compile has wrapped
        moved = [
            # keeps the two that are there anyway; the square of a difference keeps that as well
            F.mse_loss(tuned.backbone.get_parameter(name), start.to(labels.device), reduction="sum")
            for name, start in self._start.items()
        ]
        penalty = (
            self.alpha / 2 * torch.stack(moved).sum()
            + self.beta / 2 * tuned.head.weight.square().sum()
        )
        return F.cross_entropy(model(images), labels) + penalty
