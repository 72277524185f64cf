"""L2-SP: full fine-tuning on a leash."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vtlite.method import LOW_LRS, Backbone, Method
from vtlite.task import Task


def matrices(backbone: Backbone) -> list[Tensor]:
    """What the leash holds: weights, not biases and norms."""
    return [p for p in backbone.parameters() if p.ndim >= 2]


class Start(nn.Module):
    """The pre-trained weights as constants, which no file holds and no count counts."""

    def __init__(self, tensors: list[Tensor]) -> None:
        super().__init__()
        for i, tensor in enumerate(tensors):
            self.register_buffer(str(i), tensor.detach().clone(), persistent=False)


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

    lr = 6e-3
    lrs = LOW_LRS

    alpha: float = 0.1  # towards the pre-trained weights
    beta: float = 0.01  # of the head towards zero

    def __post_init__(self) -> None:
        self.expect(self.alpha >= 0, "alpha", "of at least 0")
        self.expect(self.beta >= 0, "beta", "of at least 0")

    def attach(self, backbone: Backbone) -> None:
        backbone.requires_grad_(True)

    def build(self, backbone: Backbone, task: Task) -> nn.Module:
        network = super().build(backbone, task)
        network.start = Start(matrices(backbone))
        return network

    def loss(self, model: Any, inputs: Tensor, targets: Tensor) -> Tensor:
        network = model.network
        pairs = zip(matrices(network.backbone), network.start.buffers(), strict=True)
        # Keeps the two that are there anyway; the square of a difference would keep that as well.
        moved = torch.stack([F.mse_loss(now, start, reduction="sum") for now, start in pairs]).sum()
        head = torch.stack([w.square().sum() for w in matrices(network.head)]).sum()
        penalty = self.alpha / 2 * moved + self.beta / 2 * head
        return super().loss(model, inputs, targets) + penalty
