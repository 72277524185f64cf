"""The Kronecker product is never formed, and the order of its two halves is the cheap one; the rest
is in test_contract.py."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from vtlite.ops import kron_linear as op
from vtlite.ops.kron_linear import kron_linear, kron_matrix


class Largest(TorchDispatchMode):
    """The number of entries of the largest tensor that an operation gave back."""

    entries = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        self.entries = max(
            [self.entries, *(t.numel() for t in tree_leaves(out) if isinstance(t, Tensor))]
        )
        return out


def factors(n: int, a: int, p: int, b: int, q: int) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(0)
    A, B = torch.randn(n, a, p, generator=g).double(), torch.randn(n, b, q, generator=g).double()
    return A.requires_grad_(), B.requires_grad_()


def tokens(M: int, K: int) -> Tensor:
    return torch.randn(M, K, generator=torch.Generator().manual_seed(1)).double().requires_grad_()


@pytest.mark.parametrize(
    "sizes",
    [
        (1, 24, 24, 32, 32),
        (1, 32, 24, 40, 30),
        (1, 40, 30, 32, 24),
        (3, 2, 5, 4, 3),
        (2, 1, 7, 5, 1),
    ],
    ids=str,
)
def test_is_the_kronecker_product_never_formed(sizes: tuple[int, ...]) -> None:
    A, B = factors(*sizes)
    x = tokens(3, A.shape[2] * B.shape[2])
    W = torch.stack([torch.kron(A_i, B_i) for A_i, B_i in zip(A, B, strict=True)]).sum(0)
    dy = torch.randn(3, W.shape[0], generator=torch.Generator().manual_seed(2)).double()
    want = torch.autograd.grad(x @ W.T, (x, A, B), dy)
    torch.testing.assert_close(kron_linear(x, A, B), x @ W.T, atol=1e-10, rtol=1e-10)
    for ours, naive in zip(
        torch.autograd.grad(kron_linear(x, A, B), (x, A, B), dy), want, strict=True
    ):
        torch.testing.assert_close(ours, naive, atol=1e-10, rtol=1e-10)
    torch.testing.assert_close(kron_matrix(A, B), W, atol=1e-12, rtol=1e-12)


def test_largest_tensor_is_far_smaller_than_the_matrix() -> None:
    A, B = factors(1, 24, 24, 32, 32)
    x = tokens(4, 768)
    with Largest() as naive:
        (x @ torch.kron(A[0], B[0]).T).sum().backward()
    with Largest() as forward:  # a custom operator hides its inside: this is what it calls
        op._product(x.detach(), A.detach(), B.detach())
    with Largest() as both:
        kron_linear(x, A, B).sum().backward()
    assert naive.entries >= 768 * 768
    assert (
        max(forward.entries, both.entries) <= 4 * 768 + 768
    )  # x, y, what lies between; the factors have 576 and 1,024 entries


@pytest.mark.parametrize(
    "sizes", [(1, 24, 24, 32, 32), (4, 4, 4, 6, 192), (4, 4, 4, 192, 6), (2, 9, 3, 2, 8)], ids=str
)
def test_takes_the_cheaper_order(sizes: tuple[int, ...]) -> None:
    A, B = factors(*sizes)
    n, a, p, b, q = sizes
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        op._product(tokens(5, p * q), A, B)[0]
    columns_first, rows_first = n * p * q * b + n * a * p * b, n * a * p * q + n * a * q * b
    assert counter.get_total_flops() == 2 * 5 * min(columns_first, rows_first)
