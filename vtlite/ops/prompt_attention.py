"""Prompt attention: N tokens attend to P prompts that all images share, and to one another (prompt
tuning: VPT-deep).

    o = softmax(q [pk; k]^T / sqrt(D)) [pv; v]          q, k, v [B, H, N, D],   pk, pv [H, P, D]

In the kernel the prompts' keys and values are never copied per image, nor put together with the
tokens': it reads them first and carries the softmax's largest score and sum on to the tokens'.
Backward, with o and l = log of the sum of exponentials, each lot gives its part alone. Elsewhere
PyTorch's fused attention over both lots together is faster. It keeps their copies, so q is copied
as well: else the whole output of the qkv projection would be kept for its third.

Kept for the backward pass by the kernel: q, k, v, pk, pv, o and l. On ViT-B/16 with 50 prompts,
batch 64, bfloat16: 77 MB a layer; with the prompts as tokens of each image attention keeps 97 MB,
and they cost the layer's MLP and other projections as well, which is the larger gain. Source: Jia
et al., "Visual Prompt Tuning", ECCV 2022, arXiv 2203.12119; Dao et al., "FlashAttention", NeurIPS
2022, arXiv 2205.14135.
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
    gradient_asked,
    precision,
    same_dtype,
    tl,
    triton,
    use_kernel,
    wide,
)
from vtlite.storage import VTError

WIDEST = 128  # channels of a head that the kernel holds on the chip; wider ones are left to PyTorch
# partial sums over the batch, of the prompts' gradients: enough programs to fill a GPU, always
# added in the same order
PARTS = 8


# 1. What it means
# -------------------------------------------------------------------------------------------------
def prompt_attention_reference(q: Tensor, k: Tensor, v: Tensor, pk: Tensor, pv: Tensor) -> Tensor:
    """q, k, v [B, H, N, D], pk, pv [H, P, D] -> [B, H, N, D]"""
    P = pk.shape[1]
    scores = torch.cat([q @ pk.mT, q @ k.mT], dim=-1) * q.shape[-1] ** -0.5  # [B, H, N, P + N]
    p = scores.softmax(-1)
    return p[..., :P] @ pv + p[..., P:] @ v


def concatenated_attention(q: Tensor, k: Tensor, v: Tensor, pk: Tensor, pv: Tensor) -> Tensor:
    """The same as one usually writes it: the prompts copied for each image, before its own keys and
    values."""
    return F.scaled_dot_product_attention(q, _together(pk, k), _together(pv, v))


# 2. The operator
# -------------------------------------------------------------------------------------------------
@torch.library.custom_op("vtlite::prompt_attention", mutates_args=())
def _prompt_attention(
    q: Tensor, k: Tensor, v: Tensor, pk: Tensor, pv: Tensor
) -> tuple[Tensor, Tensor]:
    """q, k, v [B, H, N, D], pk, pv [H, P, D] -> o [B, H, N, D], l [B, H, N]"""
    if use_kernel(q, dot=True) and q.numel():
        return _launch(*_rows(q, k, v), *_rows(pk, pv))
    scores = _all_scores(q, _together(pk, k))
    lse = scores.logsumexp(-1)
    return _by_token((scores - lse.unsqueeze(-1)).exp().to(v.dtype) @ _together(pv, v)), lse


@torch.library.custom_op("vtlite::prompt_attention_backward", mutates_args=())
def _prompt_attention_backward(
    do: Tensor, q: Tensor, k: Tensor, v: Tensor, pk: Tensor, pv: Tensor, o: Tensor, lse: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """do [B, H, N, D] -> the gradients of q, k, v, pk, pv"""
    if use_kernel(q, dot=True) and q.numel():
        (q, k, v), (pk, pv) = _rows(q, k, v), _rows(pk, pv)
        return _launch_backward(do, q, k, v, pk, pv, o, lse)
    P, k, v = pk.shape[1], _together(pk, k), _together(pv, v)
    p = (_all_scores(q, k) - lse.unsqueeze(-1)).exp()
    ds = (
        p * (do @ v.mT - (do * o).sum(-1, keepdim=True)) * q.shape[-1] ** -0.5
    )  # through the softmax: minus the mean of its row
    dq, dk, dv = ds.to(q.dtype) @ k, ds.to(q.dtype).mT @ q, p.to(q.dtype).mT @ do
    (dpk, dk), (dpv, dv) = (t.split([P, t.shape[2] - P], dim=2) for t in (dk, dv))
    return _by_token(dq), _by_token(dk), _by_token(dv), dpk.sum(0), dpv.sum(0)


@_prompt_attention.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, pk: Tensor, pv: Tensor) -> tuple[Tensor, Tensor]:
    return _like(q), q.new_empty(q.shape[:-1], dtype=wide(q))


@_prompt_attention_backward.register_fake
def _(
    do: Tensor, q: Tensor, k: Tensor, v: Tensor, pk: Tensor, pv: Tensor, o: Tensor, lse: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    return _like(q), _like(k), _like(v), pk.new_empty(pk.shape), pv.new_empty(pv.shape)


def _setup(ctx: Any, inputs: tuple[Tensor, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(*inputs, *output)
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)


def _backward(ctx: Any, do: Tensor | None, _: None) -> tuple[Tensor | None, ...]:
    return (None,) * 5 if do is None else _prompt_attention_backward(do, *ctx.saved_tensors)


_prompt_attention.register_autograd(_backward, setup_context=_setup)


@register_flop_formula(torch.ops.vtlite.prompt_attention)
def _(q: torch.Size, k: torch.Size, v: torch.Size, pk: torch.Size, *_: Any, **__: Any) -> int:
    return (
        2 * 2 * q.numel() * (k[2] + pk[1])
    )  # scores, values; a counter of operations does not see into an operator


@register_flop_formula(torch.ops.vtlite.prompt_attention_backward)
def _(
    do: torch.Size, q: torch.Size, k: torch.Size, v: torch.Size, pk: torch.Size, *_: Any, **__: Any
) -> int:
    return (
        5 * 2 * q.numel() * (k[2] + pk[1])
    )  # scores again, and the gradients of scores, q, k and v


def _like(q: Tensor) -> Tensor:
    """An empty [B, H, N, D] that lies in memory as [B, N, H, D]: so the next projection takes all
    heads of a token without a copy."""
    return torch.empty_like(q.transpose(1, 2), memory_format=torch.contiguous_format).transpose(
        1, 2
    )


def _by_token(o: Tensor) -> Tensor:
    """The same numbers lying so; a copy only where they do not already."""
    return o.transpose(1, 2).contiguous().transpose(1, 2)


def _rows(*tensors: Tensor) -> tuple[Tensor, ...]:
    """As they are if rows are whole and all lie alike, as in the output of one qkv projection; else
    copies that do."""
    first = tensors[0].stride()
    return (
        tensors
        if first[-1] == 1 and all(t.stride() == first for t in tensors)
        else tuple(t.contiguous() for t in tensors)
    )


def _all_scores(q: Tensor, k: Tensor) -> Tensor:
    """[B, H, N, D], [B, H, M, D] -> [B, H, N, M]"""
    return (q @ k.mT).to(wide(q)) * q.shape[-1] ** -0.5


def _together(prompts: Tensor, own: Tensor) -> Tensor:
    """[H, P, D], [B, H, N, D] -> [B, H, P + N, D]"""
    return torch.cat([prompts.expand(len(own), -1, -1, -1), own], dim=2)


# 3. The kernels
# -------------------------------------------------------------------------------------------------
if triton:

    @triton.jit
    def _tile(x, row, n, stride, D, BD: tl.constexpr):
        """Rows of x[n,D], `stride` apart; zeros outside."""
        d = tl.arange(0, BD)[None, :]
        return tl.load(x + row[:, None] * stride + d, mask=(row[:, None] < n) & (d < D), other=0.0)

    @triton.jit
    def _put(x, row, n, stride, D, value, BD: tl.constexpr):
        d = tl.arange(0, BD)[None, :]
        tl.store(
            x + row[:, None] * stride + d,
            value.to(x.dtype.element_ty),
            mask=(row[:, None] < n) & (d < D),
        )

    @triton.jit
    def _attend(
        qi,
        k,
        v,
        n,
        stride,
        D,
        scale,
        top,
        total,
        acc,
        PRECISION: tl.constexpr,
        BN: tl.constexpr,
        BD: tl.constexpr,
    ):
        """The softmax over one lot of n keys, block by block: largest score, sum and weighted
        values carry on from the lot before."""
        for start in range(0, n, BN):
            j = start + tl.arange(0, BN)
            kj, vj = _tile(k, j, n, stride, D, BD), _tile(v, j, n, stride, D, BD)
            score = tl.dot(qi, tl.trans(kj), input_precision=PRECISION).to(acc.dtype) * scale
            score = tl.where(j[None, :] < n, score, -1e30)
            higher = tl.maximum(top, tl.max(score, 1))
            p, shrink = tl.exp(score - higher[:, None]), tl.exp(top - higher)
            total = total * shrink + tl.sum(p, 1)
            acc = tl.dot(p.to(vj.dtype), vj, acc * shrink[:, None], input_precision=PRECISION)
            top = higher
        return top, total, acc

    @triton.jit
    def _kernel(
        q,
        k,
        v,
        pk,
        pv,
        o,
        lse,
        H,
        N,
        P,
        D,
        scale,
        qb,
        qh,
        qn,
        ph,
        pn,
        PRECISION: tl.constexpr,
        ACC: tl.constexpr,
        BM: tl.constexpr,
        BN: tl.constexpr,
        BD: tl.constexpr,
    ):
        """BM rows of o[N,D] and lse[N] of one image and head. q, k, v have strides qb, qh, qn, the
        prompts ph, pn; o lies as [B,N,H,D]."""
        i, b, h = (
            tl.program_id(0) * BM + tl.arange(0, BM),
            tl.program_id(2).to(tl.int64),
            tl.program_id(1),
        )
        own, shared = b * qb + h * qh, h * ph  # all images read the same prompts
        qi = _tile(q + own, i, N, qn, D, BD)
        top, total, acc = tl.full((BM,), -1e30, ACC), tl.zeros((BM,), ACC), tl.zeros((BM, BD), ACC)
        top, total, acc = _attend(
            qi, pk + shared, pv + shared, P, pn, D, scale, top, total, acc, PRECISION, BN, BD
        )
        top, total, acc = _attend(
            qi, k + own, v + own, N, qn, D, scale, top, total, acc, PRECISION, BN, BD
        )
        _put(o + (b * N * H + h) * D, i, N, H * D, D, acc / total[:, None], BD)
        tl.store(lse + (b * H + h) * N + i, top + tl.log(total), mask=i < N)

    @triton.jit
    def _scores(
        qi, doi, kj, vj, lse_i, delta_i, inside, scale, ACC: tl.constexpr, PRECISION: tl.constexpr
    ):
        """A tile of the softmax again, and of the gradient of the scores."""
        score = tl.dot(qi, tl.trans(kj), input_precision=PRECISION).to(ACC) * scale
        p = tl.where(inside, tl.exp(score - lse_i[:, None]), 0.0)
        dp = tl.dot(doi, tl.trans(vj), input_precision=PRECISION).to(ACC)
        return p, p * (dp - delta_i[:, None]) * scale

    @triton.jit
    def _add_dq(
        qi,
        doi,
        lse_i,
        delta_i,
        k,
        v,
        n,
        stride,
        D,
        scale,
        dq,
        PRECISION: tl.constexpr,
        BN: tl.constexpr,
        BD: tl.constexpr,
    ):
        """What one lot of n keys adds to the gradient of q."""
        for start in range(0, n, BN):
            j = start + tl.arange(0, BN)
            kj, vj = _tile(k, j, n, stride, D, BD), _tile(v, j, n, stride, D, BD)
            _, ds = _scores(
                qi, doi, kj, vj, lse_i, delta_i, j[None, :] < n, scale, dq.dtype, PRECISION
            )
            dq = tl.dot(ds.to(kj.dtype), kj, dq, input_precision=PRECISION)
        return dq

    @triton.jit
    def _kernel_dq(
        do,
        q,
        k,
        v,
        pk,
        pv,
        o,
        lse,
        delta,
        dq,
        H,
        N,
        P,
        D,
        scale,
        qb,
        qh,
        qn,
        ph,
        pn,
        PRECISION: tl.constexpr,
        ACC: tl.constexpr,
        BM: tl.constexpr,
        BN: tl.constexpr,
        BD: tl.constexpr,
    ):
        """BM rows of dq[N,D], and of delta[N] = sum over D of do o, which the gradients of keys and
        values need too."""
        i, b, h = (
            tl.program_id(0) * BM + tl.arange(0, BM),
            tl.program_id(2).to(tl.int64),
            tl.program_id(1),
        )
        own, shared, out, row = b * qb + h * qh, h * ph, (b * N * H + h) * D, (b * H + h) * N + i
        qi, doi = _tile(q + own, i, N, qn, D, BD), _tile(do + out, i, N, H * D, D, BD)
        delta_i = tl.sum(doi.to(ACC) * _tile(o + out, i, N, H * D, D, BD).to(ACC), 1)
        tl.store(delta + row, delta_i, mask=i < N)
        lse_i = tl.load(lse + row, mask=i < N, other=0.0)
        acc = tl.zeros((BM, BD), ACC)
        acc = _add_dq(
            qi,
            doi,
            lse_i,
            delta_i,
            pk + shared,
            pv + shared,
            P,
            pn,
            D,
            scale,
            acc,
            PRECISION,
            BN,
            BD,
        )
        acc = _add_dq(
            qi, doi, lse_i, delta_i, k + own, v + own, N, qn, D, scale, acc, PRECISION, BN, BD
        )
        _put(dq + out, i, N, H * D, D, acc, BD)

    @triton.jit
    def _kernel_dkv(
        do,
        q,
        k,
        v,
        lse,
        delta,
        dk,
        dv,
        B,
        H,
        N,
        n,
        D,
        scale,
        qb,
        qh,
        qn,
        kb,
        kh,
        kn,
        IMAGES: tl.constexpr,
        PRECISION: tl.constexpr,
        ACC: tl.constexpr,
        BM: tl.constexpr,
        BN: tl.constexpr,
        BD: tl.constexpr,
    ):
        """BN rows of dk[n,D] and dv[n,D], summed over IMAGES images: one for their own keys (kb
        apart), more for prompts (kb = 0)."""
        j, h, group = (
            tl.program_id(0) * BN + tl.arange(0, BN),
            tl.program_id(1),
            tl.program_id(2).to(tl.int64),
        )
        source, out = group * kb + h * kh, (group * n * H + h) * D
        kj, vj = _tile(k + source, j, n, kn, D, BD), _tile(v + source, j, n, kn, D, BD)
        acc_k, acc_v = tl.zeros((BN, BD), ACC), tl.zeros((BN, BD), ACC)
        for image in range(IMAGES):
            b = group * IMAGES + image
            for start in range(0, tl.where(b < B, N, 0), BM):
                i = start + tl.arange(0, BM)
                qi, doi = (
                    _tile(q + b * qb + h * qh, i, N, qn, D, BD),
                    _tile(do + (b * N * H + h) * D, i, N, H * D, D, BD),
                )
                row = (b * H + h) * N + i
                lse_i, delta_i = (
                    tl.load(lse + row, mask=i < N, other=0.0),
                    tl.load(delta + row, mask=i < N, other=0.0),
                )
                p, ds = _scores(
                    qi, doi, kj, vj, lse_i, delta_i, i[:, None] < N, scale, ACC, PRECISION
                )
                acc_v = tl.dot(tl.trans(p.to(doi.dtype)), doi, acc_v, input_precision=PRECISION)
                acc_k = tl.dot(tl.trans(ds.to(qi.dtype)), qi, acc_k, input_precision=PRECISION)
        _put(dk + out, j, n, H * D, D, acc_k, BD)
        _put(dv + out, j, n, H * D, D, acc_v, BD)


def _blocks(q: Tensor, keys: int) -> dict[str, Any]:
    """Tiles of queries and keys, smaller where they are wide."""
    N, D = q.shape[2:]
    largest = (
        64 if D <= 64 and q.element_size() == 2 else 32
    )  # float32 tiles of 64 would not fit in registers
    return {
        "PRECISION": precision(),
        "ACC": accumulator(q),
        "BM": min(largest, block(N)),
        "BN": min(largest, block(keys)),
        "BD": block(D),
        "num_warps": 4 if q.element_size() == 2 else 8,
        "num_stages": 2,
    }


def _launch(q: Tensor, k: Tensor, v: Tensor, pk: Tensor, pv: Tensor) -> tuple[Tensor, Tensor]:
    (B, H, N, D), P, blocks = q.shape, pk.shape[1], _blocks(q, q.shape[2])
    o, lse = _like(q), q.new_empty(B, H, N, dtype=wide(q))
    _kernel[(cdiv(N, blocks["BM"]), H, B)](
        q, k, v, pk, pv, o, lse, H, N, P, D, D**-0.5, *q.stride()[:3], *pk.stride()[:2], **blocks
    )
    return o, lse


def _launch_backward(
    do: Tensor, q: Tensor, k: Tensor, v: Tensor, pk: Tensor, pv: Tensor, o: Tensor, lse: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    (B, H, N, D), P, blocks = q.shape, pk.shape[1], _blocks(q, q.shape[2])
    do, o, delta, strides = _by_token(do), _by_token(o), torch.empty_like(lse), q.stride()[:3]
    dq, dk, dv = _like(q), _like(k), _like(v)
    _kernel_dq[(cdiv(N, blocks["BM"]), H, B)](
        do,
        q,
        k,
        v,
        pk,
        pv,
        o,
        lse,
        delta,
        dq,
        H,
        N,
        P,
        D,
        D**-0.5,
        *strides,
        *pk.stride()[:2],
        **blocks,
    )
    _kernel_dkv[(cdiv(N, blocks["BN"]), H, B)](
        do,
        q,
        k,
        v,
        lse,
        delta,
        dk,
        dv,
        B,
        H,
        N,
        N,
        D,
        D**-0.5,
        *strides,
        *strides,
        IMAGES=1,
        **blocks,
    )
    images, blocks = cdiv(B, PARTS), _blocks(q, P)
    dpk, dpv = q.new_empty(2, cdiv(B, images), P, H, D, dtype=wide(q))
    if P:
        _kernel_dkv[(cdiv(P, blocks["BN"]), H, len(dpk))](
            do,
            q,
            pk,
            pv,
            lse,
            delta,
            dpk,
            dpv,
            B,
            H,
            N,
            P,
            D,
            D**-0.5,
            *strides,
            0,
            *pk.stride()[:2],
            IMAGES=images,
            **blocks,
        )
    dpk, dpv = (
        dp.sum(0).to(q.dtype).transpose(0, 1).contiguous() for dp in (dpk, dpv)
    )  # [parts, P, H, D] -> [H, P, D]
    return dq, dk, dv, dpk, dpv


# 4. The function
# -------------------------------------------------------------------------------------------------
def prompt_attention(q: Tensor, k: Tensor, v: Tensor, pk: Tensor, pv: Tensor) -> Tensor:
    """As `prompt_attention_reference`, in one operation. Raises `VTError` for sizes that do not fit
    together.

    CUDA tensors take the kernel; elsewhere, and where there is none (float32 without tf32, wide
    heads), PyTorch's fused attention does the work. With the kernel no second derivatives and no
    `torch.func` transforms; the reference has both.
    """
    H, D = q.shape[-3], q.shape[-1]
    if not (
        q.ndim == 4
        and q.shape == k.shape == v.shape
        and pk.ndim == 3
        and pk.shape == pv.shape
        and (pk.shape[0], pk.shape[2]) == (H, D)
    ):
        found = ", ".join(str(list(t.shape)) for t in (q, k, v, pk, pv))
        raise VTError(
            "expected q, k, v of one shape [B, H, N, D] and the prompts' keys and values of one"
            f" shape [H, P, D], found {found}"
        )
    q, k, v, pk, pv = same_dtype(q, k, v, pk, pv)
    if use_kernel(q, dot=True) and D <= WIDEST:
        return _prompt_attention(q, k, v, pk, pv)[0]
    if gradient_asked(q, k, v, pk, pv):
        q = _by_token(q)  # else the projection's whole output is kept for its third
    return concatenated_attention(q, k, v, pk, pv)
