"""The instructor's kit: numbers of its sample answers, computed again; plans that fit their time."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

import vtlite as vt
from vtlite.accounting import kept_bytes
from vtlite.bench_ops import ESTIMATED

KIT = Path(__file__).parents[2] / "solutions/TEACHING.md"
TEXT = KIT.read_text(encoding="utf-8")


def question(number: str) -> str:
    return TEXT.partition(f"### {number}:")[2].partition("\n### ")[0]


@pytest.mark.parametrize("lesson", ["00", "01", "02", "03", "04", "05", "06", "07"])
def test_a_plan_has_fifty_minutes(lesson: str) -> None:
    plan = TEXT.partition(f"## Lesson {lesson} in 50 minutes")[2].partition("\n## ")[0]
    assert sum(map(int, re.findall(r"^\| (\d+) \|", plan, re.M))) == 50


@pytest.mark.parametrize(
    "number", [f"{lesson}-{n}" for lesson in ("02", "03", "04", "05", "06", "07") for n in (1, 2)]
)
def test_a_rubric_has_ten_points(number: str) -> None:
    assert sum(map(int, re.findall(r"^\| (\d+) \|", question(number), re.M))) == 10


def test_the_plans_name_lessons_that_exist_and_say_which_do_not() -> None:
    lessons = {path.name[:2] for path in (KIT.parents[1] / "notebooks").glob("[0-9]*.ipynb")}
    planned = set(re.findall(r"\*lesson (\d\d) is planned\*", TEXT))
    assert not planned & lessons
    assignments = {path.name[:2] for path in KIT.parent.glob("[0-9]*.ipynb")}
    assert set(re.findall(r"^## Lesson (\d\d)", TEXT, re.M)) <= lessons | assignments


def test_counts_of_a_vit() -> None:
    vit = vt.create_backbone("vit_base_patch16_224", device="meta")
    sizes = {name: p.numel() for name, p in vit.named_parameters()}
    head = 768 * 9 + 9
    norms, last = (
        vt.count_parameters(vt.tune(vit, m, 9))[0] - head for m in ("norm_tuning", "partial")
    )
    assert f"{norms:,} numbers, and partial" in question("02-1")
    assert f"{last:,}, which is {last / norms:.0f} times" in question("02-1")
    assert f"24 units, {24 / 36:.0%}".replace("%", " %") in question("02-1")
    assert f"14 units, {14 / 36:.0%}".replace("%", " %") in question("02-1")
    assert f"gives {12 / 18:.0%} and {8 / 18:.0%}".replace("%", " %") in question("02-1")
    biases = sum(n for name, n in sizes.items() if name.endswith(".bias"))
    assert f"trains {biases:,} biases" in question("05-2")
    assert f"{12 * 768:,}, which is {100 * 12 * 768 / biases:.1f} %" in question("05-2")


def test_lengths_of_the_gradient_at_the_logits() -> None:
    for p, words in ((1 / 9, "= 0.943"), (0.9, "= 0.106")):
        rest = [(1 - p) / 8] * 8
        assert f"= {math.hypot(1 - p, *rest):.3f}" == words
        assert words in question("02-2")


def test_what_a_prompt_costs() -> None:
    vit = vt.create_backbone("vit_base_patch16_224", device="meta")
    model = vt.tune(vit, "vpt_deep", 9, num_prompts=50)
    text = question("03-1")
    assert f"12 · 50 · 768 = {vt.count_parameters(model)[0] - (768 * 9 + 9):,}." in text
    tokens = vit.pos_embed.shape[1]
    more = (tokens + 50) / tokens
    assert f"{tokens + 50} tokens for {tokens}: {more - 1:.0%}".replace("%", " %") in text
    assert f"= {more**2:.3f}, so {more**2 - 1:.0%}".replace("%", " %") in text
    assert f"CoOp 100, CoCoOp {100 * 32:,}." in text


def test_entropies_and_means() -> None:
    text = question("03-2")
    views = torch.tensor([[0.9, 0.1], [0.1, 0.9]], dtype=torch.float64)
    each, both = (torch.special.entr(p).sum(-1).mean().item() for p in (views, views.mean(0)))
    assert f"0.1 ln 0.1 = {each:.3f}" in text
    assert f"ln 2 = {both:.3f}" in text
    for base, new in ((0.8, 0.5), (0.66, 0.62)):
        assert f"/ {base + new:.3g} = {2 * base * new / (base + new):.3f}" in text
    assert f"arithmetic {(0.8 + 0.5) / 2:.3f} and {(0.66 + 0.62) / 2:.3f}" in text
    g, u = torch.randn(2, 9, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    u = u / u.norm() * -(g @ u).sign()  # against it
    for strength in (1.0, 0.4):
        left = (g - strength * (g @ u) * u) @ u
        assert torch.isclose(left, (1 - strength) * (g @ u), atol=1e-12)


def test_zeros_are_not_no_prompts() -> None:
    """The plan says so of a zero key; and PLOT's prompts that start alike stay alike."""
    g = torch.Generator().manual_seed(0)
    q, k, v = torch.randn(3, 1, 5, 4, generator=g)
    attend = F.scaled_dot_product_attention
    longer = [torch.cat([torch.zeros(1, 2, 4), t], 1) for t in (k, v)]
    assert not torch.allclose(attend(q, k, v), attend(q, *longer))


