"""Assignment 05: right answers, each written in another way than the solution."""

from __future__ import annotations

import math
import re
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

# bitfit
# -------------------------------------------------------------------------------------------------


def biases_by_last_part(model: nn.Module) -> int:
    """The last part of the name, and a count by NumPy."""
    total = np.int64(0)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.split(".")[-1] == "bias")
        total += np.prod(parameter.shape, dtype=np.int64) * parameter.requires_grad
    return total


def biases_module_by_module(model: nn.Module) -> int:
    for parameter in model.parameters():
        parameter.requires_grad = False
    chosen = [
        parameter
        for module in model.modules()
        for name, parameter in module.named_parameters(recurse=False)
        if name == "bias"
    ]
    for parameter in chosen:
        parameter.requires_grad = True
    return sum(parameter.numel() for parameter in set(chosen))


def biases_by_pattern(model: nn.Module) -> int:
    named = dict(model.named_parameters())
    for name in named:
        named[name].requires_grad = bool(re.search(r"(^|\.)bias$", name))
    return sum(parameter.nelement() for parameter in named.values() if parameter.requires_grad)


# lora_forward
# -------------------------------------------------------------------------------------------------


def lora_as_linear_layers(
    x: Tensor, weight: Tensor, bias: Tensor, A: Tensor, B: Tensor, alpha: float
) -> Tensor:
    return F.linear(x, weight, bias) + F.linear(F.linear(x, A * (alpha / A.shape[0])), B)


def lora_by_concatenation(
    x: Tensor, weight: Tensor, bias: Tensor, A: Tensor, B: Tensor, alpha: float
) -> Tensor:
    """One product instead of a sum of two: [x, h] [W, B]^T. B A is not among them."""
    h = alpha / len(A) * F.linear(x, A)
    return F.linear(torch.cat([x, h], dim=-1), torch.cat([weight, B], dim=1), bias)


def lora_rank_by_rank(
    x: Tensor, weight: Tensor, bias: Tensor, A: Tensor, B: Tensor, alpha: float
) -> Tensor:
    y = torch.matmul(x, weight.t()).add(bias)
    for row, column in zip(A, B.T, strict=True):
        y = y + (x @ row).unsqueeze(-1) * column * alpha / A.size(0)
    return y


class LoRA:
    """A layer that is called once."""

    def __init__(self, A: Tensor, B: Tensor, alpha: float) -> None:
        self.A, self.B, self.scale = A, B, alpha / B.shape[-1]

    def __call__(self, x: Tensor) -> Tensor:
        return torch.einsum("...r,nr->...n", torch.einsum("...k,rk->...r", x, self.A), self.B)


def lora_by_class(
    x: Tensor, weight: Tensor, bias: Tensor, A: Tensor, B: Tensor, alpha: float
) -> Tensor:
    layer = LoRA(A, B, alpha)
    return layer.scale * layer(x) + torch.einsum("...k,nk->...n", x, weight) + bias


def lora_flat(
    x: Tensor, weight: Tensor, bias: Tensor, A: Tensor, B: Tensor, alpha: float
) -> Tensor:
    flat = x.reshape(-1, x.shape[-1])
    y = torch.addmm(torch.addmm(bias, flat, weight.T), flat @ A.T, B.T, alpha=alpha / len(A))
    return y.reshape(*x.shape[:-1], len(weight))


# lora_merge
# -------------------------------------------------------------------------------------------------


def merge_as_grid(
    weight: Tensor, factors: dict[str, tuple[Tensor, Tensor]], alpha: float
) -> Tensor:
    thirds = weight.reshape(3, -1, weight.shape[1]).clone()
    for place, letter in enumerate("qkv"):
        if letter in factors:
            A, B = factors[letter]
            thirds[place].addmm_(B, A, alpha=alpha / len(A))
    return thirds.flatten(0, 1)


