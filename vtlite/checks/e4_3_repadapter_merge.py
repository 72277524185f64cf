"""Exercise 4.3, `repadapter_merge`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from vtlite.checks.base import copies, expect, passed, randn, same, untouched
from vtlite.checks.harness import (
    VALUES_ONLY,
    Answer,
    check,
    lives,
    new_memory,
)
from vtlite.checks.naive import dense

_TYPED = {"arguments that require a gradient": VALUES_ONLY["arguments that require a gradient"]}


def _spread(B: Tensor) -> Tensor:
    """The blocks [g, D / g, R / g] entry by entry at their places in a matrix [D, R] of zeros."""
    g, rows, columns = B.shape
    whole = B.new_zeros(g * rows, g * columns)
    for block in range(g):
        for i in range(rows):
            for j in range(columns):
                whole[block * rows + i, block * columns + j] = B[block, i, j]
    return whole


def _inside(A: Tensor, a: Tensor, up: Tensor, b: Tensor, scale: float) -> Callable[..., Any]:
    """x -> x + scale (up (A x + a) + b)."""
    return lambda x: x + scale * dense(dense(x, A, a), up, b)


@check
def repadapter_merge(student: Answer) -> None:
    """4.3: `repadapter_merge(weight, bias, A, a, B, b, scale)` -> weight and bias of the one layer
    that does W (x + scale (B (A x + a) + b)) + bias."""
    for case in (
        (0, 5, 6, 4, 2, 0.5),
        (1, 6, 6, 6, 3, -2.0),
        (2, 3, 4, 2, 1, 10.0),
        (3, 7, 6, 6, 2, 1.0),
        (4, 2, 8, 4, 4, 0.25),
        (5, 4, 4, 4, 2, 1.5),
    ):
        for with_bias in (True, False):
            _merge_case(student, *case, with_bias)
    weight, bias, A, a, b = randn(6, (3, 4), (3,), (2, 4), (2,), (4,))
    for returned in (
        student(weight, bias, A, a, torch.zeros(2, 2, 1), 0 * b, 1.0),  # as it starts
        student(weight, bias, A, a, randn(7, (2, 2, 1))[0], b, 0.0),
    ):
        for t in _pair(returned):
            new_memory(t, {"weight": weight, "bias": bias})
        same("the weight of an adapter that does nothing", returned[0], weight)
        same("the bias of an adapter that does nothing", returned[1], bias)
    passed(
        "repadapter_merge",
        "the weight",
        "the bias",
        "groups",
        "the scale",
        "a layer without a bias",
        "any type and device",
        "new tensors and arguments untouched",
    )


def _pair(returned: Any) -> Any:
    expect(
        isinstance(returned, tuple | list) and len(returned) == 2,
        f"expected two tensors, found {type(returned).__name__}",
        "return (weight, bias)",
    )
    return returned


def _merge_case(
    student: Answer,
    seed: int,
    N: int,
    D: int,
    R: int,
    g: int,
    scale: float,
    with_bias: bool,
) -> None:
    weight, bias, A, a, B, b, x = randn(
        seed, (N, D), (N,), (R, D), (R,), (g, D // g, R // g), (D,), (2, 3, D)
    )
    given: dict[str, Any] = {
        "weight": weight,
        "bias": bias if with_bias else None,
        "A": A,
        "a": a,
        "B": B,
        "b": b,
    }
    tensors = {name: t for name, t in given.items() if t is not None}
    before = copies(tensors)
    returned = _pair(student(*given.values(), scale))
    untouched(tensors, before)
    case = f"weight {N} x {D}, width {R}, {g} groups, scale {scale}"
    case += "" if with_bias else ", no bias"
    bias = bias if with_bias else torch.zeros_like(bias)
    for name, found, like in zip(("weight", "bias"), returned, (weight, bias), strict=True):
        expect(
            isinstance(found, Tensor),
            f"{case}: expected a tensor as {name}, found {type(found).__name__}",
            "a layer without a bias counts as one with a bias of zeros: a and b need a place",
        )
        expect(
            found.shape == like.shape,
            f"{case}: expected a {name} of shape {list(like.shape)}, found {list(found.shape)}",
            "the adapter comes first, so it stands on the right: W (I + scale B A)"
            if name == "weight"
            else "a and b go through the adapter and then through W, so the bias has N numbers",
        )
        new_memory(found, tensors)

    up = _spread(B)
    expected = dense(_inside(A, a, up, b, scale)(x), weight, bias)

    def plain(inside: Callable[..., Any], shift: Tensor = bias) -> Tensor:
        return dense(inside(x), weight, shift)

    interleaved = torch.zeros_like(up)
    for block in range(g):
        interleaved[block::g, block::g] = B[block]
    turned = _spread(B.flip(0))
    W, zero = weight, torch.zeros(())
    wrong_weight = {
        "the scale is missing": _inside(A, a, up, b, 1.0),
        "the scale is applied twice": _inside(A, a, up, b, scale * scale),
        "the adapter's skip is missing: W (I + scale B A), with the identity": lambda x: (
            scale * dense(dense(x, A, a), up, b)
        ),
        "the scale multiplies x, too: it belongs to the adapter's share alone": lambda x: (
            scale * _inside(A, a, up, b, 1.0)(x)
        ),
        "b is missing in the bias: scale W b": _inside(A, a, up, zero, scale),
        "a is missing in the bias: scale W B a": _inside(A, zero * a, up, b, scale),
        "a and b are both missing in the bias": _inside(A, zero * a, up, zero, scale),
        "b is not scaled: it is inside the bracket": lambda x: (
            x + scale * dense(dense(x, A, a), up, 0.0) + b
        ),
        "a goes through B, and is scaled like all else": lambda x: (
            x + scale * dense(dense(x, A, zero * a), up, b) + dense(a, up, 0.0)
        ),
        "the groups are interleaved; block i holds neighbours, output channels i D / g to (i + 1) D / g - 1": _inside(
            A, a, interleaved, b, scale
        ),
        "the blocks are in the order of the last first": _inside(A, a, turned, b, scale),
        "the adapter's share is subtracted": _inside(A, a, up, b, -scale),
    }
    mistakes = {text: plain(inside) for text, inside in wrong_weight.items()}
    mistakes |= {
        "the old bias is lost": expected - bias,
        "the old bias is added twice": expected + bias,
        "the bias stays as it was: a and b pass through W": (
            dense(x, weight + scale * W @ up @ A, bias)
        ),
        "the weight stays as it was": expected - dense(x, scale * W @ up @ A, 0.0),
    }
    if N == D:
        S = torch.eye(D) + scale * up @ A
        mistakes |= {
            "the order is turned round: the adapter comes before the layer, so W (I + scale B A), not (I + scale B A) W": dense(
                x, S @ W, dense(scale * (up @ a + b), W, bias)
            ),
            "b is added behind the layer: it goes through W like all that the adapter gives": (
                dense(_inside(A, a, up, zero, scale)(x), weight, bias + scale * b)
            ),
            "the scaled biases do not go through W: scale W (B a + b)": (
                dense(x, W + scale * W @ up @ A, bias + scale * (up @ a + b))
            ),
            "W is transposed for the bias: scale W (B a + b)": (
                dense(x, W + scale * W @ up @ A, bias + scale * W.T @ (up @ a + b))
            ),
            "the product is transposed: W B A, [N, D]": (
                dense(x, W + scale * (W @ up @ A).T, dense(scale * (up @ a + b), W, bias))
            ),
        }
    if D == R:
        mistakes["A and B are exchanged: x goes through A first, so B A"] = dense(
            x, W + scale * W @ A @ up, dense(scale * (up @ a + b), W, bias)
        )
        mistakes["B is transposed: a block is [D / g, R / g], outputs first"] = plain(
            _inside(A, a, up.T, b, scale)
        )
    if g == 1:
        mistakes.pop(
            "the groups are interleaved; block i holds neighbours, output channels i D / g to (i + 1) D / g - 1"
        )
    same(
        f"the output of the merged layer, {case}",
        dense(x, *returned),
        expected,
        {text: value for text, value in mistakes.items() if not torch.equal(value, expected)},
        tolerance=2e-5,
    )

    def naive(
        weight: Tensor,
        bias: Tensor | None,
        A: Tensor,
        a: Tensor,
        B: Tensor,
        b: Tensor,
        scale: float,
    ) -> tuple[Tensor, Tensor]:
        up, N = _spread(B), len(weight)
        rows = [row + scale * sum((row @ up[:, j]) * A[j] for j in range(len(A))) for row in weight]
        shift = [scale * weight[i] @ (up @ a + b) for i in range(N)]
        return torch.stack(rows), torch.stack(shift) + (0 if bias is None else bias)

    lives(student, naive, given | {"scale": scale}, without=_TYPED)
