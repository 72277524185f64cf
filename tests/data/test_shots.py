"""Few shots and halves of the classes: counts, draws, names, and what is refused."""

from __future__ import annotations

from collections import Counter
from functools import cache
from typing import Any

import pytest
import torch

import vtlite as vt
from vtlite.data.images import ImageDataset
from vtlite.data.shots import few_shot, half, variant
from vtlite.task import Classification


@cache
def whole(name: str = "twemoji-subgroups") -> Any:
    return vt.load_task(name)


def of(*options: str) -> Any:
    return variant(whole(), options)


@pytest.mark.parametrize("shots", [1, 2, 4, 8, 16])
@pytest.mark.parametrize("draw", ["0", "1", "2"])
def test_k_shot_is_k_images_of_k_drawings_a_class(shots: int, draw: str) -> None:
    task = of(f"{shots}-shot", draw)
    for split, count in ((task.train, shots), (task.val, min(shots, 4))):
        assert set(Counter(split.labels.tolist()).values()) == {count}
        assert len(set(split.labels.tolist())) == task.num_classes
        assert len(set(split.sources.tolist())) == count * task.num_classes
    assert torch.equal(task.test.images, whole().test.images)


def test_the_shots_are_some_of_the_training_images() -> None:
    pictures = {image.numpy().tobytes() for image in whole().train.images}
    assert all(image.numpy().tobytes() in pictures for image in of("4-shot").train.images)


def test_three_draws_differ_and_each_is_the_same_again() -> None:
    first, second, third = (of("8-shot", draw).train.images for draw in "012")
    assert not torch.equal(first, second)
    assert not torch.equal(second, third)
    assert torch.equal(first, of("8-shot").train.images)
    assert torch.equal(second, of("8-shot", "1").train.images)


def test_base_and_new_share_the_classes_between_them() -> None:
    base, new = of("base"), of("new")
    assert base.classes + new.classes == whole().classes
    assert base.num_classes - new.num_classes in (0, 1)
    for split in ("train", "val", "test"):
        parts = [getattr(task, split) for task in (base, new)]
        assert sum(map(len, parts)) == len(getattr(whole(), split))
        for task, part in zip((base, new), parts, strict=True):
            assert set(part.labels.tolist()) == set(range(task.num_classes))


def test_halves_keep_images_with_their_names() -> None:
    names = {
        image.numpy().tobytes(): whole().classes[label]
        for image, label in zip(whole().test.images, whole().test.labels, strict=True)
    }
    for task in (of("base"), of("new", "2-shot")):
        for image, label in zip(task.test.images, task.test.labels, strict=True):
            assert names[image.numpy().tobytes()] == task.classes[label]


def test_a_half_may_have_shots_and_a_stage_both() -> None:
    task: Any = vt.load_task("twemoji-subgroups:base:16-shot:1")
    assert task.name == "twemoji-subgroups:base:16-shot:1"
    assert len(task.train) == 16 * task.num_classes
    stage = variant(whole("emoji-domains"), ["fluent", "new", "4-shot"])
    assert stage.sizes[:2] == (16, 16)


def test_shots_of_other_classifications() -> None:
    clips: Any = vt.load_task("emoji-motion:4-shot")
    assert clips.train.images.shape == (16, 8, 3, 32, 32)
    assert vt.load_task("shapes-count:1-shot").sizes[:2] == (4, 4)


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("twemoji-subgroups:3-shot", "expected 1, 2, 4, 8 or 16 shots, found 3"),
        ("twemoji-subgroups:4-shot:3", "expected draw 0, 1 or 2, found 3"),
        (
            "twemoji-subgroups:16shot",
            "unknown variant of the task '16shot': did you mean '16-shot'",
        ),
        ("twemoji-subgroups:bas", "did you mean 'base'"),
        ("twemoji-subgroups:4-shot:base", "unknown variant of the task 'base'"),
        ("emoji-domains:flunt", "did you mean 'fluent'"),
        (
            "emoji-masks:4-shot",
            "expected an embedded task with one label an image, found emoji-masks",
        ),
        ("emoji-several:base", "expected an embedded task with one label an image"),
        ("emoji-domains:4-shot", "expected an embedded task with one label an image"),
        ("twemoji-longtail:16-shot", "expected at least 16 images of class"),
    ],
)
def test_what_is_not_there_is_a_sentence(name: str, sentence: str) -> None:
    base, *options = name.split(":")
    with pytest.raises(vt.VTError) as error:
        variant(whole(base), options)
    assert sentence in str(error.value)
    assert "\n" not in str(error.value)


def test_images_without_known_drawings_are_drawn_too() -> None:
    data = ImageDataset(torch.zeros(8, 3, 2, 2, dtype=torch.uint8), torch.arange(8) % 2)
    task = Classification("t", ("a", "b"), data, data, data)
    assert few_shot(task, 4).sizes == (8, 8, 8)
    assert half(task, "new").sizes == (4, 4, 4)
