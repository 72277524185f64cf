"""Images and their targets, held in memory as bytes; every embedded task is made of these."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import Dataset

from vtlite.backbones.base import Pixels
from vtlite.storage import VTError

Labels = Any  # a tensor whose first dimension is the images', or a dict of such tensors


class ImageDataset(Dataset[tuple[Tensor, Any]]):
    """Images (or clips) and targets; item i is (float image [C, H, W] or clip [T, C, H, W],
    target).

    `images` is uint8 [N, C, H, W] or [N, T, C, H, W]. `labels` decides what a target is: int64 [N]
    gives an int, float [N, C] several labels as zeros and ones, int64 [N, H, W] a mask, and a dict
    of these a dict. Floats are (pixel / 255 - mean) / std: in [-1, 1] unless said otherwise.
    `sources`, where given, is int64 [N]: which drawing (or photograph) each image was made of.
    """

    def __init__(
        self,
        images: Tensor,
        labels: Labels,
        mean: Sequence[float] = (0.5,),
        std: Sequence[float] = (0.5,),
        sources: Tensor | None = None,
    ) -> None:
        parts = labels.values() if isinstance(labels, dict) else [labels]
        if (
            images.dtype != torch.uint8
            or images.ndim not in (4, 5)
            or {len(part) for part in parts} != {len(images)}
        ):
            raise VTError(
                f"expected uint8 images [N, C, H, W] and N labels, found {images.dtype}"
                f" {list(images.shape)} and {' and '.join(str(len(part)) for part in parts)}"
                " labels; convert the images with (image * 255).byte()"
            )
        self.images, self.labels = images, _each(labels, _as_target)
        self.mean, self.std, self.sources = tuple(mean), tuple(std), sources

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, Any]:
        image = normalise(self.images[index], self.mean, self.std)
        return image, _each(self.labels, lambda labels: _item(labels[index]))

    def __getitems__(self, indices: list[int]) -> list[tuple[Tensor, Any]]:
        """What DataLoader calls for a whole batch: one indexing operation instead of one per
        image."""
        images = normalise(self.images[indices], self.mean, self.std)
        if isinstance(self.labels, Tensor) and self.labels.ndim == 1:
            return list(zip(images, self.labels[indices].tolist(), strict=True))
        return [(image, self[i][1]) for image, i in zip(images, indices, strict=True)]

    def subset(self, indices: Sequence[int] | Tensor | slice) -> ImageDataset:
        """Some of the images, in the order of `indices`."""
        labels = _each(self.labels, lambda labels: labels[indices])
        sources = None if self.sources is None else self.sources[indices]
        return ImageDataset(self.images[indices], labels, self.mean, self.std, sources)

    def resized(self, size: int | tuple[int, int], interpolation: str = "bilinear") -> ImageDataset:
        """The same images at another height and width, for backbones of another input size; masks
        take the nearest pixel."""
        side = (size, size) if isinstance(size, int) else size
        if self.images.shape[-2:] == side:
            return self
        frames = self.images.flatten(0, -4)  # [N (T), C, H, W]
        mode = interpolation if interpolation in ("bilinear", "bicubic") else "bilinear"
        batches = [
            F.interpolate(batch.float(), side, mode=mode, antialias=True).round().clamp(0, 255)
            for batch in frames.split(100)
        ]
        images = torch.cat([batch.byte() for batch in batches])
        return ImageDataset(
            images.unflatten(0, self.images.shape[:-3]),
            _each(
                self.labels, lambda labels: _nearest(labels, side) if labels.ndim == 3 else labels
            ),
            self.mean,
            self.std,
            self.sources,
        )

    def fitted(self, pixels: Pixels) -> ImageDataset:
        """The same images in the size and normalisation that a backbone wants."""
        same = self.resized(pixels.size, pixels.interpolation) if pixels.size else self
        return ImageDataset(same.images, same.labels, pixels.mean, pixels.std, same.sources)


def normalise(
    images: Tensor, mean: Sequence[float] = (0.5,), std: Sequence[float] = (0.5,)
) -> Tensor:
    """uint8 pixels [..., C, H, W] -> floats (pixel / 255 - mean) / std; [-1, 1], what the embedded
    backbones were trained on, unless said otherwise."""
    middle, width = (torch.tensor(values).view(-1, 1, 1) for values in (mean, std))
    return images.float() / (255 * width) - middle / width


def as_bytes(images: Tensor) -> Tensor:
    """Floats in [0, 1] -> uint8 pixels."""
    return (images * 255).round().clamp(0, 255).byte()


def joined(parts: Sequence[ImageDataset]) -> ImageDataset:
    """All images of several data sets of one kind, one set after another."""
    images, first = torch.cat([part.images for part in parts]), parts[0]
    if isinstance(first.labels, dict):
        labels: Labels = {k: torch.cat([part.labels[k] for part in parts]) for k in first.labels}
    else:
        labels = torch.cat([part.labels for part in parts])
    return ImageDataset(images, labels, first.mean, first.std)


def _each(labels: Labels, function: Any) -> Any:
    if isinstance(labels, dict):
        return {name: function(part) for name, part in labels.items()}
    return function(labels)


def _as_target(labels: Tensor) -> Tensor:
    return labels.float() if labels.ndim == 2 else labels.long()


def _item(target: Tensor) -> int | Tensor:
    return int(target) if target.ndim == 0 else target


def _nearest(masks: Tensor, size: tuple[int, ...]) -> Tensor:
    """Masks [N, h, w] -> [N, H, W]: each new pixel takes the value of the old one under its
    middle."""
    rows, columns = (
        ((torch.arange(new) + 0.5) * old / new).long()
        for new, old in zip(size, masks.shape[1:], strict=True)
    )
    return masks[:, rows][:, :, columns]


TRAIN, VAL = 800, 200


def protocol(
    images: Tensor, labels: Tensor, test_images: Tensor, test_labels: Tensor
) -> dict[str, Any]:
    """The field's protocol: of images in [0, 1], the first 800 to train on and the others to
    validate, beside a test set -> the three splits by their names."""
    data = ImageDataset(as_bytes(images), labels)
    return {
        "train": data.subset(slice(0, TRAIN)),
        "val": data.subset(slice(TRAIN, TRAIN + VAL)),
        "test": ImageDataset(as_bytes(test_images), test_labels),
    }
