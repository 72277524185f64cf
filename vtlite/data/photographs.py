"""Two tasks of photographs and scans: new kinds of clothing, and handwritten digits."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from vtlite.data import draw
from vtlite.data.images import protocol
from vtlite.data.sheets import TILE, fashion
from vtlite.task import Classification


def clothing(g: Generator) -> Classification:
    """Five kinds of clothing that are not in pre-training, tinted, on coloured backgrounds."""
    classes = tuple(dict.fromkeys(fashion("train")[1]))
    splits: list[Tensor] = []
    for split in ("train", "test"):
        grey, names = fashion(split)
        order = torch.randperm(len(grey), generator=g)
        sprites = draw.place(draw.tinted(grey[order], g), g)
        splits += [
            draw.over(sprites, draw.backgrounds(len(grey), TILE, g)),
            torch.tensor([classes.index(names[i]) for i in order]),
        ]
    return Classification(classes=classes, **protocol(*splits))


def digits(g: Generator) -> Classification:
    """scikit-learn's scans of handwritten digits, in one ink on a coloured background."""
    from sklearn.datasets import load_digits

    scans = load_digits()
    ink = F.interpolate(torch.from_numpy(scans.images).float()[:, None] / 16, 28, mode="bilinear")
    order = torch.randperm(len(ink), generator=g)
    sprites = draw.place(draw.inks(F.pad(ink[order], (2, 2, 2, 2)), g), g, shift=0.1, rotate=10)
    images = draw.over(sprites, draw.backgrounds(len(ink), TILE, g, draw.SOFT))
    labels = torch.from_numpy(scans.target)[order]
    splits = protocol(images[:1000], labels[:1000], images[1000:], labels[1000:])
    return Classification(classes=tuple("0123456789"), **splits)
