"""DyLoRA: one LoRA trained so that it can be cut to any smaller rank afterwards."""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from vtlite.method import HIGH_LRS, Backbone, Method, Tuned
from vtlite.methods.parameter.updates import (
    LowRankLinear,
    check_rank,
    qkv_groups,
    replace_layers,
)
from vtlite.storage import VTError


class DyLoRALinear(LowRankLinear):
    """A linear layer with LoRA in each of `groups`, of which the first `active` ranks are at work.

    Each rank is a pair of parameters of its own, lora_A[i] [G, in] and lora_B[i] [G rows, 1]: an
    optimiser leaves those without a gradient alone, while one matrix of all ranks would move
    everywhere by momentum and weight decay.
    """

    def __init__(
        self, base: nn.Linear, rank: int, alpha: float, groups: Sequence[bool] = (True,)
    ) -> None:
        super().__init__(base, alpha, groups)
        check_rank("dylora", rank, self.rows, base.in_features)
        G, bound = len(self.starts), 1 / math.sqrt(base.in_features)
        self.lora_A = nn.ParameterList(
            torch.empty(G, base.in_features).uniform_(-bound, bound) for _ in range(rank)
        )
        self.lora_B = nn.ParameterList(torch.zeros(G * self.rows, 1) for _ in range(rank))
        self.active, self.frozen = (
            rank,
            False,
        )  # `frozen`: of the ranks at work only the last gets a gradient

    def factors(self) -> tuple[Tensor, Tensor]:
        A, B = self.at_work(self.lora_A), self.at_work(self.lora_B)
        return torch.stack(A, 1).flatten(0, 1) / self.active, torch.cat(
            B, 1
        )  # [G b, in] with the 1 / b of the scale, [G rows, b]

    def at_work(self, ranks: nn.ParameterList) -> list[Tensor]:
        *lower, last = list(ranks)[: self.active]
        return [p.detach() if self.frozen else p for p in lower] + [last]


@dataclass
class DyLoRA(Method):
    """Train LoRA with another rank in every step, so that its first ranks alone are a LoRA as well:
    the best rank need not be searched.

        y = x W_0^T + b_0 + (alpha / b) x A[:b]^T B[:, :b]^T,   A [rank, in], B [out, rank], b from 1 to rank at random in each step

    One b is drawn, evenly, for the whole model; of the ranks at work only the last learns in that
    step (`frozen`). A starts Kaiming-uniform and B at zero, so training starts from the backbone.
    Afterwards all ranks work; `truncate(model, b)` keeps the first b. Valipour et al., "DyLoRA:
    Parameter-Efficient Tuning of Pretrained Models using Dynamic Search-Free Low Rank Adaptation",
    EACL 2023, arXiv 2210.07558; github.com/huawei-noah/KD-NLP. On ViT-B/16 with rank 8 on queries
    and values: 294,912 parameters. The scale is the paper's alpha / b; the published code has alpha
    / rank * sqrt(rank / b).
    """

    lrs = HIGH_LRS

    rank: int = 8  # the largest rank, at which the trained model starts out
    alpha: float = 8.0  # the update is scaled by alpha / b
    # whether of the b ranks at work only the last learns (the paper's choice), or all of them
    frozen: bool = True
    targets: str = "qv"  # which of the attention projections q, k, v get an update

    def __post_init__(self) -> None:
        self.expect(self.rank >= 1, "rank", "an integer of at least 1")
        self.expect(
            bool(self.targets) and set(self.targets) <= set("qkv"),
            "targets",
            "some of the letters q, k, v",
        )

    def attach(self, backbone: Backbone) -> None:
        def updated(layer: nn.Linear, name: str) -> nn.Module:
            return DyLoRALinear(layer, self.rank, self.alpha, qkv_groups(name, self.targets))

        replace_layers(backbone, "dylora", ("qkv",), updated, targets=self.targets)

    def loss(self, model: Any, inputs: Tensor, targets: Tensor) -> Tensor:
        layers = [layer for layer in model.modules() if isinstance(layer, DyLoRALinear)]
        b = int(torch.randint(1, self.rank + 1, (1,)))
        for layer in layers:
            layer.active, layer.frozen = b, self.frozen
        try:
            return super().loss(model, inputs, targets)
        finally:
            for layer in layers:
                layer.active, layer.frozen = self.rank, False


def truncate(model: Tuned, rank: int) -> Tuned:
    """A copy of a model tuned with `dylora` that has the first `rank` ranks only, as if tuned with
    that setting.

    Raises `VTError` for another method, or a rank that the model does not have.
    """
    method = model.method
    if not isinstance(method, DyLoRA) or not 1 <= rank <= method.rank:
        wanted = (
            f"a rank from 1 to {method.rank}, found {rank}"
            if isinstance(method, DyLoRA)
            else f"a model of dylora, found {method.key}"
        )
        raise VTError(
            f"truncate: expected {wanted}; tune with dylora and a rank as large as the largest that"
            " you want"
        )
    model = copy.deepcopy(model)
    model.method = dataclasses.replace(method, rank=rank)
    for layer in model.modules():
        if isinstance(layer, DyLoRALinear):
            layer.lora_A, layer.lora_B, layer.active = (
                layer.lora_A[:rank],
                layer.lora_B[:rank],
                rank,
            )
    return model
