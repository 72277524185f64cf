"""Tasks of one emoji a picture: words, counts, and concepts that are held out in every style."""

from __future__ import annotations

from collections import Counter
from functools import cache
from typing import Any

import pytest
import torch

import vtlite as vt
from vtlite.data import emoji as tasks
from vtlite.data.sheets import STYLES, emoji


@cache
def task(name: str) -> Any:
    return vt.load_task(name)


@pytest.mark.parametrize("name", ["twemoji-subgroups", "twemoji-longtail"])
def test_a_picture_is_labelled_with_the_sub_group_of_its_drawing(name: str) -> None:
    facts = emoji("twemoji")[1]
    for split in (task(name).train, task(name).val, task(name).test):
        words = [tasks.SUBGROUPS[facts[i]["subcategory"]] for i in split.sources.tolist()]
        assert words == [task(name).classes[label] for label in split.labels]


@pytest.mark.parametrize("stage", tasks.DOMAINS)
def test_a_stage_is_labelled_with_the_group_of_its_concept(stage: str) -> None:
    facts = emoji("noto")[1]
    data = {s.name: s for s in task("emoji-domains").stages}[stage]
    for split in (data.train, data.val, data.test):
        groups = [facts[i]["category"] for i in split.sources.tolist()]
        assert groups == [data.classes[label] for label in split.labels]
        counts = Counter(split.labels.tolist()).values()
        assert max(counts) - min(counts) <= 1


def test_domains_are_all_styles_and_a_concept_is_held_out_in_all_or_none() -> None:
    stages = task("emoji-domains").stages
    assert {stage.name for stage in stages} == set(STYLES)
    train, val, test = (
        {i for stage in stages for i in getattr(stage, split).sources.tolist()}
        for split in ("train", "val", "test")
    )
    assert not train & val
    assert not train & test
    assert not val & test


def test_the_stream_s_splits_are_its_stages_one_after_another() -> None:
    stream = task("emoji-domains")
    for split in ("train", "val", "test"):
        parts = [getattr(stage, split) for stage in stream.stages]
        assert torch.equal(getattr(stream, split).images, torch.cat([p.images for p in parts]))
        assert torch.equal(getattr(stream, split).labels, torch.cat([p.labels for p in parts]))


def test_the_long_tail_falls_from_100_to_2_and_is_tested_evenly() -> None:
    counts = torch.bincount(task("twemoji-longtail").train.labels).tolist()
    assert (counts[0], counts[-1]) == (100, 2)
    assert counts == sorted(counts, reverse=True)
    assert set(torch.bincount(task("twemoji-longtail").test.labels).tolist()) == {20}
    assert set(torch.bincount(task("twemoji-longtail").val.labels).tolist()) == {4}


def test_every_sub_group_has_words_of_its_own_and_enough_drawings() -> None:
    facts = emoji("twemoji")[1]
    counts = Counter(facts[i]["subcategory"] for i in tasks.different(emoji("twemoji")[0]).tolist())
    assert {key for key, count in counts.items() if count >= 20} == set(tasks.SUBGROUPS)
    assert len(set(tasks.SUBGROUPS.values())) == len(tasks.SUBGROUPS)
    sizes = [counts[key] for key in tasks.SUBGROUPS]
    assert sizes == sorted(sizes, reverse=True)


def test_pick_takes_each_drawing_as_often_as_any_other_of_its_class() -> None:
    drawings = tasks.Drawings(
        torch.zeros(5, 4, 2, 2), torch.tensor([0, 0, 0, 1, 1]), torch.arange(5)
    )
    picked = drawings.pick([7, 2], torch.Generator().manual_seed(0))
    assert torch.bincount(picked.labels).tolist() == [7, 2]
    assert sorted(Counter(picked.numbers.tolist()).values()) == [1, 1, 2, 2, 3]
