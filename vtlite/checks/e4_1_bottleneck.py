"""Exercise 4.1, `bottleneck`."""

from __future__ import annotations

import copy
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vtlite.checks.base import expect, fail, passed, randn, same
from vtlite.checks.harness import Answer, check, lives, same_gradients
from vtlite.checks.naive import dense


@check
def bottleneck(student: Answer) -> None:
    """4.1: `bottleneck(dim, width, scale)` -> a module x + scale (relu(x D^T + d) U^T + u) that
    starts as x, and learns."""
    for seed, dim, width, scale, lead in (
        (0, 6, 3, 0.5, (2, 5)),
        (1, 4, 7, 2.0, (3,)),
        (2, 5, 5, -1.5, (1, 2, 3)),
        (3, 7, 1, 0.25, ()),
    ):
        module = _made(student, dim, width, scale)
        _starts(student, module, dim, width, scale, lead)
        x, D, d, U, u = randn(seed, (*lead, dim), (width, dim), (width,), (dim, width), (dim,))
        _values(module, {"x": x, "D": D, "d": d, "U": U, "u": u}, scale)
    passed(
        "bottleneck",
        "the parts that train",
        "a start as x",
        "a start that learns",
        "values for any weights and leading shape",
        "the scale",
        "gradients of x and all weights",
        "any type and device",
        "arguments untouched",
    )


def _made(student: Answer, dim: int, width: int, scale: float) -> nn.Module:
    """The module of an answer, whose parts are as the text says."""
    case = f"bottleneck({dim}, {width}, {scale})"
    module = student(dim, width, scale)
    expect(
        isinstance(module, nn.Module),
        f"{case}: expected a module, found"
        f" {'the class' if isinstance(module, type) else type(module).__name__}",
        "make an object of your class, with its brackets, and return it",
    )
    sizes = {"down": (width, dim), "up": (dim, width)}
    for name, (rows, columns) in sizes.items():
        layer: Any = getattr(module, name, None)
        expect(
            isinstance(layer, nn.Linear),
            f"{case}: expected an nn.Linear by the name {name}, found {type(layer).__name__}",
            "it has two layers, self.down and self.up, under these names",
        )
        found = (layer.out_features, layer.in_features)
        expect(
            found == (rows, columns),
            f"{case}: expected {name} from {columns} to {rows} numbers, found {found[1]} to"
            f" {found[0]}",
            "down goes from dim to width, up from width to dim: nn.Linear(inputs, outputs)",
        )
        expect(
            layer.bias is not None,
            f"{case}: expected {name} with a bias, found none",
            "both layers have one: d and u",
        )
    own = {id(p): name for name, p in module.named_parameters()}
    parts = [getattr(getattr(module, n), kind) for n in sizes for kind in ("weight", "bias")]
    more = [own[key] for key in own.keys() - {id(p) for p in parts}]
    expect(
        not more,
        f"{case}: expected the parameters of down and up, found also {more[:1]}",
        "D, d, U and u train and nothing else: the scale is a fixed number",
    )
    expect(
        len(own) == 4 and all(p.requires_grad for p in parts),
        f"{case}: expected four tensors that train, found"
        f" {sum(p.requires_grad for p in module.parameters())}",
        "D, d, U and u are this adapter's own, and all of them train",
    )
    return module


def _starts(
    student: Answer, module: Any, dim: int, width: int, scale: float, lead: tuple[int, ...]
) -> None:
    case = f"at the start of bottleneck({dim}, {width}, {scale})"
    D, d, U, u = (
        t.detach() for t in (module.down.weight, module.down.bias, module.up.weight, module.up.bias)
    )
    expect(
        bool(torch.cat([t.flatten() for t in (D, d, U, u)]).isfinite().all()),
        f"{case}: expected numbers, found nan or inf",
        "memory was reserved and never written (torch.empty)",
    )
    for name, t in (("d", d), ("u", u)):
        expect(
            not t.any(),
            f"{case}: expected {name} = 0, found {t.flatten()[0].item():.4g} first",
            f"both biases start at zero, and nn.Linear draws its own at random: zeros_ for {name}",
        )
    if U.any() or not D.any():
        fail(
            f"{case}: expected U = 0 and D drawn at random, found U"
            f" {'drawn' if U.any() else '= 0'} and D {'drawn' if D.any() else '= 0'}",
            (
                "neither is zero, so training starts from another network: U has to be zero"
                if D.any()
                else "the wrong one is zero: with D = 0 every ReLU gives 0 and passes no gradient,"
                " so neither D nor U ever moves"
                if U.any()
                else "with both at zero the gradient of U has the factor relu(0), that of D the"
                " factor U: both are zero, and neither ever moves"
            ),
        )
    expect(
        len(D.unique(dim=0)) == width,
        f"{case}: expected D drawn at random, found rows that are alike",
        "rows that are alike get gradients that are alike, and stay so: keep what nn.Linear draws",
    )
    again: Any = _made(student, dim, width, scale)
    expect(
        not any(p is q for p in module.parameters() for q in again.parameters()),
        f"{case}: expected parameters of its own, found those of another adapter",
        "every call makes a new module: keep nothing between calls",
    )
    expect(
        not torch.equal(again.down.weight, module.down.weight),
        f"{case}: expected D drawn anew for every adapter, found the same twice",
        "a seed of your own makes all adapters alike: leave the drawing to nn.Linear",
    )
    (x,) = randn(dim, (*lead, dim))
    found = _Forward(module, "at the start")(x)
    same(f"{case}, its output", found, x, {"the skip is missing: x itself": torch.zeros_like(x)})


