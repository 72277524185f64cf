"""Other people's images under the same protocol: folders of class folders, and torchvision's sets
(stand-ins, no network)."""

from __future__ import annotations

import math
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar
from urllib.error import URLError

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torchvision import datasets

import vtlite as vt
from vtlite.backbones.base import Pixels
from vtlite.data.folders import load_folder, load_torchvision

COLOURS = {"blue": (0, 0, 255), "red": (255, 0, 0)}


def write_images(
    folder: Path, colour: tuple[int, int, int], count: int, ending: str = "png"
) -> None:
    """Pictures of one colour, each with its own number in the grey corner pixel."""
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(count):
        picture = Image.new("RGB", (12, 12), colour)
        picture.putpixel((0, 0), (i, i, i))
        picture.save(folder / f"{i:03}.{ending}")


@pytest.fixture
def images(tmp_path: Path) -> Path:
    for split, count in (("train", 10), ("test", 3)):
        for name, colour in COLOURS.items():
            write_images(tmp_path / split / name, colour, count)
    return tmp_path


def load(path: Path, image_size: int | None = None) -> vt.Task:
    return vt.load_task(f"folder:{path}", image_size)


def items(data: Any) -> list[tuple[Tensor, int]]:
    return [data[i] for i in range(len(data))]


def contents(data: Any) -> set[bytes]:
    return {image.numpy().tobytes() for image, _ in items(data)}


def message(path: Path) -> str:
    with pytest.raises(vt.VTError) as error:
        load(path)
    assert "\n" not in str(error.value)
    return str(error.value)


# Folders
# -------------------------------------------------------------------------------------------------


def test_four_fifths_train_one_fifth_val_and_all_of_test(images: Path) -> None:
    task = load(images, 12)
    assert task.sizes == (16, 4, 6)
    assert task.classes == ("blue", "red")
    assert len(contents(task.train) | contents(task.val)) == 20  # every image once, none in both


def test_labels_are_the_folders(images: Path) -> None:
    task = load(images)
    for data in (task.train, task.val, task.test):
        for image, label in items(data):
            expected = torch.tensor(COLOURS[task.classes[label]]) / 127.5 - 1
            assert torch.allclose(image[:, 16, 16], expected, atol=1e-6)


@pytest.mark.parametrize(("image_size", "side"), [(None, 32), (20, 20)])
def test_images_are_floats_from_minus_one_to_one_at_the_size_asked_for(
    images: Path, image_size: int | None, side: int
) -> None:
    image, label = load(images, image_size).train[0]
    assert image.shape == (3, side, side)
    assert image.dtype == torch.float32
    assert (image.min(), image.max()) == (-1, 1)
    assert isinstance(label, int)


def test_two_loads_draw_the_same(images: Path) -> None:
    first, again = load(images), load(images)
    for a, b in ((first.train, again.train), (first.val, again.val), (first.test, again.test)):
        assert all(
            torch.equal(x, y) and i == j for (x, i), (y, j) in zip(items(a), items(b), strict=True)
        )


def test_the_middle_of_a_wide_picture_is_kept(images: Path) -> None:
    wide = Image.new("RGB", (48, 16), (255, 0, 0))
    wide.paste((0, 255, 0), (16, 0, 32, 16))
    for path in (images / "test").rglob("*.png"):
        wide.save(path)
    image, _ = load(images, 16).test[0]
    assert (image[1] > 0.9).all()
    assert (image[0] < -0.9).all()


HALF = 32768 / 65535 * 2 - 1


def grey16(path: Path) -> None:
    values = np.full((12, 12), 32768, np.uint16)
    values[:, :4], values[:, 8:] = 0, 65535
    Image.fromarray(values).save(path)


def floats(path: Path) -> None:
    values = np.full((12, 12), HALF / 2 + 0.5, np.float32)
    values[:, :4], values[:, 8:] = 0, 1
    Image.fromarray(values).save(path)


def palette(path: Path) -> None:
    """Three colours, the last of them transparent."""
    picture = Image.new("P", (12, 12))
    picture.putpalette([0, 0, 0, 128, 128, 128, 255, 0, 0])
    picture.paste(1, (4, 0, 8, 12))
    picture.paste(2, (8, 0, 12, 12))
    picture.save(path, transparency=2)


