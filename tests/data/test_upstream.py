"""What the embedded networks are pre-trained on: nothing of the tasks, and reproducible."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch

import vtlite as vt
from tests.data.test_tasks import PHOTOGRAPHED, SPLITS, contents, without_scenery
from vtlite.data import draw, sheets
from vtlite.data.upstream import (
    CONCEPT,
    GROUP,
    KIND,
    STYLES,
    Upstream,
    augment,
    line_drawing,
    plain,
)


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
    assert len(data) - data.emojis == 5000


def test_the_styles_that_are_tested_on_are_not_in_it() -> None:
    assert not {"twemoji", "high-contrast"} & set(STYLES)
    assert upstream().emojis == sum(len(sheets.emoji(style)[1]) for style in STYLES)


def test_topics_and_labels_say_what_is_drawn() -> None:
    data = upstream()
    kinds = sorted({fact["subcategory"] for fact in sheets.emoji("noto")[1]})
    groups = sorted({fact["category"] for fact in sheets.emoji("noto")[1]})
    names = data.names()
    for index in range(0, len(data), 97):
        fact, (concept, kind, group) = data.facts[index], data.topics[index].tolist()
        assert names[concept] == fact["label"]
        assert kinds[kind] == fact["subcategory"]
        assert groups[group] == fact["category"]
        label = data.classes[data.labels[index]]
        assert label == (fact["subcategory"] if index < data.emojis else fact["label"])


def test_one_concept_has_one_number_in_every_style() -> None:
    data = upstream()
    of = data.topics[: data.emojis, CONCEPT]
    apples = [i for i in range(data.emojis) if data.facts[i]["label"] == "red apple"]
    assert len(apples) >= 4  # styles
    assert len({int(of[i]) for i in apples}) == 1


def test_a_batch_is_made_by_its_seed() -> None:
    first, again, other = (upstream().batch(24, seed) for seed in (5, 5, 6))
    assert torch.equal(first.images, again.images)
    assert first.captions == again.captions
    assert not torch.equal(first.images, other.images)
    assert first.images.shape == (24, 3, 32, 32)
    assert first.topics.shape == first.where.shape == (24, 3)
    assert -1 <= first.images.min() < first.images.max() <= 1
    assert int((first.labels >= 98).sum()) == 4  # photographs


def test_captions_are_about_what_they_say() -> None:
    data = upstream()
    kinds, groups = ({plain(f[key]) for f in data.facts} for key in ("subcategory", "category"))
    said = {CONCEPT: 0, KIND: 0, GROUP: 0}
    for seed in range(4):
        batch = data.batch(128, seed)
        for caption, about in zip(batch.captions, batch.about.tolist(), strict=True):
            said[about] += 1
            if about == KIND:
                assert any(caption.endswith(kind) for kind in kinds)
            if about == GROUP:
                assert any(caption.endswith(group) for group in groups)
    assert said[CONCEPT] > 3 * said[KIND] > 3 * said[GROUP] / 2 > 0


def test_all_words_of_captions_are_announced() -> None:
    """So the vocabulary, which is made of `texts`, has them all."""
    from vtlite.backbones.tokenizer import WordTokenizer, words_of

    known = set(WordTokenizer.of(upstream().texts()).vocabulary)
    for caption in upstream().batch(256, 1).captions:
        assert known.issuperset(words_of(caption))


def test_where_is_the_centre_and_the_size() -> None:
    disc = torch.zeros(64, 4, 32, 32)
    disc[:, :, 8:24, 8:24] = 1  # half a side wide: size 1 in half sides, before it is scaled
    images, where = augment(disc, torch.Generator().manual_seed(0))
    assert images.shape == (64, 3, 32, 32)
    x, y, size = where.unbind(1)
    assert x.abs().max() < 0.5
    assert y.abs().max() < 0.5
    assert 0.45 < size.min() < size.max() < 1.15
    still = draw.place(disc, scale=(1, 1), shift=0, rotate=0)
    torch.testing.assert_close(still, disc)


def test_a_line_drawing_is_black_ink_on_nothing() -> None:
    sprites = sheets.emoji("fluent")[0][:64]
    drawn = line_drawing(sprites, torch.Generator().manual_seed(0))
    assert drawn.shape == sprites.shape
    assert drawn[:, :3].abs().max() == 0
    ink = drawn[:, 3].mean((1, 2))
    assert ink.min() > 0.02  # something is drawn
    assert ink.mean() < sprites[:, 3].mean()  # less than the whole area is filled
    blank = line_drawing(torch.zeros(4, 4, 32, 32))
    assert blank[:, 3].max() == 0


def test_directions_are_not_mirrored() -> None:
    data = upstream()
    labels = {f["label"]: m for f, m in zip(data.facts, data.mirrors.tolist(), strict=True)}
    assert not labels["right arrow"]
    assert not labels["left arrow"]
    assert labels["red apple"]


def test_reading_the_sheets_again_gives_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    for reader in ("emoji", "fashion"):
        monkeypatch.setattr(
            f"vtlite.data.upstream.{reader}", getattr(sheets, reader).__wrapped__
        )  # past the cache
    again = Upstream()
    assert again.classes == upstream().classes
    assert torch.equal(again.labels, upstream().labels)
    assert torch.equal(again.sprites, upstream().sprites)


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
    return augment(upstream().sprites[::400], torch.Generator().manual_seed(seed))[0]


def test_augmenting_is_deterministic_by_its_generator() -> None:
    assert torch.equal(augmented(0), augmented(0))
    assert not torch.equal(augmented(0), augmented(1))


def test_augmented_pictures_fill_the_range_that_tasks_have() -> None:
    pictures = augmented(0)
    assert pictures.shape == (len(upstream().sprites[::400]), 3, 32, 32)
    assert -1 <= pictures.min() < -0.7
    assert 0.7 < pictures.max() <= 1


def test_a_batch_leaves_the_sprites_as_they_were() -> None:
    sprites = upstream().sprites.sum()
    upstream().batch(64, 0)
    assert torch.equal(sprites, upstream().sprites.sum())


def test_the_same_sprite_looks_different_each_time() -> None:
    same = upstream().sprites[6000].expand(8, -1, -1, -1)
    pictures = augment(same, torch.Generator().manual_seed(0))[0]
    assert len(contents((pictures + 1) / 2)) == 8
