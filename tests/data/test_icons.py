"""Icons out of a package: found by code point or name, drawn in the middle of their square."""

from __future__ import annotations

import builtins
from typing import Any

import numpy as np
import pytest

from vtlite.data import icons
from vtlite.storage import VTError


@pytest.mark.parametrize(
    ("name", "letters"),
    [
        ("Flag: Côte d’Ivoire", "flagcotedivoire"),
        ("keycap: #", "keycaphash"),
        ("UP! button", "upexclamationbutton"),
        ("smiling-face", "smilingface"),
        ("Smileys & Emotion", "smileysandemotion"),
    ],
)
def test_names_are_compared_by_letters_and_digits(name: str, letters: str) -> None:
    assert icons.squeeze(name) == letters


def test_a_code_point_goes_before_a_name_and_a_former_name_means_nothing() -> None:
    package = {
        "icons": {"red-heart": {}, "cricket-game": {}, "hand-left": {}},
        "aliases": {
            "cricket": {"parent": "cricket-game"},
            "hand-right": {"parent": "hand-left", "hFlip": True},
        },
    }
    find = icons.finder(package, {"2764-fe0f": "red-heart"})
    assert find("2764", ["cricket game"]) == "red-heart"
    assert find("1F3CF", ["no such", "cricket game"]) == "cricket-game"
    assert find("1F997", ["cricket"]) == ""
    assert find("1F449", ["Hand: right"]) == "hand-right"


@pytest.mark.parametrize("name", ["left", "right"])
def test_an_icon_is_drawn_and_its_mirror_image_mirrored(name: str) -> None:
    pytest.importorskip("resvg_py", reason="resvg-py draws the icons")
    package = {
        "icons": {"left": {"body": '<rect width="8" height="16" fill="#f00"/>'}},
        "aliases": {"right": {"parent": "left", "hFlip": True}},
        "width": 16,
        "height": 16,
    }
    opaque = np.asarray(icons.tile(package, name, 32))[:, :, 3] > 0
    assert opaque[:, :16].all() == (name == "left")
    assert opaque[:, 16:].all() == (name == "right")


def test_without_resvg_it_is_said_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    original = builtins.__import__

    def without(name: str, *args: Any, **settings: Any) -> Any:
        if name == "resvg_py":
            raise ImportError(name)
        return original(name, *args, **settings)

    monkeypatch.setattr(builtins, "__import__", without)
    package = {"icons": {"x": {"body": ""}}, "width": 1, "height": 1}
    with pytest.raises(VTError, match=r"needs resvg-py.*pip install 'vtlite\[data\]'"):
        icons.tile(package, "x", 32)
