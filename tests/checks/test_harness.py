"""Kinds of wrong answers, in whatever exercise: each life of the harness has one that only it
sees."""

from __future__ import annotations

import functools
import gc
import re
import sys
import traceback
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vtlite import checks
from vtlite.checks.guess import guess
from vtlite.checks.harness import AUTOGRAD_OFF, LIVES, VALUES_ONLY
from vtlite.checks.inputs import strided
from vtlite.checks.watch import Calls, numbers
from vtlite.ops.lora_linear import lora_linear_reference


def lora(x: Tensor, weight: Tensor, bias: Tensor, A: Tensor, B: Tensor, alpha: float) -> Tensor:
    return F.linear(x, weight, bias) + alpha / len(A) * (x @ A.T) @ B.T


def kd(student: Tensor, teacher: Tensor, T: float) -> Tensor:
    rows = student.numel() // student.shape[-1]
    return T / rows * ((student / T).softmax(-1) - (teacher / T).softmax(-1))


def backward(dy: Tensor, x: Tensor, W: Tensor, A: Tensor, B: Tensor, scale: float) -> Any:
    h, dh = scale * (x @ A.T), scale * (dy @ B)
    dA = dh.reshape(-1, len(A)).T @ x.reshape(-1, x.shape[-1])
    return dy @ W + dh @ A, dA, dy.reshape(-1, len(W)).T @ h.reshape(-1, len(A))


def merge(weight: Tensor, factors: Any, alpha: float) -> Tensor:
    parts = list(weight.chunk(3))
    for letter, (A, B) in factors.items():
        parts["qkv".index(letter)] = parts["qkv".index(letter)] + alpha / len(A) * (B @ A)
    return torch.cat(parts)


def dylora(x: Any, weight: Any, bias: Any, A: Any, B: Any, alpha: float, b: int) -> Tensor:
    A = torch.cat([A[: b - 1].detach(), A[b - 1 : b]])
    B = torch.cat([B[:, : b - 1].detach(), B[:, b - 1 : b]], 1)
    return F.linear(x, weight, bias) + alpha / b * (x @ A.T) @ B.T


def refused(check: Callable[[Any], None], answer: Any) -> str:
    with pytest.raises(checks.CheckFailed) as error:
        check(answer)
    assert "Likely mistake:" in str(error.value)
    return str(error.value)


def test_the_right_ones_pass() -> None:
    checks.lora_forward(lora)
    checks.kd_gradient(kd)
    checks.lora_linear_backward(backward)
    checks.lora_merge(merge)
    checks.dylora_forward(dylora)
    checks.dylora_forward(functools.partial(dylora))


# Memory, types, devices, modes
# -------------------------------------------------------------------------------------------------
def test_a_view_of_what_may_be_cut_is_refused() -> None:
    def answer(x: Tensor, *rest: Any) -> Tensor:
        return lora(x.view(-1, x.shape[-1]), *rest).view(*x.shape[:-1], -1)

    assert "use reshape" in refused(checks.lora_forward, answer)


def test_writing_into_an_argument_and_back_is_seen_where_it_is_expanded() -> None:
    def answer(x: Tensor, *rest: Any) -> Tensor:
        if not x.requires_grad:
            x.mul_(2).div_(2)
        return lora(x, *rest)

    assert "expanded" in refused(checks.lora_forward, answer)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_fixed_type_is_refused_where_any_is_promised(dtype: torch.dtype) -> None:
    def answer(student: Tensor, teacher: Tensor, T: float) -> Tensor:
        found = kd(student, teacher, T)
        return found.to(dtype) if student.dtype == torch.bfloat16 else found

    assert "with bfloat16: expected torch.bfloat16" in refused(checks.kd_gradient, answer)


def test_a_tensor_on_the_cpu_is_refused() -> None:
    def answer(weight: Tensor, factors: Any, alpha: float) -> Tensor:
        update = torch.zeros(weight.shape)
        D = len(weight) // 3
        for letter, (A, B) in factors.items():
            start = "qkv".index(letter) * D
            update[start : start + D] = alpha / len(A) * (B @ A)
        return weight + update

    assert "without device=" in refused(checks.lora_merge, answer)


def test_a_cache_by_shape_is_refused() -> None:
    kept: dict[Any, Any] = {}

    def answer(*given: Any) -> Any:
        key = tuple(t.shape for t in given[:2])
        return kept.setdefault((key, given[0].dtype, given[-1]), backward(*given))

    assert "Likely mistake" in refused(checks.lora_linear_backward, answer)


