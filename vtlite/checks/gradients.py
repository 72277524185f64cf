"""Gradients that are written out by hand: what the exercises about them share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from vtlite.checks.base import copies, expect, fail, untouched
from vtlite.checks.harness import (
    Answer,
)


def by_hand(student: Answer, arguments: dict[str, Any], likes: dict[str, str]) -> dict[str, Tensor]:
    """What `student` returns, each with its argument's shape and type: {"dx": "x"}. Run where
    autograd is off; arguments unchanged."""
    given = {name: t for name, t in arguments.items() if isinstance(t, Tensor)}
    before = copies(given)
    student.by_hand = True
    with torch.inference_mode():
        returned = student(*arguments.values())
    untouched(given, before)
    if len(likes) == 1:
        returned = (returned,)
    order = ", ".join(likes)
    several = isinstance(returned, tuple | list)
    expect(
        several and len(returned) == len(likes),
        f"expected {len(likes)} tensors, found"
        f" {len(returned) if several else type(returned).__name__}",
        f"return ({order}); what is frozen has no gradient",
    )
    for (name, like), t in zip(likes.items(), returned, strict=True):
        expect(
            isinstance(t, Tensor),
            f"expected a tensor as {name}, found {type(t).__name__}",
            f"return ({order}), all of them tensors",
        )
        wanted, found = list(given[like].shape), list(t.shape)
        if found != wanted:
            others = [list(given[other].shape) for other in likes.values() if other != like]
            likely = (
                "you give one gradient per token; a factor serves all of them, so sum over all"
                " dimensions in front"
                if t.ndim > len(wanted) and found[-2:] in (wanted, wanted[::-1])
                else (
                    f"it is transposed: a gradient has the shape of its tensor, here that of {like}"
                    if found == wanted[::-1]
                    else (
                        f"the order is ({order})"
                        if found in others
                        else f"a gradient has the shape of its tensor, here that of {like}"
                    )
                )
            )
            fail(f"{name}: expected shape {wanted}, found {found}", likely)
        expect(
            t.dtype == given[like].dtype,
            f"{name}: expected {given[like].dtype}, found {t.dtype}",
            "the type is lost (float(), torch.zeros without dtype=): a gradient has the type of its"
            " tensor",
        )
    return dict(zip(likes, returned, strict=True))


def finite(found: Tensor, case: str, likely: str) -> None:
    for number in found[~found.isfinite()][:1]:
        fail(f"{case}: expected numbers, found {number.item()}", likely)


def autograd(
    function: Callable[..., Any], dy: Tensor, arguments: dict[str, Any], wanted: str
) -> list[Tensor]:
    """The gradients of sum(dy * function(...)), computed in float64, in the arguments' own type."""
    wide = {
        name: t.double().clone() if isinstance(t, Tensor) else t for name, t in arguments.items()
    }
    leaves = {name: wide[name].requires_grad_() for name in wanted.split()}
    grads = torch.autograd.grad(
        (function(*wide.values()) * dy.double()).sum(), list(leaves.values())
    )
    return [grad.to(arguments[name].dtype) for grad, name in zip(grads, leaves, strict=True)]
