"""The embedded tasks: sizes of the protocol, labels that agree with what is to be seen, and nothing
shared between splits."""

from __future__ import annotations

import ast
import hashlib
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
from vtlite.backbones.base import Pixels, VisionBackbone
from vtlite.data import draw
from vtlite.data.sheets import emoji, fashion
from vtlite.data.tasks import ImageDataset, load_task

# Classes and sizes; a number of classes where the answer is no class: 0.
CLASSES = {
    "fashion": 5,
    "digits": 10,
    "twemoji": 9,
    "shapes-location": 16,
    "shapes-count": 4,
    "twemoji-subgroups": 23,
    "twemoji-longtail": 30,
    "emoji-domains": 8,
    "emoji-several": 9,
    "emoji-masks": 2,
    "emoji-scenes": 10,
    "emoji-motion": 4,
    "emoji-several-tasks": 0,
}
CORE = ("fashion", "digits", "twemoji", "shapes-location", "shapes-count")
SIZES = {"twemoji-longtail": (779, 120), "emoji-domains": (2800, 700)}
# SHA-256 of the first five tasks' labels, mean and standard deviation of their pixels: what the
# committed results were measured on. Single pixels differ by a rounding between processors.
FIRST_FIVE = {
    "fashion": ("63d54f67dfd8efa4", 123.937, 55.077),
    "digits": ("edd1f5538a4e66e9", 127.321, 46.031),
    "twemoji": ("4ab9b861ff2c42b2", 138.504, 66.791),
    "shapes-location": ("b039ecd26ed18fef", 127.398, 37.409),
    "shapes-count": ("f81b05a400e8937a", 127.254, 38.235),
}
SPLITS = ("train", "val", "test")
PHOTOGRAPHED = (
    "fashion",
    "digits",
    "twemoji",
)  # made from pictures that exist once; the others are drawn anew
DIGESTS = """
import hashlib, vtlite as vt
def digest(task):
    made = hashlib.sha256()
    for split in (task.train, task.val, task.test):
        labels = split.labels if isinstance(split.labels, dict) else {"": split.labels}
        made.update(split.images.numpy().tobytes())
        for part in labels.values():
            made.update(part.numpy().tobytes())
    return made.hexdigest()
def digests(load):
    return {name: digest(load(name)) for name in vt.TASKS}
"""


SEVERAL_NUMBERS = ("emoji-several", "emoji-masks", "emoji-scenes", "emoji-several-tasks")


PLACED: dict[str, list[set[bytes]]] = {}  # what was laid into a task's pictures, call by call


@cache
def task(name: str) -> vt.Task:
    """The task, drawn once; what is laid into its pictures is looked at on its way there."""
    placed = PLACED[name] = []
    original = draw._warped

    def watch(sprites: Tensor, theta: Tensor) -> Tensor:
        seen = torch.cat([sprites[:, :3] * sprites[:, 3:], sprites[:, 3:]], 1)
        placed.append(contents(seen))
        return original(sprites, theta)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(draw, "_warped", watch)
        return vt.load_task(name)


def pictures(name: str) -> Tensor:
    splits: list[Any] = [getattr(task(name), split) for split in SPLITS]
    return torch.cat([s.images for s in splits])


def all_images(name: str) -> tuple[Tensor, Tensor]:
    splits: list[Any] = [getattr(task(name), split) for split in SPLITS]
    return pictures(name), torch.cat([s.labels for s in splits])


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
    assert (train, val) == SIZES.get(name, (800, 200))
    assert test >= 400
    assert task(name).name == name
    assert task(name).num_classes == len(set(task(name).classes)) == CLASSES[name]
    assert task(name).group in ("natural", "specialised", "shifted", "structured")


@pytest.mark.parametrize(
    "name",
    [n for n in vt.TASKS if n not in ("emoji-several", "emoji-masks", "emoji-several-tasks")],
)
def test_every_class_is_in_train_val_and_test(name: str) -> None:
    for split in SPLITS:
        assert set(getattr(task(name), split).labels.unique().tolist()) == set(range(CLASSES[name]))


@pytest.mark.parametrize("name", vt.TASKS)
def test_items_are_float_images_from_minus_one_to_one(name: str) -> None:
    for split in SPLITS:
        data = getattr(task(name), split)
        image, label = data[0]
        assert image.shape == ((8, 3, 32, 32) if name == "emoji-motion" else (3, 32, 32))
        assert image.dtype == torch.float32
        assert isinstance(label, dict | Tensor if name in SEVERAL_NUMBERS else int)
        batch = torch.stack([image for image, _ in data.__getitems__(list(range(100)))])
        assert -1 <= batch.min() < -0.5
        assert 0.5 < batch.max() <= 1


def test_a_loader_gives_the_same_items_as_indexing() -> None:
    data = task("shapes-count").val
    images, labels = next(iter(DataLoader(data, batch_size=7)))
    assert torch.equal(images, torch.stack([data[i][0] for i in range(7)]))
    assert labels.tolist() == [data[i][1] for i in range(7)]


def test_a_fresh_process_makes_the_same_pixels() -> None:
    names: dict[str, Any] = {}
    exec(DIGESTS, names)
    here = names["digests"](task)
    environment = {**os.environ, "PYTHONHASHSEED": "7"}  # the order of sets must not matter
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            DIGESTS + "import torch; torch.rand(5)\nprint(digests(vt.load_task))",
        ],
        cwd=Path(__file__).parents[2],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
        encoding="utf-8",
    )
    assert ast.literal_eval(done.stdout) == here


