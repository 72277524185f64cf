"""Exercise 2.2, `cached_features`."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from vtlite.checks.base import expect, passed, same
from vtlite.checks.harness import (
    Answer,
    check,
)
from vtlite.checks.inputs import strided, toy_backbone


def _features_case(
    student: Answer, count: int, batch_size: int, seed: int, training: bool, change: Any = None
) -> None:
    backbone = toy_backbone(seed).train(training)
    backbone.head.requires_grad_(False)
    flags = [p.requires_grad for p in backbone.parameters()]
    images = torch.randn(count, 3, 6, 8, generator=torch.Generator().manual_seed(seed + count))
    images = change(images) if change else images
    original, state = images.clone(), {name: t.clone() for name, t in backbone.state_dict().items()}
    found = student(backbone, images, batch_size)
    calls, graph = list(backbone.calls), backbone.graph
    modes = [module.training for module in backbone.modules()]  # whatever an answer left there
    hooked = any(module._forward_hooks for module in backbone.modules())
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
    expect(
        bool(calls) or not count,
        "expected the backbone to be called, found no call",
        "features belong to this backbone and these images: keep nothing between calls",
    )
    whole = count - count % batch_size
    same(
        f"features of {count} images in batches of {batch_size}",
        found,
        expected,
        {
            "the last, smaller batch is missing": expected[:whole],
            "the images are not in their order": expected.flip(0),
            "the first batch alone is there": expected[:batch_size],
        },
    )
    expect(
        not found.requires_grad,
        "expected features without a gradient, found requires_grad = True",
        "wrap the loop in torch.no_grad(), or the whole graph stays in memory",
    )
    expect(
        not graph,
        "expected the backbone to run without a graph, found one built",
        " torch.no_grad()",
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
        all(mode is training for mode in modes),
        f"expected training = {training} in every module of the backbone, as it was before, found"
        f" {next((mode for mode in modes if mode is not training), training)!r}",
        "remember backbone.training first and restore it at the end",
    )
    expect(
        flags == [p.requires_grad for p in backbone.parameters()] and not hooked,
        "expected flags and hooks of the backbone as they were, found them changed",
        "torch.no_grad() needs no requires_grad = False; remove a hook that you register",
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
    for seed, count, batch_size, training in (
        (1, 8, 3, True),
        (2, 6, 2, True),
        (3, 1, 4, True),
        (4, 8, 3, False),
        (5, 5, 1, False),
    ):
        _features_case(student, count, batch_size, seed, training)
    _features_case(student, 7, 3, 6, True, strided)
    passed(
        "cached_features",
        "values in eval mode",
        "order and last batch",
        "batch size",
        "no gradient",
        "mode and statistics restored",
    )
