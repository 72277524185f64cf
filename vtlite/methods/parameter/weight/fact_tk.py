"""FacT-TK: the changes of all weights as one tensor, in Tucker form."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from vtlite.method import HIGH_LRS, Backbone, Method
from vtlite.methods.parameter.updates import SlicedLinear, check_rank, replace_slices


class TuckerLinear(SlicedLinear):
    """A linear layer whose cores are mixtures P [slices, R] of the R matrices C [R, R, R] that all
    layers share."""

    def __init__(
        self,
        base: nn.Linear,
        slices: int,
        U: nn.Parameter,
        V: nn.Parameter,
        scale: float,
        C: nn.Parameter,
        bound: float,
    ) -> None:
        super().__init__(base, slices, U, V, scale)
        self.C = C
        self.P = nn.Parameter(torch.empty(slices, len(C)).uniform_(-bound, bound))

    def cores(self) -> Tensor:
        return torch.einsum("ijk,sk->sij", self.C, self.P)


@dataclass
class FacTTK(Method):
    """See all weights of a ViT as one tensor of D x D slices, and learn its change with factors U,
    V and a core C that every slice shares.

        y_s = x W_s^T + b_s + scale * x U (sum_k P_sk C_k) V,   U [D, rank], C [rank, rank, rank], V [rank, D], P [slices, rank]

    As FacT-TT (`fact_tt`), but a slice has a vector of its own instead of a matrix. C and P start
    Xavier-uniform, V at zero, so training starts from the backbone. Jie and Deng, "FacT:
    Factor-Tuning for Lightweight Adaptation on Vision Transformer", AAAI 2023, arXiv 2212.03145;
    github.com/JieShibo/PETL-ViT. On ViT-B/16 with rank 32: 86,528 parameters. P is kept in pieces,
    one in each layer. The published code drops a tenth of the rank's coordinates in training, and
    its reshapes mix ranks and slices of the MLP; here is neither. The paper chooses `scale` from
    0.01 to 100 for each task.
    """

    lr = 3e-2
    lrs = HIGH_LRS
    small = {"rank": 16}

    rank: int = 32  # width of the shared factors; the shared core grows with its cube
    scale: float = 1.0  # weight of the update

    def __post_init__(self) -> None:
        self.expect(self.rank >= 1, "rank", "an integer of at least 1")

    def attach(self, backbone: Backbone) -> None:
        check_rank("fact_tk", self.rank, backbone.num_features, backbone.num_features)
        C = nn.Parameter(nn.init.xavier_uniform_(torch.empty(self.rank, self.rank, self.rank)))

        def tucker(base: nn.Linear, slices: int, U: nn.Parameter, V: nn.Parameter) -> TuckerLinear:
            bound = (6 / (self.rank + 12 * len(backbone.blocks))) ** 0.5  # Xavier's, of the whole P
            return TuckerLinear(base, slices, U, V, self.scale, C, bound)

        replace_slices(backbone, "fact_tk", self.rank, tucker)
