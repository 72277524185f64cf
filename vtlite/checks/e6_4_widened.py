"""Exercise 6.4, `widened`."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from vtlite.checks.base import expect, fail, passed, randn, same
from vtlite.checks.harness import Answer, check, lives, new_memory

State = dict[str, Tensor]
_NAMES = ("first", "norm", "last")


def _right(first: State, norm: State, last: State, source: list[int]) -> tuple[State, State, State]:
    """Unit by unit."""

    def copied(state: State) -> State:
        return {
            key: torch.stack([t[g] for g in source]) if t.ndim else t + 0
            for key, t in state.items()
        }

    weight = last["weight"]
    columns = [weight[:, g] / sum(other == g for other in source) for g in source]
    shared = {"weight": torch.stack(columns, 1)}
    return copied(first), copied(norm), shared | {k: t + 0 for k, t in last.items() if k in "bias"}


def _network(seed: int, N: int, K: int, M: int, kernel: tuple[int, ...], biases: bool) -> list[Any]:
    """A layer of N units, its batch norm, and the layer that reads them: as state dicts."""
    g = torch.Generator().manual_seed(seed)
    a, b, c, d, e, f, h = randn(
        seed, (N, K, *kernel), (M, N, *kernel), (N,), (M,), (N,), (N,), (N,)
    )
    var = 0.5 + torch.rand(N, generator=g)
    norm = {"weight": e, "bias": f, "running_mean": h, "running_var": var}
    norm["num_batches_tracked"] = torch.tensor(7)
    first, last = {"weight": a}, {"weight": b}
    return [first | {"bias": c}, norm, last | {"bias": d}] if biases else [first, norm, last]


@check
def widened(student: Answer) -> None:
    """6.4: `widened(first, norm, last, source)` -> the three state dicts of the wider network: unit
    j is a copy of unit source[j], and what reads it divides by the number of copies."""
    for case in (
        (0, 4, 3, 5, (), True, [0, 1, 2, 3, 1, 1, 2]),
        (1, 3, 2, 4, (3, 3), True, [0, 1, 2, 2, 0]),
        (2, 3, 4, 2, (2, 3), False, [2, 0, 0, 1, 2, 2, 2]),
        (3, 4, 4, 4, (), False, [0, 1, 2, 3, 3, 3, 3, 3]),
        (4, 1, 3, 2, (1, 1), True, [0, 0, 0]),
        (5, 3, 2, 3, (), True, [0, 1, 2]),
    ):
        _wider_case(student, *case)
    for biases, kernel in ((True, ()), (False, (3, 2))):
        first, norm, last = _network(7, 4, 3, 2, kernel, biases)
        given = {"first": first, "norm": norm, "last": last, "source": [0, 1, 2, 3, 2, 0, 2]}
        lives(student, _right, given)
    passed(
        "widened",
        "copies of the units",
        "their batch norm",
        "shares by the number of copies",
        "the bias behind them",
        "linear layers and convolutions",
        "with and without biases",
        "copies in any order",
        "new tensors and arguments untouched",
        "any type and device",
    )


def _wider_case(
    student: Answer,
    seed: int,
    N: int,
    K: int,
    M: int,
    kernel: tuple[int, ...],
    biases: bool,
    source: list[int],
) -> None:
    states = _network(seed, N, K, M, kernel, biases)
    before = [{key: t.clone() for key, t in state.items()} for state in states]
    given = list(source)
    found = student(*states, given)
    case = f"{N} units, source {source}"
    for name, state, old in zip(_NAMES, states, before, strict=True):
        for key, t in old.items():
            expect(
                torch.equal(state[key], t),
                f"{case}: expected {name}[{key!r}] to stay as it was, found it changed",
                "you wrote into a tensor that you were given (+=, /=, [...] = ...): make a new one",
            )
    expect(
        given == source,
        f"{case}: expected source to stay as it was, found {given}",
        "you write into the list that you were given: make a new one",
    )
    if not (isinstance(found, tuple | list) and len(found) == 3):
        fail(
            f"{case}: expected three dicts, found {type(found).__name__}",
            "return (first, norm, last), each a dict with the keys that it came with",
        )
    right = _right(states[0], states[1], states[2], source)
    mistakes = _mistakes(states, source, right)
    for i, name in enumerate(_NAMES):
        expect(
            isinstance(found[i], dict) and found[i].keys() == states[i].keys(),
            f"{name}, {case}: expected the keys {list(states[i])}, found"
            f" {list(found[i]) if isinstance(found[i], dict) else type(found[i]).__name__}",
            "a new dict has the keys of the old one, whichever those are: not every layer has a"
            " bias",
        )
        for key, expected in right[i].items():
            wrong = {
                text: value
                for text, value in mistakes.get(f"{name}.{key}", {}).items()
                if value.shape != expected.shape or not torch.equal(value, expected)
            }
            same(f"{name}[{key!r}], {case}", found[i][key], expected, wrong)
            memory = {
                f"{n}[{k!r}]": t for n, s in zip(_NAMES, states, strict=True) for k, t in s.items()
            }
            new_memory(found[i][key], memory)


def _mistakes(states: list[State], source: list[int], right: Any) -> dict[str, dict[str, Tensor]]:
    first, norm, last = states
    N, new = len(norm["weight"]), len(source)
    count = torch.tensor([float(source.count(g)) for g in source])
    units = torch.tensor([float(source.count(g)) for g in range(N)])
    plain = last["weight"][:, source]
    rest = [1] * (plain.ndim - 2)

    def by(share: Tensor | float) -> Tensor:
        return plain * (share.view(-1, *rest) if isinstance(share, Tensor) else share)

    once = torch.where(torch.arange(new) < N, 1.0, 0.0)
    old = torch.where(torch.arange(new) < N, torch.ones(new), 1 / count)
    rolled = [source[j] if j < N else j % N for j in range(new)]
    copied: dict[str, dict[str, Tensor]] = {}
    for name, state, wide in (("first", first, right[0]), ("norm", norm, right[1])):
        for key, t in state.items():
            if not t.ndim:
                copied[f"{name}.{key}"] = {
                    "num_batches_tracked counts batches, not units: it stays as it is": (
                        t.expand(new)
                    )
                }
                continue
            share = count.view(-1, *[1] * (t.ndim - 1))
            copied[f"{name}.{key}"] = {
                "the units are divided by their number: they are copied whole, and what reads them"
                " is divided": wide[key] / share,
                "the copies are zero: each is the unit once more": torch.cat(
                    [t, t.new_zeros(max(0, new - N), *t.shape[1:])]
                ),
                "the copies go round from unit 0: source says of whom each is one": t[rolled],
                f"{name}[{key!r}] stays as it was, one entry for each old unit": t,
            }
    more = max(0, new - N)
    mean, var = norm["running_mean"], norm["running_var"]
    copied["norm.running_mean"] = {
        "the copies have a mean of 0, as in a new norm: copy the old one": torch.cat(
            [mean, torch.zeros(more)]
        )
    } | copied["norm.running_mean"]
    copied["norm.running_var"] |= {
        "the copies have a variance of 1, as in a new norm: copy the old one": torch.cat(
            [var, torch.ones(more)]
        )
    }
    copied["last.weight"] = {
        "the division is missing: each copy counts fully, so the sum is too large": plain,
        "only the new copies are divided: the first copy is one like the others": by(old),
        "the copies are ignored, and the old units count fully: then they would never learn": by(
            once
        ),
        "you divide by the number of copies twice": by(1 / count**2),
        "you multiply by the number of copies: divide": by(count),
        "you divide by the root of the number of copies: what they give is added": by(
            count.rsqrt()
        ),
        "you divide by the new width over the old: each unit has a count of its own": by(N / new),
        "you divide by the number of new units": by(1 / new),
        "you divide by one more: the count has the unit itself in it already": by(1 / (count + 1)),
        "you divide by one less: the unit itself is one of its copies": by(
            1 / (count - 1).clamp(min=1)
        ),
        "the counts are those of the old units by their place, not of the unit that is copied": by(
            1 / units[[j % N for j in range(new)]]
        ),
        "last stays as it was: it has to read the new units, too": last["weight"],
    }
    if len(last["weight"]) >= max(source) + 1:
        rows = last["weight"][source]
        share = count.view(-1, *[1] * (rows.ndim - 1))
        text = "the outputs of last are copied; its inputs are the units, dimension 1"
        copied["last.weight"] |= {text: rows / share, text.replace("the outputs", "outputs"): rows}
    if "bias" in last:
        b = last["bias"]
        copied["last.bias"] = {
            "the bias of last is divided: it is added once, whatever the number of units": (
                b * N / new
            ),
            "the bias of last is multiplied: it is added once": b * new / N,
            "the bias of last is lost": torch.zeros_like(b),
        }
        if len(b) >= max(source) + 1:
            copied["last.bias"]["the bias of last is one per output: it is not copied"] = b[source]
    return copied
