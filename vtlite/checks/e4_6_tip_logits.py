"""Exercise 4.6, `tip_logits`."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from vtlite.checks.base import copies, fail, passed, randn, same, untouched
from vtlite.checks.harness import Answer, check, lives, same_gradients
from vtlite.checks.naive import dense, unit


def _sums(votes: Tensor, labels: Tensor, classes: int) -> Tensor:
    """votes [B, K] -> [B, C], image by image."""
    columns = [torch.zeros_like(votes[:, 0]) for _ in range(classes)]
    for i, label in enumerate(labels.tolist()):
        columns[label] = columns[label] + votes[:, i]
    return torch.stack(columns, 1)


def _right(
    f: Tensor, texts: Tensor, keys: Tensor, labels: Tensor, alpha: float, beta: float, scale: float
) -> Tensor:
    f, texts, keys = unit(f), unit(texts), unit(keys)
    votes = (-beta * (1 - dense(f, keys, 0.0))).exp()
    return scale * dense(f, texts, 0.0) + alpha * _sums(votes, labels, len(texts))


@check
def tip_logits(student: Answer) -> None:
    """4.6: `tip_logits(f, texts, keys, labels, alpha, beta, scale)` = scale f t_c + alpha times the
    votes exp(-beta (1 - f key)) of the kept images of class c."""
    # Class C - 1 has no image anywhere, nor has it when each label is one more.
    for seed, B, E, C, labels, alpha, beta, scale in (
        (0, 4, 5, 4, (0, 2, 0, 1, 2, 2, 0), 1.5, 5.5, 2.0),
        (1, 1, 3, 5, (2, 0, 2), 0.75, 1.0, 4.0),
        (2, 3, 6, 3, (0,), 3.0, 0.5, 1.5),
        (3, 3, 3, 4, (0, 1, 2), -1.25, 2.0, 0.5),
    ):
        f, texts, keys = randn(seed, (B, E), (C, E), (len(labels), E))
        # All lengths differ, as they do where nobody has normalised.
        texts, keys = 3 * texts, 0.4 * keys
        arguments = {"f": f, "texts": texts, "keys": keys, "labels": torch.tensor(labels)}
        _cache_case(student, arguments, alpha, beta, scale)
    passed(
        "tip_logits",
        "values for four caches",
        "every length divided out",
        "the votes",
        "a class without an image",
        "alpha and beta and the scale",
        "gradients of features and texts and keys",
        "any type and device",
        "arguments untouched",
    )


def _cache_case(
    student: Answer, arguments: dict[str, Any], alpha: float, beta: float, scale: float
) -> None:
    before = copies(arguments)
    found = student(*arguments.values(), alpha, beta, scale)
    untouched(arguments, before)
    f, texts, keys, labels = arguments.values()
    C = len(texts)
    counts = torch.bincount(labels, minlength=C).clamp(min=1)
    nf, nt, nk = unit(f), unit(texts), unit(keys)
    zero_shot, near = scale * dense(nf, nt, 0.0), dense(nf, nk, 0.0)

    def votes(v: Tensor) -> Tensor:
        return zero_shot + alpha * _sums(v, labels, C)

    v = (-beta * (1 - near)).exp()
    right = votes(v)
    cast = _sums(v, labels, C)
    mistakes = {
        "the features are not divided by their length": scale * dense(f, nt, 0.0)
        + alpha * _sums((-beta * (1 - dense(f, nk, 0.0))).exp(), labels, C),
        "the keys are not divided by their length": votes(
            (-beta * (1 - dense(nf, keys, 0.0))).exp()
        ),
        "the texts are not divided by their length": right
        - zero_shot
        + scale * dense(nf, texts, 0.0),
        "nothing is divided by its length": scale * dense(f, texts, 0.0)
        + alpha * _sums((-beta * (1 - dense(f, keys, 0.0))).exp(), labels, C),
        "the features are divided by their length for the texts, not for the keys": votes(
            (-beta * (1 - dense(f, nk, 0.0))).exp()
        ),
        "the features are divided by their length for the keys, not for the texts": right
        - zero_shot
        + scale * dense(f, nt, 0.0),
        "the sign in the exponent is turned: a near image votes most": votes(
            (beta * (1 - near)).exp()
        ),
        "the exponent is -beta (1 - near), not -beta near: a near image votes most": votes(
            (-beta * near).exp()
        ),
        "the 1 is missing: exp(-beta (1 - near)) is at most 1": votes((beta * near).exp()),
        "beta is missing": votes((near - 1).exp()),
        "beta divides; it multiplies": votes(((near - 1) / beta).exp()),
        "the exp is missing: a vote is exp(-beta (1 - near))": votes(-beta * (1 - near)),
        "a vote is the affinity itself; it is exp(-beta (1 - near))": votes(near),
        "that is the squared distance, twice 1 - near": votes((-2 * beta * (1 - near)).exp()),
        "that is the distance; 1 - near is half of its square": votes(
            (-beta * (2 - 2 * near).clamp(min=0).sqrt()).exp()
        ),
        "the votes go through a softmax; they are summed as they are": votes(v.softmax(-1)),
        "the votes of one image are made to sum to one; they are summed as they are": votes(
            v / v.sum(-1, keepdim=True)
        ),
        "alpha is missing: it multiplies the votes": zero_shot + cast,
        "alpha multiplies everything; it belongs to the votes": alpha * (zero_shot + cast),
        "alpha belongs to the votes, the scale to the texts: they are exchanged": (
            alpha / scale * zero_shot + scale * cast
        ),
        "alpha and beta are exchanged": zero_shot
        + beta * _sums((-alpha * (1 - near)).exp(), labels, C),
        "the scale is missing: it multiplies f t_c": zero_shot / scale + alpha * cast,
        "the scale multiplies everything; it belongs to f t_c": zero_shot + scale * alpha * cast,
        "the votes are averaged over the images of a class; they are summed": (
            zero_shot + alpha * cast / counts
        ),
        "the votes are averaged over all kept images; they are summed": (
            zero_shot + alpha * cast / len(keys)
        ),
        "the nearest image of a class votes alone; all of them do": zero_shot
        + alpha
        * torch.stack(
            [
                v[:, labels == c].amax(1) if bool((labels == c).any()) else torch.zeros(len(f))
                for c in range(C)
            ],
            1,
        ),
        "only the last image of a class votes: several go to one place, so add them up": zero_shot
        + alpha
        * torch.stack(
            [
                v[:, labels == c][:, -1] if bool((labels == c).any()) else torch.zeros(len(f))
                for c in range(C)
            ],
            1,
        ),
        "the votes are missing": zero_shot,
        "the texts are missing: zero-shot CLIP stays, and the votes are added": alpha * cast,
        "the votes are subtracted": zero_shot - alpha * cast,
    }
    if isinstance(found, Tensor) and found.shape == (len(f), int(labels.max()) + 1):
        fail(
            f"expected shape {list(right.shape)}, found {list(found.shape)}",
            "there are as many classes as texts: the last ones may have no image, so give one_hot"
            " their number",
        )
    same(
        f"the logits for {len(f)} images, {C} classes, {len(keys)} kept images, alpha {alpha}, beta"
        f" {beta}, scale {scale}",
        found,
        right,
        {text: wrong for text, wrong in mistakes.items() if not torch.equal(wrong, right)},
        tolerance=2e-5,
    )

    def of(function: Any) -> Any:
        return lambda f, texts, keys: function(f, texts, keys, labels, alpha, beta, scale)

    weights = {"f": f, "texts": texts, "keys": keys}
    same_gradients(of(student), of(_right), weights, "f texts keys")
    lives(student, _right, arguments | {"alpha": alpha, "beta": beta, "scale": scale})
