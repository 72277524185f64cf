"""Exercise 3.6, `cocoop_logits`."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from vtlite.checks.base import copies, expect, passed, randn, same, untouched
from vtlite.checks.harness import Answer, check, lives, same_gradients
from vtlite.checks.inputs import Texts
from vtlite.checks.naive import dense, unit

Encode = Callable[[Tensor], Tensor]

Lives = Callable[[], None]  # what is run after all values


def _shift(f: Tensor, W1: Tensor, b1: Any, W2: Tensor, b2: Any) -> Tensor:
    hidden = dense(f, W1, b1)
    return dense(torch.where(hidden > 0, hidden, 0.0 * hidden), W2, b2)


def _answer(texts: Encode, f: Tensor, contexts: Tensor, scale: float, long: bool = False) -> Tensor:
    """Image by image: its own contexts [M, D], its own texts, and the cosines with them."""
    rows = []
    for image, context in zip(f, contexts, strict=True):
        g = texts(context[None])[0]
        rows.append(dense(image, g if long else unit(g), 0.0))
    return scale * torch.stack(rows)


def _right(
    texts: Encode,
    f: Tensor,
    context: Tensor,
    W1: Tensor,
    b1: Tensor,
    W2: Tensor,
    b2: Tensor,
    scale: float,
) -> Tensor:
    n = unit(f)
    shifts = [_shift(image, W1, b1, W2, b2) for image in n]
    contexts = torch.stack([torch.stack([v + shift for v in context]) for shift in shifts])
    return _answer(texts, n, contexts, scale)


@check
def cocoop_logits(student: Answer) -> None:
    """3.6: `cocoop_logits(texts, f, context, W1, b1, W2, b2, scale)` -> scale times the cosines of
    each image with texts whose context is shifted for it."""
    later: list[Lives] = []
    for seed, B, C, M, E, R, D, scale in (
        (0, 3, 4, 2, 5, 3, 6, 2.0),
        (1, 1, 2, 3, 4, 2, 3, 0.5),
        (2, 4, 4, 4, 4, 4, 4, 1.5),
        (3, 2, 3, 1, 3, 5, 2, 3.0),
        (4, 2, 5, 2, 6, 1, 5, -1.5),
    ):
        f, context, W1, b1, W2, b2, names, project = randn(
            seed, (B, E), (M, D), (R, E), (R,), (D, R), (D,), (C, D), (E, D)
        )
        if R == 1:  # the only hidden number is above zero for some images
            b1 = b1.abs() + 0.3
        given = {"f": 2 * f, "context": context, "W1": 1.5 * W1, "b1": b1, "W2": W2, "b2": b2}
        later.append(_image_case(student, Texts(names, project), given, scale))
    for run in later:
        run()
    passed(
        "cocoop_logits",
        "the small network",
        "a shift for each image",
        "the shift of every vector",
        "texts of each image's own",
        "every length divided out and the scale",
        "one call of the tower",
        "gradients of all weights",
        "any type and device",
        "arguments untouched",
    )


def _image_case(student: Answer, texts: Texts, given: dict[str, Tensor], scale: float) -> Lives:
    before = copies(given)
    texts.calls = 0
    found = student(texts, *given.values(), scale)
    calls = texts.calls  # asked last: a wrong value says more
    untouched(given, before)
    f, context, W1, b1, W2, b2 = given.values()
    B, (M, D) = len(f), context.shape
    n = unit(f)
    shift = torch.stack([_shift(image, W1, b1, W2, b2) for image in n])

    def by(shifts: Tensor, f: Tensor = n, long: bool = False) -> Tensor:
        return _answer(texts, f, context + shifts[:, None], scale, long)

    def of(contexts: Tensor) -> Tensor:
        return _answer(texts, n, contexts, scale)

    hidden = dense(n, W1, b1)
    first = torch.zeros(M, 1)
    first[0] = 1.0
    right = _right(texts, f, context, W1, b1, W2, b2, scale)
    mistakes = {
        "the shift is missing: the same context serves all images": by(0 * shift),
        "the shift takes the context's place; it is added to it": of(
            shift[:, None].expand(B, M, D)
        ),
        "the shift multiplies the context; it is added": of(context * shift[:, None]),
        "the shift is subtracted": by(-shift),
        "the shift of the first image serves all": by(shift[:1].expand_as(shift)),
        "the mean of all shifts serves all images: each has its own": by(
            shift.mean(0).expand_as(shift)
        ),
        "the first vector alone is shifted; all M are": of(context + first * shift[:, None]),
        "the last vector alone is shifted; all M are": of(context + first.flip(0) * shift[:, None]),
        "the mean of the context's vectors is shifted; each of them is": of(
            (context.mean(0) + shift)[:, None].expand(B, M, D)
        ),
        "the small network reads features that are not divided by their length": by(
            torch.stack([_shift(image, W1, b1, W2, b2) for image in f])
        ),
        "the features are not divided by their length for the cosine": by(shift, f),
        "the features are not divided by their length": by(
            torch.stack([_shift(image, W1, b1, W2, b2) for image in f]), f
        ),
        "the texts are not divided by their length": by(shift, n, True),
        "neither features nor texts are divided by their length": by(
            torch.stack([_shift(image, W1, b1, W2, b2) for image in f]), f, True
        ),
        "the ReLU is missing": by(dense(hidden, W2, b2)),
        "that is GELU; here it is ReLU": by(dense(F.gelu(hidden), W2, b2)),
        "that is a sigmoid; here it is ReLU": by(dense(hidden.sigmoid(), W2, b2)),
        "that is tanh; here it is ReLU": by(dense(hidden.tanh(), W2, b2)),
        "there is a second ReLU, on the shift, which may be negative": by(shift.relu()),
        "the ReLU stands behind the second layer; it stands between the two": by(
            dense(hidden, W2, b2).relu()
        ),
        "b1 is missing": by(dense(dense(n, W1, 0.0).relu(), W2, b2)),
        "b2 is missing": by(dense(hidden.relu(), W2, 0.0)),
        "both biases are missing": by(dense(dense(n, W1, 0.0).relu(), W2, 0.0)),
        "b1 is added behind the ReLU": by(dense(dense(n, W1, 0.0).relu() + b1, W2, b2)),
        "the shift is divided by its length; it is added as it is": by(
            shift / shift.norm(dim=-1, keepdim=True)
        ),
        "the shift is divided by M": by(shift / M),
        "the scale is missing": right / scale,
        "the scale is applied twice": scale * right,
        "the scale divides; it multiplies": right / scale**2,
        "the exp of the scale is taken; scale already is exp(logit_scale)": right
        / scale
        * torch.tensor(scale).exp(),
        "these are probabilities: the logits are asked": right.softmax(-1),
        "the texts of the first image serve all: each has its own": _answer(
            texts, n, (context + shift[0]).expand(B, M, D), scale
        ),
        "the mean of all images' texts serves each": scale
        * dense(n, texts(context + shift[:, None]).mean(0), 0.0)
        / texts(context + shift[:, None]).mean(0).norm(dim=-1),
    }
    if B > 1:
        mistakes["each image meets the texts of the one before it"] = by(shift.roll(1, 0))
    case = f"{B} images, {right.shape[1]} classes, {M} vectors, scale {scale:g}"
    same(
        f"the logits for {case}",
        found,
        right,
        mistakes,
        tolerance=2e-5,
    )
    expect(
        calls == 1,
        f"{case}: expected one call of texts, found {calls}",
        "the text tower is what costs time: give it the contexts of all images at once, [B, M, D]",
    )

    def inside(function: Any) -> Any:
        return lambda *tensors: function(texts, *tensors, scale)

    same_gradients(inside(student), inside(_right), dict(given), " ".join(given))
    return partial(lives, student, _right, {"texts": texts, **given, "scale": scale})
