"""Exercise 4.4, `ladder`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from vtlite.checks.base import copies, expect, passed, randn, same, untouched
from vtlite.checks.harness import Answer, check, lives, same_gradients
from vtlite.checks.inputs import Part
from vtlite.checks.naive import dense

Parts = list[Part]


def _gate(a: Tensor) -> Tensor:
    return 1 / (1 + (-a / 0.1).exp())


def _right(
    x: Tensor,
    trunk: Parts,
    side: Parts,
    reads: list[Tensor],
    gates: Tensor,
    gate: Callable[[Tensor], Tensor] = _gate,
    turned: bool = False,
    rung: Callable[[list[Tensor], int], Tensor] = lambda h, i: h[i + 1],
    first: bool = True,
    mix: Callable[..., Tensor] | None = None,
) -> Tensor:
    """The formula, and what it is with a mistake in it."""
    h = [x.detach()]
    for frozen in trunk:
        h.append(frozen(h[-1]).detach())
    s = dense(h[0], reads[0], 0.0)
    s = s if first else torch.zeros_like(s)
    for i, thin in enumerate(side):
        g, read = gate(gates[i]), dense(rung(h, i), reads[i + 1], 0.0)
        g = 1 - g if turned else g
        s = mix(thin, s, read, g) if mix else thin(g * s + (1 - g) * read)
    return s


_MISTAKES: dict[str, dict[str, Any]] = {
    "the gates are exchanged: g belongs to the ladder, 1 - g to the rung": {"turned": True},
    "the temperature is missing: sigmoid(a / 0.1)": {"gate": torch.sigmoid},
    "the temperature divides: sigmoid(a / 0.1), not sigmoid(0.1 a)": {
        "gate": lambda a: torch.sigmoid(0.1 * a)
    },
    "the gate is used as it is: g = sigmoid(a / 0.1)": {"gate": lambda a: a},
    "the temperature is there and the sigmoid is not": {"gate": lambda a: a / 0.1},
    "the gate is always one half: it learns": {"gate": lambda a: 0 * a + 0.5},
    "step i reads what enters block i; it reads what leaves it": {"rung": lambda h, i: h[i]},
    "every step reads x; step i reads what leaves block i": {"rung": lambda h, i: h[0]},
    "every step reads the trunk's last output; step i reads what leaves block i": {
        "rung": lambda h, i: h[-1]
    },
    "the rungs come in the wrong order: the ladder climbs from the first to the last": {
        "rung": lambda h, i: h[len(h) - 1 - i]
    },
    "the ladder starts at zero; it starts at P_0 x": {"first": False},
    "the thin block has a skip of its own; s is what it gives": {
        "mix": lambda thin, s, read, g: s + thin(g * s + (1 - g) * read)
    },
    "the mixture comes before the thin block, not behind it": {
        "mix": lambda thin, s, read, g: g * thin(s) + (1 - g) * read
    },
    "the thin block sees both, not the rung alone": {
        "mix": lambda thin, s, read, g: g * s + (1 - g) * thin(read)
    },
    "the thin blocks are missing": {"mix": lambda thin, s, read, g: g * s + (1 - g) * read},
    "the rungs are added without 1 - g": {"mix": lambda thin, s, read, g: thin(g * s + read)},
    "the ladder is added without g": {"mix": lambda thin, s, read, g: thin(s + (1 - g) * read)},
    "nothing is read from the trunk": {"mix": lambda thin, s, read, g: thin(s)},
    "the rung's share is subtracted": {
        "mix": lambda thin, s, read, g: thin(g * s - (1 - g) * read)
    },
}


@check
def ladder(student: Answer) -> None:
    """4.4: `ladder(x, trunk, side, reads, gates)` -> the tokens of thin blocks that climb beside a
    frozen trunk, which runs without a graph."""
    for seed, B, N, D, W, L in (
        (0, 2, 3, 6, 2, 3),
        (1, 1, 4, 4, 3, 2),
        (2, 3, 1, 5, 4, 1),
        (3, 2, 5, 3, 3, 4),
    ):
        _ladder_case(student, seed, B, N, D, W, L)
    passed(
        "ladder",
        "values for four ladders",
        "the gates",
        "no graph in the trunk",
        "no gradient of x",
        "gradients of the ladder",
        "every block run once",
        "any type and device",
        "arguments untouched",
    )


def _ladder_case(student: Answer, seed: int, B: int, N: int, D: int, W: int, L: int) -> None:
    x, gates, *weights = randn(
        seed, (B, N, D), (L,), *[(D, D)] * L, *[(W, W)] * L, *[(W, D)] * (L + 1)
    )
    gates, weights = 0.15 * gates, [0.5 * weight for weight in weights]
    blocks, thin, reads = weights[:L], weights[L : 2 * L], weights[2 * L :]
    case = f"x {list(x.shape)}, {L} blocks, a ladder {W} wide"

    def parts(trains: bool = False) -> tuple[Parts, Parts]:
        """New ones. That the trunk's weights are frozen is not promised."""
        trunk = [Part(w.clone().requires_grad_(trains)) for w in blocks]
        return trunk, [Part(w.clone().requires_grad_()) for w in thin]

    given = {"x": x, "gates": gates} | {f"reads[{i}]": t for i, t in enumerate(reads)}
    before = copies(given)
    trunk, side = parts(trains=True)
    found = student(x, trunk, side, reads, gates)
    untouched(given, before)

    def value(**mistake: Any) -> Tensor:
        return _right(x, *parts(), reads, gates, **mistake).detach()

    right = value()
    wrong = {text: value(**mistake) for text, mistake in _MISTAKES.items()}
    same(
        f"the output for {case}",
        found,
        right,
        {text: w for text, w in wrong.items() if not torch.equal(w, right)},
    )
    expect(
        not any(part.graph for part in trunk),
        f"{case}: expected a trunk that runs without a graph, found one built",
        "the trunk's weights may ask for gradients: run its blocks under torch.no_grad(); a detach()"
        " behind a block comes too late, when its graph is built and kept",
    )
    expect(
        all(part.weight.requires_grad for part in trunk + side),
        f"{case}: expected the blocks' weights as they were, found requires_grad changed",
        "you freeze weights that are not yours; under torch.no_grad() none need be frozen",
    )
    for name, group in (("trunk", trunk), ("side", side)):
        counts = [len(part.seen) for part in group]
        expect(
            counts == [1] * L,
            f"{case}: expected one call of each block of {name}, found {counts}",
            "the blocks are what costs time: call each once, in their order",
        )
    leaf = x.clone().requires_grad_()
    trunk, side = parts()  # frozen now; x alone asks
    student(leaf, trunk, side, reads, gates)
    expect(
        not any(part.graph for part in trunk),
        f"{case}: expected a trunk that runs without a graph, found one where x has a gradient",
        "frozen weights do not suffice: x may come with a graph, which goes on through every block;"
        " run them under torch.no_grad()",
    )

    def with_parts(function: Callable[..., Any]) -> Callable[..., Any]:
        def run(x: Tensor, gates: Tensor, *rest: Tensor) -> Any:
            side = list(map(Part, rest[:L]))
            return function(x, list(map(Part, blocks)), side, list(rest[L:]), gates)

        return run

    names = [
        "x",
        "gates",
        *(f"side[{i}]" for i in range(L)),
        *(f"reads[{i}]" for i in range(L + 1)),
    ]
    arguments = dict(zip(names, (x, gates, *thin, *reads), strict=True))

    found_x = _gradient_of_x(student, with_parts, arguments)
    expect(
        not found_x.any(),
        f"{case}: expected no gradient of x, found one",
        "P_0 reads x itself, which may come with a graph: detach() it first, or nothing keeps the"
        " gradient out of what made x",
    )
    same_gradients(with_parts(student), with_parts(_right), arguments, " ".join(names[1:]))
    trunk, side = parts()
    lives(
        student,
        _right,
        {"x": x, "trunk": trunk, "side": side, "reads": reads, "gates": gates},
    )


def _gradient_of_x(
    student: Answer, with_parts: Callable[..., Any], arguments: dict[str, Tensor]
) -> Tensor:
    leaf = arguments["x"].clone().requires_grad_()
    rest = [t.clone().requires_grad_() for name, t in arguments.items() if name != "x"]
    out = with_parts(student)(leaf, *rest)
    if not out.requires_grad:
        return torch.zeros_like(leaf)  # the gradients of the ladder are missing: said elsewhere
    grad = torch.autograd.grad(out.sum(), leaf, allow_unused=True)[0]
    return torch.zeros_like(leaf) if grad is None else grad
