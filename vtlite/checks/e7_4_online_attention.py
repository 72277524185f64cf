"""Exercise 7.4, `online_attention`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from vtlite.checks.base import expect, passed, randn, same
from vtlite.checks.gradients import finite
from vtlite.checks.harness import (
    Answer,
    check,
    stays_small,
)
from vtlite.checks.inputs import Blocks
from vtlite.checks.watch import numbers

# What is added to the scores of each block of three keys, and the mistake that it brings out.
_INF = float("inf")
_LEVELS: dict[tuple[float, ...], str] = {
    (300.0, -300.0): (
        "the maximum is that of all blocks so far, and never falls: torch.maximum(old, block's)"
    ),
    (-300.0, 300.0): "the maximum rises with a block: look at it before you take exp",
    (-300.0, 0.0, 300.0, -300.0): "the maximum is that of all blocks so far: take it anew for each",
    (-_INF, -300.0): (
        "a row that is masked so far has no maximum, not one of 0: keep -inf, and use 0 only in exp"
    ),
    (300.0, -_INF, 300.0): (
        "a block that is masked throughout changes neither the maximum nor the sums"
    ),
    (-300.0, -_INF, -290.0): (
        "a block that is masked throughout changes neither the maximum nor the sums"
    ),
    (-_INF, -_INF, 5.0): "-inf - (-inf) is no number: the first blocks of a row may all be masked",
    (-_INF, -_INF, -200.0, -_INF): (
        "-inf - (-inf) is no number: the first blocks of a row may all be masked"
    ),
    (90.0, -_INF, -90.0, 90.0): "a masked block comes between two others: keep what was carried",
}


@check
def online_attention(student: Answer) -> None:
    """7.4: `online_attention(blocks)` = softmax(scores) values, from one pass over blocks of
    both."""
    inf = torch.inf
    kept = (
        "you use a block after the next was asked for; its memory is gone. Carry maximum, sum and"
        " weighted sum instead"
    )
    start = "the running maximum has to start at -inf: above all the scores, every exp gives 0"
    overflow = (
        "exp of a large score is infinite: subtract the running maximum first, and rescale by"
        " exp(old - new), never above 1"
    )
    level = (
        "every row needs a maximum of its own; under that of another row, all its exponentials"
        " are 0"
    )
    masked = (
        "-inf - (-inf) is no number: a row with nothing but -inf so far has to keep its sums at 0"
    )
    plain, low, mixed = (
        torch.tensor(0.0),
        torch.tensor(-130.0),
        torch.tensor([[130.0], [-120.0], [0.0]]),
    )
    for seed, lead, sizes, e, level_of, hidden, likely, dtype in (
        (0, (3,), (4, 4, 4), 2, plain, None, kept, torch.float32),
        (1, (2, 3), (3, 5, 1), 4, plain, None, kept, torch.float64),
        (2, (3,), (6,), 3, plain, None, kept, torch.float32),
        (3, (3,), (1, 2, 3), 2, -low, None, overflow, torch.float32),
        (4, (3,), (4, 3), 2, low, None, start, torch.float32),
        (5, (3,), (2, 5, 2), 3, mixed, None, level, torch.float32),
        (6, (2, 3), (3, 3, 2), 2, plain, slice(0, 4), masked, torch.float32),
        (7, (3,), (3, 3, 2), 2, plain, slice(5, 8), masked, torch.float32),
        (
            8,
            (3,),
            (2, 2),
            2,
            plain,
            slice(0, 4),
            masked + ". A row that is masked throughout gives zeros",
            torch.float32,
        ),
        (
            13,
            (3,),
            (5,),
            2,
            plain,
            slice(0, 5),
            masked + ". A row that is masked throughout gives zeros, also where one block is all",
            torch.float32,
        ),
    ):
        S = sum(sizes)
        scores, values = (t.to(dtype) for t in randn(seed, (*lead, S), (*lead[:-1], S, e)))
        scores = 3 * scores + level_of.to(dtype)
        if hidden:
            scores[..., :2, hidden] = -inf  # for some rows, not for all
        _online_case(student, scores, values, sizes, likely)
    for levels, case in _LEVELS.items():
        _level_case(student, levels, case)
    scores, values = randn(11, (2, 3, 9), (2, 9, 2))
    _online_case(student, scores, values, (4, 1, 4), "a block may be transposed or cut", cut=True)
    scores, values = randn(9, (2, 4, 60), (2, 60, 3))
    stays_small(
        lambda scores, values: student(Blocks(scores, values, (10,) * 6)),
        {"scores": scores, "values": values},
        scores.numel(),
        "you collect the blocks and join them, so the whole row is there again; carry maximum, sum"
        " and weighted sum",
    )
    _keeps_sums(student)
    passed(
        "online_attention",
        "values against the whole row",
        "uneven blocks",
        "large and small and rising and falling scores",
        "masked blocks and rows",
        "one pass with nothing kept but sums",
        "blocks untouched",
    )


def _level_case(student: Answer, levels: tuple[float, ...], likely: str) -> None:
    """Rows with these levels from block to block, beside rows of plain scores; and one row that has
    a single key."""
    scores, values = randn(10, (2, 4, 3 * len(levels)), (2, 3 * len(levels), 5))
    scores[:, :2] += torch.tensor(levels).repeat_interleave(3)
    scores[:, 2, 1:] = scores[:, 3, :-1] = -_INF
    _online_case(student, scores, values, (3,) * len(levels), likely)


def _keeps_sums(student: Answer) -> None:
    """Twice as many blocks need no more memory."""
    kept = []
    for count in (6, 12):
        scores, values = randn(12, (2, 4, 10 * count), (2, 10 * count, 3))
        with torch.no_grad():
            kept.append(numbers(student, Blocks(scores, values, (10,) * count)).kept)
    expect(
        kept[1] <= kept[0],
        f"expected no more memory for 12 blocks than for 6, found {kept[1]} numbers at once and"
        f" {kept[0]}",
        "you collect the blocks, or copies of them, so the whole row is there again; carry maximum,"
        " sum and weighted sum",
    )


def _online_case(
    student: Answer,
    scores: Tensor,
    values: Tensor,
    sizes: tuple[int, ...],
    likely: str,
    cut: bool = False,
) -> None:
    blocks = Blocks(scores, values, sizes, cut)
    found = student(blocks)
    s, v = scores.double(), values.double()

    def softmax(s: Tensor) -> Tensor:  # entry by entry; a row without any gives zeros
        top = s.amax(-1, keepdim=True)
        p = torch.where(s == -torch.inf, 0.0, (s - torch.where(top == -torch.inf, 0.0, top)).exp())
        return p / p.sum(-1, keepdim=True).clamp(min=1e-300)

    case = f"scores {list(scores.shape)} in blocks of {sizes}"
    expected = (softmax(s) @ v).to(scores.dtype)
    expect(
        isinstance(found, Tensor),
        f"{case}: expected a tensor, found {type(found).__name__}",
        "return weighted sum / sum",
    )
    expect(
        found.shape == expected.shape,
        f"{case}: expected shape {list(expected.shape)}, found {list(found.shape)}",
        "keep the last dimension of maximum and sum (keepdim=True), so that they fit to [...,"
        " R, e]",
    )
    expect(
        found.dtype == scores.dtype,
        f"{case}: expected {scores.dtype}, found {found.dtype}",
        "the type is lost: start from the first block, or with new_zeros and new_full",
    )
    finite(found, case, likely)
    parts = list(zip(s.split(sizes, -1), v.split(sizes, -2), strict=True))
    tops = [
        torch.stack([part.amax(-1, keepdim=True) for part, _ in parts[: n + 1]]).amax(0)
        for n in range(len(parts))
    ]
    total, weighted = _running(
        parts, tops, lambda old, new: (old - new).exp(), lambda old, new: (old - new).exp()
    )
    raw_total, raw_weighted = _running(parts, tops, lambda old, new: 1.0, lambda old, new: 1.0)
    wrong = {
        "sum and weighted sum keep their old scale: when the maximum rises, multiply both by exp(old - new)": (
            raw_weighted / raw_total
        ),
        "the sum keeps its old scale: when the maximum rises, multiply it by exp(old - new)": (
            weighted / raw_total
        ),
        "the weighted sum keeps its old scale: when the maximum rises, multiply it by exp(old - new)": (
            raw_weighted / total
        ),
        "the factor is turned round: exp(old - new), at most 1": _quotient(
            _running(
                parts, tops, lambda old, new: (new - old).exp(), lambda old, new: (new - old).exp()
            )
        ),
        "every block has its own softmax and they are averaged; a block counts by its share of the sum": (
            sum(softmax(part) @ value for part, value in parts) / len(parts)
        ),
        "every block has its own softmax and they are added; divide once, by the sum over all blocks": sum(
            (softmax(part) @ value for part, value in parts), torch.zeros_like(weighted)
        ),
        "you divide by the sum in every block; once, at the end": _divided(parts, tops),
        "you never divide by the sum": weighted,
        "only the last block is left: add to what was carried": (
            softmax(parts[-1][0]) @ parts[-1][1]
        ),
        "the last block is missing": (
            softmax(torch.cat([part for part, _ in parts[:-1]] or [s], -1))
            @ torch.cat([value for _, value in parts[:-1]] or [v], -2)
        ),
        likely: torch.where(found == 0, 0.0, expected),
    }
    same(
        case,
        found,
        expected,
        {sentence: w.to(scores.dtype).nan_to_num() for sentence, w in wrong.items()},
        tolerance=3e-5,
    )
    expect(
        blocks.seen == len(sizes),
        f"{case}: expected {len(sizes)} blocks to be used, found {blocks.seen}",
        "go through all blocks",
    )
    expect(
        not blocks.written,
        f"{case}: expected the blocks to stay as they were, found one changed",
        "you wrote into a block (-=, exp_, masked_fill_): make a new tensor",
    )


def _running(
    parts: list[tuple[Tensor, Tensor]],
    tops: list[Tensor],
    of_sum: Callable[..., Any],
    of_weighted: Callable[..., Any],
) -> tuple[Tensor, Tensor]:
    """Sum and weighted sum with the factors given; for the mistakes, so without care for masked
    rows."""
    total, weighted, old = (
        torch.zeros_like(tops[0]),
        torch.zeros_like(parts[0][0] @ parts[0][1]),
        tops[0],
    )
    for (s, v), top in zip(parts, tops, strict=True):
        p = (s - top).exp()
        total = total * of_sum(old, top) + p.sum(-1, keepdim=True)
        weighted = weighted * of_weighted(old, top) + p @ v
        old = top
    return total, weighted


def _quotient(sums: tuple[Tensor, Tensor]) -> Tensor:
    return sums[1] / sums[0]


def _divided(parts: list[tuple[Tensor, Tensor]], tops: list[Tensor]) -> Tensor:
    total, out, old = (
        torch.zeros_like(tops[0]),
        torch.zeros_like(parts[0][0] @ parts[0][1]),
        tops[0],
    )
    for (s, v), top in zip(parts, tops, strict=True):
        p = (s - top).exp()
        total = total * (old - top).exp() + p.sum(-1, keepdim=True)
        out = (out * (old - top).exp() + p @ v) / total
        old = top
    return out
