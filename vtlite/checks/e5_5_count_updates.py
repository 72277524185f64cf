"""Exercise 5.5, `count_updates`."""

from __future__ import annotations

import math

from vtlite.checks.base import expect, passed, same
from vtlite.checks.harness import (
    Answer,
    check,
)


@check
def count_updates(student: Answer) -> None:
    """5.5: `count_updates(D, L, r, a, n)` -> how many numbers LoRA, KronA, FacT-TT and Compacter
    train."""
    for D, L, r, a, n in ((768, 12, 16, 24, 3), (1024, 5, 6, 16, 4), (192, 7, 5, 8, 2)):
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
