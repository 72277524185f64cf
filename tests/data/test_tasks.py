"""The embedded tasks: sizes of the protocol, labels that agree with what is to be seen, and nothing
shared between splits."""

from __future__ import annotations

import os
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from scipy import ndimage
from sklearn.datasets import load_digits
from torch import Tensor
from torch.utils.data import DataLoader

import vtlite as vt
from vtlite.data import draw
from vtlite.data.sheets import emoji, fashion
from vtlite.data.tasks import ImageDataset, load_task

CLASSES = {"fashion": 5, "digits": 10, "twemoji": 9, "shapes-location": 16, "shapes-count": 4}
SPLITS = ("train", "val", "test")
PHOTOGRAPHED = (
    "fashion",
    "digits",
    "twemoji",
)  # made from pictures that exist once; the others are drawn anew
DIGESTS = """
import hashlib, vtlite as vt
for name in vt.TASKS:
    task, digest = vt.load_task(name), hashlib.sha256()
    for split in (task.train, task.val, task.test):
        digest.update(split.images.numpy().tobytes() + split.labels.numpy().tobytes())
    print(name, digest.hexdigest())
"""


@cache
def task(name: str) -> vt.Task:
    return vt.load_task(name)


def all_images(name: str) -> tuple[Tensor, Tensor]:
    splits: list[Any] = [getattr(task(name), split) for split in SPLITS]
    return torch.cat([s.images for s in splits]), torch.cat([s.labels for s in splits])


def contents(images: Tensor) -> set[bytes]:
    """One entry per different picture; floats in [0, 1] are compared as the bytes they came
    from."""
    if images.is_floating_point():
        images = (images * 255).round().byte()
    return {picture.tobytes() for picture in images.numpy()}


def without_scenery(name: str, patch: pytest.MonkeyPatch) -> vt.Task:
    """The task with every source picture at its place, untinted, on black: what a source image is
    can then be compared."""
    patch.setattr(draw, "place", lambda sprites, *args, **settings: sprites)
    patch.setattr(
        draw,
        "backgrounds",
        lambda count, size, *args, **settings: torch.zeros(count, 3, size, size),
    )
    for colouring in ("tinted", "inks"):
        patch.setattr(
            draw,
            colouring,
            lambda grey, *args: torch.cat([grey.expand(-1, 3, -1, -1), torch.ones_like(grey)], 1),
        )
    return load_task(name)


def test_every_task_is_tested_here() -> None:
    assert set(vt.TASKS) == set(CLASSES)


@pytest.mark.parametrize("name", vt.TASKS)
def test_sizes_and_classes_are_those_of_the_protocol(name: str) -> None:
    train, val, test = task(name).sizes
    assert (train, val) == (800, 200)
    assert test >= 500
    assert task(name).num_classes == len(set(task(name).classes)) == CLASSES[name]
    assert task(name).group in ("natural", "specialised", "shifted", "structured")


@pytest.mark.parametrize("name", vt.TASKS)
def test_every_class_is_in_train_val_and_test(name: str) -> None:
    for split in SPLITS:
        assert set(getattr(task(name), split).labels.tolist()) == set(range(CLASSES[name]))


@pytest.mark.parametrize("name", vt.TASKS)
def test_items_are_float_images_from_minus_one_to_one(name: str) -> None:
    for split in SPLITS:
        data = getattr(task(name), split)
        image, label = data[0]
        assert image.shape == (3, 32, 32)
        assert image.dtype == torch.float32
        assert isinstance(label, int)
        batch = torch.stack([image for image, _ in data.__getitems__(list(range(100)))])
        assert -1 <= batch.min() < -0.5
        assert 0.5 < batch.max() <= 1


def test_a_loader_gives_the_same_items_as_indexing() -> None:
    data = task("shapes-count").val
    images, labels = next(iter(DataLoader(data, batch_size=7)))
    assert torch.equal(images, torch.stack([data[i][0] for i in range(7)]))
    assert labels.tolist() == [data[i][1] for i in range(7)]


