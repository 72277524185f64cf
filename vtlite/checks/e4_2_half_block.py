"""Exercise 4.2, `half_block`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from vtlite.checks.base import expect, passed, randn, same
from vtlite.checks.harness import Answer, check, lives, same_gradients
from vtlite.checks.inputs import Part

Inner = Callable[[Tensor], Tensor]


def _right(x: Tensor, norm: Inner, mlp: Inner, adapter: Inner, scale: float, place: str) -> Tensor:
    n = norm(x)
    if place == "before":
        return x + mlp(n + scale * adapter(n))
    z = mlp(n)
    return x + z + scale * (adapter(z) if place == "after" else adapter(x))


@check
def half_block(student: Answer) -> None:
    """4.2: `half_block(x, norm, mlp, adapter, scale, place)` -> x + mlp(norm(x)) with the adapter
    after the MLP, beside it or before it."""
    for place in ("after", "beside", "before"):
        for seed, B, N, D, scale in ((0, 2, 3, 4, 0.5), (1, 1, 4, 3, -2.0), (2, 3, 1, 5, 1.5)):
            x, *weights = randn(seed, (B, N, D), (D, D), (D, D), (D, D))
            _place_case(student, x, [0.5 * weight for weight in weights], scale, place)
    passed(
        "half_block",
        "after the MLP",
        "beside it",
        "before it",
        "every part run once",
        "the scale",
        "gradients of x and all parts",
        "any type and device",
        "arguments untouched",
    )


def _place_case(
    student: Answer, x: Tensor, weights: list[Tensor], scale: float, place: str
) -> None:
    before = x.clone()
    norm, mlp, adapter = parts = [Part(weight) for weight in weights]
    case = f'place "{place}", x {list(x.shape)}, scale {scale}'
    found = student(x, norm, mlp, adapter, scale, place)
    # What each part saw is asked last: a wrong value says more.
    seen = [len(part.seen) for part in parts]
    expect(
        torch.equal(x, before),
        f"{case}: expected x to stay as it was, found it changed",
        "you wrote into a tensor that you were given (+=, add_): make a new one",
    )
    n, a = norm(x), adapter
    z = mlp(n)
    mistakes = {
        'this is "after": with "{place}" the adapter sits elsewhere': x + z + scale * a(z),
        'this is "beside": with "{place}" the adapter sits elsewhere': x + z + scale * a(x),
        'this is "before": with "{place}" the adapter sits elsewhere': x + mlp(n + scale * a(n)),
        "the adapter is missing": x + z,
        "the skip of the block is missing: x itself": {
            "after": z + scale * a(z),
            "beside": z + scale * a(x),
            "before": mlp(n + scale * a(n)),
        }[place],
        "the adapter's own skip is missing: what it reads stays": {
            "after": x + scale * a(z),
            "beside": x + scale * a(x),
            "before": x + mlp(scale * a(n)),
        }[place],
        "the scale is missing": _right(x, norm, mlp, a, 1.0, place),
        "the scale multiplies more than the adapter": {
            "after": x + scale * (z + a(z)),
            "beside": x + scale * (z + a(x)),
            "before": x + mlp(scale * (n + a(n))),
        }[place],
        "beside the MLP the adapter sees x, before its norm": x + z + scale * a(n),
        "after the MLP the adapter sees what the MLP gives, before x is added": (
            x + z + scale * a(x + z)
        ),
        "the adapter works on the whole of x + z, which is the next block's input": (
            x + scale * a(x + z)
        ),
        "before the MLP the adapter comes after the norm, and the norm sees x alone": (
            x + mlp(norm(x + scale * a(x)))
        ),
        "the adapter sees x; before the MLP it sees what the norm gives": x + mlp(n + scale * a(x)),
        "the MLP reads what the adapter gives; in parallel it does not": (
            x + scale * a(x) + mlp(norm(x + scale * a(x)))
        ),
        "the norm is missing: the MLP reads norm(x)": {
            "after": x + mlp(x) + scale * a(mlp(x)),
            "beside": x + mlp(x) + scale * a(x),
            "before": x + mlp(x + scale * a(x)),
        }[place],
        "the skip starts from the normed x; it is x itself": {
            "after": n + z + scale * a(z),
            "beside": n + z + scale * a(x),
            "before": n + mlp(n + scale * a(n)),
        }[place],
        "the adapter's share is subtracted": _right(x, norm, mlp, a, -scale, place),
        "x is added twice": x + _right(x, norm, mlp, a, scale, place),
    }
    right = _right(x, norm, mlp, a, scale, place)
    same(
        f"the output for {case}",
        found,
        right,
        {text.replace("{place}", place): value for text, value in mistakes.items()},
    )
    for name, count in zip(("norm", "mlp", "adapter"), seen, strict=True):
        expect(
            count == 1,
            f"{case}: expected one call of {name}, found {count}",
            "a network's parts are what costs time: call each once, and keep what it gives",
        )

    def with_parts(function: Callable[..., Any]) -> Callable[..., Any]:
        return lambda x, *weights: function(x, *map(Part, weights), scale, place)

    arguments = dict(zip(("x", "norm", "mlp", "adapter"), (x, *weights), strict=True))
    same_gradients(with_parts(student), with_parts(_right), arguments, "x norm mlp adapter")
    lives(
        student,
        _right,
        {"x": x, "norm": norm, "mlp": mlp, "adapter": adapter, "scale": scale, "place": place},
    )
