"""Exercise 3.2, `similarity_logits`."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from vtlite.checks.base import copies, passed, randn, same, untouched
from vtlite.checks.harness import Answer, check, lives, same_gradients
from vtlite.checks.naive import unit

Lives = Callable[[], None]  # what is run after all values


def _dots(f: Tensor, texts: Tensor) -> Tensor:
    """f [B, E], texts [C, E] or [B, C, E] -> [B, C], number by number."""
    own = texts if texts.ndim == 3 else [texts for _ in f]
    return torch.stack(
        [
            torch.stack([(image * text).sum() for text in of_image])
            for image, of_image in zip(f, own, strict=True)
        ]
    )


def _units(t: Tensor) -> Tensor:
    return unit(t.reshape(-1, t.shape[-1])).reshape(t.shape)


def _right(f: Tensor, texts: Tensor, logit_scale: Tensor) -> Tensor:
    return logit_scale.exp() * _dots(_units(f), _units(texts))


@check
def similarity_logits(student: Answer) -> None:
    """3.2: `similarity_logits(f, texts, logit_scale)` -> exp(logit_scale) times the cosine of each
    image with each text, with the same texts for all images or each one's own."""
    later: list[Lives] = []
    for seed, B, C, E, own, scale in (
        (0, 4, 3, 5, False, 1.25),
        (1, 1, 4, 3, False, -0.75),
        (2, 3, 2, 4, True, 2.0),
        (3, 3, 3, 3, False, 0.5),
        (4, 1, 5, 2, True, -1.5),
        (5, 2, 2, 2, True, 0.75),
        (6, 5, 1, 6, False, 0.0),
    ):
        f, texts = randn(seed, (B, E), (B, C, E) if own else (C, E))
        # All lengths differ, as they do where nobody has normalised.
        arguments = {"f": 2 * f, "texts": 0.3 * texts, "logit_scale": torch.tensor(scale)}
        later.append(_head_case(student, arguments))
    for run in later:
        run()
    passed(
        "similarity_logits",
        "every length divided out",
        "the temperature",
        "the same texts for all images",
        "texts of each image's own",
        "gradients of features and texts and temperature",
        "any type and device",
        "arguments untouched",
    )


def _head_case(student: Answer, arguments: dict[str, Tensor]) -> Lives:
    before = copies(arguments)
    found = student(*arguments.values())
    untouched(arguments, before)
    f, texts, s = arguments.values()
    nf, nt, tau = _units(f), _units(texts), s.exp()
    cosines = _dots(nf, nt)
    flat = texts.reshape(-1, texts.shape[-1])
    mistakes = {
        "the features are not divided by their length": tau * _dots(f, nt),
        "the texts are not divided by their length": tau * _dots(nf, texts),
        "nothing is divided by its length": tau * _dots(f, texts),
        "the scale is missing: exp(logit_scale)": cosines,
        "the exp is missing: logit_scale is a logarithm": s * cosines,
        "the exp is applied twice": tau.exp() * cosines,
        "the scale divides; it multiplies": cosines / tau,
        "the scale is applied twice": tau * tau * cosines,
        "the scale multiplies before the length is divided out, which takes it away: logits are"
        " exp(logit_scale) times the cosine": _dots(_units(tau * f), nt),
        "the scale is added": cosines + tau,
        "logit_scale is added": cosines + s,
        "features are divided by the length of each channel over the batch: over the last"
        " dimension, dim=-1": tau * _dots(f / f.norm(dim=0), nt),
        "both are divided by the length of each channel, over the first dimension: dim=-1": tau
        * _dots(f / f.norm(dim=0), texts / texts.norm(dim=0)),
        "texts are divided by the length of each channel over the classes: dim=-1": tau
        * _dots(nf, texts / texts.norm(dim=-2, keepdim=True)),
        "texts are divided by a length over dimension 1, which is that of the classes where each"
        " image has its own: dim=-1": tau * _dots(nf, texts / texts.norm(dim=1, keepdim=True)),
        "one length is taken for all features together: each has its own": tau
        * _dots(f / f.norm(), nt),
        "one length is taken for all texts together: each has its own": tau
        * _dots(nf, texts / texts.norm()),
        "one length each is taken for all features and all texts together": tau
        * _dots(f / f.norm(), texts / texts.norm()),
        "they are divided by the square of their length": tau
        * _dots(nf / f.norm(dim=-1, keepdim=True), nt / texts.norm(dim=-1, keepdim=True)),
        "they are divided by the sum of their absolute values; the length is the root of the"
        " squares' sum": tau
        * _dots(f / f.abs().sum(-1, keepdim=True), texts / texts.abs().sum(-1, keepdim=True)),
        "they are brought to mean 0 and variance 1; divide by the length": tau
        * _dots(
            torch.nn.functional.layer_norm(f, f.shape[-1:]),
            torch.nn.functional.layer_norm(texts, texts.shape[-1:]),
        ),
        "these are probabilities: the logits are asked, before any softmax": (
            tau * cosines
        ).softmax(-1),
        "these are logarithms of probabilities: the logits are asked": (tau * cosines).log_softmax(
            -1
        ),
        "the sign is turned: a similar text has a large logit": -tau * cosines,
        "that is a distance, 1 - cosine": tau * (1 - cosines),
        "that is scaled to 0 .. 1; the cosine itself is asked": tau * (1 + cosines) / 2,
        "the sum over channels is a mean": tau * cosines / f.shape[-1],
        "the cosine is divided by sqrt(E), as in attention": tau * cosines / f.shape[-1] ** 0.5,
    }
    if texts.ndim == 3:
        mistakes |= {
            "the texts of the first image serve all": tau * _dots(nf, nt[0]),
            "the mean of all images' texts serves each": tau * _dots(nf, nt.mean(0)),
            "every image is compared with the texts of all images": tau * _dots(nf, _units(flat)),
        }
        if len(f) == texts.shape[1]:
            mistakes["images and classes are exchanged: text c of image b belongs to image b"] = (
                tau * _dots(nf, nt.transpose(0, 1))
            )
    elif len(f) == len(texts):
        mistakes["it is transposed: a row for each image"] = tau * cosines.T
    kind = "its own" if texts.ndim == 3 else "the same"
    right = _right(f, texts, s)
    case = f"{len(f)} images with {kind} {texts.shape[-2]} texts, logit_scale {s.item():g}"
    same(f"the logits for {case}", found, right, mistakes)
    same_gradients(student, _right, dict(arguments), "f texts logit_scale")
    return partial(lives, student, _right, arguments)
