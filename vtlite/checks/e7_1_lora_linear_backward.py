"""Exercise 7.1, `lora_linear_backward`."""

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
from vtlite.checks.naive import dense, product


@check
def lora_linear_backward(student: Answer) -> None:
    """7.1: `lora_linear_backward(dy, x, weight, A, B, scale)` -> (dx, dA, dB) of y = x W^T + scale
    (x A^T) B^T, B A never formed."""
    for seed, lead, N, K, r, scale, dtype in (
        (0, (2, 3), 4, 5, 3, 2.5, torch.float32),
        (1, (7,), 6, 3, 2, -0.5, torch.float64),
        (2, (1, 1), 3, 4, 1, 0.25, torch.float32),
        (3, (2, 2, 3), 3, 3, 3, 3.0, torch.float32),
        (4, (), 5, 2, 4, 1.5, torch.float32),
    ):
        dy, x, weight, A, B = (
            t.to(dtype) for t in randn(seed, (*lead, N), (*lead, K), (N, K), (r, K), (N, r))
        )
        _lora_backward_case(student, dy, x, weight, A, B, scale)
    dy, x, weight, A, B = randn(5, (2, 3, 80), (2, 3, 88), (80, 88), (2, 88), (80, 2))
    large = {"dy": dy, "x": x, "weight": weight, "A": A, "B": B, "scale": 4.0}
    stays_small(
        student,
        large,
        80 * 88,
        "you form B A, or dy^T x, as large as W itself; go through the r numbers h = x A^T and dh ="
        " dy B instead",
    )
    dy, x, weight, A, B = randn(6, (2, 3, 4), (2, 3, 5), (4, 5), (3, 5), (4, 3))
    lives(
        student,
        _naive,
        {"dy": dy, "x": x, "weight": weight, "A": A, "B": B, "scale": -1.5},
        without=AUTOGRAD_OFF,
        reads=False,
    )
    passed(
        "lora_linear_backward",
        "dx",
        "dA",
        "dB",
        "the scale",
        "any leading shape and strides",
        "B A never formed",
        "type and device",
        "arguments untouched",
    )


def _naive(
    dy: Tensor, x: Tensor, weight: Tensor, A: Tensor, B: Tensor, scale: float
) -> list[Tensor]:
    def forward(x: Tensor, weight: Tensor, A: Tensor, B: Tensor) -> Tensor:
        return dense(x, weight + scale * product(A, B), 0.0)

    return autograd(forward, dy, {"x": x, "weight": weight, "A": A, "B": B}, "x A B")


def _lora_backward_case(
    student: Answer, dy: Tensor, x: Tensor, weight: Tensor, A: Tensor, B: Tensor, scale: float
) -> None:
    tokens, r = dy[..., 0].numel(), len(A)
    found = by_hand(
        student,
        {"dy": dy, "x": x, "weight": weight, "A": A, "B": B, "scale": scale},
        {"dx": "x", "dA": "A", "dB": "B"},
    )
    naive = {"x": x, "weight": weight, "A": A, "B": B}
    dx, dA, dB = autograd(
        lambda x, weight, A, B: dense(x, weight + scale * product(A, B), 0.0), dy, naive, "x A B"
    )
    frozen = dense(dy, weight.T, 0.0)
    case = f"for x {list(x.shape)}, weight {len(weight)} x {len(weight.T)}, rank {r}, scale {scale}"
    mistakes = {
        "the update's share is missing: x reaches y through A and B as well": frozen,
        "the frozen layer's share is missing: W gets no gradient, but passes one on": dx - frozen,
        "the update's share is not scaled": frozen + (dx - frozen) / scale,
        "the update's share is scaled twice": frozen + (dx - frozen) * scale,
        "everything is scaled; the scale belongs to the update alone, not to dy W": (
            frozen * scale + (dx - frozen)
        ),
        "the update's share is subtracted": 2 * frozen - dx,
    }
    if len(weight) == len(weight.T):
        mistakes["you multiply by W^T: forward it is x W^T, backward dy W"] = (
            dense(dy, weight, 0.0) + dx - frozen
        )
    same(f"dx {case}", found["dx"], dx, mistakes)
    flat_dy, flat_x = dy.reshape(-1, len(weight)), x.reshape(-1, len(weight.T))
    for name, right, formula, one in (
        ("dA", dA, "scale B^T dy^T x", product(flat_x[-1:], (flat_dy @ B)[-1:].T) * scale),
        ("dB", dB, "scale dy^T x A^T", product((flat_x @ A.T)[-1:], flat_dy[-1:].T) * scale),
    ):
        mistakes = {
            f"the scale is missing in {name} = {formula}": right / scale,
            f"the scale counts once in {name} = {formula}; is it in h or dh already?": (
                right * scale
            ),
            "you take the mean over the tokens; the gradient of a shared factor is the sum": (
                right / tokens
            ),
            "you divide by the rank; the factor is scale, and it is given": right / r,
            "one token alone is counted; sum over all of them": one,
            "the sign is turned": -right,
            f"{name} is zero: A and B both train": torch.zeros_like(right),
        }
        if len(dA) == len(dA.T) == len(dB):
            mistakes |= {
                "the order is (dx, dA, dB)": dB if name == "dA" else dA,
                f"{name} is transposed": right.T,
            }
        same(f"{name} {case}", found[name], right, mistakes)
