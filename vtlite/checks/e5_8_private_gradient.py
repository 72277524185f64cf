"""Exercise 5.8, `private_gradient`."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from vtlite.checks.base import copies, expect, passed, randn, same, untouched
from vtlite.checks.harness import (
    VALUES_ONLY,
    Answer,
    check,
    lives,
)


@check
def private_gradient(student: Answer) -> None:
    """5.8: `private_gradient(per_sample, max_norm, noise, sigma)` clips each sample, adds noise
    once, and divides by the batch."""
    for seed, B, P, R, sigma in (
        (0, 5, 7, 0.5, 0.8),
        (1, 4, 3, 1.5, 0.5),
        (2, 1, 6, 0.7, 2.0),
        (3, 3, 4, 50.0, 0.0),
    ):
        per_sample, noise = randn(seed, (B, P), (P,))
        per_sample = per_sample * torch.linspace(0.1, 2, B)[:, None] if B > 1 else per_sample
        if seed == 1:
            per_sample[2] = 0
            per_sample[0] *= R / float(per_sample[0].norm())  # just as long as max_norm
        _private_case(student, per_sample, R, noise, sigma)
    passed(
        "private_gradient",
        "each sample clipped and short ones untouched",
        "noise once and sigma times the norm",
        "the mean over the batch",
        "a sample without a gradient",
        "any device",
        "arguments untouched",
    )


def _private_case(
    student: Answer, per_sample: Tensor, R: float, noise: Tensor, sigma: float
) -> None:
    given = {"per_sample": per_sample, "noise": noise}
    before = copies(given)
    found = student(per_sample, R, noise, sigma)
    untouched(given, before)
    B = len(per_sample)

    def naive(rows: Tensor, R: float, noise: Tensor, sigma: float) -> Tensor:
        total = sigma * R * noise
        for row in rows:
            length = math.sqrt(sum(v * v for v in row.tolist()))
            total = total + row * (R / length if length > R else 1.0)
        return total / len(rows)

    if isinstance(found, Tensor):
        expect(
            not bool(found.isnan().any()),
            "expected numbers, found NaN",
            "a sample without a gradient has norm zero, and 0 / 0 is no number: clamp, or add a"
            " tiny number to the norm",
        )
        expect(
            torch.equal(found, student(per_sample, R, noise, sigma)),
            "expected the same result for the same arguments, found another",
            "you draw noise yourself; use the tensor that you were given",
        )

    def norm(row: Tensor) -> float:
        return math.sqrt(sum(v * v for v in row.tolist()))

    def mean(factor: Callable[[Tensor], float], of: Tensor = per_sample) -> Tensor:
        total = torch.zeros(of.shape[1])
        for row in of:
            total = total + factor(row) * row
        return total / B

    def clip(row: Tensor) -> float:
        return 1.0 if norm(row) <= R else R / norm(row)

    clipped, spread = mean(clip), sigma * R * noise / B
    average = per_sample.mean(0)
    by_column = torch.stack([column * clip(column) for column in per_sample.T], 1)
    same(
        f"the gradient of {B} samples, max_norm {R}, sigma {sigma}",
        found,
        clipped + spread,
        {
            "the sum of the samples is clipped; clip every sample before you add them": (
                clip(B * average) * average + spread
            ),
            "the mean of the samples is clipped; clip every sample before you add them": (
                clip(average) * average + spread
            ),
            "nothing is clipped": average + spread,
            "every sample is scaled to max_norm; those that are shorter stay as they are": (
                mean(lambda row: R / max(norm(row), 1e-9)) + spread
            ),
            "that is automatic clipping, R / (norm + 0.01); here short samples stay as they are": (
                mean(lambda row: R / (norm(row) + 0.01)) + spread
            ),
            "the wrong ones are scaled: long samples shrink, short ones stay": (
                mean(lambda row: max(1.0, R / max(norm(row), 1e-9))) + spread
            ),
            "every entry is clipped by itself; scale the whole sample, so that its direction stays": (
                per_sample.clamp(-R, R).mean(0) + spread
            ),
            "the squared norm is compared with max_norm; take its root": (
                mean(lambda row: min(1.0, R / max(norm(row) ** 2, 1e-9))) + spread
            ),
            "the norm runs over the batch; it runs over the parameters of one sample": (
                by_column.mean(0) + spread
            ),
            "samples that are too long are thrown away; scale them": (
                mean(lambda row: float(norm(row) <= R)) + spread
            ),
            "the noise is B times too large: it is added once to the sum, and divided by B with it": (
                clipped + B * spread
            ),
            "the noise is added to the wrong place: its spread is sigma max_norm / B": (
                clipped + sigma * noise / B
            ),
            "the noise has the spread sigma max_norm, so it grows with the norm; and it is divided by B": (
                clipped + sigma * noise
            ),
            "sigma is missing: the spread of the noise is sigma max_norm": clipped + R * noise / B,
            "the noise is missing": clipped,
            "the sum is not divided by the number of samples": B * (clipped + spread),
            "the noise is divided by B twice": clipped + spread / B,
        },
    )
    lives(
        student,
        naive,
        {"per_sample": per_sample, "max_norm": R, "noise": noise, "sigma": sigma},
        without=VALUES_ONLY,
    )
