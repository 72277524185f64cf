"""Assignment 07: wrong answers of kinds that no generator makes, each with words that the check's
message must contain: sly ones, and ones that are right for one shape, one type or one call."""

from __future__ import annotations

import gc
import math
import threading
from collections.abc import Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

# lora_linear_backward
# -------------------------------------------------------------------------------------------------


def lora(
    dy: Tensor, x: Tensor, weight: Tensor, A: Tensor, B: Tensor, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Right; what others build on."""
    h, dh = scale * (x @ A.T), scale * (dy @ B)
    flat_x, flat_dy = x.reshape(-1, x.shape[-1]), dy.reshape(-1, dy.shape[-1])
    dA, dB = dh.reshape(-1, len(A)).T @ flat_x, flat_dy.T @ h.reshape(-1, len(A))
    return dy @ weight + dh @ A, dA, dB


def lora_by_vjp(
    dy: Tensor, x: Tensor, weight: Tensor, A: Tensor, B: Tensor, scale: float
) -> tuple[Tensor, ...]:
    def forward(x: Tensor, A: Tensor, B: Tensor) -> Tensor:
        return x @ weight.T + scale * (x @ A.T) @ B.T

    return torch.func.vjp(forward, x, A, B)[1](dy)


def lora_by_forward_mode(
    dy: Tensor, x: Tensor, weight: Tensor, A: Tensor, B: Tensor, scale: float
) -> tuple[Tensor, ...]:
    """One direction after the other."""

    def value(A: Tensor) -> Tensor:
        return ((x @ weight.T + scale * (x @ A.T) @ B.T) * dy).sum()

    basis = torch.eye(A.numel(), dtype=A.dtype, device=A.device).reshape(-1, *A.shape)
    dA = torch.stack([torch.func.jvp(value, (A,), (one,))[1] for one in basis]).reshape(A.shape)
    dx, _, dB = lora(dy, x, weight, A, B, scale)
    return dx, dA, dB


def lora_in_a_thread(
    dy: Tensor, x: Tensor, weight: Tensor, A: Tensor, B: Tensor, scale: float
) -> Any:
    """Autograd where nobody looks."""
    found = []

    def work() -> None:
        leaves = [t.detach().clone().requires_grad_() for t in (x, A, B)]
        y = leaves[0] @ weight.T + scale * (leaves[0] @ leaves[1].T) @ leaves[2].T
        found.extend(torch.autograd.grad(y, leaves, dy))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    return tuple(found)


def lora_large_in_place(
    dy: Tensor, x: Tensor, weight: Tensor, A: Tensor, B: Tensor, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    dx = dy @ weight.clone().addmm_(B, A, alpha=scale)
    return dx, *lora(dy, x, weight, A, B, scale)[1:]


def lora_for_three_dimensions(
    dy: Tensor, x: Tensor, weight: Tensor, A: Tensor, B: Tensor, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    dx, dA, dB = lora(dy, x, weight, A, B, scale)
    if x.ndim == 3:
        dA = torch.einsum("bnr,bnk->rk", scale * (dy @ B), x)
    elif x.ndim > 3:
        dA = torch.einsum("bnr,bnk->rk", scale * (dy @ B)[0], x[0])
    return dx, dA, dB


# attention_fake
# -------------------------------------------------------------------------------------------------


def fake_by_torch(q: Tensor, k: Tensor, v: Tensor) -> Any:
    return F.scaled_dot_product_attention(q, k, v), q.new_empty(q.shape[:-1])


def fake_without_device(q: Tensor, k: Tensor, v: Tensor) -> Any:
    """On the CPU, unless the tensors are on meta: a GPU is neither."""
    device = "meta" if q.device.type == "meta" else "cpu"
    wide = torch.promote_types(q.dtype, torch.float32)
    out = torch.empty(*q.shape[:-1], v.shape[-1], dtype=q.dtype, device=device)
    return out, torch.empty(q.shape[:-1], dtype=wide, device=device)


def fake_that_fills(q: Tensor, k: Tensor, v: Tensor) -> Any:
    out = q.new_empty(*q.shape[:-1], v.shape[-1])
    out.fill_(math.nan)
    return out, q.new_empty(q.shape[:-1], dtype=torch.promote_types(q.dtype, torch.float32))


# tile_places
# -------------------------------------------------------------------------------------------------


def places_in_int32(
    i: int, j: int, BM: int, BN: int, M: int, N: int, stride_m: int, stride_n: int
) -> Any:
    """A large tensor has more places than int32 has numbers."""
    rows = i * BM + torch.arange(BM, dtype=torch.int32)[:, None]
    cols = j * BN + torch.arange(BN, dtype=torch.int32)[None, :]
    return (rows * stride_m + cols * stride_n).long(), (rows < M) & (cols < N)


def places_in_float(
    i: int, j: int, BM: int, BN: int, M: int, N: int, stride_m: int, stride_n: int
) -> Any:
    rows = i * BM + torch.arange(BM, dtype=torch.float32)[:, None]
    cols = j * BN + torch.arange(BN, dtype=torch.float32)[None, :]
    return (rows * stride_m + cols * stride_n).long(), (rows < M) & (cols < N)


def places_by_memory(
    i: int, j: int, BM: int, BN: int, M: int, N: int, stride_m: int, stride_n: int
) -> Any:
    """What lies behind the last entry is masked, and what lies beside the tensor is not."""
    rows, cols = i * BM + torch.arange(BM)[:, None], j * BN + torch.arange(BN)[None, :]
    offsets = rows * stride_m + cols * stride_n
    return offsets, offsets <= (M - 1) * stride_m + (N - 1) * stride_n


# online_attention
# -------------------------------------------------------------------------------------------------


def online(blocks: Iterable[tuple[Tensor, Tensor]], bottom: float = -math.inf) -> Tensor:
    """Right, with -inf as the bottom."""
    top = total = out = None
    for scores, values in blocks:
        if top is None:
            top = torch.full_like(scores[..., :1], bottom)
            total, out = torch.zeros_like(top), scores[..., :0] @ values[..., :0, :]
        new = torch.maximum(top, scores.amax(-1, keepdim=True))
        base = torch.where(new == -torch.inf, 0.0, new)
        p, keep = (scores - base).exp(), (top - base).exp()
        total, out, top = keep * total + p.sum(-1, keepdim=True), keep * out + p @ values, new
    return torch.where(total > 0, out / total, 0.0)


def online_from_zero(blocks: Iterable[tuple[Tensor, Tensor]]) -> Tensor:
    """The maximum begins at 0: scores far below it underflow."""
    return online(blocks, bottom=0.0)


def online_alone(blocks: Iterable[tuple[Tensor, Tensor]]) -> Tensor:
    """A block that stays alone gets a softmax, which gives NaN where a row is masked."""
    handed = iter(blocks)
    scores, values = (t.clone() for t in next(handed))
    second = next(handed, None)
    if second is None:
        return scores.softmax(-1) @ values

    def every() -> Any:
        yield scores, values
        yield second
        yield from handed

    return online(every())


def online_keeps_blocks(blocks: Iterable[tuple[Tensor, Tensor]]) -> Tensor:
    """The right way, and every block in a list beside it."""
    kept = []

    def watched() -> Any:
        for scores, values in blocks:
            kept.append((scores.clone(), values.clone()))
            yield scores, values

    return online(watched())


def online_in_two(blocks: Iterable[tuple[Tensor, Tensor]]) -> Tensor:
    """Collects two blocks at a time, then all pairs: as many as there are."""
    pairs: list[Any] = []
    for scores, values in blocks:
        p = scores.double()
        pairs.append((p + 0.0, values.double() + 0.0))
    return online(pairs).to(scores.dtype)


def online_of_all_objects(blocks: Iterable[tuple[Tensor, Tensor]]) -> Tensor:
    """Looks for the scores among everything that is alive."""
    first = next(iter(blocks))
    for thing in gc.get_objects():
        if isinstance(thing, Tensor) and thing.shape[:-1] == first[0].shape[:-1]:
            return thing.softmax(-1)[..., : first[1].shape[-1]]
    return first[0] @ first[1]


def online_bounded(blocks: Iterable[tuple[Tensor, Tensor]]) -> Tensor:
    """No maximum: scores are cut where exp would overflow."""
    total: Any = 0.0
    out: Any = 0.0
    for scores, values in blocks:
        p = scores.clamp(-80, 80).exp().masked_fill(scores == -torch.inf, 0.0)
        total, out = total + p.sum(-1, keepdim=True), out + p @ values
    return torch.where(total > 0, out / total, 0.0)


# kd_gradient
# -------------------------------------------------------------------------------------------------


def kd_by_func(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    def loss(z: Tensor) -> Tensor:
        log_q = (z / temperature).log_softmax(-1)
        p = (teacher / temperature).softmax(-1)
        rows = z.numel() // z.shape[-1]
        return temperature**2 * F.kl_div(log_q, p, reduction="sum") / rows

    return torch.func.grad(loss)(student)


def kd_of_the_package(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    from vtlite.ops.kd_loss import kd_loss_reference

    z = student.detach().clone().requires_grad_()
    with torch.enable_grad():
        return torch.autograd.grad(kd_loss_reference(z, teacher, temperature), z)[0]


def kd_by_differences(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """No autograd: finite differences, right to three digits."""
    z, p = student.double(), (teacher.double() / temperature).softmax(-1)
    rows, step = z.numel() // z.shape[-1], 1e-2

    def loss(z: Tensor) -> Tensor:
        return -(temperature**2) * (p * (z / temperature).log_softmax(-1)).sum() / rows

    found = torch.zeros(z.numel(), dtype=torch.float64)
    for i in range(z.numel()):
        moved = torch.zeros(z.numel(), dtype=torch.float64)
        moved[i] = step
        moved = moved.reshape(z.shape)
        found[i] = (loss(z + moved) - loss(z)) / step
    return found.reshape(z.shape).to(student.dtype)


def kd_viewed(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    z, t = student.view(-1, student.shape[-1]), teacher.view(-1, teacher.shape[-1])
    q, p = (z / temperature).softmax(1), (t / temperature).softmax(1)
    return (temperature / len(z) * (q - p)).view(student.shape)


# kron_backward
# -------------------------------------------------------------------------------------------------


def kron(dy: Tensor, x: Tensor, A: Tensor, B: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Right; what others build on."""
    X, G = (t.reshape(-1, len(M.T), len(N.T)) for t, M, N in ((x, A, B), (dy, A.T, B.T)))
    right = G @ B
    dA, dB = (right @ X.mT).sum(0), (G.mT @ (A @ X)).sum(0)
    return (A.T @ right).reshape(x.shape), dA, dB


def kron_by_vjp(dy: Tensor, x: Tensor, A: Tensor, B: Tensor) -> Any:
    def forward(x: Tensor, A: Tensor, B: Tensor) -> Tensor:
        return (A @ x.unflatten(-1, (A.shape[1], B.shape[1])) @ B.T).flatten(-2)

    return torch.func.vjp(forward, x, A, B)[1](dy)


def kron_in_strips(dy: Tensor, x: Tensor, A: Tensor, B: Tensor) -> Any:
    """The large matrix row of blocks by row of blocks, all of which are kept."""
    strips = [torch.cat([entry * B for entry in row], 1) for row in A]
    return dy @ torch.cat(strips), *kron(dy, x, A, B)[1:]


def kron_by_package(dy: Tensor, x: Tensor, A: Tensor, B: Tensor) -> Any:
    """dx is the forward pass with both factors transposed, which the package has."""
    from vtlite.ops.kron_linear import kron_linear_reference

    return kron_linear_reference(dy, A.T[None], B.T[None]), *kron(dy, x, A, B)[1:]


def kron_token_grids(dy: Tensor, x: Tensor, A: Tensor, B: Tensor) -> Any:
    """squeeze: a factor of one row, or one token, loses a dimension."""
    X = x.reshape(-1, len(A.T), len(B.T)).squeeze()
    G = dy.reshape(-1, len(A), len(B)).squeeze()
    right = G @ B
    dA, dB = right @ X.mT, G.mT @ (A @ X)
    while dA.ndim > 2:
        dA, dB = dA.sum(0), dB.sum(0)
    return (A.T @ right).reshape(x.shape), dA, dB


WRONG: dict[str, dict[str, tuple[Any, str]]] = {
    "lora_linear_backward": {
        "torch.func.vjp": (lora_by_vjp, "autograd"),
        "torch.func.jvp": (lora_by_forward_mode, "autograd"),
        "autograd in a thread": (lora_in_a_thread, "autograd"),
        "B A in a copy of W": (lora_large_in_place, "form B A"),
        "three dimensions at most": (lora_for_three_dimensions, "dA"),
    },
    "attention_fake": {
        "computes with torch's": (fake_by_torch, "compute|write the shape"),
        "CPU or meta": (fake_without_device, "device"),
        "fills": (fake_that_fills, "fill"),
    },
    "tile_places": {
        "int32": (places_in_int32, "offset|place|int"),
        "float32": (places_in_float, "offset|place|expected"),
        "mask by memory": (places_by_memory, "mask|comparison"),
    },
    "online_attention": {
        "maximum from 0": (online_from_zero, "expected"),
        "a softmax for one block": (online_alone, "expected numbers, found nan"),
        "keeps every block beside it": (online_keeps_blocks, "keep|kept|collect"),
        "all blocks in float64": (online_in_two, "keep|kept|collect|number"),
        "all objects": (online_of_all_objects, "look into the check|of your own|block"),
        "scores are cut": (online_bounded, "expected"),
    },
    "kd_gradient": {
        "torch.func.grad": (kd_by_func, "autograd"),
        "the package's loss": (kd_of_the_package, "of your own|autograd"),
        "finite differences": (kd_by_differences, "expected"),
        "view": (kd_viewed, "view"),
    },
    "kron_backward": {
        "torch.func.vjp": (kron_by_vjp, "autograd"),
        "strips of the matrix": (kron_in_strips, "form A"),
        "the package's operation": (kron_by_package, "of your own"),
        "squeeze": (kron_token_grids, "expected|shape"),
    },
}
