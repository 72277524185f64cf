"""The embedded images: sheets of 32x32 tiles, decoded once per process."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

ASSETS = Path(__file__).parent / "assets"
TILE = 32


@cache
def emoji(style: str) -> tuple[Tensor, list[dict[str, str]]]:
    """All emoji of one style ("noto" or "twemoji") -> RGBA [1906, 4, 32, 32] in [0, 1], and name,
    category, subcategory of each."""
    facts = json.loads((ASSETS / "emoji.json").read_text())
    return _tiles(f"{style}.webp", "RGBA", len(facts)), facts


@cache
def fashion(split: str) -> tuple[Tensor, list[str]]:
    """Fashion-MNIST photographs of one split -> grey [N, 1, 32, 32] in [0, 1], and the class name
    of each.

    Splits: "upstream" (five classes, for pre-training) and "train", "test" (the five other
    classes).
    """
    facts = json.loads((ASSETS / "fashion.json").read_text())
    keep = [i for i, (_, s) in enumerate(facts) if s == split]
    return _tiles("fashion.webp", "L", len(facts))[keep], [facts[i][0] for i in keep]


def _tiles(file: str, mode: str, count: int) -> Tensor:
    sheet = np.asarray(Image.open(ASSETS / file).convert(mode))
    sheet = sheet.reshape(sheet.shape[0], sheet.shape[1], -1)
    rows, columns, channels = sheet.shape[0] // TILE, sheet.shape[1] // TILE, sheet.shape[2]
    tiles = sheet.reshape(rows, TILE, columns, TILE, channels).transpose(
        0, 2, 4, 1, 3
    )  # [rows, columns, C, 32, 32]
    return torch.from_numpy(tiles.reshape(-1, channels, TILE, TILE)[:count].copy()).float() / 255
