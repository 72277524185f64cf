"""Assignment 07: right answers, each written in another way than the solution."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

# lora_linear_backward
# -------------------------------------------------------------------------------------------------


def lora_by_concatenation(
    dy: Tensor, x: Tensor, weight: Tensor, A: Tensor, B: Tensor, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    """dx as one product, [dy, dh] [W; A], instead of a sum of two."""
    dh = dy @ (B * scale)
    dx = torch.cat([dy, dh], -1) @ torch.cat([weight, A], 0)
    dA = dh.flatten(0, -2).mT @ x.flatten(0, -2) if x.ndim > 1 else torch.outer(dh, x)
    h = scale * F.linear(x, A)
    dB = dy.flatten(0, -2).mT @ h.flatten(0, -2) if x.ndim > 1 else torch.outer(dy, h)
    return dx, dA, dB


def lora_token_by_token(
    dy: Tensor, x: Tensor, weight: Tensor, A: Tensor, B: Tensor, scale: float
) -> list[Tensor]:
    tokens = list(zip(dy.reshape(-1, len(weight)), x.reshape(-1, weight.shape[1]), strict=True))
    dx = torch.stack([weight.T @ g + scale * (A.T @ (B.T @ g)) for g, _ in tokens])
    dA, dB = torch.zeros_like(A), torch.zeros_like(B)
    for g, t in tokens:
        dA = dA + scale * torch.outer(B.T @ g, t)
        dB = dB + scale * torch.outer(g, A @ t)
    return [dx.reshape(x.shape), dA, dB]


def lora_by_tensordot(
    dy: Tensor, x: Tensor, weight: Tensor, A: Tensor, B: Tensor, scale: float
) -> tuple[Tensor, ...]:
    front = list(range(x.ndim - 1))
    dh = torch.einsum("...n,nr->...r", dy, B).mul(scale)
    dA = torch.tensordot(dh, x, (front, front))
    dB = torch.tensordot(dy, torch.einsum("...k,rk->...r", x, A), (front, front)) * scale
    return F.linear(dh, A.T) + F.linear(dy, weight.T), dA, dB


def lora_scaled_at_the_end(
    dy: Tensor, x: Tensor, weight: Tensor, A: Tensor, B: Tensor, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    G, X = dy.reshape(-1, dy.shape[-1]), x.reshape(-1, x.shape[-1])
    thin_g, thin_x = torch.mm(G, B), torch.mm(X, A.t())
    dx = torch.addmm(G.mm(weight), thin_g, A, alpha=scale)
    return dx.view_as(x), (X.t() @ thin_g).t() * scale, (thin_x.t() @ G).t() * scale


# attention_fake
# -------------------------------------------------------------------------------------------------


def fake_by_empty(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    wide = torch.promote_types(q.dtype, torch.float32)
    out = torch.empty((*q.shape[:3], v.shape[3]), dtype=q.dtype, device=q.device)
    return out, torch.empty(q.shape[:3], dtype=wide, device=q.device)


def fake_by_strides(q: Tensor, k: Tensor, v: Tensor) -> list[Tensor]:
    (B, H, N, _), e = q.shape, v.size(-1)
    wide = {torch.float64: torch.float64}.get(k.dtype, torch.float32)
    out = q.new_empty_strided((B, H, N, e), (H * N * e, N * e, e, 1))
    return [out, out.new_empty_strided((B, H, N), (H * N, N, 1), dtype=wide)]


def fake_by_like(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """Like a view of the right shape, but contiguous."""
    shape = v[:, :, :1].expand(-1, -1, q.shape[2], -1)
    out = torch.empty_like(shape, memory_format=torch.contiguous_format)
    wide = q.dtype if q.dtype == torch.float64 else torch.float32
    return out, torch.empty_like(q[..., 0], dtype=wide, memory_format=torch.contiguous_format)


# tile_places
# -------------------------------------------------------------------------------------------------


def places_by_meshgrid(
    i: int, j: int, BM: int, BN: int, M: int, N: int, stride_m: int, stride_n: int
) -> tuple[Tensor, Tensor]:
    rows, cols = torch.meshgrid(
        torch.arange(i * BM, (i + 1) * BM), torch.arange(j * BN, (j + 1) * BN), indexing="ij"
    )
    return torch.add(rows * stride_m, cols, alpha=stride_n), ~((rows >= M) | (cols >= N))


def places_by_numpy(
    i: int, j: int, BM: int, BN: int, M: int, N: int, stride_m: int, stride_n: int
) -> tuple[Tensor, Tensor]:
    rows, cols = np.indices((BM, BN), dtype=np.int64)
    rows, cols = rows + i * BM, cols + j * BN
    offsets = stride_m * rows + stride_n * cols
    return torch.from_numpy(offsets), torch.from_numpy(np.logical_and(rows < M, cols < N))


def places_by_lists(
    i: int, j: int, BM: int, BN: int, M: int, N: int, stride_m: int, stride_n: int
) -> list[Tensor]:
    """Entry by entry; what is masked has the offset 0."""
    down, across = range(i * BM, i * BM + BM), range(j * BN, j * BN + BN)
    offsets = [
        [m * stride_m + n * stride_n if m < M and n < N else 0 for n in across] for m in down
    ]
    return [torch.tensor(offsets), torch.tensor([[m < M and n < N for n in across] for m in down])]


def places_from_the_corner(
    i: int, j: int, BM: int, BN: int, M: int, N: int, stride_m: int, stride_n: int
) -> tuple[Tensor, Tensor]:
    """The tile's corner, and steps from it; the mask as a rectangle that is filled."""
    corner = i * BM * stride_m + j * BN * stride_n
    steps = torch.arange(BM).unsqueeze(1) * stride_m + torch.arange(BN).unsqueeze(0) * stride_n
    mask = torch.zeros(BM, BN, dtype=torch.bool)
    mask[: max(0, M - i * BM), : max(0, N - j * BN)] = True
    return corner + steps, mask


