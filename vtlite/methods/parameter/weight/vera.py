"""VeRA: two random matrices for all layers, and learned vectors that scale them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from vtlite.method import Backbone, Method
from vtlite.methods.parameter.updates import LowRankLinear, qkv_groups, replace_layers


class VeRALinear(LowRankLinear):
    """A linear layer with vectors b and d of its own in each of `groups`, and the frozen A [R, >=
    K], B [>= rows, R] of all layers."""

    def __init__(
        self,
        base: nn.Linear,
        rank: int,
        A: nn.Parameter,
        B: nn.Parameter,
        d_initial: float,
        groups: Sequence[bool] = (True,),
    ) -> None:
        super().__init__(base, 1.0, groups)
        self.vera_A, self.vera_B = A, B
        self.d = nn.Parameter(torch.full((len(self.starts) * rank,), d_initial))
        self.b = nn.Parameter(torch.zeros(len(self.starts) * self.rows))

    def factors(self) -> tuple[Tensor, Tensor]:
        G = len(self.starts)
        # A narrow layer takes the first rows and columns. d goes to B, so that one product with A
        # serves all groups, and has no gradient.
        A, B = self.vera_A[:, : self.base.in_features], self.vera_B[: self.rows]
        gains = self.b.view(G, -1, 1) * self.d.view(G, 1, -1)  # [G, rows, R]
        return A, (gains * B).flatten(0, 1)


@dataclass
class VeRA(Method):
    """Share one pair of frozen random matrices among all layers, and learn only vectors that scale
    their rows.

        y = x W_0^T + b_0 + x (diag(b) B diag(d) A)^T,   A [rank, in] and B [out, rank] frozen, d [rank], b [out]

    b starts at zero, so training starts from the backbone. Kopiczko et al., "VeRA: Vector-based
    Random Matrix Adaptation", ICLR 2024, arXiv 2310.11454; reference code in
    github.com/huggingface/peft. On ViT-B/16 with rank 256 on queries and values: 24,576 parameters.
    A and B are Kaiming-uniform, made from `projection_seed` and so in no delta. q and v of a fused
    layer have vectors of their own, and the same A and B. Where widths differ, narrow layers take a
    corner of A and B, as in peft. It wants about ten times LoRA's learning rate.
    """

    lr = 3e-2
    lrs = (1e-2, 3e-2, 1e-1, 3e-1)

    rank: int = 256  # inner width of the random matrices; costs one parameter each
    targets: str = "qv"  # which of the attention projections q, k, v get an update
    d_initial: float = 0.1  # where d starts
    projection_seed: int = 0  # what A and B are made from

    def __post_init__(self) -> None:
        self.expect(0 <= self.projection_seed < 2**32, "projection_seed", "from 0 to 2^32 - 1")
        self.expect(self.rank >= 1, "rank", "an integer of at least 1")
        self.expect(
            bool(self.targets) and set(self.targets) <= set("qkv"),
            "targets",
            "some of the letters q, k, v",
        )

    def attach(self, backbone: Backbone) -> None:
        layers: list[VeRALinear] = []
        none = nn.Parameter(torch.empty(0), requires_grad=False)  # until all widths are known

        def updated(layer: nn.Linear, name: str) -> nn.Module:
            groups = qkv_groups(name, self.targets)
            layers.append(VeRALinear(layer, self.rank, none, none, self.d_initial, groups))
            return layers[-1]

        replace_layers(backbone, "vera", ("qkv",), updated, targets=self.targets)
        rows, columns = max(m.rows for m in layers), max(m.in_features for m in layers)
        A, B = self.projections(rows, columns, layers[0].base.weight.device)
        for each in layers:
            each.vera_A, each.vera_B = A, B

    def projections(
        self, rows: int, columns: int, device: torch.device
    ) -> tuple[nn.Parameter, nn.Parameter]:
        """A [rank, columns] and B [rows, rank], the same on every device."""
        generator = torch.Generator().manual_seed(self.projection_seed)
        A, B = (
            torch.empty(self.rank, columns, device="cpu"),
            torch.empty(rows, self.rank, device="cpu"),
        )
        for matrix in (A, B):
            nn.init.kaiming_uniform_(matrix, generator=generator)
        return nn.Parameter(A.to(device), requires_grad=False), nn.Parameter(
            B.to(device), requires_grad=False
        )
