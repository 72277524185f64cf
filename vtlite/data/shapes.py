"""Two structured tasks of drawn shapes: where is it, and how many are there?"""

from __future__ import annotations

import torch
from torch import Generator, Tensor

from vtlite.data import draw
from vtlite.data.images import protocol
from vtlite.data.sheets import TILE
from vtlite.task import Classification


def location(g: Generator) -> Classification:
    """In which cell of a 4x4 grid does the disc lie, beside one shape of another kind?

    Pre-training asks where the one thing in a picture lies; here is a choice to be made first.
    """
    images, labels = _scene(torch.full((2000,), 2), g, draw.SHAPES.index("disc"))
    names = tuple(f"row {i // 4 + 1}, column {i % 4 + 1}" for i in range(16))
    splits = protocol(images[:1000], labels[:1000], images[1000:], labels[1000:])
    return Classification(classes=names, **splits)


def count(g: Generator) -> Classification:
    """How many shapes are there, one to four?"""
    labels = torch.randint(4, (2000,), generator=g)
    images, _ = _scene(labels + 1, g)
    splits = protocol(images[:1000], labels[:1000], images[1000:], labels[1000:])
    return Classification(classes=tuple("1234"), **splits)


def _scene(number: Tensor, g: Generator, first: int | None = None) -> tuple[Tensor, Tensor]:
    """`number[b]` shapes of random kind and colour in different cells of a 4x4 grid; if `first` is
    given, one of that kind and then only others -> pictures [B, 3, S, S], the first's cell [B]."""
    size, kinds = len(number), len(draw.SHAPES)
    pictures = draw.backgrounds(size, TILE, g, draw.SOFT)
    spots = torch.rand(size, 16, generator=g).argsort(1)
    for i in range(int(number.max())):
        column, row = spots[:, i] % 4, spots[:, i] // 4
        jitter = draw.uniform((2, size), -0.06, 0.06, g)
        kind = torch.randint(kinds if first is None else kinds - 1, (size,), generator=g)
        if first is not None:
            kind = torch.full_like(kind, first) if i == 0 else (first + 1 + kind) % kinds
        cover = draw.shape_coverage(
            kind,
            column / 2 - 0.75 + jitter[0],
            row / 2 - 0.75 + jitter[1],
            draw.uniform((size,), 0.2, 0.26, g),
            draw.uniform((size,), 0, 6.28, g),
            TILE,
        )
        sprites = draw.inks(cover, g)
        sprites[:, 3:] *= (i < number).view(-1, 1, 1, 1)
        pictures = draw.over(sprites, pictures)
    return pictures, spots[:, 0]
