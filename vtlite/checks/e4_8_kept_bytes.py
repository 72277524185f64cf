"""Exercise 4.8, `kept_bytes`."""

from __future__ import annotations

import torch
from torch import Tensor

from vtlite.checks.base import expect, fail, passed, randn, same
from vtlite.checks.harness import Answer, check
from vtlite.checks.inputs import Forward

# What each kind of pass keeps beside x, W and V: memories of [B, N, R] and of [B, N, M] numbers,
# and of [B, N, R] single bytes; first if W trains, then if W is frozen and V trains.
_KEPT: dict[str, tuple[tuple[int, int, int], tuple[int, int, int]]] = {
    "relu": ((1, 0, 0), (1, 0, 0)),  # what ReLU gives: for itself, and for the layer behind it
    "gelu": ((2, 0, 0), (1, 0, 0)),  # what goes in as well, unless nothing before it trains
    "piece": ((1, 0, 0), (0, 0, 0)),  # of one token; its memory is that of all
    "chosen": ((0, 0, 1), (0, 0, 0)),  # a yes or no each
    "chain": ((3, 0, 0), (0, 0, 0)),
    "head": ((0, 1, 0), (0, 1, 0)),
    "frozen": ((0, 0, 0), (0, 0, 0)),
    "linear": ((0, 0, 0), (0, 0, 0)),
}


@check
def kept_bytes(student: Answer) -> None:
    """4.8: `kept_bytes(call, own)` -> bytes that the forward pass `call` keeps for the backward
    pass, beside `own`."""
    for seed, B, N, R, M, dtype in (
        (0, 2, 5, 9, 3, torch.float32),
        (1, 1, 3, 6, 4, torch.float64),
        (2, 3, 1, 12, 5, torch.bfloat16),
    ):
        x, W, V = (t.to(dtype) for t in randn(seed, (B, N, 4), (R, 4), (M, R)))
        for kind, kept in _KEPT.items():
            for trains, (wide, narrow, marks) in zip((True, False), kept, strict=True):
                size = x.element_size()
                expected = B * N * (size * (wide * R + narrow * M) + marks * R)
                _pass_case(student, kind, x, W, V, trains, expected)
        # Three views of one memory, and the product of two of them, a third as large.
        thirds = x.element_size() * B * N * (R + R // 3)
        _pass_case(student, "thirds", x, W, V, True, thirds)
        everything = x.element_size() * (B + 1) * N * 4
        _pass_case(student, "linear", x, W, V, True, everything, foreign=True)
    passed(
        "kept_bytes",
        "nine forward passes",
        "bytes of every type",
        "a memory that is kept twice and views",
        "what is the network's own",
        "a backward pass afterwards",
        "frozen parts",
        "one pass and no backward pass",
        "hooks removed",
    )


def _pass_case(
    student: Answer,
    kind: str,
    x: Tensor,
    W: Tensor,
    V: Tensor,
    trains: bool,
    expected: int,
    foreign: bool = False,
) -> None:
    """`foreign`: x is not among the pass's own tensors."""
    x = torch.cat([x[:1], x])[1:]  # cut out of a larger memory, as images out of a data set
    W, V = W.clone().requires_grad_(trains), V.clone().requires_grad_()
    own = [W, V] if foreign else [x, W, V]
    forward = Forward(kind, x, W, V)
    found = student(forward, own)
    calls, hooked = forward.calls, _unhook()
    case = f'the bytes of the pass "{kind}", x {list(x.shape)} in {x.dtype}'
    case += "" if trains else ", W frozen"
    same(case, found, expected, _mistakes(Forward(kind, x, W, V), own, expected), tolerance=1e-9)
    expect(
        calls == 1,
        f"{case}: expected one pass, found {calls}",
        "call() runs the network: run it once, inside the with block",
    )
    expect(
        all(t.grad is None for t in own),
        f"{case}: expected no backward pass, found gradients",
        "what is kept is counted while the forward pass keeps it; a backward pass frees it",
    )
    try:
        if forward.out.requires_grad:
            forward.out.sum().backward()
    except Exception as error:
        fail(
            f"{case}: expected a backward pass that works afterwards, found an error:"
            f" {str(error).splitlines()[0]}",
            "what pack returns is what unpack gets, and unpack has to give the tensor back: return"
            " it from both",
        )
    expect(
        not hooked,
        f"{case}: expected no hooks afterwards, found yours still at work",
        "they would see every later network: use saved_tensors_hooks in a with block",
    )


def _unhook() -> bool:
    """Whether hooks are left that pack what is kept; they are taken away."""
    hooks, found = torch._C._autograd, False
    while hooks._top_saved_tensors_default_hooks(True) is not None:
        hooks._pop_saved_tensors_default_hooks()
        found = True
    return found


def _mistakes(forward: Forward, own: list[Tensor], expected: int) -> dict[str, int]:
    kept: list[Tensor] = []

    def pack(t: Tensor) -> Tensor:
        kept.append(t)
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        out = forward()

    def memory(t: Tensor) -> int:
        return t.untyped_storage().data_ptr()

    def whole(t: Tensor) -> int:
        return t.untyped_storage().nbytes()

    def cut(t: Tensor) -> int:
        return t.numel() * t.element_size()

    mine = {memory(t) for t in own}
    free = [t for t in kept if memory(t) not in mine]
    once = {memory(t): t for t in free}.values()
    begins = {t.data_ptr() for t in own}
    mistakes = {
        "a view keeps the whole memory behind it: untyped_storage().nbytes(), not numel()": sum(
            map(cut, once)
        ),
        "a memory that is kept twice, by two operations or as two views, is there once": sum(
            map(whole, free)
        ),
        "a tensor that is kept twice is there once": sum(map(cut, free)),
        "x, W and V are there anyway, and what is kept of them is often a view, another tensor in the same memory: compare memories, not tensors": sum(
            map(whole, {memory(t): t for t in kept}.values())
        ),
        "part of x, W and V is counted, a view of them: compare memories, not tensors": sum(
            map(whole, {memory(t): t for t in kept if not any(t is o for o in own)}.values())
        ),
        "data_ptr() is where a view begins, and a tensor of `own` may be one: compare untyped_storage().data_ptr()": sum(
            map(whole, {memory(t): t for t in kept if memory(t) not in begins}.values())
        ),
        "you count tensors, not bytes": len(once),
        "you count numbers, not bytes: element_size() tells how long one is": sum(
            whole(t) // t.element_size() for t in once
        ),
        "four bytes is the length of float32 alone: ask element_size()": sum(
            4 * (whole(t) // t.element_size()) for t in once
        ),
        "tensors of truth values are kept, too": sum(
            whole(t) for t in once if t.is_floating_point()
        ),
        "what comes out is not kept, unless an operation saves it": expected + whole(out),
        "that is the output's memory; what operations keep on the way is asked": whole(out),
        "nothing is counted: the pass has to run inside the with block, whose first hook is called with each tensor": 0,
    }
    return {text: wrong for text, wrong in mistakes.items() if wrong != expected}
