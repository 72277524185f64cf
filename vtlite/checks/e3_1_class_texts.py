"""Exercise 3.1, `class_texts`."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from vtlite.checks.base import copies, expect, passed, randn, same, untouched
from vtlite.checks.harness import Answer, check, lives, same_gradients
from vtlite.checks.inputs import TextTower

Tower = Callable[[Tensor], Tensor]
Parts = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]  # V, start, name, end, padding
_POSITIONS = ("end", "middle", "front")

Lives = Callable[[], None]  # what is run after all values


def _parts(context: Tensor, names: Tensor, ends: Tensor, c: int) -> Parts:
    V, e = context if context.ndim == 2 else context[c], int(ends[c])
    return V, names[c, :1], names[c, 1:e], names[c, e : e + 1], names[c, e + 1 :]


def _text(parts: Parts, position: str) -> Tensor:
    V, start, name, end, _ = parts
    half = len(V) // 2
    return torch.cat(
        {
            "end": [start, V, name, end],
            "middle": [start, V[:half], name, V[half:], end],
            "front": [start, name, V, end],
        }[position]
    )


def _each(
    tower: Tower,
    context: Tensor,
    names: Tensor,
    ends: Tensor,
    arrange: Callable[[Parts], Tensor],
    place: Callable[[int, int, int], int] = lambda M, end, length: M + end,
) -> Tensor:
    """Class by class, each text alone in the tower: the feature at `place`."""
    features = []
    for c in range(len(names)):
        parts = _parts(context, names, ends, c)
        out = tower(arrange(parts)[None])[0]
        at = place(len(parts[0]), int(ends[c]), len(out))
        features.append(out[min(at, len(out) - 1)])
    return torch.stack(features)


def _right(tower: Tower, context: Tensor, names: Tensor, ends: Tensor, position: str) -> Tensor:
    return _each(tower, context, names, ends, lambda parts: _text(parts, position))


@check
def class_texts(student: Answer) -> None:
    """3.1: `class_texts(tower, context, names, ends, position)` -> the features of [start, V, name,
    end], with the name at the end, in the middle or in front, read at the end token."""
    later: list[Lives] = []
    for position in _POSITIONS:
        for seed, M, D, E, per_class, ends, padding in (
            (0, 4, 5, 3, False, (3, 2, 5), 2),
            (1, 3, 4, 6, True, (2, 4), 3),
            (2, 1, 3, 3, False, (4, 3, 2, 3), 2),
            (3, 5, 2, 4, True, (6,), 4),
            (4, 2, 6, 5, False, (2, 2, 2), 2),
            (5, 3, 4, 5, False, (2, 4, 3), 0),
        ):
            C, L = len(ends), max(ends) + 1 + padding
            context, names, weight = randn(
                seed, (C, M, D) if per_class else (M, D), (C, L, D), (E, D)
            )
            given = {"context": context, "names": names, "ends": torch.tensor(ends)}
            run = _text_case(student, weight, given, position)
            if padding:  # where each end token has room to stand one place further
                later.append(run)
    for run in later:
        run()
    passed(
        "class_texts",
        "the name at the end",
        "the name in the middle",
        "the name in front",
        "the place of each end token",
        "one context for all and one for each class",
        "one call of the tower",
        "gradients of context and names",
        "any type",
        "arguments untouched",
    )


def _text_case(student: Answer, weight: Tensor, given: dict[str, Tensor], position: str) -> Lives:
    before = copies(given)
    tower, plain = TextTower(weight), TextTower(weight)
    found = student(tower, *given.values(), position)
    seen = list(tower.seen)  # asked last: a wrong value says more
    untouched(given, before)
    context, names, ends = given.values()
    C, M, most = len(names), context.shape[-2], int(ends.max())

    def each(arrange: Callable[[Parts], Tensor], *place: Callable[[int, int, int], int]) -> Tensor:
        return _each(plain, context, names, ends, arrange, *place)

    def usual(parts: Parts) -> Tensor:
        return torch.cat([_text(parts, position), parts[4]])

    def placed(other: str) -> Callable[[Parts], Tensor]:
        return lambda parts: _text(parts, other)

    def late(parts: Parts) -> Tensor:
        """The context behind the longest name, not behind each one's own."""
        V, start, name, end, padding = parts
        text = torch.cat([start, name, end, padding])
        half = {"front": 0, "middle": M // 2, "end": M}[position]
        return torch.cat([text[:1], V[:half], text[1:most], V[half:], text[most:]])

    half, more = M // 2, (M + 1) // 2
    mistakes = {
        f'the name stands {there}; position is "{position}"': each(placed(other))
        for other, there in (
            ("end", "at the end"),
            ("middle", "in the middle"),
            ("front", "in front"),
        )
        if other != position
    }
    mistakes |= {
        "the end token is read where it was before: the context moves it by M places": each(
            usual, lambda M, end, n: end
        ),
        "the token before the end token is read": each(usual, lambda M, end, n: M + end - 1),
        "the token behind the end token is read": each(usual, lambda M, end, n: M + end + 1),
        "the last token is read, which is padding: each text has its end token elsewhere": each(
            usual, lambda M, end, n: n - 1
        ),
        "the start token is read, which has seen nothing: read the end token": each(
            usual, lambda M, end, n: 0
        ),
        "all texts are read at the place where the longest ends": each(
            usual, lambda M, end, n: M + most
        ),
        "all texts are read at the place where the first ends": each(
            usual, lambda M, end, n: M + int(ends[0])
        ),
        "the mean over all tokens is taken; the feature is that of the end token": torch.stack(
            [plain(usual(_parts(context, names, ends, c))[None])[0].mean(0) for c in range(C)]
        ),
        "the context stands before the start token": each(
            lambda p: torch.cat([p[0], p[1], p[2], p[3]])
        ),
        "the end token does not see the context: it is missing, or stands behind": each(
            lambda p: torch.cat([p[1], p[2], p[3], p[0]]), lambda M, end, n: end
        ),
        "the context stands behind the end token": each(
            lambda p: torch.cat([p[1], p[2], p[3], p[0]])
        ),
        "the context stands behind the padding": each(
            lambda p: torch.cat([p[1], p[2], p[3], p[4], p[0]])
        ),
        "the context stands behind the padding, as a token of no text": each(
            lambda p: torch.cat([p[1], p[2], p[3], p[4], p[0]]), lambda M, end, n: end
        ),
        "the place behind the longest name is taken for all: other names are shorter": each(late),
        "the start token is lost": each(
            lambda p: torch.cat([_text(p, position)[1:], p[4]]), lambda M, end, n: M + end - 1
        ),
        "the start token is lost, and the place read is one too far": each(
            lambda p: torch.cat([_text(p, position)[1:], p[4]])
        ),
        "the start token stands twice": each(
            lambda p: torch.cat([p[1], _text(p, position)]), lambda M, end, n: M + end + 1
        ),
        "the context takes the places of the first tokens of the name": each(
            lambda p: torch.cat([p[1], p[0], torch.cat([p[2], p[3], p[4]])[len(p[0]) :]]),
            lambda M, end, n: end,
        ),
        "the name is missing": each(
            lambda p: torch.cat([p[1], p[0], p[3]]), lambda M, end, n: M + 1
        ),
        "the end token is missing: the name's last token is read": each(
            lambda p: _text(p, position)[:-1]
        ),
        "the vectors of the context stand in reversed order": each(
            lambda p: _text((p[0].flip(0), *p[1:]), position)
        ),
        "the context of the first class serves all": each(
            lambda p: _text((context.reshape(-1, *context.shape[-2:])[0], *p[1:]), position)
        ),
        "the mean of the classes' contexts serves all; each has its own": each(
            lambda p: _text((context.reshape(-1, *context.shape[-2:]).mean(0), *p[1:]), position)
        ),
        "the name stands twice": each(
            lambda p: torch.cat([p[1], p[2], p[0], p[2], p[3]]), lambda M, end, n: n - 1
        ),
    }
    if position == "middle":
        mistakes |= {
            "of an odd number of vectors the smaller half stands before the name: M // 2": each(
                lambda p: torch.cat([p[1], p[0][:more], p[2], p[0][more:], p[3]])
            ),
            "the two halves of the context are exchanged": each(
                lambda p: torch.cat([p[1], p[0][half:], p[2], p[0][:half], p[3]])
            ),
        }
    kind = "one context" if context.ndim == 2 else "a context for each class"
    right = _right(plain, context, names, ends, position)
    case = f'position "{position}", {C} classes, {kind} of {M} vectors'
    same(f"the features for {case}", found, right, mistakes)
    expect(
        len(seen) == 1,
        f"{case}: expected one call of the tower, found {len(seen)}",
        "the tower is what costs time: give it the texts of all classes at once, which their"
        " padding makes equally long",
    )

    def inside(function: Any) -> Any:
        return lambda context, names: function(tower, context, names, ends, position)

    weights = {"context": context, "names": names}
    same_gradients(inside(student), inside(_right), weights, "context names")
    return partial(lives, student, _right, {"tower": tower, **given, "position": position})
