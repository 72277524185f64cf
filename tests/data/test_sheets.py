"""The embedded sheets: whole, labelled in the order of their tiles, with sources and licences, and
small."""

from __future__ import annotations

import re
from collections import Counter
from importlib import resources

import pytest
import torch

from vtlite.backbones import WEIGHTS
from vtlite.data.sheets import ASSETS, STYLES, emoji, fashion
from vtlite.storage import VTError

README = (ASSETS / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("style", STYLES)
def test_every_emoji_has_a_drawing_and_three_names(style: str) -> None:
    sprites, facts = emoji(style)
    assert sprites.shape == (len(facts), 4, 32, 32)
    assert 0 <= sprites.min() < sprites.max() <= 1
    assert (sprites[:, 3].amax((1, 2)) > 0.5).all()  # something to be seen on each
    wanted = {"concept", "name", "category", "subcategory", "label", "tags"}
    assert all(set(fact) == wanted for fact in facts)
    assert all(fact["name"] and fact["category"] and fact["label"] for fact in facts)
    assert all(isinstance(tag, str) for fact in facts for tag in fact["tags"])
    assert len({fact["name"] for fact in facts}) == len(facts)


def test_both_styles_draw_the_same_things_but_not_alike() -> None:
    (noto, facts), (twemoji, same) = emoji("noto"), emoji("twemoji")
    assert facts == same
    assert (noto - twemoji).abs().amax((1, 2, 3)).min() > 0


@pytest.mark.parametrize("style", STYLES)
def test_a_concept_is_the_same_thing_in_every_style(style: str) -> None:
    facts = emoji(style)[1]
    assert facts == [emoji("noto")[1][fact["concept"]] for fact in facts]
    assert [fact["concept"] for fact in facts] == sorted({fact["concept"] for fact in facts})


@pytest.mark.parametrize("style", [s for s in STYLES if s != "high-contrast"])  # all black
def test_styles_draw_the_same_things_in_like_colours(style: str) -> None:
    """The mean colour of a drawing is nearer to that of the same thing in Noto than to others'."""
    sprites, facts = emoji(style)
    others = emoji("noto")[0][[fact["concept"] for fact in facts]]
    mine, noto = ((s[:, :3] * s[:, 3:]).mean((2, 3)) for s in (sprites, others))
    distance = torch.cdist(mine, noto)
    assert distance.diag().mean() < 0.6 * distance.mean()


def test_the_styles_differ_and_one_is_a_line_drawing() -> None:
    sprites, _ = emoji("high-contrast")
    assert sprites[:, :3].max() == 0
    flat, shaded = emoji("fluent-flat")[0], emoji("fluent")[0]
    assert (flat - shaded).abs().amax((1, 2, 3)).min() > 0


def test_an_unknown_style_is_answered_with_the_nearest() -> None:
    with pytest.raises(
        VTError, match="unknown drawing style 'fluent flat': did you mean 'fluent-flat'"
    ):
        emoji("fluent flat")


COLOURS = {"red": (1, 0, 0), "green": (0, 1, 0), "blue": (0, 0, 1), "yellow": (1, 1, 0)}


@pytest.mark.parametrize("style", ["noto", "twemoji"])
@pytest.mark.parametrize("colour", COLOURS)
def test_names_belong_to_their_tiles(style: str, colour: str) -> None:
    sprites, facts = emoji(style)
    index = [fact["name"] for fact in facts].index(f"large {colour} square")
    middle = sprites[index, :3, 12:20, 12:20].mean((1, 2))
    channels = torch.tensor(COLOURS[colour], dtype=torch.bool)
    assert middle[channels].min() > middle[~channels].max() + 0.15


def test_photographs_by_split_and_kind() -> None:
    upstream, new = {}, {}
    for split in ("upstream", "train", "test"):
        grey, names = fashion(split)
        assert grey.shape == (len(names), 1, 32, 32)
        assert (grey[:, 0].amax((1, 2)) > 0.3).all()
        assert (grey[..., [0, 1, 30, 31]] == 0).all()  # 28x28 in a black frame
        (upstream if split == "upstream" else new)[split] = Counter(names)
    assert set(upstream["upstream"].values()) == {1000}
    assert set(new["train"].values()) == set(new["test"].values()) == {200}
    assert set(new["train"]) == set(new["test"])
    assert len(set(upstream["upstream"]) | set(new["train"])) == 10


def test_kinds_belong_to_their_photographs() -> None:
    """The mean photograph of a kind in train is nearest to that kind in test for most: chance is a
    fifth."""
    (train, names), (test, wanted) = fashion("train"), fashion("test")
    kinds = sorted(set(names))
    means = torch.stack([train[[n == kind for n in names]].mean(0).flatten() for kind in kinds])
    found = [kinds[i] for i in torch.cdist(test.flatten(1), means).argmin(1)]
    assert sum(a == b for a, b in zip(found, wanted, strict=True)) / len(wanted) > 0.6


def test_trousers_have_a_gap_between_the_legs_and_bags_have_not() -> None:
    grey, names = fashion("upstream")
    between = {
        kind: grey[[n == kind for n in names], 0, 24:29, 15:17].mean()
        for kind in ("trouser", "bag")
    }
    assert 2 * between["trouser"] < between["bag"]


def test_everything_embedded_is_under_25_mb_and_is_installed() -> None:
    folders = [
        resources.files("vtlite") / "data" / "assets",
        resources.files("vtlite") / "backbones" / "weights",
    ]
    files = [file for folder in folders for file in folder.iterdir() if file.is_file()]
    assert {"noto.webp", "twemoji.webp", "fashion.webp", "vtlite-tiny.safetensors"} <= {
        file.name for file in files
    }
    assert sum(len(file.read_bytes()) for file in files) < 25 * 10**6


def test_every_embedded_file_has_a_licence() -> None:
    rows = [line for line in README.splitlines() if line.startswith("| `")]
    for file in ASSETS.iterdir():
        if file.name != "README.md":
            assert any(
                f"`{file.name}`" in row and re.search("MIT|Apache|CC-BY", row) for row in rows
            ), file.name
    assert all(path.with_suffix(".md").is_file() for path in WEIGHTS.glob("*.safetensors"))


@pytest.mark.parametrize("style", STYLES)
def test_the_readme_counts_right(style: str) -> None:
    if style != "twemoji":  # "the same"
        row = next(line for line in README.splitlines() if f"`{style}.webp`" in line)
        assert f"{len(emoji(style)[1]):,} " in row


def test_the_readme_counts_the_photographs_right() -> None:
    assert (
        f"{sum(len(fashion(s)[1]) for s in ('upstream', 'train', 'test')):,} photographs" in README
    )
