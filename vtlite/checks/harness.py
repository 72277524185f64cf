"""One harness for all checks: an answer is run through many lives.

A check is a function of an `Answer`, marked with `@check`. It describes its exercise: inputs, a
naive reference, likely mistakes by value. `lives` then runs the answer on the same inputs in every
other way that the text promises; a life that does not apply is named `without` it, with a reason.
"""

from __future__ import annotations

import contextlib
import dis
import functools
import re
import types
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

from vtlite.checks.base import CheckFailed, expect, fail, randn, same
from vtlite.checks.compare import difference
from vtlite.checks.errors import own_line, sentence
from vtlite.checks.inputs import strided
from vtlite.checks.watch import Calls, Operations, code_of, numbers

SEED = 8_191_301  # no student's: one that an answer sets is then another
_DETACHED = "something detached it (detach, item, data or no_grad), so it would never train"
_GLOBALS: dict[str, tuple[Callable[[], Any], Callable[[Any], Any]]] = {
    "the grad mode": (torch.is_grad_enabled, torch.set_grad_enabled),
    "the default type": (torch.get_default_dtype, torch.set_default_dtype),
    "the default device": (torch.get_default_device, torch.set_default_device),
    "the seed": (torch.initial_seed, torch.manual_seed),
    "the number of threads": (torch.get_num_threads, torch.set_num_threads),
    "the choice of deterministic algorithms": (
        torch.are_deterministic_algorithms_enabled,
        lambda on: torch.use_deterministic_algorithms(on, warn_only=True),
    ),
}


class Answer:
    """A student's function. Each call is watched; an error becomes a sentence beside its line."""

    def __init__(self, function: Callable[..., Any]) -> None:
        expect(
            callable(function),
            f"expected a function, found {type(function).__name__}",
            "give the function itself to the check, without calling it",
        )
        self.function, self.code, self.life, self.hint = function, code_of(function), "", ""
        self.by_hand = False  # where a derivative must not be asked of PyTorch

    def __call__(self, *arguments: Any) -> Any:
        before = {name: read() for name, (read, _) in _GLOBALS.items()}
        tensors = [t for t in tree_leaves(arguments) if isinstance(t, Tensor)]
        flags = [t.requires_grad for t in tensors]
        dicts = [(argument, dict(argument)) for argument in arguments if type(argument) is dict]
        calls = Calls(self.function)
        try:
            with calls:
                returned = self.function(*arguments)
            if returned is None and _is_empty(self.code):
                fail(
                    "expected an answer, found an empty function",
                    "the exercise is not written yet",
                )
            return returned
        except CheckFailed:
            raise
        except Exception as error:
            if type(error) is NotImplementedError and re.match("Exercise|$", str(error)):
                raise  # not written yet, which is no mistake
            if not calls.package and not (self.by_hand and calls.autograd):
                fail(
                    f"{self.life and self.life + ': '}expected an answer, found an error"
                    f"{own_line(error, self.code)}: {type(error).__name__}:"
                    f" {str(error).strip().splitlines()[0] if str(error).strip() else ''}",
                    self.hint or sentence(error),
                )
        finally:
            changed = [name for name, (read, _) in _GLOBALS.items() if read() != before[name]]
            for name in changed:
                _GLOBALS[name][1](before[name])
            _honest(calls, self.by_hand)
            moved = [held for held, old in dicts if not _as_before(held, old)]
            for held, old in dicts if moved else ():
                held.clear()
                held.update(old)
            expect(
                not moved,
                "expected the dict that you were given to stay as it was, found it changed",
                "you pop from it or write into it: make a new one",
            )
            if flags != [t.requires_grad for t in tensors]:
                fail(
                    "expected requires_grad of the arguments as it was, found it changed",
                    "you set requires_grad of a tensor that you were given; detach() or clone() it",
                )
            if changed:
                fail(
                    f"expected {changed[0]} of PyTorch to stay as it was, found it changed",
                    "you set it for everything that comes after: use a with block, which sets it"
                    " back",
                )


def _as_before(held: dict[Any, Any], old: dict[Any, Any]) -> bool:
    return held.keys() == old.keys() and all(held[key] is old[key] for key in old)


def _is_empty(code: types.CodeType | None) -> bool:
    """Whether a function has no body but its docstring."""
    idle = {"RESUME", "NOP", "LOAD_CONST", "RETURN_VALUE", "RETURN_CONST"}
    return code is not None and {step.opname for step in dis.get_instructions(code)} <= idle


def _honest(calls: Calls, by_hand: bool) -> None:
    expect(
        not calls.package,
        f"expected an answer of your own, found a call of the package's {calls.package}",
        "the exercise is to write it yourself; what vtlite has ready is no answer",
    )
    expect(
        not calls.peeked,
        f"expected an answer of your own, found {calls.peeked}: a look into the check",
        "the reference is not to be read; compute the result from the arguments",
    )
    expect(
        not (by_hand and calls.autograd),
        "expected a gradient written out, found a call of autograd or torch.func",
        "you let autograd do it (grad, backward, vjp, jacrev); use the formula instead",
    )