# online_attention
# -------------------------------------------------------------------------------------------------


def online_by_logsumexp(blocks: Iterable[tuple[Tensor, Tensor]]) -> Tensor:
    """The answer so far and the logarithm of its sum; each new block has its share."""
    out = lse = None
    for scores, values in blocks:
        here = torch.logsumexp(scores, -1, keepdim=True)
        part = torch.where(here == -torch.inf, 0.0, scores.softmax(-1)) @ values
        if out is None:
            out, lse = part, here
            continue
        both = torch.logaddexp(lse, here)
        safe = torch.where(both == -torch.inf, 0.0, both)
        out, lse = out * (lse - safe).exp() + part * (here - safe).exp(), both
    return out


class Running:
    """Maximum, sum and weighted sum of rows; the sum is one more column of the values."""

    def __init__(self) -> None:
        self.top: Any = None
        self.sums: Any = None

    def add(self, scores: Tensor, values: Tensor) -> None:
        values = F.pad(values, (0, 1), value=1.0)
        # A finite bottom in the place of -inf: masked entries are set to zero by hand.
        top = scores.amax(-1, keepdim=True).clamp(min=torch.finfo(scores.dtype).min)
        if self.top is not None:
            top = torch.maximum(top, self.top)
        weights = (scores - top).exp().masked_fill(scores == -torch.inf, 0.0)
        new = weights @ values
        self.sums = new if self.sums is None else new + self.sums * (self.top - top).exp()
        self.top = top

    def answer(self) -> Tensor:
        out, total = self.sums[..., :-1], self.sums[..., -1:]
        return out / total.masked_fill(total == 0, 1.0)


def online_by_class(blocks: Iterable[tuple[Tensor, Tensor]]) -> Tensor:
    rows = Running()
    for scores, values in blocks:
        rows.add(scores, values)
    return rows.answer()


