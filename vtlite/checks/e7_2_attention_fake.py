"""Exercise 7.2, `attention_fake`."""

from __future__ import annotations

from contextlib import nullcontext

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from vtlite.checks.base import expect, passed
from vtlite.checks.harness import (
    Answer,
    check,
)
from vtlite.checks.watch import Operations


@check
def attention_fake(student: Answer) -> None:
    """7.2: `attention_fake(q, k, v)` -> empty (out, lse) as the operation would return them."""
    cases = (
        ((2, 3, 5, 7, 4, 6), torch.float32, "cpu"),
        ((1, 2, 4, 3, 5, 5), torch.float16, "cpu"),
        ((3, 1, 6, 6, 2, 2), torch.bfloat16, "cpu"),
        ((2, 4, 3, 8, 6, 5), torch.float64, "cpu"),
        ((2, 3, 4, 6, 5, 7), torch.float16, "meta"),
        ((64, 12, 577, 197, 64, 96), torch.float32, "meta"),
        # pretended: FakeTensorMode needs no such device, and is what a compiler traces with
        ((2, 3, 4, 6, 5, 7), torch.float32, "cuda"),
    )
    for sizes, dtype, device in cases:
        with FakeTensorMode() if device == "cuda" else nullcontext():
            _fake_case(student, *sizes, dtype, device)
    passed(
        "attention_fake",
        "both shapes",
        "both types",
        "contiguous",
        "the device of the inputs",
        "nothing computed or read or written",
    )


def _fake_case(
    student: Answer,
    B: int,
    H: int,
    N: int,
    S: int,
    d: int,
    e: int,
    dtype: torch.dtype,
    device: str,
) -> None:
    # As a fused projection gives them: heads and tokens exchanged, so not contiguous.
    q, k, v = (
        torch.ones(B, n, H, w, dtype=dtype, device=device).transpose(1, 2)
        for n, w in ((N, d), (S, d), (S, e))
    )
    case = f"for q {list(q.shape)}, k {list(k.shape)}, v {list(v.shape)}, {dtype}, on {device}"
    if device == "meta":
        student.hint = (
            "there are no values to read while a program is traced: item, float, if and a copy to"
            " the CPU are out"
        )
    with Operations() as operations:
        returned = student(q, k, v)
    student.hint = ""
    fills = (
        "zeros",
        "ones",
        "full",
        "new_zeros",
        "new_ones",
        "new_full",
        "zeros_like",
        "ones_like",
        "fill_",
        "zero_",
    )
    copying, reads = ("_to_copy", "clone", "copy_"), ("_local_scalar_dense", "equal")
    for group, likely in (
        (
            reads,
            (
                "you read a value; a rule for shapes never does, as there are none while a program"
                " is traced"
            ),
        ),
        (
            set(operations.names) - {*fills, *copying},
            "you compute the attention itself to learn its shape; write the shape down instead",
        ),
        (fills, "you fill the tensors; empty reserves memory and writes nothing"),
        (
            copying,
            (
                "a conversion or a copy is an operation, too: make the tensor in its type (dtype=)"
                " and shape at once"
            ),
        ),
    ):
        names = [name for name in operations.names if name in group]
        expect(
            not names,
            f"{case}: expected empty tensors and nothing else, found {names[:1]} at work",
            likely,
        )
    expect(
        isinstance(returned, tuple | list)
        and len(returned) == 2
        and all(isinstance(t, Tensor) for t in returned),
        f"{case}: expected two tensors, found {type(returned).__name__}",
        "return (out, lse)",
    )
    # Which mistake makes which shape; where two sizes agree, the last one counts, and the first
    # case has six different ones.
    shapes = {
        (B, H, S, e): "there is one output per query: N rows from q, not S from v",
        (B, H, N, d): "its width is v's e, not q's d",
        (B, H, N, S): "that is the shape of the scores, which a fused operation never writes",
        (B, N, H, e): "heads come before tokens",
        (B, H, N, 1): "there is no last dimension of 1",
        (B, H, S): "there is one number per query: N, not S",
        (B, H): "there is one number per query, not per head",
        (B, N): "there is one number per query and head",
        (B, H, N): "out comes first, lse second",
        (B, H, N, e): "out comes first, lse second",
    }
    precise = torch.float64 if dtype == torch.float64 else torch.float32
    for name, t, shape, kind in (
        ("out", returned[0], (B, H, N, e), dtype),
        ("lse", returned[1], (B, H, N), precise),
    ):
        expect(
            tuple(t.shape) == shape,
            f"{name} {case}: expected shape {list(shape)}, found {list(t.shape)}",
            shapes.get(tuple(t.shape), "out is [B, H, N, e], lse is [B, H, N]"),
        )
        expect(
            t.dtype == kind,
            f"{name} {case}: expected {kind}, found {t.dtype}",
            (
                "out has the type of its inputs; give dtype= or use q.new_empty"
                if name == "out"
                else (
                    "float64 stays float64: at least float32, not always"
                    if dtype == torch.float64
                    else (
                        "a sum of exponentials is kept in float32 where the inputs are half"
                        " precision"
                    )
                )
            ),
        )
        expect(
            t.device.type == device,
            f"{name} {case}: expected it on {device}, found {t.device}",
            "torch.empty without device= is on the CPU; use q.new_empty or device=q.device",
        )
        expect(
            t.is_contiguous(),
            f"{name} {case}: expected a contiguous tensor, found strides {t.stride()}",
            "empty_like copies the strides of its argument, whose heads and tokens are exchanged;"
            " the operation writes contiguously",
        )
