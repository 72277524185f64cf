"""SPT: the budget goes to the most sensitive weights, one by one or, where they crowd, as LoRA."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from vtlite.backbones.stages import stage_names
from vtlite.method import HIGH_LRS, Backbone, Method, Train, Tuned
from vtlite.methods.parameter.changes import (
    ChangedModule,
    change_modules,
    has_learnt,
    shuffled_batches,
)
from vtlite.ops.lora_linear import lora_linear
from vtlite.ops.sparse_linear import sparse_linear
from vtlite.task import Task
from vtlite.tuning import merged_backbone


class Unit(NamedTuple):
    """A matrix [rows, columns], or a vector [rows] with `columns` 0: what the allocation treats as
    one."""

    rows: int
    columns: int

    @property
    def size(self) -> int:
        return self.rows * max(1, self.columns)

    def lora_size(self, rank: int) -> int:
        """Numbers in its LoRA factors; 0 where it has none."""
        return rank * (self.rows + self.columns) if rank <= min(self.rows, self.columns) else 0


def allocate(
    scores: Tensor, units: Sequence[Unit], budget: int, rank: int, alpha: float, beta: float
) -> tuple[Tensor, list[int]]:
    """Spend `budget` numbers on the n entries of all units: scores [n] -> sorted entries that train
    alone [m], units that get LoRA.

    The tau entries with the highest scores are selected. A matrix with at least lora_size / alpha
    of them gets LoRA in their place, a vector with at least 1 / beta of its own trains whole. tau
    is the largest that fits; what then remains goes to the next best entries.
    """
    order = scores.argsort(descending=True, stable=True)
    size, lora_size = (
        torch.tensor([u.size for u in units]),
        torch.tensor([u.lora_size(rank) for u in units]),
    )
    of = torch.repeat_interleave(torch.arange(len(units)), size)  # the unit of each entry
    ranked, vector = of[order], torch.tensor([u.columns == 0 for u in units])

    def choice(tau: int) -> tuple[Tensor, Tensor, int]:
        selected = torch.bincount(ranked[:tau], minlength=len(units))
        lora = (lora_size > 0) & (selected >= lora_size / alpha)
        whole = vector & (selected >= size / beta)
        return (
            lora,
            whole,
            int(torch.where(lora, lora_size, torch.where(whole, size, selected)).sum()),
        )

    tau = (
        bisect_right(range(len(scores) + 1), budget, key=lambda tau: choice(tau)[2]) - 1
    )  # the cost never falls as tau grows
    lora, whole, spent = choice(tau)
    chosen = whole[of]
    chosen[order[:tau]] = True
    chosen[lora[of]] = False
    rest = order[tau:]
    chosen[rest[~(lora | whole)[ranked[tau:]]][: budget - spent]] = True
    return chosen.nonzero().flatten(), lora.nonzero().flatten().tolist()


class Budget(nn.Module):
    """The numbers that train, theta [budget], and where each of them goes; shared by all layers.
    First the entries, then LoRA factors."""

    places: Tensor
    layout: Tensor

    def __init__(self, units: Sequence[Unit], budget: int, rank: int) -> None:
        super().__init__()
        self.units, self.rank = units, rank
        self.theta = nn.Parameter(torch.zeros(budget))
        self.register_buffer(
            "places", torch.zeros(budget, dtype=torch.int32)
        )  # of each entry of theta in its unit
        self.register_buffer(
            "layout", torch.zeros(len(units), 3, dtype=torch.int32)
        )  # of each unit: entries from, to; LoRA from, or -1

    @torch.no_grad()
    def assign(self, entries: Tensor, lora: Sequence[int]) -> None:
        """Give theta to these of all entries (sorted) and to LoRA factors of these units, so that
        the change is zero."""
        ends = torch.tensor([u.size for u in self.units], device="cpu").cumsum(0)
        stops = torch.searchsorted(entries, ends).tolist()
        starts, free = [0, *stops[:-1]], len(entries)
        layout = [[start, stop, -1] for start, stop in zip(starts, stops, strict=True)]
        self.theta.zero_()
        for number in lora:
            unit, layout[number][2] = self.units[number], free
            nn.init.kaiming_uniform_(
                self.factor(free, self.rank, unit.columns), a=math.sqrt(5)
            )  # A; B is zero
            free += unit.lora_size(self.rank)
        unit_of = torch.searchsorted(ends, entries, right=True)
        self.places.zero_()
        self.places[: len(entries)].copy_(entries - torch.cat([ends.new_zeros(1), ends])[unit_of])
        self.layout.copy_(torch.tensor(layout, device="cpu"))

    def factor(self, start: int, rows: int, columns: int) -> Tensor:
        return self.theta[start : start + rows * columns].view(rows, columns)

    def factors(self, number: int) -> tuple[Tensor, Tensor] | None:
        """A [rank, columns] and B [rows, rank] of a unit that got LoRA."""
        unit, start = self.units[number], int(self.layout[number, 2])
        if start < 0:
            return None
        A = self.factor(start, self.rank, unit.columns)
        return A, self.factor(start + A.numel(), unit.rows, self.rank)

    def entries(self, number: int) -> tuple[Tensor, Tensor]:
        """What a unit's entries that train alone are changed by [m], and their places in it [m]."""
        start, stop = self.layout[number, :2].tolist()
        return self.theta[start:stop], self.places[start:stop]

    def forward(self, number: int) -> Tensor:
        """The change of one unit, flat: -> [size]."""
        if factors := self.factors(number):
            A, B = factors
            return (B @ A).flatten()
        values, places = self.entries(number)
        return self.theta.new_zeros(self.units[number].size).scatter(0, places.long(), values)

    def linear(self, number: int, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """The unit at work, without its change as a matrix: x [..., columns] -> [..., rows]."""
        if factors := self.factors(number):
            return lora_linear(x, weight, bias, *factors)
        return sparse_linear(x, weight, bias, *self.entries(number))


class SensitiveModule(ChangedModule):
    """A module each of whose own parameters is a number of units, one below the other."""

    def __init__(self, base: nn.Module, budget: Budget, units: dict[str, list[int]]) -> None:
        super().__init__(base)
        self.budget, self.units = budget, units

    def forward(self, *inputs: Any, **named: Any) -> Any:
        base, numbers = self.base, self.units.get("weight", [])
        if not isinstance(base, nn.Linear):  # vectors and kernels: small beside tokens and images
            return super().forward(*inputs, **named)
        (x,) = inputs
        bias = base.bias if base.bias is None else base.bias + self.change("bias")
        biases = len(numbers) * [None] if bias is None else bias.chunk(len(numbers))
        parts = zip(numbers, base.weight.chunk(len(numbers)), biases, strict=True)
        outputs = [self.budget.linear(number, x, weight, b) for number, weight, b in parts]
        return outputs[0] if len(outputs) == 1 else torch.cat(outputs, dim=-1)

    def change(self, name: str) -> Tensor:
        change = torch.cat([self.budget(number) for number in self.units[name]])
        return change.view_as(getattr(self.base, name))

    def changes(self) -> dict[str, Tensor]:
        return {name: self.change(name) for name in self.units}


@dataclass
class SPT(Method):
    """Spend a given number of parameters where the task's loss is most sensitive: on single
    weights, or on LoRA where they crowd.

        s_i = sum over the batches of (dL / dtheta_i)^2,   the tau largest s_i are selected;   per matrix [out, in] with n_s selected:
        W = W_0 + B A  (rank r)   if n_s >= r (in + out) / alpha,   else  W = W_0 + scatter(v),  v [n_s]

    Vectors with at least 1 / beta of their entries selected train whole. He et al.,
    "Sensitivity-Aware Visual Parameter-Efficient Fine-Tuning", ICCV 2023, arXiv 2303.08566;
    github.com/ziplab/SPT (SPT-LoRA). The blocks alone take part. q, k and v are three matrices,
    also where they are fused. The default budget on ViT-B/16: 425,272 parameters (SPT-LoRA has 0.43
    M). `fit` allocates before its first step; until then the budget lies evenly on all weights. A
    second `fit` keeps what it finds. Otherwise than published, the budget is met to the last
    number: tau is the largest that fits, and the rest goes to the next best entries, without a
    second look at the thresholds. The original takes the nearest of 79 values of tau and trains the
    class token too.
    """

    lr = 3e-2
    lrs = HIGH_LRS

    budget: float = 0.005  # parameters to train, as a share of those of the blocks
    rank: int = 8  # of LoRA
    alpha: float = 5.0  # a matrix gets LoRA at 1 / alpha of LoRA's parameters
    beta: float = 5.0  # a vector trains whole at 1 / beta of its entries
    batches: int = 8  # whose squared gradients are the sensitivity
    batch_size: int = 64  # images in each

    def __post_init__(self) -> None:
        self.expect(0 < self.budget < 1, "budget", "between 0 and 1")
        self.expect(self.rank >= 1, "rank", "an integer of at least 1")
        self.expect(self.alpha >= 1, "alpha", "of at least 1")
        self.expect(self.beta >= 1, "beta", "of at least 1")
        self.expect(
            self.batches >= 1,
            "batches",
            "an integer of at least 1",
        )
        self.expect(
            self.batch_size >= 1,
            "batch_size",
            "an integer of at least 1",
        )

    def attach(self, backbone: Backbone) -> None:
        names, units = sensitive(backbone), list[Unit]()
        numbers: dict[str, dict[str, list[int]]] = {}
        for name in names:
            layer, _, last = name.rpartition(".")
            shape, parts = backbone.get_parameter(name).shape, 3 if layer.endswith(".qkv") else 1
            numbers.setdefault(layer, {})[last] = list(range(len(units), len(units) + parts))
            units += parts * [
                Unit(shape[0] // parts, math.prod(shape[1:]) if len(shape) > 1 else 0)
            ]
        n = sum(unit.size for unit in units)
        budget = Budget(units, max(1, round(self.budget * n)), self.rank)
        budget.assign(torch.arange(len(budget.theta), device="cpu") * n // len(budget.theta), [])
        change_modules(
            backbone,
            lambda name, module: (
                SensitiveModule(module, budget, numbers[name]) if name in numbers else None
            ),
        )

    def fit(self, model: Tuned, task: Task, train: Train) -> None:
        if not has_learnt(model):
            train.once(model, lambda: self.choose(model, task.train))
        train(model, task.train)

    def choose(self, model: Tuned, train: Any) -> None:
        """Let the squared gradients on some training images say where the budget goes."""
        plain = merged_backbone(model)
        weights = [plain.get_parameter(name) for name in sensitive(plain)]
        scores = torch.cat([torch.zeros_like(p).flatten() for p in weights])
        for images, labels in islice(shuffled_batches(model, train, self.batch_size), self.batches):
            answers = model.head(model.task.features(plain, images))
            gradients = torch.autograd.grad(model.task.loss(answers, labels), weights)
            scores += torch.cat([g.flatten() for g in gradients]).square()
        budget = next(m for m in model.modules() if isinstance(m, Budget))
        budget.assign(
            *allocate(
                scores.cpu(), budget.units, len(budget.theta), self.rank, self.alpha, self.beta
            )
        )


def sensitive(backbone: nn.Module) -> list[str]:
    """The names of the parameters of all blocks or stages, in order."""
    inside = tuple(f"{stage}." for stage in stage_names(backbone))
    return [name for name, _ in backbone.named_parameters() if name.startswith(inside)]
