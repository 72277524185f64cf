"""SNAS: operations are drawn, by a softmax with noise, and one loss trains everything."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from vtlite.methods.remapping.architecture.cells import NONE, Supernet, gumbel_like
from vtlite.methods.remapping.architecture.darts import DARTS


class SampledSupernet(Supernet):
    """The candidates are mixed by a concrete sample, one for each batch and the same in all
    cells."""

    def __init__(self, *values: Any) -> None:
        super().__init__(*values)
        self.temperature = 1.0
        first: Any = self.cells[0]
        sizes = [sum(p.numel() for p in each.parameters()) for each in first.edges[0]]
        largest = max(max(sizes), 1)
        self.register_buffer("sizes", torch.tensor(sizes) / largest, persistent=False)

    def logits(self) -> Tensor:
        if not self.training:
            return self.alpha  # without noise, what is likely
        return (self.alpha + gumbel_like(self.alpha)) / self.temperature


@dataclass
class SNAS(DARTS):
    """Draw each edge's operation from a distribution that is relaxed so that gradients pass, and
    learn the distribution and the weights from the same loss.

        o(x) = sum_k z_k o_k(x),   z = softmax((alpha + g) / T),   g_k = -log(-log u_k),   u_k ~ U(0, 1);   w, alpha: min E_z L(w, z) + cost sum_k p_k |o_k|

    z is a sample of the concrete distribution: its largest entry is k with probability p_k =
    softmax(alpha)_k at every temperature, and it is nearly one-hot where T is small. T falls in a
    line over the search. |o_k| is the number of parameters, in units of the largest operation's,
    and the sum is the mean over edges. Unlike in DARTS, "none" may win an edge. Xie, Zheng, Liu,
    Lin, "SNAS: Stochastic Neural Architecture Search", ICLR 2019, arXiv 1812.09926;
    github.com/SNAS-Series/SNAS-Series. Parameters as DARTS. No image is held out; one sample a
    batch, as there.
    """

    network = SampledSupernet

    hottest: float = 1.0  # T at first
    coldest: float = 0.03  # T at last
    cost: float = 0.0  # weight of the expected size

    def __post_init__(self) -> None:
        super().__post_init__()
        self.expect(self.xi == 0, "xi", "of 0, as one loss trains both")
        self.expect(0 < self.coldest <= self.hottest, "coldest", "above 0 and at most hottest")
        self.expect(self.cost >= 0, "cost", "of at least 0")

    def parts(self, data: Any) -> tuple[Any, Any]:
        return data, None

    def loss(self, model: Any, inputs: Any, targets: Any) -> Tensor:
        loss, net = super().loss(model, inputs, targets), model.network.backbone
        if self.cost and net.searching:
            loss = loss + self.cost * (net.alpha.softmax(1) @ net.sizes).mean()
        return loss

    def watch(self, net: Any, progress: float) -> bool | None:
        net.temperature = self.hottest + progress * (self.coldest - self.hottest)
        return super().watch(net, progress)

    def choose(self, net: Supernet) -> Tensor:
        kept = super().choose(net)
        if NONE in self.operations:
            kept[net.weights().argmax(1) == self.operations.index(NONE)] = False
        return kept
