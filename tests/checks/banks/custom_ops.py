"""Assignment 07: plausible wrong answers, each with words that the check's message must contain,
and right answers written differently."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

NOTEBOOK = "07_custom_ops"

# lora_linear_backward
# -------------------------------------------------------------------------------------------------


def lora(
    update: Any = lambda s: s,
    a: Any = lambda s, r: s,
    b: Any = lambda s, r: s,
    frozen: Any = lambda s: 1.0,
    reduce: Any = lambda t: t,
    order: Any = lambda *gradients: gradients,
) -> Any:
    """With the factors of the update's share of dx, of dA, of dB and of the frozen share of dx;
    `reduce` sees x and dy as [tokens, ...]."""

    def answer(dy: Tensor, x: Tensor, weight: Tensor, A: Tensor, B: Tensor, scale: float) -> Any:
        dx = frozen(scale) * dy @ weight + update(scale) * (dy @ B) @ A
        flat_x, flat_dy = reduce(x.reshape(-1, x.shape[-1])), reduce(dy.reshape(-1, dy.shape[-1]))
        dA = a(scale, len(A)) * (flat_dy @ B).T @ flat_x
        dB = b(scale, len(A)) * flat_dy.T @ (flat_x @ A.T)
        return order(dx, dA, dB)

    return answer


def lora_mean(dy: Tensor, x: Tensor, weight: Tensor, A: Tensor, B: Tensor, scale: float) -> Any:
    dx, dA, dB = lora()(dy, x, weight, A, B, scale)
    return dx, dA / dy[..., 0].numel(), dB / dy[..., 0].numel()


def lora_per_token(
    dy: Tensor, x: Tensor, weight: Tensor, A: Tensor, B: Tensor, scale: float
) -> Any:
    dx, _, _ = lora()(dy, x, weight, A, B, scale)
    return (
        dx,
        scale * (dy @ B)[..., :, None] * x[..., None, :],
        scale * dy[..., :, None] * (x @ A.T)[..., None, :],
    )


def lora_per_image(
    dy: Tensor, x: Tensor, weight: Tensor, A: Tensor, B: Tensor, scale: float
) -> Any:
    dx, dA, dB = lora()(dy, x, weight, A, B, scale)
    if x.ndim < 2:
        return dx, dA, dB
    return dx, scale * (dy @ B).mT @ x, scale * dy.mT @ (x @ A.T)


def lora_dense(dy: Tensor, x: Tensor, weight: Tensor, A: Tensor, B: Tensor, scale: float) -> Any:
    _, dA, dB = lora()(dy, x, weight, A, B, scale)
    return dy @ (weight + scale * B @ A), dA, dB


def lora_through_dense_gradient(
    dy: Tensor, x: Tensor, weight: Tensor, A: Tensor, B: Tensor, scale: float
) -> Any:
    dW = dy.reshape(-1, dy.shape[-1]).T @ x.reshape(-1, x.shape[-1])
    return dy @ weight + scale * (dy @ B) @ A, scale * B.T @ dW, scale * dW @ A.T


def lora_by_autograd(
    dy: Tensor, x: Tensor, weight: Tensor, A: Tensor, B: Tensor, scale: float
) -> Any:
    x, A, B = (t.detach().clone().requires_grad_() for t in (x, A, B))
    with torch.enable_grad():
        y = x @ weight.T + scale * (x @ A.T) @ B.T
        return torch.autograd.grad(y, (x, A, B), dy)


def lora_in_place(dy: Tensor, x: Tensor, weight: Tensor, A: Tensor, B: Tensor, scale: float) -> Any:
    dy *= scale
    return dy @ weight / scale + (dy @ B) @ A, *lora()(dy / scale, x, weight, A, B, scale)[1:]


def lora_float(*arguments: Any) -> Any:
    return tuple(t.float() for t in lora()(*arguments))


def lora_on_cpu(dy: Tensor, x: Tensor, weight: Tensor, A: Tensor, B: Tensor, scale: float) -> Any:
    dA = torch.zeros(A.shape, dtype=A.dtype)
    dx, found, dB = lora()(dy, x, weight, A, B, scale)
    dA += found
    return dx, dA, dB


def lora_by_einsum(
    dy: Tensor, x: Tensor, weight: Tensor, A: Tensor, B: Tensor, scale: float
) -> Any:
    h = torch.einsum("...k,rk->...r", x, A) * scale
    dh = torch.einsum("...n,nr->...r", dy, B) * scale
    dx = F.linear(dy, weight.T) + F.linear(dh, A.T)
    return [dx, torch.einsum("...r,...k->rk", dh, x), torch.einsum("...n,...r->nr", dy, h)]


# attention_fake
# -------------------------------------------------------------------------------------------------


def wide(q: Tensor) -> torch.dtype:
    return torch.promote_types(q.dtype, torch.float32)


def fake(
    out: Any = lambda q, v: (*q.shape[:-1], v.shape[-1]),
    lse: Any = lambda q, k: q.shape[:-1],
    kind: Any = wide,
    **options: Any,
) -> Any:
    def answer(q: Tensor, k: Tensor, v: Tensor) -> Any:
        return q.new_empty(out(q, v), **options), q.new_empty(lse(q, k), dtype=kind(q))

    return answer


def fake_with_empty(q: Tensor, k: Tensor, v: Tensor) -> Any:
    B, H, N, _ = q.size()
    kind = torch.float64 if v.dtype is torch.float64 else torch.float32
    lse = torch.empty_strided((B, H, N), (H * N, N, 1), dtype=kind, device=k.device)
    return [torch.empty(B, H, N, v.size(3), dtype=v.dtype, device=v.device), lse]


def fake_computes(q: Tensor, k: Tensor, v: Tensor) -> Any:
    scores = q @ k.mT / q.shape[-1] ** 0.5
    return (scores.softmax(-1) @ v).contiguous(), scores.to(wide(q)).logsumexp(-1)


def fake_like(q: Tensor, k: Tensor, v: Tensor) -> Any:
    right, lse = fake()(q, k, v)
    return torch.empty_like(q) if q.shape[-1] == v.shape[-1] else right, lse


def fake_reads(q: Tensor, k: Tensor, v: Tensor) -> Any:
    return fake()(q, k, v) if q[0, 0, 0, 0].item() > -1e30 else None


def fake_reads_meta(q: Tensor, k: Tensor, v: Tensor) -> Any:
    if q.device.type == "meta":
        q.cpu()
    return fake()(q, k, v)


def fake_zeros(q: Tensor, k: Tensor, v: Tensor) -> Any:
    return q.new_zeros(*q.shape[:-1], v.shape[-1]), q.new_zeros(q.shape[:-1], dtype=wide(q))


def fake_converts(q: Tensor, k: Tensor, v: Tensor) -> Any:
    return q.new_empty(*q.shape[:-1], v.shape[-1]), q.new_empty(q.shape[:-1]).to(
        torch.float32 if q.dtype != torch.float64 else q.dtype
    )


def fake_on_cpu(q: Tensor, k: Tensor, v: Tensor) -> Any:
    return torch.empty(*q.shape[:-1], v.shape[-1], dtype=q.dtype), torch.empty(
        q.shape[:-1], dtype=wide(q)
    )


# tile_places
# -------------------------------------------------------------------------------------------------


def places(
    rows: Any = lambda i, j, BM, BN: i * BM,
    cols: Any = lambda i, j, BM, BN: j * BN,
    offset: Any = lambda r, c, N, sm, sn: r * sm + c * sn,
    inside: Any = lambda r, c, M, N: (r < M) & (c < N),
    kind: torch.dtype = torch.int64,
    give: Any = lambda offsets, mask: (offsets, mask),
) -> Any:
    def answer(i: int, j: int, BM: int, BN: int, M: int, N: int, sm: int, sn: int) -> Any:
        r = (rows(i, j, BM, BN) + torch.arange(BM, dtype=kind))[:, None]
        c = (cols(i, j, BM, BN) + torch.arange(BN, dtype=kind))[None, :]
        return give(offset(r, c, N, sm, sn).expand(BM, BN), inside(r, c, M, N).expand(BM, BN))

    return answer


def places_by_loops(
    i: int, j: int, BM: int, BN: int, M: int, N: int, stride_m: int, stride_n: int
) -> Any:
    offsets, mask = torch.zeros(BM, BN, dtype=torch.int64), torch.zeros(BM, BN, dtype=torch.bool)
    for r in range(min(BM, M - i * BM)):
        for c in range(min(BN, N - j * BN)):
            offsets[r, c] = (i * BM + r) * stride_m + (j * BN + c) * stride_n
            mask[r, c] = True
    return offsets, mask


def places_by_division(
    i: int, j: int, BM: int, BN: int, M: int, N: int, stride_m: int, stride_n: int
) -> Any:
    lane = torch.arange(BM * BN).view(BM, BN)
    rows, cols = i * BM + lane // BN, j * BN + lane % BN
    return [
        stride_m * rows.clamp(max=M - 1) + stride_n * cols.clamp(max=N - 1),
        rows.lt(M).logical_and(cols.lt(N)),
    ]


def places_flat(
    i: int, j: int, BM: int, BN: int, M: int, N: int, stride_m: int, stride_n: int
) -> Any:
    rows, cols = i * BM + torch.arange(BM), j * BN + torch.arange(BN)
    n = min(BM, BN)
    return rows[:n] * stride_m + cols[:n] * stride_n, (rows[:n] < M) & (cols[:n] < N)


def places_flat_mask(
    i: int, j: int, BM: int, BN: int, M: int, N: int, stride_m: int, stride_n: int
) -> Any:
    offsets, _ = places()(i, j, BM, BN, M, N, stride_m, stride_n)
    return offsets, offsets < M * N


def places_block_mask(
    i: int, j: int, BM: int, BN: int, M: int, N: int, stride_m: int, stride_n: int
) -> Any:
    offsets, _ = places()(i, j, BM, BN, M, N, stride_m, stride_n)
    return offsets, (torch.arange(BM)[:, None] < M) & (torch.arange(BN)[None, :] < N)


# online_attention
# -------------------------------------------------------------------------------------------------


def online(
    of_sum: Any = lambda old, new: (old - new).exp(),
    of_weighted: Any = lambda old, new: (old - new).exp(),
    begin: float = -math.inf,
    safe: bool = True,
    top: Any = lambda s: s.amax(-1, keepdim=True),
    finish: Any = lambda weighted, total: torch.where(total > 0, weighted / total, 0.0),
    every: Any = lambda weighted, total: weighted,
    blocks_of: Any = lambda blocks: blocks,
) -> Any:
    def answer(blocks: Any) -> Tensor:
        m = total = weighted = torch.zeros(())
        for n, (s, v) in enumerate(blocks_of(blocks)):
            if n == 0:
                m, total, weighted = (
                    torch.full_like(s[..., :1], begin),
                    torch.zeros_like(s[..., :1]),
                    torch.zeros_like(s[..., :1] * v[..., :1, :]),
                )
            new = torch.maximum(m, top(s))
            base = torch.where(new == -math.inf, 0.0, new) if safe else new
            p = (s - base).exp()
            # `old` below is finite where it matters: exp(-inf - base) = 0 is what an empty past
            # needs
            total = total * of_sum(m, base) + p.sum(-1, keepdim=True)
            weighted = every(weighted * of_weighted(m, base) + p @ v, total)
            m = new
        return finish(weighted, total)

    return answer


def past(old: Tensor, new: Tensor, factor: Any) -> Tensor:
    """A wrong factor, with the empty past left at 0."""
    return torch.where(old == -math.inf, 0.0, factor)


def online_with_logsumexp(blocks: Any) -> Tensor:
    """Carries the softmax so far and the logarithm of its sum."""
    out = lse = None
    for s, v in blocks:
        here = s.logsumexp(-1, keepdim=True)
        part = torch.nan_to_num(s.softmax(-1)) @ v
        if out is None or lse is None:
            out, lse = part, here
            continue
        both = torch.logaddexp(lse, here)
        share = torch.nan_to_num((here - both).exp())
        out, lse = out * (1 - share) + part * share, both
    assert out is not None
    return out


def online_without_maximum(blocks: Any) -> Tensor:
    total = weighted = torch.zeros(())
    for s, v in blocks:
        total, weighted = total + s.exp().sum(-1, keepdim=True), weighted + s.exp() @ v
    return weighted / total


def online_averaged(blocks: Any) -> Tensor:
    parts = [s.softmax(-1) @ v for s, v in blocks]
    return torch.stack(parts).mean(0)


def online_added(blocks: Any) -> Tensor:
    return sum((s.softmax(-1) @ v for s, v in blocks), torch.zeros(()))


def online_joined(blocks: Any) -> Tensor:
    kept = [(s.clone(), v.clone()) for s, v in blocks]
    p = torch.cat([s for s, _ in kept], -1).softmax(-1)
    return torch.nan_to_num(p @ torch.cat([v for _, v in kept], -2))


def online_kept(blocks: Any) -> Tensor:
    kept = list(blocks)
    return torch.cat([s for s, _ in kept], -1).softmax(-1) @ torch.cat([v for _, v in kept], -2)


def online_twice(blocks: Any) -> Tensor:
    top = torch.stack([s.amax(-1, keepdim=True) for s, _ in blocks]).amax(0)
    total = weighted = torch.zeros(())
    for s, v in blocks:
        p = (s - top).exp()
        total, weighted = total + p.sum(-1, keepdim=True), weighted + p @ v
    return weighted / total


def online_last(blocks: Any) -> Tensor:
    found = torch.zeros(())
    for s, v in blocks:
        found = s.softmax(-1) @ v
    return found


def online_all_but_last(blocks: Any) -> Tensor:
    copies = [(s.clone(), v.clone()) for s, v in blocks]
    return online()(copies[:-1] or copies)


def online_in_place(blocks: Any) -> Tensor:
    def spoiled() -> Any:
        for s, v in blocks:
            yield s, v
            s.exp_()

    return online()(spoiled())


# kd_gradient
# -------------------------------------------------------------------------------------------------


def kd(
    factor: Any = lambda T, z: T / z[..., 0].numel(),
    soft_z: Any = lambda z, T: (z / T).softmax(-1),
    soft_t: Any = lambda t, T: (t / T).softmax(-1),
) -> Any:
    return lambda student, teacher, temperature: (
        factor(temperature, student) * (soft_z(student, temperature) - soft_t(teacher, temperature))
    )


def kd_by_rows(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    out = (
        torch.empty_like(student).flatten(0, -2)
        if student.ndim > 1
        else torch.empty_like(student)[None]
    )
    C = student.shape[-1]
    for row, z, t in zip(out, student.reshape(-1, C), teacher.reshape(-1, C), strict=True):
        q, p = (torch.exp(torch.log_softmax(a / temperature, 0)) for a in (z, t))
        row.copy_((q - p) * temperature)
    return (out / len(out)).view(student.shape)


def kd_reverse(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    log_q, log_p = (student / temperature).log_softmax(-1), (teacher / temperature).log_softmax(-1)
    q, ratio = log_q.exp(), log_q - log_p
    return temperature * q * (ratio - (q * ratio).sum(-1, keepdim=True)) / student[..., 0].numel()


def kd_overflows(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    q, p = ((a / temperature).exp() for a in (student, teacher))
    rows = student[..., 0].numel()
    return temperature / rows * (q / q.sum(-1, keepdim=True) - p / p.sum(-1, keepdim=True))


def kd_by_autograd(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    z = student.detach().clone().requires_grad_()
    p = (teacher / temperature).softmax(-1)
    (
        temperature**2
        * F.kl_div((z / temperature).log_softmax(-1), p, reduction="sum")
        / z[..., 0].numel()
    ).backward()
    assert z.grad is not None
    return z.grad


def kd_in_place(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    return (
        temperature
        / student[..., 0].numel()
        * (student.div_(temperature).softmax(-1) - (teacher / temperature).softmax(-1))
    )


def kd_value(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    p = (teacher / temperature).softmax(-1)
    return temperature**2 * F.kl_div(
        (student / temperature).log_softmax(-1), p, reduction="batchmean"
    )


# kron_backward
# -------------------------------------------------------------------------------------------------


def kron(
    dX: Any = lambda X, G, A, B: A.mT @ G @ B,
    dA: Any = lambda X, G, A, B: G @ B @ X.mT,
    dB: Any = lambda X, G, A, B: G.mT @ A @ X,
    cut: Any = lambda t, rows, cols: t.unflatten(-1, (rows, cols)),
    cut_dy: Any = None,
    flat: Any = lambda t: t.flatten(-2),
    reduce: Any = lambda t: t.sum(0),
    order: Any = lambda *gradients: gradients,
) -> Any:
    def answer(dy: Tensor, x: Tensor, A: Tensor, B: Tensor) -> Any:
        X, G = cut(x, A.shape[1], B.shape[1]), (cut_dy or cut)(dy, len(A), len(B))
        dx, each_A, each_B = flat(dX(X, G, A, B)), dA(X, G, A, B), dB(X, G, A, B)
        return order(dx, *(reduce(t.reshape(-1, *t.shape[-2:])) for t in (each_A, each_B)))

    return answer


def by_columns(t: Tensor, rows: int, cols: int) -> Tensor:
    return t.unflatten(-1, (cols, rows)).mT


def kron_by_einsum(dy: Tensor, x: Tensor, A: Tensor, B: Tensor) -> Any:
    X, G = x.reshape(-1, A.shape[1], B.shape[1]), dy.reshape(-1, A.shape[0], B.shape[0])
    dx = torch.einsum("tik,ij,kl->tjl", G, A, B).reshape(x.shape)
    return [dx, torch.einsum("tik,kl,tjl->ij", G, B, X), torch.einsum("tik,ij,tjl->kl", G, A, X)]


def kron_by_loops(dy: Tensor, x: Tensor, A: Tensor, B: Tensor) -> Any:
    """Token by token, with A's and B's share of the work kept from one to the next."""
    (a, p), (b, q) = A.shape, B.shape
    dx, dA, dB = torch.empty_like(x), torch.zeros_like(A), torch.zeros_like(B)
    for row, g, t in zip(
        dx.view(-1, p * q), dy.reshape(-1, a * b), x.reshape(-1, p * q), strict=True
    ):
        X, G = t.view(p, q), g.view(a, b)
        right = G @ B  # [a, q]
        row.copy_((A.T @ right).flatten())
        dA += right @ X.T
        dB += (X.T @ A.T @ G).T
    return dx, dA, dB


def kron_dense(dy: Tensor, x: Tensor, A: Tensor, B: Tensor) -> Any:
    return dy @ torch.kron(A, B), *kron()(dy, x, A, B)[1:]


def kron_dense_gradient(dy: Tensor, x: Tensor, A: Tensor, B: Tensor) -> Any:
    (a, p), (b, q) = A.shape, B.shape
    dW = (dy.reshape(-1, a * b).T @ x.reshape(-1, p * q)).view(a, b, p, q)
    return (
        kron()(dy, x, A, B)[0],
        (dW * B[:, None]).sum((1, 3)),
        (dW * A[:, None, :, None]).sum((0, 2)),
    )


def kron_first_image(dy: Tensor, x: Tensor, A: Tensor, B: Tensor) -> Any:
    return kron(reduce=lambda t: t[-1])(dy, x, A, B)


def kron_per_token(dy: Tensor, x: Tensor, A: Tensor, B: Tensor) -> Any:
    X, G = x.unflatten(-1, (A.shape[1], B.shape[1])), dy.unflatten(-1, (len(A), len(B)))
    return (A.T @ G @ B).flatten(-2), G @ B @ X.mT, G.mT @ A @ X


def kron_in_place(dy: Tensor, x: Tensor, A: Tensor, B: Tensor) -> Any:
    found = kron()(dy, x, A, B)
    x.copy_(found[0])
    return found


def kron_by_autograd(dy: Tensor, x: Tensor, A: Tensor, B: Tensor) -> Any:
    x, A, B = (t.detach().clone().requires_grad_() for t in (x, A, B))
    with torch.enable_grad():
        y = (A @ x.unflatten(-1, (A.shape[1], B.shape[1])) @ B.T).flatten(-2)
        return torch.autograd.grad(y, (x, A, B), dy)


def kron_float(*arguments: Any) -> Any:
    return tuple(t.float() for t in kron()(*arguments))


RIGHT: dict[str, list[Any]] = {
    "lora_linear_backward": [lora(), lora_by_einsum],
    "attention_fake": [fake(), fake_with_empty],
    "tile_places": [places(), places_by_loops, places_by_division],
    "online_attention": [online(), online_with_logsumexp],
    "kd_gradient": [kd(), kd_by_rows],
    "kron_backward": [kron(), kron_by_einsum, kron_by_loops],
}

WRONG: dict[str, dict[str, tuple[Any, str]]] = {
    "lora_linear_backward": {
        "dx without the update": (lora(update=lambda s: 0.0), "update's share is missing"),
        "dx without the frozen layer": (
            lora(frozen=lambda s: 0.0),
            "frozen layer's share is missing",
        ),
        "dx not scaled": (lora(update=lambda s: 1.0), "share is not scaled"),
        "dx scaled twice": (lora(update=lambda s: s * s), "share is scaled twice"),
        "dx scaled whole": (lora(frozen=lambda s: s), "everything is scaled"),
        "dA not scaled": (lora(a=lambda s, r: 1.0), "scale is missing in dA"),
        "dA scaled twice": (lora(a=lambda s, r: s * s), "scale counts once in dA"),
        "dA divided by the rank": (lora(a=lambda s, r: s / r), "divide by the rank"),
        "dB not scaled": (lora(b=lambda s, r: 1.0), "scale is missing in dB"),
        "dB scaled twice": (lora(b=lambda s, r: s * s), "scale counts once in dB"),
        "dB is zero": (lora(b=lambda s, r: 0.0), "dB is zero"),
        "mean over tokens": (lora_mean, "mean over the tokens"),
        "last token": (lora(reduce=lambda t: t[-1:]), "one token alone"),
        "per token": (lora_per_token, "one gradient per token"),
        "per image": (lora_per_image, "one gradient per token"),
        "dA and dB exchanged": (
            lora(order=lambda dx, dA, dB: (dx, dB, dA)),
            "order is \\(dx, dA, dB\\)",
        ),
        "dA and dB transposed": (lora(order=lambda dx, dA, dB: (dx, dA.T, dB.T)), "transposed"),
        "a gradient of the weight": (
            lora(order=lambda *g: (*g, None)),
            "what is frozen has no gradient",
        ),
        "forms B A": (lora_dense, "you form B A"),
        "forms dy^T x": (lora_through_dense_gradient, "you form B A, or dy\\^T x"),
        "by autograd": (lora_by_autograd, "let autograd do it"),
        "in place": (lora_in_place, "wrote into a tensor"),
        "always float32": (lora_float, "type is lost"),
        "zeros on the CPU": (lora_on_cpu, "without device="),
    },
    "attention_fake": {
        "q's width": (fake(out=lambda q, v: q.shape), "width is v's e"),
        "v's rows": (fake(out=lambda q, v: v.shape), "N rows from q"),
        "the scores": (fake(out=lambda q, v: (*q.shape[:-1], v.shape[-2])), "shape of the scores"),
        "tokens before heads": (
            fake(out=lambda q, v: (q.shape[0], q.shape[2], q.shape[1], v.shape[3])),
            "heads come before tokens",
        ),
        "lse with a last 1": (fake(lse=lambda q, k: (*q.shape[:-1], 1)), "no last dimension of 1"),
        "lse of keys": (fake(lse=lambda q, k: k.shape[:-1]), "N, not S"),
        "lse per head": (fake(lse=lambda q, k: q.shape[:2]), "not per head"),
        "lse in half precision": (fake(kind=lambda q: q.dtype), "kept in float32"),
        "lse always float32": (fake(kind=lambda q: torch.float32), "float64 stays float64"),
        "out in float32": (fake(dtype=torch.float32), "type of its inputs"),
        "exchanged": (lambda q, k, v: fake()(q, k, v)[::-1], "out comes first"),
        "out alone": (lambda q, k, v: fake()(q, k, v)[0], "return \\(out, lse\\)"),
        "computes": (fake_computes, "compute the attention itself"),
        "fills with zeros": (fake_zeros, "fill the tensors"),
        "converts": (fake_converts, "conversion or a copy"),
        "empty_like": (fake_like, "copies the strides"),
        "reads a value": (fake_reads, "read a value"),
        "copies from meta": (fake_reads_meta, "no values to read"),
        "on the CPU": (fake_on_cpu, "without device="),
    },
    "tile_places": {
        "ids exchanged": (
            places(lambda i, j, BM, BN: j * BM, lambda i, j, BM, BN: i * BN),
            "ids are exchanged",
        ),
        "block sizes exchanged": (
            places(lambda i, j, BM, BN: i * BN, lambda i, j, BM, BN: j * BM),
            "block sizes are exchanged",
        ),
        "no program": (places(lambda *_: 0, lambda *_: 0), "program's place is missing"),
        "id not multiplied": (
            places(lambda i, j, BM, BN: i, lambda i, j, BM, BN: j),
            "not at row i",
        ),
        "ids from 1": (
            places(lambda i, j, BM, BN: (i - 1) * BM, lambda i, j, BM, BN: (j - 1) * BN),
            "count from 0",
        ),
        "no mask": (places(inside=lambda r, c, M, N: (r >= 0) & (c >= 0)), "nothing is masked"),
        "mask turned round": (
            places(inside=lambda r, c, M, N: (r >= M) | (c >= N)),
            "turned round",
        ),
        "at most M": (places(inside=lambda r, c, M, N: (r <= M) & (c <= N)), "last row is M - 1"),
        "below M - 1": (
            places(inside=lambda r, c, M, N: (r < M - 1) & (c < N - 1)),
            "part of the tensor",
        ),
        "rows only": (
            places(inside=lambda r, c, M, N: (r < M) & (c >= 0)),
            "columns are not masked",
        ),
        "columns only": (
            places(inside=lambda r, c, M, N: (r >= 0) & (c < N)),
            "rows are not masked",
        ),
        "or": (places(inside=lambda r, c, M, N: (r < M) | (c < N)), "&, not |"),
        "M and N exchanged": (
            places(inside=lambda r, c, M, N: (r < N) & (c < M)),
            "exchanged in the mask",
        ),
        "one mask for the offset": (places_flat_mask, "compare the offset with M N"),
        "mask of the place in the tile": (places_block_mask, "place in the tile"),
        "strides exchanged": (
            places(offset=lambda r, c, N, sm, sn: r * sn + c * sm),
            "strides are exchanged",
        ),
        "contiguous": (places(offset=lambda r, c, N, sm, sn: r * N + c), "take N as the stride"),
        "columns next to each other": (
            places(offset=lambda r, c, N, sm, sn: r * sm + c),
            "columns have a stride",
        ),
        "rows next to each other": (
            places(offset=lambda r, c, N, sm, sn: r + c * sn),
            "rows have a stride",
        ),
        "int32": (places(kind=torch.int32), "too many for int32"),
        "int32, converted too late": (
            places(kind=torch.int32, give=lambda o, m: (o.long(), m)),
            "multiply in int64",
        ),
        "a diagonal": (places_flat, "broadcasting"),
        "transposed": (places(give=lambda o, m: (o.T, m.T)), "rows go down"),
        "exchanged": (places(give=lambda o, m: (m, o)), "return \\(offsets, mask\\)"),
        "offsets alone": (places(give=lambda o, m: o), "return \\(offsets, mask\\)"),
    },
    "online_attention": {
        "no factor": (
            online(lambda o, n: past(o, n, 1.0), lambda o, n: past(o, n, 1.0)),
            "sum and weighted sum keep",
        ),
        "no factor of the sum": (
            online(of_sum=lambda o, n: past(o, n, 1.0)),
            "the sum keeps its old scale",
        ),
        "no factor of the weighted sum": (
            online(of_weighted=lambda o, n: past(o, n, 1.0)),
            "the weighted sum keeps",
        ),
        "factor turned round": (
            online(lambda o, n: past(o, n, (n - o).exp()), lambda o, n: past(o, n, (n - o).exp())),
            "factor is turned round",
        ),
        "no maximum": (online_without_maximum, "subtract the running maximum"),
        "maximum starts at 0": (online(begin=0.0), "start at -inf"),
        "one maximum for all rows": (
            online(top=lambda s: s.amax().expand_as(s[..., :1])),
            "maximum of its own",
        ),
        "masked blocks": (online(safe=False), "-inf - \\(-inf\\)"),
        "masked rows": (online(finish=lambda w, t: w / t), "masked throughout gives zeros"),
        "averages": (online_averaged, "they are averaged"),
        "adds": (online_added, "they are added"),
        "divides in every block": (
            online(every=lambda w, t: torch.where(t > 0, w / t, 0.0), finish=lambda w, t: w),
            "once, at the end",
        ),
        "never divides": (online(finish=lambda w, t: w), "never divide"),
        "last block only": (online_last, "only the last block"),
        "all but the last": (online_all_but_last, "last block is missing"),
        "joins copies": (online_joined, "join them"),
        "keeps the blocks": (online_kept, "its memory is gone"),
        "two passes": (online_twice, "through the blocks twice"),
        "keeps no dimension": (lambda blocks: online()(blocks)[..., 0], "keepdim"),
        "always float32": (lambda blocks: online()(blocks).float(), "type is lost"),
        "in place": (online_in_place, "wrote into a block"),
        "returns both": (online(finish=lambda w, t: (w, t)), "return weighted sum / sum"),
    },
    "kd_gradient": {
        "sign": (lambda z, t, T: -kd()(z, t, T), "sign is turned"),
        "no T^2": (kd(factor=lambda T, z: 1 / T / z[..., 0].numel()), "T\\^2 is missing"),
        "T^2": (kd(factor=lambda T, z: T * T / z[..., 0].numel()), "1 / T is missing"),
        "no T": (kd(factor=lambda T, z: 1 / z[..., 0].numel()), "factor T is missing"),
        "no mean": (kd(factor=lambda T, z: T), "mean over the rows is missing"),
        "mean over entries": (kd(factor=lambda T, z: T / z.numel()), "divide by all entries"),
        "first dimension": (
            kd(factor=lambda T, z: T / len(z)),
            "not the first alone|divide by all entries",
        ),
        "first dimension of a batch of tokens": (
            kd(factor=lambda T, z: T / (len(z) if z.ndim > 1 else 1)),
            "not the first alone",
        ),
        "student not softened": (
            kd(soft_z=lambda z, T: z.softmax(-1)),
            "student's logits are not divided",
        ),
        "teacher not softened": (
            kd(soft_t=lambda t, T: t.softmax(-1)),
            "teacher's logits are not divided",
        ),
        "neither softened": (
            kd(soft_z=lambda z, T: z.softmax(-1), soft_t=lambda t, T: t.softmax(-1)),
            "neither is divided",
        ),
        "multiplied": (
            kd(soft_z=lambda z, T: (z * T).softmax(-1), soft_t=lambda t, T: (t * T).softmax(-1)),
            "multiplied by T",
        ),
        "softmax over rows": (
            kd(soft_z=lambda z, T: (z / T).softmax(0), soft_t=lambda t, T: (t / T).softmax(0)),
            "runs over the rows",
        ),
        "reverse": (kd_reverse, "student and teacher are exchanged"),
        "hard label": (
            kd(soft_t=lambda t, T: F.one_hot(t.argmax(-1), t.shape[-1]).to(t.dtype)),
            "best class as a label",
        ),
        "squared error": (lambda z, t, T: (z - t) / z[..., 0].numel(), "squared error"),
        "exp of large logits": (kd_overflows, "subtracts the maximum"),
        "by autograd": (kd_by_autograd, "let autograd do it"),
        "the loss": (kd_value, "shape of its tensor"),
        "in place": (kd_in_place, "wrote into a tensor"),
        "always float32": (lambda *arguments: kd()(*arguments).float(), "type is lost"),
    },
    "kron_backward": {
        "A transposed": (
            kron(dX=lambda X, G, A, B: (A if len(A) == len(A.T) else A.mT) @ G @ B),
            "A is transposed",
        ),
        "B transposed": (
            kron(dX=lambda X, G, A, B: A.mT @ G @ (B.mT if len(B) == len(B.T) else B)),
            "B is transposed",
        ),
        "forward again": (
            kron(dX=lambda X, G, A, B: A @ G @ B.mT if X.shape == G.shape else A.mT @ G @ B),
            "that is the forward pass",
        ),
        "dA without B": (
            kron(dA=lambda X, G, A, B: G @ X.mT if len(B) == len(B.T) else G @ B @ X.mT),
            "B is missing",
        ),
        "dB without A": (
            kron(dB=lambda X, G, A, B: G.mT @ X if len(A) == len(A.T) else G.mT @ A @ X),
            "A is missing",
        ),
        "x by columns": (
            kron(cut=by_columns, cut_dy=lambda t, a, b: t.unflatten(-1, (a, b))),
            "x is cut column by column",
        ),
        "dy by columns": (kron(cut_dy=by_columns), "dy is cut column by column"),
        "both by columns": (kron(cut=by_columns), "dy is cut column by column"),
        "dX by columns": (kron(flat=lambda t: t.mT.flatten(-2)), "dX is read column by column"),
        "mean over tokens": (kron(reduce=lambda t: t.mean(0)), "mean over the tokens"),
        "one token": (kron_first_image, "one token alone"),
        "per token": (kron_per_token, "one gradient per token"),
        "exchanged": (kron(order=lambda dx, dA, dB: (dx, dB, dA)), "order is \\(dx, dA, dB\\)"),
        "transposed": (kron(order=lambda dx, dA, dB: (dx, dA.T, dB.T)), "transposed"),
        "two of three": (kron(order=lambda dx, dA, dB: (dA, dB)), "return \\(dx, dA, dB\\)"),
        "forms A (x) B": (kron_dense, "you form A \\(x\\) B"),
        "forms the dense gradient": (kron_dense_gradient, "or its gradient"),
        "by autograd": (kron_by_autograd, "let autograd do it"),
        "in place": (kron_in_place, "wrote into a tensor"),
        "always float32": (kron_float, "type is lost"),
    },
}
