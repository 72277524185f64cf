"""Composed pictures: their answers agree with what is to be seen."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch
from torch import Generator, Tensor

import vtlite as vt
from vtlite.data import draw, scenes


@cache
def task(name: str) -> Any:
    return vt.load_task(name)


@cache
def on_black(name: str) -> Any:
    """The task with its backgrounds black: all that is not black is emoji."""
    with pytest.MonkeyPatch.context() as patch:
        for behind in ("backgrounds", "busy"):
            original = getattr(draw, behind)
            patch.setattr(
                draw, behind, lambda *args, _original=original, **settings: 0 * _original(*args)
            )
        return vt.load_task(name)


@pytest.mark.parametrize("name", ["emoji-masks", "emoji-scenes"])
def test_masks_cover_what_is_seen(name: str) -> None:
    images, masks = on_black(name).val.images.float() / 255, on_black(name).val.labels
    seen = images.amax(1)
    assert seen[masks == 0].max() <= 0.51  # half-transparent edges at most
    assert (seen[masks > 0] > 0.05).float().mean() > 0.95  # some emoji have black in them
    assert torch.equal(masks, task(name).val.labels)


def test_every_emoji_of_the_masks_is_there() -> None:
    area = (task("emoji-masks").test.labels > 0).float().mean((1, 2))
    assert area.min() > 0.005
    assert 0.1 < area.mean() < 0.5


def test_two_or_three_groups_are_named_and_seen() -> None:
    labels = task("emoji-several").test.labels
    assert set(labels.unique().tolist()) == {0.0, 1.0}
    assert set(labels.sum(1).tolist()) == {1.0, 2.0, 3.0}
    assert (labels.mean(0) - labels.mean()).abs().max() < 0.05  # all groups equally often


def test_the_third_emoji_is_there_in_every_other_picture() -> None:
    g = Generator().manual_seed(3)
    layers = scenes._group(scenes._parts(g)[0], 50, g)
    hidden = layers[2][0][:, 3].amax((1, 2)) == 0
    assert 10 < int(hidden.sum()) < 40
    assert all((sprites[:, 3].amax((1, 2)) > 0.5).all() for sprites, _ in layers[:2])


def middle(seen: Tensor) -> Tensor:
    """The centre of mass of coverage [N, S, S] in units of the half side -> x, y [N, 2]."""
    axis = (torch.arange(seen.shape[-1]) + 0.5) * 2 / seen.shape[-1] - 1
    total = seen.sum((1, 2))
    return torch.stack([seen.sum(1) @ axis / total, seen.sum(2) @ axis / total], 1)


def test_a_sprite_is_placed_where_it_is_told() -> None:
    disc = draw.shape_coverage(*(torch.tensor([v]) for v in (0, 0.0, 0.0, 1.0, 0.0)), 32)
    sprites = torch.cat([disc.expand(-1, 3, -1, -1), disc], 1).expand(4, -1, -1, -1)
    x, y = torch.tensor([0.0, -0.5, 0.5, 0.3]), torch.tensor([0.0, 0.5, 0.4, -0.4])
    scale, angle = torch.tensor([0.5, 0.4, 0.3, 0.5]), torch.tensor([0.0, 1.0, -2.0, 0.3])
    alpha = draw.place_at(sprites, x, y, scale, angle)[:, 3]
    assert torch.allclose(middle(alpha), torch.stack([x, y], 1), atol=0.02)
    areas = alpha.mean((1, 2)) / disc.mean()
    assert torch.allclose(areas, scale**2, rtol=0.05)


def test_a_place_is_where_the_emoji_lies(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        draw, "patterns", lambda kind, size, g: torch.zeros(len(kind), 3, size, size)
    )
    data: Any = vt.load_task("emoji-several-tasks").test
    centres = middle(data.images.float().amax(1))
    column, row = (((centres + 0.75) * 2).clamp(0, 2.99).long()).unbind(1)
    found = row * 3 + column
    # A drawing may have its ink on one side (a rocket's trail); most have it in the middle.
    assert (found == data.labels["place"]).float().mean() > 0.9


def test_questions_are_independent_and_balanced() -> None:
    data = task("emoji-several-tasks").train
    for name, part in task("emoji-several-tasks").parts.items():
        counts = torch.bincount(data.labels[name], minlength=part.num_classes)
        assert counts.max() - counts.min() <= 1
        assert torch.equal(part.train.labels, data.labels[name])
        assert torch.equal(part.train.images, data.images)
    pairs = torch.bincount(data.labels["group"] * 4 + data.labels["pattern"], minlength=36)
    assert pairs.min() > 5


@pytest.mark.parametrize("kind", range(len(draw.PATTERNS)))
def test_patterns_are_what_they_are_called(kind: int) -> None:
    pictures = draw.patterns(torch.full((6,), kind), 32, Generator().manual_seed(0))
    assert 0 <= pictures.min() < pictures.max() <= 1
    along_x = pictures.diff(dim=3).abs().amax((1, 2, 3)) > 0.1
    along_y = pictures.diff(dim=2).abs().amax((1, 2, 3)) > 0.1
    assert along_x.tolist() == [draw.PATTERNS[kind] != "plain"] * 6
    assert along_y.tolist() == [draw.PATTERNS[kind] in ("checks", "dots")] * 6


def test_a_busy_background_has_edges_that_a_plain_one_lacks() -> None:
    busy = draw.busy(20, 32, Generator().manual_seed(0))
    plain = draw.backgrounds(20, 32, Generator().manual_seed(0))
    assert busy.shape == plain.shape
    assert busy.diff(dim=3).abs().mean() > 2 * plain.diff(dim=3).abs().mean()
