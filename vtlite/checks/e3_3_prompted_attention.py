"""Exercise 3.3, `prompted_attention`."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from vtlite.checks.base import copies, expect, fail, passed, randn, same, untouched
from vtlite.checks.harness import Answer, check, lives, same_gradients
from vtlite.checks.inputs import BESIDE, tokens_beside
from vtlite.checks.naive import attention, projected

Lives = Callable[[], None]  # what is run after all values


def _both(x: Tensor, P: Tensor) -> Tensor:
    """The prompts before the tokens of each image: [B, P + N, D]."""
    return torch.stack([torch.cat([P, image]) for image in x])


def _right(x: Tensor, P: Tensor, weight: Tensor, bias: Tensor | None, heads: int) -> Tensor:
    """Prompts as tokens among tokens, and what comes out at their places thrown away."""
    q, k, v = (projected(_both(x, P), weight, bias, i) for i in range(3))
    return attention(q, k, v, heads)[:, len(P) :]


@check
def prompted_attention(student: Answer) -> None:
    """3.3: `prompted_attention(x, P, weight, bias, heads)` -> what the image's tokens read of one
    another and of the prompts, whose keys and values are made once."""
    later: list[Lives] = []
    for seed, B, N, T, D, heads in BESIDE:
        for with_bias in (True, False):
            later.append(_prompt_case(student, seed, B, N, T, D, heads, with_bias))
    x, P, weight, bias = randn(5, (16, 3, 12), (40, 12), (36, 12), (36,))
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        student(x, P, weight, bias, 1)
    count = counter.get_total_flops()
    expect(
        count < 300_000,
        f"expected fewer than 300000 operations in products of matrices, found {count}",
        "keys and values of the prompts are computed for each image anew, though they are the same"
        " for all, or the prompts have queries: project x and P by themselves, then expand",
    )
    for run in later:
        run()
    passed(
        "prompted_attention",
        "as prompts among the tokens",
        "one softmax over prompts and tokens",
        "no queries of the prompts",
        "the heads",
        "with and without a bias",
        "keys and values of the prompts made once",
        "gradients of x and P and the projection",
        "any type and device",
        "arguments untouched",
    )


def _prompt_case(
    student: Answer, seed: int, B: int, N: int, T: int, D: int, heads: int, with_bias: bool
) -> Lives:
    given = tokens_beside(seed, B, N, T, D, with_bias)
    x, P, weight, shift = given.values()
    tensors = {name: t for name, t in given.items() if t is not None}
    before = copies(tensors)
    found = student(*given.values(), heads)
    untouched(tensors, before)
    right = _right(x, P, weight, shift, heads)
    case = f"x {list(x.shape)}, {T} prompts, {heads} heads{'' if with_bias else ', no bias'}"
    q, k, v = (projected(x, weight, shift, i) for i in range(3))
    pq, pk, pv = (torch.stack([projected(P, weight, shift, i) for _ in x]) for i in range(3))
    raw = torch.stack([P for _ in x])
    if isinstance(found, Tensor) and found.shape == (B, T + N, D):
        fail(
            f"expected shape {[B, N, D]}, found {list(found.shape)}",
            "the prompts ask, too: only the image's tokens have queries",
        )

    def read(
        prompt_keys: Tensor,
        prompt_values: Tensor,
        q: Tensor = q,
        k: Tensor = k,
        v: Tensor = v,
        **wrong: Any,
    ) -> Tensor:
        keys, values = torch.cat([prompt_keys, k], 1), torch.cat([prompt_values, v], 1)
        return attention(q, keys, values, heads, **wrong)

    def among(tokens: Tensor) -> Tensor:
        q, k, v = (projected(tokens, weight, shift, i) for i in range(3))
        return attention(q, k, v, heads)

    alone, prompts_alone = attention(q, k, v, heads), attention(q, pk, pv, heads)
    mistakes = {
        "the prompts are not seen: they are keys and values beside those of the image": alone,
        "the tokens see the prompts alone, and not one another": prompts_alone,
        "there are two softmaxes, whose results are added; prompts and tokens share one": alone
        + prompts_alone,
        "there are two softmaxes, whose results are averaged; prompts and tokens share one": (
            alone + prompts_alone
        )
        / 2,
        "the prompts are keys alone: their values are missing, or zero": read(pk, 0 * pv),
        "the prompts are values alone: their keys are missing, or zero": read(0 * pk, pv),
        "P itself is key and value; it goes through the rows of weight for them": read(raw, raw),
        "P itself is the key; it goes through the rows of weight for keys": read(raw, pv),
        "P itself is the value; it goes through the rows of weight for values": read(pk, raw),
        "keys and values of the prompts are exchanged": read(pv, pk),
        "the queries' rows of weight make the prompts' keys": read(pq, pv),
        "the queries' rows of weight make the prompts' values": read(pk, pq),
        "the rows for queries and keys make keys and values of the prompts: they are the second and"
        " the third part": read(pq, pk),
        "the factor is missing: scores are divided by sqrt(D / H)": read(
            pk, pv, factor=lambda d, D: 1.0
        ),
        "the scores are divided by sqrt(D); a head is D / H wide": read(
            pk, pv, factor=lambda d, D: D**-0.5
        ),
        "the scores are divided by D / H; it is its root": read(pk, pv, factor=lambda d, D: 1 / d),
        "the scores are multiplied by sqrt(D / H)": read(pk, pv, factor=lambda d, D: d**0.5),
        "a head takes every H-th channel; its D / H channels are neighbours": read(
            pk, pv, strided=True
        ),
        "the softmax runs over the queries; it runs over the keys": read(pk, pv, over=0),
        "the heads are missing: each has scores of its own": attention(
            q, torch.cat([pk, k], 1), torch.cat([pv, v], 1), 1
        ),
        "queries and keys are exchanged: the rows of weight are q, k, v": read(pq, pv, k, q, v),
        "keys and values are exchanged: the rows of weight are q, k, v": read(pv, pk, q, v, k),
        "values and queries are exchanged: the rows of weight are q, k, v": read(pk, pq, v, k, q),
        "the skip is added; this is attention alone": x + right,
        "the prompts are added to the tokens": among(x + P.mean(0)),
        "these are the places of the prompts; those of the tokens are asked": among(_both(x, P))[
            :, :N
        ],
        "the first image's keys and values serve all images": read(
            pk, pv, q, torch.stack([k[0] for _ in x]), torch.stack([v[0] for _ in x])
        ),
        "the prompts count twice": attention(
            q, torch.cat([pk, pk, k], 1), torch.cat([pv, pv, v], 1), heads
        ),
    }
    if with_bias:
        bare = [torch.stack([projected(P, weight, None, i) for _ in x]) for i in range(3)]
        mistakes |= {
            "the bias is missing": _right(x, P, weight, None, heads),
            "the bias is missing in the prompts' keys and values": read(bare[1], bare[2]),
            "the bias is missing in the prompts' keys": read(bare[1], pv),
            "the bias is missing in the prompts' values": read(pk, bare[2]),
        }
    same(f"the output for {case}", found, right, mistakes, tolerance=2e-5)

    def of(function: Any) -> Any:
        return lambda *tensors: function(*tensors, *(() if with_bias else (None,)), heads)

    same_gradients(of(student), of(_right), tensors, " ".join(tensors))
    return partial(lives, student, _right, given | {"heads": heads})
