"""Exercise 3.9, `domain_answers`."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from vtlite.checks.base import copies, passed, randn, same, untouched
from vtlite.checks.harness import Answer, check, lives, same_gradients
from vtlite.checks.naive import unit

Keys = tuple[Tensor, ...]
Measure = Callable[[Tensor, Tensor], Tensor]
_NO_HALF = {"bfloat16": "in half precision, another centre may be the nearest"}

Lives = Callable[[], None]  # what is run after all values


def _l1(a: Tensor, b: Tensor) -> Tensor:
    return (a - b).abs().sum()


def _nearest(
    queries: Tensor,
    keys: Keys,
    measure: Measure = _l1,
    over: Callable[[list[float]], float] = min,
    best: Callable[..., int] = min,
) -> list[int]:
    """Image by image and centre by centre: the number of the domain."""
    chosen = []
    for q in queries.detach().double():
        far = [over([float(measure(q, c)) for c in own.detach().double()]) for own in keys]
        chosen.append(best(range(len(keys)), key=lambda s: far[s]))
    return chosen


def _of(answers: Tensor, domains: list[int]) -> Tensor:
    return torch.stack([answers[s, b] for b, s in enumerate(domains)])


def _right(f: Tensor, keys: Keys, answers: Tensor) -> Tensor:
    return _of(answers, _nearest(unit(f), keys))


@check
def domain_answers(student: Answer) -> None:
    """3.9: `domain_answers(f, keys, answers)` -> for each image the answer of the domain that has
    the centre nearest to f / |f|, by the sum of absolute differences."""
    later: list[Lives] = []
    for seed, B, E, C, counts in (
        (0, 40, 4, 3, (3, 1, 2)),
        (1, 1, 3, 5, (2, 2)),
        (2, 30, 6, 2, (1, 4, 2, 3)),
        (3, 25, 2, 4, (5, 5, 5)),
        (4, 3, 5, 3, (2,)),
        (5, 4, 3, 4, (1, 1, 1, 1)),
    ):
        f, centres, answers = randn(seed, (B, E), (sum(counts), E), (len(counts), B, C))
        # Features of any length, and means of such of length one, which are shorter than that.
        lengths = torch.linspace(0.3, 3.0, B)[:, None]
        centres = 0.9 * unit(centres) * torch.linspace(0.6, 1.0, sum(counts))[:, None]
        keys = tuple(centres.split(list(counts)))
        later.append(_match_case(student, lengths * f, keys, answers))
    for run in later:
        run()
    passed(
        "domain_answers",
        "the nearest centre of all",
        "the sum of absolute differences",
        "features of length one",
        "domains of unlike numbers of centres",
        "each image by itself",
        "gradients of the chosen answers alone",
        "either precision and any device",
        "arguments untouched",
    )


def _match_case(student: Answer, f: Tensor, keys: Keys, answers: Tensor) -> Lives:
    given = {"f": f, "answers": answers, **{f"keys[{s}]": key for s, key in enumerate(keys)}}
    before = copies(given)
    found = student(f, keys, answers)
    untouched(given, before)
    q = unit(f)
    whole = tuple(unit(own) for own in keys)
    means = tuple(own.mean(0, keepdim=True) for own in keys)

    def by(*arguments: Any, **wrong: Any) -> Tensor:
        return _of(answers, _nearest(*arguments, **wrong))

    def mean(values: list[float]) -> float:
        return sum(values) / len(values)

    domains = _nearest(q, keys)
    common = max(sorted(set(domains)), key=domains.count)
    some = range(len(f))
    flat = [s for s, own in enumerate(keys) for _ in own]
    numbers = _nearest(q, tuple(torch.cat(keys).split(1)))
    mistakes = {
        "squared differences are summed; S-Prompting takes absolute ones": by(
            q, keys, lambda a, b: (a - b).square().sum()
        ),
        "that is the largest difference; the sum of the absolute ones is wanted": by(
            q, keys, lambda a, b: (a - b).abs().max()
        ),
        "differences are summed with their signs: take absolute values first": by(
            q, keys, lambda a, b: (a - b).sum().abs()
        ),
        "differences are summed with their signs, and may be below zero: take absolute values": by(
            q, keys, lambda a, b: (a - b).sum()
        ),
        "differences are summed with their signs, turned: take absolute values": by(
            q, keys, lambda a, b: (b - a).sum()
        ),
        "that is the product with the centres, of which the smallest is taken": by(
            q, keys, lambda a, b: a @ b
        ),
        "centres are compared by their product with the features; by their distance": by(
            q, keys, lambda a, b: -a @ b
        ),
        "centres are compared by the cosine; by their distance": by(
            q, keys, lambda a, b: -a @ b / b.norm()
        ),
        "the features are not divided by their length": by(f, keys),
        "the centres are divided by their length, too; they are taken as they are": by(q, whole),
        "the centres are divided by their length, and the features are not": by(f, whole),
        "the features are divided by the sum of their absolute values; by their length": by(
            f / f.abs().sum(-1, keepdim=True), keys
        ),
        "the features are divided by the length of each channel over the batch: dim=-1": by(
            f / f.norm(dim=0), keys
        ),
        "one length is taken for all features together": by(f / f.norm(), keys),
        "the distance to all centres of a domain is averaged; the nearest one counts": by(
            q, keys, over=mean
        ),
        "the distances to all centres of a domain are summed; the nearest one counts": by(
            q, keys, over=sum
        ),
        "the farthest centre of a domain counts; the nearest one does": by(q, keys, over=max),
        "the centres of a domain are averaged; the nearest one counts": by(q, means),
        "the first centre of each domain counts; the nearest one does": by(
            q, tuple(own[:1] for own in keys)
        ),
        "the last centre of each domain counts; the nearest one does": by(
            q, tuple(own[-1:] for own in keys)
        ),
        "only as many centres as the smallest domain has are looked at": by(
            q, tuple(own[: min(map(len, keys))] for own in keys)
        ),
        "a domain with fewer centres is filled up with zeros, which are centres then": by(
            q,
            tuple(
                torch.cat([own, own.new_zeros(max(map(len, keys)) - len(own), own.shape[1])])
                for own in keys
            ),
        ),
        "the farthest domain is taken": by(q, keys, best=max),
        "one domain is chosen for the whole batch: each image has its own": _of(
            answers, [common for _ in some]
        ),
        "the domain of the first image is taken for all": _of(answers, [domains[0] for _ in some]),
        "the first domain answers for all": _of(answers, [0 for _ in some]),
        "the last domain answers for all": _of(answers, [len(keys) - 1 for _ in some]),
        "the mean of all domains' answers is taken; one domain answers": answers.mean(0),
        "the number of the centre is taken for that of its domain": _of(
            answers, [min(n, len(keys) - 1) for n in numbers]
        ),
        "all domains are supposed to have as many centres as the first": _of(
            answers, [min(n // len(keys[0]), len(keys) - 1) for n in numbers]
        ),
        "each image gets the answer to the first image": answers[:, 0][domains],
        "these are the numbers of the domains; their answers are asked": torch.tensor(domains),
    }
    assert [flat[n] for n in numbers] == domains
    counts = " + ".join(str(len(own)) for own in keys)
    case = f"{len(f)} images, domains of {counts} centres"
    same(f"the answers for {case}", found, _of(answers, domains), mistakes)

    def of(function: Any) -> Any:
        return lambda answers: function(f, keys, answers)

    same_gradients(
        of(student),
        of(_right),
        {"answers": answers},
        "answers",
        {
            "the gradient reaches the answers of all domains": lambda answers: answers.sum(0),
        },
    )
    return partial(
        lives,
        student,
        _right,
        {"f": f, "keys": keys, "answers": answers},
        without=_NO_HALF,
    )
