"""Tasks of one emoji a picture: categories, sub-groups, a long tail, and one domain after another.

Every split has drawings of its own. Two concepts that share a drawing, as the flags of two
territories do, count as one.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Generator, Tensor

from vtlite.data import draw
from vtlite.data.images import TRAIN, VAL, ImageDataset, as_bytes, joined, protocol
from vtlite.data.sheets import STYLES, TILE, emoji
from vtlite.task import Classification, Stream

# The sub-groups of which Twemoji has at least twenty drawings, in words, the largest first.
SUBGROUPS = {
    "country-flag": "country flags",
    "person-role": "people at work",
    "animal-mammal": "mammals",
    "person-activity": "people on the move",
    "transport-ground": "road and rail vehicles",
    "sky & weather": "sky and weather",
    "clothing": "clothing",
    "person-sport": "people doing sport",
    "alphanum": "letters in boxes",
    "food-prepared": "prepared food",
    "geometric": "plain shapes",
    "person-fantasy": "fantasy people",
    "time": "clocks",
    "person-gesture": "people making gestures",
    "person": "portraits",
    "place-building": "buildings",
    "sport": "sports equipment",
    "tool": "tools",
    "face-concerned": "worried faces",
    "heart": "hearts",
    "household": "household items",
    "av-symbol": "player buttons",
    "game": "games",
    "office": "office supplies",
    "animal-bird": "birds",
    "other-symbol": "other symbols",
    "event": "festive things",
    "arrow": "arrows",
    "food-fruit": "fruit",
    "drink": "drinks",
}
# From the styles that backbones may be pre-trained on to the two that none of ours has seen.
DOMAINS = ("noto", "noto-v1", "fluent-flat", "fluent", "fxemoji", "twemoji", "high-contrast")
FEW = 24  # drawings that leave 16 to train on, 4 to validate and 4 to test


@dataclass(frozen=True)
class Drawings:
    """What pictures of one split are made of: RGBA sprites [N, 4, S, S] in [0, 1], labels [N] and
    the numbers [N] of the drawings (or, across styles, of the concepts)."""

    sprites: Tensor
    labels: Tensor
    numbers: Tensor

    def __getitem__(self, index: Tensor) -> Drawings:
        return Drawings(self.sprites[index], self.labels[index], self.numbers[index])

    def pick(self, counts: Sequence[int], g: Generator) -> Drawings:
        """`counts[c]` drawings of each class c in random order, each as often as any other of its
        class."""
        picks = []
        for label, count in enumerate(counts):
            own = (self.labels == label).nonzero().flatten()
            rounds = [
                own[torch.randperm(len(own), generator=g)] for _ in range(-(-count // len(own)))
            ]
            picks.append(torch.cat(rounds)[:count])
        every = torch.cat(picks)
        return self[every[torch.randperm(len(every), generator=g)]]


def equal(total: int, classes: int) -> list[int]:
    """`total` pictures over the classes, as equal as can be."""
    return [total // classes + (c < total % classes) for c in range(classes)]


def different(sprites: Tensor) -> Tensor:
    """Where each drawing occurs first -> [M], ascending."""
    first = {drawing: i for i, drawing in reversed(list(enumerate(_visible(sprites))))}
    return torch.tensor(sorted(first.values()))


def _visible(sprites: Tensor) -> list[bytes]:
    """What can be seen of each drawing, for comparing them: colour times opacity, and opacity (or
    all black line drawings would be the same)."""
    seen = torch.cat([sprites[:, :3] * sprites[:, 3:], sprites[:, 3:]], 1)
    return [drawing.tobytes() for drawing in (seen * 255).round().byte().numpy()]


def split(drawings: Drawings, g: Generator) -> tuple[Drawings, Drawings, Drawings]:
    """Three splits without a common number: of each class a fifth (at least four) is to test on, a
    sixth (at least four) to validate, the rest to train on."""
    parts: tuple[list[Tensor], ...] = ([], [], [])
    for label in drawings.labels.unique().tolist():
        own = (drawings.labels == label).nonzero().flatten()
        own = own[torch.randperm(len(own), generator=g)]
        test, val = max(4, len(own) // 5), max(4, len(own) // 6)
        for part, piece in zip(parts, own.split([len(own) - val - test, val, test]), strict=True):
            part.append(piece)
    train, val_part, test_part = (drawings[torch.cat(part)] for part in parts)
    return train, val_part, test_part


def twemoji_drawings(what: str, values: Sequence[str]) -> Drawings:
    """All Twemoji drawings whose fact `what` is one of `values`, labelled by its place there."""
    sprites, facts = emoji("twemoji")
    first = [i for i in different(sprites).tolist() if facts[i][what] in values]
    labels = torch.tensor([values.index(facts[i][what]) for i in first])
    return Drawings(sprites[first], labels, torch.tensor(first))


def categories() -> tuple[str, ...]:
    """The nine groups of emoji, in alphabetical order."""
    return tuple(sorted({fact["category"] for fact in emoji("twemoji")[1]}))


def pictures(drawings: Drawings, g: Generator) -> ImageDataset:
    """Each drawing at a random place on a random background."""
    sprites = draw.place(drawings.sprites, g)
    images = draw.over(sprites, draw.backgrounds(len(sprites), TILE, g))
    return ImageDataset(as_bytes(images), drawings.labels, sources=drawings.numbers)


def twemoji(g: Generator) -> Classification:
    """Nine categories of emoji, every drawing once."""
    sprites, facts = emoji("twemoji")
    classes = categories()
    labels = torch.tensor([classes.index(f["category"]) for f in facts])
    first = different(sprites)
    order = first[torch.randperm(len(first), generator=g)]
    images = draw.over(draw.place(sprites[order], g), draw.backgrounds(len(order), TILE, g))
    labels = labels[order]
    splits = protocol(images[:1000], labels[:1000], images[1000:], labels[1000:])
    return Classification(classes=classes, **splits)


def subgroups(g: Generator) -> Classification:
    """The sub-groups with enough drawings for sixteen shots, as many pictures of each."""
    sprites, facts = emoji("twemoji")
    sizes = Counter(facts[i]["subcategory"] for i in different(sprites).tolist())
    keys = sorted((k for k in SUBGROUPS if sizes[k] >= FEW), key=lambda k: SUBGROUPS[k])
    parts = split(twemoji_drawings("subcategory", keys), g)
    totals = (TRAIN, VAL, 20 * len(keys))
    train, val, test = (
        pictures(part.pick(equal(total, len(keys)), g), g)
        for part, total in zip(parts, totals, strict=True)
    )
    return Classification("", tuple(SUBGROUPS[key] for key in keys), train, val, test)


def longtail(g: Generator) -> Classification:
    """Thirty sub-groups from 100 training pictures down to 2; as many of each to validate and to
    test."""
    keys, last = list(SUBGROUPS), len(SUBGROUPS) - 1
    parts = split(twemoji_drawings("subcategory", keys), g)
    falling = [round(100 * (2 / 100) ** (c / last)) for c in range(len(keys))]
    counts = (falling, [4] * len(keys), [20] * len(keys))
    train, val, test = (
        pictures(part.pick(count, g), g) for part, count in zip(parts, counts, strict=True)
    )
    return Classification("", tuple(SUBGROUPS.values()), train, val, test)


def domains(g: Generator) -> Stream:
    """Eight groups of emoji in one drawing style after another; flags are left out, most styles
    have none.

    400 + 100 + 300 pictures a style, as many of each group. A concept is held out in every style or
    in none.
    """
    classes = tuple(name for name in categories() if name != "Flags")
    held = _held_out(_shared_drawings(), classes)
    stages = []
    for style in DOMAINS:
        sprites, facts = emoji(style)
        known = [i for i, fact in enumerate(facts) if fact["category"] in classes]
        labels = torch.tensor([classes.index(facts[i]["category"]) for i in known])
        concepts = torch.tensor([facts[i]["concept"] for i in known])
        drawings = Drawings(sprites[known], labels, concepts)
        train, val, test = (
            pictures(drawings[held[concepts] == part].pick(equal(total, len(classes)), g), g)
            for part, total in enumerate((400, 100, 300))
        )
        stages.append(Classification(style, classes, train, val, test))
    splits = ([getattr(stage, split) for stage in stages] for split in ("train", "val", "test"))
    train, val, test = map(joined, splits)
    return Stream("", classes, train, val, test, stages=tuple(stages))


def _shared_drawings() -> list[int]:
    """For each concept the first one that it shares a drawing with in any style, or itself."""
    root = list(range(len(emoji("noto")[1])))
    for style in STYLES:
        sprites, facts = emoji(style)
        seen: dict[bytes, int] = {}
        for drawing, fact in zip(_visible(sprites), facts, strict=True):
            mine = root[fact["concept"]]
            other = root[seen.setdefault(drawing, fact["concept"])]
            if other != mine:
                low, high = sorted((mine, other))
                root = [low if r == high else r for r in root]
    return root


def _held_out(root: list[int], classes: Iterable[str]) -> Tensor:
    """0 (train), 1 (val) or 2 (test) for each concept -> [1906].

    Of ten concepts of a group in a row, two are to validate and three to test on. The row goes from
    those that every style draws to those that few do, so that each style has some of all three.
    """
    facts: list[dict[str, Any]] = emoji("noto")[1]
    styles = Counter(fact["concept"] for style in STYLES for fact in emoji(style)[1])
    part = torch.zeros(len(facts), dtype=torch.long)
    for name in classes:
        own = sorted({root[i] for i, fact in enumerate(facts) if fact["category"] == name})
        own.sort(key=lambda concept: -styles[concept])
        for place, concept in enumerate(own):
            part[concept] = (0, 2, 0, 1, 0, 2, 0, 1, 2, 0)[place % 10]
    return part[torch.tensor(root)]