def test_a_fresh_process_makes_the_same_pixels(capsys: pytest.CaptureFixture[str]) -> None:
    torch.manual_seed(123)
    torch.rand(5)
    exec(DIGESTS, {})
    here = capsys.readouterr().out
    environment = {**os.environ, "PYTHONHASHSEED": "7"}  # the order of sets must not matter
    done = subprocess.run(
        [sys.executable, "-c", DIGESTS],
        cwd=Path(__file__).parents[2],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == here
    assert here.count("\n") == len(vt.TASKS)


def test_loading_leaves_the_global_generator_alone() -> None:
    state = torch.random.get_rng_state()
    vt.load_task("shapes-location")
    assert torch.equal(state, torch.random.get_rng_state())


# No leaks
# --------------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", vt.TASKS)
def test_no_image_is_there_twice(name: str) -> None:
    images, _ = all_images(name)
    assert len(contents(images)) == len(images)


def test_no_image_is_in_two_tasks() -> None:
    every = torch.cat([all_images(name)[0] for name in vt.TASKS])
    assert len(contents(every)) == len(every)


@pytest.mark.parametrize("name", ["fashion", "digits", "twemoji"])
def test_no_source_picture_is_in_two_splits(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another place, colour and background make other bytes of the same drawing, so the bytes of
    the task are not enough."""
    bare: Any = without_scenery(name, monkeypatch)
    train, val, test = (contents(getattr(bare, split).images) for split in SPLITS)
    assert not train & val
    assert not train & test
    assert not val & test


# Labels
# ----------------------------------------------------------------------------------------------------------------------------------


def test_digits_are_labelled_as_the_nearest_scan(monkeypatch: pytest.MonkeyPatch) -> None:
    bare: Any = without_scenery("digits", monkeypatch)
    images = (
        torch.cat([getattr(bare, split).images for split in SPLITS])[:, :1, 2:30, 2:30].float()
        / 255
    )
    scans = load_digits()
    small = F.interpolate(images, 8, mode="bilinear", antialias=True).flatten(1)
    templates = F.interpolate(
        torch.from_numpy(scans.images).float()[:, None] / 16, 28, mode="bilinear"
    )
    templates = F.interpolate(templates, 8, mode="bilinear", antialias=True).flatten(1)
    nearest = torch.cdist(small, templates).argmin(1)
    assert sorted(nearest.tolist()) == list(range(len(scans.target)))  # every scan, once
    labels = torch.cat([getattr(bare, split).labels for split in SPLITS])
    assert [int(bare.classes[i]) for i in labels] == scans.target[nearest].tolist()


def test_twemoji_are_labelled_with_the_category_of_the_drawing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    bare: Any = without_scenery("twemoji", monkeypatch)
    sprites, facts = emoji("twemoji")
    visible = ((sprites[:, :3] * sprites[:, 3:]) * 255).round().byte().numpy()
    category = {
        picture.tobytes(): fact["category"] for picture, fact in zip(visible, facts, strict=True)
    }
    for split in SPLITS:
        data = getattr(bare, split)
        found = [category[picture.tobytes()] for picture in data.images.numpy()]
        assert found == [bare.classes[label] for label in data.labels]


def test_fashion_is_labelled_with_the_kind_of_the_photograph(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    bare: Any = without_scenery("fashion", monkeypatch)
    for split in SPLITS:
        grey, names = fashion("test" if split == "test" else "train")
        kind = {
            p.tobytes(): name
            for p, name in zip((grey * 255).round().byte().numpy(), names, strict=True)
        }
        data = getattr(bare, split)
        found = [kind[picture.tobytes()] for picture in data.images[:, :1].contiguous().numpy()]
        assert found == [bare.classes[label] for label in data.labels]


def ink(images: Tensor) -> Tensor:
    """Where a vivid shape is to be seen: the backgrounds keep to the middle half of each
    channel."""
    return ((images < 0.2 * 255) | (images > 0.8 * 255)).any(1)


def test_a_location_is_the_cell_that_the_shape_lies_in() -> None:
    images, labels = all_images("shapes-location")
    seen = ink(images).float()
    pixels = torch.arange(32) + 0.5
    total = seen.sum((1, 2))
    row, column = (
        (seen.sum(2) @ pixels / total).div(8).long(),
        (seen.sum(1) @ pixels / total).div(8).long(),
    )
    names = [
        f"row {r + 1}, column {c + 1}" for r, c in zip(row.tolist(), column.tolist(), strict=True)
    ]
    assert total.min() >= 4
    assert names == [task("shapes-location").classes[label] for label in labels]


def occupied_cells(seen: Tensor) -> Tensor:
    """Cells of the 4x4 grid with ink in their middle, where no neighbour reaches: [N, 32, 32] ->
    [N, 4, 4]."""
    return seen.view(-1, 4, 8, 4, 8)[:, :, 2:6, :, 2:6].any(4).any(2)


def test_a_count_is_the_number_of_cells_with_a_shape() -> None:
    images, labels = all_images("shapes-count")
    counted = occupied_cells(ink(images)).sum((1, 2)).tolist()
    assert counted == [int(task("shapes-count").classes[label]) for label in labels]


def test_a_count_is_the_number_of_pieces_where_no_shapes_touch() -> None:
    images, labels = all_images("shapes-count")
    seen = ink(images)
    cells = occupied_cells(seen)
    neighbours = F.conv2d(cells.float()[:, None], torch.ones(1, 1, 3, 3), padding=1)[:, 0]
    apart = (neighbours[:, None] * cells[:, None]).amax((1, 2, 3)) == 1
    pieces = torch.tensor(
        [ndimage.label(mask, torch.ones(3, 3).numpy())[1] for mask in seen[apart].numpy()]
    )
    assert set(pieces.tolist()) == {1, 2, 3, 4}
    # A thin shape may be broken in two by the threshold on its anti-aliased edge.
    assert (pieces == labels[apart] + 1).float().mean() > 0.99


# Sizes, types and names
# ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [24, 48])
def test_another_image_size_shows_the_same_pictures(size: int) -> None:
    other: Any = vt.load_task("shapes-location", image_size=size)
    for split in SPLITS:
        data, same = getattr(other, split), getattr(task("shapes-location"), split)
        assert data[0][0].shape == (3, size, size)
        assert torch.equal(data.labels, same.labels)
        back = F.interpolate(data.images[:50].float(), 32, mode="bilinear", antialias=True)
        assert (back - same.images[:50].float()).abs().mean() < 6  # of 255


def test_resizing_a_hard_edge_stays_within_bytes() -> None:
    images = torch.zeros(1, 3, 32, 32, dtype=torch.uint8)
    images[..., 16:] = 255
    bigger = ImageDataset(images, torch.zeros(1)).resized(224).images
    assert bigger.shape == (1, 3, 224, 224)
    assert (bigger[..., :100] == 0).all()
    assert (bigger[..., -100:] == 255).all()


def test_black_is_minus_one_and_white_is_one() -> None:
    data = ImageDataset(
        torch.tensor([0, 255], dtype=torch.uint8).view(2, 1, 1, 1).expand(2, 3, 4, 4),
        torch.tensor([0, 1]),
    )
    assert (data[0][0] == -1).all()
    assert (data[1][0] == 1).all()


@pytest.mark.parametrize(
    ("images", "labels"),
    [
        (torch.zeros(2, 3, 4, 4), 2),
        (torch.zeros(3, 4, 4, dtype=torch.uint8), 3),
        (torch.zeros(2, 3, 4, 4, dtype=torch.uint8), 1),
    ],
)
def test_other_images_are_refused_with_what_to_do(images: Tensor, labels: int) -> None:
    with pytest.raises(
        vt.VTError,
        match=r"expected uint8 images \[N, C, H, W\] and N labels, found .* convert the images",
    ):
        ImageDataset(images, torch.zeros(labels, dtype=torch.long))


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("digts", "unknown task 'digts': did you mean 'digits'"),
        ("shape-count", "did you mean 'shapes-count'"),
        ("Twemoji", "did you mean 'twemoji'"),
        ("torchvision", "did you mean 'torchvision:CIFAR10'"),
        ("folder:", "did you mean 'folder:PATH'"),
        ("zzz", "choose from digits, fashion"),
        ("vtab:dtd", "unknown task 'vtab:dtd'"),
    ],
)
def test_an_unknown_task_is_answered_with_the_nearest(name: str, sentence: str) -> None:
    with pytest.raises(vt.VTError) as error:
        vt.load_task(name)
    assert sentence in str(error.value)
    assert "\n" not in str(error.value)
