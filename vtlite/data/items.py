"""The data that people bring, as the items that everything here reads: (float image, target).

    TensorDataset, ImageFolder, torchvision, a list of pairs    (image, label)
    Hugging Face's datasets                                     {"image": ..., "label": ...}

A label is an int, NumPy's or a tensor's too; what is no tensor and no number is refused in a
sentence that names the item.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from contextlib import suppress
from itertools import islice
from numbers import Integral, Real
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    RandomSampler,
    SequentialSampler,
    default_collate,
)

from vtlite.data.images import ImageDataset
from vtlite.storage import VTError, said
from vtlite.task import Task

# What data sets of dicts call the two, in the order in which they are looked for.
IMAGE = ("image", "pixel_values", "img", "images", "video")
TARGET = ("label", "labels", "target", "targets", "fine_label")


class Items(Dataset[tuple[Tensor, Any]]):
    """A data set of other people's, item by item as (tensor, target)."""

    def __init__(self, data: Any) -> None:
        self.data = data

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> tuple[Tensor, Any]:
        image, target = _pair(self.data[index], index)
        return _image(image, index), _target(target, index)


class Features(Dataset[tuple[Tensor, Any]]):
    """What a head reads and is to answer, for a whole data set: features [N, ...] and targets [N,
    ...], or a dict of such."""

    def __init__(self, features: Tensor, targets: Any) -> None:
        self.features, self.targets = features, targets

    @property
    def tensors(self) -> tuple[Tensor, Any]:
        """(features, targets), as torch's TensorDataset has them."""
        return self.features, self.targets

    def __len__(self) -> int:
        return len(self.features)

    def __getitem__(self, index: int) -> tuple[Tensor, Any]:
        return self.features[index], picked(self.targets, index)


def picked(targets: Any, index: int) -> Any:
    """One of the targets; of a dict, one of each."""
    if isinstance(targets, dict):
        return {name: picked(each, index) for name, each in targets.items()}
    return targets[index]


def as_items(data: Any, purpose: str) -> Any:
    """A data set whose items are (tensor, target): `data` itself, or `Items` of it.

    Of a `DataLoader` that takes all items of its data set, the data set is taken; the batches are
    made anew. Raises `VTError` for what is no data set, or an empty one.
    """
    if isinstance(data, DataLoader):
        data = _behind(data)
    if isinstance(data, ImageDataset | Items | Features):
        found: Any = data
    else:
        if why := _no_data_set(data):
            raise VTError(f"expected a data set for {purpose}, found {why}")
        found = Items(data)
    if len(found) == 0:
        raise VTError(
            f"expected at least one image in the {purpose} data, found an empty data set; "
            "check the folder or the split"
        )
    return found


def batches(data: Any, batch_size: int, shuffle: bool = False) -> DataLoader[Any]:
    """Batches of the items: images [B, ...] and targets [B, ...], or a dict of such.

    Only a shuffled order draws from torch's own generator.
    """
    own = None if shuffle else torch.Generator()
    return DataLoader(data, batch_size, shuffle, collate_fn=_collated, generator=own)


def _behind(loader: DataLoader[Any]) -> Any:
    data: Any = loader.dataset
    takes_all = (
        isinstance(loader.sampler, RandomSampler | SequentialSampler)
        and type(loader.batch_sampler) is BatchSampler
        and loader.collate_fn in (default_collate, _collated)
        and len(loader.sampler) == len(data)
    )
    if not takes_all:
        raise VTError(
            "expected a data set, found a DataLoader that chooses or changes its items; pass a "
            "data set of what it gives, e.g. torch.utils.data.Subset(loader.dataset, indices)"
        )
    return data


def _no_data_set(data: Any) -> str:
    """What stands in the place of a data set, and what to do; empty where it may be one."""
    if data is None:
        return "None; pass one, e.g. vt.load_task(...).train"
    if isinstance(data, Task):
        return f"the task {data.name or type(data).__name__}; pass one of its splits, as task.test"
    if isinstance(data, str | os.PathLike):
        return f'{said(data)}; load it first, e.g. vt.load_task("folder:PATH")'
    if isinstance(data, Tensor | np.ndarray):
        return "images without labels; pass torch.utils.data.TensorDataset(images, labels)"
    if isinstance(data, Mapping):
        names = ", ".join(map(str, islice(data, 5)))
        return f'a dict of {names or "nothing"}; pass one split of it, e.g. data["train"]'
    pair = isinstance(data, tuple | list) and len(data) == 2
    if pair and all(isinstance(part, Tensor | np.ndarray) for part in data):
        return "a pair of arrays; pass torch.utils.data.TensorDataset(images, labels)"
    try:
        len(data)
    except (TypeError, NotImplementedError):
        lazy = isinstance(data, Iterable)
        return f"{type(data).__name__} without a length; " + (
            "make a list of its items first: list(data)" if lazy else "pass a list of its items"
        )
    if not hasattr(data, "__getitem__"):
        return f"{type(data).__name__} whose items have no numbers; pass list(data)"
    return ""


