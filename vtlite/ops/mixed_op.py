"""Mixed operation: y = sum_k softmax(alpha)_k x_k of K candidates, as in a differentiable search
(remapping tuning: DARTS-like searches).

    w = softmax(alpha)        dx_k = w_k dy        dw_k = <dy, x_k>        dalpha = w (dw - <w, dw>)

Kept for the backward pass: the candidates (38.7 MB each for the tokens of ViT-B/16, batch 64,
float32) and alpha, as in plain PyTorch. The gain is in passes and temporaries: forward K reads and
one write instead of 3 K and 2 K; backward one read of dy for all K. Source: Liu, Simonyan, Yang,
"DARTS: Differentiable Architecture Search", ICLR 2019, arXiv 1806.09055.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from typing import Any

import torch
from torch import Tensor

from vtlite.ops._launch import accumulator, block, cdiv, tl, triton, use_kernel, wide
from vtlite.storage import VTError

SMALL = (
    2**17
)  # entries: on the CPU the call of an operator costs more than it saves below this, and above it makes about half the passes


# 1. What it means
# -------------------------------------------------------------------------------------------------
def mixed_op_reference(xs: Sequence[Tensor] | Tensor, alpha: Tensor) -> Tensor:
    """xs K tensors [...], or one [K, ...]; alpha [K] -> y [...]."""
    weights = alpha.softmax(0)
    return sum(
        (w * x for w, x in zip(weights.unbind(), xs, strict=True)),
        start=torch.zeros((), dtype=xs[0].dtype, device=alpha.device),
    )


# 2. The operator
# -------------------------------------------------------------------------------------------------
@torch.library.custom_op("vtlite::mixed_op", mutates_args=())
def _mixed_op(xs: Sequence[Tensor], alpha: Tensor) -> Tensor:
    """K tensors of one shape and type -> y, of the same"""
    weights = alpha.softmax(0)
    if use_kernel(xs[0]) and xs[0].numel():
        return _launch(xs, weights)
    y = weights[0] * xs[0]
    for w, x in zip(weights[1:], xs[1:], strict=True):
        y.addcmul_(w.to(x.dtype), x)  # in place: no K products, no K - 1 sums
    return y


@torch.library.custom_op("vtlite::mixed_op_backward", mutates_args=())
def _mixed_op_backward(dy: Tensor, xs: Sequence[Tensor], alpha: Tensor) -> tuple[Tensor, Tensor]:
    """dy [...] -> dxs [K, ...], dalpha [K]"""
    weights = alpha.softmax(0)
    if use_kernel(dy) and dy.numel():
        dxs, dweights = _launch_backward(dy, xs, weights)
    else:
        dxs = weights.to(dy.dtype).view(-1, *[1] * dy.ndim) * dy
        dweights = torch.stack([torch.dot(dy.flatten(), x.flatten()) for x in xs]).to(weights.dtype)
    return dxs, (weights * (dweights - weights @ dweights)).to(alpha.dtype)


@_mixed_op.register_fake
def _(xs: Sequence[Tensor], alpha: Tensor) -> Tensor:
    return xs[0].new_empty(xs[0].shape)


@_mixed_op_backward.register_fake
def _(dy: Tensor, xs: Sequence[Tensor], alpha: Tensor) -> tuple[Tensor, Tensor]:
    return dy.new_empty(len(xs), *dy.shape), torch.empty_like(alpha)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[0], inputs[1])


def _backward(ctx: Any, dy: Tensor) -> tuple[list[Tensor], Tensor]:
    *xs, alpha = ctx.saved_tensors
    dxs, dalpha = _mixed_op_backward(dy, xs, alpha)
    return list(dxs.unbind()), dalpha


_mixed_op.register_autograd(_backward, setup_context=_setup)


# 3. The kernels
# -------------------------------------------------------------------------------------------------
if triton:

    @triton.jit
    def _kernel(xs, weights, y, n, K: tl.constexpr, ACC: tl.constexpr, B: tl.constexpr):
        """B entries of y[n] = sum_k weights[k] xs[k][n]; xs is a tuple of K pointers, the loop over
        it is unrolled."""
        # This program's entries, of each candidate.
        i = tl.program_id(0).to(tl.int64) * B + tl.arange(0, B)
        out = tl.zeros((B,), dtype=ACC)
        for k in tl.static_range(K):
            out += tl.load(weights + k).to(ACC) * tl.load(xs[k] + i, mask=i < n, other=0.0).to(ACC)
        tl.store(y + i, out.to(y.dtype.element_ty), mask=i < n)

    @triton.jit
    def _kernel_backward(
        dy, xs, weights, dxs, dots, n, K: tl.constexpr, ACC: tl.constexpr, B: tl.constexpr
    ):
        """B entries of each dxs[k][n] = weights[k] dy[n], and their part of <dy, xs[k]>:
        dots[programs,K]."""
        i = tl.program_id(0).to(tl.int64) * B + tl.arange(0, B)
        g = tl.load(dy + i, mask=i < n, other=0.0).to(ACC)
        for k in tl.static_range(K):
            tl.store(
                dots + tl.program_id(0) * K + k,
                tl.sum(g * tl.load(xs[k] + i, mask=i < n, other=0.0).to(ACC), 0),
            )
            tl.store(
                dxs[k] + i, (tl.load(weights + k).to(ACC) * g).to(dy.dtype.element_ty), mask=i < n
            )


def _launch(xs: Sequence[Tensor], weights: Tensor) -> Tensor:
    xs = tuple(x.contiguous() for x in xs)
    y, n = torch.empty_like(xs[0]), xs[0].numel()
    B = min(1024, block(n))
    _kernel[(cdiv(n, B),)](xs, weights, y, n, K=len(xs), ACC=accumulator(y), B=B)
    return y


def _launch_backward(dy: Tensor, xs: Sequence[Tensor], weights: Tensor) -> tuple[Tensor, Tensor]:
    dy, xs = dy.contiguous(), tuple(x.contiguous() for x in xs)
    n, K = dy.numel(), len(xs)
    B = min(1024, block(n))
    dxs, dots = dy.new_empty(K, *dy.shape), dy.new_empty(cdiv(n, B), K, dtype=wide(dy))
    _kernel_backward[(len(dots),)](
        dy, xs, weights, dxs.unbind(), dots, n, K=K, ACC=accumulator(dy), B=B
    )
    return dxs, dots.sum(0).to(weights.dtype)


# 4. The function
# -------------------------------------------------------------------------------------------------
def mixed_op(xs: Sequence[Tensor] | Tensor, alpha: Tensor) -> Tensor:
    """As `mixed_op_reference`, in one operation. Raises `VTError` where the candidates differ in
    shape or in number from alpha.

    No second derivatives and no `torch.func` transforms; the reference has both.
    """
    xs = list(xs)
    if alpha.shape != (len(xs),) or any(x.shape != xs[0].shape for x in xs):
        found = f"alpha {list(alpha.shape)} and candidates {[list(x.shape) for x in xs]}"
        raise VTError(
            "expected one number of alpha for each candidate, and candidates of one shape, found"
            f" {found}"
        )
    dtype = reduce(torch.promote_types, (x.dtype for x in xs))
    if not use_kernel(xs[0]) and xs[0].numel() < SMALL:
        return mixed_op_reference(xs, alpha)
    return _mixed_op([x.to(dtype) for x in xs], alpha)
