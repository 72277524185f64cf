"""Bottleneck adapter: y = residual + s (act(LN(x) D^T + d) U^T + u), with or without the norm
(adapter tuning: Houlsby, AdaptFormer).

The normed x is never stored. With x' = (x - mean) / deviation, n wide, the norm's gain g goes into
the weight, W = D g, its bias b into an offset, o = D b + d:

    z = x' W^T + o,  x' W^T = (x W^T - mean sum(W)) / deviation         dz = s (dy U) act'(z)
    y = residual + s (act(z) U^T + u)                                   dx = (dz W - <dz, sum(W)> / n - x' <dz, z - o> / n) / deviation
    dU = s dy^T act(z)                                                  dD = (dz^T x') g + sum(dz) b^T         db = sum(dz) D
                                                                        dg = sum_r D * (dz^T x')

so both of the norm's means in dx are products of R-wide rows that are on the chip anyway, and dD
and dg share one thin product with x. Kept for the backward pass: x alone, 38.7 MB for ViT-B/16,
batch 64, float32, R = 64. Plain PyTorch keeps LN(x) beside it, z and act(z): 84 MB with a norm and
GELU, 42 MB for AdaptFormer (no norm, ReLU). z is computed again, as part of the pass over x that dx
needs. Source: Houlsby et al., ICML 2019, arXiv 1902.00751; Chen et al., "AdaptFormer", NeurIPS
2022, arXiv 2205.13535.
"""

from __future__ import annotations

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
    wide,
)
from vtlite.storage import VTError, unknown

WIDEST = 128  # bottlenecks above it do not fit on the chip beside the tiles of x


# 1. What it means
# -------------------------------------------------------------------------------------------------
def adapter_reference(
    x: Tensor,
    down: Tensor,
    up: Tensor,
    down_bias: Tensor | None = None,
    up_bias: Tensor | None = None,
    norm_weight: Tensor | None = None,
    norm_bias: Tensor | None = None,
    residual: Tensor | None = None,
    scale: float = 1.0,
    activation: str = "gelu",
    eps: float = 1e-6,
    dropout: float = 0.0,
) -> Tensor:
    """x [..., D], down [R, D], up [D, R], biases [R] and [D], norm [D] and [D] -> y [..., D]. No
    norm_weight: no norm. No residual: x."""
    normed = (
        x if norm_weight is None else F.layer_norm(x, x.shape[-1:], norm_weight, norm_bias, eps)
    )
    z = F.linear(normed, down, down_bias)  # [..., R]
    hidden = F.dropout(F.gelu(z) if activation == "gelu" else F.relu(z), dropout)
    return (x if residual is None else residual) + scale * F.linear(hidden, up, up_bias)


# 2. The operator
# -------------------------------------------------------------------------------------------------
@torch.library.custom_op("vtlite::adapter", mutates_args=())
def _adapter(
    x: Tensor,
    down: Tensor,
    up: Tensor,
    down_bias: Tensor | None,
    up_bias: Tensor | None,
    norm_weight: Tensor | None,
    norm_bias: Tensor | None,
    residual: Tensor | None,
    scale: float,
    activation: str,
    eps: float,
) -> Tensor:
    """x [M, D], residual [M, D] -> y [M, D]. The weights have one type; x and the residual may have
    others, as under autocast."""
    if use_kernel(down, dot=True) and len(x):
        w, total, offset = _fold(down, down_bias, norm_weight, norm_bias)
        return _launch(
            x,
            w,
            total,
            offset,
            up,
            up_bias,
            x if residual is None else residual,
            norm_weight is not None,
            scale,
            activation,
            eps,
        )
    return adapter_reference(
        x, down, up, down_bias, up_bias, norm_weight, norm_bias, residual, scale, activation, eps
    )


