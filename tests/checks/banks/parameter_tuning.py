"""Assignment 05: plausible wrong answers, each with words that the check's message must contain,
and right answers written differently."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

NOTEBOOK = "05_parameter_tuning"

# bitfit
# -------------------------------------------------------------------------------------------------


def is_bias(name: str, parameter: Tensor) -> bool:
    return name.rpartition(".")[2] == "bias"


def choose(
    rule: Any = is_bias,
    count: Any = lambda p: p.numel(),
    only_freeze: bool = False,
    only_free: bool = False,
) -> Any:
    def answer(model: nn.Module) -> int:
        for name, p in model.named_parameters():
            train = rule(name, p)
            if not (only_freeze and train) and not (only_free and not train):
                p.requires_grad_(train)
        return sum(count(p) for name, p in model.named_parameters() if rule(name, p))

    return answer


def choose_by_module(model: nn.Module) -> int:
    model.requires_grad_(False)
    biases = [m.bias for m in model.modules() if isinstance(getattr(m, "bias", None), nn.Parameter)]
    for bias in biases:
        bias.requires_grad = True
    return sum(bias.nelement() for bias in set(biases))


def choose_linear(model: nn.Module) -> int:
    model.requires_grad_(False)
    for m in model.modules():
        if isinstance(m, nn.Linear) and m.bias is not None:
            m.bias.requires_grad = True
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


def choose_and_zero(model: nn.Module) -> int:
    for name, p in model.named_parameters():
        if name.endswith(".bias"):
            nn.init.zeros_(p)
    return choose()(model)


def choose_count_all(model: nn.Module) -> int:
    choose()(model)
    return sum(p.numel() for p in model.parameters())


def choose_count_frozen(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters()) - choose()(model)


# lora_forward
# -------------------------------------------------------------------------------------------------


def lora(
    scale: Any = lambda alpha, A, B: alpha / len(A),
    frozen: float = 1.0,
    shift: float = 1.0,
    inner: Any = lambda h: h,
) -> Any:
    def answer(
        x: Tensor, weight: Tensor, bias: Tensor, A: Tensor, B: Tensor, alpha: float
    ) -> Tensor:
        return frozen * x @ weight.T + shift * bias + scale(alpha, A, B) * (inner(x @ A.T) @ B.T)

    return answer


def lora_by_einsum(
    x: Tensor, weight: Tensor, bias: Tensor, A: Tensor, B: Tensor, alpha: float
) -> Tensor:
    h = torch.einsum("...k,rk->...r", x, A)
    return F.linear(x, weight, bias).add(
        torch.einsum("...r,nr->...n", h, B), alpha=alpha / A.size(0)
    )


def lora_in_float64(
    x: Tensor, weight: Tensor, bias: Tensor, A: Tensor, B: Tensor, alpha: float
) -> Tensor:
    x, A, B = x.double(), A.double(), B.double()
    return (
        F.linear(x, weight.double(), bias.double())
        + F.linear(F.linear(x, A), B * (alpha / A.shape[0]))
    ).float()


def lora_dense(
    x: Tensor, weight: Tensor, bias: Tensor, A: Tensor, B: Tensor, alpha: float
) -> Tensor:
    return F.linear(x, weight + alpha / len(A) * B @ A, bias)


def lora_dense_product(
    x: Tensor, weight: Tensor, bias: Tensor, A: Tensor, B: Tensor, alpha: float
) -> Tensor:
    return F.linear(x, weight, bias) + alpha / len(A) * x @ (B @ A).T


def lora_scaled_whole(
    x: Tensor, weight: Tensor, bias: Tensor, A: Tensor, B: Tensor, alpha: float
) -> Tensor:
    return alpha / len(A) * lora(scale=lambda *_: 1.0)(x, weight, bias, A, B, alpha)


def lora_detached(
    x: Tensor, weight: Tensor, bias: Tensor, A: Tensor, B: Tensor, alpha: float
) -> Tensor:
    return lora()(x, weight, bias, A.detach(), B.data, alpha)


def lora_under_no_grad(*arguments: Any) -> Tensor:
    with torch.no_grad():
        return lora()(*arguments)


def lora_adds_in_place(
    x: Tensor, weight: Tensor, bias: Tensor, A: Tensor, B: Tensor, alpha: float
) -> Tensor:
    with torch.no_grad():
        weight += alpha / len(A) * B @ A
    return F.linear(x, weight, bias)


# lora_merge
# -------------------------------------------------------------------------------------------------


def merge(
    scale: Any = lambda alpha, A, B, factors: alpha / len(A),
    rows: Any = lambda letter, D, factors: slice(
        "qkv".index(letter) * D, "qkv".index(letter) * D + D
    ),
    update: Any = lambda A, B: B @ A,
    keep: float = 1.0,
    new: Any = torch.clone,
) -> Any:
    def answer(weight: Tensor, factors: dict[str, tuple[Tensor, Tensor]], alpha: float) -> Tensor:
        merged = new(weight)
        for letter, (A, B) in factors.items():
            place = rows(letter, len(weight) // 3, factors)
            merged[place] = keep * merged[place] + scale(alpha, A, B, factors) * update(A, B)
        return merged

    return answer


def merge_by_cat(weight: Tensor, factors: dict[str, tuple[Tensor, Tensor]], alpha: float) -> Tensor:
    parts = []
    for letter, part in zip("qkv", weight.chunk(3), strict=True):
        if letter in factors:
            A, B = factors[letter]
            part = torch.addmm(part, B, A, alpha=alpha / A.shape[0])
        parts.append(part)
    return torch.cat(parts)


def merge_transposed(
    weight: Tensor, factors: dict[str, tuple[Tensor, Tensor]], alpha: float
) -> Tensor:
    square = weight.shape[0] == 3 * weight.shape[1]
    return merge(update=(lambda A, B: (B @ A).T) if square else (lambda A, B: B @ A))(
        weight, factors, alpha
    )


def merge_everywhere(
    weight: Tensor, factors: dict[str, tuple[Tensor, Tensor]], alpha: float
) -> Tensor:
    return weight + sum(
        (alpha / len(A) * (B @ A).repeat(3, 1) for A, B in factors.values()),
        torch.zeros_like(weight),
    )


def merge_unless_empty(
    weight: Tensor, factors: dict[str, tuple[Tensor, Tensor]], alpha: float
) -> Tensor:
    return merge()(weight, factors, alpha) if factors else weight


# kron_forward
# -------------------------------------------------------------------------------------------------


def kron(x: Tensor, A: Tensor, B: Tensor) -> Tensor:
    return (A @ x.unflatten(-1, (A.shape[1], B.shape[1])) @ B.T).flatten(-2)


def kron_by_einsum(x: Tensor, A: Tensor, B: Tensor) -> Tensor:
    X = x.reshape(*x.shape[:-1], A.shape[1], B.shape[1])
    return torch.einsum("...pb,ap->...ab", torch.einsum("...pq,bq->...pb", X, B), A).reshape(
        *x.shape[:-1], -1
    )


def kron_row_by_row(x: Tensor, A: Tensor, B: Tensor) -> Tensor:
    parts = [F.linear(part, B) for part in x.split(B.shape[1], dim=-1)]  # one for each column of A
    return torch.cat(
        [sum(a * part for a, part in zip(row, parts, strict=True)) for row in A], dim=-1
    )


def kron_columns_in(x: Tensor, A: Tensor, B: Tensor) -> Tensor:
    return kron(x.unflatten(-1, (B.shape[1], A.shape[1])).mT.flatten(-2), A, B)


def kron_columns_out(x: Tensor, A: Tensor, B: Tensor) -> Tensor:
    return kron(x, A, B).unflatten(-1, (len(A), len(B))).mT.flatten(-2)


def kron_columns_both(x: Tensor, A: Tensor, B: Tensor) -> Tensor:
    return kron_columns_in(x, A, B).unflatten(-1, (len(A), len(B))).mT.flatten(-2)


def kron_in_place(x: Tensor, A: Tensor, B: Tensor) -> Tensor:
    y = kron(x, A, B)
    with torch.no_grad():
        x.mul_(0.5)
    return y


# count_updates
# -------------------------------------------------------------------------------------------------


def count(**wrong: Any) -> Any:
    """The right counts, or those that `wrong` replaces by its own."""

    def answer(D: int, L: int, r: int, a: int, n: int) -> dict[str, int]:
        k = {"D": D, "L": L, "r": r, "a": a, "n": n, "b": D // 32, "c": D // a}
        right = {
            "lora": lambda D, L, r, **_: 4 * L * D * r,
            "krona": lambda L, a, c, **_: 2 * L * (a * a + c * c),
            "fact_tt": lambda D, L, r, **_: 2 * D * r + 12 * L * r * r,
            "compacter": lambda D, L, b, n, **_: n**3 + 6 * L * (D + b),
        }
        return {name: formula(**k) for name, formula in (right | wrong).items()}

    return answer


def count_with_tensors(D: int, L: int, r: int, a: int, n: int) -> dict[str, int]:
    b = D // 32
    vectors = [torch.empty(s) for s in [D // n, b // n] * (2 * n) + [b, D]]
    core = torch.empty(12, r, r)
    return {
        "compacter": 2 * L * sum(map(len, vectors)) + torch.empty(n, n, n).numel(),
        "fact_tt": L * core.numel() + 2 * torch.empty(D, r).numel(),
        "krona": L * 2 * (a**2 + (D // a) ** 2),
        "lora": sum(2 * torch.empty(r, 2 * D).numel() for _ in range(L)),
    }


# ssf_merge
# -------------------------------------------------------------------------------------------------


def along(t: Tensor, weight: Tensor) -> Tensor:
    return t.reshape(-1, *[1] * (weight.ndim - 1))


def ssf(
    new_weight: Any = lambda w, s: w * s,
    new_bias: Any = lambda b, g, s: g * b + s,
    swap: bool = False,
) -> Any:
    def answer(
        weight: Tensor, bias: Tensor | None, scale: Tensor, shift: Tensor
    ) -> tuple[Tensor, Tensor]:
        scale, shift = (shift, scale) if swap else (scale, shift)
        bias = torch.zeros_like(shift) if bias is None else bias
        return new_weight(weight, along(scale, weight)), new_bias(bias, scale, shift)

    return answer


def ssf_by_einsum(
    weight: Tensor, bias: Tensor | None, scale: Tensor, shift: Tensor
) -> tuple[Tensor, Tensor]:
    return torch.einsum("o...,o->o...", weight, scale), (
        shift.clone() if bias is None else torch.addcmul(shift, scale, bias)
    )


def ssf_last_dimension(
    weight: Tensor, bias: Tensor | None, scale: Tensor, shift: Tensor
) -> tuple[Tensor, Tensor]:
    new, shift = ssf()(weight, bias, scale, shift)
    return (weight * scale if weight.shape[-1] == len(scale) else new), shift


def ssf_keeps_none(
    weight: Tensor, bias: Tensor | None, scale: Tensor, shift: Tensor
) -> tuple[Tensor, Tensor | None]:
    new, shifted = ssf()(weight, bias, scale, shift)
    return new, None if bias is None else shifted


def ssf_in_place(
    weight: Tensor, bias: Tensor | None, scale: Tensor, shift: Tensor
) -> tuple[Tensor, Tensor]:
    weight.mul_(along(scale, weight))
    return weight, ssf()(weight, bias, scale, shift)[1]


def ssf_shortcut(
    weight: Tensor, bias: Tensor | None, scale: Tensor, shift: Tensor
) -> tuple[Tensor, Tensor]:
    if bias is not None and bool((scale == 1).all()) and bool((shift == 0).all()):
        return weight, bias
    return ssf()(weight, bias, scale, shift)


def ssf_returns_the_shift(
    weight: Tensor, bias: Tensor | None, scale: Tensor, shift: Tensor
) -> tuple[Tensor, Tensor]:
    new, shifted = ssf()(weight, bias, scale, shift)
    return new, shift if bias is None else shifted


def ssf_leaves_norms(
    weight: Tensor, bias: Tensor | None, scale: Tensor, shift: Tensor
) -> tuple[Tensor, Tensor]:
    new, shifted = ssf()(weight, bias, scale, shift)
    return (new if weight.ndim > 1 else weight.clone()), shifted


# dylora_forward
# -------------------------------------------------------------------------------------------------


def dylora(
    ranks: Any = lambda b, r: slice(b),
    scale: Any = lambda alpha, b, r: alpha / b,
    low_A: bool = False,
    low_B: bool = False,
    frozen: float = 1.0,
) -> Any:
    def answer(
        x: Tensor, weight: Tensor, bias: Tensor, A: Tensor, B: Tensor, alpha: float, b: int
    ) -> Tensor:
        own = torch.arange(len(A), device=A.device) == b - 1
        A_now = A if low_A else torch.where(own[:, None], A, A.detach())
        B_now = B if low_B else torch.where(own, B, B.detach())
        chosen = ranks(b, len(A))
        return (
            frozen * F.linear(x, weight, bias)
            + scale(alpha, b, len(A)) * (x @ A_now[chosen].T) @ B_now[:, chosen].T
        )

    return answer


def dylora_in_two(
    x: Tensor, weight: Tensor, bias: Tensor, A: Tensor, B: Tensor, alpha: float, b: int
) -> Tensor:
    below = (x @ A[: b - 1].detach().mT) @ B[:, : b - 1].detach().mT
    last = (x @ A[b - 1])[..., None] * B[:, b - 1]
    return F.linear(x, weight, bias) + (below + last) * (alpha / b)


def dylora_by_cat(
    x: Tensor, weight: Tensor, bias: Tensor, A: Tensor, B: Tensor, alpha: float, b: int
) -> Tensor:
    A = torch.cat((A[: b - 1].detach(), A[b - 1 :][:1]))
    B = torch.cat((B[:, : b - 1].detach(), B[:, b - 1 :][:, :1]), dim=1)
    return torch.addmm(bias, x.reshape(-1, x.shape[-1]), (weight + alpha / b * B @ A).T).reshape(
        *x.shape[:-1], -1
    )


def dylora_without_graph_below(
    x: Tensor, weight: Tensor, bias: Tensor, A: Tensor, B: Tensor, alpha: float, b: int
) -> Tensor:
    with torch.no_grad():
        below = (x @ A[: b - 1].T) @ B[:, : b - 1].T
    return F.linear(x, weight, bias) + alpha / b * (
        below + (x @ A[b - 1 : b].T) @ B[:, b - 1 : b].T
    )


def dylora_trains_nothing(
    x: Tensor, weight: Tensor, bias: Tensor, A: Tensor, B: Tensor, alpha: float, b: int
) -> Tensor:
    return dylora()(x, weight, bias, A.detach(), B.detach(), alpha, b)


def dylora_cuts_in_place(
    x: Tensor, weight: Tensor, bias: Tensor, A: Tensor, B: Tensor, alpha: float, b: int
) -> Tensor:
    with torch.no_grad():
        A[b:] = 0
    return dylora()(x, weight, bias, A, B, alpha, b)


# private_gradient
# -------------------------------------------------------------------------------------------------


def private(
    factor: Any = lambda n, R: (R / (n + 1e-6)).clamp(max=1),
    spread: Any = lambda sigma, R, B: sigma * R / B,
    divide: bool = True,
    norms: Any = lambda g: g.norm(dim=1, keepdim=True),
) -> Any:
    def answer(per_sample: Tensor, max_norm: float, noise: Tensor, sigma: float) -> Tensor:
        B = len(per_sample)
        clipped = per_sample * factor(norms(per_sample), max_norm)
        mean = clipped.sum(0) / B + spread(sigma, max_norm, B) * noise
        return mean if divide else B * mean

    return answer


def private_by_loop(per_sample: Tensor, max_norm: float, noise: Tensor, sigma: float) -> Tensor:
    total = sigma * max_norm * noise.clone()
    for g in per_sample:
        length = math.sqrt(float(g @ g))
        total = total + (g if length <= max_norm else g * (max_norm / length))
    return total.div(per_sample.shape[0])


def private_by_renorm(per_sample: Tensor, max_norm: float, noise: Tensor, sigma: float) -> Tensor:
    return (
        torch.renorm(per_sample, p=2, dim=0, maxnorm=max_norm).sum(0) + noise * (sigma * max_norm)
    ) / len(per_sample)


def private_clips_late(total: Any) -> Any:
    def answer(per_sample: Tensor, max_norm: float, noise: Tensor, sigma: float) -> Tensor:
        B = len(per_sample)
        g = per_sample.sum(0) / (1 if total else B)
        return (
            g * min(1.0, max_norm / float(g.norm())) / (B if total else 1)
            + sigma * max_norm * noise / B
        )

    return answer


def private_clips_entries(
    per_sample: Tensor, max_norm: float, noise: Tensor, sigma: float
) -> Tensor:
    return (per_sample.clamp(-max_norm, max_norm).sum(0) + sigma * max_norm * noise) / len(
        per_sample
    )


def private_own_noise(per_sample: Tensor, max_norm: float, noise: Tensor, sigma: float) -> Tensor:
    return private()(per_sample, max_norm, torch.randn(per_sample.shape[1]), sigma)


def private_in_place(per_sample: Tensor, max_norm: float, noise: Tensor, sigma: float) -> Tensor:
    per_sample *= (max_norm / per_sample.norm(dim=1, keepdim=True).clamp(min=1e-9)).clamp(max=1)
    return (per_sample.sum(0) + sigma * max_norm * noise) / len(per_sample)


RIGHT: dict[str, list[Any]] = {
    "bitfit": [choose(), choose_by_module],
    "lora_forward": [lora(), lora_by_einsum, lora_in_float64],
    "lora_merge": [merge(), merge_by_cat],
    "kron_forward": [kron, kron_by_einsum, kron_row_by_row],
    "count_updates": [count(), count_with_tensors],
    "ssf_merge": [ssf(), ssf_by_einsum],
    "dylora_forward": [dylora(), dylora_in_two, dylora_by_cat],
    "private_gradient": [private(), private_by_loop, private_by_renorm],
}

WRONG: dict[str, dict[str, tuple[Any, str]]] = {
    "bitfit": {
        "bias anywhere": (choose(lambda n, p: "bias" in n), "last part of the name"),
        "ends in bias": (choose(lambda n, p: n.endswith("bias")), "bias' and is none"),
        "a dot before it": (choose(lambda n, p: n.endswith(".bias")), "one part alone"),
        "all vectors": (choose(lambda n, p: p.ndim == 1), "weight of a norm is a vector"),
        "no norms": (
            choose(lambda n, p: is_bias(n, p) and "norm" not in n),
            "norms have biases as well",
        ),
        "whole norms": (
            choose(lambda n, p: is_bias(n, p) or "norm" in n),
            "weights of the norms too",
        ),
        "linear layers only": (choose_linear, "nn.Linear only"),
        "the wrong way round": (choose(lambda n, p: not is_bias(n, p)), "turn it round"),
        "freezes nothing": (choose(only_free=True), "nothing was frozen"),
        "only ever freezes": (choose(only_freeze=True), "stays frozen"),
        "counts tensors": (choose(count=lambda p: 1), "numel"),
        "counts everything": (choose_count_all, "only those that train"),
        "counts the frozen": (choose_count_frozen, "count what is frozen"),
        "sets biases to zero": (choose_and_zero, "wrote to the parameters"),
    },
    "lora_forward": {
        "scale alpha": (lora(lambda alpha, A, B: alpha), "not by alpha"),
        "no scale": (lora(lambda alpha, A, B: 1.0), "is not scaled"),
        "alpha over width": (lora(lambda alpha, A, B: alpha / len(B)), "divided by the width"),
        "alpha over inputs": (lora(lambda alpha, A, B: alpha / A.shape[1]), "number of inputs"),
        "alpha times r": (lora(lambda alpha, A, B: alpha * len(A)), "multiplied by r"),
        "scaled twice": (lora(lambda alpha, A, B: (alpha / len(A)) ** 2), "applied twice"),
        "scales the layer": (lora_scaled_whole, "belongs to the update alone"),
        "no bias": (lora(shift=0.0), "bias is missing"),
        "bias twice": (lora(shift=2.0), "added twice"),
        "no frozen layer": (lora(frozen=0.0, shift=0.0), "frozen layer is missing"),
        "forms the merged matrix": (lora_dense, "apply A to x first"),
        "forms B A": (lora_dense_product, "apply A to x first"),
        "detached": (lora_detached, "no gradient reaches A"),
        "no_grad": (lora_under_no_grad, "no gradient reaches A"),
        "half detached": (lora(inner=lambda h: h.detach()), "no gradient reaches A"),
        "in place": (lora_adds_in_place, "wrote into a tensor"),
    },
    "lora_merge": {
        "scale alpha": (merge(lambda alpha, A, B, f: alpha), "not by alpha"),
        "no scale": (merge(lambda alpha, A, B, f: 1.0), "is not scaled"),
        "alpha over D": (merge(lambda alpha, A, B, f: alpha / len(B)), "divided by D"),
        "sum of ranks": (
            merge(lambda alpha, A, B, f: alpha / sum(len(a) for a, _ in f.values())),
            "sum of the ranks",
        ),
        "first rank for all": (
            merge(lambda alpha, A, B, f: alpha / len(next(iter(f.values()))[0])),
            "rank of the first letter",
        ),
        "in the order given": (
            merge(rows=lambda s, D, f: slice(list(f).index(s) * D, list(f).index(s) * D + D)),
            "whichever others",
        ),
        "backwards": (
            merge(rows=lambda s, D, f: slice("vkq".index(s) * D, "vkq".index(s) * D + D)),
            "backwards",
        ),
        "every third row": (
            merge(rows=lambda s, D, f: slice("qkv".index(s), None, 3)),
            "every third row",
        ),
        "transposed": (merge_transposed, "transposed"),
        "all thirds": (merge_everywhere, "every third got every update"),
        "replaces": (merge(keep=0.0), "frozen weight is lost"),
        "subtracts": (merge(lambda alpha, A, B, f: -alpha / len(A)), "subtracted"),
        "in place": (merge(new=lambda w: w), "wrote into a tensor"),
        "a view": (merge(new=lambda w: w.view_as(w)), "wrote into a tensor"),
        "the argument where nothing is to do": (merge_unless_empty, "the argument itself"),
    },
    "kron_forward": {
        "exchanged": (lambda x, A, B: kron(x, B, A), "A \\(x\\) B is not B \\(x\\) A"),
        "columns in": (kron_columns_in, "cut column by column"),
        "columns out": (kron_columns_out, "read column by column"),
        "columns in and out": (kron_columns_both, "A \\(x\\) B is not B \\(x\\) A"),
        "B not transposed": (lambda x, A, B: kron(x, A, B.T), "B is not transposed"),
        "A transposed": (lambda x, A, B: kron(x, A.T, B), "A is transposed, B is not"),
        "x K": (lambda x, A, B: kron(x, A.T, B.T), "both factors are transposed"),
        "only A": (lambda x, A, B: kron(x, A, torch.eye(B.shape[1])), "B is missing"),
        "only B": (lambda x, A, B: kron(x, torch.eye(A.shape[1]), B), "A is missing"),
        "torch.kron": (lambda x, A, B: x @ torch.kron(A, B).T, "you form A \\(x\\) B"),
        "one einsum for the matrix": (
            lambda x, A, B: x @ torch.einsum("ap,bq->abpq", A, B).reshape(len(A) * len(B), -1).T,
            "you form A \\(x\\) B",
        ),
        "detached": (lambda x, A, B: kron(x, A.detach(), B), "no gradient reaches A"),
        "changes x": (kron_in_place, "wrote into a tensor"),
    },
    "count_updates": {
        "lora: one factor": (
            count(lora=lambda D, L, r, **_: 2 * L * D * r),
            "each has two factors",
        ),
        "lora: q, k and v": (count(lora=lambda D, L, r, **_: 6 * L * D * r), "k has none"),
        "lora: one block": (count(lora=lambda D, L, r, **_: 4 * D * r), "there are L"),
        "lora: the product": (count(lora=lambda D, L, **_: 2 * L * D * D), "the product B A"),
        "krona: q alone": (count(krona=lambda L, a, c, **_: L * (a * a + c * c)), "q and v both"),
        "krona: the product": (
            count(krona=lambda D, L, **_: 2 * L * D * D),
            "the product A \\(x\\) B",
        ),
        "krona: A alone": (count(krona=lambda L, a, **_: 2 * L * a * a), "B is missing"),
        "krona: sides": (count(krona=lambda L, a, c, **_: 2 * L * (a + c)), "factors are squares"),
        "fact: U and V per block": (
            count(fact_tt=lambda D, L, r, **_: L * (2 * D * r + 12 * r * r)),
            "once per block",
        ),
        "fact: U and V per slice": (
            count(fact_tt=lambda D, L, r, **_: 12 * L * (2 * D * r + r * r)),
            "once per slice",
        ),
        "fact: six slices": (
            count(fact_tt=lambda D, L, r, **_: 2 * D * r + 6 * L * r * r),
            "twelve per block",
        ),
        "fact: vectors": (
            count(fact_tt=lambda D, L, r, **_: 2 * D * r + 12 * L * r),
            "a core is r x r",
        ),
        "fact: no V": (count(fact_tt=lambda D, L, r, **_: D * r + 12 * L * r * r), "V is missing"),
        "compacter: A per adapter": (
            count(compacter=lambda D, L, b, n, **_: 2 * L * (3 * (D + b) + n**3)),
            "in every adapter",
        ),
        "compacter: A per layer": (
            count(compacter=lambda D, L, b, n, **_: 2 * L * (3 * (D + b) + 2 * n**3)),
            "in every layer",
        ),
        "compacter: one A": (
            count(compacter=lambda D, L, b, n, **_: n * n + 6 * L * (D + b)),
            "n n n numbers",
        ),
        "compacter: no biases": (
            count(compacter=lambda D, L, b, n, **_: n**3 + 4 * L * (D + b)),
            "biases are missing",
        ),
        "compacter: one adapter": (
            count(compacter=lambda D, L, b, n, **_: n**3 + 3 * L * (D + b)),
            "two, after attention",
        ),
        "compacter: full rank": (
            count(compacter=lambda D, L, b, n, **_: n**3 + 2 * L * (2 * D * b // n + D + b)),
            "count the two vectors",
        ),
        "a tuple": (lambda *k: tuple(count()(*k).values()), "return \\{'lora'"),
    },
    "ssf_merge": {
        "bias not scaled": (ssf(new_bias=lambda b, g, s: b + s), "old bias is not scaled"),
        "shift scaled": (ssf(new_bias=lambda b, g, s: g * (b + s)), "shift is scaled too"),
        "no shift": (ssf(new_bias=lambda b, g, s: g * b), "shift is missing"),
        "no old bias": (ssf(new_bias=lambda b, g, s: s.clone()), "old bias is lost"),
        "bias as it was": (ssf(new_bias=lambda b, g, s: b.clone()), "bias stays as it was"),
        "weight as it was": (ssf(new_weight=lambda w, s: w.clone()), "weight is not scaled"),
        "norm's weight as it was": (ssf_leaves_norms, "a LayerNorm(.|\n)*weight is not scaled"),
        "divides": (ssf(new_weight=lambda w, s: w / s), "divided by the scale"),
        "adds": (ssf(new_weight=lambda w, s: w + s), "added to the weight"),
        "one plus scale": (
            ssf(lambda w, s: w * (1 + s), lambda b, g, s: (1 + g) * b + s),
            "1 \\+ scale",
        ),
        "exchanged": (ssf(swap=True), "exchanged"),
        "along the inputs": (ssf_last_dimension, "last dimension"),
        "None stays None": (ssf_keeps_none, "the shift needs a place"),
        "weight alone": (lambda w, b, g, s: ssf()(w, b, g, s)[0], "return \\(weight, bias\\)"),
        "in place": (ssf_in_place, "wrote into a tensor"),
        "its own argument": (ssf_shortcut, "the argument itself"),
        "the shift itself": (ssf_returns_the_shift, "the argument itself"),
    },
    "dylora_forward": {
        "all ranks": (dylora(lambda b, r: slice(r)), "all ranks are used"),
        "ordinary LoRA": (
            dylora(lambda b, r: slice(r), lambda alpha, b, r: alpha / r, True, True),
            "all ranks are used",
        ),
        "scale of all ranks": (
            dylora(scale=lambda alpha, b, r: alpha / r),
            "depends on the ranks in use",
        ),
        "scale alpha": (dylora(scale=lambda alpha, b, r: alpha), "not by alpha"),
        "rank b alone": (dylora(lambda b, r: slice(b - 1, b)), "only rank b is used"),
        "one rank too few": (dylora(lambda b, r: slice(b - 1)), "off by one"),
        "one rank too many": (dylora(lambda b, r: slice(b + 1)), "off by one"),
        "the last ranks": (dylora(lambda b, r: slice(r - b, r)), "last b ranks"),
        "no frozen layer": (dylora(frozen=0.0), "frozen layer is missing"),
        "nested dropout": (dylora(low_A=True, low_B=True), "ranks below b train too"),
        "lower A trains": (dylora(low_A=True), "ranks below b train too"),
        "lower B trains": (dylora(low_B=True), "ranks below b train too"),
        "no graph below": (dylora_without_graph_below, "pass no gradient on to x"),
        "nothing trains": (dylora_trains_nothing, "no gradient reaches A"),
        "cuts A itself": (dylora_cuts_in_place, "wrote into a tensor"),
    },
    "private_gradient": {
        "clips the sum": (private_clips_late(True), "sum of the samples is clipped"),
        "clips the mean": (private_clips_late(False), "mean of the samples is clipped"),
        "no clipping": (private(lambda n, R: 1.0), "nothing is clipped"),
        "normalises": (private(lambda n, R: R / n.clamp(min=1e-9)), "scaled to max_norm"),
        "automatic": (private(lambda n, R: R / (n + 0.01)), "automatic clipping"),
        "turned round": (
            private(lambda n, R: (R / n.clamp(min=1e-9)).clamp(min=1)),
            "wrong ones are scaled",
        ),
        "entry by entry": (private_clips_entries, "every entry is clipped"),
        "squared norm": (private(norms=lambda g: g.square().sum(1, keepdim=True)), "squared norm"),
        "norm over the batch": (
            private(norms=lambda g: g.norm(dim=0, keepdim=True)),
            "runs over the batch",
        ),
        "throws away": (private(lambda n, R: (n <= R).float()), "thrown away"),
        "noise after the mean": (
            private(spread=lambda sigma, R, B: sigma * R),
            "B times too large",
        ),
        "noise without norm": (private(spread=lambda sigma, R, B: sigma / B), "sigma max_norm / B"),
        "noise without both": (private(spread=lambda sigma, R, B: sigma), "grows with the norm"),
        "no sigma": (private(spread=lambda sigma, R, B: R / B), "sigma is missing"),
        "no noise": (private(spread=lambda sigma, R, B: 0.0), "noise is missing"),
        "noise divided twice": (
            private(spread=lambda sigma, R, B: sigma * R / B**2),
            "divided by B twice",
        ),
        "a sum": (private(divide=False), "not divided by the number"),
        "zero over zero": (private(lambda n, R: torch.where(n <= R, n / n, R / n)), "0 / 0"),
        "its own noise": (private_own_noise, "draw noise yourself"),
        "in place": (private_in_place, "wrote into a tensor"),
    },
}
