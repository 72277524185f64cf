"""What a wrong value looks like, where no known mistake gives it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from vtlite.checks.compare import difference

_NONE = "the function returns nothing on this way: is there a return in every branch?"


def guess(found: Any, expected: Any) -> str:
    """A sentence on how `found` differs from `expected`: by a factor, a sign, an order, a place."""
    if found is None:
        return _NONE
    if isinstance(expected, dict):
        return _of_dicts(found, expected)
    if isinstance(expected, Tensor):
        return _of_tensors(found, expected)
    if isinstance(found, Tensor):
        found = found.item() if found.numel() == 1 else None
    if isinstance(found, bool) or not isinstance(found, int | float):
        return "return a plain number: what you return is of another type"
    return _of_numbers(float(found), float(expected))


def _of_numbers(found: float, expected: float) -> str:
    if found != found or abs(found) == float("inf"):
        return "there is 0 / 0, or a number too large: look at what you divide by"
    if found == 0:
        return "it is zero: what you sum up is never added, or multiplied by zero"
    if expected == 0:
        return "it should be zero here: look at the case in which nothing is to be done"
    ratio = found / expected
    if ratio < 0:
        return "the sign is turned: what is subtracted from what?"
    for n in range(2, 33):
        if abs(ratio - n) < 1e-6 or abs(ratio * n - 1) < 1e-6:
            return (
                f"it is {n} times too {'large' if ratio > 1 else 'small'}: a factor is missing, or"
                " counted twice"
            )
    gap = f"{abs(found - expected):.6g}"
    return (
        f"it is too large by {gap}: which term has this size, and does it belong there?"
        if found > expected
        else f"it is too small by {gap}: which term has this size, and is it missing?"
    )


def _of_dicts(found: Any, expected: dict[Any, Any]) -> str:
    if not isinstance(found, dict) or {str(key) for key in found} != set(expected):
        return "return a dict with one entry for each name of the text, and no other"
    wrong = [key for key in expected if difference(found[key], expected[key], 1e-4)]
    which = f"{len(wrong)} of {len(expected)} entries are wrong, {wrong[0]!r} first: "
    return which + guess(found[wrong[0]], expected[wrong[0]])


def _of_tensors(found: Any, expected: Tensor) -> str:
    if not isinstance(found, Tensor):
        return "return a tensor: what you return is of another type"
    if found.shape != expected.shape:
        return _of_shapes(list(found.shape), list(expected.shape))
    if found.dtype != expected.dtype:
        return (
            "the type changes on the way (float(), torch.zeros without dtype=, a division of whole"
            " numbers): keep that of the arguments"
        )
    a, b = found.detach().double().flatten(), expected.detach().double().flatten()
    if not a.isfinite().all() and b.isfinite().all():
        return (
            "there is 0 / 0, the exp of a large number, or memory that was reserved and never"
            " written (torch.empty)"
        )
    if a.numel() == 1:
        return _of_numbers(a.item(), b.item())
    close = torch.isclose(a, b, rtol=1e-3, atol=1e-6)
    if not a.any():
        return "it is zero throughout: what you compute never arrives in the result"
    nonzero = b.abs() > 1e-6
    ratio = (a[nonzero] / b[nonzero])[~close[nonzero]]
    if len(ratio) > 1 and torch.allclose(ratio, ratio[0].expand_as(ratio), rtol=1e-3):
        where = "every number" if not close[nonzero].any() else "every wrong number"
        return f"{where} is {ratio[0].item():.4g} times what it should be: look for that factor"
    gap = (a - b)[~close]
    if len(gap) > 1 and torch.allclose(gap, gap[0].expand_as(gap), rtol=1e-3, atol=1e-6):
        return f"{gap[0].item():.4g} is added to every number: look for that term"
    if torch.allclose(a.sort().values, b.sort().values, rtol=1e-3, atol=1e-6):
        return (
            "the numbers are right, but in another order: a transpose, or a wrong cut into a grid"
        )
    if close.any():
        return (
            f"{int(close.sum())} of {len(close)} numbers are right: which rows or columns are not,"
            " and what is special about them?"
        )
    return (
        "all numbers differ: compare the formula with the code term by term, and look for a product"
        " that should be a sum, a wrong argument, or a step left out"
    )


def _of_shapes(found: list[int], expected: list[int]) -> str:
    if sorted(found) == sorted(expected):
        return "the dimensions are in another order: something is transposed, or not transposed"
    if len(found) > len(expected):
        return "there is a dimension too many: sum over it, or flatten it"
    if len(found) < len(expected):
        return "a dimension is lost: was it summed, or taken by an index? (keepdim, cat, stack)"
    return "a size is another: was something cut off, repeated, or joined along another dimension?"
