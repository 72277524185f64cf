"""LoRA: a low-rank update beside each frozen projection."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vtlite.backbones.stages import attention_blocks
from vtlite.methods.base import Backbone, Method, method
from vtlite.storage import VTError


class LoRALinear(nn.Module):
    """A frozen linear layer with a low-rank update for some of its equal groups of output rows.

    x [..., in] -> y [..., out]. `groups` says which of the layer's row groups get an update: (True,) is a plain linear layer,
    (True, False, True) the queries and values of a fused qkv. lora_A is [rank * enabled, in], lora_B [out / groups * enabled, rank].
    """

    def __init__(self, base: nn.Linear, rank: int, scale: float, groups: tuple[bool, ...] = (True,)) -> None:
        super().__init__()
        rows = base.out_features // len(groups)
        if rank > min(rows, base.in_features):
            raise VTError(
                f"lora: expected rank at most {min(rows, base.in_features)} for a {rows} x {base.in_features} matrix, found {rank}; lower it"
            )
        self.base, self.rank, self.scale = base, rank, scale
        self.slices = [slice(i * rows, (i + 1) * rows) for i, on in enumerate(groups) if on]
        self.lora_A = nn.Parameter(torch.empty(rank * len(self.slices), base.in_features))
        self.lora_B = nn.Parameter(torch.zeros(rows * len(self.slices), rank))
        nn.init.kaiming_uniform_(self.lora_A, a=math.sqrt(5))

    def forward(self, x: Tensor) -> Tensor:
        y = self.base(x)
        low = F.linear(x, self.lora_A) * self.scale  # [..., rank * enabled]; B A itself is never formed
        updates = [F.linear(h, B) for h, B in zip(low.split(self.rank, dim=-1), self._factors_B(), strict=True)]
        for rows, update in zip(self.slices, updates, strict=True):
            y[..., rows].add_(update)
        return y

    def merged(self) -> nn.Linear:
        """The plain layer with W <- W + scale B A."""
        for rows, A, B in zip(self.slices, self.lora_A.split(self.rank), self._factors_B(), strict=True):
            self.base.weight[rows] += self.scale * B @ A
        return self.base

    def _factors_B(self) -> tuple[Tensor, ...]:
        return self.lora_B.chunk(len(self.slices))  # one [rows, rank] per enabled group


@method("parameter/weight/lora")
@dataclass
class LoRA(Method):
    """Learn the change of each attention projection as a product of two thin matrices.

        y = x W_0^T + b + (alpha / rank) x A^T B^T,   A [rank, in], B [out, rank]

    A starts Kaiming-uniform and B at zero, so training starts from the backbone. Hu et al., "LoRA: Low-Rank Adaptation of Large
    Language Models", ICLR 2022, arXiv 2106.09685; github.com/microsoft/LoRA. On ViT-B/16 with rank 8 on queries and values:
    294,912 parameters. As in the original's fused layer, each of q, k, v has its own A and B. No dropout on the low-rank path.
    """

    rank: int = 8  # inner width of the update; parameters grow in proportion
    alpha: float = 8.0  # the update is scaled by alpha / rank; kept while the rank changes
    targets: str = "qv"  # which of the attention projections q, k, v get an update

    def __post_init__(self) -> None:
        self.expect(isinstance(self.rank, int) and self.rank >= 1, "rank", "an integer of at least 1")
        self.expect(bool(self.targets) and set(self.targets) <= set("qkv"), "targets", "some of the letters q, k, v")

    def attach(self, backbone: Backbone) -> None:
        groups = tuple(letter in self.targets for letter in "qkv")
        for block in attention_blocks(backbone, "lora"):
            block.attn.qkv = LoRALinear(block.attn.qkv, self.rank, self.alpha / self.rank, groups)
