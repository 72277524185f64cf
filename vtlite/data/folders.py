"""The same protocol over other people's images: a folder of class folders, or any classification
set of torchvision."""

from __future__ import annotations

import inspect
import struct
import warnings
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, cast
from urllib.error import URLError

import numpy as np
import torch
from PIL import Image, ImageOps
from torch.utils.data import Subset
from torchvision import datasets
from torchvision.transforms import v2

from vtlite.backbones.base import Pixels
from vtlite.data.images import TRAIN, VAL
from vtlite.data.sheets import TILE
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
# What the image library raises for truncated, empty and damaged files.
_UNREADABLE = (
    OSError,  # UnidentifiedImageError is one
    SyntaxError,
    ValueError,
    EOFError,
    struct.error,
    OverflowError,
)


def load_folder(path: str | Path, pixels: Pixels) -> Task:
    """A task from PATH/train/CLASS/*.png and PATH/test/CLASS/*.png (or .jpg, .webp, ...); images
    are read when they are asked for.

    800 training and 200 validation images are drawn by a fixed seed (four fifths and one fifth of
    what there is, if that is less than 1,000), and at most 2,000 test images. Raises `VTError` for
    missing or empty folders and classes that differ between train and test; an image that cannot be
    read is named when its turn comes.
    """
    path = Path(path).expanduser()
    train, test = (_class_folders(path, split, pixels) for split in ("train", "test"))
    if train.classes != test.classes:
        differing = sorted(set(train.classes) ^ set(test.classes))
        raise VTError(
            f"expected the same class folders in {path / 'train'} and {path / 'test'}, found"
            f" {', '.join(differing)} in only one of them"
        )
    return _task(f"folder:{path}", train, test, train.classes, f"images of {path}")


class _ClassFolders(datasets.ImageFolder):
    """One folder per class; hidden ones, which notebooks and archives leave behind, are none."""

    def find_classes(self, directory: str | Path) -> tuple[list[str], dict[str, int]]:
        names = sorted(f.name for f in Path(directory).iterdir() if f.is_dir())
        names = [name for name in names if not name.startswith((".", "__MACOSX"))]
        if not names:
            raise FileNotFoundError(f"no class folder in {directory}")
        return names, {name: i for i, name in enumerate(names)}


def _class_folders(path: Path, split: str, pixels: Pixels) -> _ClassFolders:
    """The images of one split, or `VTError`."""
    try:
        if not (path / split).is_dir():
            there = [f.name for f in path.iterdir() if f.is_dir()] if path.is_dir() else []
            found = ", ".join(sorted(there)[:5]) or "none"
            raise VTError(
                f"expected the folder {path / split} with one folder per class in it, found {found};"
                " see vt.load_task"
            )
        return _ClassFolders(path / split, _transform(pixels), None, read_image, _is_image)
    except FileNotFoundError as error:
        raise VTError(
            f"expected images in every class folder of {path / split}, found none in some"
            f" ({str(error).split('.')[0]})"
        ) from error
    except (OSError, ValueError) as error:
        if isinstance(error, VTError):
            raise
        raise VTError(
            f"could not read the folder {path / split} ({error}); check its name and permissions"
        ) from error


def load_torchvision(name: str, root: str | Path, pixels: Pixels) -> Task:
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
    transform = _transform(pixels)
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
            f"could not download {cls.__name__} ({error}); check the network, or put its files into"
            f" {root}"
        ) from error


