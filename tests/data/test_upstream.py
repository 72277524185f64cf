"""What the embedded backbones are pre-trained on: nothing of the tasks, and reproducible."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch

import vtlite as vt
from tests.data.test_tasks import PHOTOGRAPHED, SPLITS, contents, without_scenery
from vtlite.data import sheets
from vtlite.data.upstream import Upstream, augment


@cache
def upstream() -> Upstream:
    return Upstream()


def test_five_kinds_of_clothing_and_98_of_emoji() -> None:
    data = upstream()
    assert len(data.classes) == len(set(data.classes)) == 103
    assert torch.bincount(data.labels, minlength=103).min() >= 1
    assert int(data.labels.max()) == 102
    assert data.sprites.shape == (len(data), 4, 32, 32)
    assert 0 <= data.sprites.min() < data.sprites.max() <= 1


def test_items_by_one_and_by_many_agree() -> None:
    data, indices = upstream(), [0, 5000, len(upstream()) - 1]
    for (sprite, label), index in zip(data.__getitems__(indices), indices, strict=True):
        assert torch.equal(sprite, data[index][0])
        assert label == data[index][1]


def test_reading_the_sheets_again_gives_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    for reader in ("emoji", "fashion"):
        monkeypatch.setattr(
            f"vtlite.data.upstream.{reader}", getattr(sheets, reader).__wrapped__
        )  # past the cache
    again = Upstream()
    assert again.classes == upstream().classes
    assert torch.equal(again.labels, upstream().labels)
    assert torch.equal(again.sprites, upstream().sprites)


def test_labels_are_the_names_of_what_is_drawn() -> None:
    data = upstream()
    sprites, facts = sheets.emoji("noto")
    drawn = {
        sprite.tobytes(): fact["subcategory"]
        for sprite, fact in zip(sprites.numpy(), facts, strict=True)
    }
    for index in range(5000, len(data), 97):
        assert data.classes[data.labels[index]] == drawn[data.sprites[index].numpy().tobytes()]
    _, names = sheets.fashion("upstream")
    assert [data.classes[label] for label in data.labels[:5000]] == names


@pytest.mark.parametrize("name", PHOTOGRAPHED)
def test_no_source_picture_of_a_task_is_seen_in_pre_training(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    colour, alpha = upstream().sprites[:, :3], upstream().sprites[:, 3:]
    seen = contents(colour) | contents(
        colour * alpha
    )  # a photograph as it is; a drawing as it is to be seen on black
    bare: Any = without_scenery(name, monkeypatch)
    for split in SPLITS:
        assert not seen & contents(getattr(bare, split).images)


def test_this_comparison_would_find_a_shared_picture() -> None:
    colour, alpha = upstream().sprites[:, :3], upstream().sprites[:, 3:]
    photographs, drawings = (
        contents(sheets.fashion("upstream")[0].expand(-1, 3, -1, -1)),
        sheets.emoji("noto")[0],
    )
    assert photographs <= contents(colour)
    assert contents(drawings[:, :3] * drawings[:, 3:]) <= contents(colour * alpha)


def test_no_kind_of_clothing_is_shared_with_the_task() -> None:
    assert not set(upstream().classes) & set(vt.load_task("fashion").classes)


def augmented(seed: int) -> torch.Tensor:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return augment(upstream().sprites[::400])


def test_augmenting_is_deterministic_by_the_global_seed() -> None:
    assert torch.equal(augmented(0), augmented(0))
    assert not torch.equal(augmented(0), augmented(1))


def test_augmented_pictures_fill_the_range_that_tasks_have() -> None:
    pictures = augmented(0)
    assert pictures.shape == (len(upstream().sprites[::400]), 3, 32, 32)
    assert -1 <= pictures.min() < -0.7
    assert 0.7 < pictures.max() <= 1


def test_augmenting_leaves_the_sprites_as_they_were() -> None:
    sprites = upstream().sprites[:20].clone()
    augment(sprites)
    assert torch.equal(sprites, upstream().sprites[:20])


def test_the_same_sprite_looks_different_each_time() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        pictures = augment(upstream().sprites[6000].expand(8, -1, -1, -1))
    assert len(contents((pictures + 1) / 2)) == 8
