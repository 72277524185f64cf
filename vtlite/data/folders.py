"""The same protocol over other people's images: a folder of class folders, or any classification
set of torchvision."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.error import URLError

import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor
from torch.utils.data import Dataset, Subset
from torchvision import datasets
from torchvision.transforms import v2

from vtlite.data.tasks import TRAIN, VAL
from vtlite.storage import VTError, unknown
from vtlite.task import Classification, Task

# Sets of torchvision that are no plain classification of images, or whose files cannot be had by
# one argument.
_OTHER = {
    "CelebA",
    "CLEVRClassification",
    "Kinetics",
    "Kitti",
    "LFWPairs",
    "MovingMNIST",
    "PhotoTour",
    "Places365",
    "WIDERFace",
}
# enough to tell methods apart by a per cent or two, and a minute instead of an hour on a laptop
MAX_TEST = 2000


def load_folder(path: str | Path, image_size: int) -> Task:
    """A task from PATH/train/CLASS/*.png and PATH/test/CLASS/*.png (or .jpg, .webp, ...); images
    are read when they are asked for.

    800 training and 200 validation images are drawn by a fixed seed (four fifths and one fifth of
    what there is, if that is less than 1,000), and at most 2,000 test images. Raises `VTError` for
    missing or empty folders and classes that differ between train and test; an image that cannot be
    read is named when its turn comes.
    """
    path = Path(path)
    splits = []
    for name in ("train", "test"):
        if not (path / name).is_dir():
            raise VTError(
                f"expected the folder {path / name} with one folder per class in it, found none; see vt.load_task"
            )
        try:
            splits.append(
                datasets.ImageFolder(path / name, transform=_transform(image_size), loader=_read)
            )
        except FileNotFoundError as error:
            raise VTError(
                f"expected images in every class folder of {path / name}, found none in some ({str(error).split('.')[0]})"
            ) from error
    train, test = splits
    if train.classes != test.classes:
        differing = sorted(set(train.classes) ^ set(test.classes))
        raise VTError(
            f"expected the same class folders in {path / 'train'} and {path / 'test'}, found {', '.join(differing)} in only one of them"
        )
    return _task(f"folder:{path}", train, test, train.classes, f"images of {path}")


def load_torchvision(name: str, root: str | Path, image_size: int) -> Task:
    """A task from one of torchvision's classification data sets, by its class name ("CIFAR10"),
    downloaded to `root` if it is not there.

    The draws are those of `load_folder`. Raises `VTError` for a name that does not exist, or when
    the files are missing and there is no network.
    """
    available = [n for n in datasets.__all__ if _has_splits(getattr(datasets, n))]
    if name not in available:
        raise unknown("torchvision data set", name, available)
    cls = getattr(datasets, name)
    test_splits: list[dict[str, Any]] = (
        [{"train": False}]
        if "train" in inspect.signature(cls).parameters
        else [{"split": "test"}, {"split": "val"}]
    )
    train_split = (
        {"train": True}
        if "train" in test_splits[0]
        else {"split": "trainval" if name == "OxfordIIITPet" else "train"}
    )
    transform = _transform(image_size)
    train = _open(cls, root, train_split, transform)
    try:
        test = _open(cls, root, test_splits[0], transform)
    except VTError:
        raise
    except ValueError:  # a set without public test labels
        test = _open(cls, root, test_splits[-1], transform)
    count = 1 + max(_label(train, i) for i in range(len(train)))
    classes = getattr(train, "classes", None) or [str(i) for i in range(count)]
    return _task(f"torchvision:{name}", train, test, classes, f"torchvision's {name}")


def _has_splits(cls: Any) -> bool:
    if not inspect.isclass(cls) or cls.__name__ in _OTHER:
        return False
    parameters = inspect.signature(cls).parameters
    return bool({"train", "split"} & set(parameters)) and {"root", "transform", "download"} <= set(
        parameters
    )


def _open(cls: Any, root: str | Path, split: dict[str, Any], transform: Any) -> Any:
    try:
        return cls(root, **split, transform=transform)
    except (RuntimeError, FileNotFoundError):  # "not found or corrupted": try to download
        pass
    try:
        return cls(root, **split, transform=transform, download=True)
    except (URLError, OSError, RuntimeError, ValueError) as error:
        raise VTError(
            f"could not download {cls.__name__} ({error}); check the network, or put its files into {root}"
        ) from error


def _task(name: str, train: Any, test: Any, classes: Sequence[str], description: str) -> Task:
    g = torch.Generator().manual_seed(0)
    order = torch.randperm(len(train), generator=g)[: TRAIN + VAL].tolist()
    cut = TRAIN if len(order) == TRAIN + VAL else max(1, len(order) * TRAIN // (TRAIN + VAL))
    held_out = torch.randperm(len(test), generator=g)[:MAX_TEST].tolist()
    if len(order) < 2 or not held_out:
        raise VTError(
            f"expected at least two training images and one test image in {name}, found {len(order)} and {len(held_out)}"
        )
    splits: list[Dataset[tuple[Tensor, int]]] = [
        Subset(train, order[:cut]),
        Subset(train, order[cut:]),
        Subset(test, held_out),
    ]
    return Classification(
        name, tuple(map(str, classes)), *splits, group="natural", description=description
    )


def _transform(size: int) -> v2.Compose:
    """Any image -> RGB floats [3, size, size] in [-1, 1], the shorter side resized and the middle
    kept."""
    return v2.Compose(
        [
            v2.RGB(),
            v2.Resize(size, antialias=True),
            v2.CenterCrop(size),
            v2.ToImage(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize([0.5] * 3, [0.5] * 3),
        ]
    )


def _read(file: str) -> Image.Image:
    try:
        with Image.open(file) as image:
            return image.convert("RGB")
    except (UnidentifiedImageError, OSError, SyntaxError) as error:
        raise VTError(
            f"expected an image, found {file}, which cannot be read ({error}); replace or remove it"
        ) from error


def _label(data: Any, index: int) -> int:
    for attribute in ("targets", "labels", "_labels"):
        if hasattr(data, attribute):
            return int(getattr(data, attribute)[index])
    return int(data[index][1])
