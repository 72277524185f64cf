"""Exercise 2.1, `freeze_except`."""

from __future__ import annotations

import re

import torch
from torch import nn

from vtlite.checks.base import expect, passed, same
from vtlite.checks.harness import (
    Answer,
    check,
)
from vtlite.checks.inputs import toy_backbone


def _freeze_case(student: Answer, model: nn.Module, prefixes: tuple[str, ...]) -> None:
    frozen = {name for name, p in model.named_parameters() if not p.requires_grad}
    before = {name: t.clone() for name, t in model.state_dict().items()}
    training = model.training
    returned = student(model, prefixes)

    def inside(name: str) -> bool:
        return any(name == prefix or name[: len(prefix) + 1] == prefix + "." for prefix in prefixes)

    flags = {name: p.requires_grad for name, p in model.named_parameters()}
    wrong = [name for name, flag in flags.items() if flag != inside(name)]
    if wrong:
        loose = {name: name.startswith(prefixes) if prefixes else False for name in flags}
        anywhere = {name: any(prefix in name for prefix in prefixes) for name in flags}
        likely = {
            "you compare the start of the name only, so that blocks.10 counts as blocks.1: a prefix ends at a dot": (
                flags == loose
            ),
            "in a regular expression a dot stands for any letter: use re.escape, or startswith": (
                flags
                == {
                    name: any(re.match(rf"{prefix}(\.|$)", name) for prefix in prefixes)
                    for name in flags
                }
            ),
            "you look for the prefix anywhere in the name; it has to be at the start and end at a dot": (
                flags == anywhere or all(anywhere[n] and not loose[n] and flags[n] for n in wrong)
            ),
            "you froze the named parts and train the others: turn it round": (
                flags == {n: not inside(n) for n in flags}
            ),
            "you never set requires_grad to False, so everything trains": (
                all(flags.values()) and not all(map(inside, flags))
            ),
            "a part that was frozen before stays frozen: set requires_grad to True as well": all(
                not flags[n] and n in frozen for n in wrong
            ),
            "a prefix may be the whole name of a parameter, which has no dot behind it": all(
                n in prefixes for n in wrong
            ),
            "nothing is frozen that is not named first: set every flag, in both directions": True,
        }
        what = (
            f"prefixes {prefixes}: expected requires_grad = {inside(wrong[0])} for {wrong[0]},"
            f" found {flags[wrong[0]]}"
        )
        expect(False, what, next(sentence for sentence, match in likely.items() if match))
    expected = sum(p.numel() for name, p in model.named_parameters() if inside(name))
    same(
        f"the number returned for {prefixes}",
        returned,
        expected,
        {
            "you return how many tensors train; count their elements with numel()": sum(
                map(inside, flags)
            ),
            "a tied parameter has two names and is one: it counts once": sum(
                p.numel()
                for name, p in model.named_parameters(remove_duplicate=False)
                if inside(name)
            ),
            "you count all parameters; count only those that train": sum(
                p.numel() for p in model.parameters()
            ),
            "you count the frozen numbers; count those that train": (
                sum(p.numel() for p in model.parameters()) - expected
            ),
        },
    )
    expect(
        all(module.training == training for module in model.modules()),
        "expected every module in the mode it was in, found another",
        "you called train() or eval(); freezing is about requires_grad alone",
    )
    changed = [name for name, t in model.state_dict().items() if not torch.equal(t, before[name])]
    expect(
        not changed,
        f"expected the values to stay as they were, found {changed[:1]} changed",
        "you wrote to the parameters",
    )


@check
def freeze_except(student: Answer) -> None:
    """2.1: `freeze_except(model, prefixes)` leaves only the named parts trainable and returns how
    many numbers train."""
    model = toy_backbone()  # the same one throughout: each call meets what the last has frozen
    for prefixes in (
        ("head",),
        ("norm", "blocks.10"),
        ("blocks.1", "head"),
        ("cls_token", "head.bias", "patch_embed.norm"),
        (),
        ("blocks", "pre_norm", "patch_embed.proj.weight"),
    ):
        _freeze_case(student, model, prefixes)
    _freeze_case(student, toy_backbone().eval().requires_grad_(False), ("overhead", "blocks.1"))
    passed(
        "freeze_except",
        "flags of every parameter",
        "prefixes that end at a dot",
        "the count",
        "values untouched",
    )
