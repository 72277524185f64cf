"""Exercise 6.7, `darts_gradient`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from vtlite.checks.base import copies, expect, fail, passed, randn, same, untouched
from vtlite.checks.gradients import finite
from vtlite.checks.harness import Answer, check, lives
from vtlite.checks.inputs import CellLoss

Weights = tuple[Tensor, ...]
Loss = Callable[[Any, Tensor], Tensor]
_WITHOUT = {
    "bfloat16": "a difference of two gradients needs more digits",
    "no_grad": "the answer asks autograd",
    "inference_mode": "the answer asks autograd",
}


class _Flat:
    """A loss of all weights in one row."""

    def __init__(self, loss: Loss, w: Weights) -> None:
        self.loss, self.shapes = loss, [t.shape for t in w]

    def by(self, row: Tensor, alpha: Tensor) -> tuple[Tensor, Tensor]:
        """The gradients of the row and of alpha."""
        row, alpha = (t.detach().clone().requires_grad_() for t in (row, alpha))
        parts = row.split([shape.numel() for shape in self.shapes])
        w = [part.view(shape) for part, shape in zip(parts, self.shapes, strict=True)]
        with torch.enable_grad():
            of_row, of_alpha = torch.autograd.grad(
                self.loss(w, alpha), (row, alpha), materialize_grads=True
            )
        return of_row, of_alpha


def _row(w: Any) -> Tensor:
    return torch.cat([t.detach().reshape(-1) for t in w])


def _right(
    w: Weights, alpha: Tensor, train: Loss, held_out: Loss, xi: float, size: float
) -> Tensor:
    row, on_train, on_held = _row(w), _Flat(train, w), _Flat(held_out, w)
    v, direct = on_held.by(row - xi * on_train.by(row, alpha)[0], alpha)
    length = v.norm()
    if xi == 0 or length == 0:
        return direct
    r = size / length
    above, below = (on_train.by(row + sign * r * v, alpha)[1] for sign in (1, -1))
    return direct - xi * (above - below) / (2 * r)


@check
def darts_gradient(student: Answer) -> None:
    """6.7: `darts_gradient(w, alpha, train_loss, held_out_loss, xi, size)` -> the gradient of the
    held-out loss after one inner step, to alpha."""
    for seed, n, K, xi, size, share in (
        (0, 4, 3, 0.3, 0.4, 1.0),
        (1, 3, 5, 0.5, 0.7, 1.0),
        (2, 5, 2, 1.0, 0.2, 1.0),
        (3, 2, 4, 0.2, 1.5, 1.0),
        (4, 3, 3, 0.0, 0.4, 1.0),
        (5, 3, 4, 0.4, 0.3, 0.0),
    ):
        W, b, alpha, here, there = randn(seed, (n, K), (n,), (K,), (n,), (n,))
        losses = CellLoss(here), CellLoss(there, share)
        _step_case(student, (W, b), alpha, losses, xi, size)
    W, b, alpha, here, there = randn(6, (3, 4), (3,), (4,), (3,), (3,))
    arguments = {
        "w": (W, b),
        "alpha": alpha,
        "train_loss": CellLoss(here),
        "held_out_loss": CellLoss(there),
        "xi": 0.4,
        "size": 0.8,
    }
    lives(student, _right, arguments, without=_WITHOUT)
    passed(
        "darts_gradient",
        "the first order",
        "the inner step",
        "the second order by a central difference",
        "the length over all weights",
        "weights that the held-out loss does not move",
        "the number of passes",
        "any type and device",
        "arguments untouched",
    )


def _step_case(
    student: Answer,
    w: Weights,
    alpha: Tensor,
    losses: tuple[CellLoss, CellLoss],
    xi: float,
    size: float,
) -> None:
    given = {"w[0]": w[0], "w[1]": w[1], "alpha": alpha}
    before = copies(given)
    found = student(w, alpha, *losses, xi, size)
    calls = [loss.calls for loss in losses]
    untouched(given, before)
    case = f"weights {[list(t.shape) for t in w]}, xi {xi}, size {size}"
    case += "" if losses[1].share else ", a held-out loss that knows alpha alone"
    if isinstance(found, tuple | list):
        fail(
            f"{case}: expected a tensor, found {type(found).__name__}",
            "torch.autograd.grad gives a tuple, one entry for each tensor asked for: take it apart",
        )
    if isinstance(found, Tensor):
        finite(
            found,
            case,
            "where v is zero, size / |v| is infinite: there is no second term then",
        )
    wide = tuple(t.double() for t in w)
    right = _right(wide, alpha.double(), *losses, xi, size)
    same(
        f"the gradient of alpha, {case}",
        found,
        right.to(alpha.dtype),
        {
            text: value.to(alpha.dtype)
            for text, value in _mistakes(wide, alpha.double(), *losses, xi, size).items()
            if not torch.allclose(value, right, rtol=1e-5)
        },
        tolerance=5e-5,
    )
    expect(
        not found.requires_grad,
        f"{case}: expected a gradient without a graph of its own, found one",
        "the result still holds the losses' graph (create_graph?): it costs memory until it goes",
    )
    for name, count, limit in zip(("train_loss", "held_out_loss"), calls, (3, 1), strict=True):
        expect(
            count <= limit,
            f"{case}: expected {limit} call{'s' * (limit > 1)} of {name} at most, found {count}",
            "each call is a pass through the network: ask for several gradients of one loss at"
            " once, autograd.grad(loss, [alpha, *weights])",
        )


def _mistakes(
    w: Weights, alpha: Tensor, train: Loss, held_out: Loss, xi: float, size: float
) -> dict[str, Tensor]:
    row, on_train, on_held = _row(w), _Flat(train, w), _Flat(held_out, w)
    g, by_train = on_train.by(row, alpha)
    here, direct_here = on_held.by(row, alpha)
    next_ = row - xi * g
    v, direct = on_held.by(next_, alpha)
    if not v.any() or xi == 0:
        return {
            "that is the training loss's gradient: alpha learns from the held-out one": by_train,
            "the sign is turned": -direct,
            "the inner step is taken although xi is 0": on_held.by(row - g, alpha)[1],
        }
    length = v.norm()

    def term(
        v: Tensor = v,
        r: Any = size / length,
        at: Tensor = row,
        of: _Flat = on_train,
        over: Any = None,
    ) -> Tensor:
        above, below = (of.by(at + sign * r * v, alpha)[1] for sign in (1, -1))
        return (above - below) / (2 * r if over is None else over)

    parts = v.split([t.numel() for t in w])
    each = torch.cat([part / part.norm() for part in parts])
    r = size / length
    above = on_train.by(row + r * v, alpha)[1]
    eps = 1e-5 / length
    ahead, direct_ahead = on_held.by(row + xi * g, alpha)
    by_held, direct_held = on_held.by(row - xi * here, alpha)
    second, u = term(), on_train.by(next_, alpha)[0]
    return {
        "that is the first order: the second term is missing": direct,
        "that is the first order, at w: the inner step is missing, and the second term": direct_here,
        "that is the training loss's gradient: alpha learns from the held-out one": by_train,
        "the second term is added: a step along -dL_train / dw turns its sign": direct
        + xi * second,
        "xi is missing in the second term": direct - second,
        "xi stands twice in the second term": direct - xi**2 * second,
        "the second term alone is there: alpha also enters the held-out loss itself": -xi * second,
        "the difference is divided by r: the two points are 2 r apart": direct - 2 * xi * second,
        "the difference is divided by 2, and not by r": direct - xi * term(over=2.0),
        "the difference is not divided: by 2 r": direct - xi * term(over=1.0),
        "the difference is divided by 2 size: by 2 r, as v is not of length one": direct
        - xi * term(over=2 * size),
        "the difference is multiplied by 2 r; divide": direct - xi * term(over=1 / (2 * r)),
        "r is size itself: it is size / |v|": direct - xi * term(r=size),
        "r is size times |v|; divide": direct - xi * term(r=size * length),
        "r is size / |v|^2: the root is missing": direct - xi * term(r=size / length**2),
        "each weight has an |v| of its own: it is one length, over all weights together": direct
        - xi * term(each, size, over=2 * r),
        "each weight has an |v| of its own; it is one length, over all weights together": direct
        - xi * term(r=torch.cat([(size / p.norm()).expand_as(p) for p in parts]), over=2 * r),
        "|v| is that of the first weight alone: it is the length over all weights together": direct
        - xi * term(r=size / parts[0].norm()),
        "|v| is that of the last weight alone; it is the length over all weights together": direct
        - xi * term(r=size / parts[-1].norm()),
        "|v| is the sum of the weights' lengths: it is the root of the sum of all squares": direct
        - xi * term(r=size / sum(p.norm() for p in parts)),
        "|v| is the sum of the absolute values": direct - xi * term(r=size / v.abs().sum()),
        "v is taken at w: it belongs to the weights after the inner step": direct
        - xi * term(here, size / here.norm()),
        "the first term is taken at w: it belongs to the weights after the inner step": direct_here
        - xi * second,
        "both are taken at w, before the inner step": direct_here
        - xi * term(here, size / here.norm()),
        "w+ and w- lie around the weights after the inner step: they lie around w": direct
        - xi * term(at=next_),
        "the inner step goes uphill: w - xi dL_train / dw": direct_ahead
        - xi * term(ahead, size / ahead.norm()),
        "the inner step goes down the held-out loss: it is the training loss that w learns from": (
            direct_held - xi * term(by_held, size / by_held.norm())
        ),
        "the difference is that of the held-out loss: it is the training loss's": direct
        - xi * term(of=on_held),
        "v is the training loss's gradient: it is the held-out one's": direct
        - xi * term(g, size / g.norm()),
        "v is the training loss's gradient, after the inner step: it is the held-out one's": direct
        - xi * term(u, size / u.norm()),
        "the difference is one-sided, from w to w+: take w+ and w-": direct
        - xi * (above - by_train) / r,
        "that is the exact product with the second derivative: the text asks for the difference": (
            direct - xi * term(r=eps, over=2 * eps)
        ),
        "the step is that of the inner rate: w +- r v, with r = size / |v|": direct
        - xi * term(r=xi, over=2 * xi),
        "the sign of the whole is turned": -direct + xi * second,
    }
