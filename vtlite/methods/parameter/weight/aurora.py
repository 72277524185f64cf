"""Aurora: the changes of all weights as one tensor, a sum of few modes."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from vtlite.method import HIGH_LRS, Backbone, Method
from vtlite.methods.parameter.updates import SlicedLinear, replace_slices


class ModesLinear(SlicedLinear):
    """A linear layer whose cores are diagonal: the shared weights [R] of the modes, times each
    slice's own P [slices, R]. A product with one is a product by columns."""

    def __init__(
        self,
        base: nn.Linear,
        slices: int,
        U: nn.Parameter,
        V: nn.Parameter,
        scale: float,
        modes: nn.Parameter,
    ) -> None:
        super().__init__(base, slices, U, V, scale)
        self.modes = modes
        self.P = nn.Parameter(nn.init.xavier_uniform_(torch.empty(slices, len(modes))))

    def factors(self) -> tuple[Tensor, Tensor]:
        cores = (self.modes * self.P)[:, None]  # [S, 1, R], the diagonals
        if self.slices_inputs:
            return (self.U * cores).flatten(0, 1).mT, self.V.mT
        return self.U.mT, (self.V.mT * cores).flatten(0, 1)


@dataclass
class Aurora(Method):
    """See all weights of a ViT as one tensor of D x D slices, and learn its change as a sum of few
    modes (CP decomposition).

        y_s = x W_s^T + b_s + scale * sum_r lambda_r P_sr (x u_r) v_r^T,   U = [u_r] [D, rank], V = [v_r] [rank, D], P [slices, rank]

    U, V and lambda are shared by all slices. P starts Xavier-uniform in each layer, lambda at one,
    V at zero, so training starts from the backbone. Wang et al., "Parameter-efficient Tuning of
    Large-scale Multimodal Foundation Model", NeurIPS 2023, arXiv 2305.08381;
    github.com/WillDreamer/Aurora. On ViT-B/16 with rank 64: 107,584 parameters. This is the paper's
    formula; the published code has a full core [rank, rank, rank] instead (as `fact_tk`) and
    dropout. The parts for text and for its fusion with images are left out.
    """

    lrs = HIGH_LRS
    small = {"rank": 32}

    rank: int = 64  # number of modes
    scale: float = 1.0  # weight of the update

    def __post_init__(self) -> None:
        self.expect(self.rank >= 1, "rank", "an integer of at least 1")

    def attach(self, backbone: Backbone) -> None:
        modes = nn.Parameter(torch.ones(self.rank))
        replace_slices(
            backbone,
            "aurora",
            self.rank,
            lambda base, slices, U, V: ModesLinear(base, slices, U, V, self.scale, modes),
        )
