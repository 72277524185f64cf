"""Exercise 2.4, `l2_sp_penalty`."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from vtlite.checks.base import expect, passed, same
from vtlite.checks.harness import (
    Answer,
    check,
)


@check
def l2_sp_penalty(student: Answer) -> None:
    """2.4: `l2_sp_penalty(weights, start, alpha)` is alpha / 2 times the squared distance from the
    start."""
    for seed, alpha in ((0, 0.1), (1, 3.0), (2, 0.7)):
        _l2_sp_case(student, seed, alpha)
    passed(
        "l2_sp_penalty",
        "the value for three strengths",
        "matrices only",
        "its gradient",
        "arguments untouched",
    )


def _l2_sp_case(student: Answer, seed: int, alpha: float) -> None:
    g = torch.Generator().manual_seed(seed)
    shapes = {
        "a.weight": (3, 4),
        "a.bias": (3,),
        "norm.weight": (6,),
        "norm_mlp.weight": (3, 1),
        "position_bias": (4, 2),
        "overhead.weight": (2, 5),
        "c.temperature": (),
        "b.weight": (2, 3, 2, 2),
        "head.weight": (5, 3),
        "head.bias": (2, 2),
    }
    start = {
        name: torch.randn(shape, generator=g)
        for name, shape in shapes.items()
        if not name.startswith("head.")
    }
    weights = {
        name: torch.randn(shape, generator=g).requires_grad_() for name, shape in shapes.items()
    }
    still = ("norm_mlp.weight", "b.weight", "a.weight")[seed]  # one that has not moved
    weights[still].data.copy_(start[still])
    kept = {
        name: t.detach().clone()
        for name, t in (weights | {f"start {n}": t for n, t in start.items()}).items()
    }
    found, given = student(weights, start, alpha), start
    start = {name: kept[f"start {name}"] for name in start}  # as it was before the call
    matrices = [name for name in start if start[name].ndim >= 2]

    def total(over: list[str], value: Callable[[str], float]) -> float:
        return sum(value(name) for name in over)

    def squared(name: str) -> float:
        difference = weights[name].detach() - start.get(name, torch.zeros(()))
        return sum(x * x for x in difference.flatten().tolist())

    def norm2(name: str) -> float:
        return sum(x * x for x in weights[name].flatten().tolist())

    distance = total(matrices, squared)
    same(
        f"the penalty for alpha {alpha}",
        found,
        alpha / 2 * distance,
        {
            "the factor 1/2 is missing": alpha * distance,
            "the penalty is not multiplied by alpha": distance / 2,
            "you measure the distance from zero (weight decay); L2-SP measures it from the start": (
                alpha / 2 * total(matrices, norm2)
            ),
            "biases and norms count too; only tensors of two or more dimensions should": (
                alpha / 2 * total(list(start), squared)
            ),
            "the head counts too, though it has no start": (
                alpha / 2 * (distance + norm2("head.weight") + norm2("head.bias"))
            ),
            "you take the distance; L2-SP takes its square": alpha / 2 * math.sqrt(distance),
            "you take the sum of the distances; square them": (
                alpha / 2 * total(matrices, lambda n: math.sqrt(squared(n)))
            ),
            "you take a mean over the entries; L2-SP takes the sum": (
                alpha / 2 * total(matrices, lambda n: squared(n) / start[n].numel())
            ),
        },
        tolerance=1e-4,
    )
    expect(
        isinstance(found, Tensor) and found.requires_grad,
        "expected a penalty with a gradient, found none",
        "something detached the weights (detach, item, data or no_grad): the penalty would pull on"
        " nothing",
    )
    found.backward()
    for name in weights:
        grad = weights[name].grad
        wanted = (
            alpha * (weights[name].detach() - start[name])
            if name in matrices
            else torch.zeros(shapes[name])
        )
        same(
            f"the gradient of {name}",
            torch.zeros(shapes[name]) if grad is None else grad,
            wanted,
            {
                "the gradient does not reach the weights: something detached them": torch.zeros(
                    shapes[name]
                )
            },
        )
    now = weights | {f"start {n}": t for n, t in given.items()}
    changed = [name for name, t in kept.items() if not torch.equal(now[name].detach(), t)]
    expect(
        not changed,
        f"expected weights and start to stay as they were, found {changed[:1]} changed",
        "you subtracted in place",
    )