def _task(name: str, train: Any, test: Any, classes: Sequence[str], description: str) -> Task:
    g = torch.Generator().manual_seed(0)
    order = torch.randperm(len(train), generator=g)[: TRAIN + VAL].tolist()
    cut = TRAIN if len(order) == TRAIN + VAL else max(1, len(order) * TRAIN // (TRAIN + VAL))
    held_out = torch.randperm(len(test), generator=g)[:MAX_TEST].tolist()
    if len(order) < 2 or not held_out:
        raise VTError(
            f"expected at least two training images and one test image in {name}, found"
            f" {len(order)} and {len(held_out)}"
        )
    return Classification(
        name=name,
        classes=tuple(map(str, classes)),
        train=Subset(train, order[:cut]),
        val=Subset(train, order[cut:]),
        test=Subset(test, held_out),
        group="natural",
        description=description,
    )


def _transform(pixels: Pixels) -> v2.Compose:
    """Any image -> RGB floats [3, H, W], resized until it covers the size and cut to its middle,
    then (pixel - mean) / std."""
    size = pixels.size or (TILE, TILE)
    bicubic = pixels.interpolation == "bicubic"
    mode = v2.InterpolationMode.BICUBIC if bicubic else v2.InterpolationMode.BILINEAR
    return v2.Compose(
        [
            v2.RGB(),
            partial(_covering, size=size, mode=mode),
            v2.CenterCrop(size),
            v2.ToImage(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(pixels.mean, pixels.std),
        ]
    )


def _covering(image: Image.Image, size: tuple[int, int], mode: v2.InterpolationMode) -> Image.Image:
    """The image made as small (or large) as still covers `size`, height and width; its shape
    kept."""
    scale = max(size[0] / image.height, size[1] / image.width)
    height, width = (
        max(n, round(side * scale)) for n, side in zip(size, image.size[::-1], strict=True)
    )
    return cast(Image.Image, v2.functional.resize(image, [height, width], mode, antialias=True))


def _is_image(file: str) -> bool:
    hidden = Path(file).name.startswith(".")  # such as the ._NAME that a Mac puts into archives
    return not hidden and file.lower().endswith((*datasets.folder.IMG_EXTENSIONS, ".gif"))


def read_image(file: str | Path, most: int | None = None) -> Image.Image:
    """An image file of any kind as RGB: the first frame, turned as its EXIF data say, transparency
    on white, 16 bits scaled to 8. Raises `VTError` for what can't be read, or has more pixels than
    `most` (if not given, than Pillow's limit)."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(file) as image:
                if most is not None and image.width * image.height > most:
                    raise VTError(
                        f"expected an image of at most {most:,} pixels, found "
                        f"{image.width}x{image.height} in {file}; make it smaller"
                    )
                return as_rgb(ImageOps.exif_transpose(image))
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        limit = (Image.MAX_IMAGE_PIXELS or 0) // 10**6
        raise VTError(
            f"expected an image of at most {limit} megapixels, found the larger {file}; "
            "make it smaller first"
        ) from error
    except VTError:
        raise
    except (*_UNREADABLE, MemoryError) as error:
        said = str(error) or type(error).__name__
        raise VTError(
            f"expected an image, found {file}, which cannot be read ({said}); replace or remove it"
        ) from error


def as_rgb(image: Image.Image) -> Image.Image:
    """An image of any mode as RGB: transparency on white, 16 bits and floats scaled to 8 bits."""
    if image.mode.startswith("I") or image.mode == "F":
        return Image.fromarray(_eight_bits(np.asarray(image))).convert("RGB")
    if image.mode in ("LA", "La", "PA", "RGBA", "RGBa") or "transparency" in image.info:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image).convert("RGB")
    return image.convert("RGB")


def _eight_bits(values: np.ndarray) -> np.ndarray:
    """Grey values of 16 bits (0 to 65,535), or floats in [0, 1], as bytes. Raises `ValueError` for
    others: nobody knows what their white is."""
    white = 65535 if np.issubdtype(values.dtype, np.integer) else 1
    if not ((values >= 0) & (values <= white)).all():  # NaN is neither
        raise ValueError(f"its grey values are not from 0 to {white}")
    return (values / white * 255).round().astype(np.uint8)


def _label(data: Any, index: int) -> int:
    for attribute in ("targets", "labels", "_labels"):
        if hasattr(data, attribute):
            return int(getattr(data, attribute)[index])
    return int(data[index][1])
