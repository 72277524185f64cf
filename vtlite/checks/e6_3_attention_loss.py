"""Exercise 6.3, `attention_loss`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from vtlite.checks.base import copies, expect, passed, randn, same, untouched
from vtlite.checks.gradients import finite
from vtlite.checks.harness import Answer, check, lives, same_gradients


def _strength(maps: Tensor) -> Tensor:
    """[B, D, h, w] -> [B, h w], place by place and channel by channel."""
    B, D, h, w = maps.shape
    images = []
    for b in range(B):
        places = [
            torch.stack([maps[b, c, i, j] ** 2 for c in range(D)]).sum()
            for i in range(h)
            for j in range(w)
        ]
        images.append(torch.stack(places))
    return torch.stack(images)


def _unit(Q: Tensor) -> Tensor:
    """Each row of length one, a row of zeros as it is."""
    return torch.stack([row / (row**2).sum().sqrt() if row.any() else row for row in Q])


def _right(
    student: Sequence[Tensor],
    teacher: Sequence[Tensor],
    strength: Callable[[Tensor], Tensor] = _strength,
    unit: Callable[[Tensor], Tensor] = _unit,
) -> Tensor:
    losses = []
    for s, t in zip(student, teacher, strict=True):
        q, p = unit(strength(s)), unit(strength(t))
        losses.append(((q - p) ** 2).sum() / q.numel())
    return torch.stack(losses).sum()


@check
def attention_loss(student: Answer) -> None:
    """6.3: `attention_loss(student, teacher)`: over the layers, the sum of the mean squared
    difference of normalised attention maps, q = Q / |Q| with Q = sum_c F_c^2."""
    cases: tuple[tuple[str, float, float, tuple[tuple[int, ...], ...]], ...] = (
        ("three layers", 1.0, 1.0, ((2, 3, 4, 5, 3), (2, 5, 2, 3, 4), (2, 2, 6, 1, 2))),
        ("one layer", 1.0, 1.0, ((3, 4, 2, 3, 5),)),
        ("one image", 1.0, 1.0, ((1, 2, 3, 2, 2), (1, 3, 3, 4, 1))),
        ("as many channels as the teacher", 1.0, 1.0, ((2, 3, 3, 3, 3), (2, 3, 3, 2, 4))),
        ("strong and weak maps", 1e-2, 40.0, ((2, 3, 4, 5, 3), (2, 5, 2, 3, 4))),
    )
    for seed, (case, weak, strong, sizes) in enumerate(cases):
        ours, theirs = _maps(seed, sizes)
        _attention_case(student, [weak * s for s in ours], [strong * t for t in theirs], case)
    ours, theirs = _maps(9, ((3, 2, 4, 3, 2), (3, 4, 3, 2, 3)))
    ours[0], theirs[1] = ours[0].clone(), theirs[1].clone()
    ours[0][1], theirs[1][2] = 0, 0
    _attention_case(student, ours, theirs, "a map of zeros")
    ours, theirs = _maps(8, ((3, 2, 4, 3, 2), (3, 4, 3, 2, 5)))
    lives(student, _right, {"student": tuple(ours), "teacher": tuple(theirs)})
    passed(
        "attention_loss",
        "one layer and several",
        "the squares summed over the channels",
        "a length of one for each image",
        "the mean over images and places",
        "strong and weak maps",
        "a map of zeros",
        "the gradient of the student",
        "any type and device",
        "arguments untouched",
    )


def _maps(seed: int, sizes: tuple[tuple[int, ...], ...]) -> tuple[list[Tensor], list[Tensor]]:
    """Sizes (B, D, h, w, E) -> the student's maps [B, D, h, w], and the teacher's [B, E, h, w]."""
    ours = randn(seed, *((B, D, h, w) for B, D, h, w, _ in sizes))
    theirs = randn(50 + seed, *((B, E, h, w) for B, _, h, w, E in sizes))
    return ours, [t + 0.5 for t in theirs]


def _attention_case(student: Answer, ours: list[Tensor], theirs: list[Tensor], case: str) -> None:
    names = [f"{who}_{i}" for who in ("student", "teacher") for i in range(len(ours))]
    given = dict(zip(names, (*ours, *theirs), strict=True))
    before = copies(given)
    found = student(ours, theirs)
    untouched(given, before)
    L, B = len(ours), len(ours[0])
    if isinstance(found, Tensor):
        expect(
            found.ndim == 0,
            f"the loss, {case}: expected one number, found shape {list(found.shape)}",
            "a loss is one number: the mean over images and places, the sum over layers",
        )
        finite(found, f"the loss, {case}", "a map of zeros has the length 0: do not divide by it")
    right = _right(ours, theirs)

    def each(of: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        return torch.stack([of(s, t) for s, t in zip(ours, theirs, strict=True)]).sum()

    def q(F: Tensor) -> Tensor:
        return _unit(_strength(F))

    def plus(eps: float) -> Callable[[Tensor], Tensor]:
        return lambda Q: torch.stack([row / ((row**2).sum().sqrt() + eps) for row in Q])

    def plain(Q: Tensor) -> Tensor:
        return Q

    def sums(Q: Tensor) -> Tensor:
        return torch.stack([row / row.sum() if row.any() else row for row in Q])

    def squares(Q: Tensor) -> Tensor:
        return torch.stack([row / (row**2).sum() if row.any() else row for row in Q])

    def channels_unit(F: Tensor) -> Tensor:
        return F / F.square().sum(1, keepdim=True).sqrt().clamp(min=1e-12)

    # Without the right length, a mean over the channels is no longer the same as their sum.
    bare = {
        "the maps are not divided by their length": plain,
        "a map is divided by the square of its length: the root is missing": squares,
        "the places go through a softmax": lambda Q: Q.softmax(1),
    }
    mistakes = {text: _right(ours, theirs, unit=unit) for text, unit in bare.items()}
    mistakes |= {
        "the maps are not squared: the absolute values are summed": _right(
            ours, theirs, lambda F: F.abs().sum(1).flatten(1)
        ),
        "the maps are not squared: positive and negative channels cancel": _right(
            ours, theirs, lambda F: F.sum(1).flatten(1)
        ),
        "the sum over channels is squared; the squares are summed": _right(
            ours, theirs, lambda F: F.sum(1).square().flatten(1)
        ),
        "the root is taken of the sum over channels: Q is the sum of the squares": _right(
            ours, theirs, lambda F: _strength(F).sqrt()
        ),
        "the largest channel is taken; all of them are summed": _right(
            ours, theirs, lambda F: F.square().amax(1).flatten(1)
        ),
        "the maps have the fourth power: q is divided by its length, not squared again": _right(
            ours, theirs, lambda F: F.pow(4).sum(1).flatten(1)
        ),
        "a map is divided by its sum: its length is the root of the sum of its squares": _right(
            ours, theirs, unit=sums
        ),
        "a map is divided by its largest value": _right(
            ours, theirs, unit=lambda Q: Q / Q.amax(1, keepdim=True).clamp(min=1e-12)
        ),
        "the length is that of the whole batch: each image has its own": _right(
            ours, theirs, unit=lambda Q: Q / Q.norm()
        ),
        "the length is taken over the images: it is taken over the places of one": _right(
            ours, theirs, unit=lambda Q: Q / Q.norm(dim=0, keepdim=True).clamp(min=1e-12)
        ),
        "each row of places has a length of its own: the whole map has one": each(
            lambda s, t: (_by_rows(s) - _by_rows(t)).square().mean()
        ),
        "the channels are normalised at each place: normalise the map, once it is summed": each(
            lambda s, t: (q(channels_unit(s)) - q(channels_unit(t))).square().mean()
        ),
        "a number is added to the length: weak maps are then too short (clamp it, if you must)": (
            _right(ours, theirs, unit=plus(1e-6))
        ),
        "a number is added to the length; weak maps are then too short (clamp it, if you must)": (
            _right(ours, theirs, unit=plus(1e-8))
        ),
        "the squares are summed over the places; take the mean": each(
            lambda s, t: (q(s) - q(t)).square().sum(1).mean()
        ),
        "the squares are summed over images and places; take the mean": each(
            lambda s, t: (q(s) - q(t)).square().sum()
        ),
        "the squares are summed over the images; take the mean": B * right,
        "the mean over the layers is taken: add them up": right / L,
        "only the first layer counts": _right(ours[:1], theirs[:1]),
        "only the last layer counts": _right(ours[-1:], theirs[-1:]),
        "the differences are not squared": each(lambda s, t: (q(s) - q(t)).abs().mean()),
        "that is the length of the difference: it is squared, without a root": each(
            lambda s, t: (q(s) - q(t)).norm(dim=1).mean()
        ),
        "the loss is a half of what it should be": right / 2,
        "one of the maps is not divided by its length: the student's": each(
            lambda s, t: (_strength(s) - q(t)).square().mean()
        ),
        "one of the maps is not divided by its length, the teacher's": each(
            lambda s, t: (q(s) - _strength(t) / t.shape[1]).square().mean()
        ),
        "one of the maps is not divided by its length, the student's": each(
            lambda s, t: (_strength(s) / s.shape[1] - q(t)).square().mean()
        ),
        "one of the maps is not divided by its length: the teacher's": each(
            lambda s, t: (q(s) - _strength(t)).square().mean()
        ),
        "the sign is turned": -right,
    }
    for text in bare:
        mistakes[f"{text} (and the channels' mean is taken)"] = _right(
            ours, theirs, lambda F: _strength(F) / F.shape[1], bare[text]
        )
    if all(s.shape == t.shape for s, t in zip(ours, theirs, strict=True)):
        mistakes |= {
            "the maps themselves are compared, channel by channel: that is FitNet": each(
                lambda s, t: (s - t).square().mean()
            ),
            "the maps keep their channels: sum over them, then normalise": each(
                lambda s, t: (_unit(s.flatten(1)) - _unit(t.flatten(1))).square().mean()
            ),
        }
    same(
        f"the loss, {case}",
        found,
        right,
        {text: value for text, value in mistakes.items() if not torch.equal(value, right)},
    )

    def of(function: Any) -> Any:
        return lambda *maps: function(list(maps[:L]), list(maps[L:]))

    same_gradients(of(student), of(_right), given, " ".join(names[:L]))


def _by_rows(F: Tensor) -> Tensor:
    Q = F.square().sum(1)
    return Q / Q.norm(dim=2, keepdim=True).clamp(min=1e-12)
