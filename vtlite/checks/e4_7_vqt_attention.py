"""Exercise 4.7, `vqt_attention`."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from vtlite.checks.base import copies, expect, passed, same, untouched
from vtlite.checks.harness import Answer, check, lives, same_gradients
from vtlite.checks.inputs import BESIDE, tokens_beside
from vtlite.checks.naive import attention, projected


def _right(
    x: Tensor, P: Tensor, weight: Tensor, bias: Tensor | None, heads: int
) -> tuple[Tensor, Tensor]:
    q, k, v = (projected(x, weight, bias, i) for i in range(3))
    own = torch.stack([projected(P, weight, bias, 0) for _ in x])
    return attention(q, k, v, heads), attention(own, k, v, heads)


@check
def vqt_attention(student: Answer) -> None:
    """4.7: `vqt_attention(x, P, weight, bias, heads)` -> (out, read): attention of the image's
    tokens, untouched, and what the queries of P read of them."""
    for seed, B, N, T, D, heads in BESIDE:
        for with_bias in (True, False):
            _query_case(student, seed, B, N, T, D, heads, with_bias)
    passed(
        "vqt_attention",
        "the image's tokens untouched",
        "what the queries read",
        "keys and values of the image alone",
        "the heads",
        "with and without a bias",
        "gradients of P",
        "any type and device",
        "arguments untouched",
    )


def _query_case(
    student: Answer, seed: int, B: int, N: int, T: int, D: int, heads: int, with_bias: bool
) -> None:
    given = tokens_beside(seed, B, N, T, D, with_bias)
    x, P, weight, shift = given.values()
    tensors = {name: t for name, t in given.items() if t is not None}
    before = copies(tensors)
    found = student(*given.values(), heads)
    untouched(tensors, before)
    expect(
        isinstance(found, tuple | list) and len(found) == 2,
        f"expected two tensors, found {type(found).__name__}",
        "return (out, read)",
    )
    right = _right(x, P, weight, shift, heads)
    case = f"x {list(x.shape)}, {T} queries, {heads} heads{'' if with_bias else ', no bias'}"
    q, k, v = (projected(x, weight, shift, i) for i in range(3))
    pq, pk, pv = (torch.stack([projected(P, weight, shift, i) for _ in x]) for i in range(3))

    def both(**mistake: Any) -> list[Tensor]:
        return [attention(one, k, v, heads, **mistake) for one in (q, pq)]

    def of_queries(queries: Tensor, keys: Any, values: Any) -> Tensor:
        return attention(queries, keys, values, heads)

    all_k, all_v = torch.cat([pk, k], 1), torch.cat([pv, v], 1)
    bare = [torch.stack([projected(P, weight, None, i) for _ in x]) for i in range(3)]
    pairs: dict[str, list[Tensor]] = {
        "the factor is missing: scores are divided by sqrt(D / H)": both(factor=lambda d, D: 1.0),
        "the scores are divided by sqrt(D); a head is D / H wide": both(
            factor=lambda d, D: D**-0.5
        ),
        "the scores are divided by D / H; it is its root": both(factor=lambda d, D: 1 / d),
        "the scores are multiplied by sqrt(D / H)": both(factor=lambda d, D: d**0.5),
        "a head takes every H-th channel; its D / H channels are neighbours": both(strided=True),
        "the softmax runs over the queries; it runs over the keys": both(over=0),
        "the heads are missing: each has scores of its own": [
            attention(one, k, v, 1) for one in (q, pq)
        ],
        "queries and keys are exchanged: the rows of weight are q, k, v": [
            of_queries(k, q, v),
            of_queries(pk, q, v),
        ],
        "keys and values are exchanged: the rows of weight are q, k, v": [
            of_queries(q, v, k),
            of_queries(pq, v, k),
        ],
        "the prompts are keys and values, too, as in VPT: then the image's tokens see them": [
            of_queries(q, all_k, all_v),
            of_queries(pq, all_k, all_v),
        ],
        "out and read are exchanged": [right[1], right[0]],
        "the skip is added; this is attention alone": [x + right[0], P + right[1]],
    }
    if with_bias:
        pairs["the bias is missing"] = [part.clone() for part in _right(x, P, weight, None, heads)]
    alone = {
        "P is used as the query itself; it goes through the rows of weight for q": of_queries(
            P.expand(B, T, D), k, v
        ),
        "the bias is missing in the queries of P": of_queries(bare[0], k, v),
        "the queries read the prompts, too: keys and values are the image's alone": of_queries(
            pq, all_k, all_v
        ),
        "the queries read the prompts instead of the image": of_queries(pq, pk, pv),
        "P goes through the rows of weight for k; it asks, so it takes those for q": of_queries(
            pk, k, v
        ),
        "P goes through the rows of weight for v; it asks, so it takes those for q": of_queries(
            pv, k, v
        ),
        "the queries read what attention gives; they read the same keys and values as the image": (
            of_queries(pq, k, right[0])
        ),
        "the prompts are values as well as the image's tokens": right[1] + pv,
        "P is added to what its queries read; this is attention alone": P + right[1],
    }
    for i, name in enumerate(("out", "read")):
        mistakes = (alone if i else {}) | {text: wrong[i] for text, wrong in pairs.items()}
        same(
            f"{name} for {case}",
            found[i],
            right[i],
            {
                text: wrong
                for text, wrong in mistakes.items()
                if wrong.shape != right[i].shape or not torch.allclose(wrong, right[i])
            },
            tolerance=2e-5,
        )

    def one(function: Any, i: int) -> Any:
        return lambda *tensors: function(*tensors, *(() if with_bias else (None,)), heads)[i]

    wanted = " ".join(tensors)
    for i in (0, 1):
        same_gradients(one(student, i), one(_right, i), tensors, wanted)
    lives(student, _right, given | {"heads": heads})
