"""LoRA linear: y = x W^T + b + s (x A^T) B^T with W frozen, for one low-rank update or
several side by side (parameter tuning).

    h  = s x A^T              dh = s dy B
    y  = x W^T + b + h B^T    dx = dy W + dh A          <- the same kernel: (W, A, B) -> (W^T, B^T, A^T)
    dA = dh^T x               dB = dy^T h               <- two thin products

B A is never formed. Kept for the backward pass: x and the R-wide h, which plain PyTorch keeps as
well; the gain is in what is written: y once. Source: Hu et al., "LoRA", ICLR 2022, arXiv
2106.09685.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from vtlite.ops._launch import (
    accumulator,
    block,
    cdiv,
    precision,
    same_dtype,
    tl,
    triton,
    use_kernel,
)


# 1. What it means
# -------------------------------------------------------------------------------------------------
def lora_linear_reference(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    A: Tensor,
    B: Tensor,
    scale: float = 1.0,
    starts: Sequence[int] = (0,),
) -> Tensor:
    """x [..., K], weight [N, K], A [G R, K], B [G n, R] -> y [..., N]: update g has the rows from
    starts[g] to starts[g] + n of the output. A [R, K]: one that all updates share."""
    y = F.linear(x, weight, bias)
    G = len(starts)
    As = G * [A] if A.shape[0] == B.shape[1] else A.chunk(G)
    for start, A_g, B_g in zip(starts, As, B.chunk(G), strict=True):
        update = scale * (x @ A_g.mT) @ B_g.mT  # [..., R], then [..., n]
        y = y + F.pad(update, (start, y.shape[-1] - start - update.shape[-1]))
    return y


# 2. The operator
# -------------------------------------------------------------------------------------------------
@torch.library.custom_op("vtlite::lora_linear", mutates_args=())
def _lora_linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    A: Tensor,
    B: Tensor,
    scale: float,
    starts: Sequence[int],
) -> tuple[Tensor, Tensor]:
    """x [M, K] -> y [M, N], h [M, G R] or, with one A, [M, R]"""
    if use_kernel(x, dot=True) and len(x):
        return _launch(x, weight, bias, A, side_by_side(B, weight.shape[0], starts, A), scale)
    y, h = F.linear(x, weight, bias), (x @ A.mT).mul_(scale)
    for rows, B_g, h_g in _parts(B, starts, h):
        y[:, rows].addmm_(
            h_g, B_g.mT
        )  # in place: y is written once more only where there is an update
    return y, h


@torch.library.custom_op("vtlite::lora_linear_backward", mutates_args=())
def _lora_linear_backward(
    dy: Tensor,
    weight: Tensor,
    A: Tensor,
    B: Tensor,
    scale: float,
    starts: Sequence[int],
    first: bool,
) -> tuple[Tensor, Tensor]:
    """dy [M, N] -> dx [M, K] (empty where x needs no gradient: it is `first`), dh like h"""
    if use_kernel(dy, dot=True) and len(dy) and not first:
        return _launch(
            dy, weight.mT, None, side_by_side(B, weight.shape[0], starts, A).mT, A.mT, scale
        )
    # A thin product is several times as fast with its thin side first: (B^T dy^T)^T for dy B.
    dh = dy.new_zeros(A.shape[0], len(dy))
    for rows, B_g, dh_g in _parts(B, starts, dh.mT):
        dh_g.mT.addmm_(B_g.mT, dy[:, rows].mT)
    dh = dh.mul_(scale).mT.contiguous()
    return dy.new_empty(0) if first else (dy @ weight).addmm_(dh, A), dh


@_lora_linear.register_fake
def _(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    A: Tensor,
    B: Tensor,
    scale: float,
    starts: Sequence[int],
) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape[0], weight.shape[0]), x.new_empty(x.shape[0], A.shape[0])


@_lora_linear_backward.register_fake
def _(
    dy: Tensor,
    weight: Tensor,
    A: Tensor,
    B: Tensor,
    scale: float,
    starts: Sequence[int],
    first: bool,
) -> tuple[Tensor, Tensor]:
    return dy.new_empty(0) if first else dy.new_empty(dy.shape[0], weight.shape[1]), dy.new_empty(
        dy.shape[0], A.shape[0]
    )


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    x, weight, _, A, B, ctx.scale, ctx.starts = inputs
    A_trains = ctx.needs_input_grad[3]  # else nothing asks for x again
    ctx.save_for_backward(x if A_trains else None, weight, A, B, output[1])
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)


def _backward(ctx: Any, dy: Tensor | None, _: None) -> tuple[Tensor | None, ...]:
    if dy is None:
        return (None,) * 7
    x, weight, A, B, h = ctx.saved_tensors
    dx, dh = _lora_linear_backward(
        dy, weight, A, B, ctx.scale, ctx.starts, not ctx.needs_input_grad[0]
    )
    dB = torch.cat([(h_g.mT @ dy[:, rows]).mT for rows, _, h_g in _parts(B, ctx.starts, h)])
    return (
        dx if ctx.needs_input_grad[0] else None,
        None,
        dy.sum(0) if ctx.needs_input_grad[2] else None,
        None if x is None else dh.mT @ x,
        dB,
        None,
        None,
    )


_lora_linear.register_autograd(_backward, setup_context=_setup)


@register_flop_formula(torch.ops.vtlite.lora_linear)
def _(
    x: torch.Size,
    weight: torch.Size,
    bias: torch.Size | None,
    A: torch.Size,
    B: torch.Size,
    *_: Any,
    **__: Any,
) -> int:
    # A counter of operations does not see into an operator.
    return 2 * x[0] * (weight.numel() + A.numel() + B.numel())


@register_flop_formula(torch.ops.vtlite.lora_linear_backward)
def _(
    dy: torch.Size,
    weight: torch.Size,
    A: torch.Size,
    B: torch.Size,
    scale: float,
    starts: Any,
    first: bool,
    **_: Any,
) -> int:
    return 2 * dy[0] * (B.numel() + (0 if first else weight.numel() + A.numel()))


def _parts(B: Tensor, starts: Sequence[int], h: Tensor) -> list[tuple[slice, Tensor, Tensor]]:
    """For each update: its rows of the output, its part of B, and its columns of h (all of them
    where the updates share one A)."""
    (rows, R), G = (B.shape[0] // len(starts), B.shape[1]), len(starts)
    hs = G * [h] if h.shape[1] == R else h.split(R, dim=1)
    return [
        (slice(start, start + rows), B_g, h_g)
        for start, B_g, h_g in zip(starts, B.split(rows), hs, strict=True)
    ]


def side_by_side(B: Tensor, out: int, starts: Sequence[int], A: Tensor) -> Tensor:
    """B [G n, R] -> [out, rows of A] with update g in its own rows, and columns unless they share
    one A, and zeros elsewhere: to the kernel, several updates are one."""
    if B.shape[0] == out and len(starts) == 1:
        return B
    wide = B.new_zeros(out, A.shape[0])
    for rows, B_g, part in _parts(B, starts, wide):
        part[rows] = B_g
    return wide


# 3. The kernel
# -------------------------------------------------------------------------------------------------
if triton:

    @triton.jit
    def _kernel(
        x,
        w,
        bias,
        a,
        b,
        y,
        h,
        M,
        N,
        K,
        R,
        scale,
        wk,
        wn,
        ak,
        ar,
        br,
        bn,
        HAS_BIAS: tl.constexpr,
        PRECISION: tl.constexpr,
        ACC: tl.constexpr,
        BM: tl.constexpr,
        BN: tl.constexpr,
        BK: tl.constexpr,
        BR: tl.constexpr,
    ):
        """y[M,N] = x[M,K] w[K,N] + bias + h b[R,N] with h[M,R] = scale x a[K,R]: both products
        share each load of x."""
        # This program's tile of y, and all R columns of h (padded to BR, as a product needs at
        # least 16).
        m = tl.program_id(1) * BM + tl.arange(0, BM)[:, None]
        n = tl.program_id(0) * BN + tl.arange(0, BN)[None, :]
        r = tl.arange(0, BR)
        acc, acc_h = tl.zeros((BM, BN), dtype=ACC), tl.zeros((BM, BR), dtype=ACC)
        for start in range(0, K, BK):
            k = start + tl.arange(0, BK)
            row, col = k[:, None], k[None, :]
            xk = tl.load(x + m.to(tl.int64) * K + col, mask=(m < M) & (col < K), other=0.0)
            wkn = tl.load(w + row * wk + n * wn, mask=(row < K) & (n < N), other=0.0)
            akr = tl.load(
                a + row * ak + r[None, :] * ar, mask=(row < K) & (r[None, :] < R), other=0.0
            )
            acc = tl.dot(xk, wkn, acc, input_precision=PRECISION)
            acc_h = tl.dot(xk, akr, acc_h, input_precision=PRECISION)
        # The thin product: h stays on the chip, is rounded as it will be stored, and meets its tile
        # of b.
        low = (acc_h * scale).to(x.dtype.element_ty)
        brn = tl.load(b + r[:, None] * br + n * bn, mask=(r[:, None] < R) & (n < N), other=0.0)
        acc = tl.dot(low, brn, acc, input_precision=PRECISION)
        if HAS_BIAS:
            acc += tl.load(bias + n, mask=n < N, other=0.0).to(ACC)
        tl.store(y + m.to(tl.int64) * N + n, acc.to(y.dtype.element_ty), mask=(m < M) & (n < N))
        if tl.program_id(0) == 0:  # every column of tiles has the same h; the first one writes it
            tl.store(h + m.to(tl.int64) * R + r[None, :], low, mask=(m < M) & (r[None, :] < R))


def _launch(
    x: Tensor, weight: Tensor, bias: Tensor | None, A: Tensor, B: Tensor, scale: float
) -> tuple[Tensor, Tensor]:
    (M, K), N, R = x.shape, weight.shape[0], A.shape[0]
    x, y, h = x.contiguous(), x.new_empty(M, N), x.new_empty(M, R)
    bias = None if bias is None else bias.contiguous()
    BM, BN, BK = min(128, block(M)), min(128, block(N)), min(64, block(K))
    _kernel[(cdiv(N, BN), cdiv(M, BM))](
        x,
        weight,
        bias,
        A,
        B,
        y,
        h,
        M,
        N,
        K,
        R,
        scale,
        weight.stride(1),
        weight.stride(0),
        A.stride(1),
        A.stride(0),
        B.stride(1),
        B.stride(0),
        HAS_BIAS=bias is not None,
        PRECISION=precision(),
        ACC=accumulator(x),
        BM=BM,
        BN=BN,
        BK=BK,
        BR=block(R),
        num_warps=8,
        num_stages=3,
    )
    return y, h


# 4. The function
# -------------------------------------------------------------------------------------------------
def lora_linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    A: Tensor,
    B: Tensor,
    scale: float = 1.0,
    starts: Sequence[int] = (0,),
) -> Tensor:
    """As `lora_linear_reference`, in one operation: gradients go to x, bias, A and B. CUDA tensors
    take the kernel, others the CPU's products.

    No second derivatives and no `torch.func` transforms; the reference has both.
    """
    x, weight, bias, A, B = same_dtype(x, weight.detach(), bias, A, B)
    y, _ = _lora_linear(x.reshape(-1, x.shape[-1]), weight, bias, A, B, scale, list(starts))
    return y.view(*x.shape[:-1], weight.shape[0])