def check(function: Callable[[Any], None]) -> Callable[[Callable[..., Any]], None]:
    """A check that runs in a state of its own, and whose failure shows its message alone."""

    @functools.wraps(function)
    def run(student: Callable[..., Any]) -> None:
        failed: CheckFailed | None = None
        try:
            with _own_state():
                function(Answer(student))
        except CheckFailed as error:
            failed = error
        if failed is not None:
            raise failed.with_traceback(None) from None

    # Without a file there is no source of the check for a traceback to print.
    bare: Any = run
    bare.__code__ = bare.__code__.replace(co_filename="<check>")
    return run


@contextlib.contextmanager
def _own_state() -> Iterator[None]:
    default = torch.get_default_dtype()
    deterministic = torch.are_deterministic_algorithms_enabled()
    torch.set_default_dtype(torch.float32)
    # Memory that is reserved and not written is then filled with nan, and is seen.
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        with torch.inference_mode(False), torch.enable_grad(), torch.random.fork_rng(devices=[]):
            torch.manual_seed(SEED)
            yield
    finally:
        torch.set_default_dtype(default)
        torch.use_deterministic_algorithms(deterministic)


# The lives
# -------------------------------------------------------------------------------------------------
def _expanded(t: Tensor) -> Tensor:
    return t[:1].expand_as(t) if t.ndim else t


def _to(dtype: torch.dtype) -> Callable[[Tensor], Tensor]:
    return lambda t: t.to(dtype) if t.is_floating_point() else t


def _each(change: Callable[[Tensor], Tensor], tree: Any) -> Any:
    """The same numbers, tuples and dicts, with every tensor in them changed."""
    return tree_map(lambda t: change(t) if isinstance(t, Tensor) else t, tree)


def _same_tensor(t: Tensor) -> Tensor:
    return t.clone()


_TYPES = (
    "the type is lost (torch.zeros or torch.tensor without dtype=, float(), a table of float32):"
    " the result has the type of the arguments"
)
_MODE = "the result may not depend on the mode of autograd, nor the function set it for others"
LIVES: dict[str, tuple[Callable[[Tensor], Tensor], Callable[[], Any], str]] = {
    "strided": (
        strided,
        contextlib.nullcontext,
        "an argument may be transposed or cut, so that its memory is not in order: use reshape or"
        " flatten instead of view, and no as_strided",
    ),
    "expanded": (
        _expanded,
        contextlib.nullcontext,
        "an argument may be expanded, so that several entries share one place in memory: do not"
        " write into it, and do not view it",
    ),
    "float64": (_to(torch.float64), contextlib.nullcontext, _TYPES),
    "bfloat16": (_to(torch.bfloat16), contextlib.nullcontext, _TYPES),
    "other values": (
        lambda t: (0.5 - 1.5 * t).to(t.dtype) if t.is_floating_point() else t + 1,
        contextlib.nullcontext,
        "the second call gives what belongs to the first: keep nothing between calls",
    ),
    "no_grad": (_same_tensor, torch.no_grad, _MODE),
    "inference_mode": (_same_tensor, torch.inference_mode, _MODE),
    "arguments that require a gradient": (
        lambda t: t.clone().requires_grad_() if t.is_floating_point() else t.clone(),
        contextlib.nullcontext,
        "an argument may require a gradient: do not write into it, and do not turn it into NumPy",
    ),
}


_UNSAID = "the text does not speak of types"
NO_TYPES = {"float64": _UNSAID, "bfloat16": _UNSAID}

VALUES_ONLY = NO_TYPES | {
    "arguments that require a gradient": "the text speaks of values, not of gradients"
}
AUTOGRAD_OFF = {
    "arguments that require a gradient": "a gradient written out runs where autograd is off"
}


def lives(
    answer: Answer,
    naive: Callable[..., Any],
    arguments: Mapping[str, Any],
    *,
    without: Mapping[str, str] | None = None,
    reads: bool = True,
) -> None:
    """Run `answer` in every life and compare with `naive`, which gets plain float64 tensors.

    arguments: name -> tensor, number, or dict or tuple of tensors. `without` maps a life that the
    text does not promise to the reason. `reads`: the answer may look at values (item, if).
    """
    assert not set(without or {}) - set(LIVES), "a life that does not exist"
    for life, (change, mode, likely) in LIVES.items():
        if life in (without or {}):
            continue
        given = _each(change, arguments)
        plain = _each(lambda t: _to(torch.float64)(t.detach()).contiguous(), given)
        kept = _each(lambda t: t.detach().clone(), given)
        answer.life = f"with {life}" if life not in ("strided", "expanded") else f"{life} arguments"
        answer.hint = likely if life in ("strided", "expanded") else ""
        with mode():
            found = answer(*given.values())
        answer.hint = ""
        expected = naive(*plain.values())
        _compare(answer.life, found, expected, given, life, likely)
        moved = [
            t
            for t, old in zip(tree_leaves(given), tree_leaves(kept), strict=True)
            if isinstance(t, Tensor) and not torch.equal(t, old)
        ]
        expect(
            not moved,
            f"{answer.life}: expected the arguments to stay as they were, found one changed",
            "you wrote into a tensor that you were given (+=, *=, add_, [...] = ...): make a new"
            " one",
        )
    answer.life = ""
    any_device(answer, arguments, reads=reads)


