"""DARTS-: an auxiliary skip takes from the candidate what it has too much."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from vtlite.methods.remapping.architecture.cells import Supernet
from vtlite.methods.remapping.architecture.darts import DARTS


class EasedSupernet(Supernet):
    """Each edge has a skip beside the candidates, which fades."""

    def __init__(self, *values: Any) -> None:
        super().__init__(*values)
        self.beta = 1.0

    def mix(self, made: list[Tensor], logits: Tensor, x: Tensor) -> Tensor:
        return super().mix(made, logits, x) + self.beta * x


@dataclass
class DARTSMinus(DARTS):
    """DARTS, but each edge has a second skip beside its candidates, which fades away over the
    search.

        o(x) = beta x + sum_k softmax(alpha)_k o_k(x),   beta = 1 - t,   t in [0, 1]: how much of the search is done

    A skip connection wins in DARTS for two reasons: as an operation, and because the gradients of a
    deep supernet need a way around the others. The second skip serves the second, and is no
    candidate, so that the first has to win by itself. Chu, Wang, Zhang, Lu, Wei, Yan, "DARTS-:
    Robustly Stepping out of Performance Collapse Without Indicators", ICLR 2021, arXiv 2009.01027;
    github.com/Meituan-AutoML/DARTS-. Parameters as DARTS. beta falls with every step, there with
    every epoch; without a reduction the auxiliary skip is the identity everywhere.
    """

    network = EasedSupernet

    start: float = 1.0  # of beta

    def __post_init__(self) -> None:
        super().__post_init__()
        self.expect(self.start >= 0, "start", "of at least 0")

    def watch(self, net: Any, progress: float) -> bool | None:
        net.beta = self.start * (1 - progress)
        return super().watch(net, progress)
