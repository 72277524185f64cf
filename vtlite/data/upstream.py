"""What the embedded backbones are pre-trained on: Noto emoji (98 sub-categories) and photographs of
five kinds of clothing.

None of these images is in a downstream task: `twemoji` has another drawing style, `fashion` the
five other classes.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.utils.data import Dataset

from vtlite.data import draw
from vtlite.data.sheets import TILE, emoji, fashion

EMOJI_REPEATS = (
    4  # 1,906 drawings of 98 kinds need to be seen more often than 5,000 photographs of five
)


class Upstream(Dataset[tuple[Tensor, int]]):
    """RGBA sprites [4, 32, 32] in [0, 1] and one label over all classes of both sources; `augment`
    turns a batch into images."""

    def __init__(self) -> None:
        photographs, names = fashion("upstream")
        drawings, facts = emoji("noto")
        self.classes = (*dict.fromkeys(names), *sorted({f["subcategory"] for f in facts}))
        self._index = {name: i for i, name in enumerate(self.classes)}
        grey = torch.cat([photographs.expand(-1, 3, -1, -1), (photographs * 4).clamp(0, 1)], 1)
        self.sprites = torch.cat([grey, drawings.repeat(EMOJI_REPEATS, 1, 1, 1)])
        self.labels = torch.tensor(
            [self._index[n] for n in names]
            + [self._index[f["subcategory"]] for f in facts] * EMOJI_REPEATS
        )

    def __len__(self) -> int:
        return len(self.sprites)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.sprites[index], int(self.labels[index])

    def __getitems__(self, indices: list[int]) -> list[tuple[Tensor, int]]:
        return list(zip(self.sprites[indices], self.labels[indices].tolist(), strict=True))


def augment(sprites: Tensor) -> Tensor:
    """RGBA sprites [B, 4, 32, 32] -> pictures [B, 3, 32, 32] in [-1, 1]: recoloured, moved and laid
    on random backgrounds.

    Takes its randomness from torch's global generator, which `fit` seeds at the start of each
    epoch.
    """
    count, mirrored = len(sprites), torch.rand(len(sprites)) < 0.5
    sprites = torch.where(mirrored.view(-1, 1, 1, 1), sprites.flip(3), sprites)
    sprites = draw.place(_recoloured(sprites), scale=(0.45, 1.1), shift=0.3, rotate=15)
    return draw.over(sprites, draw.backgrounds(count, TILE)) * 2 - 1


def _recoloured(sprites: Tensor) -> Tensor:
    """Random gain per channel; one sprite in five loses its colours, one in ten is inverted, grey
    photographs are tinted by the gain."""
    colour, alpha = sprites[:, :3], sprites[:, 3:]
    grey = colour.mean(1, keepdim=True).expand_as(colour)
    colour = torch.where(_sometimes(len(sprites), 0.2), grey, colour)
    is_grey = ((colour - grey).abs().amax((1, 2, 3), keepdim=True) < 0.02).float()
    tint = draw.uniform((len(sprites), 3, 1, 1), 0.3, 1.0, None)
    gain = draw.uniform((len(sprites), 3, 1, 1), 0.8, 1.2, None).lerp(tint, is_grey)
    colour = (colour * gain + draw.uniform((len(sprites), 1, 1, 1), -0.1, 0.1, None)).clamp(0, 1)
    return torch.cat([torch.where(_sometimes(len(sprites), 0.1), 1 - colour, colour), alpha], 1)


def _sometimes(count: int, probability: float) -> Tensor:
    return (torch.rand(count) < probability).view(-1, 1, 1, 1)
