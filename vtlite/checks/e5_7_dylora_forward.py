"""Exercise 5.7, `dylora_forward`."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from vtlite.checks.base import copies, expect, passed, randn, same, untouched
from vtlite.checks.harness import (
    NO_TYPES,
    Answer,
    check,
    lives,
    same_gradients,
)
from vtlite.checks.naive import dense, product


def _only(t: Tensor, b: int, dim: int) -> Tensor:
    """Ranks 1 to b of a factor, of which the b-th alone has a gradient."""
    return torch.cat([t.narrow(dim, 0, b - 1).detach(), t.narrow(dim, b - 1, 1)], dim)


def _dylora(
    x: Tensor, weight: Tensor, bias: Tensor, A: Tensor, B: Tensor, alpha: float, b: int
) -> Tensor:
    return dense(x, weight + alpha / b * product(_only(A, b, 0), _only(B, b, 1)), bias)


@check
def dylora_forward(student: Answer) -> None:
    """5.7: `dylora_forward(x, weight, bias, A, B, alpha, b)` uses the first b ranks and trains the
    b-th alone."""

    def nested(
        x: Tensor, weight: Tensor, bias: Tensor, A: Tensor, B: Tensor, alpha: float, b: int
    ) -> Tensor:
        return dense(x, weight + alpha / b * product(A[:b], B[:, :b]), bias)

    def cut(
        x: Tensor, weight: Tensor, bias: Tensor, A: Tensor, B: Tensor, alpha: float, b: int
    ) -> Tensor:
        below = dense(x, alpha / b * product(A[: b - 1], B[:, : b - 1]), 0.0).detach()
        return dense(x, weight + alpha / b * product(A[b - 1 : b], B[:, b - 1 : b]), bias) + below

    wrong = {
        "ranks below b train too; rank b alone learns: detach the lower rows of A and the lower columns of B": (
            nested
        ),
        "the ranks below b pass no gradient on to x: detach the rows of A and the columns of B, not their product with x": (
            cut
        ),
    }
    cases = (
        (0, (2, 3), 4, 6, 5, 3, 2.0),
        (1, (1,), 3, 5, 4, 1, 1.5),
        (2, (5,), 6, 3, 3, 3, -4.0),
        (3, (), 5, 4, 6, 2, 8.0),
        (4, (2, 1, 3), 3, 4, 5, 4, 1.5),
    )
    for seed, lead, N, K, r, b, alpha in cases:
        x, weight, bias, A, B = randn(seed, (*lead, K), (N, K), (N,), (r, K), (N, r))
        arguments: dict[str, Any] = {
            "x": x,
            "weight": weight,
            "bias": bias,
            "A": A,
            "B": B,
            "alpha": alpha,
            "b": b,
        }
        given = {name: t for name, t in arguments.items() if isinstance(t, Tensor)}
        before = copies(given)
        found = student(*arguments.values())
        untouched(given, before)
        plain = dense(x, weight, bias)

        def update(ranks: slice, A: Tensor = A, B: Tensor = B, x: Tensor = x) -> Tensor:
            return dense(x, product(A[ranks], B[:, ranks]), 0.0)

        first = update(slice(b))
        same(
            f"the output for x {list(x.shape)}, {r} ranks, b = {b}, alpha = {alpha}",
            found,
            plain + alpha / b * first,
            {
                "all ranks are used; take the first b": plain + alpha / b * update(slice(r)),
                "all ranks are used, with the scale of all; take the first b": (
                    plain + alpha / r * update(slice(r))
                ),
                "the scale is alpha / b: it depends on the ranks in use, not on all of them": (
                    plain + alpha / r * first
                ),
                "the update is scaled by alpha / b, not by alpha": plain + alpha * first,
                "only rank b is used; the forward pass takes ranks 1 to b": (
                    plain + alpha / b * update(slice(b - 1, b))
                ),
                "off by one: ranks count from 1, so b ranks are [:b]": (
                    plain + alpha / b * update(slice(b - 1))
                ),
                "off by one: ranks count from 1, so b ranks are [:b], not [:b + 1]": (
                    plain + alpha / b * update(slice(b + 1))
                ),
                "off by one: ranks count from 1, so b ranks are [:b], and the scale alpha / b": (
                    plain + alpha / (b + 1) * update(slice(b + 1))
                ),
                "the last b ranks are used; take the first": (
                    plain + alpha / b * update(slice(r - b, r))
                ),
                "the frozen layer is missing: the update is added to x W^T + b": alpha / b * first,
            },
        )
        same_gradients(student, _dylora, arguments, "A B x", wrong)
        lives(student, _dylora, arguments, without=NO_TYPES)
    _second_step(student)
    passed(
        "dylora_forward",
        "the first b ranks for any strides",
        "the scale alpha / b",
        "gradients of rank b alone step after step",
        "the gradient of x",
        "any device",
        "arguments untouched",
    )


def _second_step(student: Answer) -> None:
    """Two steps on the same factors, each with its own b: the second is not told of the first."""
    x, weight, bias, A, B = randn(9, (3, 4), (5, 4), (5,), (4, 4), (5, 4))
    for t in (A, B):
        t.requires_grad_()
    for b in (1, 4, 2):
        A.grad = B.grad = None
        out = student(x, weight, bias, A, B, 1.5, b)
        expect(
            out.requires_grad,
            "expected an output with a gradient, found none",
            "something detached rank b as well",
        )
        out.square().sum().backward()
        for name, t, dim in (("A", A, 0), ("B", B, 1)):
            grad = torch.zeros_like(t) if t.grad is None else t.grad
            ranks = grad.movedim(dim, 0).flatten(1).abs().sum(1).nonzero().flatten().tolist()
            expect(
                ranks == [b - 1] and t.requires_grad,
                f"b = {b} after other steps: expected a gradient of {name} for rank {b} alone,"
                f" found one for {[rank + 1 for rank in ranks]}",
                "something of an earlier call is left: a hook that stays registered, or a flag that"
                " stays off",
            )
