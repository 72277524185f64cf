"""PHM adapters: bottlenecks whose two matrices are sums of Kronecker products."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vtlite.method import HIGH_LRS, Backbone, Method
from vtlite.methods.parameter.updates import replace_layers
from vtlite.ops.kron_linear import kron_linear
from vtlite.storage import VTError


def glorot(n: int, rows: int, columns: int) -> nn.Parameter:
    """n matrices [rows, columns], each Glorot-uniform with gain sqrt(2)."""
    return nn.Parameter(
        torch.empty(n, rows, columns).uniform_(-1, 1) * math.sqrt(12 / (rows + columns))
    )


class PHMLinear(nn.Module):
    """x [..., K] -> x W^T + bias [..., N] with W = sum_i A_i (x) B_i: the rule A is [n, n, n], B
    [n, N / n, K / n].

    `rank` 0 learns B whole; else B_i = s_i t_i with s [n, N / n, rank], t [n, rank, K / n].
    """

    def __init__(self, inputs: int, outputs: int, rule: nn.Parameter, rank: int = 0) -> None:
        super().__init__()
        n, self.rule = len(rule), rule
        shapes = (
            [(outputs // n, rank), (rank, inputs // n)] if rank else [(outputs // n, inputs // n)]
        )
        self.factors = nn.ParameterList([glorot(n, *shape) for shape in shapes])
        self.bias = nn.Parameter(torch.zeros(outputs))

    def forward(self, x: Tensor) -> Tensor:
        B = self.factors[0] @ self.factors[1] if len(self.factors) == 2 else self.factors[0]
        return kron_linear(x, self.rule, B) + self.bias


class AdaptedLinear(nn.Module):
    """A frozen linear layer and a bottleneck after it, with its own residual: z = base(x), y = z +
    up(gelu(down(z)))."""

    def __init__(self, base: nn.Linear, down: nn.Module, up: nn.Module) -> None:
        super().__init__()
        self.base, self.down, self.up = base, down, up

    def forward(self, x: Tensor) -> Tensor:
        z = self.base(x)
        return z + self.up(F.gelu(self.down(z)))


def add_adapters(
    backbone: Backbone,
    method: str,
    bottleneck: int,
    n: int,
    rule: Callable[[], nn.Parameter],
    rank: int = 0,
    after_mlp_only: bool = False,
) -> None:
    """Put a bottleneck after the last linear layer of each attention and MLP. `rule` gives the A
    [n, n, n] of each new projection."""

    def adapted(layer: nn.Linear, name: str) -> nn.Module:
        width = layer.out_features
        if width % n:
            raise VTError(
                f"{method}: expected n to divide the width {width}, found n = {n};"
                f" {math.gcd(n, width, bottleneck)} would do"
            )
        return AdaptedLinear(
            layer,
            PHMLinear(width, bottleneck, rule(), rank),
            PHMLinear(bottleneck, width, rule(), rank),
        )

    # The last layer inside the attention and inside the MLP: before the gain of the residual branch
    # (LayerScale), if there is one.
    replace_layers(backbone, method, ("fc2",) if after_mlp_only else ("proj", "fc2"), adapted)


@dataclass
class PHMAdapter(Method):
    """Put a small bottleneck after each attention and each MLP, with 1/n of its weights, spread by
    learned n x n rules.

        z -> z + U gelu(D z + d) + u,   D [bottleneck, dim] and U [dim, bottleneck] each = sum_i A_i (x) B_i,   i = 1 .. n

    A_i [n, n] is the rule, B_i [out / n, in / n] the weights. Zhang et al., "Beyond Fully-Connected
    Layers with Quaternions: Parameterization of Hypercomplex Multiplications with 1/n Parameters",
    ICLR 2021, arXiv 2102.08597; as an adapter in Karimi Mahabadi et al., "Compacter", NeurIPS 2021,
    arXiv 2106.04647; github.com/rabeehk/compacter, whose start this is: A normal with spread 0.01,
    B Glorot-uniform with gain sqrt(2), biases zero. On ViT-B/16: 175,680 parameters. The bottleneck
    is given as a width, 24 = 768 / 32 as there, so that it fits narrow backbones too. The original
    trains the LayerNorms as well (38,400 more), and has GELU's tanh approximation.
    """

    lr = 3e-2
    lrs = HIGH_LRS
    small = {"n": 4}

    starts_elsewhere = "the up projections start small, not at zero"
    unmergeable = "its bottleneck has a GELU inside, so it is no linear change of the weights"

    bottleneck: int = 24  # width between down and up projection; a multiple of n
    n: int = 12  # number of products, and size of each rule
    after_mlp_only: bool = False  # no bottleneck after the attention

    def __post_init__(self) -> None:
        self.expect(self.n >= 1, "n", "an integer of at least 1")
        fits = self.n * max(1, self.bottleneck // self.n)
        self.expect(
            self.bottleneck % self.n == 0 < self.bottleneck,
            "bottleneck",
            f"that is a multiple of n = {self.n}, such as {fits}",
        )

    def attach(self, backbone: Backbone) -> None:
        def rule() -> nn.Parameter:
            return nn.Parameter(0.01 * torch.randn(self.n, self.n, self.n))

        add_adapters(
            backbone,
            "phm_adapter",
            self.bottleneck,
            self.n,
            rule,
            after_mlp_only=self.after_mlp_only,
        )
