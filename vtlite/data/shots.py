"""Few-shot and base-to-new: smaller tasks out of a classification task, as prompt tuning is judged.

`few_shot(task, 16)` keeps sixteen training images a class, `half(task, "new")` the second half of
the classes. Both work on any embedded task of one label an image; `load_task("NAME:new:16-shot")`
is the way in.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Generator, Tensor

from vtlite.data.images import ImageDataset
from vtlite.storage import VTError, unknown
from vtlite.task import Stream, Task

SHOTS = (1, 2, 4, 8, 16)
DRAWS = (0, 1, 2)


def variant(task: Task, options: Sequence[str]) -> Task:
    """The task that the words after its name ask for: a stage of a stream, "base" or "new",
    "K-shot" and the number of the draw, in this order and each only if wanted.

    Raises `VTError` for other words, and for tasks that have no such variant.
    """
    left = list(options)
    stages = {stage.name: stage for stage in task.stages} if isinstance(task, Stream) else {}
    if left and left[0] in stages:
        task = stages[left.pop(0)]
    if left and left[0] in ("base", "new"):
        task = half(task, left.pop(0))
    if left and (found := re.fullmatch(r"(\d{1,4})-shot", left[0])):
        left.pop(0)
        draw = int(left.pop(0)) if left and re.fullmatch(r"\d{1,4}", left[0]) else 0
        task = few_shot(task, int(found[1]), draw)
    if left:
        shots = [f"{k}-shot" for k in SHOTS]
        raise unknown("variant of the task", left[0], [*stages, "base", "new", *shots])
    return task


def few_shot(task: Task, shots: int, draw: int = 0) -> Task:
    """`shots` training images a class and min(shots, 4) validation images; the test set is the
    task's.

    The images of a class show different drawings as far as there are enough. Raises `VTError` for
    another number of shots or draw, and for a class with too few images.
    """
    if shots not in SHOTS:
        raise VTError(f"expected 1, 2, 4, 8 or 16 shots, found {shots}; choose one of these")
    if draw not in DRAWS:
        raise VTError(f"expected draw 0, 1 or 2, found {draw}; leave it out for draw 0")
    g = Generator().manual_seed(draw)
    train, val = (
        _some(_labelled(task, split), count, g, task)
        for split, count in (("train", shots), ("val", min(shots, 4)))
    )
    return replace(task, train=train, val=val)


def half(task: Task, which: str) -> Task:
    """The first ("base") or second ("new") half of the classes, with their images of each split and
    labels from 0."""
    middle = (task.num_classes + 1) // 2
    first, last = (0, middle) if which == "base" else (middle, task.num_classes)
    splits: dict[str, Any] = {}
    for split in ("train", "val", "test"):
        data = _labelled(task, split)
        own = data.subset(((data.labels >= first) & (data.labels < last)).nonzero().flatten())
        own.labels -= first
        splits[split] = own
    return replace(task, classes=task.classes[first:last], **splits)


def _some(data: ImageDataset, count: int, g: Generator, task: Task) -> ImageDataset:
    """`count` images of each class, in random order; other drawings before a drawing's second
    image."""
    order = torch.randperm(len(data), generator=g)
    again = _earlier(data, order)
    order = order[again.argsort(stable=True)]
    picks = []
    for label, name in enumerate(task.classes):
        own = order[data.labels[order] == label][:count]
        if len(own) < count:
            raise VTError(
                f"expected at least {count} images of class {name!r} in {task.name}, found "
                f"{len(own)}; choose fewer shots"
            )
        picks.append(own)
    every = torch.cat(picks)
    return data.subset(every[torch.randperm(len(every), generator=g)])


def _earlier(data: ImageDataset, order: Tensor) -> Tensor:
    """How many images before it in `order` show the same drawing -> [N]."""
    if data.sources is None:
        return torch.zeros(len(order), dtype=torch.long)
    seen: dict[int, int] = {}
    counts = []
    for source in data.sources[order].tolist():
        counts.append(seen.get(source, 0))
        seen[source] = counts[-1] + 1
    return torch.tensor(counts)


def _labelled(task: Task, split: str) -> ImageDataset:
    data = getattr(task, split)
    one_label = isinstance(data, ImageDataset) and getattr(data.labels, "ndim", 0) == 1
    if isinstance(task, Stream) or not one_label:
        raise VTError(
            f"expected an embedded task with one label an image, found {task.name}; "
            "few shots and halves of the classes are made of such tasks only"
        )
    return data
