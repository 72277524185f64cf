"""Kronecker linear: y = x (sum_i A_i (x) B_i)^T, the matrix itself never formed (parameter tuning:
KronA, PHM, Compacter).

With x cut into a grid X [p, q], row by row, one factor works on the rows of the grid and the other
on its columns:

    (A (x) B) vec(X) = vec(A X B^T)          A [a, p], B [b, q], X [p, q] -> [a, b]

A token of a b = 768 outputs and p q = 768 inputs costs 43,008 multiplications for A 24 x 24 and B
32 x 32 instead of 589,824. A sum of n products costs n times that. KAdaptation's sum is a matrix of
low rank, which `lora_linear` knows.

Kept for the backward pass: x, A, B and C, what lies between the two products (for one product of
square factors as large as x). Source: Edalati et al., "KronA", 2023, arXiv 2212.10650; Zhang et
al., "Beyond Fully-Connected Layers with Quaternions", ICLR 2021, arXiv 2102.08597.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from vtlite.ops._launch import same_dtype


# 1. What it means
# -------------------------------------------------------------------------------------------------
def kron_linear_reference(x: Tensor, A: Tensor, B: Tensor) -> Tensor:
    """x [..., p q], A [n, a, p], B [n, b, q] -> y [..., a b] = x (sum_i kron(A_i, B_i))^T. A B of
    low rank is given as its product."""
    X = x.unflatten(-1, (A.shape[2], B.shape[2]))  # [..., p, q]
    return torch.stack([A_i @ X @ B_i.mT for A_i, B_i in zip(A, B, strict=True)]).sum(0).flatten(-2)


def kron_matrix(A: Tensor, B: Tensor) -> Tensor:
    """The matrix itself, for merging: A [n, a, p], B [n, b, q] -> [a b, p q] = sum_i kron(A_i,
    B_i)."""
    (n, a, p), (_, b, q) = A.shape, B.shape
    pairs = A.reshape(n, a * p).mT @ B.reshape(
        n, b * q
    )  # all products of an entry of A with one of B, summed over i
    return pairs.view(a, p, b, q).transpose(1, 2).reshape(a * b, p * q)


# 2. The operator
# -------------------------------------------------------------------------------------------------
@torch.library.custom_op("vtlite::kron_linear", mutates_args=())
def _kron_linear(x: Tensor, A: Tensor, B: Tensor) -> tuple[Tensor, Tensor]:
    """x [M, p q] -> y [M, a b], and C [p n, M b] or, with rows first, [q n, M a]"""
    return _product(x, A, B)


@_kron_linear.register_fake
def _(x: Tensor, A: Tensor, B: Tensor) -> tuple[Tensor, Tensor]:
    (n, a, p), (_, b, q) = A.shape, B.shape
    between = (
        (p * n, x.shape[0] * b) if _columns_first(A.shape, B.shape) else (q * n, x.shape[0] * a)
    )
    return x.new_empty(x.shape[0], a * b), x.new_empty(between)


def _setup(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor], output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(*inputs, output[1])
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)


def _backward(ctx: Any, dy: Tensor | None, _: None) -> tuple[Tensor | None, ...]:
    return (None, None, None) if dy is None else _gradients(dy, *ctx.saved_tensors)


_kron_linear.register_autograd(_backward, setup_context=_setup)


@register_flop_formula(torch.ops.vtlite.kron_linear)
def _(x: torch.Size, A: torch.Size, B: torch.Size, **_: Any) -> int:
    (n, a, p), (_n, b, q) = A, B
    return (
        2 * x[0] * n * min(p * b * (q + a), a * q * (p + b))
    )  # a counter of operations does not see into an operator


def _product(x: Tensor, A: Tensor, B: Tensor) -> tuple[Tensor, Tensor]:
    M, (n, a, p), (_, b, q) = len(x), A.shape, B.shape
    if not _columns_first(A.shape, B.shape):  # the same with rows and columns exchanged
        y, C = _product(_exchanged(x, p), B, A)
        return _exchanged(y, b).contiguous(), C
    C = (
        (x.reshape(M * p, q) @ B.reshape(n * b, q).mT)
        .view(M, p, n, b)
        .permute(1, 2, 0, 3)
        .reshape(p * n, M * b)
    )
    return (_flat(A) @ C).view(a, M, b).transpose(0, 1).reshape(
        M, a * b
    ).contiguous(), C.contiguous()


def _gradients(
    dy: Tensor, x: Tensor, A: Tensor, B: Tensor, C: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    M, (n, a, p), (_, b, q) = len(x), A.shape, B.shape
    if not _columns_first(A.shape, B.shape):
        dx, dB, dA = _gradients(_exchanged(dy, a), _exchanged(x, p), B, A, C)
        return _exchanged(dx, q), dA, dB
    dY = dy.reshape(M, a, b).transpose(0, 1).reshape(a, M * b)
    dA = (dY @ C.mT).view(a, p, n).permute(2, 0, 1)
    dC = (_flat(A).mT @ dY).view(p, n, M, b).permute(2, 0, 1, 3).reshape(M * p, n * b)
    return (
        (dC @ B.reshape(n * b, q)).view(M, p * q),
        dA,
        (dC.mT @ x.reshape(M * p, q)).view(n, b, q),
    )


def _columns_first(A: torch.Size, B: torch.Size) -> bool:
    """Whether B before A costs fewer multiplications than A before B: up to b or q times as many in
    the wrong order."""
    (_, a, p), (_, b, q) = A, B  # either way, once for each of the n terms
    return p * b * (q + a) <= a * q * (p + b)


def _flat(A: Tensor) -> Tensor:
    """[n, a, p] -> [a, p n]: one product then sums over p and over the n terms"""
    return A.permute(1, 2, 0).flatten(1)


def _exchanged(x: Tensor, rows: int) -> Tensor:
    """Grids with rows and columns exchanged: [M, rows columns] -> [M, columns rows]"""
    return x.unflatten(1, (rows, -1)).mT.flatten(1)


# 3. No kernel
# -------------------------------------------------------------------------------------------------
# Both products are matrix products, which cuBLAS does well; a kernel could only save writing and
# reading what lies between them, one tensor as large as x. Counting the bytes moved, that is a
# ceiling of about 1.2 times the speed of the layer: an estimate, not a measurement.


# 4. The function
# -------------------------------------------------------------------------------------------------
def kron_linear(x: Tensor, A: Tensor, B: Tensor) -> Tensor:
    """As `kron_linear_reference`, in one operation with a backward pass of its own, on every
    device.

    No second derivatives and no `torch.func` transforms; the reference has both.
    """
    x, A, B = same_dtype(x, A, B)
    y, _ = _kron_linear(x.reshape(-1, x.shape[-1]), A, B)
    return y.view(*x.shape[:-1], A.shape[1] * B.shape[1])
