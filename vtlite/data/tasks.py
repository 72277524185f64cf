"""The embedded tasks, each under the field's protocol: 800 training + 200 validation images and a
held-out test set.

Every task is made by one short function from the embedded sheets, scikit-learn's digits or a
drawing program; the same seed gives the same pixels. `vt.load_task("NAME")` is the way in,
`vt.TASKS` the list.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Generator, Tensor
from torch.utils.data import Dataset

from vtlite.backbones.base import pixels_of
from vtlite.data import draw
from vtlite.data.sheets import TILE, emoji, fashion
from vtlite.storage import VTError, unknown
from vtlite.task import Classification, Task

TRAIN, VAL = 800, 200
SOFT = (
    0.5  # contrast of the backgrounds behind vivid ink, so that whatever is asked for can be seen
)


class ImageDataset(Dataset[tuple[Tensor, int]]):
    """Images and labels held in memory; item i is (float image [C, H, W] in [-1, 1], int label).

    `images` is uint8 [N, C, H, W], `labels` int64 [N]; both may be read (but not resized) freely.
    """

    def __init__(self, images: Tensor, labels: Tensor) -> None:
        if images.dtype != torch.uint8 or images.ndim != 4 or len(images) != len(labels):
            raise VTError(
                f"expected uint8 images [N, C, H, W] and N labels, found {images.dtype} {list(images.shape)} and {len(labels)} labels; "
                "convert the images with (image * 255).byte()"
            )
        self.images, self.labels = images, labels.long()

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return normalise(self.images[index]), int(self.labels[index])

    def __getitems__(self, indices: list[int]) -> list[tuple[Tensor, int]]:
        """What DataLoader calls for a whole batch: one indexing operation instead of one per
        image."""
        return list(
            zip(normalise(self.images[indices]), self.labels[indices].tolist(), strict=True)
        )

    def subset(self, indices: Sequence[int] | Tensor | slice) -> ImageDataset:
        return ImageDataset(self.images[indices], self.labels[indices])

    def resized(self, size: int) -> ImageDataset:
        """The same images at another side length (bilinear), for backbones of another input
        size."""
        if self.images.shape[-2:] == (size, size):
            return self
        batches = [
            F.interpolate(b.float(), (size, size), mode="bilinear", antialias=True)
            for b in self.images.split(100)
        ]
        return ImageDataset(torch.cat(batches).round().clamp(0, 255).byte(), self.labels)


def normalise(images: Tensor) -> Tensor:
    """uint8 pixels -> floats in [-1, 1], what the embedded backbones were trained on."""
    return images.float() / 127.5 - 1


@dataclass(frozen=True)
class _Recipe:
    group: str
    description: str
    make: Callable[
        [Generator], tuple[Tensor, Tensor, Tensor, Tensor, tuple[str, ...]]
    ]  # train images, labels, test images, labels, classes


def _fashion(g: Generator) -> tuple[Tensor, Tensor, Tensor, Tensor, tuple[str, ...]]:
    classes = tuple(dict.fromkeys(fashion("train")[1]))
    splits = []
    for split in ("train", "test"):
        grey, names = fashion(split)
        order = torch.randperm(len(grey), generator=g)
        sprites = draw.place(draw.tinted(grey[order], g), g)
        splits += [
            draw.over(sprites, draw.backgrounds(len(grey), TILE, g)),
            torch.tensor([classes.index(names[i]) for i in order]),
        ]
    return splits[0], splits[1], splits[2], splits[3], classes


def _digits(g: Generator) -> tuple[Tensor, Tensor, Tensor, Tensor, tuple[str, ...]]:
    from sklearn.datasets import load_digits

    scans = load_digits()
    ink = F.interpolate(torch.from_numpy(scans.images).float()[:, None] / 16, 28, mode="bilinear")
    order = torch.randperm(len(ink), generator=g)
    sprites = draw.place(draw.inks(F.pad(ink[order], (2, 2, 2, 2)), g), g, shift=0.1, rotate=10)
    images, labels = (
        draw.over(sprites, draw.backgrounds(len(ink), TILE, g, SOFT)),
        torch.from_numpy(scans.target)[order],
    )
    return images[:1000], labels[:1000], images[1000:], labels[1000:], tuple("0123456789")


def _twemoji(g: Generator) -> tuple[Tensor, Tensor, Tensor, Tensor, tuple[str, ...]]:
    sprites, facts = emoji("twemoji")
    classes = tuple(sorted({f["category"] for f in facts}))
    labels = torch.tensor([classes.index(f["category"]) for f in facts])
    # Some concepts share a drawing (a flag of two territories): one of each, or the test set would
    # hold pictures of the training set.
    drawings = ((sprites[:, :3] * sprites[:, 3:]) * 255).round().byte().flatten(1).numpy()
    first = (
        torch.tensor(
            list(
                {
                    drawing.tobytes(): i for i, drawing in reversed(list(enumerate(drawings)))
                }.values()
            )
        )
        .sort()
        .values
    )
    order = first[torch.randperm(len(first), generator=g)]
    images = draw.over(draw.place(sprites[order], g), draw.backgrounds(len(order), TILE, g))
    return images[:1000], labels[order][:1000], images[1000:], labels[order][1000:], classes


def _scene(count: int, number: Tensor, g: Generator, cells: Tensor | None = None) -> Tensor:
    """`number[b]` shapes of random kind and colour in different cells of a 4x4 grid (or one in
    `cells[b]`) -> [B, 3, S, S]."""
    pictures = draw.backgrounds(count, TILE, g, SOFT)
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


def _location(g: Generator) -> tuple[Tensor, Tensor, Tensor, Tensor, tuple[str, ...]]:
    labels = torch.randint(16, (2000,), generator=g)
    images = _scene(2000, torch.ones(2000, dtype=torch.long), g, labels)
    names = tuple(f"row {i // 4 + 1}, column {i % 4 + 1}" for i in range(16))
    return images[:1000], labels[:1000], images[1000:], labels[1000:], names


def _count(g: Generator) -> tuple[Tensor, Tensor, Tensor, Tensor, tuple[str, ...]]:
    labels = torch.randint(4, (2000,), generator=g)
    images = _scene(2000, labels + 1, g)
    return images[:1000], labels[:1000], images[1000:], labels[1000:], tuple("1234")


_RECIPES = {
    "fashion": _Recipe(
        "natural",
        "photographs of five kinds of clothing never seen in pre-training, tinted, on coloured backgrounds",
        _fashion,
    ),
    "digits": _Recipe(
        "specialised",
        "scanned handwritten digits (scikit-learn) in one ink on a coloured background",
        _digits,
    ),
    "twemoji": _Recipe(
        "shifted",
        "nine categories of emoji in a drawing style never seen in pre-training",
        _twemoji,
    ),
    "shapes-location": _Recipe(
        "structured", "in which cell of a 4x4 grid does the one shape lie?", _location
    ),
    "shapes-count": _Recipe("structured", "how many shapes, one to four?", _count),
}
TASKS = tuple(_RECIPES)


def load_task(
    name: str, image_size: int | None = None, like: Any = None, root: str | Path = "data"
) -> Task:
    """Load a task by name -> Task with `.train` (800 images), `.val` (200), `.test`, `.classes`.

    `name` is one of `vt.TASKS`, `"torchvision:CIFAR10"` (any classification set of torchvision,
    downloaded to `root`) or `"folder:PATH"` (PATH/train/CLASS/*.png and PATH/test/CLASS/*.png).
    `image_size` resizes every image to that side. Raises `VTError` for a name that does not exist,
    with the nearest ones that do.
    """
    if image_size is not None and image_size < 1:
        raise VTError(f"expected image_size of at least 1, found {image_size}")
    if like is not None and (size := pixels_of(like).size):
        image_size = size[0]
    kind, _, rest = name.partition(":")
    if rest:
        from vtlite.data.folders import load_folder, load_torchvision

        if kind == "torchvision":
            return load_torchvision(rest, root, image_size or TILE)
        if kind == "folder":
            return load_folder(rest, image_size or TILE)
    if name not in _RECIPES:
        raise unknown("task", name, (*TASKS, "torchvision:CIFAR10", "folder:PATH"))
    recipe = _RECIPES[name]
    images, labels, test_images, test_labels, classes = recipe.make(
        Generator().manual_seed(TASKS.index(name))
    )
    train, test = (
        ImageDataset(_bytes(images), labels),
        ImageDataset(_bytes(test_images), test_labels),
    )
    if image_size:
        train, test = train.resized(image_size), test.resized(image_size)
    return Classification(
        name,
        classes,
        train.subset(slice(0, TRAIN)),
        train.subset(slice(TRAIN, TRAIN + VAL)),
        test,
        recipe.group,
        recipe.description,
    )


def _bytes(images: Tensor) -> Tensor:
    return (images * 255).round().clamp(0, 255).byte()
