"""The first difference of two values, in words."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor


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