def cmyk(path: Path) -> None:
    picture = Image.new("CMYK", (12, 12), (0, 0, 0, 127))
    picture.paste((0, 0, 0, 255), (0, 0, 4, 12))
    picture.paste((0, 0, 0, 0), (8, 0, 12, 12))
    picture.save(path)


def two_frames(path: Path) -> None:
    picture = thirds()
    picture.save(path, save_all=True, append_images=[Image.new("RGB", (12, 12), "red")])


def turned(path: Path) -> None:
    """Stored on its side; its EXIF data say to turn it by a quarter, clockwise."""
    exif = Image.Exif()
    exif[0x0112] = 6
    thirds().rotate(90).save(path, exif=exif)


def one_bit(path: Path) -> None:
    """Black, a fine check, white."""
    values = np.indices((12, 12)).sum(0) % 2 == 1
    values[:, :4], values[:, 8:] = False, True
    Image.fromarray(values).save(path)


def grey_alpha(path: Path) -> None:
    """Black; black, half transparent; black, wholly so."""
    picture = Image.new("LA", (12, 12), (0, 255))
    picture.paste((0, 127), (4, 0, 8, 12))
    picture.paste((0, 0), (8, 0, 12, 12))
    picture.save(path)


def thirds() -> Image.Image:
    picture = Image.new("RGB", (12, 12), (128, 128, 128))
    picture.paste((0, 0, 0), (0, 0, 4, 12))
    picture.paste((255, 255, 255), (8, 0, 12, 12))
    return picture


@pytest.mark.parametrize(
    ("write", "ending"),
    [
        (grey16, "png"),
        (grey16, "tif"),
        (floats, "tif"),
        (palette, "png"),
        (palette, "gif"),
        (cmyk, "tif"),
        (cmyk, "jpg"),
        (two_frames, "png"),
        (two_frames, "webp"),
        (turned, "png"),
        (turned, "jpg"),
        (one_bit, "png"),
        (grey_alpha, "png"),
    ],
)
def test_every_kind_of_file_becomes_the_picture_that_it_shows(
    images: Path, write: Callable[[Path], None], ending: str
) -> None:
    """Black on the left, grey in the middle, white on the right."""
    for path in list((images / "test").rglob("*.png")):
        path.unlink()
        write(path.with_suffix(f".{ending}"))
    for image, _ in items(load(images, 12).test):
        assert image.shape == (3, 12, 12)
        tolerance = 0.05 if ending in ("jpg", "webp") else 0.01
        found = [
            image[:, :, columns].mean().item()
            for columns in (slice(0, 3), slice(4, 8), slice(9, 12))
        ]
        assert found == pytest.approx([-1, HALF, 1], abs=tolerance)


@pytest.mark.parametrize("mode", ["L", "1", "P", "LA", "RGBA", "CMYK", "I;16"])
def test_every_mode_becomes_rgb(images: Path, mode: str) -> None:
    ending = "tif" if mode in ("CMYK", "I;16") else "png"
    for path in list((images / "test").rglob("*.png")):
        path.unlink()
        Image.new(mode, (12, 12)).save(path.with_suffix(f".{ending}"))
    assert {image.shape for image, _ in items(load(images).test)} == {(3, 32, 32)}


@pytest.mark.parametrize("side", [10_000, 20_000])
def test_a_huge_picture_is_named_before_it_is_decoded(
    images: Path, side: int, recwarn: pytest.WarningsRecorder
) -> None:
    """100 and 400 megapixels by the file's header; the pixels are not even there."""
    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    chunks = b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        for name, data in ((b"IHDR", header), (b"IDAT", zlib.compress(b"")), (b"IEND", b""))
    )
    for path in (images / "test").rglob("*.png"):
        path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunks)
    with pytest.raises(
        vt.VTError, match=r"expected an image of at most 89 megapixels, found .*\.png"
    ):
        load(images).test[0]
    assert not list(recwarn)


