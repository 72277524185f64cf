"""Classification by words, and pictures of one's own on the command line."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from vtlite.__main__ import main
from vtlite.backbones import load_clip
from vtlite.backbones.base import Pixels
from vtlite.data import draw, sheets
from vtlite.storage import VTError
from vtlite.zero_shot import ZeroShot, class_features, name_pictures, read_picture, zero_shot

SMALL = Pixels((32, 32))


def apple(path: Path, mode: str = "RGBA", size: int = 200) -> Path:
    sprites, facts = sheets.emoji("noto")
    index = next(i for i, fact in enumerate(facts) if fact["label"] == "red apple")
    pixels = (sprites[index].permute(1, 2, 0) * 255).byte().numpy()
    picture = Image.fromarray(pixels).resize((size, size))
    if mode != "RGBA":
        white = Image.new("RGBA", picture.size, "white")
        picture = Image.alpha_composite(white, picture).convert(mode)
    picture.save(path)
    return path


def test_logits_are_cosines_with_the_class_words() -> None:
    clip, images = load_clip(), torch.randn(3, 3, 32, 32).clamp(-1, 1)
    logits = zero_shot(clip, images, ["cat", "dog"], "an emoji of {}")
    with torch.no_grad():
        expected = clip(images, clip.tokenize(["an emoji of cat", "an emoji of dog"]))
    torch.testing.assert_close(logits, expected)
    assert not logits.requires_grad


def test_several_templates_are_averaged() -> None:
    clip = load_clip()
    one, two = (class_features(clip, ["cat", "dog"], t) for t in ("{}", "a drawing of {}"))
    both = class_features(clip, ["cat", "dog"], ["{}", "a drawing of {}"])
    torch.testing.assert_close(both, torch.nn.functional.normalize(one + two, dim=-1))


def test_many_images_and_classes_are_taken_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    clip, images = load_clip(), torch.randn(7, 3, 32, 32)
    whole = zero_shot(clip, images, ["cat", "dog", "red apple"])
    monkeypatch.setattr("vtlite.zero_shot.BATCH", 2)
    torch.testing.assert_close(zero_shot(clip, images, ["cat", "dog", "red apple"]), whole)


def test_it_knows_what_it_was_trained_on() -> None:
    clip = load_clip()
    sprites, facts = sheets.emoji("noto")
    g = torch.Generator().manual_seed(0)
    images = draw.over(draw.place(sprites[::4], g), draw.backgrounds(len(sprites[::4]), 32, g))
    names = [fact["label"] for fact in facts]
    best = zero_shot(clip, images * 2 - 1, names).topk(5).indices
    right = [
        fact["label"] in {names[i] for i in row} for fact, row in zip(facts[::4], best, strict=True)
    ]
    assert sum(right) / len(right) > 0.6


@pytest.mark.parametrize("mode", ["RGBA", "RGB", "P", "L"])
def test_a_picture_of_any_mode_and_size(tmp_path: Path, mode: str) -> None:
    image = read_picture(apple(tmp_path / "apple.png", mode), SMALL)
    assert image.shape == (3, 32, 32)
    assert -1 <= image.min() < image.max() <= 1
    assert image[:, 0, 0].min() > 0.98  # white paper, or the palette's nearest to it
    wide = Image.new("RGB", (90, 30), "red")
    wide.save(tmp_path / "wide.png")
    red = read_picture(tmp_path / "wide.png", SMALL)
    torch.testing.assert_close(red[:, 16, 16], torch.tensor([1.0, -1.0, -1.0]))


def test_sixteen_bits_are_no_white_picture(tmp_path: Path) -> None:
    half = Image.fromarray(np.full((32, 32), 32768, dtype=np.uint16))
    half.save(tmp_path / "half.png")
    assert read_picture(tmp_path / "half.png", SMALL).abs().max() < 0.01  # the middle of [-1, 1]


def test_pixels_are_those_of_the_network(tmp_path: Path) -> None:
    path = apple(tmp_path / "apple.png")
    plain = read_picture(path, SMALL)
    other = read_picture(path, Pixels((32, 32), (0.4, 0.5, 0.6), (0.2, 0.3, 0.4)))
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in ((0.4, 0.5, 0.6), (0.2, 0.3, 0.4)))
    torch.testing.assert_close(other * std + mean, plain / 2 + 0.5)


def test_an_apple_is_an_apple(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = apple(tmp_path / "apple.png")
    (best,) = name_pictures(load_clip(), [path], ["red apple", "cat", "car"], most=5)
    assert best[0][0] == "red apple"
    assert sum(p for _, p in best) == pytest.approx(1)
    assert main(["zero-shot", str(path), "--names", "red apple, cat , car,"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == str(path)
    assert lines[1].endswith("red apple")
    assert len(lines) == 4
    assert main(["zero-shot", str(path), str(path)]) == 0  # among all names of emoji
    assert len(capsys.readouterr().out.splitlines()) == 12


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["none.png"], "expected a picture such as a PNG, JPEG or WebP, found no file: none.png"),
        (["text.png"], "expected an image, found text.png, which cannot be read"),
        (["half.png"], "expected an image, found half.png, which cannot be read"),
        (["."], "expected a picture"),
        (["apple.png", "--names", ","], "expected a list of class names"),
        (["apple.png", "--template", "an emoji"], "a place for the name, found 'an emoji'"),
        (["apple.png", "--names", "a " * 20], "expected at most 14 tokens in a text, found 20"),
    ],
)
def test_a_mistake_is_one_sentence(
    arguments: list[str],
    sentence: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    apple(tmp_path / "apple.png")
    Path("text.png").write_text("no picture", encoding="utf-8")
    Path("half.png").write_bytes(Path("apple.png").read_bytes()[:900])
    assert main(["zero-shot", *arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert sentence in error
    assert "Traceback" not in error


def test_a_picture_that_is_too_large_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vtlite.zero_shot.MAX_PIXELS", 100)
    with pytest.raises(VTError, match="at most 100 pixels, found 200x200"):
        read_picture(apple(tmp_path / "apple.png"), SMALL)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"clip": nn.Identity()}, "expected a model of two towers, found Identity"),
        ({"images": None}, "found NoneType; pass a tensor"),
        ({"images": torch.zeros(1, 3, 32, 32, dtype=torch.uint8)}, "found dtype torch.uint8"),
        ({"images": torch.zeros(1, 32, 32, 3)}, "put the channels first"),
        ({"images": torch.full((1, 3, 32, 32), torch.nan)}, "expected finite pixels"),
        ({"classes": "cat"}, "expected a list of class names"),
        ({"classes": ["cat", 3]}, "expected a list of class names"),
        ({"classes": None}, "expected a list of class names"),
        ({"template": 3}, "at least one template, found .* and 3"),
    ],
)
def test_wrong_values_are_one_sentence(arguments: dict, sentence: str) -> None:
    right = {"clip": load_clip(), "images": torch.zeros(1, 3, 32, 32), "classes": ["cat"]}
    with pytest.raises(VTError, match=sentence):
        zero_shot(**{**right, **arguments})


def test_a_single_path_is_not_read_as_letters(tmp_path: Path) -> None:
    with pytest.raises(
        VTError, match=r"expected a list of picture files, found '.*'; write \[path\]"
    ):
        name_pictures(load_clip(), "apple.png", ["apple"])


def test_the_model_that_is_asked_stays_trainable() -> None:
    clip = load_clip()
    ZeroShot(clip, ["cat", "dog"])
    assert all(p.requires_grad for p in clip.parameters())
