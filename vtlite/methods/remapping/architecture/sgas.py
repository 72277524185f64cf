"""SGAS: edges are decided one after the other, and the search goes on with what is decided."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from vtlite.methods.remapping.architecture.cells import NONE, Supernet, edges
from vtlite.methods.remapping.architecture.darts import DARTS


def normalised(values: Tensor) -> Tensor:
    """In [0, 1] over the edges."""
    low, high = values.min(), values.max()
    return (values - low) / (high - low).clamp(min=1e-12)


def score(weights: Tensor, none: int | None, before: Tensor | None) -> Tensor:
    """Of each edge, by softmax(alpha) [edges, operations]: its importance times its certainty and,
    where `before` holds those of earlier epochs [epochs, edges, operations], its stability."""

    def others(w: Tensor) -> tuple[Tensor, Tensor]:
        """(their sum, their shares of it)"""
        some = w if none is None else torch.cat([w[..., :none], w[..., none + 1 :]], -1)
        total = some.sum(-1)
        return total, some / total.clamp(min=1e-12)[..., None]

    importance, p = others(weights)
    entropy = -torch.special.xlogy(p, p).sum(1)
    found = normalised(importance) * normalised(1 - entropy / math.log(p.shape[1]))
    if before is not None and len(before):
        found = found * normalised(torch.minimum(others(before)[1], p).sum(2).mean(0))
    return found


@dataclass
class SGAS(DARTS):
    """DARTS, but the surest of the important edges is decided in the middle of the search, then the
    next one, so that the weights learn in what is to stay.

        score = norm(S_EI) norm(S_SC) [norm(S_SS)],   S_EI = sum of softmax(alpha) beside "none",   S_SC = 1 - H(p) / log |p|,   S_SS = mean over the last epochs of sum_k min(p_k, p_k before)

    p is softmax(alpha) without "none", its sum made one; norm maps the edges' values on [0, 1]. The
    edge with the highest score keeps its strongest operation; when a node has two such edges its
    others go. Without stability it is the paper's criterion 1, with it criterion 2. Li, Qian,
    Delgadillo, Mueller, Thabet, Ghanem, "SGAS: Sequential Greedy Architecture Search", CVPR 2020,
    arXiv 1912.00195; github.com/lightaime/sgas. Parameters as DARTS. The decisions are spread
    evenly behind a first share of the search (9 of 50 epochs in the paper); the batch does not grow
    with each of them, as it does there.
    """

    stability: bool = False  # criterion 2
    history: int = 4  # epochs that it looks back on
    begin: float = 0.18  # share of the search before the first decision

    def __post_init__(self) -> None:
        super().__post_init__()
        self.expect(self.history >= 1, "history", "of at least 1")
        self.expect(0 <= self.begin < 1, "begin", "in [0, 1)")

    def watch(self, net: Supernet, progress: float) -> bool | None:
        super().watch(net, progress)
        behind = (progress - self.begin) / (1 - self.begin)  # the share of the time to decide in
        due = math.floor(behind * self.decisions() + 1e-6) + 1 if behind >= 0 else 0
        self.decide(net, due, self.epoch(progress))
        return None

    def decisions(self) -> int:
        """How many edges a cell keeps."""
        return 2 * self.nodes

    def decide(self, net: Supernet, due: int, epoch: int) -> None:
        """Decide edges until so many are."""
        none = self.operations.index(NONE) if NONE in self.operations else None
        while (kept := net.kept.clone())[kept.sum(1) == 1].shape[0] < due and net.searching:
            weights = net.alpha.detach().softmax(1)
            before = net.trace[max(0, epoch - self.history) : epoch] if self.stability else None
            open_ = kept.sum(1) > 1
            edge = int(score(weights, none, before).masked_fill(~open_, -1).argmax())
            if none is not None:
                weights[:, none] = -1
            kept[edge] = False
            kept[edge, weights[edge].argmax()] = True
            target = edges(self.nodes)[edge][1]
            at = [e for e, (_, j) in enumerate(edges(self.nodes)) if j == target]
            if sum(int(kept[e].sum() == 1) for e in at) == 2:
                for e in at:
                    kept[e] &= kept[e].sum() == 1
            net.keep(kept)

    def choose(self, net: Supernet) -> Tensor:
        self.decide(net, self.decisions(), self.search_epochs)
        return net.kept.clone()