def _compare(case: str, found: Any, expected: Any, given: Any, life: str, likely: str) -> None:
    type_of = next(
        t.dtype for t in tree_leaves(given) if isinstance(t, Tensor) and t.is_floating_point()
    )
    cast = _to(type_of)
    if isinstance(expected, tuple | list):
        expect(
            isinstance(found, tuple | list) and len(found) == len(expected),
            f"{case}: expected {len(expected)} results, found {type(found).__name__}",
            likely,
        )
    else:
        found, expected = [found], [expected]
    for mine, right in zip(found, expected, strict=True):
        right = _each(cast, right)
        tolerance = {torch.bfloat16: 5e-2, torch.float64: 1e-9}.get(type_of, 3e-5)
        what = difference(mine, right, tolerance)
        expect(not what, f"{case}: {what}", likely)


def any_device(answer: Answer, arguments: Mapping[str, Any], *, reads: bool) -> None:
    """On meta tensors, which have no values, the result is on meta, too: nothing is made on the
    CPU. An answer that reads values cannot run there; it passes where `reads` allows it."""
    moved = _each(lambda t: t.to("meta"), arguments)
    likely = (
        "you make a tensor without device= (torch.zeros, torch.eye), or read values (item, float,"
        " if): stay on the arguments' device"
    )
    made = Operations()
    answer.life, answer.hint = "on any device, tried with meta tensors", likely
    try:
        with made:
            returned = answer(*moved.values())
    except (CheckFailed, NotImplementedError) as error:
        if reads and not made.on_cpu:
            return
        fail(f"expected it to run on any device: {str(error).splitlines()[0]}", likely)
    finally:
        answer.life = answer.hint = ""
    for t in tree_leaves(returned):
        if isinstance(t, Tensor):
            expect(
                t.device.type == "meta",
                "expected the result on the device of the arguments, tried with meta, found"
                f" {t.device}",
                likely,
            )


# What several checks share
# -------------------------------------------------------------------------------------------------
def stays_small(
    student: Callable[..., Any], arguments: dict[str, Any], limit: int, likely: str
) -> None:
    """Fail where `student` has `limit` computed numbers or more at once, in one tensor or in many,
    whatever it returns."""
    with torch.no_grad():
        found = numbers(student, *arguments.values()).computed
    expect(
        found < limit,
        f"expected fewer than {limit} computed numbers at a time, found {found}",
        likely,
    )


def new_memory(found: Tensor, given: Mapping[str, Tensor]) -> None:
    """Fail where a result is an argument or a view of one."""
    shared = [
        name
        for name, t in given.items()
        if found.untyped_storage().data_ptr() == t.untyped_storage().data_ptr()
    ]
    expect(
        not shared,
        f"expected a new tensor, found one that shares its memory with {shared[:1]}",
        "you return the argument itself or a view of it; a later training step would change both",
    )


def gradients(
    function: Callable[..., Any], arguments: dict[str, Any], wanted: str
) -> dict[str, Tensor]:
    """The gradients of a fixed weighted sum of what `function` returns; zero where none arrives."""
    leaves = {name: arguments[name].clone().requires_grad_() for name in wanted.split()}
    out = function(*(arguments | leaves).values())
    zeros = {name: torch.zeros_like(t) for name, t in leaves.items()}
    if not out.requires_grad:
        return zeros
    (weights,) = randn(99, tuple(out.shape))
    try:
        grads = torch.autograd.grad((out * weights).sum(), list(leaves.values()), allow_unused=True)
    except RuntimeError as error:  # raised by PyTorch only now, long after the answer's own line
        fail(
            f"expected a gradient, found an error: {str(error).splitlines()[0]}",
            sentence(error),
        )
    return {
        name: zeros[name] if grad is None else grad
        for name, grad in zip(leaves, grads, strict=True)
    }


def same_gradients(
    student: Callable[..., Any],
    naive: Callable[..., Any],
    arguments: dict[str, Any],
    wanted: str,
    wrong: dict[str, Callable[..., Any]] | None = None,
) -> None:
    """Compare the gradients that arrive through `student` with those of the naive reference."""
    found, expected = gradients(student, arguments, wanted), gradients(naive, arguments, wanted)
    mistakes = {
        text: gradients(function, arguments, wanted) for text, function in (wrong or {}).items()
    }
    for name, gradient in expected.items():
        same(
            f"the gradient of {name}",
            found[name],
            gradient,
            {
                **{text: value[name] for text, value in mistakes.items()},
                f"no gradient reaches {name}: {_DETACHED}": torch.zeros_like(gradient),
            },
        )
