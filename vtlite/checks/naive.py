"""References that several assignments share, written as slowly and plainly as can be."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def dense(x: Tensor, matrix: Tensor, bias: Tensor | float) -> Tensor:
    """Token by token: x [..., K], matrix [N, K] -> [..., N]."""
    return (
        torch.stack([matrix @ token for token in x.reshape(-1, x.shape[-1])]).reshape(
            *x.shape[:-1], -1
        )
        + bias
    )


def product(A: Tensor, B: Tensor) -> Tensor:
    """B A as a sum of outer products, one per rank."""
    return sum((torch.outer(B[:, j], A[j]) for j in range(len(A))), torch.zeros(len(B), A.shape[1]))


def kron(x: Tensor, A: Tensor, B: Tensor) -> Tensor:
    """Entry by entry: (A (x) B)[i b + k, j q + l] = A[i, j] B[k, l]."""
    (a, p), (b, q) = A.shape, B.shape
    terms = [
        [A[i, j] * B[k, m] * x[..., j * q + m] for j in range(p) for m in range(q)]
        for i in range(a)
        for k in range(b)
    ]
    return torch.stack([torch.stack(term).sum(0) for term in terms], -1)


def unit(t: Tensor) -> Tensor:
    """Every row divided by its length: [N, D] -> [N, D]."""
    return torch.stack([row / (row * row).sum().sqrt() for row in t])


def thirds(t: Tensor) -> list[Tensor]:
    """What a fused projection has for queries, keys and values."""
    D = len(t) // 3
    return [t[:D], t[D : 2 * D], t[2 * D :]]


def projected(x: Tensor, weight: Tensor, bias: Tensor | None, which: int) -> Tensor:
    """Queries (0), keys (1) or values (2) of x [..., D], by a weight [3 D, D]."""
    shift = 0.0 if bias is None else thirds(bias)[which]
    return dense(x, thirds(weight)[which], shift)


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    heads: int,
    factor: Callable[[int, int], float] = lambda d, D: d**-0.5,
    strided: bool = False,
    over: int = -1,
) -> Tensor:
    """Image by image and head by head: q [B, Q, D], k and v [B, K, D] -> [B, Q, D]."""
    D = q.shape[-1]
    d = D // heads
    images = []
    for b in range(len(q)):
        parts = []
        for h in range(heads):
            own = slice(h, None, heads) if strided else slice(h * d, (h + 1) * d)
            scores = q[b][:, own] @ k[b][:, own].T * factor(d, D)
            parts.append(scores.softmax(over) @ v[b][:, own])
        out = torch.cat(parts, -1)
        images.append(out.unflatten(-1, (heads, d)).mT.flatten(-2) if strided else out)
    return torch.stack(images)
