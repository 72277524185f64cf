"""Exercise 6.8, `concrete_sample`."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from vtlite.checks.base import copies, expect, passed, randn, same, untouched
from vtlite.checks.gradients import finite
from vtlite.checks.harness import Answer, check, gradients, lives

_WITHOUT = {"other values": "u lies between 0 and 1, and would not any more"}


def _soft(alpha: Tensor, u: Tensor, T: float) -> Tensor:
    """Entry by entry, row by row."""
    K = alpha.shape[-1]
    rows = []
    for a, b in zip(alpha.reshape(-1, K), u.reshape(-1, K), strict=True):
        z = torch.stack([(a[k] - (-b[k].log()).log()) / T for k in range(K)])
        rows.append((z - torch.logsumexp(z, 0)).exp())
    return torch.stack(rows).reshape(alpha.shape)


def _one_hot(z: Tensor) -> Tensor:
    return (z == z.amax(-1, keepdim=True)).to(z)


def _right(alpha: Tensor, u: Tensor, T: float, hard: bool) -> Tensor:
    z = _soft(alpha, u, T)
    return z + (_one_hot(z) - z).detach() if hard else z


@check
def concrete_sample(student: Answer) -> None:
    """6.8: `concrete_sample(alpha, u, temperature, hard)` = softmax((alpha + g) / T) with g =
    -log(-log u), or its one-hot with the same gradient."""
    for seed, shape, T in (
        (0, (3, 5), 0.6),
        (1, (2, 3, 4), 2.0),
        (2, (6,), 1.0),
        (3, (1, 2), 0.3),
        (4, (4, 4), 1.5),
        (5, (3, 4), 0.15),
    ):
        (alpha,) = randn(seed, shape)
        u = torch.rand(shape, generator=torch.Generator().manual_seed(seed + 40))
        for hard in (False, True):
            _sample_case(student, alpha, 0.02 + 0.96 * u, T, hard)
    # The same shapes again: another sample, not the last one.
    for seed in (6, 7):
        (alpha,) = randn(seed, (3, 5))
        u = torch.rand(3, 5, generator=torch.Generator().manual_seed(seed))
        _sample_case(student, alpha, u, 0.6, False)
        _sample_case(student, alpha, u, 0.6, True)
    for sizes, hard in (((2, 3, 4), False), ((3, 4), True)):
        (alpha,) = randn(8, sizes)
        u = 0.05 + 0.9 * torch.rand(sizes, generator=torch.Generator().manual_seed(3))
        given = {"alpha": 2 * alpha, "u": u, "temperature": 0.7, "hard": hard}
        lives(student, _right, given, without=_WITHOUT, reads=False)
    passed(
        "concrete_sample",
        "the noise",
        "six temperatures",
        "a softmax over the last dimension",
        "the hard sample",
        "the gradient of the soft one",
        "the gradient of the hard one",
        "any type and device",
        "arguments untouched",
    )


def _sample_case(student: Answer, alpha: Tensor, u: Tensor, T: float, hard: bool) -> None:
    given = {"alpha": alpha, "u": u}
    before = copies(given)
    found = student(alpha, u, T, hard)
    untouched(given, before)
    case = f"alpha {list(alpha.shape)}, temperature {T}, {'hard' if hard else 'soft'}"
    if isinstance(found, Tensor):
        finite(
            found,
            f"the sample, {case}",
            "the log of a number below zero, or exp of a large one: -log u is positive, and softmax"
            " subtracts the maximum first",
        )
    shape = alpha.shape
    right = _right(alpha, u, T, hard)
    g = -(-u.log()).log()
    z = (alpha + g) / T
    soft = z.softmax(-1)
    wrong = {
        "the noise is subtracted: alpha + g": ((alpha - g) / T).softmax(-1),
        "the noise has the wrong sign: g = -log(-log u)": ((alpha + g.neg()) / T).softmax(-1),
        "the noise is missing": (alpha / T).softmax(-1),
        "that is log(-log u): g = -log(-log u)": ((alpha + (-u.log()).log()) / T).softmax(-1),
        "that is -log u, exponential noise: Gumbel noise takes the logarithm once more": (
            (alpha - u.log()) / T
        ).softmax(-1),
        "u itself is added: Gumbel noise is -log(-log u)": ((alpha + u) / T).softmax(-1),
        "that is log u: g = -log(-log u)": ((alpha + u.log()) / T).softmax(-1),
        "that is logistic noise, log u - log(1 - u): it belongs to two classes": (
            (alpha + u.log() - (1 - u).log()) / T
        ).softmax(-1),
        "the noise is that of 1 - u, -log(-log(1 - u)): g = -log(-log u)": (
            (alpha - (-(1 - u).log()).log()) / T
        ).softmax(-1),
        "the temperature multiplies; divide": ((alpha + g) * T).softmax(-1),
        "the temperature is missing": (alpha + g).softmax(-1),
        "the temperature divides alpha alone: the noise, too": (alpha / T + g).softmax(-1),
        "the temperature divides the noise alone: alpha, too": (alpha + g / T).softmax(-1),
        "the softmax is divided by T: divide before it": (alpha + g).softmax(-1) / T,
        "alpha is taken through a softmax first: it holds logits already": (
            (alpha.softmax(-1) + g) / T
        ).softmax(-1),
        "the logarithm of alpha is taken: it holds logits already": (
            (alpha.abs().log() + g) / T
        ).softmax(-1),
        "the noise is added behind the softmax: into it": alpha.softmax(-1) + g,
        "the softmax runs over the first dimension; it belongs to the last": z.softmax(0),
        "the softmax runs over all numbers; it belongs to the last dimension": (
            z.flatten().softmax(0).view(shape)
        ),
        "the same noise is used for every row": ((alpha + g.reshape(-1, shape[-1])[0]) / T).softmax(
            -1
        ),
        "a sigmoid is no softmax: the entries of a sample sum to one": z.sigmoid(),
        "that is the logarithm of the sample": z.log_softmax(-1),
        "the softmax is missing": z,
    }
    if hard:
        drawn = {
            text: _one_hot(value) for text, value in wrong.items() if "softmax runs" not in text
        }
        wrong = {
            "that is the soft sample: with hard, one entry is 1 and all others are 0": soft,
            "the largest logit is chosen, without the noise": _one_hot(alpha),
            "the smallest entry is chosen": _one_hot(-soft),
            "the one-hot runs over the first dimension; it belongs to the last": (
                soft == soft.amax(0, keepdim=True)
            ).to(soft),
            "one entry of the whole is chosen: one in each row": (soft == soft.max()).to(soft),
            "every entry above one half is chosen: the largest of each row is": (soft > 0.5).to(
                soft
            ),
            "hard + soft: subtract the soft sample without its gradient": _one_hot(soft) + soft,
            "hard - soft: add the soft sample again": _one_hot(soft) - soft,
        }
        wrong |= drawn
        if isinstance(found, Tensor) and found.shape == shape and found.ndim > 0:
            expect(
                found.dtype != torch.int64 and found.dtype != torch.bool,
                f"the sample, {case}: expected {alpha.dtype}, found {found.dtype}",
                "one_hot and comparisons give whole numbers or truth values: bring them to alpha's type",
            )
    else:
        wrong |= {"that is the hard sample, though soft is asked for": _one_hot(soft)}
    wrong = {t: v for t, v in wrong.items() if v.shape != shape or not torch.allclose(v, right)}
    same(f"the sample, {case}", found, right, wrong, tolerance=2e-5)
    _gradient_case(student, alpha, u, T, hard, case)


def _gradient_case(
    student: Answer, alpha: Tensor, u: Tensor, T: float, hard: bool, case: str
) -> None:
    def of(function: Any) -> Any:
        return lambda alpha: function(alpha, u, T, hard)

    found, right = (gradients(of(f), {"alpha": alpha}, "alpha")["alpha"] for f in (student, _right))
    zero = (
        "no gradient reaches alpha: argmax and one_hot have none; forward hard, backward soft:"
        " soft + (hard - soft).detach()"
        if hard
        else "no gradient reaches alpha: something detached it (detach, item, data or no_grad)"
    )
    same(
        f"the gradient of alpha, {case}",
        found,
        right,
        {
            zero: torch.zeros_like(right),
            "that is the gradient of z / T, without the softmax: it is that of the soft sample": (
                gradients(lambda a: a / T, {"alpha": alpha}, "alpha")["alpha"]
            ),
            "that is the gradient of the logits themselves: it is that of the soft sample": (
                gradients(lambda a: a + 0, {"alpha": alpha}, "alpha")["alpha"]
            ),
            "that is the gradient of softmax(alpha): the sample's has the noise in it": gradients(
                lambda a: a.softmax(-1), {"alpha": alpha}, "alpha"
            )["alpha"],
            "that is the gradient at temperature 1": gradients(
                lambda a: _soft(a, u, 1.0), {"alpha": alpha}, "alpha"
            )["alpha"],
            "the gradient counts twice: subtract the soft sample without its gradient": 2 * right,
            "the sign is turned": -right,
        },
        tolerance=5e-5,
    )