def test_hooks_that_pile_up_are_refused() -> None:
    def answer(x: Any, W: Any, bias: Any, A: Tensor, B: Tensor, alpha: float, b: int) -> Tensor:
        for t, dim in ((A, 0), (B, 1)):
            if t.requires_grad and t.is_leaf:
                mask = torch.zeros_like(t).index_fill_(dim, torch.tensor([b - 1]), 1.0)
                t.register_hook(lambda grad, mask=mask: grad * mask)
        return F.linear(x, W, bias) + alpha / b * (x @ A[:b].T) @ B[:, :b].T

    assert "earlier call" in refused(checks.dylora_forward, answer)


def test_memory_that_is_reserved_and_not_written_is_seen() -> None:
    def answer(weights: Any, start: Any, alpha: float) -> Tensor:
        total = torch.empty(())
        for name, t in start.items():
            if t.ndim > 1:
                total = total + (weights[name] - t).square().sum()
        return alpha / 2 * total

    assert "expected" in refused(checks.l2_sp_penalty, answer)


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (lambda: torch.set_grad_enabled(False), "grad mode"),
        (lambda: torch.set_default_dtype(torch.float64), "default type"),
        (lambda: torch.manual_seed(17), "seed"),
        (lambda: torch.set_num_threads(torch.get_num_threads() + 1), "number of threads"),
    ],
)
def test_what_is_global_stays_and_is_put_back(change: Callable[[], Any], what: str) -> None:
    def answer(*given: Any) -> Any:
        change()
        return lora(*given)

    before = torch.is_grad_enabled(), torch.get_default_dtype(), torch.get_num_threads()
    assert what in refused(checks.lora_forward, answer)
    assert before == (torch.is_grad_enabled(), torch.get_default_dtype(), torch.get_num_threads())
    checks.lora_forward(lora)


def test_requires_grad_of_an_argument_stays() -> None:
    def answer(x: Tensor, W: Any, bias: Any, A: Tensor, *rest: Any) -> Tensor:
        if A.is_leaf and not A.is_inference():
            A.requires_grad_(True)
        return dylora(x, W, bias, A, *rest)

    assert "requires_grad of the arguments" in refused(checks.dylora_forward, answer)


def test_a_check_runs_in_a_state_of_its_own() -> None:
    with torch.no_grad():
        checks.lora_forward(lora)
    torch.set_default_dtype(torch.float64)
    try:
        checks.l2_sp_penalty(
            lambda weights, start, alpha: (
                alpha
                / 2
                * sum((weights[n] - t).square().sum() for n, t in start.items() if t.ndim > 1)
            )
        )
        assert torch.get_default_dtype() == torch.float64
    finally:
        torch.set_default_dtype(torch.float32)


# What is said to be verified
# -------------------------------------------------------------------------------------------------
def loss(z: Tensor, t: Tensor, T: float) -> Tensor:
    p, q = (t / T).softmax(-1), (z / T).log_softmax(-1)
    return T**2 * (p * (p.log() - q)).sum(-1).mean()


def by_vjp(z: Tensor, t: Tensor, T: float) -> Tensor:
    value, pull = torch.func.vjp(lambda z: loss(z, t, T), z)
    return pull(torch.ones_like(value))[0]


def by_grad(z: Tensor, t: Tensor, T: float) -> Tensor:
    return torch.func.grad(lambda z: loss(z, t, T))(z)


def by_jacrev(z: Tensor, t: Tensor, T: float) -> Tensor:
    return torch.func.jacrev(lambda z: loss(z, t, T))(z)


def by_jacfwd(z: Tensor, t: Tensor, T: float) -> Tensor:
    return torch.func.jacfwd(lambda z: loss(z, t, T))(z)


def by_backward(z: Tensor, t: Tensor, T: float) -> Tensor:
    with torch.inference_mode(False), torch.enable_grad():
        leaf = z.clone().requires_grad_()
        loss(leaf, t.clone(), T).backward()
        return leaf.grad  # type: ignore[return-value]


def by_autograd(z: Tensor, t: Tensor, T: float) -> Tensor:
    with torch.inference_mode(False), torch.enable_grad():
        leaf = z.clone().requires_grad_()
        return torch.autograd.grad(loss(leaf, t.clone(), T), leaf)[0]


@pytest.mark.parametrize(
    "answer", [by_vjp, by_grad, by_jacrev, by_jacfwd, by_backward, by_autograd]
)
def test_no_autograd_sees_every_way_to_it(answer: Any) -> None:
    assert "use the formula" in refused(checks.kd_gradient, answer)


