"""How a check looks and speaks: one comparison that names the first difference and, where it
recognises it, the mistake."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vtlite.checks.compare import difference
from vtlite.checks.guess import guess


class CheckFailed(AssertionError):
    """What a check found: expected, found, and the likely mistake."""

    def _render_traceback_(self) -> list[str]:
        """What a notebook shows: the message, and no line of the check."""
        return [str(self)]


def passed(exercise: str, *verified: str) -> None:
    """Say what was verified, and nothing more."""
    print(f"{exercise}: {len(verified)} checks passed: {', '.join(verified)}")


def fail(what: str, likely: str = "") -> None:
    """Raise `CheckFailed` with a sentence on the likely mistake."""
    raise CheckFailed(what + (f"\nLikely mistake: {likely}" if likely else ""))


def expect(condition: bool, what: str, likely: str = "") -> None:
    """`fail` unless `condition` holds."""
    if not condition:
        fail(what, likely)


def same(
    what: str,
    found: Any,
    expected: Any,
    mistakes: Mapping[str, Any] | None = None,
    tolerance: float = 1e-5,
) -> None:
    """Compare numbers, tensors, or dicts of them, with a naive reference.

    `mistakes` maps a sentence to the value that this mistake would give; the first one that `found`
    equals is named. Raises `CheckFailed`.
    """
    what_differs = difference(found, expected, tolerance)
    if what_differs:
        likely = next(
            (
                sentence
                for sentence, wrong in (mistakes or {}).items()
                if not difference(found, wrong, tolerance)
            ),
            "",
        )
        likely = likely or guess(found, expected)
        fail(f"{what}: {what_differs}", likely)


def plain(returned: Any) -> Any:
    """An array or a tensor of numbers as a list, anything else as it is."""
    return returned.tolist() if isinstance(returned, np.ndarray | Tensor) else returned


def randn(seed: int, *shapes: tuple[int, ...]) -> list[Tensor]:
    """Seeded tensors of the given shapes."""
    g = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=g) for shape in shapes]


def untouched(given: Mapping[str, Tensor], before: Mapping[str, Tensor]) -> None:
    """Fail where an argument is not as it was `before`."""
    changed = [name for name, t in given.items() if not torch.equal(t, before[name])]
    expect(
        not changed,
        f"expected the arguments to stay as they were, found {changed[:1]} changed",
        "you wrote into a tensor that you were given (+=, *=, add_, [...] = ...): make a new one",
    )


def copies(given: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What `untouched` compares with afterwards."""
    return {name: t.clone() for name, t in given.items()}
