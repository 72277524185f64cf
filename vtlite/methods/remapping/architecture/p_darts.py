"""P-DARTS: the supernet grows as deep as the network that it stands for, and its choice shrinks."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vtlite.method import Train, Tuned
from vtlite.methods.remapping.architecture.cells import (
    SKIP,
    Supernet,
    anew,
    strongest_cell,
)
from vtlite.methods.remapping.architecture.darts import DARTS


class ShakenSupernet(Supernet):
    """Dropout behind the skip connections."""

    def __init__(self, *values: Any) -> None:
        super().__init__(*values)
        self.dropout = 0.0

    def operate(self, k: int, operation: nn.Module, x: Tensor) -> Tensor:
        y = super().operate(k, operation, x)
        drops = self.names[k] == SKIP and self.searching
        return F.dropout(y, self.dropout, self.training) if drops else y


@dataclass
class PDARTS(DARTS):
    """Search in three stages, each with a deeper supernet and with fewer candidates an edge; a
    dropout behind skip connections, and a limit on them, keep the search from them.

        stage s of 3: s / 3 of the cells;   kept an edge: all, then 5/8, then 3/8 of the operations, at last one;   drop(skip) = rates_s exp(-5 (t - wait)),   t in [0, 1]: how much of the stage is done

    DARTS searches in a shallow supernet and builds a deep network; what is best in the one is not
    in the other. Each stage starts from new weights and alphas; in its first part only the weights
    learn, and the dropout falls in a line. In the found cell the weakest skips beyond `most` are
    replaced. Chen, Xie, Wu, Tian, "Progressive Differentiable Architecture Search: Bridging the
    Depth Gap between Search and Evaluation", ICCV 2019, arXiv 1904.12760; github.com/chenxin061/pdarts
    (cells 5, 11, 17; operations 8, 5, 3). Parameters as DARTS. The epochs of the search are divided
    between the stages.
    """

    network = ShakenSupernet

    wait: float = 0.4
    shares: tuple[float, ...] = (5 / 8, 3 / 8)  # of the operations, kept after the stages
    rates: tuple[float, ...] = (0.0, 0.4, 0.7)  # of the dropout, where each stage begins
    most: int = 2  # skips in the found cell

    def __post_init__(self) -> None:
        super().__post_init__()
        falling = [1.0, *self.shares, 0.0]
        self.expect(all(a > b for a, b in pairwise(falling)), "shares", "falling, between 1 and 0")
        number = len(self.shares) + 1
        fitting = len(self.rates) == number and all(0 <= p < 1 for p in self.rates)
        self.expect(fitting, "rates", f"as {number} numbers in [0, 1), one a stage")
        self.expect(self.search_epochs >= number, "search_epochs", f"of at least {number}")
        self.expect(self.most >= 0, "most", "of at least 0")

    def search(self, model: Tuned, data: Any, train: Train) -> None:
        net, number = model.backbone, len(self.rates)
        begins = [self.search_epochs * s // number for s in range(number + 1)]
        for s, (first, last) in enumerate(pairwise(begins)):
            if s:
                train.once(model, partial(self.narrow, model, self.shares[s - 1]))
            net.active = math.ceil(len(net.cells) * (s + 1) / number)
            each = partial(self.watch_stage, net, s, first, last - first)
            train(model, data, each, epochs=last - first)

    def watch_stage(self, net: Any, s: int, first: int, epochs: int, progress: float) -> None:
        """`watch` in stage s, which begins after so many epochs and lasts so many."""
        self.watch(net, (first + progress * epochs) / self.search_epochs)
        net.learns, net.dropout = progress >= self.wait, self.dropout(self.rates[s], progress)

    def dropout(self, rate: float, progress: float) -> float:
        """Behind skip connections, so far into a stage."""
        if progress < self.wait:
            return rate * (1 - progress)
        return rate * math.exp(-5 * (progress - self.wait))

    @torch.no_grad()
    def narrow(self, model: Tuned, share: float) -> None:
        """Keep the strongest operations of each edge, that share of all; begin anew."""
        net = model.backbone
        count = max(2, round(share * len(self.operations)))
        strongest = net.weights().topk(count, 1).indices
        kept = torch.zeros_like(net.kept).scatter(1, strongest, True) & net.kept
        net.alpha.copy_(1e-3 * torch.randn_like(net.alpha))
        anew(model, kept, found=False)

    def choose(self, net: Supernet) -> Tensor:
        weights = net.weights()
        kept = strongest_cell(weights, self.nodes, self.operations)
        if SKIP not in self.operations:
            return kept
        skip = self.operations.index(SKIP)
        while kept[:, skip].sum() > self.most:
            weakest = weights[:, skip].masked_fill(~kept[:, skip], torch.inf).argmin()
            weights[weakest, skip] = -1
            kept = strongest_cell(weights, self.nodes, self.operations)
        return kept
