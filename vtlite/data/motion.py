"""A task of clips in which only the order of the frames tells the class.

An emoji goes once round eight places of a circle. The classes are four orders of the same eight
places: from one to the next, or to the third from it, either way round. Three and eight have no
common divisor, so every order meets every place once: the frames of a clip, as a set, are the same
whatever its class. The first place is drawn at random, so that each single frame is, too. What
looks at one frame, or at all frames without their order, can't be better than chance.
"""

from __future__ import annotations

import math

import torch
from torch import Generator, Tensor

from vtlite.data import draw
from vtlite.data.emoji import categories, equal, split, twemoji_drawings
from vtlite.data.images import TRAIN, VAL, ImageDataset, as_bytes
from vtlite.data.sheets import TILE
from vtlite.task import Clips

FRAMES = 8
STEPS = {
    "clockwise": 1,
    "anticlockwise": -1,
    "clockwise, leaping": 3,
    "anticlockwise, leaping": -3,
}


def motion(g: Generator) -> Clips:
    """In which order does the emoji visit the eight places?"""
    steps = torch.tensor(list(STEPS.values()))
    parts = split(twemoji_drawings("category", categories()), g)
    splits = []
    for part, count in zip(parts, (TRAIN, VAL, 600), strict=True):
        drawn = part.pick(equal(count, len(categories())), g)
        labels = torch.arange(count) % len(STEPS)
        first = torch.randint(FRAMES, (count,), generator=g)
        clips = as_bytes(_clips(drawn.sprites, first, steps[labels], g))
        splits.append(ImageDataset(clips, labels, sources=drawn.numbers))
    train, val, test = splits
    return Clips("", tuple(STEPS), train, val, test)


def _clips(sprites: Tensor, first: Tensor, step: Tensor, g: Generator) -> Tensor:
    """An emoji [B, 4, S, S] that starts at place `first` [B] and goes `step` [B] places on from
    frame to frame, on one background -> [B, T, 3, S, S].

    Nothing that is drawn from `g` depends on `first` or `step`.
    """
    count = len(sprites)
    middle = draw.uniform((2, count), -0.1, 0.1, g)
    radius, scale = draw.uniform((count,), 0.45, 0.55, g), draw.uniform((count,), 0.35, 0.45, g)
    tilt = draw.uniform((count,), -0.25, 0.25, g)
    behind = draw.backgrounds(count, TILE, g)
    frames = []
    for t in range(FRAMES):
        angle = (first + step * t) % FRAMES * (2 * math.pi / FRAMES)
        x, y = middle[0] + radius * angle.cos(), middle[1] + radius * angle.sin()
        frames.append(draw.over(draw.place_at(sprites, x, y, scale, tilt), behind))
    return torch.stack(frames, 1)
