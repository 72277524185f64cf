"""The embedded images: sheets of 32x32 tiles, decoded once per process."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from vtlite.storage import unknown

ASSETS = Path(__file__).parent / "assets"
TILE = 32


STYLES = ("noto", "twemoji", "noto-v1", "fluent-flat", "fluent", "high-contrast", "fxemoji")


@cache
def emoji(style: str) -> tuple[Tensor, list[dict[str, Any]]]:
    """All emoji of one style (see STYLES) -> RGBA [N, 4, 32, 32] in [0, 1], and the facts of each.

    Facts are `concept` (the row of `emoji.json`: the same thing has the same number in every
    style), `name`, `category`, `subcategory`, `label` (plain words) and `tags` (a list of words).
    Noto and Twemoji have all 1,906 concepts, the other styles some of them. Raises `VTError` for
    another style.
    """
    if style not in STYLES:
        raise unknown("drawing style", style, STYLES)
    rows = json.loads((ASSETS / "emoji.json").read_text(encoding="utf-8"))
    sprites = _tiles(f"{style}.webp", "RGBA", len(rows))
    drawn = sprites[:, 3].amax((1, 2)) > 0  # a tile is empty where the style lacks the concept
    facts = [{"concept": i, **row} for i, row in enumerate(rows) if drawn[i]]
    return sprites[drawn], facts


@cache
def fashion(split: str) -> tuple[Tensor, list[str]]:
    """Fashion-MNIST photographs of one split -> grey [N, 1, 32, 32] in [0, 1], and the class name
    of each.

    Splits: "upstream" (five classes, for pre-training) and "train", "test" (the five other
    classes).
    """
    facts = json.loads((ASSETS / "fashion.json").read_text(encoding="utf-8"))
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