def test_a_backbone_s_shape_and_normalisation_are_kept(images: Path) -> None:
    pixels = Pixels((10, 20), (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
    image, label = load_folder(images, pixels).test[0]  # type: ignore[index]
    assert image.shape == (3, 10, 20)
    assert image[:, 5, 10].tolist() == pytest.approx(
        [c / 255 for c in list(COLOURS.values())[label]]
    )


@pytest.mark.parametrize("ending", ["jpg", "JPEG", "webp", "bmp"])
def test_other_formats_are_read(images: Path, ending: str) -> None:
    write_images(images / "train" / "red", COLOURS["red"], 5, ending)
    assert sum(load(images).sizes[:2]) == 25


def test_a_thousand_images_are_drawn_of_more(tmp_path: Path) -> None:
    for split, count in (("train", 1005), ("test", 2003)):
        for name in COLOURS:
            (tmp_path / split / name).mkdir(parents=True)
            for i in range(count // 2 + 1):
                (
                    tmp_path / split / name / f"{i}.png"
                ).touch()  # images are read only when asked for
    task: Any = load(tmp_path)
    assert task.sizes == (800, 200, 2000)
    assert not set(task.train.indices) & set(task.val.indices)
    assert len(set(task.test.indices)) == 2000


def test_a_missing_folder_is_named(tmp_path: Path, images: Path) -> None:
    assert (
        f"expected the folder {tmp_path / 'none' / 'train'} with one folder per class"
        in message(tmp_path / "none")
    )
    (images / "test").rename(images / "testing")
    assert f"expected the folder {images / 'test'}" in message(images)


def test_no_class_folders_or_an_empty_one_are_told(images: Path) -> None:
    (images / "test" / "green").mkdir()
    (images / "train" / "green").mkdir()
    assert f"expected images in every class folder of {images / 'train'}" in message(images)
    for path in sorted((images / "train").rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    assert f"expected images in every class folder of {images / 'train'}" in message(images)


def test_classes_must_be_the_same_in_train_and_test(images: Path) -> None:
    (images / "test" / "red").rename(images / "test" / "rot")
    assert "found red, rot in only one of them" in message(images)


def test_one_training_image_is_too_few(images: Path) -> None:
    for split, keep in (("train", 1), ("test", 3)):
        (images / split / "blue").rename(images / f"{split}-blue")
        for path in list((images / split / "red").iterdir())[keep:]:
            path.unlink()
    assert "expected at least two training images and one test image" in message(images)
    assert "found 1 and 3" in message(images)


def test_two_training_images_are_enough(images: Path) -> None:
    for name in COLOURS:
        for path in list((images / "train" / name).iterdir())[1:]:
            path.unlink()
    assert load(images).sizes == (1, 1, 6)


def not_an_image(path: Path) -> None:
    path.write_text("hello", encoding="utf-8")


def truncated(path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)
    Image.fromarray(noise).save(path)
    path.write_bytes(path.read_bytes()[:2000])


def empty(path: Path) -> None:
    path.write_bytes(b"")


@pytest.mark.parametrize("spoil", [not_an_image, truncated, empty])
def test_an_unreadable_image_is_named_when_its_turn_comes(
    images: Path, spoil: Callable[[Path], None]
) -> None:
    bad = images / "test" / "red" / "001.png"
    spoil(bad)
    task = load(images)
    assert len(items(task.train)) == 16
    with pytest.raises(vt.VTError, match=r"which cannot be read .* replace or remove it") as error:
        items(task.test)
    assert str(bad) in str(error.value)


# torchvision
# -------------------------------------------------------------------------------------------------


class Stand:
    """Stands in for a set of torchvision: `here` says whether its files are on disk, `network`
    whether it can be downloaded."""

    here: ClassVar[bool] = True
    network: ClassVar[bool] = False
    count: ClassVar[int] = 1100
    downloads: ClassVar[list[str]] = []

    def open(self, part: str, transform: Any, download: bool) -> None:
        if not type(self).here:
            if not download:
                raise RuntimeError(
                    "Dataset not found or corrupted. You can use download=True to download it"
                )
            if not type(self).network:
                raise URLError("no route to host")
            self.downloads.append(part)
        self.part, self.transform = part, transform
        self.targets = [
            i % 3 for i in range(self.count if part.startswith("train") else self.count // 2)
        ]

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        """A grey picture whose brightness is the label, with the index and the part in its
        corner."""
        pixels = np.full((28, 28), 100 * self.targets[index], np.uint8)
        pixels[0, :3] = index % 256, index // 256, 255 * self.part.startswith("train")
        return self.transform(Image.fromarray(pixels)), self.targets[index]


class ByTrain(Stand):
    classes: ClassVar[list[str]] = ["zero", "one", "two"]

    def __init__(
        self,
        root: Path,
        train: bool = True,
        transform: Any = None,
        target_transform: Any = None,
        download: bool = False,
    ) -> None:
        self.open("train" if train else "test", transform, download)


class BySplit(Stand):
    allowed: ClassVar[tuple[str, ...]] = ("train", "test")

    def __init__(
        self,
        root: Path,
        split: str = "train",
        transform: Any = None,
        target_transform: Any = None,
        download: bool = False,
    ) -> None:
        if split not in self.allowed:
            raise ValueError(f"Unknown value '{split}' for argument split.")
        self.open(split, transform, download)


@pytest.fixture
def stand(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    def put(name: str, base: type[Stand], **attributes: Any) -> None:
        monkeypatch.setattr(datasets, name, type(name, (base,), {"downloads": [], **attributes}))

    return put


Put = Callable[..., None]


def test_a_torchvision_set_follows_the_protocol(stand: Put, tmp_path: Path) -> None:
    stand("CIFAR10", ByTrain)
    task: Any = vt.load_task("torchvision:CIFAR10", root=tmp_path)
    assert task.sizes == (800, 200, 550)
    assert task.classes == ("zero", "one", "two")
    image, label = task.train[0]
    assert image.shape == (3, 32, 32)
    assert float(image[0, 16, 16]) == pytest.approx(100 * label / 127.5 - 1, abs=1e-6)
    assert vt.load_task("torchvision:CIFAR10", image_size=48, root=tmp_path).test[0][0].shape == (
        3,
        48,
        48,
    )


def test_its_splits_share_no_image_and_are_the_same_each_time(stand: Put, tmp_path: Path) -> None:
    stand("CIFAR10", ByTrain)
    first, again = (vt.load_task("torchvision:CIFAR10", 28, tmp_path) for _ in range(2))
    train, val, test = (contents(data) for data in (first.train, first.val, first.test))
    assert (len(train), len(val), len(test)) == (800, 200, 550)
    assert not train & val
    assert not (train | val) & test
    assert contents(again.val) == val
    assert [label for _, label in items(again.train)] == [label for _, label in items(first.train)]


def test_a_large_test_set_is_cut_to_two_thousand(stand: Put, tmp_path: Path) -> None:
    stand("CIFAR10", ByTrain, count=5000)
    assert vt.load_task("torchvision:CIFAR10", root=tmp_path).sizes == (800, 200, 2000)


def test_nothing_is_downloaded_that_is_there(stand: Put, tmp_path: Path) -> None:
    stand("CIFAR10", ByTrain, network=True)
    vt.load_task("torchvision:CIFAR10", root=tmp_path)
    assert vars(datasets.CIFAR10)["downloads"] == []


def test_what_is_missing_is_downloaded(stand: Put, tmp_path: Path) -> None:
    stand("CIFAR10", ByTrain, here=False, network=True)
    assert vt.load_task("torchvision:CIFAR10", root=tmp_path).sizes == (800, 200, 550)
    assert vars(datasets.CIFAR10)["downloads"] == ["train", "test"]


def test_no_network_is_a_sentence_with_what_to_do(stand: Put, tmp_path: Path) -> None:
    stand("CIFAR10", ByTrain, here=False)
    with pytest.raises(
        vt.VTError, match=r"could not download CIFAR10 .*check the network, or put its files into"
    ) as error:
        vt.load_task("torchvision:CIFAR10", root=tmp_path)
    assert str(tmp_path) in str(error.value)


def test_a_test_split_that_cannot_be_downloaded_is_that_sentence_too(
    stand: Put, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stand("SVHN", BySplit)
    real = BySplit.open

    def only_train_is_here(self: BySplit, part: str, transform: Any, download: bool) -> None:
        type(self).here = part == "train"
        real(self, part, transform, download)

    monkeypatch.setattr(BySplit, "open", only_train_is_here)
    with pytest.raises(vt.VTError, match="could not download SVHN"):
        vt.load_task("torchvision:SVHN", root=tmp_path)


@pytest.mark.parametrize(
    ("name", "allowed", "train", "test"),
    [
        ("DTD", ("train", "val", "test"), "train", "test"),
        ("Imagenette", ("train", "val"), "train", "val"),
        ("OxfordIIITPet", ("trainval", "test"), "trainval", "test"),
    ],
)
def test_sets_with_named_splits(
    stand: Put, tmp_path: Path, name: str, allowed: tuple[str, ...], train: str, test: str
) -> None:
    stand(name, BySplit, allowed=allowed)
    task: Any = vt.load_task(f"torchvision:{name}", root=tmp_path)
    assert task.train.dataset.part == task.val.dataset.part == train
    assert task.test.dataset.part == test
    assert task.classes == ("0", "1", "2")  # a set without names gets numbers


@pytest.mark.parametrize(
    "name",
    [
        "CIFAR10",
        "CIFAR100",
        "MNIST",
        "FashionMNIST",
        "SVHN",
        "DTD",
        "Flowers102",
        "OxfordIIITPet",
        "EuroSAT",
    ],
)
def test_the_usual_sets_are_known(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if name == "EuroSAT":  # no official splits, so there is no test set to report on
        with pytest.raises(vt.VTError, match="unknown torchvision data set"):
            load_torchvision(name, tmp_path, Pixels((32, 32)))
        return

    def unreachable(*args: object, **kwargs: object) -> None:
        raise URLError("no route to host")

    for fetch in ("urllib.request.urlopen", "socket.create_connection"):
        monkeypatch.setattr(fetch, unreachable)
    with pytest.raises(vt.VTError, match=f"could not download {name} "):
        load_torchvision(name, tmp_path, Pixels((32, 32)))


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("CIFR10", "did you mean 'CIFAR10'"),
        ("cifar100", "unknown torchvision data set"),
        ("FakeData", "unknown"),
        ("__all__", "unknown"),
    ],
)
def test_an_unknown_set_is_answered_with_the_nearest(name: str, sentence: str) -> None:
    with pytest.raises(vt.VTError) as error:
        vt.load_task(f"torchvision:{name}")
    assert sentence in str(error.value)


@pytest.mark.parametrize(
    "name", ["Places365", "Kinetics", "PhotoTour", "LFWPeople", "StanfordCars"]
)
def test_sets_of_another_interface_are_a_sentence(name: str, tmp_path: Path) -> None:
    with pytest.raises(vt.VTError):
        load_torchvision(name, tmp_path, Pixels((32, 32)))


def test_what_notebooks_and_archives_leave_behind_is_no_class_and_no_image(images: Path) -> None:
    before = load(images)
    for name in (".ipynb_checkpoints", "__MACOSX"):
        (images / "train" / name).mkdir()
    (images / "train" / "red" / "._0.png").write_bytes(b"no image")
    after = load(images)
    assert (after.classes, after.sizes) == (before.classes, before.sizes)
    assert all(image.shape == (3, 32, 32) for image, _ in items(after.train))


@pytest.mark.parametrize(
    ("values", "type_", "found"),
    [
        ([0, 65535], np.uint16, [-1, 1]),
        ([0, 65535], np.int32, [-1, 1]),
        ([0, 1], np.float32, [-1, 1]),
        ([0, 65536], np.int32, None),
        ([-1, 5], np.int32, None),
        ([0, 255], np.float32, None),
        ([0, math.nan], np.float32, None),
    ],
)
def test_grey_values_of_more_than_8_bits(
    images: Path, values: list, type_: Any, found: list | None
) -> None:
    """16 bits are scaled; where nobody knows what white is, a sentence and no white picture."""
    for path in list((images / "test").rglob("*.png")):
        path.unlink()
        picture = np.repeat(np.array(values, dtype=type_), 16)[None].repeat(32, 0)
        Image.fromarray(picture).save(path.with_suffix(".tif"))
    test = load(images).test
    if found is None:
        with pytest.raises(vt.VTError, match="its grey values are not from 0 to"):
            test[0]
    else:
        assert [test[0][0][0, 5, 2].item(), test[0][0][0, 5, -2].item()] == found


def test_the_folders_that_are_there_are_told(images: Path) -> None:
    (images / "test").rename(images / "val")
    assert "found train, val; see vt.load_task" in message(images)
    (images / "test").touch()
    assert f"expected the folder {images / 'test'}" in message(images)
