"""Exercise 2.5, `lp_ft_lrs`."""

from __future__ import annotations

import math

from vtlite.checks.base import expect, passed, plain, same
from vtlite.checks.harness import (
    Answer,
    check,
)


@check
def lp_ft_lrs(student: Answer) -> None:
    """2.5: `lp_ft_lrs(step, probe_steps, total_steps, lr)` -> learning rates of (backbone,
    head)."""
    for probe, total, lr in ((4, 15, 0.3), (1, 6, 2.0), (0, 5, 0.9), (6, 6, 0.7), (7, 10, 1.5)):
        for step in range(total):
            _lp_ft_case(student, step, probe, total, lr)
    passed(
        "lp_ft_lrs",
        "every step of five schedules",
        "the boundary between the parts",
        "no probe or nothing else",
    )


def _lp_ft_case(student: Answer, step: int, probe: int, total: int, lr: float) -> None:
    def cosine(share: float) -> float:
        return lr * 0.5 * (1 + math.cos(math.pi * share))

    def pair(backbone: float, head: float) -> dict[str, float]:
        return {"backbone": backbone, "head": head}

    def both(
        second: float,
    ) -> dict[str, float]:  # a right first part, and `second` for both after it
        return pair(0.0, cosine(step / probe)) if step < probe else pair(second, second)

    expected = both(cosine((step - probe) / max(1, total - probe)))
    returned = plain(student(step, probe, total, lr))
    expect(
        isinstance(returned, tuple | list) and len(returned) == 2,
        f"expected two numbers, found {returned!r}",
        "return (backbone, head)",
    )
    same(
        f"step {step} of {total}, {probe} of them probing",
        pair(*returned),
        expected,
        {
            "backbone and head are swapped": pair(expected["head"], expected["backbone"]),
            "the backbone moves while the head is probed": pair(expected["head"], expected["head"]),
            "the head stops when the backbone starts; in the second part both train": pair(
                expected["head"], 0.0
            ),
            "off by one: step probe_steps is the first step of the second part": pair(
                0.0, cosine(step / max(1, probe))
            ),
            "off by one: the second part starts at the full learning rate": both(
                cosine((step - probe + 1) / max(1, total - probe))
            ),
            "the rate is constant; it should fall along a cosine in each part": pair(
                0.0 if step < probe else lr, lr
            ),
            "the cosine does not start again with the second part": pair(
                0.0 if step < probe else cosine(step / total), cosine(step / total)
            ),
            "the second part's cosine is stretched over all steps; it has total_steps - probe_steps": both(
                cosine((step - probe) / total)
            ),
        },
    )
