"""Exercise 5.2, `lora_forward`."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from vtlite.checks.base import copies, passed, randn, same, untouched
from vtlite.checks.harness import (
    NO_TYPES,
    Answer,
    check,
    lives,
    same_gradients,
    stays_small,
)
from vtlite.checks.naive import dense, product


def _lora(x: Tensor, weight: Tensor, bias: Tensor, A: Tensor, B: Tensor, alpha: float) -> Tensor:
    return dense(x, weight + alpha / len(A) * product(A, B), bias)


@check
def lora_forward(student: Answer) -> None:
    """5.2: `lora_forward(x, weight, bias, A, B, alpha)` = x W^T + b + alpha / r (x A^T) B^T, with B
    A never formed."""
    for seed, lead, N, K, r, alpha in (
        (0, (2, 3), 4, 5, 2, 3.0),
        (1, (1,), 7, 3, 3, 0.5),
        (2, (), 5, 6, 1, -4.0),
        (4, (2, 1, 3), 3, 4, 2, 1.5),
    ):
        x, weight, bias, A, B = randn(seed, (*lead, K), (N, K), (N,), (r, K), (N, r))
        arguments: dict[str, Any] = {
            "x": x,
            "weight": weight,
            "bias": bias,
            "A": A,
            "B": B,
            "alpha": alpha,
        }
        given = {name: t for name, t in arguments.items() if isinstance(t, Tensor)}
        before = copies(given)
        found = student(*arguments.values())
        untouched(given, before)
        plain, update = dense(x, weight, 0.0), dense(x, product(A, B), 0.0)
        same(
            f"the output for x {list(x.shape)}, weight {N} x {K}, rank {r}, alpha {alpha}",
            found,
            _lora(*arguments.values()),
            {
                "the update is scaled by alpha / r, not by alpha": plain + alpha * update + bias,
                "the update is not scaled: it has the factor alpha / r": plain + update + bias,
                "alpha is divided by the width; r is the number of rows of A": (
                    plain + alpha / N * update + bias
                ),
                "alpha is divided by the number of inputs; r is the number of rows of A": (
                    plain + alpha / K * update + bias
                ),
                "alpha is multiplied by r; divide": plain + alpha * r * update + bias,
                "the scale is applied twice": plain + (alpha / r) ** 2 * update + bias,
                "the scale belongs to the update alone, not to the frozen layer": (
                    alpha / r * (plain + update + bias)
                ),
                "the bias is missing": plain + alpha / r * update,
                "the bias is added twice": plain + alpha / r * update + 2 * bias,
                "the frozen layer is missing: LoRA adds to x W^T + b": alpha / r * update,
                "the update is missing": plain + bias,
            },
        )
        same_gradients(student, _lora, arguments, "A B x")
        lives(student, _lora, arguments, without=NO_TYPES)
    x, weight, bias, A, B = randn(3, (2, 3, 88), (80, 88), (80,), (2, 88), (80, 2))
    large = {"x": x, "weight": weight, "bias": bias, "A": A, "B": B, "alpha": 4.0}
    stays_small(
        student,
        large,
        80 * 88,
        "you form B A, as large as W itself; apply A to x first, then B to the result",
    )
    passed(
        "lora_forward",
        "values for any leading shape and strides",
        "the scale alpha / r",
        "gradients of A and B and x",
        "B A never formed",
        "any device",
        "arguments untouched",
    )
