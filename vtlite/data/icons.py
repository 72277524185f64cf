"""Drawings out of icon packages (iconify's JSON of SVG bodies), found by code point or by name.

A package names its icons in its own way, so an emoji asks by everything it is called: its code
point where the package lists code points (`chars.json`), then its CLDR label, then the name it had
in Unicode before. Names are compared by their letters and digits alone.
"""

from __future__ import annotations

import io
import re
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from PIL import Image

from vtlite.storage import VTError

RENDERED = 128  # pixels a side, before the tile is averaged down from it


def code(text: str) -> str:
    """A code point sequence as packages compare: "2764-FE0F" -> "2764" (the selector says only
    "in colour")."""
    return text.upper().replace("-FE0F", "")


def squeeze(name: str) -> str:
    """A name's letters and digits: "Flag: Côte d’Ivoire" -> "flagcotedivoire"."""
    for sign, word in {"&": "and", "#": "hash", "*": "asterisk", "!": "exclamation"}.items():
        name = name.replace(sign, word)
    plain = unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode().lower()
    return re.sub("[^a-z0-9]", "", plain)


def finder(
    icons: Mapping[str, Any], chars: Mapping[str, str]
) -> Callable[[str, Sequence[str]], str]:
    """find(code point, names) -> the icon's name, "" if the package has none of them."""
    # An alias is a drawing the other way round, or a name of former times, which may mean something
    # else today ("cricket" was the game, now it is the insect): only the first kind is one of its
    # own.
    flipped = [name for name, alias in icons.get("aliases", {}).items() if "hFlip" in alias]
    known = {squeeze(name): name for name in (*icons["icons"], *flipped)}
    by_point = {code(key): name for key, name in chars.items()}

    def find(point: str, names: Sequence[str]) -> str:
        found = [by_point.get(code(point)), *(known.get(squeeze(name)) for name in names)]
        return next((name for name in found if name), "")

    return find


def tile(icons: Mapping[str, Any], name: str, size: int) -> Image.Image:
    """One icon drawn in the middle of a square of `size` pixels; RGBA."""
    alias = icons.get("aliases", {}).get(name, {})
    icon = icons["icons"][alias.get("parent", name)]
    width, height = (icon.get(side, icons[side]) for side in ("width", "height"))
    svg = (
        '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'
        f' viewBox="{icon.get("left", 0)} {icon.get("top", 0)} {width} {height}" width="{RENDERED}"'
        f' height="{RENDERED}">{icon["body"].replace("currentColor", "#000")}</svg>'
    )
    drawn = Image.open(io.BytesIO(_render(svg))).convert("RGBA")
    if alias.get("hFlip"):
        drawn = drawn.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return drawn.resize((size, size), Image.Resampling.BOX)


def _render(svg: str) -> bytes:
    try:
        from resvg_py import svg_to_bytes
    except ImportError as error:
        raise VTError(
            "drawing the icon packages needs resvg-py, and it is not installed; "
            "install it with: pip install 'vtlite[data]'"
        ) from error
    return bytes(svg_to_bytes(svg_string=svg, width=RENDERED, height=RENDERED))