@pytest.mark.parametrize("name", CORE)
def test_the_tasks_are_those_of_the_committed_results(name: str) -> None:
    parts: list[Any] = [getattr(task(name), split) for split in SPLITS]
    labels = bytes(torch.cat([part.labels for part in parts]).tolist())
    pixels = torch.cat([part.images for part in parts]).double()
    digest, mean, spread = FIRST_FIVE[name]
    assert hashlib.sha256(labels).hexdigest()[:16] == digest
    assert pixels.mean() == pytest.approx(mean, abs=0.01)
    assert pixels.std() == pytest.approx(spread, abs=0.01)


def test_loading_leaves_the_global_generator_alone() -> None:
    state = torch.random.get_rng_state()
    vt.load_task("shapes-location")
    assert torch.equal(state, torch.random.get_rng_state())


# No leaks
# -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", vt.TASKS)
def test_no_image_is_there_twice(name: str) -> None:
    images = pictures(name)
    assert len(contents(images)) == len(images)


def test_no_image_is_in_two_tasks() -> None:
    every = torch.cat([pictures(n) for n in vt.TASKS if n != "emoji-motion"])
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


NEW = [name for name in vt.TASKS if name not in CORE]


@pytest.mark.parametrize("name", NEW)
def test_no_drawing_is_in_two_splits(name: str) -> None:
    """The splits are drawn in turn, with equally many layers each."""
    task(name)
    placed = PLACED[name]
    rounds = 7 if name == "emoji-domains" else 1  # styles
    calls = len(placed) // (3 * rounds)
    train, val, test = (
        set().union(*(placed[i] for i in range(len(placed)) if i // calls % 3 == split))
        for split in range(3)
    )
    assert len(placed) == 3 * rounds * calls
    assert not train & val
    assert not train & test
    assert not val & test


@pytest.mark.parametrize("name", NEW)
def test_sources_say_which_drawing_a_picture_shows(name: str) -> None:
    splits: list[Any] = [getattr(task(name), split) for split in SPLITS]
    if splits[0].sources is not None:
        train, val, test = (set(split.sources.tolist()) for split in splits)
        assert not train & val
        assert not train & test
        assert not val & test


# Labels
# -------------------------------------------------------------------------------------------------


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


def occupied_cells(seen: Tensor) -> Tensor:
    """Cells of the 4x4 grid with ink in their middle, where no neighbour reaches: [N, 32, 32] ->
    [N, 4, 4]."""
    return seen.view(-1, 4, 8, 4, 8)[:, :, 2:6, :, 2:6].any(4).any(2)


def test_a_location_is_the_cell_of_the_rounder_of_two_shapes() -> None:
    images, labels = all_images("shapes-location")
    seen = ink(images)
    cells = occupied_cells(seen)
    assert (cells.sum((1, 2)) == 2).float().mean() > 0.99
    names = task("shapes-location").classes
    found = []
    for mask, label in zip(seen[:300].numpy(), labels[:300].tolist(), strict=True):
        pieces, count = ndimage.label(mask, torch.ones(3, 3).numpy())
        if count != 2:  # the two touch, or an edge is broken
            continue
        _, cell = min(roundness(torch.from_numpy(pieces == i)) for i in (1, 2))
        found.append(names[label] == f"row {cell[0] + 1}, column {cell[1] + 1}")
    assert len(found) > 200
    assert sum(found) / len(found) > 0.9  # a small disc and a small square are near to each other


def roundness(mask: Tensor) -> tuple[float, tuple[int, int]]:
    """How far a shape [H, W] reaches from its middle, in radii of a disc as large as it (1 for a
    disc), and the cell of its middle."""
    y, x = mask.nonzero().float().T + 0.5
    reach = ((y - y.mean()).square() + (x - x.mean()).square()).sqrt().max()
    return float(reach / (len(y) / torch.pi) ** 0.5), (int(y.mean() // 8), int(x.mean() // 8))


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
# -------------------------------------------------------------------------------------------------


class Wide(VisionBackbone):
    """A backbone that wants pictures of another shape and normalisation."""

    in_chans, num_features = 3, 8

    @property
    def pixels(self) -> Pixels:
        return Pixels((20, 28), (0.4, 0.5, 0.6), (0.2, 0.3, 0.4))


@pytest.mark.parametrize(
    "name", ["shapes-count", "emoji-scenes", "emoji-several-tasks", "emoji-domains"]
)
def test_like_gives_what_a_backbone_wants(name: str) -> None:
    fitted: Any = vt.load_task(name, like=Wide())
    whole: Any = task(name)
    image, target = fitted.val[0]
    assert image.shape[-2:] == (20, 28)
    wanted = whole.val.resized((20, 28)).images[0].float() / 255
    middle, width = (torch.tensor(v).view(3, 1, 1) for v in ((0.4, 0.5, 0.6), (0.2, 0.3, 0.4)))
    assert torch.allclose(image, (wanted - middle) / width, atol=1e-5)
    if name == "emoji-scenes":
        assert target.shape == (20, 28)
    for part in (*getattr(fitted, "stages", ()), *getattr(fitted, "parts", {}).values()):
        assert part.test[0][0].shape == (3, 20, 28)


def test_image_size_goes_before_the_backbone_s_own() -> None:
    image, _ = vt.load_task("shapes-count", image_size=8, like=Wide()).val[0]  # type: ignore[index]
    assert image.shape == (3, 8, 8)


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
        (None, "unknown task"),
        ("twemoji:", "unknown task"),
        ("zzz", "choose from digits, emoji-domains"),
        ("vtab:dtd", "unknown task 'vtab:dtd'"),
    ],
)
def test_an_unknown_task_is_answered_with_the_nearest(name: str, sentence: str) -> None:
    with pytest.raises(vt.VTError) as error:
        vt.load_task(name)
    assert sentence in str(error.value)
    assert "\n" not in str(error.value)