class _Forward(Answer):
    """A module's forward as a function of x and its weights; `twin` is what was run last."""

    def __init__(self, module: nn.Module, life: str = "") -> None:
        super().__init__(module.forward)
        self.module, self.life = module, life

    def __call__(self, x: Tensor, *weights: Tensor) -> Tensor:
        twin: Any = copy.deepcopy(self.module).to(x.device, x.dtype)
        for layer, pair in zip((twin.down, twin.up), (weights[:2], weights[2:]), strict=True):
            # Set past nn.Parameter, so that gradients arrive at the very tensors.
            layer._parameters.update(zip(("weight", "bias"), pair, strict=False))
        self.function = twin.forward
        return super().__call__(x)


def _values(module: nn.Module, arguments: dict[str, Tensor], scale: float) -> None:
    forward = _Forward(module)
    x, D, d, U, u = arguments.values()

    def naive(x: Tensor, D: Tensor, d: Tensor, U: Tensor, u: Tensor) -> Tensor:
        hidden = dense(x, D, d)
        return x + scale * dense(torch.where(hidden > 0, hidden, 0.0 * hidden), U, u)

    z = dense(x, D, d)
    bent = dense(z.relu(), U, u)
    mistakes = {
        "the skip is missing: x itself is added": scale * bent,
        "the skip is scaled, too: only what the bottleneck gives is": scale * (x + bent),
        "the scale is missing": x + bent,
        "the scale is applied twice": x + scale * scale * bent,
        "the scale is in the way of u: it multiplies u as well": (
            x + scale * dense(z.relu(), U, 0.0) + u
        ),
        "x is subtracted": scale * bent - x,
        "the activation is missing: ReLU after the first layer": x + scale * dense(z, U, u),
        "that is GELU; here it is ReLU": x + scale * dense(F.gelu(z), U, u),
        "that is SiLU; here it is ReLU": x + scale * dense(F.silu(z), U, u),
        "that is a sigmoid; here it is ReLU": x + scale * dense(z.sigmoid(), U, u),
        "the activation comes after the second layer; it belongs between the two": (
            x + scale * dense(z, U, u).relu()
        ),
        "there is a second activation after the up projection": x + scale * bent.relu(),
        "the sum is activated, too: y may be negative": (x + scale * bent).relu(),
        "d is missing, the bias of the first layer": x
        + scale * dense(dense(x, D, 0.0).relu(), U, u),
        "u is missing, the bias of the second layer": x + scale * dense(z.relu(), U, 0.0),
        "the bottleneck is missing: the output is x": x,
        "x goes through a ReLU before the first layer": x
        + scale * dense(dense(x.relu(), D, d).relu(), U, u),
        "x is normalised first; this bottleneck has no norm": x
        + scale * dense(dense(F.layer_norm(x, x.shape[-1:]), D, d).relu(), U, u),
    }
    case = f"the output for x {list(x.shape)}, width {len(D)}, scale {scale}"
    for training in (True, False):
        module.train(training)
        before = x.clone()
        found = forward(x, D, d, U, u)
        expect(
            torch.equal(x, before),
            "expected x to stay as it was, found it changed",
            "you wrote into a tensor that you were given (+=, relu_, inplace=True): make a new one",
        )
        mode = "" if training else ", in eval mode"
        same(case + mode, found, naive(x, D, d, U, u), mistakes)
    same_gradients(forward, naive, arguments, "x D d U u")
    lives(forward, naive, arguments)