def _pair(item: Any, index: int) -> tuple[Any, Any]:
    if isinstance(item, Mapping):
        names = [next((n for n in names if n in item), None) for names in (IMAGE, TARGET)]
        if None in names:
            raise VTError(
                f"expected items with one of {', '.join(IMAGE)} and one of {', '.join(TARGET)}, "
                f"found item {index} with {', '.join(map(str, item)) or 'nothing'}; rename its "
                "columns"
            )
        return item[names[0]], item[names[1]]
    if not isinstance(item, tuple | list) or len(item) != 2:
        listed = isinstance(item, tuple | list)
        found = f"{len(item)} things" if listed else type(item).__name__
        raise VTError(
            f"expected items (image, label), found {found} in item {index}; let the data set "
            "return a pair"
        )
    return item[0], item[1]


def _image(value: Any, index: int) -> Tensor:
    """One image as a float tensor."""
    if isinstance(value, Image.Image):
        raise VTError(
            f"expected images as tensors, found a PIL image in item {index}; give the data set the "
            "transform torchvision.transforms.Compose([ToTensor(), Normalize(mean, std)])"
        )
    image = _tensor(value)
    if image is None:
        raise VTError(
            f"expected images as tensors, found {type(value).__name__} in item {index}; convert "
            'it, with Hugging Face by data.with_format("torch")'
        )
    if not image.is_floating_point():
        raise VTError(
            f"expected float images, found dtype {image.dtype} in item {index}; scale the pixels "
            "to floats first, e.g. images.float() / 127.5 - 1"
        )
    if not image.isfinite().all():
        raise VTError(
            f"expected finite pixels, found NaN or infinity in an image, item {index}; clean the "
            "data set first"
        )
    return image


def _target(value: Any, index: int) -> Any:
    """One target as an int, a float, a tensor or a dict of these."""
    if isinstance(value, Mapping):
        return {str(name): _target(each, index) for name, each in value.items()}
    if isinstance(value, bool | np.bool_ | Integral) and abs(int(value)) < 2**63:
        return int(value)
    if isinstance(value, Real) and not isinstance(value, Integral):
        return float(value)
    target = _tensor(value)
    if target is None and isinstance(value, list | tuple) and value:
        with suppress(ValueError, TypeError, RuntimeError):
            target = torch.tensor(value)
    if target is None or target.is_complex():
        what = "an image" if isinstance(value, Image.Image) else said(value)
        hint = "number the classes, e.g. classes.index(label)" if isinstance(value, str) else ""
        raise VTError(
            f"expected labels as numbers or tensors, found {what} in item {index}; "
            f"{hint or 'convert it, or leave the item out'}"
        )
    if target.is_floating_point():
        return target if target.ndim else target.item()
    return target.long() if target.ndim else int(target)


def _tensor(value: Any) -> Tensor | None:
    """A tensor or an array of numbers as a plain tensor; None for anything else."""
    if isinstance(value, np.ndarray | np.generic) and value.dtype.kind in "biuf":
        native = value.astype(value.dtype.newbyteorder("="), copy=False)
        return torch.from_numpy(np.array(native))
    dense = isinstance(value, Tensor) and value.layout == torch.strided and not value.is_quantized
    return value.detach() if dense and not value.is_meta else None


def _collated(items: list[tuple[Tensor, Any]]) -> Any:
    shapes = sorted({tuple(image.shape) for image, _ in items})
    if len(shapes) > 1:
        raise VTError(
            f"expected images of one size, found {' and '.join(map(str, shapes[:2]))}; resize them "
            "in the data set's transform"
        )
    try:
        return default_collate(items)
    except (RuntimeError, TypeError, KeyError, ValueError, OverflowError) as error:
        raise VTError(
            f"expected targets of one kind and shape in all items, found others ({error}); give "
            "every item the same"
        ) from error