def merge_by_sum(weight: Tensor, factors: dict[str, tuple[Tensor, Tensor]], alpha: float) -> Tensor:
    """The weight plus an update with zeros where nothing changes."""
    third = weight[: weight.shape[0] // 3]
    updates = {letter: torch.zeros_like(third) for letter in ("q", "k", "v")}
    for letter in sorted(factors):
        A, B = factors[letter]
        updates[letter] = torch.einsum("dr,rk->dk", B, A) * alpha / A.shape[0]
    return weight + torch.cat(list(updates.values()))


def merge_thirds(weight: Tensor, factors: dict[str, tuple[Tensor, Tensor]], alpha: float) -> Tensor:
    q, k, v = weight.chunk(3)

    def change(part: Tensor, letter: str) -> Tensor:
        if letter not in factors:
            return part
        A, B = factors[letter]
        return part + (alpha / B.shape[1]) * torch.matmul(B, A)

    return torch.vstack((change(q, "q"), change(k, "k"), change(v, "v")))


# kron_forward
# -------------------------------------------------------------------------------------------------


def kron_by_two_layers(x: Tensor, A: Tensor, B: Tensor) -> Tensor:
    """B along the rows of the grid, then A along its columns."""
    X = x.reshape(*x.shape[:-1], A.shape[1], B.shape[1])
    return F.linear(F.linear(X, B).mT, A).mT.reshape(*x.shape[:-1], -1)


def kron_by_blocks(x: Tensor, A: Tensor, B: Tensor) -> Tensor:
    """Block by block: each piece of y is a sum over the pieces of x."""
    pieces = [x[..., j * B.shape[1] : (j + 1) * B.shape[1]] @ B.T for j in range(A.shape[1])]
    rows = []
    for i in range(A.shape[0]):
        row = A[i, 0] * pieces[0]
        for j in range(1, A.shape[1]):
            row = row + A[i, j] * pieces[j]
        rows.append(row)
    return torch.cat(rows, dim=-1)


def kron_by_bmm(x: Tensor, A: Tensor, B: Tensor) -> Tensor:
    X = x.reshape(-1, A.size(1), B.size(1))
    left = torch.bmm(A.expand(len(X), -1, -1), X)
    return torch.bmm(left, B.T.expand(len(X), -1, -1)).reshape(*x.shape[:-1], -1)


def kron_by_tensordot(x: Tensor, A: Tensor, B: Tensor) -> Tensor:
    X = x.unflatten(-1, (A.shape[1], -1))
    return torch.tensordot(torch.tensordot(X, A, ([-2], [1])), B, ([-2], [1])).flatten(-2)


# count_updates
# -------------------------------------------------------------------------------------------------


def count_by_shapes(D: int, L: int, r: int, a: int, n: int) -> dict[str, int]:
    m = D // 32
    layer = [(D // n, 1), (1, m // n)] * n + [(m // n, 1), (1, D // n)] * n + [(m,), (D,)]
    shapes = {
        "lora": [(r, D), (D, r)] * 2 * L,
        "krona": [(a, a), (D // a, D // a)] * 2 * L,
        "fact_tt": [(D, r), (r, D), *[(r, r)] * 12 * L],
        "compacter": [(n, n)] * n + layer * 2 * L,
    }
    return {name: sum(map(math.prod, of)) for name, of in shapes.items()}


def count_by_numpy(D: int, L: int, r: int, a: int, n: int) -> dict[str, int]:
    D, L, r, a, n = np.array([D, L, r, a, n], dtype=np.int64)
    m = D // 32
    return {
        "compacter": n**3 + L * (4 * (D + m) + 2 * (D + m)),
        "fact_tt": 2 * r * (D + 6 * L * r),
        "krona": 2 * L * (a**2 + (D // a) ** 2),
        "lora": 4 * D * L * r,
    }


def count_as_a_dict_that_grows(D: int, L: int, r: int, a: int, n: int) -> dict[str, int]:
    found = dict.fromkeys(("lora", "krona", "fact_tt", "compacter"), 0)
    found["compacter"] += n * n * n
    found["fact_tt"] += 2 * D * r
    for _ in range(L):
        found["fact_tt"] += 12 * r * r
        for _ in range(2):  # q and v; after attention and after the MLP
            found["lora"] += 2 * r * D
            found["krona"] += a * a + D // a * (D // a)
            found["compacter"] += 3 * D + 3 * D // 32
    return found


# ssf_merge
# -------------------------------------------------------------------------------------------------


def ssf_by_cases(
    weight: Tensor, bias: Tensor | None, scale: Tensor, shift: Tensor
) -> tuple[Tensor, Tensor]:
    if weight.ndim == 1:
        new = weight * scale
    elif weight.ndim == 2:
        new = weight * scale[:, None]
    else:
        new = weight * scale[:, None, None, None]
    old = torch.zeros_like(shift) if bias is None else bias
    return new, torch.addcmul(shift, old, scale)


def ssf_row_by_row(
    weight: Tensor, bias: Tensor | None, scale: Tensor, shift: Tensor
) -> tuple[Tensor, Tensor]:
    new = torch.stack([factor * row for factor, row in zip(scale, weight, strict=True)])
    return new, shift + (0 if bias is None else bias * scale)


def ssf_turned(weight: Tensor, bias: Tensor | None, scale: Tensor, shift: Tensor) -> list[Tensor]:
    """The channels last, where broadcasting finds them."""
    new = torch.movedim(torch.movedim(weight, 0, -1) * scale, -1, 0)
    return [new, torch.clone(shift) if bias is None else shift + scale * bias]


def ssf_by_diagonal(
    weight: Tensor, bias: Tensor | None, scale: Tensor, shift: Tensor
) -> tuple[Tensor, Tensor]:
    flat = weight.reshape(len(weight), -1)
    return (torch.diag(scale) @ flat).reshape(weight.shape), (
        scale * bias + shift if bias is not None else shift * 1
    )


# dylora_forward
# -------------------------------------------------------------------------------------------------


def dylora_by_two_updates(
    x: Tensor, weight: Tensor, bias: Tensor, A: Tensor, B: Tensor, alpha: float, b: int
) -> Tensor:
    """Those below and the last one apart."""
    y = F.linear(F.linear(x, A[b - 1 : b]), B[:, b - 1 : b])
    if b > 1:
        y = y + F.linear(F.linear(x, A[: b - 1].detach()), B[:, : b - 1].detach())
    return F.linear(x, weight, bias) + y * alpha / b


def dylora_by_mask(
    x: Tensor, weight: Tensor, bias: Tensor, A: Tensor, B: Tensor, alpha: float, b: int
) -> Tensor:
    own = torch.zeros_like(A[:b, :1])
    own[-1] = 1
    rows = own * A[:b] + ((1 - own) * A[:b]).detach()
    columns = own.T * B[:, :b] + ((1 - own.T) * B[:, :b]).detach()
    return x @ weight.T + bias + alpha / b * (x @ rows.T @ columns.T)


def dylora_rank_by_rank(
    x: Tensor, weight: Tensor, bias: Tensor, A: Tensor, B: Tensor, alpha: float, b: int
) -> Tensor:
    update = 0
    for rank in range(1, b + 1):
        row, column = A[rank - 1], B[:, rank - 1]
        if rank < b:
            row, column = row.detach(), column.detach()
        update = update + torch.einsum("...k,k,n->...n", x, row, column)
    return torch.einsum("...k,nk->...n", x, weight) + bias + update * (alpha / b)


# private_gradient
# -------------------------------------------------------------------------------------------------


def private_by_where(per_sample: Tensor, max_norm: float, noise: Tensor, sigma: float) -> Tensor:
    lengths = per_sample.square().sum(1).sqrt()
    factors = torch.where(lengths > max_norm, max_norm / lengths, torch.ones_like(lengths))
    return (factors @ per_sample + sigma * max_norm * noise) / per_sample.shape[0]


def private_by_mean(per_sample: Tensor, max_norm: float, noise: Tensor, sigma: float) -> Tensor:
    """The mean of the clipped samples, and the noise divided for itself."""
    norms = torch.linalg.vector_norm(per_sample, dim=-1, keepdim=True)
    clipped = per_sample / torch.clamp(norms / max_norm, min=1.0)
    return clipped.mean(dim=0) + noise * (max_norm * sigma / len(per_sample))


def private_in_a_loop(per_sample: Tensor, max_norm: float, noise: Tensor, sigma: float) -> Tensor:
    total = torch.zeros_like(noise)
    for sample in per_sample.unbind():
        length = torch.sqrt(torch.sum(sample * sample))
        total += sample if length <= max_norm else sample * (max_norm / length)
    return total.add(noise, alpha=sigma * max_norm).div(len(per_sample))


def private_by_einsum(per_sample: Tensor, max_norm: float, noise: Tensor, sigma: float) -> Tensor:
    inverse = max_norm * torch.einsum("bp,bp->b", per_sample, per_sample).rsqrt()  # inf for zeros
    total = torch.einsum("b,bp->p", inverse.clamp(max=1.0), per_sample)
    return torch.stack([total, sigma * max_norm * noise]).sum(0) / per_sample.size(0)


RIGHT: dict[str, list[Any]] = {
    "bitfit": [biases_by_last_part, biases_module_by_module, biases_by_pattern],
    "lora_forward": [
        lora_as_linear_layers,
        lora_by_concatenation,
        lora_rank_by_rank,
        lora_by_class,
        lora_flat,
    ],
    "lora_merge": [merge_as_grid, merge_by_sum, merge_thirds],
    "kron_forward": [kron_by_two_layers, kron_by_blocks, kron_by_bmm, kron_by_tensordot],
    "count_updates": [count_by_shapes, count_by_numpy, count_as_a_dict_that_grows],
    "ssf_merge": [ssf_by_cases, ssf_row_by_row, ssf_turned, ssf_by_diagonal],
    "dylora_forward": [dylora_by_two_updates, dylora_by_mask, dylora_rank_by_rank],
    "private_gradient": [
        private_by_where,
        private_by_mean,
        private_in_a_loop,
        private_by_einsum,
    ],
}
