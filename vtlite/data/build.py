"""Make the embedded image sheets from their public source packages (run once; the results are
committed).

Sources, all free to redistribute with notice (see `assets/README.md`):

- `npm pack emoji-datasource-google@16.0.0` and `emoji-datasource-twitter@16.0.0`, unpacked: Noto
  emoji (Apache-2.0) and Twemoji (CC-BY 4.0), 64x64 drawings with transparency, names and
  categories;
- Debian's package `dataset-fashion-mnist` (or torchvision's raw files): Fashion-MNIST (MIT).

A sheet is one lossless WebP image: 32x32 tiles, 48 to a row, in the order of the JSON file beside
it.
"""

from __future__ import annotations

import gzip
import io
import json
from pathlib import Path

import numpy as np
from PIL import Image

from vtlite.storage import VTError, atomic_write

TILE, COLUMNS = 32, 48
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


def build(noto: Path, twemoji: Path, fashion: Path, out: Path = ASSETS) -> list[Path]:
    """Write the three sheets and their two JSON files into `out` and return their paths.

    `noto` and `twemoji` are unpacked npm packages (they hold `emoji.json`), `fashion` a folder with
    the four gzipped idx files. Raises `VTError` when a source file is missing.
    """
    return [*_build_emoji(noto, twemoji, out), *_build_fashion(fashion, out)]


def _build_emoji(noto: Path, twemoji: Path, out: Path) -> list[Path]:
    entries = [
        e
        for e in sorted(
            json.loads(_source(noto / "emoji.json").read_text()), key=lambda e: e["sort_order"]
        )
        if e["category"] != "Component" and e["has_img_google"] and e["has_img_twitter"]
    ]
    facts = [
        {
            "name": e["short_name"].replace("_", " "),
            "category": e["category"],
            "subcategory": e["subcategory"],
        }
        for e in entries
    ]
    paths = [
        _save_text(out / "emoji.json", "[\n" + ",\n".join(json.dumps(f) for f in facts) + "\n]\n")
    ]
    for style, root, vendor in (("noto", noto, "google"), ("twemoji", twemoji, "twitter")):
        tiles = [
            Image.open(_source(root / "img" / vendor / "64" / e["image"]))
            .convert("RGBA")
            .resize((TILE, TILE), Image.Resampling.BOX)
            for e in entries
        ]
        paths.append(_save_sheet(out / f"{style}.webp", tiles, "RGBA"))
    return paths


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


def _source(path: Path) -> Path:
    if not path.is_file():
        raise VTError(
            f"expected the source file {path}, found none; see the top of vtlite/data/build.py for where it comes from"
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


def _save_text(path: Path, text: str) -> Path:
    with atomic_write(path) as temporary:
        temporary.write_text(text)
    return path
