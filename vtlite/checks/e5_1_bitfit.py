"""Exercise 5.1, `bitfit`."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from vtlite.checks.base import expect, fail, passed, same
from vtlite.checks.harness import (
    Answer,
    check,
)
from vtlite.checks.inputs import toy_biases


@check
def bitfit(student: Answer) -> None:
    """5.1: `bitfit(model)` leaves only the biases trainable and returns how many numbers that
    are."""
    for frozen in (
        "",
        "head.bias",
        "weight",
    ):  # as it came, with a frozen bias, with frozen weights
        _bitfit_case(student, toy_biases(), frozen)
    model = toy_biases().eval()
    _bitfit_case(student, model, "")
    _bitfit_case(student, model, "bias")  # a second call, on what the first has left
    _bitfit_case(student, nn.Linear(3, 2), "")  # whose names have one part
    passed(
        "bitfit",
        "flags of every parameter",
        "biases of layers and of norms",
        "names that only look like a bias",
        "the count",
        "values untouched",
    )


def _bitfit_case(student: Answer, model: nn.Module, frozen: str) -> None:
    for name, parameter in model.named_parameters():
        parameter.requires_grad = not (frozen and name.endswith(frozen))
    before = {name: t.clone() for name, t in model.state_dict().items()}
    earlier = {name: p.requires_grad for name, p in model.named_parameters()}
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
            "a module may be called bias: 'bias' has to be the last part of the name": rule(
                lambda n: ".bias" in n or n == "bias"
            ),
            "position_bias ends in 'bias' and is none: split the name at its dots and compare the last part": rule(
                lambda n: n.endswith("bias")
            ),
            "a name may have one part alone, bias: split it at its dots and compare the last part": rule(
                lambda n: n.endswith(".bias")
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
                not flags[n] and not earlier[n] for n in wrong
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
            "a tied bias has two names and is one: it counts once": sum(
                p.numel()
                for name, p in model.named_parameters(remove_duplicate=False)
                if bias(name)
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
