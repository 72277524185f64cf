"""Checks of assignment 05, parameter tuning."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vtlite.checks.base import copies, expect, fail, passed, randn, same, stays_small, untouched
from vtlite.checks.naive import dense, kron, product

_Function = Callable[..., Any]
_DETACHED = "something detached it (detach, item, data or no_grad), so it would never train"


# What several checks share
# -------------------------------------------------------------------------------------------------
def _new_memory(found: Tensor, given: Mapping[str, Tensor]) -> None:
    shared = [
        name
        for name, t in given.items()
        if found.untyped_storage().data_ptr() == t.untyped_storage().data_ptr()
    ]
    expect(
        not shared,
        f"expected a new tensor, found one that shares its memory with {shared[:1]}",
        "you return the argument itself or a view of it; a later training step would change both",
    )


def _gradients(function: _Function, arguments: dict[str, Any], wanted: str) -> dict[str, Tensor]:
    """The gradients of a fixed weighted sum of what `function` returns; zero where none arrives."""
    leaves = {name: arguments[name].clone().requires_grad_() for name in wanted.split()}
    out = function(*(arguments | leaves).values())
    zeros = {name: torch.zeros_like(t) for name, t in leaves.items()}
    if not out.requires_grad:
        return zeros
    (weights,) = randn(99, tuple(out.shape))
    grads = torch.autograd.grad((out * weights).sum(), list(leaves.values()), allow_unused=True)
    return {
        name: zeros[name] if grad is None else grad
        for name, grad in zip(leaves, grads, strict=True)
    }


def _same_gradients(
    student: _Function,
    naive: _Function,
    arguments: dict[str, Any],
    wanted: str,
    wrong: dict[str, _Function] | None = None,
) -> None:
    found, expected = _gradients(student, arguments, wanted), _gradients(naive, arguments, wanted)
    mistakes = {
        sentence: _gradients(function, arguments, wanted)
        for sentence, function in (wrong or {}).items()
    }
    for name, gradient in expected.items():
        same(
            f"the gradient of {name}",
            found[name],
            gradient,
            {
                **{sentence: value[name] for sentence, value in mistakes.items()},
                f"no gradient reaches {name}: {_DETACHED}": torch.zeros_like(gradient),
            },
        )


# 5.1
# -------------------------------------------------------------------------------------------------
class _Toy(nn.Module):
    """Everything that looks like a bias and is none, and biases of all kinds of layers."""

    def __init__(self) -> None:
        super().__init__()
        self.patch_embed = nn.Conv2d(3, 4, 2)
        self.relative_position_bias_table = nn.Parameter(torch.ones(5, 2))
        self.blocks = nn.ModuleList(self.block() for _ in range(2))
        self.bias_gate = nn.Linear(4, 3)
        self.norm = nn.BatchNorm1d(4)
        self.temperature = nn.Parameter(torch.tensor(2.0))
        self.head = nn.Linear(4, 6)

    @staticmethod
    def block() -> nn.Module:
        block = nn.ModuleDict(
            {"norm1": nn.LayerNorm(4), "qkv": nn.Linear(4, 12), "proj": nn.Linear(4, 4, bias=False)}
        )
        block.register_parameter("position_bias", nn.Parameter(torch.ones(7)))
        return block


def bitfit(student: Callable[[nn.Module], int]) -> None:
    """5.1: `bitfit(model)` leaves only the biases trainable and returns how many numbers that
    are."""
    for frozen in (
        "",
        "head.bias",
        "weight",
    ):  # as it came, with a frozen bias, with frozen weights
        _bitfit_case(student, frozen)
    passed(
        "bitfit",
        "flags of every parameter",
        "biases of layers and of norms",
        "names that only look like a bias",
        "the count",
        "values untouched",
    )


def _bitfit_case(student: _Function, frozen: str) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = _Toy()
    for name, parameter in model.named_parameters():
        parameter.requires_grad = not (frozen and name.endswith(frozen))
    before = {name: t.clone() for name, t in model.state_dict().items()}
    returned = student(model)
    kinds = {
        name: model.get_submodule(name.rpartition(".")[0]) for name, _ in model.named_parameters()
    }
    flags = {name: p.requires_grad for name, p in model.named_parameters()}

    def rule(choose: Callable[[str], bool]) -> bool:
        return flags == {name: choose(name) for name in flags}

    def bias(name: str) -> bool:
        return name.split(".")[-1] == "bias"

    wrong = [name for name in flags if flags[name] != bias(name)]
    if wrong:
        likely = {
            "'bias' stands in the name of a table of positions or of a whole module too: look at the last part of the name": rule(
                lambda n: "bias" in n
            ),
            "position_bias ends in 'bias' and is none: the last part of the name must be 'bias', so let the ending start with a dot": rule(
                lambda n: n.endswith("bias")
            ),
            "you take every vector; the weight of a norm is a vector too, and no bias": rule(
                lambda n: before[n].ndim == 1
            ),
            "norms have biases as well, and BitFit trains them": rule(
                lambda n: bias(n) and "norm" not in n
            ),
            "you train the weights of the norms too; BitFit trains biases alone": rule(
                lambda n: bias(n) or "norm" in n
            ),
            "you look at nn.Linear only: convolutions and norms have biases": rule(
                lambda n: bias(n) and isinstance(kinds[n], nn.Linear)
            ),
            "you froze the biases and train the rest: turn it round": rule(lambda n: not bias(n)),
            "nothing was frozen: set requires_grad to False for all that is no bias": all(
                flags.values()
            ),
            "what was frozen before stays frozen: set requires_grad to True for a bias": all(
                not flags[n] for n in wrong
            ),
            "set the flag of every parameter, in both directions": True,
        }
        fail(
            f"expected requires_grad = {bias(wrong[0])} for {wrong[0]}, found {flags[wrong[0]]}",
            next(sentence for sentence, match in likely.items() if match),
        )
    count = sum(p.numel() for name, p in model.named_parameters() if bias(name))
    same(
        "the number returned",
        returned,
        count,
        {
            "you return how many tensors train; count their elements with numel()": sum(
                map(bias, flags)
            ),
            "you count all parameters; count only those that train": sum(
                p.numel() for p in model.parameters()
            ),
            "you count what is frozen; count what trains": (
                sum(p.numel() for p in model.parameters()) - count
            ),
        },
    )
    changed = [name for name, t in model.state_dict().items() if not torch.equal(t, before[name])]
    expect(
        not changed,
        f"expected the values to stay as they were, found {changed[:1]} changed",
        "you wrote to the parameters",
    )


# 5.2
# -------------------------------------------------------------------------------------------------
def _lora(x: Tensor, weight: Tensor, bias: Tensor, A: Tensor, B: Tensor, alpha: float) -> Tensor:
    return dense(x, weight + alpha / len(A) * product(A, B), bias)


def lora_forward(
    student: Callable[[Tensor, Tensor, Tensor, Tensor, Tensor, float], Tensor],
) -> None:
    """5.2: `lora_forward(x, weight, bias, A, B, alpha)` = x W^T + b + alpha / r (x A^T) B^T, with B
    A never formed."""
    for seed, lead, N, K, r, alpha in (
        (0, (2, 3), 4, 5, 2, 3.0),
        (1, (1,), 7, 3, 3, 0.5),
        (2, (), 5, 6, 1, -4.0),
    ):
        x, weight, bias, A, B = randn(seed, (*lead, K), (N, K), (N,), (r, K), (N, r))
        arguments: dict[str, Any] = {
            "x": x,
            "weight": weight,
            "bias": bias,
            "A": A,
            "B": B,
            "alpha": alpha,
        }
        given = {name: t for name, t in arguments.items() if isinstance(t, Tensor)}
        before = copies(given)
        found = student(*arguments.values())
        untouched(given, before)
        plain, update = dense(x, weight, 0.0), dense(x, product(A, B), 0.0)
        same(
            f"the output for x {list(x.shape)}, weight {N} x {K}, rank {r}, alpha {alpha}",
            found,
            _lora(*arguments.values()),
            {
                "the update is scaled by alpha / r, not by alpha": plain + alpha * update + bias,
                "the update is not scaled: it has the factor alpha / r": plain + update + bias,
                "alpha is divided by the width; r is the number of rows of A": (
                    plain + alpha / N * update + bias
                ),
                "alpha is divided by the number of inputs; r is the number of rows of A": (
                    plain + alpha / K * update + bias
                ),
                "alpha is multiplied by r; divide": plain + alpha * r * update + bias,
                "the scale is applied twice": plain + (alpha / r) ** 2 * update + bias,
                "the scale belongs to the update alone, not to the frozen layer": (
                    alpha / r * (plain + update + bias)
                ),
                "the bias is missing": plain + alpha / r * update,
                "the bias is added twice": plain + alpha / r * update + 2 * bias,
                "the frozen layer is missing: LoRA adds to x W^T + b": alpha / r * update,
                "the update is missing": plain + bias,
            },
        )
        _same_gradients(student, _lora, arguments, "A B x")
    x, weight, bias, A, B = randn(3, (2, 3, 48), (40, 48), (40,), (2, 48), (40, 2))
    large = {"x": x, "weight": weight, "bias": bias, "A": A, "B": B, "alpha": 4.0}
    stays_small(
        student,
        large,
        40 * 48,
        "you form B A, as large as W itself; apply A to x first, then B to the result",
    )
    passed(
        "lora_forward",
        "values for any leading shape",
        "the scale alpha / r",
        "gradients of A, B and x",
        "B A never formed",
        "arguments untouched",
    )


# 5.3
# -------------------------------------------------------------------------------------------------
def lora_merge(
    student: Callable[[Tensor, dict[str, tuple[Tensor, Tensor]], float], Tensor],
) -> None:
    """5.3: `lora_merge(weight, factors, alpha)` adds the updates of some of q, k, v to the fused
    weight [3 D, K]."""
    for case in (
        (0, 5, 5, {"q": 2, "v": 2}, 6.0),
        (1, 3, 5, {"v": 2}, 1.0),
        (2, 5, 3, {"v": 3, "k": 1, "q": 2}, -2.0),
        (3, 2, 3, {}, 1.0),
    ):
        _merge_case(student, *case)
    passed(
        "lora_merge",
        "the rows of q, k and v",
        "other rows unchanged",
        "alpha / r with each one's own rank",
        "a new tensor",
        "arguments untouched",
    )


def _merge_case(
    student: _Function, seed: int, D: int, K: int, ranks: dict[str, int], alpha: float
) -> None:
    (weight,) = randn(seed, (3 * D, K))
    factors = {
        letter: tuple(randn(10 * seed + i, (r, K), (D, r)))
        for i, (letter, r) in enumerate(ranks.items(), 1)
    }
    given = {"weight": weight} | {
        f"{'AB'[i]} of {letter}": t for letter, pair in factors.items() for i, t in enumerate(pair)
    }
    before = copies(given)
    found = student(weight, factors, alpha)
    untouched(given, before)

    def merged(
        rows: Callable[[str], Any] = lambda letter: slice(
            "qkv".index(letter) * D, ("qkv".index(letter) + 1) * D
        ),
        scale: Callable[[str], float] = lambda letter: alpha / ranks[letter],
        keep: float = 1.0,
        update: Callable[[Tensor, Tensor], Tensor] = product,
    ) -> Tensor:
        out = weight.clone()
        for letter, (A, B) in factors.items():
            out[rows(letter)] = keep * out[rows(letter)] + scale(letter) * update(A, B)
        return out

    order = list(ranks)
    mistakes = {
        "the update is scaled by alpha / r, not by alpha": merged(scale=lambda _: alpha),
        "the update is not scaled: it has the factor alpha / r": merged(scale=lambda _: 1.0),
        "alpha is divided by D; r is the number of rows of A": merged(scale=lambda _: alpha / D),
        "alpha is divided by the sum of the ranks; each letter has its own r": merged(
            scale=lambda _: alpha / sum(ranks.values())
        ),
        "alpha is divided by the rank of the first letter; each letter has its own r": merged(
            scale=lambda _: alpha / ranks[order[0]]
        ),
        "q, k, v lie one below the other in this order, and every letter keeps its third, whichever others are given": merged(
            rows=lambda letter: slice(order.index(letter) * D, (order.index(letter) + 1) * D)
        ),
        "you went through the thirds backwards: q is the first, v the last": merged(
            rows=lambda letter: slice((2 - "qkv".index(letter)) * D, (3 - "qkv".index(letter)) * D)
        ),
        "you took every third row; q, k, v lie one below the other, D rows each": merged(
            rows=lambda letter: slice("qkv".index(letter), None, 3)
        ),
        "the frozen weight is lost: the update is added to it": merged(keep=0.0),
        "the update is subtracted": merged(scale=lambda letter: -alpha / ranks[letter]),
    }
    if D == K:
        mistakes["the update is transposed: it is B A, [D, K], and weight is [out, in]"] = merged(
            update=lambda A, B: product(A, B).T
        )
    if len(factors) == 2:
        every = weight.clone()
        for letter, (A, B) in factors.items():
            for start in range(3):
                every[start * D : (start + 1) * D] += alpha / ranks[letter] * product(A, B)
        mistakes["every third got every update; each letter has its own D rows"] = every
    same(
        f"the merged weight [3 x {D}, {K}] for {', '.join(ranks) or 'no letter'}",
        found,
        merged(),
        mistakes,
    )
    _new_memory(found, given)


# 5.4
# -------------------------------------------------------------------------------------------------
def kron_forward(student: Callable[[Tensor, Tensor, Tensor], Tensor]) -> None:
    """5.4: `kron_forward(x, A, B)` = x (A (x) B)^T, with the large matrix never formed."""
    cases = (
        (0, (2,), 3, 3, 3, 3),
        (1, (2, 3), 2, 3, 4, 5),
        (2, (1,), 4, 1, 2, 3),
        (3, (), 1, 5, 3, 2),
    )
    for seed, lead, a, p, b, q in cases:
        x, A, B = randn(seed, (*lead, p * q), (a, p), (b, q))
        arguments = {"x": x, "A": A, "B": B}
        before = copies(arguments)
        found = student(x, A, B)
        untouched(arguments, before)
        columns = x.unflatten(-1, (q, p)).mT.flatten(-2)
        expected = kron(x, A, B)
        mistakes = {
            "the factors are exchanged: A (x) B is not B (x) A. A works on the rows of the grid, B on its columns": kron(
                x, B, A
            ),
            "x is cut column by column; X [p, q] has x[0], ..., x[q - 1] in its first row": kron(
                columns, A, B
            ),
            "the result is read column by column; A X B^T is [a, b], flattened row by row": (
                expected.unflatten(-1, (a, b)).mT.flatten(-2)
            ),
        }
        if a == p and b == q:
            mistakes |= {
                "B is not transposed: (A (x) B) x = vec(A X B^T)": kron(x, A, B.T),
                "A is transposed, B is not: (A (x) B) x = vec(A X B^T)": kron(x, A.T, B),
                "both factors are transposed: that is x (A (x) B), without the transpose of a linear layer": kron(
                    x, A.T, B.T
                ),
                "B is missing: a Kronecker product works with both factors": kron(
                    x, A, torch.eye(b)
                ),
                "A is missing: a Kronecker product works with both factors": kron(
                    x, torch.eye(a), B
                ),
            }
        same(
            f"the output for x {list(x.shape)}, A {a} x {p}, B {b} x {q}", found, expected, mistakes
        )
        _same_gradients(student, kron, arguments, "A B x")
    x, A, B = randn(4, (3, 180), (12, 10), (16, 18))
    stays_small(
        student,
        {"x": x, "A": A, "B": B},
        A.numel() * B.numel(),
        "you form A (x) B, with every pair of entries; cut x into a grid instead, and multiply it"
        " from both sides",
    )
    passed(
        "kron_forward",
        "values entry by entry",
        "rows and columns of both factors",
        "any leading shape",
        "gradients of A, B and x",
        "the matrix never formed",
    )


# 5.5
# -------------------------------------------------------------------------------------------------
def count_updates(student: Callable[[int, int, int, int, int], dict[str, int]]) -> None:
    """5.5: `count_updates(D, L, r, a, n)` -> how many numbers LoRA, KronA, FacT-TT and Compacter
    train."""
    for D, L, r, a, n in ((768, 12, 16, 24, 4), (96, 6, 4, 8, 3), (160, 3, 5, 10, 5)):
        b = D // 32
        shapes: dict[str, list[tuple[int, ...]]] = {
            "lora": [],
            "krona": [],
            "fact_tt": [(D, r), (r, D)],
            "compacter": [(n, n)] * n,
        }
        for _ in range(L):
            for _ in ("q", "v"):
                shapes["lora"] += [(r, D), (D, r)]
                shapes["krona"] += [(a, a), (D // a, D // a)]
            shapes["fact_tt"] += [(r, r)] * 12
            for _ in ("after attention", "after the MLP"):
                shapes["compacter"] += [(D // n, 1), (1, b // n), (b // n, 1), (1, D // n)] * n + [
                    (b,),
                    (D,),
                ]
        expected = {
            name: sum(math.prod(shape) for shape in found) for name, found in shapes.items()
        }
        case = f"D = {D}, L = {L}, r = {r}, a = {a}, n = {n}"
        found = student(D, L, r, a, n)
        expect(
            isinstance(found, dict) and found.keys() == expected.keys(),
            f"expected a dict with the keys {sorted(expected)}, found"
            f" {sorted(found) if isinstance(found, dict) else found!r}",
            "return {'lora': ..., 'krona': ..., 'fact_tt': ..., 'compacter': ...}",
        )
        same(
            f"LoRA, {case}",
            found["lora"],
            expected["lora"],
            {
                "half of it: q and v both have an update, and each has two factors": (
                    expected["lora"] // 2
                ),
                "a quarter of it: q and v both have an update, and each has two factors": (
                    expected["lora"] // 4
                ),
                "q and v have an update here, k has none": expected["lora"] // 2 * 3,
                "one block is counted; there are L": expected["lora"] // L,
                "you count the product B A; A and B are what trains": 2 * L * D * D,
            },
            tolerance=1e-9,
        )
        same(
            f"KronA, {case}",
            found["krona"],
            expected["krona"],
            {
                "q and v both have an update": expected["krona"] // 2,
                "one block is counted; there are L": expected["krona"] // L,
                "you count the product A (x) B; its factors are what trains": 2 * L * D * D,
                "B is missing: it is D / a x D / a": 2 * L * a * a,
                "A is missing: it is a x a": 2 * L * (D // a) ** 2,
                "the factors are squares: a a + (D / a)(D / a) numbers": 2 * L * (a + D // a),
            },
            tolerance=1e-9,
        )
        same(
            f"FacT-TT, {case}",
            found["fact_tt"],
            expected["fact_tt"],
            {
                "U and V are counted once per block; the whole model has one of each": (
                    L * (2 * D * r + 12 * r * r)
                ),
                "U and V are counted once per slice; the whole model has one of each": (
                    12 * L * (2 * D * r + r * r)
                ),
                "fc1 and fc2 have four D x D slices each, and attention four: twelve per block": (
                    2 * D * r + 6 * L * r * r
                ),
                "attention has four slices, and so have fc1 and fc2: twelve per block, not four": (
                    2 * D * r + 4 * L * r * r
                ),
                "a core is r x r": 2 * D * r + 12 * L * r,
                "U and V are missing": 12 * L * r * r,
                "V is missing: U and V have D r numbers each": D * r + 12 * L * r * r,
                "the cores of one block are counted; there are L blocks": 2 * D * r + 12 * r * r,
            },
            tolerance=1e-9,
        )
        per = 3 * (D + b)
        same(
            f"Compacter, {case}",
            found["compacter"],
            expected["compacter"],
            {
                "the n matrices A_i are counted in every adapter; the whole model shares them": (
                    2 * L * (per + n**3)
                ),
                "the n matrices A_i are counted in every layer of every adapter; the whole model shares them": (
                    2 * L * (per + 2 * n**3)
                ),
                "the n matrices A_i are counted in every block; the whole model shares them": (
                    2 * L * per + L * n**3
                ),
                "the shared matrices A_i are missing": 2 * L * per,
                "there are n matrices A_i of n x n: n n n numbers": 2 * L * per + n * n,
                "the biases are missing: b of the first layer and D of the second": (
                    2 * L * 2 * (D + b) + n**3
                ),
                "one adapter is counted per block; there are two, after attention and after the MLP": (
                    L * per + n**3
                ),
                "B_i is s_i t_i, of rank one; count the two vectors, not their product": (
                    2 * L * (2 * D * b // n + D + b) + n**3
                ),
                "there are n pairs s_i, t_i in a layer": 2 * L * (2 * (D + b) // n + D + b) + n**3,
            },
            tolerance=1e-9,
        )
    passed("count_updates", "LoRA", "KronA", "FacT-TT", "Compacter", "each on three networks")


# 5.6
# -------------------------------------------------------------------------------------------------
def ssf_merge(
    student: Callable[[Tensor, Tensor | None, Tensor, Tensor], tuple[Tensor, Tensor]],
) -> None:
    """5.6: `ssf_merge(weight, bias, scale, shift)` -> the weight and bias of scale * operation(x) +
    shift."""

    def linear(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
        return F.linear(x, w, b)

    def norm(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
        return F.layer_norm(x, (len(w),), w, b)

    def conv(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
        return F.conv2d(x, w, b, groups=x.shape[1] // w.shape[1])

    _ssf_case(student, "a linear layer", linear, (4, 4), (2, 3, 4), 0)
    _ssf_case(student, "a linear layer", linear, (3, 5), (1, 5), 1)
    _ssf_case(student, "a linear layer without a bias", linear, (5, 2), (4, 2), 2, with_bias=False)
    _ssf_case(student, "a LayerNorm", norm, (6,), (2, 3, 6), 3)
    _ssf_case(student, "a convolution", conv, (4, 3, 2, 4), (2, 3, 5, 6), 4)
    _ssf_case(student, "a depth-wise convolution", conv, (5, 1, 3, 2), (1, 5, 4, 4), 5)
    weight, bias = randn(6, (3, 4), (3,))
    for t in student(weight, bias, torch.ones(3), torch.zeros(3)):
        _new_memory(t, {"weight": weight, "bias": bias})
    passed(
        "ssf_merge",
        "linear layers",
        "LayerNorm",
        "convolutions",
        "a layer without a bias",
        "new tensors, arguments untouched",
    )


def _ssf_case(
    student: _Function,
    kind: str,
    operation: _Function,
    shape: tuple[int, ...],
    images: tuple[int, ...],
    seed: int,
    with_bias: bool = True,
) -> None:
    weight, bias, scale, shift, x = randn(seed, shape, shape[:1], shape[:1], shape[:1], images)
    given = {"weight": weight, "scale": scale, "shift": shift} | (
        {"bias": bias} if with_bias else {}
    )
    before = copies(given)
    returned = student(weight, bias if with_bias else None, scale, shift)
    untouched(given, before)
    expect(
        isinstance(returned, tuple | list) and len(returned) == 2,
        f"expected two tensors, found {type(returned).__name__}",
        "return (weight, bias)",
    )
    bias = bias if with_bias else torch.zeros_like(bias)
    for name, found, like in zip(("weight", "bias"), returned, (weight, bias), strict=True):
        expect(
            isinstance(found, Tensor),
            f"{kind}: expected a tensor as {name}, found {type(found).__name__}",
            "a layer without a bias counts as one with a bias of zeros; the shift needs a place",
        )
        expect(
            found.shape == like.shape,
            f"{kind}: expected a {name} of shape {list(like.shape)}, found {list(found.shape)}",
            "there is one scale per output channel, the first dimension of weight; give it as many"
            " trailing ones as weight needs",
        )

    def channels(t: Tensor) -> Tensor:
        return t.movedim(1, -1) if len(shape) == 4 else t

    plain = operation(x, weight, bias)
    expected = channels(plain).clone()
    for c in range(shape[0]):  # the two numbers of one channel after the other
        expected[..., c] = scale[c] * expected[..., c] + shift[c]

    def output(w: Tensor, b: Tensor) -> Tensor:
        return channels(operation(x, w, b))

    spread = scale.view(-1, *[1] * (len(shape) - 1))
    mistakes = {
        "the old bias is not scaled: scale (W x + b) + shift has scale b in it": output(
            spread * weight, bias + shift
        ),
        "the shift is scaled too; only the old bias is": output(
            spread * weight, scale * (bias + shift)
        ),
        "the shift is missing in the new bias": output(spread * weight, scale * bias),
        "the old bias is lost: it is scaled, and the shift is added": output(
            spread * weight, shift
        ),
        "the bias stays as it was: it is scaled, and the shift is added": output(
            spread * weight, bias
        ),
        "the weight is not scaled": output(weight, scale * bias + shift),
        "the weight is divided by the scale": output(weight / spread, scale * bias + shift),
        "the scale is added to the weight; it multiplies": output(
            weight + spread, scale * bias + shift
        ),
        "the scale is used as 1 + scale; here it is the factor itself": output(
            (1 + spread) * weight, (1 + scale) * bias + shift
        ),
        "scale and shift are exchanged": output(
            shift.view_as(spread) * weight, shift * bias + scale
        ),
    }
    if len(shape) > 1 and shape[-1] == shape[0]:
        mistakes[
            "the scale went along the last dimension, the inputs; it has one number per output, the"
            " first dimension"
        ] = output(weight * scale, scale * bias + shift)
    same(
        f"the output of {kind} with the merged weight {list(shape)}",
        output(*returned),
        expected,
        mistakes,
        tolerance=2e-5,
    )
    for t in returned:
        _new_memory(t, given)


# 5.7
# -------------------------------------------------------------------------------------------------
def _only(t: Tensor, b: int, dim: int) -> Tensor:
    """Ranks 1 to b of a factor, of which the b-th alone has a gradient."""
    return torch.cat([t.narrow(dim, 0, b - 1).detach(), t.narrow(dim, b - 1, 1)], dim)


def _dylora(
    x: Tensor, weight: Tensor, bias: Tensor, A: Tensor, B: Tensor, alpha: float, b: int
) -> Tensor:
    return dense(x, weight + alpha / b * product(_only(A, b, 0), _only(B, b, 1)), bias)


def dylora_forward(
    student: Callable[[Tensor, Tensor, Tensor, Tensor, Tensor, float, int], Tensor],
) -> None:
    """5.7: `dylora_forward(x, weight, bias, A, B, alpha, b)` uses the first b ranks and trains the
    b-th alone."""

    def nested(
        x: Tensor, weight: Tensor, bias: Tensor, A: Tensor, B: Tensor, alpha: float, b: int
    ) -> Tensor:
        return dense(x, weight + alpha / b * product(A[:b], B[:, :b]), bias)

    def cut(
        x: Tensor, weight: Tensor, bias: Tensor, A: Tensor, B: Tensor, alpha: float, b: int
    ) -> Tensor:
        below = dense(x, alpha / b * product(A[: b - 1], B[:, : b - 1]), 0.0).detach()
        return dense(x, weight + alpha / b * product(A[b - 1 : b], B[:, b - 1 : b]), bias) + below

    wrong = {
        "ranks below b train too; rank b alone learns: detach the lower rows of A and the lower columns of B": (
            nested
        ),
        "the ranks below b pass no gradient on to x: detach the rows of A and the columns of B, not their product with x": (
            cut
        ),
    }
    cases = (
        (0, (2, 3), 4, 6, 5, 3, 2.0),
        (1, (1,), 3, 5, 4, 1, 1.5),
        (2, (5,), 6, 3, 3, 3, -4.0),
        (3, (), 5, 4, 6, 2, 8.0),
    )
    for seed, lead, N, K, r, b, alpha in cases:
        x, weight, bias, A, B = randn(seed, (*lead, K), (N, K), (N,), (r, K), (N, r))
        arguments: dict[str, Any] = {
            "x": x,
            "weight": weight,
            "bias": bias,
            "A": A,
            "B": B,
            "alpha": alpha,
            "b": b,
        }
        given = {name: t for name, t in arguments.items() if isinstance(t, Tensor)}
        before = copies(given)
        found = student(*arguments.values())
        untouched(given, before)
        plain = dense(x, weight, bias)

        def update(ranks: slice, A: Tensor = A, B: Tensor = B, x: Tensor = x) -> Tensor:
            return dense(x, product(A[ranks], B[:, ranks]), 0.0)

        first = update(slice(b))
        same(
            f"the output for x {list(x.shape)}, {r} ranks, b = {b}, alpha = {alpha}",
            found,
            plain + alpha / b * first,
            {
                "all ranks are used; take the first b": plain + alpha / b * update(slice(r)),
                "all ranks are used, with the scale of all; take the first b": (
                    plain + alpha / r * update(slice(r))
                ),
                "the scale is alpha / b: it depends on the ranks in use, not on all of them": (
                    plain + alpha / r * first
                ),
                "the update is scaled by alpha / b, not by alpha": plain + alpha * first,
                "only rank b is used; the forward pass takes ranks 1 to b": (
                    plain + alpha / b * update(slice(b - 1, b))
                ),
                "off by one: ranks count from 1, so b ranks are [:b]": (
                    plain + alpha / b * update(slice(b - 1))
                ),
                "off by one: ranks count from 1, so b ranks are [:b], not [:b + 1]": (
                    plain + alpha / b * update(slice(b + 1))
                ),
                "off by one: ranks count from 1, so b ranks are [:b], and the scale alpha / b": (
                    plain + alpha / (b + 1) * update(slice(b + 1))
                ),
                "the last b ranks are used; take the first": (
                    plain + alpha / b * update(slice(r - b, r))
                ),
                "the frozen layer is missing: the update is added to x W^T + b": alpha / b * first,
            },
        )
        _same_gradients(student, _dylora, arguments, "A B x", wrong)
    passed(
        "dylora_forward",
        "the first b ranks",
        "the scale alpha / b",
        "gradients of rank b alone",
        "the gradient of x",
        "arguments untouched",
    )


# 5.8
# -------------------------------------------------------------------------------------------------
def private_gradient(student: Callable[[Tensor, float, Tensor, float], Tensor]) -> None:
    """5.8: `private_gradient(per_sample, max_norm, noise, sigma)` clips each sample, adds noise
    once, and divides by the batch."""
    for seed, B, P, R, sigma in (
        (0, 5, 7, 0.5, 0.8),
        (1, 4, 3, 1.5, 0.5),
        (2, 1, 6, 0.7, 2.0),
        (3, 3, 4, 50.0, 0.0),
    ):
        per_sample, noise = randn(seed, (B, P), (P,))
        per_sample = per_sample * torch.linspace(0.1, 2, B)[:, None] if B > 1 else per_sample
        if seed == 1:
            per_sample[2] = 0
        _private_case(student, per_sample, R, noise, sigma)
    passed(
        "private_gradient",
        "each sample clipped, short ones untouched",
        "noise once, sigma times the norm",
        "the mean over the batch",
        "a sample without a gradient",
        "arguments untouched",
    )


def _private_case(
    student: _Function, per_sample: Tensor, R: float, noise: Tensor, sigma: float
) -> None:
    given = {"per_sample": per_sample, "noise": noise}
    before = copies(given)
    found = student(per_sample, R, noise, sigma)
    untouched(given, before)
    B = len(per_sample)
    if isinstance(found, Tensor):
        expect(
            not bool(found.isnan().any()),
            "expected numbers, found NaN",
            "a sample without a gradient has norm zero, and 0 / 0 is no number: clamp, or add a"
            " tiny number to the norm",
        )
        expect(
            torch.equal(found, student(per_sample, R, noise, sigma)),
            "expected the same result for the same arguments, found another",
            "you draw noise yourself; use the tensor that you were given",
        )

    def norm(row: Tensor) -> float:
        return math.sqrt(sum(v * v for v in row.tolist()))

    def mean(factor: Callable[[Tensor], float], of: Tensor = per_sample) -> Tensor:
        total = torch.zeros(of.shape[1])
        for row in of:
            total = total + factor(row) * row
        return total / B

    def clip(row: Tensor) -> float:
        return 1.0 if norm(row) <= R else R / norm(row)

    clipped, spread = mean(clip), sigma * R * noise / B
    average = per_sample.mean(0)
    by_column = torch.stack([column * clip(column) for column in per_sample.T], 1)
    same(
        f"the gradient of {B} samples, max_norm {R}, sigma {sigma}",
        found,
        clipped + spread,
        {
            "the sum of the samples is clipped; clip every sample before you add them": (
                clip(B * average) * average + spread
            ),
            "the mean of the samples is clipped; clip every sample before you add them": (
                clip(average) * average + spread
            ),
            "nothing is clipped": average + spread,
            "every sample is scaled to max_norm; those that are shorter stay as they are": (
                mean(lambda row: R / max(norm(row), 1e-9)) + spread
            ),
            "that is automatic clipping, R / (norm + 0.01); here short samples stay as they are": (
                mean(lambda row: R / (norm(row) + 0.01)) + spread
            ),
            "the wrong ones are scaled: long samples shrink, short ones stay": (
                mean(lambda row: max(1.0, R / max(norm(row), 1e-9))) + spread
            ),
            "every entry is clipped by itself; scale the whole sample, so that its direction stays": (
                per_sample.clamp(-R, R).mean(0) + spread
            ),
            "the squared norm is compared with max_norm; take its root": (
                mean(lambda row: min(1.0, R / max(norm(row) ** 2, 1e-9))) + spread
            ),
            "the norm runs over the batch; it runs over the parameters of one sample": (
                by_column.mean(0) + spread
            ),
            "samples that are too long are thrown away; scale them": (
                mean(lambda row: float(norm(row) <= R)) + spread
            ),
            "the noise is B times too large: it is added once to the sum, and divided by B with it": (
                clipped + B * spread
            ),
            "the noise is added to the wrong place: its spread is sigma max_norm / B": (
                clipped + sigma * noise / B
            ),
            "the noise has the spread sigma max_norm, so it grows with the norm; and it is divided by B": (
                clipped + sigma * noise
            ),
            "sigma is missing: the spread of the noise is sigma max_norm": clipped + R * noise / B,
            "the noise is missing": clipped,
            "the sum is not divided by the number of samples": B * (clipped + spread),
            "the noise is divided by B twice": clipped + spread / B,
        },
    )
