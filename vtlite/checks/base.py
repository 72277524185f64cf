"""How a check looks and speaks: one comparison that names the first difference and, where it
recognises it, the mistake."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

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


def difference(found: Any, expected: Any, tolerance: float) -> str:
    """The first difference in words, or nothing."""
    if isinstance(expected, dict):
        return _dict_difference(found, expected, tolerance)
    if not isinstance(expected, Tensor):
        if isinstance(found, Tensor) and found.ndim == 0:
            found = found.item()
        if isinstance(found, np.generic | np.ndarray) and found.ndim == 0:
            found = found.item()
        if isinstance(found, bool) or not isinstance(found, int | float):
            return f"expected a number, found {_kind(found)}"
        if isinstance(expected, int) and isinstance(found, float) and not found.is_integer():
            return f"expected the whole number {expected}, found {found:.6g}"
        return (
            ""
            if abs(found - expected) <= tolerance * max(1e-8, abs(expected))
            else f"expected {expected:.6g}, found {found:.6g}"
        )
    if not isinstance(found, Tensor):
        return f"expected a tensor, found {_kind(found)}"
    if found.shape != expected.shape:
        return f"expected shape {list(expected.shape)}, found {list(found.shape)}"
    if found.dtype != expected.dtype:
        return f"expected {expected.dtype}, found {found.dtype}"
    a, b = found.detach(), expected.detach()
    if b.dtype in (torch.bfloat16, torch.float16):
        tolerance = max(tolerance, 2e-2)
    near = torch.isclose(
        a,
        b,
        rtol=tolerance,
        atol=tolerance * (float(b.abs().max()) if b.is_floating_point() and b.numel() else 0.0),
    )
    if bool(near.all()):
        return ""
    place = tuple((~near).nonzero()[0].tolist())
    return (
        f"first difference at {list(place)}: expected {b[place].item():.6g}, found"
        f" {a[place].item():.6g} (shape {list(b.shape)})"
    )


def _kind(found: Any) -> str:
    return "None: the function returns nothing" if found is None else type(found).__name__


def _dict_difference(found: Any, expected: dict[Any, Any], tolerance: float) -> str:
    if not isinstance(found, dict):
        return f"expected a dict, found {_kind(found)}"
    if not all(isinstance(key, str) for key in found):
        return f"expected the keys {sorted(expected)}, found some that are no strings"
    if found.keys() != expected.keys():
        missing, extra = (
            sorted(expected.keys() - found.keys()),
            sorted(found.keys() - expected.keys()),
        )
        return (
            f"expected the keys {sorted(expected)}, found"
            f" {f'no {missing[0]!r}' if missing else f'also {extra[0]!r}'}"
        )
    for key, value in expected.items():
        if what := difference(found[key], value, tolerance):
            return f"{key!r}: {what}"
    return ""


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
