"""References that several assignments share, written as slowly and plainly as can be."""

from __future__ import annotations

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
