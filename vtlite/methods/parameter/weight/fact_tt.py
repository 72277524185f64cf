"""FacT-TT: the changes of all weights as one tensor, in tensor-train form."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from vtlite.method import HIGH_LRS, Backbone, Method
from vtlite.methods.parameter.updates import SlicedLinear, check_rank, replace_slices


class TensorTrainLinear(SlicedLinear):
    """A linear layer whose slices have a core each: S [slices, R, R]."""

    def __init__(
        self, base: nn.Linear, slices: int, U: nn.Parameter, V: nn.Parameter, scale: float
    ) -> None:
        super().__init__(base, slices, U, V, scale)
        D, rank = U.shape
        bound = (
            rank * base.in_features / D
        ) ** -0.5  # as the nn.Linear that they are in the original: of R inputs, in fc2 of 4 R
        self.S = nn.Parameter(torch.empty(slices, rank, rank).uniform_(-bound, bound))

    def cores(self) -> Tensor:
        return self.S


@dataclass
class FacTTT(Method):
    """See all weights of a ViT as one tensor of D x D slices, and learn its change with factors U,
    V that every slice shares.

        y_s = x W_s^T + b_s + scale * x U S_s V,   U [D, rank], S_s [rank, rank] of one slice, V [rank, D]

    A block has 12 slices: q, k, v, proj, four of fc1 and four of fc2 (these take the four quarters
    of its input). V starts at zero, so training starts from the backbone. Jie and Deng, "FacT:
    Factor-Tuning for Lightweight Adaptation on Vision Transformer", AAAI 2023, arXiv 2212.03145;
    github.com/JieShibo/PETL-ViT. On ViT-B/16 with rank 16: 61,440 parameters. The published code
    drops a tenth of the rank's coordinates between S and V in training; here is no dropout. The
    paper chooses `scale` from 0.01 to 100 for each task.
    """

    lr = 3e-2
    lrs = HIGH_LRS
    small = {"rank": 8}

    rank: int = 16  # width of the shared factors; the cores grow with its square
    scale: float = 1.0  # weight of the update

    def __post_init__(self) -> None:
        self.expect(self.rank >= 1, "rank", "an integer of at least 1")

    def attach(self, backbone: Backbone) -> None:
        check_rank("fact_tt", self.rank, backbone.num_features, backbone.num_features)
        replace_slices(
            backbone,
            "fact_tt",
            self.rank,
            lambda base, slices, U, V: TensorTrainLinear(base, slices, U, V, self.scale),
        )