@torch.library.custom_op("vtlite::adapter_backward", mutates_args=())
def _adapter_backward(
    dy: Tensor,
    x: Tensor,
    down: Tensor,
    up: Tensor,
    down_bias: Tensor | None,
    norm_weight: Tensor | None,
    norm_bias: Tensor | None,
    own: bool,
    scale: float,
    activation: str,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """dy [M, D] -> dx [M, D] (with dy in it where x is its `own` residual), act(z) [M, R], dz [M,
    R], mean and 1 / deviation [M, 1]"""
    w, total, offset = _fold(down, down_bias, norm_weight, norm_bias)
    if use_kernel(down, dot=True) and len(x):
        return _launch_backward(
            dy, x, w, total, offset, up, norm_weight is not None, own, scale, activation, eps
        )
    mean = x.mean(1, keepdim=True, dtype=wide(x))
    rstd = ((x - mean).square().mean(1, keepdim=True) + eps).rsqrt()
    normed = x.to(w.dtype) if norm_weight is None else ((x - mean) * rstd).to(w.dtype)
    xw = normed @ w.mT
    hidden, slope = _activation((xw + offset).to(w.dtype), activation)
    dz = scale * (dy.to(w.dtype) @ up) * slope
    dx = dz @ w
    if norm_weight is not None:
        D = x.shape[1]
        dx = (
            dx - (dz * total / D).sum(1, keepdim=True) - normed * (dz * xw / D).sum(1, keepdim=True)
        ) * rstd
    return (dx + dy if own else dx).to(x.dtype), hidden, dz, mean, rstd


@_adapter.register_fake
def _(
    x: Tensor,
    down: Tensor,
    up: Tensor,
    down_bias: Tensor | None,
    up_bias: Tensor | None,
    norm_weight: Tensor | None,
    norm_bias: Tensor | None,
    residual: Tensor | None,
    scale: float,
    activation: str,
    eps: float,
) -> Tensor:
    return x.new_empty(
        x.shape, dtype=torch.promote_types((x if residual is None else residual).dtype, down.dtype)
    )


@_adapter_backward.register_fake
def _(
    dy: Tensor,
    x: Tensor,
    down: Tensor,
    up: Tensor,
    down_bias: Tensor | None,
    norm_weight: Tensor | None,
    norm_bias: Tensor | None,
    own: bool,
    scale: float,
    activation: str,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    hidden, mean = (
        down.new_empty(x.shape[0], down.shape[0]),
        x.new_empty(x.shape[0], 1, dtype=wide(x)),
    )
    return x.new_empty(x.shape), hidden, torch.empty_like(hidden), mean, torch.empty_like(mean)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, down, up, down_bias, up_bias, norm_weight, norm_bias, residual, *ctx.settings = inputs
    ctx.own, ctx.up_bias = residual is None, up_bias is not None
    ctx.save_for_backward(x, down, up, down_bias, norm_weight, norm_bias)


def _backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
    x, down, up, down_bias, norm_weight, norm_bias = ctx.saved_tensors
    dx, hidden, dz, mean, rstd = _adapter_backward(
        dy, x, down, up, down_bias, norm_weight, norm_bias, ctx.own, *ctx.settings
    )
    scale, low, x = ctx.settings[0], dy.to(up.dtype), x.to(down.dtype)
    dup, dup_bias = scale * (hidden.mT @ low).mT, scale * low.sum(0) if ctx.up_bias else None
    sums, dnorm_weight, dnorm_bias = dz.sum(0), None, None
    if norm_weight is None:
        ddown = dz.mT @ x
    else:
        scaled = (dz * rstd).to(down.dtype)
        product = scaled.mT @ x - (scaled * mean).sum(0)[:, None]  # dz^T x', without x'
        ddown, dnorm_weight = product * norm_weight, (down * product).sum(0)
        if norm_bias is not None:
            ddown, dnorm_bias = ddown + torch.outer(sums, norm_bias), sums @ down
    ddown_bias = None if down_bias is None else sums
    return (
        dx,
        ddown,
        dup,
        ddown_bias,
        dup_bias,
        dnorm_weight,
        dnorm_bias,
        None if ctx.own else dy,
        None,
        None,
        None,
    )


_adapter.register_autograd(_backward, setup_context=_setup)


@register_flop_formula(torch.ops.vtlite.adapter)
def _(x: torch.Size, down: torch.Size, *_: Any, **__: Any) -> int:
    return 4 * x[0] * down.numel()  # a counter of operations does not see into an operator


@register_flop_formula(torch.ops.vtlite.adapter_backward)
def _(dy: torch.Size, x: torch.Size, down: torch.Size, *_: Any, **__: Any) -> int:
    return 6 * x[0] * down.numel()  # z again, dy U and dz W


def _activation(z: Tensor, activation: str) -> tuple[Tensor, Tensor]:
    """act(z) and act'(z)"""
    if activation == "relu":
        return z.relu(), (z > 0).to(z.dtype)
    below = 0.5 * (1 + torch.erf(z / 2**0.5))  # of a standard normal
    return z * below, below + z * torch.exp(-0.5 * z * z) / (2 * torch.pi) ** 0.5


def _fold(
    down: Tensor, down_bias: Tensor | None, norm_weight: Tensor | None, norm_bias: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """W [R, D], sum(W) [R], o [R] of the docstring; the sum is of W as rounded, so that a row's
    mean cancels."""
    w = down if norm_weight is None else (down * norm_weight).to(down.dtype)
    offset = down.new_zeros(len(down), dtype=wide(down))
    if down_bias is not None:
        offset += down_bias
    if norm_bias is not None:
        offset += down.to(offset.dtype) @ norm_bias.to(offset.dtype)
    return w, w.sum(1, dtype=offset.dtype), offset


# 3. The kernels
# -------------------------------------------------------------------------------------------------
if triton:

    @triton.jit
    def _thin(
        x,
        w,
        total,
        m,
        r,
        M,
        D,
        R,
        wr,
        wd,
        eps,
        NORM: tl.constexpr,
        PRECISION: tl.constexpr,
        ACC: tl.constexpr,
        BM: tl.constexpr,
        BD: tl.constexpr,
        BR: tl.constexpr,
    ):
        """x' w^T [BM,BR] of these rows, x' normed or x itself; their mean and 1 / deviation [BM,1].
        One pass over x."""
        xw, mean, square = (
            tl.zeros((BM, BR), dtype=ACC),
            tl.zeros((BM, 1), dtype=ACC),
            tl.zeros((BM, 1), dtype=ACC),
        )
        for start in range(0, D, BD):
            # A tile of x, and the same columns of w with all its rows, turned.
            d = start + tl.arange(0, BD)
            xd = tl.load(x + m * D + d[None, :], mask=(m < M) & (d[None, :] < D), other=0.0)
            wdr = tl.load(
                w + d[:, None] * wd + r[None, :] * wr,
                mask=(d[:, None] < D) & (r[None, :] < R),
                other=0.0,
            )
            xw = tl.dot(xd.to(wdr.dtype), wdr, xw, input_precision=PRECISION)
            if NORM:
                mean += tl.sum(xd.to(ACC), 1, keep_dims=True) / D
                square += tl.sum(xd.to(ACC) * xd.to(ACC), 1, keep_dims=True) / D
        rstd = 1 / tl.sqrt(tl.maximum(square - mean * mean, 0.0) + eps)
        if NORM:
            xw = (xw - mean * tl.load(total + r, mask=r < R, other=0.0)[None, :]) * rstd
        return xw, mean, rstd

    @triton.jit
    def _act(z, GELU: tl.constexpr):
        """act(z) and act'(z)"""
        below = 0.5 * (1 + tl.erf(z * 0.7071067811865476))
        if GELU:
            value, slope = z * below, below + z * tl.exp(-0.5 * z * z) * 0.3989422804014327
        else:
            value, slope = tl.maximum(z, 0.0), (z > 0).to(z.dtype)
        return value, slope

    @triton.jit
    def _kernel(
        x,
        w,
        total,
        offset,
        up,
        up_bias,
        residual,
        y,
        M,
        D,
        R,
        wr,
        wd,
        ur,
        ud,
        scale,
        eps,
        NORM: tl.constexpr,
        GELU: tl.constexpr,
        BIAS: tl.constexpr,
        PRECISION: tl.constexpr,
        ACC: tl.constexpr,
        BM: tl.constexpr,
        BD: tl.constexpr,
        BR: tl.constexpr,
    ):
        """BM rows of y[M,D]: the hidden stays on the chip."""
        # This program's rows, and all R columns of the hidden (padded to BR, as a product needs at
        # least 16).
        m = tl.program_id(0).to(tl.int64) * BM + tl.arange(0, BM)[:, None]
        r = tl.arange(0, BR)
        xw, _, _ = _thin(x, w, total, m, r, M, D, R, wr, wd, eps, NORM, PRECISION, ACC, BM, BD, BR)
        hidden, _ = _act(xw + tl.load(offset + r, mask=r < R, other=0.0)[None, :], GELU)
        for start in range(0, D, BD):
            d = start + tl.arange(0, BD)[None, :]
            inside = (m < M) & (d < D)
            urd = tl.load(up + r[:, None] * ur + d * ud, mask=(r[:, None] < R) & (d < D), other=0.0)
            out = tl.dot(
                hidden.to(urd.dtype), urd, tl.zeros((BM, BD), dtype=ACC), input_precision=PRECISION
            )
            if BIAS:
                out += tl.load(up_bias + d, mask=d < D, other=0.0).to(ACC)
            out = tl.load(residual + m * D + d, mask=inside).to(ACC) + scale * out
            tl.store(y + m * D + d, out.to(y.dtype.element_ty), mask=inside)

    @triton.jit
    def _kernel_backward(
        dy,
        x,
        w,
        total,
        offset,
        up,
        dx,
        hidden,
        dz,
        mean,
        rstd,
        M,
        D,
        R,
        wr,
        wd,
        ur,
        ud,
        scale,
        eps,
        NORM: tl.constexpr,
        GELU: tl.constexpr,
        OWN: tl.constexpr,
        PRECISION: tl.constexpr,
        ACC: tl.constexpr,
        BM: tl.constexpr,
        BD: tl.constexpr,
        BR: tl.constexpr,
    ):
        """BM rows of dx[M,D], hidden[M,R] and dz[M,R]: z again from x, dhidden = dy up from dy,
        then dx = dz w and the norm's two means."""
        m = tl.program_id(0).to(tl.int64) * BM + tl.arange(0, BM)[:, None]
        r = tl.arange(0, BR)
        inside = (m < M) & (r[None, :] < R)
        xw, mu, rs = _thin(
            x, w, total, m, r, M, D, R, wr, wd, eps, NORM, PRECISION, ACC, BM, BD, BR
        )
        dhidden, _, _ = _thin(
            dy, up, total, m, r, M, D, R, ur, ud, eps, False, PRECISION, ACC, BM, BD, BR
        )
        value, slope = _act(xw + tl.load(offset + r, mask=r < R, other=0.0)[None, :], GELU)
        g = scale * dhidden * slope
        tl.store(hidden + m * R + r[None, :], value.to(hidden.dtype.element_ty), mask=inside)
        tl.store(dz + m * R + r[None, :], g.to(dz.dtype.element_ty), mask=inside)
        tl.store(mean + m, mu, mask=m < M)
        tl.store(rstd + m, rs, mask=m < M)
        mean_g = (
            tl.sum(g * tl.load(total + r, mask=r < R, other=0.0)[None, :], 1, keep_dims=True) / D
        )
        mean_gx = tl.sum(g * xw, 1, keep_dims=True) / D
        for start in range(0, D, BD):
            d = start + tl.arange(0, BD)[None, :]
            wrd = tl.load(w + r[:, None] * wr + d * wd, mask=(r[:, None] < R) & (d < D), other=0.0)
            out = tl.dot(
                g.to(wrd.dtype), wrd, tl.zeros((BM, BD), dtype=ACC), input_precision=PRECISION
            )
            if NORM:
                xd = tl.load(x + m * D + d, mask=(m < M) & (d < D), other=0.0).to(ACC)
                out = (out - mean_g - (xd - mu) * rs * mean_gx) * rs
            if OWN:
                out += tl.load(dy + m * D + d, mask=(m < M) & (d < D), other=0.0).to(ACC)
            tl.store(dx + m * D + d, out.to(dx.dtype.element_ty), mask=(m < M) & (d < D))


def _blocks(x: Tensor, w: Tensor) -> dict[str, Any]:
    """Tiles of x and dy, and room for all R columns of W and U beside them."""
    small = w.element_size() == 2 and len(w) <= 64
    BM, BD, BR = (
        min(64 if small else 32, block(len(x))),
        min(64 if small else 32, block(x.shape[1])),
        block(len(w)),
    )
    return {
        "PRECISION": precision(),
        "ACC": accumulator(w),
        "BM": BM,
        "BD": BD,
        "BR": BR,
        "num_warps": 4 if len(w) <= 64 else 8,
        "num_stages": 3,
    }


def _launch(
    x: Tensor,
    w: Tensor,
    total: Tensor,
    offset: Tensor,
    up: Tensor,
    up_bias: Tensor | None,
    residual: Tensor,
    norm: bool,
    scale: float,
    activation: str,
    eps: float,
) -> Tensor:
    x, residual, (M, D), R, blocks = (
        x.contiguous(),
        residual.contiguous(),
        x.shape,
        len(w),
        _blocks(x, w),
    )
    y = x.new_empty(M, D, dtype=torch.promote_types(residual.dtype, w.dtype))
    up_bias = None if up_bias is None else up_bias.contiguous()
    _kernel[(cdiv(M, blocks["BM"]),)](
        x,
        w,
        total,
        offset,
        up,
        up_bias,
        residual,
        y,
        M,
        D,
        R,
        w.stride(0),
        w.stride(1),
        up.stride(1),
        up.stride(0),
        scale,
        eps,
        NORM=norm,
        GELU=activation == "gelu",
        BIAS=up_bias is not None,
        **blocks,
    )
    return y


def _launch_backward(
    dy: Tensor,
    x: Tensor,
    w: Tensor,
    total: Tensor,
    offset: Tensor,
    up: Tensor,
    norm: bool,
    own: bool,
    scale: float,
    activation: str,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    dy, x, (M, D), R, blocks = dy.contiguous(), x.contiguous(), x.shape, len(w), _blocks(x, w)
    dx, hidden, dz, mean, rstd = (
        torch.empty_like(x),
        w.new_empty(M, R),
        w.new_empty(M, R),
        *x.new_empty(2, M, 1, dtype=wide(x)).unbind(),
    )
    _kernel_backward[(cdiv(M, blocks["BM"]),)](
        dy,
        x,
        w,
        total,
        offset,
        up,
        dx,
        hidden,
        dz,
        mean,
        rstd,
        M,
        D,
        R,
        w.stride(0),
        w.stride(1),
        up.stride(1),
        up.stride(0),
        scale,
        eps,
        NORM=norm,
        GELU=activation == "gelu",
        OWN=own,
        **blocks,
    )
    return dx, hidden, dz, mean.clone(), rstd.clone()


# 4. The function
# -------------------------------------------------------------------------------------------------
def adapter(
    x: Tensor,
    down: Tensor,
    up: Tensor,
    down_bias: Tensor | None = None,
    up_bias: Tensor | None = None,
    norm_weight: Tensor | None = None,
    norm_bias: Tensor | None = None,
    residual: Tensor | None = None,
    scale: float = 1.0,
    activation: str = "gelu",
    eps: float = 1e-6,
    dropout: float = 0.0,
) -> Tensor:
    """As `adapter_reference`, in one operation. Raises `VTError` for sizes that do not fit together
    and an unknown activation.

    With dropout the reference does the work: its mask would have to be kept. No second derivatives
    and no `torch.func` transforms; the reference has both.
    """
    if activation not in ("relu", "gelu"):
        raise unknown("activation", activation, ["relu", "gelu"])
    D, R = x.shape[-1], down.shape[0]
    wanted = {
        "down": (R, D),
        "up": (D, R),
        "down_bias": (R,),
        "up_bias": (D,),
        "norm_weight": (D,),
        "norm_bias": (D,),
        "residual": x.shape,
    }
    for (name, shape), t in zip(
        wanted.items(),
        (down, up, down_bias, up_bias, norm_weight, norm_bias, residual),
        strict=True,
    ):
        if t is not None and t.shape != shape:
            raise VTError(
                f"expected {name} of shape {list(shape)} beside x {list(x.shape)} and down"
                f" {list(down.shape)}, found {list(t.shape)}"
            )
    _, down, up, down_bias, up_bias = same_dtype(
        x.new_empty(0), down, up, down_bias, up_bias
    )  # x itself is rounded by the tile
    if dropout or R > WIDEST or not use_kernel(down, dot=True):
        # On the CPU too: the hidden is less memory than the time to compute it again is worth.
        return adapter_reference(
            x,
            down,
            up,
            down_bias,
            up_bias,
            norm_weight,
            norm_bias,
            residual,
            scale,
            activation,
            eps,
            dropout,
        )
    flat, rest = x.reshape(-1, D), None if residual is None else residual.reshape(-1, D)
    return _adapter(
        flat, down, up, down_bias, up_bias, norm_weight, norm_bias, rest, scale, activation, eps
    ).view(x.shape)
