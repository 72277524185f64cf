"""Make the embedded image sheets from their public source packages (run once; the results are
committed).

Sources, all free to redistribute with notice (`assets/README.md` has the commands and licences):

- npm's `emoji-datasource-google` and `emoji-datasource-twitter`: Noto emoji (Apache-2.0) and
  Twemoji (CC-BY 4.0), 64x64 drawings with transparency, names and categories;
- npm's `emojibase-data` (MIT): a label and tags in plain words for each emoji;
- npm's `@iconify-json/...` (see ICONS): the same emoji in five more drawing styles, as SVG;
- Debian's package `dataset-fashion-mnist` (or torchvision's raw files): Fashion-MNIST (MIT).

A sheet is one lossless WebP image: 32x32 tiles, 48 to a row, in the order of the JSON file beside
it. Tile i of every emoji sheet is row i of `emoji.json`; where a style lacks a drawing, its tile is
empty.
"""

from __future__ import annotations

import gzip
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from vtlite.data import icons
from vtlite.storage import VTError, atomic_write

TILE, COLUMNS = 32, 48
_EMPTY = Image.new("RGBA", (TILE, TILE))
ASSETS = Path(__file__).parent / "assets"
FASHION_CLASSES = (
    "t-shirt",
    "trouser",
    "pullover",
    "dress",
    "coat",
    "sandal",
    "shirt",
    "sneaker",
    "bag",
    "ankle boot",
)
UPSTREAM_FASHION = (
    "t-shirt",
    "trouser",
    "dress",
    "sandal",
    "bag",
)  # the other five are only ever seen downstream


ICONS = {
    "noto-v1": "@iconify-json/noto-v1",
    "fluent-flat": "@iconify-json/fluent-emoji-flat",
    "fluent": "@iconify-json/fluent-emoji",
    "high-contrast": "@iconify-json/fluent-emoji-high-contrast",
    "fxemoji": "@iconify-json/fxemoji",
}


def build(packages: Path, fashion: Path, out: Path = ASSETS) -> list[Path]:
    """Write the sheets and their two JSON files into `out` and return their paths.

    `packages` is the `node_modules` folder with the npm packages, `fashion` a folder with the four
    gzipped idx files. Raises `VTError` when a source file is missing.
    """
    entries = _entries(packages)
    facts = _facts(entries, packages)
    paths = [_save_rows(out / "emoji.json", facts)]
    for style, vendor in (("noto", "google"), ("twemoji", "twitter")):
        folder = packages / f"emoji-datasource-{vendor}" / "img" / vendor / "64"
        paths.append(_save_sheet(out / f"{style}.webp", _pictures(entries, folder), "RGBA"))
    for style, name in ICONS.items():
        drawn = _drawn(entries, facts, packages / name)
        paths.append(_save_sheet(out / f"{style}.webp", drawn, "RGBA"))
    return [*paths, *_build_fashion(fashion, out)]


def _entries(packages: Path) -> list[dict[str, Any]]:
    """The emoji that both Noto and Twemoji draw, without parts such as skin tones, in Unicode's
    order."""
    entries = _read_json(packages / "emoji-datasource-google" / "emoji.json")
    return [
        entry
        for entry in sorted(entries, key=lambda entry: entry["sort_order"])
        if entry["category"] != "Component" and entry["has_img_google"] and entry["has_img_twitter"]
    ]


def _facts(entries: list[dict[str, Any]], packages: Path) -> list[dict[str, Any]]:
    """What a task or a caption says of each emoji: name, category, sub-category, label, tags."""
    words = {
        icons.code(word["hexcode"]): word
        for word in _read_json(packages / "emojibase-data" / "en" / "data.json")
    }
    return [
        {
            "name": entry["short_name"].replace("_", " "),
            "category": entry["category"],
            "subcategory": entry["subcategory"],
            "label": words[icons.code(entry["unified"])]["label"],
            "tags": words[icons.code(entry["unified"])].get("tags", []),
        }
        for entry in entries
    ]


def _pictures(entries: list[dict[str, Any]], folder: Path) -> list[Image.Image]:
    return [
        Image.open(_source(folder / entry["image"]))
        .convert("RGBA")
        .resize((TILE, TILE), Image.Resampling.BOX)
        for entry in entries
    ]


def _drawn(
    entries: list[dict[str, Any]], facts: list[dict[str, Any]], package: Path
) -> list[Image.Image]:
    """One tile per emoji from an icon package, empty where it has none."""
    drawings = _read_json(package / "icons.json")
    # The shaded Fluent icons have the flat ones' names, and only the flat ones list code points.
    listed = package.with_name("fluent-emoji-flat") if package.name == "fluent-emoji" else package
    chars = dict(_read_json(listed / "chars.json"))
    find = icons.finder(drawings, chars)
    tiles = []
    for entry, fact in zip(entries, facts, strict=True):
        label = fact["label"]
        names = (label, label.replace("flag: ", "flag for "), entry["name"] or "")
        name = find(entry["unified"], names)
        tile = icons.tile(drawings, name, TILE) if name else _EMPTY
        opacity = np.asarray(tile)[:, :, 3].max()
        tiles.append(tile if opacity >= 128 else _EMPTY)  # a fog that no one sees is no drawing
    return tiles


def _build_fashion(folder: Path, out: Path) -> list[Path]:
    """1,000 training photographs of each upstream class; 200 training and 200 test photographs of
    each new class."""
    tiles, facts = [], []
    for split, prefix in (("train", "train"), ("test", "t10k")):
        images, labels = (
            _read_idx(folder / f"{prefix}-images-idx3-ubyte.gz"),
            _read_idx(folder / f"{prefix}-labels-idx1-ubyte.gz"),
        )
        for index, name in enumerate(FASHION_CLASSES):
            upstream = name in UPSTREAM_FASHION
            if upstream and split == "test":
                continue
            for image in images[labels == index][: 1000 if upstream else 200]:
                tiles.append(Image.fromarray(np.pad(image, 2)))  # 28x28 -> 32x32
                facts.append([name, "upstream" if upstream else split])
    return [
        _save_text(out / "fashion.json", json.dumps(facts) + "\n"),
        _save_sheet(out / "fashion.webp", tiles, "L"),
    ]


def _read_idx(path: Path) -> np.ndarray:
    raw = gzip.decompress(_source(path).read_bytes())
    shape = np.frombuffer(raw, ">i4", count=raw[3], offset=4)
    return np.frombuffer(raw, np.uint8, offset=4 + 4 * raw[3]).reshape(shape)


def _read_json(path: Path) -> Any:
    return json.loads(_source(path).read_text(encoding="utf-8"))


def _source(path: Path) -> Path:
    if not path.is_file():
        raise VTError(
            f"expected the source file {path}, found none; "
            "see the top of vtlite/data/build.py for where it comes from"
        )
    return path


def _save_sheet(path: Path, tiles: list[Image.Image], mode: str) -> Path:
    sheet = Image.new(mode, (COLUMNS * TILE, -(-len(tiles) // COLUMNS) * TILE))
    for i, tile in enumerate(tiles):
        sheet.paste(tile, (i % COLUMNS * TILE, i // COLUMNS * TILE))
    buffer = io.BytesIO()
    sheet.save(buffer, "WEBP", lossless=True, quality=100, method=6)
    with atomic_write(path) as temporary:
        temporary.write_bytes(buffer.getvalue())
    return path


def _save_rows(path: Path, rows: list[dict[str, Any]]) -> Path:
    lines = ",\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
    return _save_text(path, f"[\n{lines}\n]\n")


def _save_text(path: Path, text: str) -> Path:
    with atomic_write(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return path
