"""Exercise 2.2, `cached_features`."""

from __future__ import annotations

import torch
from torch import Tensor

from vtlite.checks.base import expect, passed, same
from vtlite.checks.harness import (
    Answer,
    check,
)
from vtlite.checks.inputs import toy_backbone


def _features_case(student: Answer, count: int, batch_size: int) -> None:
    backbone = toy_backbone(1).train()
    images = torch.randn(count, 3, 6, 8, generator=torch.Generator().manual_seed(count))
    original, state = images.clone(), {name: t.clone() for name, t in backbone.state_dict().items()}
    calls: list[int] = []
    hook = backbone.register_forward_pre_hook(lambda module, inputs: calls.append(len(inputs[0])))
    found = student(backbone, images, batch_size)
    hook.remove()
    trained = backbone.training
    with torch.no_grad():
        expected = torch.stack([backbone.eval()(image[None])[0] for image in original])
    moved = [name for name, t in backbone.state_dict().items() if not torch.equal(t, state[name])]
    expect(
        not moved,
        f"expected the backbone to stay as it was, found {moved[:1]} changed",
        "the backbone ran in train mode, so its batch norm collected statistics: call eval() first",
    )
    expect(
        isinstance(found, Tensor),
        f"expected one tensor of features, found {type(found).__name__}",
        "join the batches with torch.cat",
    )
    whole = count - count % batch_size
    same(
        f"features of {count} images in batches of {batch_size}",
        found,
        expected,
        {
            "the last, smaller batch is missing": expected[:whole],
            "the images are not in their order": expected.flip(0),
        },
    )
    expect(
        not found.requires_grad,
        "expected features without a gradient, found requires_grad = True",
        "wrap the loop in torch.no_grad(), or the whole graph stays in memory",
    )
    expect(
        max(calls) <= batch_size,
        f"expected at most {batch_size} images at a time, found a batch of {max(calls)}",
        "you pass all images at once; split them into batches",
    )
    expect(
        sum(calls) == count,
        f"expected each image to pass the backbone once, found {sum(calls)} for {count} images",
        "you compute features more than once; keep them",
    )
    expect(
        trained,
        "expected the backbone back in train mode, as it was before, found eval mode",
        "remember backbone.training first and restore it at the end",
    )
    expect(
        torch.equal(images, original),
        "expected the images to stay as they were",
        "you changed the images in place",
    )


@check
def cached_features(student: Answer) -> None:
    """2.2: `cached_features(backbone, images, batch_size)` computes frozen features batch by batch,
    once."""
    for count, batch_size in ((8, 3), (6, 2), (1, 4)):
        _features_case(student, count, batch_size)
    passed(
        "cached_features",
        "values in eval mode",
        "order and last batch",
        "batch size",
        "no gradient",
        "mode and statistics restored",
    )
