"""Exercise 5.4, `kron_forward`."""

from __future__ import annotations

import torch

from vtlite.checks.base import copies, passed, randn, same, untouched
from vtlite.checks.harness import (
    NO_TYPES,
    Answer,
    check,
    lives,
    same_gradients,
    stays_small,
)
from vtlite.checks.naive import kron


@check
def kron_forward(student: Answer) -> None:
    """5.4: `kron_forward(x, A, B)` = x (A (x) B)^T, with the large matrix never formed."""
    cases = (
        (0, (2,), 3, 3, 3, 3),
        (1, (2, 3), 2, 3, 4, 5),
        (2, (1,), 4, 1, 2, 3),
        (3, (), 1, 5, 3, 2),
        (5, (2, 1, 3), 2, 3, 3, 2),
    )
    for seed, lead, a, p, b, q in cases:
        x, A, B = randn(seed, (*lead, p * q), (a, p), (b, q))
        arguments = {"x": x, "A": A, "B": B}
        before = copies(arguments)
        found = student(x, A, B)
        untouched(arguments, before)
        columns = x.unflatten(-1, (q, p)).mT.flatten(-2)
        expected = kron(x, A, B)
        mistakes = {
            "the factors are exchanged: A (x) B is not B (x) A. A works on the rows of the grid, B on its columns": kron(
                x, B, A
            ),
            "x is cut column by column; X [p, q] has x[0], ..., x[q - 1] in its first row": kron(
                columns, A, B
            ),
            "the result is read column by column; A X B^T is [a, b], flattened row by row": (
                expected.unflatten(-1, (a, b)).mT.flatten(-2)
            ),
        }
        if a == p and b == q:
            mistakes |= {
                "B is not transposed: (A (x) B) x = vec(A X B^T)": kron(x, A, B.T),
                "A is transposed, B is not: (A (x) B) x = vec(A X B^T)": kron(x, A.T, B),
                "both factors are transposed: that is x (A (x) B), without the transpose of a linear layer": kron(
                    x, A.T, B.T
                ),
                "B is missing: a Kronecker product works with both factors": kron(
                    x, A, torch.eye(b)
                ),
                "A is missing: a Kronecker product works with both factors": kron(
                    x, torch.eye(a), B
                ),
            }
        same(
            f"the output for x {list(x.shape)}, A {a} x {p}, B {b} x {q}", found, expected, mistakes
        )
        same_gradients(student, kron, arguments, "A B x")
        lives(student, kron, arguments, without=NO_TYPES)
    x, A, B = randn(4, (3, 180), (12, 10), (16, 18))
    stays_small(
        student,
        {"x": x, "A": A, "B": B},
        A.numel() * B.numel(),
        "you form A (x) B, with every pair of entries; cut x into a grid instead, and multiply it"
        " from both sides",
    )
    passed(
        "kron_forward",
        "values entry by entry",
        "rows and columns of both factors",
        "any leading shape and strides",
        "gradients of A and B and x",
        "the matrix never formed",
        "any device",
    )