def test_what_a_block_keeps() -> None:
    D, R, g = 768, 64, torch.Generator().manual_seed(0)

    def weight(rows: int, columns: int, trains: bool = True) -> torch.Tensor:
        return torch.randn(rows, columns, generator=g).requires_grad_(trains)

    def per_token(width: int, trains: bool, more: int = 0) -> int:
        """What a block keeps; with a bottleneck behind it, `more` wide."""
        W1, W2 = weight(4 * width, width, trains), weight(width, 4 * width, trains)
        V, U = (weight(more, width), weight(width, more)) if more else (W1, W2)
        before = weight(3, width)  # something earlier trains, so that x has a graph

        def run() -> torch.Tensor:
            x = before + 0
            y = x + F.linear(F.gelu(F.linear(x, W1)), W2)
            return y + F.linear(F.linear(y, V).relu(), U) if more else y

        return kept_bytes(run, [W1, W2, V, U, before]) // (3 * 4)

    text = question("04-1")
    full, adapter, thin = per_token(D, True), per_token(D, False, R), per_token(D // 8, True)
    assert f"9 D = {full} numbers" in text
    assert f"5 D + R = {adapter} numbers, {adapter / full:.0%}".replace("%", " %") in text
    ladder = D + thin  # a product with P keeps what it reads
    assert f"17 D / 8 = {ladder} numbers, {ladder / full:.0%}".replace("%", " %") in text


def test_which_start_learns() -> None:
    g = torch.Generator().manual_seed(0)
    x, dy = torch.randn(2, 5, 6, generator=g)

    def moves(act: Any, zero_D: bool, s: float) -> list[bool]:
        """Whether D, U and s have a gradient."""
        D, U = torch.randn(3, 6, generator=g) * (not zero_D), torch.randn(6, 3, generator=g)
        leaves = [t.requires_grad_() for t in (D, U, torch.tensor(s))]
        y = x + leaves[2] * F.linear(act(F.linear(x, D)), U)
        return [bool(t.any()) for t in torch.autograd.grad((y * dy).sum(), leaves)]

    assert moves(F.gelu, True, 1.0)[:2] == [True, False]
    assert moves(F.relu, True, 1.0)[:2] == [False, False]
    assert moves(F.relu, False, 0.0) == [False, False, True]
    vit = vt.create_backbone("vit_base_patch16_224", device="meta", num_classes=0)
    model = vt.tune(vit, "repadapter", 9, bottleneck=8, num_groups=2, attention_only=True)
    head = 768 * 9 + 9
    text = question("04-2")
    assert f"trains {(vt.count_parameters(model)[0] - head) // 12:,} numbers" in text
    assert f"fused weight {8 * (768 + 3 * 768):,}" in text
    assert f"16 · 100 · 512 = {16 * 100 * 512:,} numbers" in text


def test_ranks_and_shares() -> None:
    assert torch.equal(torch.kron(torch.eye(8), torch.eye(12)), torch.eye(96))
    g = torch.Generator().manual_seed(0)
    shares = []
    for _ in range(200):
        u, v = torch.randn(2, 96, generator=g, dtype=torch.float64)
        # A Kronecker product is a matrix of rank one after this re-arrangement.
        grid = torch.outer(u, v).view(8, 12, 8, 12).transpose(1, 2).reshape(64, 144)
        squares = torch.linalg.svdvals(grid).square()
        shares.append((squares[0] / squares.sum()).item())
    assert f"about {100 * sum(shares) / 200:.0f} % of such a matrix" in question("05-1")


def test_when_the_key_bias_is_idle() -> None:
    g = torch.Generator().manual_seed(0)
    q, k, v = torch.randn(3, 1, 3, 7, 4, generator=g, dtype=torch.float64)
    pk, pv = torch.randn(2, 1, 3, 2, 4, generator=g, dtype=torch.float64)
    b = torch.randn(3, 1, 4, generator=g, dtype=torch.float64)
    attend = F.scaled_dot_product_attention

    def idle(keys: torch.Tensor, moved: torch.Tensor, v: torch.Tensor = v, **mask: bool) -> bool:
        return torch.allclose(attend(q, keys, v, **mask), attend(q, moved, v, **mask))

    both = torch.cat([pv, v], 2)
    assert idle(k, k + b)
    assert idle(k, k + b, is_causal=True)
    assert idle(torch.cat([pk, k], 2), torch.cat([pk + b, k + b], 2), both)
    assert not idle(torch.cat([pk, k], 2), torch.cat([pk, k + b], 2), both)
    assert not idle(F.normalize(k, dim=-1), F.normalize(k + b, dim=-1))
    assert torch.allclose(attend(q, k, v + b), attend(q, k, v) + b)


def test_what_a_temperature_does() -> None:
    t, text = torch.tensor([4.0, 2.0, 0.0], dtype=torch.float64), question("06-1")

    def written(v: torch.Tensor) -> str:
        return ", ".join(f"{x:.3f}".replace("-", "−") for x in v.tolist())

    for T in (1, 4):
        p = (t / T).softmax(0)
        assert f"T = {T}: ({written(p)}), 1 − p = {1 - p[0]:.3f}" in text
        z = torch.zeros(3, dtype=torch.float64, requires_grad=True)
        loss = T**2 * F.kl_div((z / T).log_softmax(0), p, reduction="sum")
        (gradient,) = torch.autograd.grad(loss, z)
        assert f"T = {T}: ({written(gradient)})" in text
        assert f"{1 - p[0]:.3f}" in text.partition("(d) By ")[2]
    assert f"−0.693 / 16 = −{-gradient[0] / 16:.3f}" in text
    assert "(−0.667, 0, 0.667)" in text
    p = (t / 1e5).softmax(0)
    assert torch.allclose(1e5 * (1 / 3 - p), -(t - t.mean()) / 3, atol=1e-4)


def test_copies_that_part() -> None:
    g = torch.Generator().manual_seed(0)
    x, y = torch.randn(20, 3, generator=g), torch.randn(20, generator=g)
    row, out = torch.randn(3, generator=g), 1.3

    def apart(shares: tuple[float, float]) -> float:
        """How far two copies of a unit are from each other after some steps."""
        W, v = torch.stack([row, row]), out * torch.tensor(shares)
        for _ in range(5):
            leaves = [t.detach().requires_grad_() for t in (W, v)]
            loss = ((x @ leaves[0].T).relu() @ leaves[1] - y).square().mean()
            W, v = (
                t - 0.1 * d for t, d in zip(leaves, torch.autograd.grad(loss, leaves), strict=True)
            )
        return (W[0] - W[1]).abs().max().item()

    assert apart((0.5, 0.5)) == 0
    assert apart((0.3, 0.7)) > 1e-3
    text, alpha = question("06-2"), torch.zeros(6, requires_grad=True)
    (gradient,) = torch.autograd.grad(-6 * alpha.softmax(0)[0], alpha)
    assert f"= −{-gradient[0]:.3f}, and the others" in text
    assert f"= {gradient[1]:.3f}." in text
    assert f"= {gradient[1] - gradient[0]:.3f} above the others" in text


def test_bytes_and_operations() -> None:
    rows, K, N = 64 * 197, 768, 2304
    one = 2 * rows * K
    text = question("07-1")
    assert f"{one / 1e6:.1f} MB" in text
    times = [passes * one / ESTIMATED.bandwidth * 1e6 for passes in (7, 2)]
    assert f"= {times[0]:.0f} µs, against {times[1]:.0f} µs" in text
    work, moved = 2 * rows * K * N, 2 * (rows * K + N * K + rows * N)
    assert f"= {work / 1e9:.1f} G operations" in text
    assert f"= {moved / 1e6:.0f} MB; {work / moved:.0f} operations per" in text
    assert f"= {ESTIMATED.flops / ESTIMATED.bandwidth:.0f}." in text
    slow = (work / ESTIMATED.flops * 1e6, moved / ESTIMATED.bandwidth * 1e6)
    assert f"{slow[0]:.0f} µs for it, {slow[1]:.0f} µs for the bytes" in text


def test_softmax_by_hand() -> None:
    first = math.exp(1 - 3) + 1
    second = first * math.exp(3 - 4) + 1 + math.exp(2 - 4)
    wrong = first + 1 + math.exp(2 - 4)
    weight = torch.tensor([1.0, 3, 4, 2]).softmax(0)[2].item()
    text = question("07-2")
    assert f"+ 1 = {first:.3f}" in text
    assert f"+ e⁻² = {second:.3f}" in text
    assert f"= {1 / second:.3f}" == f"= {weight:.3f}"
    assert f"= {weight:.3f}" in text
    assert f"ℓ = {wrong:.3f} and the weight {1 / wrong:.3f}" in text
