"""KronA: a Kronecker product beside each frozen projection, or beside the whole MLP."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from vtlite.backbones.stages import attention_blocks
from vtlite.method import HIGH_LRS, Backbone, Method
from vtlite.methods.parameter.updates import UpdatedLinear, qkv_groups, replace_layers
from vtlite.ops.kron_linear import kron_linear, kron_matrix


def near_square(d: int) -> tuple[int, int]:
    """The two divisors of d nearest to its square root, the smaller one first: 768 -> 24, 32."""
    small = next(i for i in range(math.isqrt(d), 0, -1) if d % i == 0)
    return small, d // small


def kron_factors(groups: int, rows: int, columns: int) -> tuple[nn.Parameter, nn.Parameter]:
    """A [groups, a, p], random, and B [groups, b, q], zero, with a b = rows and p q = columns."""
    (a, b), (p, q) = near_square(rows), near_square(columns)
    return nn.Parameter(torch.randn(groups, a, p) / math.sqrt(a)), nn.Parameter(
        torch.zeros(groups, b, q)
    )


class KronLinear(UpdatedLinear):
    """A linear layer with an update A (x) B of its own in each of the groups that `groups` turns on
    (see `UpdatedLinear`)."""

    def __init__(self, base: nn.Linear, scale: float, groups: Sequence[bool] = (True,)) -> None:
        super().__init__(base, groups)
        self.scale = scale
        self.kron_A, self.kron_B = kron_factors(len(self.starts), self.rows, base.in_features)

    def factors(self, group: int) -> tuple[Tensor, Tensor]:
        return self.kron_A[group : group + 1], self.scale * self.kron_B[group : group + 1]

    def update(self, x: Tensor, group: int) -> Tensor:
        return kron_linear(x, *self.factors(group))

    def delta(self, group: int) -> Tensor:
        return kron_matrix(*self.factors(group))


class KronMLP(nn.Module):
    """A frozen MLP, a Kronecker product of its input beside it, and with `residual` a learned share
    of the input: [..., D] -> [..., D]."""

    def __init__(self, mlp: nn.Module, dim: int, scale: float, residual: bool) -> None:
        super().__init__()
        self.mlp, self.scale = mlp, scale
        self.kron_A, self.kron_B = kron_factors(1, dim, dim)
        self.share = nn.Parameter(torch.zeros(())) if residual else None

    def forward(self, x: Tensor) -> Tensor:
        y = self.mlp(x) + kron_linear(x, self.kron_A, self.scale * self.kron_B)
        return y if self.share is None else y + self.share * x


@dataclass
class KronA(Method):
    """Learn the change of each attention projection as a Kronecker product, which can have full
    rank with few parameters.

        y = x W_0^T + b + s x (A (x) B)^T,   A [a, p], B [b, q] with a b = out, p q = in
        place "block":     y = MLP(x) + s x (A (x) B)^T
        place "residual":  y = MLP(x) + s x (A (x) B)^T + s_r x,   s_r a learned number

    rank(A (x) B) = rank(A) rank(B). A starts random with variance 1 / a, B and s_r at zero, so
    training starts from the backbone. x is what the MLP gets, after the norm. Edalati et al.,
    "KronA: Parameter Efficient Tuning with Kronecker Adapter", ENLSP workshop at NeurIPS 2023,
    arXiv 2212.10650; no official code. The factors are as square as the width allows: 24 x 24 and
    32 x 32 for 768. On ViT-B/16: 38,400 parameters on queries and values, 19,200 as "block"
    (KronA^B), 19,212 as "residual" (KronA^B_res). Where s_r starts was not to be confirmed: some
    descriptions say 1, which would change the model before training. The paper tunes s per task.
    """

    lr = 3e-2
    lrs = HIGH_LRS

    # "weights": beside projections (mergeable); "block": beside the MLP; "residual": that, and a
    # learned share of its input
    place: str = "weights"
    scale: float = 1.0  # s, fixed
    targets: str = "qv"  # in place "weights": which of q, k, v get an update

    def __post_init__(self) -> None:
        self.expect(
            self.place in ("weights", "block", "residual"),
            "place",
            '"weights", "block" or "residual"',
        )
        self.expect(
            len(self.targets) > 0 and set(self.targets) <= set("qkv"),
            "targets",
            "some of the letters q, k, v",
        )
        if self.place != "weights":  # of this object only: the class's default merges
            why = "it runs beside the MLP, which has a GELU inside, so no weight can take it up"
            self.unmergeable = why  # type: ignore[misc]

    def attach(self, backbone: Backbone) -> None:
        if self.place == "weights":
            replace_layers(backbone, "krona", ("qkv",), self.updated, targets=self.targets)
            return
        for block in attention_blocks(backbone, "krona", ("mlp.fc2",)):
            block.mlp = KronMLP(
                block.mlp, block.mlp.fc2.out_features, self.scale, residual=self.place == "residual"
            )

    def updated(self, layer: nn.Linear, name: str) -> nn.Module:
        return KronLinear(layer, self.scale, qkv_groups(name, self.targets))
