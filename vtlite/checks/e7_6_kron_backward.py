"""Exercise 7.6, `kron_backward`."""

from __future__ import annotations

import torch
from torch import Tensor

from vtlite.checks.base import passed, randn, same
from vtlite.checks.gradients import autograd, by_hand
from vtlite.checks.harness import (
    AUTOGRAD_OFF,
    Answer,
    check,
    lives,
    stays_small,
)
from vtlite.checks.naive import kron


@check
def kron_backward(student: Answer) -> None:
    """7.6: `kron_backward(dy, x, A, B)` -> (dx, dA, dB) of y = x (A (x) B)^T, with the large matrix
    never formed."""
    for seed, lead, a, p, b, q, dtype in (
        (0, (2, 2), 3, 3, 3, 3, torch.float32),
        (1, (2, 3), 2, 3, 4, 5, torch.float64),
        (2, (1,), 4, 1, 2, 3, torch.float32),
        (3, (), 1, 5, 3, 2, torch.float32),
        (4, (4,), 2, 2, 3, 3, torch.float32),
        (7, (2, 1, 3), 2, 3, 3, 2, torch.float32),
    ):
        dy, x, A, B = (
            t.to(dtype) for t in randn(seed, (*lead, a * b), (*lead, p * q), (a, p), (b, q))
        )
        _kron_backward_case(student, dy, x, A, B)
    dy, x, A, B = randn(5, (3, 192), (3, 180), (12, 10), (16, 18))
    large = {"dy": dy, "x": x, "A": A, "B": B}
    stays_small(
        student,
        large,
        A.numel() * B.numel(),
        "you form A (x) B, or its gradient, with every pair of entries; cut x and dy into grids"
        " instead",
    )
    dy, x, A, B = randn(6, (2, 3, 8), (2, 3, 15), (2, 3), (4, 5))
    lives(
        student,
        lambda dy, x, A, B: autograd(kron, dy, {"x": x, "A": A, "B": B}, "x A B"),
        {"dy": dy, "x": x, "A": A, "B": B},
        without=AUTOGRAD_OFF,
        reads=False,
    )
    passed(
        "kron_backward",
        "dx",
        "dA",
        "dB",
        "any leading shape and strides",
        "the matrix never formed",
        "any type and device",
        "arguments untouched",
    )


def _kron_backward_case(student: Answer, dy: Tensor, x: Tensor, A: Tensor, B: Tensor) -> None:
    (a, p), (b, q), tokens = A.shape, B.shape, x[..., 0].numel()
    found = by_hand(student, {"dy": dy, "x": x, "A": A, "B": B}, {"dx": "x", "dA": "A", "dB": "B"})

    def gradients(dy: Tensor, x: Tensor, A: Tensor, B: Tensor) -> list[Tensor]:
        return autograd(kron, dy, {"x": x, "A": A, "B": B}, "x A B")

    right = gradients(dy, x, A, B)
    columns = x.unflatten(-1, (q, p)).mT.flatten(-2)
    tall = dy.unflatten(-1, (b, a)).mT.flatten(-2)
    wrong = {
        "x is cut column by column; X [p, q] has x[0], ..., x[q - 1] in its first row": gradients(
            dy, columns, A, B
        ),
        "dy is cut column by column; dY [a, b] has dy[0], ..., dy[b - 1] in its first row": (
            gradients(tall, x, A, B)
        ),
        "dX is read column by column; flatten it row by row": [
            right[0].unflatten(-1, (p, q)).mT.flatten(-2),
            *right[1:],
        ],
        "you take the mean over the tokens; the gradient of a shared factor is the sum": [
            right[0],
            *(g / tokens for g in right[1:]),
        ],
        "one token alone is counted; sum over all of them": [
            right[0],
            *gradients(dy.reshape(-1, a * b)[-1], x.reshape(-1, p * q)[-1], A, B)[1:],
        ],
        "a gradient is zero: x, A and B all have one": [torch.zeros_like(g) for g in right],
        "the sign is turned": [-g for g in right],
    }
    if a == p and b == q:
        wrong |= {
            "A is transposed: forward A X B^T, so backward dX = A^T dY B": gradients(dy, x, A.T, B),
            "B is transposed: forward A X B^T, so backward dX = A^T dY B": gradients(dy, x, A, B.T),
            "that is the forward pass: backward dX = A^T dY B, each factor the other way": (
                gradients(dy, x, A.T, B.T)
            ),
            "B is missing: dY meets B on its way to A, and to x": gradients(
                dy, x, A, torch.eye(b, dtype=B.dtype)
            ),
            "A is missing: dY meets A on its way to B, and to x": gradients(
                dy, x, torch.eye(a, dtype=A.dtype), B
            ),
            "it is transposed: a gradient has the shape of its tensor": [
                right[0],
                right[1].T,
                right[2].T,
            ],
        }
        if a == b:
            wrong |= {
                "the factors are exchanged: A works on the rows of the grid, B on its columns": (
                    gradients(dy, x, B, A)
                ),
                "the order is (dx, dA, dB)": [right[0], right[2], right[1]],
            }
    for i, (name, t) in enumerate(found.items()):
        same(
            f"{name} for x {list(x.shape)}, A {a} x {p}, B {b} x {q}",
            t,
            right[i],
            {sentence: w[i] for sentence, w in wrong.items()},
        )
