"""Two structured tasks of drawn shapes: where is it, and how many are there?"""

from __future__ import annotations

import torch
from torch import Generator, Tensor

from vtlite.data import draw
from vtlite.data.images import protocol
from vtlite.data.sheets import TILE
from vtlite.task import Classification


def location(g: Generator) -> Classification:
    """In which cell of a 4x4 grid does the one shape lie?"""
    labels = torch.randint(16, (2000,), generator=g)
    images = _scene(2000, torch.ones(2000, dtype=torch.long), g, labels)
    names = tuple(f"row {i // 4 + 1}, column {i % 4 + 1}" for i in range(16))
    splits = protocol(images[:1000], labels[:1000], images[1000:], labels[1000:])
    return Classification(classes=names, **splits)


def count(g: Generator) -> Classification:
    """How many shapes are there, one to four?"""
    labels = torch.randint(4, (2000,), generator=g)
    images = _scene(2000, labels + 1, g)
    splits = protocol(images[:1000], labels[:1000], images[1000:], labels[1000:])
    return Classification(classes=tuple("1234"), **splits)


def _scene(count: int, number: Tensor, g: Generator, cells: Tensor | None = None) -> Tensor:
    """`number[b]` shapes of random kind and colour in different cells of a 4x4 grid (or one in
    `cells[b]`) -> [B, 3, S, S]."""
    pictures = draw.backgrounds(count, TILE, g, draw.SOFT)
    spots = torch.rand(count, 16, generator=g).argsort(1) if cells is None else cells[:, None]
    for i in range(int(number.max())):
        column, row = spots[:, i] % 4, spots[:, i] // 4
        jitter = draw.uniform((2, count), -0.06, 0.06, g)
        cover = draw.shape_coverage(
            torch.randint(len(draw.SHAPES), (count,), generator=g),
            column / 2 - 0.75 + jitter[0],
            row / 2 - 0.75 + jitter[1],
            draw.uniform((count,), 0.2, 0.26, g),
            draw.uniform((count,), 0, 6.28, g),
            TILE,
        )
        sprites = draw.inks(cover, g)
        sprites[:, 3:] *= (i < number).view(-1, 1, 1, 1)
        pictures = draw.over(sprites, pictures)
    return pictures
