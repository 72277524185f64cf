"""Tasks of composed pictures: several labels, masks, and several questions about one picture."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from vtlite.data import draw
from vtlite.data.emoji import Drawings, categories, equal, split, twemoji_drawings
from vtlite.data.images import TRAIN, VAL, ImageDataset, as_bytes
from vtlite.data.sheets import TILE
from vtlite.task import Classification, MultiLabel, Segmentation, Several, Task

SIZES = (TRAIN, VAL, 600)
TURN = math.radians(15)


def several(g: Generator) -> MultiLabel:
    """Which of the nine groups do the two or three emoji in the picture belong to?"""
    classes = categories()
    splits = []
    for part, count in zip(_parts(g), SIZES, strict=True):
        images, labels = draw.backgrounds(count, TILE, g), torch.zeros(count, len(classes))
        for sprites, own in _group(part, count, g):
            images = draw.over(sprites, images)
            shown = F.one_hot(own, len(classes)) * (sprites[:, 3].amax((1, 2)) > 0)[:, None]
            labels = torch.maximum(labels, shown.float())
        splits.append(ImageDataset(as_bytes(images), labels))
    train, val, test = splits
    return MultiLabel("", classes, train, val, test)


def masks(g: Generator) -> Segmentation:
    """Which pixels show the emoji, which the busy background?"""
    splits = []
    for part, count in zip(_parts(g), SIZES, strict=True):
        drawn = part.pick(equal(count, 9), g)
        x, y = draw.uniform((2, count), -0.4, 0.4, g)
        scale, angle = draw.uniform((count,), 0.4, 0.9, g), draw.uniform((count,), -TURN, TURN, g)
        sprites = draw.place_at(drawn.sprites, x, y, scale, angle)
        images = draw.over(sprites, draw.busy(count, TILE, g))
        splits.append(ImageDataset(as_bytes(images), _visible(sprites), sources=drawn.numbers))
    train, val, test = splits
    return Segmentation("", ("background", "emoji"), train, val, test)


def scenes(g: Generator) -> Segmentation:
    """For each pixel the group of the emoji that it shows, or the busy background (class 0)."""
    splits = []
    for part, count in zip(_parts(g), SIZES, strict=True):
        images, mask = draw.busy(count, TILE, g), torch.zeros(count, TILE, TILE, dtype=torch.long)
        for sprites, own in _group(part, count, g):
            images = draw.over(sprites, images)
            mask = torch.where(_visible(sprites) > 0, own.view(-1, 1, 1) + 1, mask)
        splits.append(ImageDataset(as_bytes(images), mask))
    train, val, test = splits
    return Segmentation("", ("background", *categories()), train, val, test)


PLACES = tuple(
    f"{row} {column}".replace("middle middle", "middle")
    for row in ("upper", "middle", "lower")
    for column in ("left", "middle", "right")
)


def questions(g: Generator) -> Several:
    """Three questions about one emoji: its group, its place of nine, the pattern behind it."""
    names = {"group": categories(), "place": PLACES, "pattern": draw.PATTERNS}
    splits = []
    for part, count in zip(_parts(g), SIZES, strict=True):
        drawn = part.pick(equal(count, len(names["group"])), g)
        place, pattern = (_shuffled(equal(count, len(names[q])), g) for q in ("place", "pattern"))
        jitter_x, jitter_y = draw.uniform((2, count), -0.08, 0.08, g)
        sprites = draw.place_at(
            drawn.sprites,
            (place % 3 - 1) * 0.5 + jitter_x,
            (place // 3 - 1) * 0.5 + jitter_y,
            draw.uniform((count,), 0.45, 0.55, g),
            draw.uniform((count,), -TURN, TURN, g),
        )
        images = as_bytes(draw.over(sprites, draw.patterns(pattern, TILE, g)))
        labels = {"group": drawn.labels, "place": place, "pattern": pattern}
        splits.append(ImageDataset(images, labels, sources=drawn.numbers))
    train, val, test = splits
    parts: dict[str, Task] = {}
    for question, classes in names.items():
        one, two, three = (ImageDataset(s.images, s.labels[question]) for s in splits)
        parts[question] = Classification(question, classes, one, two, three, "structured")
    return Several("", (), train, val, test, parts=parts)


def _parts(g: Generator) -> tuple[Drawings, Drawings, Drawings]:
    return split(twemoji_drawings("category", categories()), g)


def _group(part: Drawings, count: int, g: Generator) -> list[tuple[Tensor, Tensor]]:
    """Two or three emoji for each picture, in different quarters of it: (RGBA sprites at their
    places [B, 4, S, S], labels [B]) each; the third is invisible in every other picture."""
    quarters = torch.rand(count, 4, generator=g).argsort(1)
    layers = []
    for i in range(3):
        drawn = part.pick(equal(count, 9), g)
        jitter_x, jitter_y = draw.uniform((2, count), -0.1, 0.1, g)
        sprites = draw.place_at(
            drawn.sprites,
            (quarters[:, i] % 2) - 0.5 + jitter_x,
            (quarters[:, i] // 2) - 0.5 + jitter_y,
            draw.uniform((count,), 0.42, 0.52, g),
            draw.uniform((count,), -TURN, TURN, g),
        )
        if i == 2:
            sprites[:, 3:] *= (torch.rand(count, generator=g) < 0.5).view(-1, 1, 1, 1)
        layers.append((sprites, drawn.labels))
    return layers


def _visible(sprites: Tensor) -> Tensor:
    """Where a sprite is more opaque than not: [B, 4, S, S] -> int64 [B, S, S]."""
    return (sprites[:, 3] > 0.5).long()


def _shuffled(counts: list[int], g: Generator) -> Tensor:
    labels = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
    return labels[torch.randperm(len(labels), generator=g)]
