"""Exercise 5.6, `ssf_merge`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from vtlite.checks.base import copies, expect, passed, randn, same, untouched
from vtlite.checks.harness import (
    VALUES_ONLY,
    Answer,
    check,
    lives,
    new_memory,
)


@check
def ssf_merge(student: Answer) -> None:
    """5.6: `ssf_merge(weight, bias, scale, shift)` -> the weight and bias of scale * operation(x) +
    shift."""

    def linear(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
        return F.linear(x, w, b)

    def norm(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
        return F.layer_norm(x, (len(w),), w, b)

    def conv(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
        return F.conv2d(x, w, b, groups=x.shape[1] // w.shape[1])

    _ssf_case(student, "a linear layer", linear, (4, 4), (2, 3, 4), 0)
    _ssf_case(student, "a linear layer", linear, (3, 5), (1, 5), 1)
    _ssf_case(student, "a linear layer without a bias", linear, (5, 2), (4, 2), 2, with_bias=False)
    _ssf_case(student, "a LayerNorm", norm, (6,), (2, 3, 6), 3)
    _ssf_case(student, "a convolution", conv, (4, 3, 2, 4), (2, 3, 5, 6), 4)
    _ssf_case(student, "a depth-wise convolution", conv, (5, 1, 3, 2), (1, 5, 4, 4), 5)
    weight, bias = randn(6, (3, 4), (3,))
    for t in student(weight, bias, torch.ones(3), torch.zeros(3)):
        new_memory(t, {"weight": weight, "bias": bias})
    passed(
        "ssf_merge",
        "linear layers",
        "LayerNorm",
        "convolutions",
        "a layer without a bias",
        "any device",
        "new tensors and arguments untouched",
    )


def _ssf_case(
    student: Answer,
    kind: str,
    operation: Callable[..., Any],
    shape: tuple[int, ...],
    images: tuple[int, ...],
    seed: int,
    with_bias: bool = True,
) -> None:
    weight, bias, scale, shift, x = randn(seed, shape, shape[:1], shape[:1], shape[:1], images)
    given = {"weight": weight, "scale": scale, "shift": shift} | (
        {"bias": bias} if with_bias else {}
    )
    before = copies(given)
    returned = student(weight, bias if with_bias else None, scale, shift)
    untouched(given, before)
    expect(
        isinstance(returned, tuple | list) and len(returned) == 2,
        f"expected two tensors, found {type(returned).__name__}",
        "return (weight, bias)",
    )
    bias = bias if with_bias else torch.zeros_like(bias)
    for name, found, like in zip(("weight", "bias"), returned, (weight, bias), strict=True):
        expect(
            isinstance(found, Tensor),
            f"{kind}: expected a tensor as {name}, found {type(found).__name__}",
            "a layer without a bias counts as one with a bias of zeros; the shift needs a place",
        )
        expect(
            found.shape == like.shape,
            f"{kind}: expected a {name} of shape {list(like.shape)}, found {list(found.shape)}",
            "there is one scale per output channel, the first dimension of weight; give it as many"
            " trailing ones as weight needs",
        )

    def channels(t: Tensor) -> Tensor:
        return t.movedim(1, -1) if len(shape) == 4 else t

    plain = operation(x, weight, bias)
    expected = channels(plain).clone()
    for c in range(shape[0]):  # the two numbers of one channel after the other
        expected[..., c] = scale[c] * expected[..., c] + shift[c]

    def output(w: Tensor, b: Tensor) -> Tensor:
        return channels(operation(x, w, b))

    spread = scale.view(-1, *[1] * (len(shape) - 1))
    mistakes = {
        "the old bias is not scaled: scale (W x + b) + shift has scale b in it": output(
            spread * weight, bias + shift
        ),
        "the shift is scaled too; only the old bias is": output(
            spread * weight, scale * (bias + shift)
        ),
        "the shift is missing in the new bias": output(spread * weight, scale * bias),
        "the old bias is lost: it is scaled, and the shift is added": output(
            spread * weight, shift
        ),
        "the bias stays as it was: it is scaled, and the shift is added": output(
            spread * weight, bias
        ),
        "the weight is not scaled": output(weight, scale * bias + shift),
        "the weight is divided by the scale": output(weight / spread, scale * bias + shift),
        "the scale is added to the weight; it multiplies": output(
            weight + spread, scale * bias + shift
        ),
        "the scale is used as 1 + scale; here it is the factor itself": output(
            (1 + spread) * weight, (1 + scale) * bias + shift
        ),
        "scale and shift are exchanged": output(
            shift.view_as(spread) * weight, shift * bias + scale
        ),
    }
    if len(shape) > 1 and shape[-1] == shape[0]:
        mistakes[
            "the scale went along the last dimension, the inputs; it has one number per output, the"
            " first dimension"
        ] = output(weight * scale, scale * bias + shift)
    same(
        f"the output of {kind} with the merged weight {list(shape)}",
        output(*returned),
        expected,
        mistakes,
        tolerance=2e-5,
    )
    for t in returned:
        new_memory(t, given)

    def naive(w: Tensor, b: Tensor | None, scale: Tensor, shift: Tensor) -> tuple[Tensor, Tensor]:
        rows = [scale[c] * w[c] for c in range(len(w))]
        return torch.stack(rows), shift + (0 if b is None else scale * b)

    given_bias = bias if with_bias else None
    lives(
        student,
        naive,
        {"weight": weight, "bias": given_bias, "scale": scale, "shift": shift},
        without=VALUES_ONLY,
    )
