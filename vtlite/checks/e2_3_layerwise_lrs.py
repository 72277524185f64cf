"""Exercise 2.3, `layerwise_lrs`."""

from __future__ import annotations

from collections.abc import Callable

from vtlite.checks.base import expect, passed, same
from vtlite.checks.harness import (
    Answer,
    check,
)


@check
def layerwise_lrs(student: Answer) -> None:
    """2.3: `layerwise_lrs(names, depth, lr, decay)` gives each parameter its learning rate."""
    for depth, lr, decay in ((12, 2e-3, 0.65), (3, 0.5, 0.9)):
        _layerwise_case(student, depth, lr, decay)
    _layerwise_case(student, 24, 0.3, 1.1, few=True)
    passed(
        "layerwise_lrs",
        "every layer of 12 and of 3 blocks",
        "embedding and final norm and head",
        "block numbers of two digits",
    )


def _layerwise_case(
    student: Answer, depth: int, lr: float, decay: float, few: bool = False
) -> None:
    names = [
        "cls_token",
        "pos_embed",
        "patch_embed.proj.weight",
        "norm.weight",
        "norm.bias",
        "head.weight",
        "head.bias",
        "patch_embed.norm.weight",
        "patch_embed.blocks.0.weight",
        "patch_embed.head.weight",
        "neck.blocks.3.w",
        "blocks_scale",
        "norm_pre.weight",
        "head_drop.scale",
        "overhead.bias",
    ]
    names += [
        f"blocks.{i}.{rest}"
        for i in range(depth)
        for rest in ("norm1.weight", "attn.qkv.weight", "mlp.fc2.bias", "mlp.norm.w", "head.2.w")
    ]
    if few:  # names of a part of a network, in no order: the depth is what is given
        names = names[:-8][::-2]
    given = list(names)

    def layer(name: str) -> int:
        if name.startswith("blocks."):
            return int(name.split(".")[1]) + 1
        return depth + 1 if name.startswith(("norm.", "head.")) else 0

    def power(layer: int) -> float:
        return decay ** (depth + 1 - layer)

    def table(factor: Callable[[int], float], of: Callable[[str], int] = layer) -> dict[str, float]:
        return {name: lr * factor(of(name)) for name in names}

    found = student(names, depth, lr, decay)
    same(
        f"learning rates for depth {depth}, lr {lr}, decay {decay}",
        found,
        table(power),
        {
            "the order is reversed: the head has the full learning rate, the embedding the smallest": table(
                lambda i: decay**i
            ),
            "off by one: the head's factor is decay ** 0, the last block's decay ** 1": table(
                lambda i: decay ** (depth + 2 - i)
            ),
            "off by one: the last block's factor is decay ** 1, not 1": table(
                lambda i: decay ** max(0, depth - i)
            ),
            "block i is layer i + 1: layer 0 is the embedding": table(
                power, lambda s: layer(s) - s.startswith("blocks.")
            ),
            "the class token and the positions belong to layer 0, with the patch embedding": table(
                power, lambda s: depth + 1 if s in ("cls_token", "pos_embed") else layer(s)
            ),
            "a block's own norms (blocks.2.norm1) belong to the block: only the final norm stands above": table(
                power, lambda s: depth + 1 if "norm" in s else layer(s)
            ),
            "a name counts by its first part, up to the dot: norm_pre, head_drop and blocks_scale are"
            " layer 0": table(
                power, lambda s: depth + 1 if s.startswith(("norm", "head")) else layer(s)
            ),
            "head has to be the first part of a name, not any": table(
                power, lambda s: depth + 1 if "head" in s else layer(s)
            ),
            "blocks has to be the first part of a name, not any": table(
                power,
                lambda s: (
                    int(s.split("blocks.")[1].split(".")[0]) + 1 if "blocks." in s else layer(s)
                ),
            ),
            "the final norm belongs to the last layer, with the head": table(
                power, lambda s: 0 if s.startswith("norm.") else layer(s)
            ),
            "the decay multiplies once per layer: a power, not a product": table(
                lambda i: 1.0 if i == depth + 1 else decay * (depth + 1 - i)
            ),
            "you read one digit of the block's number, so block 10 became block 1": table(
                power,
                lambda s: int(s.split(".")[1][0]) + 1 if s.startswith("blocks.") else layer(s),
            ),
        },
    )
    expect(
        names == given,
        "expected the list of names to stay as it was",
        "you changed the list that you were given",
    )