def formed(weight: Tensor, A: Tensor, B: Tensor, scale: float) -> list[Callable[[], Tensor]]:
    """B A, formed in four disguises."""

    def in_place() -> Tensor:
        return weight.clone().addmm_(B, A, alpha=scale)

    def row_by_row() -> Tensor:
        out = weight.clone()
        for n in range(len(out)):
            out[n] += scale * B[n] @ A
        return out

    def joined() -> Tensor:
        return weight + torch.stack([scale * row @ A for row in B])

    def copied() -> Tensor:
        return torch.empty_like(weight).copy_(weight + scale * B @ A)

    return [in_place, row_by_row, joined, copied]


@pytest.mark.parametrize("how", range(4))
def test_never_formed_sees_clones_and_what_is_written_in_place(how: int) -> None:
    def answer(x: Any, weight: Any, bias: Any, A: Any, B: Any, alpha: float) -> Tensor:
        return F.linear(x, formed(weight, A, B, alpha / len(A))[how](), bias)

    assert "you form B A" in refused(checks.lora_forward, answer)


def test_joined_factors_are_not_b_a() -> None:
    def answer(x: Any, weight: Any, bias: Any, A: Any, B: Any, alpha: float) -> Tensor:
        h = alpha / len(A) * (x @ A.T)
        return F.linear(torch.cat([x, h], -1), torch.cat([weight, B], 1), bias)

    checks.lora_forward(answer)


@pytest.mark.parametrize("keep", [lambda s: s.clone(), lambda s: s.exp(), lambda s: s[..., :1] + 0])
def test_nothing_but_sums_sees_what_grows_with_the_blocks(keep: Any) -> None:
    def answer(blocks: Any) -> Tensor:
        kept, top, total, out = [], None, 0.0, 0.0
        for s, v in blocks:
            kept.append(keep(s))
            here = s.amax(-1, keepdim=True)
            new = here if top is None else torch.maximum(top, here)
            base = torch.where(new == -torch.inf, 0.0, new)
            p = (s - base).exp()
            shrink = 0.0 if top is None else (top - base).exp()
            total, out = shrink * total + p.sum(-1, keepdim=True), shrink * out + p @ v
            top = new
        return torch.where(total > 0, out / total, 0.0)

    assert "the whole row is there again" in refused(checks.online_attention, answer)


def test_live_numbers_are_counted_once_and_forgotten_with_their_tensor() -> None:
    x = torch.ones(10)

    def answer() -> None:
        for _ in range(5):
            (x + 1).mul_(2)

    assert numbers(answer).computed == 10


# Honesty
# -------------------------------------------------------------------------------------------------
def test_the_package_s_own_operation_is_no_answer() -> None:
    def answer(x: Any, weight: Any, bias: Any, A: Any, B: Any, alpha: float) -> Tensor:
        return lora_linear_reference(x, weight, bias, A, B, alpha / len(A))

    assert "answer of your own" in refused(checks.lora_forward, answer)


def test_the_check_s_own_reference_is_no_answer() -> None:
    def by_module(x: Tensor, A: Tensor, B: Tensor) -> Tensor:
        from vtlite.checks import naive

        return naive.kron(x, A, B)

    def by_frame(x: Tensor, A: Tensor, B: Tensor) -> Tensor:
        return getattr(sys, "_get" + "frame")(3).f_globals["kron"](x, A, B)

    def by_gc(x: Tensor, A: Tensor, B: Tensor) -> Tensor:
        return next(o for o in gc.get_objects() if getattr(o, "__name__", "") == "kron")(x, A, B)

    for answer in (by_module, by_frame, by_gc):
        assert "answer of your own" in refused(checks.kron_forward, answer)


def test_a_call_of_pytorch_is_no_look_into_the_check() -> None:
    with Calls(lora) as calls:
        nn.Linear(2, 3)(torch.ones(1, 2)).sum().item()
    assert not calls.package
    assert not calls.peeked


def test_an_empty_function_is_said_to_be_empty() -> None:
    def answer(*given: Any) -> None:
        """Not yet."""

    assert "not written yet" in refused(checks.lora_merge, answer)


