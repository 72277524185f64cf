"""Exercise 3.4, `transport`."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from vtlite.checks.base import copies, expect, passed, randn, same, untouched
from vtlite.checks.compare import difference
from vtlite.checks.harness import Answer, check, lives, same_gradients

Weights = Callable[[int, int], tuple[float, float]]  # of each place and of each prompt
_NO_HALF = {
    "bfloat16": "a logarithm of some hundreds has no digits behind the point in half precision"
}

Lives = Callable[[], None]  # what is run after all values


def _scaled(
    S: Tensor,
    eps: float,
    steps: int,
    weights: Weights = lambda P, N: (1 / P, 1 / N),
    columns_first: bool = False,
    kernel: Callable[[Tensor, float], Tensor] = lambda s, eps: ((s - s.max()) / eps).exp(),
) -> Tensor:
    """Matrix by matrix in double precision: the rows of exp(-C / eps) scaled to their sums, then
    its columns, `steps` times."""
    P, N = S.shape[-2:]
    row, column = weights(P, N)
    plans = []
    for matrix in S.detach().double().reshape(-1, P, N):
        plan = kernel(matrix, eps)
        for _ in range(steps):
            for rows in (not columns_first, columns_first):
                if rows:
                    plan = plan * (row / plan.sum(1, keepdim=True))
                else:
                    plan = plan * (column / plan.sum(0, keepdim=True))
        plans.append(plan)
    return torch.stack(plans).reshape(S.shape).to(S.dtype)


def _right(S: Tensor, eps: float, steps: int) -> tuple[Tensor, Tensor]:
    plan = _scaled(S, eps, steps)
    return plan, (plan * S).sum((-2, -1))


@check
def transport(student: Answer) -> None:
    """3.4: `transport(similarity, eps, steps)` -> (plan, score): Sinkhorn's plan for the cost
    1 - similarity, a constant, and what it gathers of the similarity."""
    later: list[Lives] = []
    for seed, shape, eps, steps in (
        (0, (4, 3), 0.5, 3),
        (1, (2, 3, 5, 2), 0.25, 2),
        (2, (1, 3, 3), 1.0, 1),
        (3, (5, 1), 0.2, 4),
        (4, (2, 2, 6), 0.1, 50),
        (5, (2, 1, 4, 5), 0.3, 7),
    ):
        (S,) = randn(seed, shape)
        later.append(_transport_case(student, torch.tanh(0.7 * S), eps, steps))
    (S,) = randn(6, (2, 3, 4))
    _sharp_case(student, torch.tanh(S))
    for run in later:
        run()
    passed(
        "transport",
        "the plan after every number of steps",
        "the weights of rows and columns",
        "each image and class by itself",
        "a sharp plan",
        "the score",
        "a plan without a graph",
        "the gradient of the similarity",
        "either precision and any device",
        "arguments untouched",
    )


def _pair(returned: Any) -> tuple[Tensor, Tensor]:
    expect(
        isinstance(returned, tuple | list) and len(returned) == 2,
        f"expected two tensors, found {type(returned).__name__}",
        "return (plan, score)",
    )
    plan, score = returned
    return plan, score


def _transport_case(student: Answer, S: Tensor, eps: float, steps: int) -> Lives:
    given = {"similarity": S}
    before = copies(given)
    plan, score = _pair(student(S, eps, steps))
    untouched(given, before)
    P, N = S.shape[-2:]
    right, value = _right(S, eps, steps)
    case = f"similarity {list(S.shape)}, eps {eps}, {steps} steps"

    def uniform(p: int, n: int) -> tuple[float, float]:
        return 1 / p, 1 / n

    flat = (S / eps).flatten(-2).softmax(-1).reshape(S.shape)
    mistakes = {
        "columns come first: in each step the rows are scaled, then the columns": _scaled(
            S, eps, steps, uniform, True
        ),
        "that is one step less": _scaled(S, eps, steps - 1)
        if steps > 1
        else _scaled(S, eps, 1, lambda p, n: (1.0, 1.0)),
        "that is one step more": _scaled(S, eps, steps + 1),
        "only one step is made": _scaled(S, eps, 1),
        "only the rows are scaled": _rows_last(S, eps, steps, 0),
        "the last scaling of the columns is missing": _rows_last(S, eps, steps, 1),
        "the weights are exchanged: rows are P places of 1 / P each": _scaled(
            S, eps, steps, lambda p, n: (1 / n, 1 / p)
        ),
        "rows and columns weigh 1 each; their weights are 1 / P and 1 / N, 1 in all": _scaled(
            S, eps, steps, lambda p, n: (1.0, 1.0)
        ),
        "the sign is turned: a large similarity is a small cost": _scaled(
            S, eps, steps, kernel=lambda s, e: ((s.min() - s) / e).exp()
        ),
        "eps multiplies the cost; it divides": _scaled(
            S, eps, steps, kernel=lambda s, e: ((s - s.max()) * e).exp()
        ),
        "eps is missing: exp(-C / eps)": _scaled(S, eps, steps, kernel=lambda s, e: s.exp()),
        "the exp is missing: scaled is exp(-C / eps)": _scaled(
            S, eps, steps, kernel=lambda s, e: 1 - s
        ),
        "that is a softmax over everything: rows and columns do not weigh what they should": flat,
        "that is a softmax over the prompts, once": (S / eps).softmax(-1) / P,
        "that is a softmax over the places, once": (S / eps).softmax(-2) / N,
        "that is a softmax over the prompts, whose rows weigh 1": (S / eps).softmax(-1),
        "that is a softmax over the places, whose columns weigh 1": (S / eps).softmax(-2),
        "the plan is even, as for no similarity": torch.full_like(S, 1 / (P * N)),
        "sums run over all images and classes: each matrix has a plan of its own": _together(
            S, eps, steps
        ),
        "that is the plan in double the size": 2 * right,
        "that is the logarithm of the plan": right.log(),
        "that is the plan times the similarity": right * S,
    }
    if P == N:
        mistakes["the plan is transposed"] = right.mT.contiguous()
    same(f"the plan for {case}", plan, right, mistakes)
    expect(
        not student(S.clone().requires_grad_(), eps, steps)[0].requires_grad,
        f"{case}: expected a plan without a graph, found one with a graph",
        "the plan is a constant (no_grad, or detach), so that the gradient goes through the"
        " similarity in the score alone",
    )
    same(
        f"the score for {case}",
        score,
        value,
        {
            "the plan weighs the cost; it weighs the similarity": (right * (1 - S)).sum((-2, -1)),
            "the mean is taken; the plan's weights are 1 in all, so sum": (right * S).mean(
                (-2, -1)
            ),
            "the sign is turned": -value,
            "the mean of the similarity is taken; the plan weighs it": S.mean((-2, -1)),
            "the sum of the similarity is taken; the plan weighs it": S.sum((-2, -1)),
            "the largest similarity is taken; the plan weighs all": S.amax((-2, -1)),
            "it is summed over the images and classes, too": value.sum(),
            "that is the sum of the plan, which is 1": torch.ones_like(value),
            "the entropy is subtracted: the score is what the plan gathers, and no more": value
            + eps * (right * right.log()).sum((-2, -1)),
            "it is summed over the prompts only": (right * S).sum(-1),
            "it is summed over the places only": (right * S).sum(-2),
        },
    )

    def scored(function: Callable[..., tuple[Tensor, Tensor]]) -> Callable[..., Tensor]:
        return lambda similarity: function(similarity, eps, steps)[1]

    same_gradients(
        scored(student),
        scored(_right),
        given,
        "similarity",
        {
            "the gradient goes through the plan as well, which is a constant: no_grad, or detach": (
                lambda similarity: _with_graph(similarity, eps, steps)
            )
        },
    )
    return partial(
        lives,
        student,
        _right,
        given | {"eps": eps, "steps": steps},
        without=_NO_HALF,
    )


def _sharp_case(student: Answer, S: Tensor) -> None:
    """exp(-C / eps) is zero in single precision, in most places or in all."""
    S = torch.cat([S, S - 1], 1)  # rows that are far from everything
    for eps in (0.01, 0.006):
        for steps in (1, 5):
            plan, score = _pair(student(S, eps, steps))
            right, value = _right(S, eps, steps)
            case = f"eps {eps}, {steps} steps, C / eps up to {(1 - S).max().item() / eps:.0f}"
            likely = (
                "exp(-C / eps) is zero in single precision: keep the logarithms of the scales, and"
                " sum with logsumexp"
            )
            finite = isinstance(plan, Tensor) and bool(plan.isfinite().all())
            expect(finite, f"the plan for {case}: expected numbers, found nan or inf", likely)
            what = difference(plan, right, 1e-3)
            expect(not what, f"the plan for {case}: {what}", likely)
            same(f"the score for {case}", score, value, tolerance=1e-3)


def _rows_last(S: Tensor, eps: float, steps: int, full: int) -> Tensor:
    """The rows scaled last, after steps - 1 whole steps or (full = 0) after none."""
    plan = _scaled(S, eps, steps - 1) if full else ((S - 1) / eps).exp()
    if full and steps == 1:
        plan = ((S - 1) / eps).exp()
    return plan / plan.sum(-1, keepdim=True) / S.shape[-2]


def _together(S: Tensor, eps: float, steps: int) -> Tensor:
    plan = ((S - 1) / eps).exp()
    front = tuple(range(S.ndim - 2))
    for _ in range(steps):
        plan = plan / plan.sum((*front, -1), keepdim=True) / S.shape[-2]
        plan = plan / plan.sum((*front, -2), keepdim=True) / S.shape[-1]
    return plan


def _with_graph(S: Tensor, eps: float, steps: int) -> Tensor:
    plan = (S / eps).exp()
    for _ in range(steps):
        plan = plan / plan.sum(-1, keepdim=True) / S.shape[-2]
        plan = plan / plan.sum(-2, keepdim=True) / S.shape[-1]
    return (plan * S).sum((-2, -1))
