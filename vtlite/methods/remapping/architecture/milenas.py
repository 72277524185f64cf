"""MiLeNAS: the architecture learns from both halves of the images."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from vtlite.methods.remapping.architecture.darts import DARTS


@dataclass
class MiLeNAS(DARTS):
    """DARTS, but alpha descends the training loss beside the held-out one, so that it does not
    overfit the few images that are held out.

        alpha <- alpha - lr (d/dalpha L_held-out(w, alpha) + balance d/dalpha L_train(w, alpha)),   w <- w - lr d/dw L_train(w, alpha)

    Both gradients are first-order ones, of one loss each, which the paper finds better than a
    second-order one of the bilevel problem. He, Ye, Shen, Zhang, "MiLeNAS: Efficient Neural
    Architecture Search via Mixed-Level Reformulation", CVPR 2020, arXiv 2003.12238;
    github.com/chaoyanghe/MiLeNAS. Parameters as DARTS. The second gradient costs nothing: the
    weights' own backward pass leaves it.
    """

    balance: float = 1.0  # of the training loss against the held-out one

    def __post_init__(self) -> None:
        super().__post_init__()
        self.expect(self.balance >= 0, "balance", "of at least 0")

    def by_alpha(self, model: Any, inputs: Any, targets: Any) -> Tensor:
        of_training = model.network.backbone.alpha.grad
        return super().by_alpha(model, inputs, targets) + self.balance * of_training