# Names
# -------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("inside", "words"),
    [
        (lambda name, prefix: re.match(rf"{prefix}(\.|$)", name), "re.escape"),
        (lambda name, prefix: f".{prefix}." in f".{name}.", "anywhere in the name"),
        (lambda name, prefix: name.startswith(f"{prefix}."), "whole name of a parameter"),
        (lambda name, prefix: name.split(".")[: prefix.count(".") + 2] == prefix, "Likely"),
    ],
)
def test_names_of_several_networks_tell_prefixes_apart(inside: Any, words: str) -> None:
    def answer(model: nn.Module, prefixes: tuple[str, ...]) -> int:
        for name, p in model.named_parameters():
            p.requires_grad = any(bool(inside(name, prefix)) for prefix in prefixes)
        return sum(p.numel() for p in model.parameters() if p.requires_grad)

    assert words in refused(checks.freeze_except, answer)


def test_a_tied_parameter_counts_once() -> None:
    def answer(model: nn.Module) -> int:
        for name, p in model.named_parameters():
            p.requires_grad = name.split(".")[-1] == "bias"
        named = model.named_parameters(remove_duplicate=False)
        return sum(p.numel() for _, p in named if p.requires_grad)

    assert "counts once" in refused(checks.bitfit, answer)


# Words
# -------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("body", "words"),
    [
        (lambda x, w, b, A, B, a: x @ A @ B, "inner sizes"),
        (lambda x, w, b, A, B, a: x @ w.T + A, "two shapes do not fit|inner sizes"),
        (lambda x, w, b, A, B, a: x.unknown(), "no such attribute"),
        (lambda x, w, b, A, B, a: lorra(x), "not defined"),  # type: ignore[name-defined]  # noqa: F821
        (lambda x, w, b, A, B: x, "signature"),
        (lambda x, w, b, A, B, a: x[9], "lies outside"),
        (lambda x, w, b, A, B, a: a / 0, "divide by zero"),
        (lambda x, w, b, A, B, a: {}["A"], "not in the dictionary"),
    ],
)
def test_an_error_becomes_a_sentence(body: Any, words: str) -> None:
    with pytest.raises(checks.CheckFailed, match=words):
        checks.lora_forward(body)


def test_the_student_s_own_line_is_shown_and_no_line_of_the_check() -> None:
    def answer(x: Tensor, *rest: Any) -> Tensor:
        return x @ x.new_ones(99, 1)  # my line

    with pytest.raises(checks.CheckFailed) as failed:
        checks.lora_forward(answer)
    text = "".join(traceback.format_exception(failed.value))
    assert "x @ x.new_ones(99, 1)  # my line" in str(failed.value)
    assert failed.value._render_traceback_() == [str(failed.value)]
    assert "checks/harness.py" not in text
    assert "raise failed" not in text


def test_numbers_of_numpy_are_numbers() -> None:
    checks.count_updates(
        lambda D, L, r, a, n: {
            "lora": np.int64(4 * L * r * D),
            "krona": np.float64(2 * L * (a * a + (D // a) ** 2)),
            "fact_tt": torch.tensor(2 * D * r + 12 * L * r * r),
            "compacter": n**3 + 2 * L * 3 * (D + D // 32),
        }
    )


@pytest.mark.parametrize(
    ("found", "expected", "words"),
    [
        (None, 3, "returns nothing"),
        (6, 3, "2 times too large"),
        (-3, 3, "sign"),
        (10, 3, "too large by 7"),
        (torch.tensor([2.0, 4.0]), torch.tensor([1.0, 2.0]), "2 times what it should be"),
        (torch.tensor([2.0, 3.0]), torch.tensor([1.0, 2.0]), "1 is added"),
        (torch.tensor([2.0, 1.0]), torch.tensor([1.0, 2.0]), "another order"),
        (torch.zeros(2, 3), torch.zeros(3, 2), "another order"),
        (torch.zeros(2), torch.ones(2), "zero throughout"),
        ({"a": 1, "b": 4}, {"a": 1, "b": 2}, "1 of 2 entries"),
    ],
)
def test_an_unknown_mistake_is_described(found: Any, expected: Any, words: str) -> None:
    assert words in guess(found, expected)


def test_strided_memory_is_in_no_order() -> None:
    for shape in ((3,), (2, 3), (2, 3, 4)):
        t = torch.randn(shape)
        cut = strided(t)
        assert torch.equal(cut, t)
        assert not cut.is_contiguous()
        assert cut.storage_offset() > 0
    with pytest.raises(RuntimeError, match="view"):
        strided(torch.ones(2, 3)).view(-1)


def test_a_life_that_is_left_out_has_a_reason() -> None:
    for without in (AUTOGRAD_OFF, VALUES_ONLY):
        assert set(without) <= set(LIVES)
        assert all(len(reason.split()) > 4 for reason in without.values())
