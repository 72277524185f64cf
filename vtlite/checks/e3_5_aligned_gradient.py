"""Exercise 3.5, `aligned_gradient`."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from vtlite.checks.base import copies, expect, passed, randn, same, untouched
from vtlite.checks.compare import difference
from vtlite.checks.harness import Answer, check, lives, new_memory

_KINDS = ("against", "along", "hardly against", "opposite")


def _right(gradient: Tensor, general: Tensor, strength: float) -> Tensor:
    """Number by number, as one long row."""
    g, u = gradient.double().flatten(), general.double().flatten()
    length = sum(n * n for n in u.tolist()) ** 0.5
    if length == 0:
        return gradient.clone()
    u = u / length
    along = sum(a * b for a, b in zip(g.tolist(), u.tolist(), strict=True))
    if along < 0:
        g = g - strength * along * u
    return g.reshape(gradient.shape).to(gradient.dtype)


def _pair(seed: int, shape: tuple[int, ...], kind: str) -> tuple[Tensor, Tensor]:
    """A gradient and a general direction with a given sign of their product."""
    g, u = randn(seed, shape, shape)
    along = (g * u).sum() / u.square().sum()
    if kind == "opposite":
        return 0.4 * g - (2.5 + 0.4 * along) * u, u
    wanted = {"against": -0.8, "along": 0.8, "hardly against": -0.05}[kind]
    return g + (wanted - along) * u, u


@check
def aligned_gradient(student: Answer) -> None:
    """3.5: `aligned_gradient(gradient, general, strength)` -> the gradient less its part against
    the direction of `general`, if it has such a part."""
    for seed, shape, strength, length in (
        (0, (4, 3), 1.0, 1.7),
        (1, (2, 3, 5), 0.5, 0.02),
        (2, (7,), 0.8, 30.0),
        (3, (3, 3), 0.25, 1e-4),
        (4, (1, 2), 1.0, 0.6),
    ):
        for kind in _KINDS:
            g, u = _pair(seed, shape, kind)
            _aligned_case(student, g, length * u, strength, kind)
        g, u = _pair(seed, shape, "against")
        _aligned_case(student, g, 0 * u, strength, "zero")
        _aligned_case(student, 0 * g, u, strength, "nothing to do")
        _aligned_case(student, g, u, 0.0, "no strength")
    for seed, kind in enumerate(_KINDS):
        g, u = _pair(seed, (3, 2 + seed), kind)
        lives(student, _right, {"gradient": g, "general": u, "strength": 0.6})
    passed(
        "aligned_gradient",
        "a gradient against the direction",
        "a gradient along it untouched",
        "the direction alone counts",
        "the strength",
        "the whole tensor at once",
        "a direction of zero",
        "new tensors and arguments untouched",
        "any type and device",
    )


def _aligned_case(student: Answer, g: Tensor, general: Tensor, strength: float, kind: str) -> None:
    given = {"gradient": g, "general": general}
    before = copies(given)
    found = student(g, general, strength)
    untouched(given, before)
    sign = {"zero": "general = 0", "nothing to do": "gradient = 0", "no strength": "strength 0"}
    case = f"{list(g.shape)}, strength {strength:g}, {sign.get(kind, 'a gradient ' + kind)}"
    square, product = general.square().sum(), (g * general).sum()
    part = product / square * general  # nan where the direction is zero
    rows = (g * general).sum(-1, keepdim=True) / general.square().sum(-1, keepdim=True)
    against = g * general < 0
    mistakes = {
        "the part along the direction is dropped always; only a part against it is, whose product"
        " is negative": g - strength * part,
        _stays(student, g, general, strength): g.clone(),
        "the part is added; subtract it": g + strength * part,
        "the strength is missing": g - part,
        "the strength is applied twice": g - strength * strength * part,
        "the strength multiplies everything; it belongs to what is dropped": strength * (g - part),
        "the direction is not divided by its length: u = general / |general|": g
        - strength * product * general,
        "you divide by the length of general; by its square, as u stands twice": g
        - strength * product / square.sqrt() * general,
        "you divide by the square of the length twice": g - strength * part / square,
        "you divide by the lengths of both; only the direction is made of length one": g
        - strength * product / (square.sqrt() * g.norm()) * general / square.sqrt(),
        "that is the part to be dropped, not what is left": strength * part,
        "all of the gradient is dropped; only its part against the direction is": 0 * g,
        "general takes the gradient's place": general.clone(),
        "the roles are exchanged: the gradient is what is projected": general
        - strength * product / g.square().sum() * g,
        "both gradients are added": g + general,
        "each row is projected by itself; the tensor counts as one long row": g
        - strength * rows.clamp(max=0) * general,
        "each row is projected by itself": g - strength * rows * general,
        "numbers of contradicting sign are set to zero; the directions as a whole are compared": (
            torch.where(against, torch.zeros_like(g), g)
        ),
        "numbers of contradicting sign are reduced; the directions as a whole are compared": (
            torch.where(against, (1 - strength) * g, g)
        ),
        "the gradient is made as long as before; it gets shorter": (g - strength * part)
        * g.norm()
        / (g - strength * part).norm(),
        "the sign of the product is used, not its size": g + strength * general / square.sqrt(),
    }
    likely = "a direction of zero contradicts nothing, and 0 / 0 is nan: give the gradient as it is"
    nan = isinstance(found, Tensor) and not bool(found.isfinite().all())
    expect(not nan, f"{case}: expected numbers, found nan or inf", likely if kind == "zero" else "")
    right = _right(g, general, strength)
    mistakes = {text: wrong for text, wrong in mistakes.items() if bool(wrong.isfinite().all())}
    if 0 < float(general.norm()) < 0.1:
        bounded = (g - strength * wrong for wrong in _bounded(product, square, general))
        likely = (
            "a small number is added to what you divide by, or bounds it, which is much beside the"
            " length of a short direction: ask whether the product is negative instead, as then"
            " nothing is zero"
        )
        wrong = next((t for t in bounded if not difference(found, t, 2e-5)), right)
        mistakes = {likely: wrong} | mistakes
    same(
        f"the gradient for {case}, |general| {float(general.norm()):.3g}",
        found,
        right,
        mistakes,
        tolerance=2e-5,
    )
    new_memory(found, given)


def _stays(student: Answer, g: Tensor, general: Tensor, strength: float) -> str:
    """What is wrong where a gradient against the direction comes back as it is."""
    turned = -g if (g * general).sum() < 0 else g
    if torch.equal(student(turned, general, strength), turned):
        return "the gradient stays as it is: its part against the direction is to be dropped"
    return "the part is dropped where the two agree; drop it where they contradict"


def _bounded(product: Tensor, square: Tensor, general: Tensor) -> Iterator[Tensor]:
    """The part along the direction, with a number that keeps the division from failing."""
    length = square.sqrt()
    for eps in (10.0**-n for n in range(3, 13)):
        yield product / (square + eps) * general
        yield product / square.clamp(min=eps) * general
        yield product / (length + eps) ** 2 * general
        yield product / length.clamp(min=eps) ** 2 * general
