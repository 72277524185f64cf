"""DATA: several draws an edge, so that several operations may stay."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from vtlite.methods.remapping.architecture.cells import NONE, Supernet, gumbel_like
from vtlite.methods.remapping.architecture.darts import DARTS


def ensemble(alpha: Tensor, samples: int, temperature: float) -> Tensor:
    """The union of one-hot draws from softmax(alpha) [edges, operations], 0 or 1; backwards each
    draw is the softmax that it was read from."""
    drawn = []
    for _ in range(samples):
        soft = ((alpha.log_softmax(1) + gumbel_like(alpha)) / temperature).softmax(1)
        hard = F.one_hot(soft.argmax(1), alpha.shape[1]).to(soft.dtype)
        drawn.append(hard + soft - soft.detach())
    return torch.stack(drawn).max(0).values


class EnsembleSupernet(Supernet):
    """The candidates are summed by a code of zeros and ones, divided by its sum."""

    def __init__(self, *values: Any) -> None:
        super().__init__(*values)
        self.temperature, self.samples = 1.0, 1

    def logits(self) -> Tensor:
        if not self.training:
            return self.alpha.softmax(1)
        code = ensemble(self.alpha, self.samples, self.temperature)
        return code / code.sum(1, keepdim=True)

    def mix(self, made: list[Tensor], logits: Tensor, x: Tensor) -> Tensor:
        return sum((w * y for w, y in zip(logits.unbind(), made, strict=True)), 0 * x)


@dataclass
class DATA(DARTS):
    """DARTS, but each edge draws several operations at once, and all that are drawn when the search
    has ended stay.

        z = max_m z^(m),   z^(m) = onehot(argmax(log p + g^(m))),   p = softmax(alpha);   o(x) = sum_k z_k o_k(x) / sum_k z_k

    Backwards each one-hot draw is the softmax((log p + g) / T) that it was read from, and an entry
    that several drew is that of one of them. So the search sees what it will leave: codes of zeros
    and ones, up to `samples` ones an edge, where DARTS reads one operation from a mixture of all. T
    falls in a line. Chang, Zhang, Guo, Meng, Xiang, Pan, "DATA: Differentiable ArchiTecture
    Approximation", NeurIPS 2019; github.com/XinbangZhang/DATA-NAS. Parameters as DARTS. All edges
    stay, not two a node, so the found cell is larger; its operations are summed. The original's
    default divides relu(alpha) by its sum in place of a softmax.
    """

    network = EnsembleSupernet

    samples: int = 2  # M
    hottest: float = 5.0  # T at first
    coldest: float = 1.0  # T at last, and in the draw that ends the search

    def __post_init__(self) -> None:
        super().__post_init__()
        self.expect(self.samples >= 1, "samples", "of at least 1")
        self.expect(0 < self.coldest <= self.hottest, "coldest", "above 0 and at most hottest")

    def attach(self, backbone: Any) -> Any:
        net: Any = super().attach(backbone)
        net.samples = self.samples
        return net

    def watch(self, net: Any, progress: float) -> bool | None:
        net.temperature = self.hottest + progress * (self.coldest - self.hottest)
        return super().watch(net, progress)

    @torch.no_grad()
    def choose(self, net: Supernet) -> Tensor:
        kept = ensemble(net.alpha, self.samples, self.coldest) > 0.5
        if NONE in self.operations:
            kept[:, self.operations.index(NONE)] = False
        return kept
