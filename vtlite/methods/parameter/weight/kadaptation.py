"""KAdaptation: sums of Kronecker products, one factor shared by all layers and one of low rank in
each."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from vtlite.backbones.stages import PROJECTIONS
from vtlite.method import HIGH_LRS, Backbone, Method
from vtlite.methods.parameter.updates import LowRankLinear, qkv_groups, replace_layers
from vtlite.storage import VTError


class KAdaptedLinear(LowRankLinear):
    """A linear layer with an update sum_i A_i (x) B_i, and a bias, in each of the groups of output
    rows that `groups` turns on.

    left, right [.., n, n] hold a_i^L and a_i^R of queries, keys, values as rows, the same for all
    layers; `kept` says which of these are this layer's G groups. u [G, n, b, rank] and v [G, n,
    rank, q] are its own.
    """

    def __init__(
        self,
        base: nn.Linear,
        rank: int,
        scale: float,
        left: nn.Parameter,
        right: nn.Parameter,
        kept: Sequence[int] = (0,),
        groups: Sequence[bool] = (True,),
    ) -> None:
        super().__init__(base, scale, groups)
        G, n = len(kept), left.shape[1]
        if self.rows % n or base.in_features % n:
            fits = math.gcd(n, self.rows, base.in_features)
            raise VTError(
                f"kadaptation: expected n to divide the width {base.in_features}, found n = {n};"
                f" {fits} would do"
            )
        b, q = self.rows // n, base.in_features // n
        self.left, self.right, self.kept = left, right, list(kept)
        self.u = nn.Parameter(
            torch.empty(G, n, b, rank).uniform_(-1, 1) * math.sqrt(6 / (b + rank))
        )  # Glorot
        self.v = nn.Parameter(torch.zeros(G, n, rank, q))
        self.shift = nn.Parameter(torch.zeros(self.rows))

    def factors(self) -> tuple[Tensor, Tensor]:
        # (a^L a^R) (x) (u v) = (a^L (x) u) (a^R (x) v), and the sum over i stands side by side: a
        # product of rank n * rank.
        A = (
            torch.einsum("gip,girq->girpq", self.right[self.kept], self.v).flatten(3).flatten(0, 2)
        )  # [G n rank, K]
        B = (
            torch.einsum("gia,gibr->gabir", self.left[self.kept], self.u).flatten(3).flatten(0, 2)
        )  # [G rows, n rank]
        return A, B

    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x)
        for start in self.starts:
            y[..., start : start + self.rows].add_(self.shift)
        return y

    @property
    def bias(self) -> Tensor:
        bias = torch.zeros_like(self.base.weight[:, 0])
        for start in self.starts:
            bias[start : start + self.rows] = self.shift
        return bias if self.base.bias is None else self.base.bias + bias

    def merged(self) -> nn.Linear:
        """The plain layer with W <- W + delta, b <- b + shift; one without a bias gets one."""
        bias = self.bias
        base = super().merged()
        base.bias = nn.Parameter(bias)
        return base


@dataclass
class KAdaptation(Method):
    """Learn the changes of all query (and of all value) projections as sums of Kronecker products
    that share one factor.

        y = x W_0^T + b + s x (sum_i A_i (x) B_i)^T + c,   A_i = a_i^L a_i^R [n, n],  B_i = u_i v_i [d / n, d / n],  i = 1 .. n

    a^L, a^R belong to all layers together, u, v and c [d] to one layer, c to its queries and values
    alike. a starts uniform, u Glorot-uniform, v and c at zero, so training starts from the
    backbone. He et al., "Parameter-Efficient Model Adaptation for Vision Transformers", AAAI 2023,
    arXiv 2203.16329; github.com/eric-ai-lab/PEViT. On ViT-B/16: 50,176 parameters. As both factors
    are thin, the sum is one product of rank n * rank and runs as LoRA does. The published code
    starts with u and v both zero, which never learn; takes v's change from q's factors; reshapes
    changes across tokens and heads; adds q's after the division by sqrt(head dim): here is the
    formula. Its scale of 160 with a in +-0.01 is here 1 with a in +-0.126, the same product; its
    dropout on the formed matrix is left out.
    """

    lrs = HIGH_LRS

    n: int = 32  # number of products and size of the shared factors; must divide the width
    rank: int = 1  # inner width of u_i v_i
    scale: float = 1.0  # s, fixed
    targets: str = "qv"  # which of q, k, v get an update, each with shared factors of its own

    def __post_init__(self) -> None:
        self.expect(self.n >= 1, "n", "an integer of at least 1")
        self.expect(self.rank >= 1, "rank", "an integer of at least 1")
        self.expect(
            len(self.targets) > 0 and set(self.targets) <= set("qkv"),
            "targets",
            "some of the letters q, k, v",
        )

    def attach(self, backbone: Backbone) -> None:
        bound = 0.01 * math.sqrt(160)
        targets = [letter for letter in "qkv" if letter in self.targets]
        left, right = (
            nn.Parameter(torch.empty(len(targets), self.n, self.n).uniform_(-bound, bound))
            for _ in range(2)
        )

        def updated(layer: nn.Linear, name: str) -> nn.Module:
            letters = PROJECTIONS[name]
            # its own queries' (or values') share of the factors; all of it where qkv is fused
            kept = [i for i, letter in enumerate(targets) if letter in letters]
            groups = qkv_groups(name, self.targets)
            return KAdaptedLinear(layer, self.rank, self.scale, left, right, kept, groups)

        replace_layers(backbone, "kadaptation", ("qkv",), updated, targets=self.targets)
