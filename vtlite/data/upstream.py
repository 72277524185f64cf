"""What the embedded networks are pre-trained on: emoji in five drawing styles, with words and
kinds, and photographs of five kinds of clothing.

None of these images is in a downstream task: Twemoji and the high-contrast emoji are other
drawing styles, `fashion` is the five other classes.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from vtlite.data import draw
from vtlite.data.sheets import TILE, emoji, fashion

STYLES = ("noto", "noto-v1", "fluent-flat", "fluent", "fxemoji")
EMOJI_PROMPTS = ("an emoji of {}", "a picture of {}", "a drawing of {}")
PHOTO_PROMPTS = ("a photo of a {}", "a picture of a {}")
CONCEPT, KIND, GROUP = 0, 1, 2  # what a caption may be about, from the finest to the coarsest
CLOTHING = 6  # one picture in so many is a photograph
DRAWN = 4  # one emoji in so many becomes a black line drawing


@dataclass(frozen=True)
class Batch:
    """B pictures, each with a caption and with what the losses ask about it."""

    images: Tensor  # [B, 3, 32, 32] in [-1, 1]
    captions: list[str]
    about: Tensor  # [B], whether the caption is about the CONCEPT, KIND or GROUP
    topics: Tensor  # [B, 3], the picture's concept, kind and group
    labels: Tensor  # [B], indices into `Upstream.classes`
    where: Tensor  # [B, 3], centre x and y and size of what is drawn, in half sides


class Upstream:
    """All upstream sprites, RGBA [N, 4, 32, 32] in [0, 1], with the facts to caption them.

    Labels run over `classes`: the sub-categories of emoji, then the five kinds of clothing. In
    `topics`, clothing is of the kind and group that emoji of clothes are of.
    """

    def __init__(self, styles: Sequence[str] = STYLES) -> None:
        photographs, names = fashion("upstream")
        kinds = sorted({fact["subcategory"] for fact in emoji("noto")[1]})
        groups = sorted({fact["category"] for fact in emoji("noto")[1]})
        garments = tuple(dict.fromkeys(names))
        self.classes = (*kinds, *garments)
        drawings, self.facts = [], []
        for style in styles:
            sprites, facts = emoji(style)
            drawings.append(sprites)
            self.facts += facts
        self.emojis = len(self.facts)
        concepts = len(emoji("noto")[1])
        self.facts += [
            {
                "concept": concepts + garments.index(name),
                "label": name,
                "tags": [],
                "subcategory": "clothing",
                "category": "Objects",
            }
            for name in names
        ]
        grey = torch.cat([photographs.expand(-1, 3, -1, -1), (photographs * 4).clamp(0, 1)], 1)
        self.sprites = torch.cat([*drawings, grey])
        self.topics = torch.tensor(
            [
                (fact["concept"], kinds.index(fact["subcategory"]), groups.index(fact["category"]))
                for fact in self.facts
            ]
        )
        self.labels = self.topics[:, KIND].clone()
        self.labels[self.emojis :] = torch.tensor([self.classes.index(name) for name in names])
        sided = ("left", "right", "clockwise", "flag")
        self.mirrors = torch.tensor(
            [not any(word in fact["label"].lower() for word in sided) for fact in self.facts]
        )

    def __len__(self) -> int:
        return len(self.sprites)

    def names(self) -> list[str]:
        """The label of every concept, by number."""
        labels = {fact["concept"]: fact["label"] for fact in (*emoji("noto")[1], *self.facts)}
        return [labels[concept] for concept in sorted(labels)]

    def texts(self) -> list[str]:
        """Everything that a caption can say."""
        return [
            *EMOJI_PROMPTS,
            *PHOTO_PROMPTS,
            *(plain(fact[level]) for fact in self.facts for level in ("subcategory", "category")),
            *(text for fact in self.facts for text in (fact["label"], *fact["tags"])),
        ]

    def batch(self, count: int, seed: int) -> Batch:
        """`count` augmented pictures with captions; the same seed gives the same batch."""
        g, words = Generator().manual_seed(seed), random.Random(seed)
        photographs = count // CLOTHING
        rows = torch.cat(
            [
                torch.randint(self.emojis, (count - photographs,), generator=g),
                torch.randint(self.emojis, len(self), (photographs,), generator=g),
            ]
        )
        sprites = self.sprites[rows]
        mirrored = self.mirrors[rows] & (torch.rand(count, generator=g) < 0.5)
        sprites = torch.where(mirrored.view(-1, 1, 1, 1), sprites.flip(3), sprites)
        drawn = (count - photographs) // DRAWN  # rows are in random order, so the first will do
        sprites = torch.cat([line_drawing(sprites[:drawn], g), _recoloured(sprites[drawn:], g)])
        images, where = augment(sprites, g)
        captions, about = zip(*(self._caption(row, words) for row in rows.tolist()), strict=True)
        return Batch(
            images,
            list(captions),
            torch.tensor(about),
            self.topics[rows],
            self.labels[rows],
            where,
        )

    def _caption(self, row: int, words: random.Random) -> tuple[str, int]:
        """A caption of one sprite, and what it is about."""
        fact, chance = self.facts[row], words.random()
        label, tags = fact["label"], fact["tags"]
        prompt = words.choice(EMOJI_PROMPTS if row < self.emojis else PHOTO_PROMPTS)
        if chance < 0.12:
            kind = plain(fact["subcategory"])
            return (prompt.format(kind) if chance < 0.06 else kind), KIND
        if chance < 0.20:
            group = plain(fact["category"])
            return (prompt.format(group) if chance < 0.16 else group), GROUP
        if chance < 0.40:
            return prompt.format(label), CONCEPT
        if chance < 0.65 and tags:
            some = words.sample(tags, min(3, len(tags)))
            return " ".join(some if chance < 0.48 else [label, *some]), CONCEPT
        return label, CONCEPT


def plain(name: str) -> str:
    """A category as words: "animal-bird" -> "animal bird"."""
    return name.replace("-", " ").lower()


def augment(sprites: Tensor, g: Generator | None = None) -> tuple[Tensor, Tensor]:
    """RGBA sprites [B, 4, 32, 32] -> pictures [B, 3, 32, 32] in [-1, 1], moved and laid on random
    backgrounds; and where they lie: centre x and y and size [B, 3] in half sides."""
    sprites = draw.place(sprites, g, scale=(0.5, 1.1), shift=0.25, rotate=15)
    cover = sprites[:, 3]  # [B, 32, 32]
    total = cover.sum((1, 2)).clamp(min=1)
    axis = (torch.arange(TILE) + 0.5) * 2 / TILE - 1
    where = torch.stack(
        [cover.sum(1) @ axis / total, cover.sum(2) @ axis / total, total.sqrt() / TILE * 2], 1
    )
    return draw.over(sprites, draw.backgrounds(len(sprites), TILE, g)) * 2 - 1, where


def line_drawing(sprites: Tensor, g: Generator | None = None) -> Tensor:
    """The sprites in black ink: [B, 4, 32, 32] -> [B, 4, 32, 32].

    Ink is where luminance or transparency change (Sobel edges above a random threshold), in every
    other picture also where the sprite is dark.
    """
    count, alpha = len(sprites), sprites[:, 3:]
    light = sprites[:, :3].mean(1, keepdim=True) * alpha + 1 - alpha  # on white paper
    sobel = torch.tensor([[-1.0, 0.0, 1.0], [-2.0, 0.0, 2.0], [-1.0, 0.0, 1.0]]) / 4
    kernels = torch.stack([sobel, sobel.T])[:, None]  # [2, 1, 3, 3]
    slopes = [F.conv2d(F.pad(x, (1, 1, 1, 1), "replicate"), kernels) for x in (light, alpha)]
    edges = torch.maximum(*(slope.square().sum(1, keepdim=True).sqrt() for slope in slopes))
    threshold = draw.uniform((count, 1, 1, 1), 0.1, 0.4, g)
    ink = ((edges - threshold) * 6).clamp(0, 1)
    dark = ((draw.uniform((count, 1, 1, 1), 0.2, 0.5, g) - light) * 6).clamp(0, 1)
    ink = torch.where(_sometimes(count, 0.5, g), torch.maximum(ink, dark), ink)
    return torch.cat([torch.zeros_like(sprites[:, :3]), ink], 1)


def _recoloured(sprites: Tensor, g: Generator | None = None) -> Tensor:
    """Random gain per channel; one sprite in five loses its colours, one in twenty is inverted,
    grey photographs are tinted by the gain."""
    count, colour, alpha = len(sprites), sprites[:, :3], sprites[:, 3:]
    grey = colour.mean(1, keepdim=True).expand_as(colour)
    colour = torch.where(_sometimes(count, 0.2, g), grey, colour)
    is_grey = ((colour - grey).abs().amax((1, 2, 3), keepdim=True) < 0.02).float()
    tint = draw.uniform((count, 3, 1, 1), 0.3, 1.0, g)
    gain = draw.uniform((count, 3, 1, 1), 0.8, 1.2, g).lerp(tint, is_grey)
    colour = (colour * gain + draw.uniform((count, 1, 1, 1), -0.1, 0.1, g)).clamp(0, 1)
    return torch.cat([torch.where(_sometimes(count, 0.05, g), 1 - colour, colour), alpha], 1)


def _sometimes(count: int, probability: float, g: Generator | None) -> Tensor:
    return (torch.rand(count, generator=g) < probability).view(-1, 1, 1, 1)
