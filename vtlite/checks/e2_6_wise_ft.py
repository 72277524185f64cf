"""Exercise 2.6, `wise_ft`."""

from __future__ import annotations

import torch
from torch import Tensor

from vtlite.checks.base import expect, passed, same
from vtlite.checks.harness import (
    Answer,
    check,
)
from vtlite.checks.inputs import strided


@check
def wise_ft(student: Answer) -> None:
    """2.6: `wise_ft(start, tuned, alpha)` interpolates two state dicts."""
    for seed, alpha in ((0, 0.3), (1, 0.0), (2, 1.0), (3, 0.85)):
        _wise_ft_case(student, seed, alpha)
    passed(
        "wise_ft",
        "four values of alpha",
        "counters and masks of every type",
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
            "relative_position_index": torch.randint(0, 90, (2, 3), generator=g),
            "mask": torch.rand(5, generator=g) > 0.5,
            "pixels": torch.randint(0, 255, (3,), generator=g, dtype=torch.uint8),
            "scale": torch.randn((), generator=g),
            "wide": torch.randn(3, 2, generator=g, dtype=torch.float64),
            "half": torch.randn(4, generator=g).bfloat16(),
            "none": torch.zeros(0, 3),
            "cut": strided(torch.randn(3, 4, generator=g)),
        }
        for steps in (11, 208)
    )
    if seed == 3:  # the entries of a state dict may come in any order
        start = dict(reversed(start.items()))
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
    whole = [n for n, t in tuned.items() if not t.is_floating_point()]
    averaged = {n: (1 - alpha) * start[n] + alpha * tuned[n] for n in whole}
    counter = expected | averaged
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
                **{n: t.round().long() for n, t in averaged.items()},
            },
            "the counter comes from the start; take it from the tuned model": {
                **expected,
                **{n: start[n] for n in whole},
            },
            "you tell counters by their name; every tensor of integers or bools comes from the tuned"
            " model": expected | {n: t for n, t in averaged.items() if "num_batches" not in n},
            "the type changes: each tensor keeps its own": {
                n: t.float() if t.is_floating_point() else t for n, t in expected.items()
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
        if t.numel()
        and t.untyped_storage().data_ptr()
        in [s.untyped_storage().data_ptr() for s in (start[n], tuned[n])]
    ]
    expect(
        not shared,
        f"expected new tensors, found {shared[:1]} sharing memory with an argument",
        "you return the argument's own tensor; a later training step would change both",
    )
