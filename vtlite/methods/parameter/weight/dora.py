"""DoRA: the length of each weight row learned by itself, its direction by LoRA."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from vtlite.method import HIGH_LRS, Backbone, Method
from vtlite.methods.parameter.updates import qkv_groups, replace_layers
from vtlite.methods.parameter.weight.lora import LoRALinear
from vtlite.ops.lora_linear import lora_linear


class DoRALinear(LoRALinear):
    """A linear layer with LoRA in some groups of its output rows, and a learned length for each of
    those rows."""

    def __init__(
        self, base: nn.Linear, rank: int, scale: float, groups: Sequence[bool] = (True,)
    ) -> None:
        super().__init__(base, rank, scale, groups)
        self.magnitude = nn.Parameter(self.lengths())

    def frozen(self, group: int) -> Tensor:
        """W_0 of one group [rows, in]."""
        return self.base.weight[self.starts[group] : self.starts[group] + self.rows]

    @torch.no_grad()
    def lengths(self) -> Tensor:
        """Those of the rows of W_0 + scale B A, all groups one below the other: a constant to the
        gradient."""
        return torch.cat(
            [
                (self.frozen(group) + super(DoRALinear, self).delta(group)).norm(dim=1)
                for group in range(len(self.starts))
            ]
        )

    def gains(self) -> tuple[Tensor, ...]:
        """What the rows of each group are multiplied with [rows]."""
        return (self.magnitude / self.lengths()).chunk(len(self.starts))

    def forward(self, x: Tensor) -> Tensor:
        y = lora_linear(x, self.base.weight, None, *self.factors(), self.scale, self.starts)
        gain = torch.ones_like(self.base.weight[:, 0])  # one for the rows without an update
        for start, part in zip(self.starts, self.gains(), strict=True):
            gain[start : start + self.rows] = part
        y = y * gain
        return y if self.base.bias is None else y + self.base.bias

    def delta(self, group: int) -> Tensor:
        return self.gains()[group][:, None] * (
            self.frozen(group) + super().delta(group)
        ) - self.frozen(group)


@dataclass
class DoRA(Method):
    """Learn each weight row's length by itself, and its direction by LoRA.

        y = x W^T + b,   W = m * (W_0 + s B A) / |W_0 + s B A|,   s = alpha / rank, m [out] and |.| [out] by rows, A, B as in LoRA

    m starts at the lengths of W_0's rows, so training starts from the backbone. The gradient takes
    |.| for a constant, as the paper proposes to save memory. Liu et al., "DoRA: Weight-Decomposed
    Low-Rank Adaptation", ICML 2024, arXiv 2402.09353; github.com/NVlabs/DoRA, and in
    github.com/huggingface/peft. On ViT-B/16 with rank 8 on queries and values: 313,344 parameters.
    """

    lr = 3e-2
    lrs = HIGH_LRS

    rank: int = 8  # inner width of the update; parameters grow in proportion
    alpha: float = 8.0  # the update is scaled by alpha / rank; kept while the rank changes
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
            groups = qkv_groups(name, self.targets)
            return DoRALinear(layer, self.rank, self.alpha / self.rank, groups)

        replace_layers(backbone, "dora", ("qkv",), updated, targets=self.targets)