def online_from_nothing(blocks: Iterable[tuple[Tensor, Tensor]]) -> Tensor:
    """Begins with -inf and zeros, and treats the first block like any other; in float64."""
    m = total = out = None
    for scores, values in blocks:
        s = scores.double()
        if m is None:
            m = torch.full_like(s[..., :1], -torch.inf)
            total, out = torch.zeros_like(m), s[..., :0] @ values[..., :0, :].double()
        new = torch.cat([m, s], -1).max(-1, keepdim=True).values
        finite = new.masked_fill(new.isinf(), 0.0)
        keep, p = torch.exp(m - finite), torch.exp(s - finite)
        m, total, out = new, keep * total + p.sum(-1, True), keep * out + p @ values.double()
    return torch.nan_to_num(out / total, nan=0.0).to(scores.dtype)


# kd_gradient
# -------------------------------------------------------------------------------------------------


def kd_by_logs(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    q = torch.log_softmax(student / temperature, dim=-1).exp()
    p = torch.log_softmax(teacher / temperature, dim=-1).exp()
    return (q - p) * temperature / math.prod(student.shape[:-1])


def kd_row_by_row(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    z = student.reshape(-1, student.shape[-1])
    rows = [
        F.softmax(a.div(temperature), dim=0) - F.softmax(b.div(temperature), dim=0)
        for a, b in zip(z, teacher.reshape(z.shape), strict=True)
    ]
    return torch.stack(rows).mul(temperature / len(rows)).reshape(student.shape)


def kd_together(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Both in one softmax that is written out."""
    both = torch.stack([student, teacher]) / temperature
    e = (both - both.amax(-1, keepdim=True)).exp()
    q, p = (e / e.sum(-1, keepdim=True)).unbind()
    weight = temperature / student[..., 0].numel()
    return weight * q - weight * p


# kron_backward
# -------------------------------------------------------------------------------------------------


def kron_by_einsum(dy: Tensor, x: Tensor, A: Tensor, B: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    X = x.unflatten(-1, (A.shape[1], B.shape[1]))
    G = dy.unflatten(-1, (A.shape[0], B.shape[0]))
    left = torch.einsum("...ab,ap->...pb", G, A)
    right = torch.einsum("...ab,bq->...aq", G, B)
    dx = torch.einsum("...pb,bq->...pq", left, B).flatten(-2)
    dA = torch.einsum("...aq,...pq->ap", right, X)
    return dx, dA, torch.einsum("...pb,...pq->bq", left, X)


def kron_in_a_loop(dy: Tensor, x: Tensor, A: Tensor, B: Tensor) -> list[Tensor]:
    dA, dB, dxs = torch.zeros_like(A), torch.zeros_like(B), []
    for g, t in zip(
        dy.reshape(-1, A.shape[0], B.shape[0]), x.reshape(-1, A.shape[1], B.shape[1]), strict=True
    ):
        dxs.append(A.T @ g @ B)
        dA += g @ (t @ B.T).T
        dB += g.T @ A @ t
    return [torch.stack(dxs).reshape(x.shape), dA, dB]


def kron_by_linear(dy: Tensor, x: Tensor, A: Tensor, B: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """All tokens' rows in one long matrix, and all their columns in another."""
    (a, p), (b, q) = A.shape, B.shape
    X, G = x.reshape(-1, p, q), dy.reshape(-1, a, b)
    Z = F.linear(X, B)  # [tokens, p, b]: y is A Z
    dZ = torch.matmul(A.mT, G)
    dA = G.transpose(0, 1).reshape(a, -1) @ Z.transpose(0, 1).reshape(p, -1).T
    dB = dZ.reshape(-1, b).T @ X.reshape(-1, q)
    return torch.matmul(dZ, B).reshape_as(x), dA, dB


RIGHT: dict[str, list[Any]] = {
    "lora_linear_backward": [
        lora_by_concatenation,
        lora_token_by_token,
        lora_by_tensordot,
        lora_scaled_at_the_end,
    ],
    "attention_fake": [fake_by_empty, fake_by_strides, fake_by_like],
    "tile_places": [
        places_by_meshgrid,
        places_by_numpy,
        places_by_lists,
        places_from_the_corner,
    ],
    "online_attention": [online_by_logsumexp, online_by_class, online_from_nothing],
    "kd_gradient": [kd_by_logs, kd_row_by_row, kd_together],
    "kron_backward": [kron_by_einsum, kron_in_a_loop, kron_by_linear],
}
