"""What people pass to functions: each kind of value is checked here, in one sentence."""

from __future__ import annotations

import functools
import inspect
import numbers
import sys
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, ParamSpec, TypeVar, Union

import torch

from vtlite.storage import VTError, said, unknown

P = ParamSpec("P")
R = TypeVar("R")


MOST = 1_000_000  # of epochs, images in a batch, classes: more is a mistake


def whole(name: str, value: Any, least: int = 1, most: int = MOST) -> int:
    """A whole number, NumPy's too. Raises `VTError` for anything else or one out of range."""
    integral = isinstance(value, numbers.Integral) and not isinstance(value, bool)
    if not integral or not least <= value <= most:
        wanted = f"of at most {most:,}" if integral and value > most else f"of at least {least}"
        raise VTError(f"expected {name} {wanted}, found {said(value)}; give a whole number")
    return int(value)


def number(name: str, value: Any, wanted: str, holds: Callable[[float], bool]) -> float:
    """A finite number for which `holds`; `wanted` says so in words. Raises `VTError` for others."""
    if not fits(value, float) or not holds(value):
        raise VTError(f"expected {name} {wanted}, found {said(value)}; give such a number")
    return float(value)


def seed_number(value: Any) -> int:
    """A seed that torch and NumPy both take."""
    return whole("seed", value, 0, 2**32 - 1)


def fits(value: Any, hint: Any) -> bool:
    """Whether a value is of the kind that a type hint names. True and False are no numbers, and
    numbers are finite; what the hint says of classes and models is not looked at."""
    kind, of = typing.get_origin(hint), typing.get_args(hint)
    if hint is bool:
        return isinstance(value, bool)
    if hint in (int, float):
        real: Any = numbers.Integral if hint is int else numbers.Real
        most = 2**63 - 1 if hint is int else sys.float_info.max
        return isinstance(value, real) and not isinstance(value, bool) and abs(value) <= most
    if hint is str:
        return isinstance(value, str)
    if hint in (None, types.NoneType):
        return value is None
    if kind is Literal:  # which of them, the function itself says
        return isinstance(value, type(of[0]))
    if kind in (Union, types.UnionType):
        return any(fits(value, each) for each in of)
    if kind in (tuple, Sequence):
        listed = isinstance(value, tuple | list)
        return listed and all(fits(each, of[0]) for each in value)
    return True


_WORDS = {bool: "True or False", int: "a whole number", float: "a number", str: "a text"}


def in_words(hint: Any) -> str:
    """What `fits` asks for."""
    kind, of = typing.get_origin(hint), typing.get_args(hint)
    if kind is Literal:
        return in_words(type(of[0]))
    if kind in (Union, types.UnionType):
        return " or ".join(in_words(each) for each in of)
    if kind in (tuple, Sequence):
        return f"a tuple, each of it {in_words(of[0])}"
    return _WORDS.get(hint, "None" if hint is types.NoneType else str(hint))


def expect_kinds(whose: str, values: Mapping[str, Any], hints: Mapping[str, Any]) -> None:
    """Raise `VTError` for an argument that is not of the kind its type hint names."""
    for name, value in values.items():
        if name in hints and not fits(value, hints[name]):
            raise VTError(
                f"{whose}: expected {name} to be {in_words(hints[name])}, found {said(value)}; "
                "give one of that kind"
            )


def named(function: Callable[P, R]) -> Callable[P, R]:
    """Let a keyword that a function does not have raise `VTError` with the nearest that it has."""
    parameters = list(inspect.signature(function).parameters)

    @functools.wraps(function)
    def checked(*values: P.args, **keywords: P.kwargs) -> R:
        for name in keywords:
            if name not in parameters:
                raise unknown(f"argument of {function.__name__}", name, parameters)
        return function(*values, **keywords)

    return checked


def as_device(value: Any) -> torch.device:
    """The device of that name. Raises `VTError` for one that torch or this machine has not."""
    try:
        device = torch.device(value)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, TypeError, ValueError) as error:
        raise VTError(
            f'expected a device that is here, such as "cpu", "cuda" or "meta", found {said(value)} '
            f"({said(str(error))}); choose another"
        ) from error
    return device
