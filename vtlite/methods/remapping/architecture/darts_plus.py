"""DARTS+: a search that stops before skip connections win."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from vtlite.methods.remapping.architecture.cells import SKIP, Supernet
from vtlite.methods.remapping.architecture.darts import DARTS

# what has weights of its own
LEARNS = ("sep_conv_3x3", "sep_conv_5x5", "dil_conv_3x3", "dil_conv_5x5")


def settled(trace: Tensor) -> bool:
    """Whether candidates [epochs, edges, operations] stand in the same order in all epochs."""
    order = trace.argsort(2)
    return bool((order == order[:1]).all())


@dataclass
class DARTSPlus(DARTS):
    """DARTS, but the search ends as soon as the cell that would be read has two skip connections,
    or when the order of the candidates with weights of their own has settled.

        stop if #{skips in the cell} >= most   or   rank(alpha over operations that learn) is the same for `patience` epochs

    Skips win late: they need no training, and the better the weights of the others fit the training
    images, the less the held-out images gain by them. Liang, Zhang, Sun, He, Huang, Zhuang, Li,
    "DARTS+: Improved Differentiable Architecture Search with Early Stopping", arXiv 1909.06035. No
    official code. Parameters as DARTS. Looked at before each step, where the paper looks after each
    epoch; not before a share of the search is over, as the first alphas are noise. The paper has
    either the one rule or the other; patience 0 leaves the second out.
    """

    most: int = 2  # skips that end the search
    patience: int = 10  # epochs without another order that end it; 0: never
    begin: float = 0.2  # share of the search before which it does not end

    def __post_init__(self) -> None:
        super().__post_init__()
        self.expect(self.most >= 1, "most", "of at least 1")
        self.expect(self.patience >= 0, "patience", "of at least 0")
        self.expect(0 <= self.begin <= 1, "begin", "in [0, 1]")

    def watch(self, net: Supernet, progress: float) -> bool:
        super().watch(net, progress)
        return progress >= self.begin and (
            self.skips(net) >= self.most or self.has_settled(net, self.epoch(progress))
        )

    def skips(self, net: Supernet) -> int:
        """Skip connections in the cell that would be read now."""
        if SKIP not in self.operations:
            return 0
        return int(self.choose(net)[:, self.operations.index(SKIP)].sum())

    def has_settled(self, net: Supernet, epoch: int) -> bool:
        """Whether the order is that of `patience` epochs before, and was all the time."""
        learn = [k for k, name in enumerate(self.operations) if name in LEARNS]
        if not self.patience or epoch < self.patience or len(learn) < 2:
            return False
        return settled(torch.stack(list(net.trace[epoch - self.patience : epoch + 1]))[..., learn])
