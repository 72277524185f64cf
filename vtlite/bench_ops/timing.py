"""Seconds and bytes of one operation in several ways, in turns within one run."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from vtlite.accounting import kept_bytes
from vtlite.bench_ops.cases import OPERATIONS, Size, leaves_of, make_inputs, tensors_of
from vtlite.bench_ops.tables import line
from vtlite.bench_ops.traffic import Machine, clock, count, least_bytes

Row = dict[str, Any]


def measure(
    names: Iterable[str],
    sizes: dict[str, Size],
    device: str,
    limits: Machine,
    repeats: int,
    compiled: bool,
) -> list[Row]:
    """Every operation in every way: one row for the forward pass and one for forward and
    backward."""
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    rows = []
    for size_name, size in sizes.items():
        for name in names:
            operation = OPERATIONS[name]
            inputs, meta = (
                make_inputs(operation, size, where, dtype) for where in (device, "meta")
            )
            torch.compiler.reset()
            ways = {
                "plain": operation.plain,
                "compile": torch.compile(operation.plain, dynamic=False),
                "ours": operation.ours,
            }
            if not compiled:
                del ways["compile"]
            memory = {way: memory_of(function, inputs, device) for way, function in ways.items()}
            for backward in (False, True):
                least = least_bytes(operation.plain, meta, backward)
                flops = min(
                    count(function, meta, limits, backward).flops
                    for function in (operation.plain, operation.ours)
                )
                limit = max(least / limits.bandwidth, flops / limits.flops)
                taken = in_turns(
                    {way: one_pass(function, inputs, backward) for way, function in ways.items()},
                    clock(device),
                    repeats,
                )
                row: Row = {
                    "operation": name,
                    "size": size_name,
                    "pass": "forward + backward" if backward else "forward",
                }
                row |= {"least_bytes": least, "flops": flops, "limit_seconds": limit}
                for way, times in taken.items():
                    row[way] = {
                        "seconds": statistics.median(times),
                        "speedup": statistics.median(
                            p / t for p, t in zip(taken["plain"], times, strict=True)
                        ),
                        "share_of_limit": limit / statistics.median(times),
                        "memory_bytes": memory[way] if backward else None,
                    }
                rows.append(row)
                print(line(row), flush=True)
    return rows


def one_pass(
    function: Callable[..., Tensor], inputs: tuple[Any, ...], backward: bool
) -> Callable[[], object]:
    if not backward:
        return torch.no_grad()(
            lambda: function(*inputs)
        )  # as in evaluation: nobody trains with a forward pass alone
    seed = torch.ones_like(function(*inputs))
    return lambda: torch.autograd.grad(function(*inputs), leaves_of(inputs), seed)


def in_turns(
    calls: dict[str, Callable[[], object]],
    clock: Callable[[Callable[[], object]], float],
    repeats: int,
) -> dict[str, list[float]]:
    """Seconds of `repeats` rounds, each way once a round, after three rounds to warm up.

    Every other round goes backwards: what a way leaves in caches and in the allocator is then not
    always left to the same one.
    """
    rounds = [
        {way: clock(calls[way]) for way in (calls if i % 2 else reversed(calls))}
        for i in range(repeats + 3)
    ][3:]
    return {way: [times[way] for times in rounds] for way in calls}


def memory_of(function: Callable[..., Tensor], inputs: tuple[Any, ...], device: str) -> int:
    if device == "cpu":
        return kept_bytes(partial(function, *inputs), tensors_of(inputs))
    return peak(one_pass(function, inputs, backward=True))


def peak(step: Callable[[], object]) -> int:
    """CUDA: the most that one call allocates beyond what is there before it."""
    step()
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    step()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before
