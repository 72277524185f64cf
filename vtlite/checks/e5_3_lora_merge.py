"""Exercise 5.3, `lora_merge`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from vtlite.checks.base import copies, passed, randn, same, untouched
from vtlite.checks.harness import (
    VALUES_ONLY,
    Answer,
    check,
    lives,
    new_memory,
)
from vtlite.checks.naive import product


@check
def lora_merge(student: Answer) -> None:
    """5.3: `lora_merge(weight, factors, alpha)` adds the updates of some of q, k, v to the fused
    weight [3 D, K]."""
    for case in (
        (0, 5, 5, {"q": 2, "v": 2}, 6.0),
        (1, 3, 5, {"v": 2}, 1.0),
        (2, 5, 3, {"v": 3, "k": 1, "q": 2}, -2.0),
        (3, 2, 3, {}, 1.0),
    ):
        _merge_case(student, *case)
    passed(
        "lora_merge",
        "the rows of q and k and v",
        "other rows unchanged",
        "alpha / r with each one's own rank",
        "a new tensor",
        "any device",
        "arguments untouched",
    )


def _merge_case(
    student: Answer, seed: int, D: int, K: int, ranks: dict[str, int], alpha: float
) -> None:
    (weight,) = randn(seed, (3 * D, K))
    factors = {
        letter: tuple(randn(10 * seed + i, (r, K), (D, r)))
        for i, (letter, r) in enumerate(ranks.items(), 1)
    }
    given = {"weight": weight} | {
        f"{'AB'[i]} of {letter}": t for letter, pair in factors.items() for i, t in enumerate(pair)
    }
    before = copies(given)
    found = student(weight, factors, alpha)
    untouched(given, before)

    def merged(
        rows: Callable[[str], Any] = lambda letter: slice(
            "qkv".index(letter) * D, ("qkv".index(letter) + 1) * D
        ),
        scale: Callable[[str], float] = lambda letter: alpha / ranks[letter],
        keep: float = 1.0,
        update: Callable[[Tensor, Tensor], Tensor] = product,
    ) -> Tensor:
        out = weight.clone()
        for letter, (A, B) in factors.items():
            out[rows(letter)] = keep * out[rows(letter)] + scale(letter) * update(A, B)
        return out

    order = list(ranks)
    mistakes = {
        "the update is scaled by alpha / r, not by alpha": merged(scale=lambda _: alpha),
        "the update is not scaled: it has the factor alpha / r": merged(scale=lambda _: 1.0),
        "alpha is divided by D; r is the number of rows of A": merged(scale=lambda _: alpha / D),
        "alpha is divided by the sum of the ranks; each letter has its own r": merged(
            scale=lambda _: alpha / sum(ranks.values())
        ),
        "alpha is divided by the rank of the first letter; each letter has its own r": merged(
            scale=lambda _: alpha / ranks[order[0]]
        ),
        "q, k, v lie one below the other in this order, and every letter keeps its third, whichever others are given": merged(
            rows=lambda letter: slice(order.index(letter) * D, (order.index(letter) + 1) * D)
        ),
        "you went through the thirds backwards: q is the first, v the last": merged(
            rows=lambda letter: slice((2 - "qkv".index(letter)) * D, (3 - "qkv".index(letter)) * D)
        ),
        "you took every third row; q, k, v lie one below the other, D rows each": merged(
            rows=lambda letter: slice("qkv".index(letter), None, 3)
        ),
        "the frozen weight is lost: the update is added to it": merged(keep=0.0),
        "the update is subtracted": merged(scale=lambda letter: -alpha / ranks[letter]),
    }
    if D == K:
        mistakes["the update is transposed: it is B A, [D, K], and weight is [out, in]"] = merged(
            update=lambda A, B: product(A, B).T
        )
    if len(factors) == 2:
        every = weight.clone()
        for letter, (A, B) in factors.items():
            for start in range(3):
                every[start * D : (start + 1) * D] += alpha / ranks[letter] * product(A, B)
        mistakes["every third got every update; each letter has its own D rows"] = every
    same(
        f"the merged weight [3 x {D}, {K}] for {', '.join(ranks) or 'no letter'}",
        found,
        merged(),
        mistakes,
    )
    new_memory(found, given)

    def naive(weight: Tensor, factors: dict[str, Any], alpha: float) -> Tensor:
        out = weight.clone()
        for letter, (A, B) in factors.items():
            for row in range(D):
                out["qkv".index(letter) * D + row] += alpha / len(A) * product(A, B)[row]
        return out

    lives(
        student, naive, {"weight": weight, "factors": factors, "alpha": alpha}, without=VALUES_ONLY
    )
