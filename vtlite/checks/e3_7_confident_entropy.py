"""Exercise 3.7, `confident_entropy`."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from functools import partial

import torch
from torch import Tensor

from vtlite.checks.base import copies, expect, passed, randn, same, untouched
from vtlite.checks.compare import difference
from vtlite.checks.harness import Answer, check, lives, same_gradients

_NO_HALF = {"bfloat16": "the logarithm of a probability near 1 has no digits in half precision"}

Lives = Callable[[], None]  # what is run after all values


def _probabilities(logits: Tensor) -> list[Tensor]:
    rows = []
    for row in logits:
        e = (row - row.max()).exp()
        rows.append(e / e.sum())
    return rows


def _entropy(p: Tensor) -> Tensor:
    """With 0 log 0 = 0."""
    terms = [-n * n.log() for n in p if n.item() > 0]
    return torch.stack(terms).sum()


def _count(views: int, share: float) -> int:
    return max(1, math.floor(share * views))


def _surest(logits: Tensor) -> list[int]:
    """All views, the surest first."""
    entropies = [_entropy(p).item() for p in _probabilities(logits)]
    return sorted(range(len(logits)), key=lambda v: entropies[v])


def _of(logits: Tensor, views: Iterable[int]) -> Tensor:
    p = _probabilities(logits.double())
    return _entropy(torch.stack([p[v] for v in views]).mean(0)).to(logits.dtype)


def _right(logits: Tensor, share: float) -> Tensor:
    return _of(logits, _surest(logits)[: _count(len(logits), share)])


def _views(seed: int, views: int, classes: int) -> Tensor:
    """Logits of views of which each is clearly surer than another, in a random order."""
    logits, more = randn(seed, (views, classes), (views, 1))
    g = torch.Generator().manual_seed(seed)
    order = torch.randperm(views, generator=g)
    sharp = torch.linspace(0.3, 1.0, views)[order] ** 2 * 2.5
    logits = logits - logits.mean(1, keepdim=True)
    return logits / logits.abs().amax(1, keepdim=True) * sharp[:, None] + 3 * more


@check
def confident_entropy(student: Answer) -> None:
    """3.7: `confident_entropy(logits, share)` -> the entropy of the mean of the probabilities of
    those views whose own entropy is lowest."""
    later: list[Lives] = []
    for seed, views, classes, share in (
        (0, 8, 5, 0.5),
        (1, 7, 4, 0.5),
        (2, 5, 3, 0.1),
        (3, 10, 6, 0.39),
        (4, 1, 4, 0.3),
        (5, 6, 2, 1.0),
        (6, 9, 9, 0.25),
    ):
        later.append(_views_case(student, _views(seed, views, classes), share))
    _sharp_case(student)
    for run in later:
        run()
    passed(
        "confident_entropy",
        "the surest views",
        "how many of them",
        "at least one view",
        "the entropy of the mean",
        "large logits",
        "gradients of the chosen views alone",
        "either precision and any device",
        "arguments untouched",
    )


def _views_case(student: Answer, logits: Tensor, share: float) -> Lives:
    given = {"logits": logits}
    before = copies(given)
    found = student(logits, share)
    untouched(given, before)
    V, C = logits.shape
    order, k = _surest(logits), _count(V, share)
    p = torch.stack(_probabilities(logits))
    kept = p[order[:k]]
    own = torch.stack([_entropy(row) for row in kept])
    right = _right(logits, share)
    likely = {
        "the least sure views are kept: the lowest entropy is wanted, and argsort begins with it": (
            _of(logits, order[::-1][:k])
        ),
        "all views are kept; those of lowest entropy are wanted": _of(logits, order),
        "the first views are kept, as they come: sort them by their entropy": _of(logits, range(k)),
        "the last views are kept, as they come: sort them by their entropy": _of(
            logits, range(V - k, V)
        ),
        "one view alone is kept": _of(logits, order[:1]),
        "the number of views is rounded up; it is rounded down, and at least 1": _of(
            logits, order[: math.ceil(share * V)]
        ),
        "the number of views is rounded to the nearest; it is rounded down, and at least 1": _of(
            logits, order[: max(1, round(share * V))]
        ),
        "one view too many is kept": _of(logits, order[: k + 1]),
        "one view too few is kept": _of(logits, order[: max(1, k - 1)]),
        "the surest view is left out: the first of the order is number 0": _of(
            logits, order[1 : k + 1] or order
        ),
        "the share is dropped; it is kept": _of(logits, order[: V - k] or order),
        "that is the mean of the entropies; the entropy of the mean is wanted, by which views that"
        " disagree are unsure": own.mean(),
        "that is the sum of the entropies; the entropy of the mean is wanted": own.sum(),
        "that is the mean of the entropies of all views": torch.stack(
            [_entropy(row) for row in p]
        ).mean(),
        "the logits are averaged; the probabilities are": _entropy(
            torch.stack(_probabilities(logits[order[:k]].mean(0)[None]))[0]
        ),
        "the logarithms of the probabilities are averaged; the probabilities are": -(
            kept.log().mean(0).exp() * kept.log().mean(0)
        ).sum(),
        "the probability is that of the mean, the logarithm a mean of logarithms": -(
            kept.mean(0) * kept.log().mean(0)
        ).sum(),
        "the sign is missing: entropy is -sum p log p": -right,
        "the mean over the classes is taken; entropy is a sum": right / C,
        "that is the entropy in bits; the natural logarithm is wanted": right / math.log(2),
        "it is divided by its largest value, log C": right / math.log(C),
        "the probabilities are summed over the views, not averaged": -(
            kept.sum(0) * kept.sum(0).log()
        ).sum(),
        "the mean is divided by the number of all views": -(
            kept.sum(0) / V * (kept.sum(0) / V).log()
        ).sum(),
        "the softmax runs over the views; it runs over the classes": _over_views(logits, k),
        "that is the loss for the surest class; entropy weighs all": -kept.mean(0).max().log(),
        "that is the perplexity, exp of the entropy": right.exp(),
        "views are chosen by their largest logit": _of(
            logits, logits.amax(1).argsort(descending=True).tolist()[:k]
        ),
        "views are chosen by their largest probability; by their entropy": _of(
            logits, p.amax(1).argsort(descending=True).tolist()[:k]
        ),
        "the mean runs over the classes; it runs over the views": _entropy(kept.mean(1)),
    }
    case = f"{V} views, {C} classes, share {share:g}"
    same(f"the loss for {case}", found, right, likely, tolerance=2e-5)
    same_gradients(
        lambda logits: student(logits, share),
        lambda logits: _right(logits, share),
        given,
        "logits",
    )
    return partial(lives, student, _right, given | {"share": share}, without=_NO_HALF)


def _over_views(logits: Tensor, k: int) -> Tensor:
    p = logits.softmax(0)
    chosen = (-p * p.log()).sum(1).argsort()[:k]
    mean = p[chosen].mean(0)
    return -(mean * mean.log()).sum()


def _sharp_case(student: Answer) -> None:
    """Probabilities that are zero in single precision."""
    logits = torch.tensor(
        [[300.0, -200.0, 0.0], [3.0, 2.0, 1.0], [-150.0, 250.0, 245.0], [400.0, 50.0, 399.0]]
    )
    likely = "a probability is zero, and 0 log 0 is nan: take log_softmax and logsumexp"
    for share in (0.25, 0.5, 0.8):
        leaf = logits.clone().requires_grad_()
        found, case = student(leaf, share), f"logits of some hundreds, share {share:g}"
        expect(bool(found.isfinite()), f"{case}: expected a number, found nan or inf", likely)
        # The entropy of a sure view may come out as 1e-7.
        what = difference(1 + found, 1 + _right(logits, share), 1e-4)
        expect(not what, f"1 + the loss for {case}: {what}", likely)
        (gradient,) = torch.autograd.grad(found, leaf)
        finite = bool(gradient.isfinite().all())
        expect(finite, f"the gradient for {case}: expected numbers, found nan or inf", likely)
