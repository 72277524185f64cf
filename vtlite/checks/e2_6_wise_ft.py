"""Exercise 2.6, `wise_ft`."""

from __future__ import annotations

import torch
from torch import Tensor

from vtlite.checks.base import expect, passed, same
from vtlite.checks.harness import (
    Answer,
    check,
)


@check
def wise_ft(student: Answer) -> None:
    """2.6: `wise_ft(start, tuned, alpha)` interpolates two state dicts."""
    for seed, alpha in ((0, 0.3), (1, 0.0), (2, 1.0)):
        _wise_ft_case(student, seed, alpha)
    passed(
        "wise_ft",
        "three values of alpha",
        "integer counters",
        "all keys",
        "arguments untouched",
        "new tensors",
    )


def _wise_ft_case(student: Answer, seed: int, alpha: float) -> None:
    g = torch.Generator().manual_seed(seed)
    start, tuned = (
        {
            "w": torch.randn(3, 5, generator=g),
            "bn.running_var": torch.rand(4, generator=g) + 0.5,
            "head.bias": torch.randn(2, generator=g),
            "bn.num_batches_tracked": torch.tensor(steps),
        }
        for steps in (11, 208)
    )
    kept = [{name: t.clone() for name, t in state.items()} for state in (start, tuned)]
    found = student(start, tuned, alpha)
    changed = any(
        not torch.equal(t, state[name])
        for state, old in zip((start, tuned), kept, strict=True)
        for name, t in old.items()
    )
    expect(
        not changed,
        "expected both state dicts to stay as they were, found one changed",
        "you interpolated in place (lerp_, +=, *=): make new tensors",
    )

    def mixed(a: float, b: float) -> dict[str, Tensor]:
        return {
            n: tuned[n] if not t.is_floating_point() else a * t + b * tuned[n]
            for n, t in start.items()
        }

    expected = mixed(1 - alpha, alpha)
    counter = {
        **expected,
        "bn.num_batches_tracked": (
            (1 - alpha) * start["bn.num_batches_tracked"] + alpha * tuned["bn.num_batches_tracked"]
        ),
    }
    same(
        f"weights for alpha {alpha}",
        found,
        expected,
        {
            "alpha is on the wrong side: 0 is the start, 1 is the tuned model": mixed(
                alpha, 1 - alpha
            ),
            "you ignore alpha and take the mean": mixed(0.5, 0.5),
            "the factors do not sum to one: the start has 1 - alpha": mixed(1.0, alpha),
            "an integer counter (num_batches_tracked) has no average; take it from the tuned model": (
                counter
            ),
            "an integer counter (num_batches_tracked) has no average; take it from the tuned model, not as a rounded mean": {
                **expected,
                "bn.num_batches_tracked": counter["bn.num_batches_tracked"].round().long(),
            },
            "the counter comes from the start; take it from the tuned model": {
                **expected,
                "bn.num_batches_tracked": start["bn.num_batches_tracked"],
            },
            "the head is missing: WiSE-FT interpolates every parameter": {
                n: t for n, t in expected.items() if not n.startswith("head")
            },
            "you leave the head as tuned: WiSE-FT interpolates every parameter": {
                **expected,
                "head.bias": tuned["head.bias"],
            },
            "the running statistics are left as tuned; interpolate every floating-point tensor": {
                **expected,
                "bn.running_var": tuned["bn.running_var"],
            },
        },
    )
    shared = [
        n
        for n, t in found.items()
        if t.is_floating_point() and t.data_ptr() in (start[n].data_ptr(), tuned[n].data_ptr())
    ]
    expect(
        not shared,
        f"expected new tensors, found {shared[:1]} sharing memory with an argument",
        "you return the argument's own tensor; a later training step would change both",
    )
