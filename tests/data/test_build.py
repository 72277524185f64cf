"""Making the sheets from sources of the same layout, a few pictures each."""

from __future__ import annotations

import gzip
import io
import json
import re
import shutil
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vtlite.data import icons, sheets
from vtlite.data.build import FASHION_CLASSES, ICONS, build
from vtlite.storage import VTError

COLOURS = {"one.png": (255, 0, 0, 255), "two.png": (0, 0, 255, 128), "three.png": (0, 255, 0, 255)}


def entry(
    image: str, order: int, category: str = "Symbols", google: bool = True, twitter: bool = True
) -> dict[str, object]:
    names = {
        "short_name": f"the_{image.removesuffix('.png')}",
        "category": category,
        "subcategory": "geometric",
        "name": image.removesuffix(".png").upper(),
        "unified": image.removesuffix(".png").encode().hex().upper(),
    }
    return {
        "image": image,
        "sort_order": order,
        "has_img_google": google,
        "has_img_twitter": twitter,
        **names,
    }


def icon(colour: str, **more: float) -> dict[str, object]:
    return {"body": f'<rect width="16" height="16" fill="{colour}"/>', **more}


ENTRIES = [
    entry("two.png", 20),
    entry("one.png", 10),
    entry("skin.png", 5, category="Component"),
    entry("missing.png", 6, twitter=False),
    entry("absent.png", 7, google=False),
    entry("three.png", 30),
]


def write_idx(path: Path, values: np.ndarray) -> None:
    header = bytes([0, 0, 8, values.ndim]) + np.array(values.shape, ">i4").tobytes()
    path.write_bytes(gzip.compress(header + values.astype(np.uint8).tobytes()))


def brightness(split: int, index: int) -> int:
    return 10 + 100 * split + index


def word(entry: dict[str, object]) -> dict[str, object]:
    number = str(entry["image"]).removesuffix(".png")
    return {"hexcode": entry["unified"], "label": f"number {number}", "tags": [number, "digit"]}


def write_icons(package: Path) -> None:
    """One drawing by code point, one by label, none of the third; one is faint, one is wide."""
    package.mkdir(parents=True)
    icons = {
        "anything": icon("#ff0000"),
        "number-two": icon("#0000ff", height=8),
        "number-three": icon("#00ff0022"),
    }
    (package / "icons.json").write_text(
        json.dumps({"icons": icons, "width": 16, "height": 16}), encoding="utf-8"
    )
    (package / "chars.json").write_text(json.dumps({b"one".hex(): "anything"}), encoding="utf-8")


def write_sources(tmp_path: Path) -> Path:
    for vendor in ("google", "twitter"):
        package = tmp_path / "packages" / f"emoji-datasource-{vendor}"
        folder = package / "img" / vendor / "64"
        folder.mkdir(parents=True)
        (package / "emoji.json").write_text(json.dumps(ENTRIES), encoding="utf-8")
        for name, colour in COLOURS.items():
            picture = Image.new("RGBA", (64, 64), colour)
            picture.paste(
                (0, 0, 0, 0), (0, 0, 64, 32 if vendor == "google" else 16)
            )  # transparent above, to another height
            picture.save(folder / name)
    words = tmp_path / "packages" / "emojibase-data" / "en" / "data.json"
    words.parent.mkdir(parents=True)
    words.write_text(json.dumps([word(entry) for entry in ENTRIES]), encoding="utf-8")
    for name in ICONS.values():
        write_icons(tmp_path / "packages" / name)
    fashion = tmp_path / "fashion"
    fashion.mkdir()
    for split, prefix in enumerate(("train", "t10k")):
        labels = np.array([9, 3, 0, 1, 2, 3, 4, 5, 6, 7, 8])
        write_idx(fashion / f"{prefix}-labels-idx1-ubyte.gz", labels)
        write_idx(
            fashion / f"{prefix}-images-idx3-ubyte.gz",
            np.stack([np.full((28, 28), brightness(split, i)) for i in range(len(labels))]),
        )
    (tmp_path / "out").mkdir()
    return tmp_path


@pytest.fixture(autouse=True, scope="module")
def flat_drawings() -> Iterator[None]:
    """Drawing without resvg: the colour of an icon's rectangle, in the part of the square that its
    shape leaves."""

    def render(svg: str) -> bytes:
        colour = re.search('fill="(#[0-9a-f]+)"', svg)
        box = re.search('viewBox="0 0 (\\d+) (\\d+)"', svg)
        assert colour
        assert box
        width, height = int(box[1]), int(box[2])
        picture = Image.new("RGBA", (icons.RENDERED, icons.RENDERED))
        drawn = Image.new("RGBA", (icons.RENDERED, icons.RENDERED * height // width), colour[1])
        picture.paste(drawn, (0, (icons.RENDERED - drawn.height) // 2))
        file = io.BytesIO()
        picture.save(file, "PNG")
        return file.getvalue()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(icons, "_render", render)
        yield


def build_from(sources: Path) -> list[Path]:
    return build(sources / "packages", sources / "fashion", sources / "out")


@pytest.fixture
def sources(tmp_path: Path) -> Path:
    return write_sources(tmp_path)


@pytest.fixture(scope="module")
def built_once(flat_drawings: None, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return build_from(write_sources(tmp_path_factory.mktemp("sources")))


@pytest.fixture
def built(built_once: list[Path], monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(sheets, "ASSETS", built_once[0].parent)
    return built_once[0].parent


def test_ten_files_are_written_and_named(built_once: list[Path]) -> None:
    paths = built_once
    assert sorted(paths) == sorted(paths[0].parent.iterdir())
    assert {path.name for path in paths} == {
        "emoji.json",
        "noto.webp",
        "twemoji.webp",
        *(f"{style}.webp" for style in ICONS),
        "fashion.json",
        "fashion.webp",
    }


@pytest.mark.usefixtures("built")
def test_emoji_come_back_in_their_order_without_the_incomplete() -> None:
    sprites, facts = sheets.emoji.__wrapped__("noto")
    assert facts == [
        {
            "concept": i,
            "name": f"the {n}",
            "category": "Symbols",
            "subcategory": "geometric",
            "label": f"number {n}",
            "tags": [n, "digit"],
        }
        for i, n in enumerate(("one", "two", "three"))
    ]
    for sprite, name in zip(sprites, ("one.png", "two.png", "three.png"), strict=True):
        assert (sprite[:, 24] * 255).round().int().T.tolist() == [list(COLOURS[name])] * 32


@pytest.mark.usefixtures("built")
def test_each_style_comes_from_its_own_package() -> None:
    for style, height in (("noto", 16), ("twemoji", 8)):
        sprites, _ = sheets.emoji.__wrapped__(style)
        assert (sprites[:, 3, :height] == 0).all()
        assert (sprites[:, 3, height:] > 0).all()


@pytest.mark.usefixtures("built")
@pytest.mark.parametrize("style", ICONS)
def test_an_icon_stands_at_its_emoji_s_number_and_a_faint_one_nowhere(style: str) -> None:
    sprites, facts = sheets.emoji.__wrapped__(style)
    assert [(fact["concept"], fact["label"]) for fact in facts] == [
        (0, "number one"),
        (1, "number two"),
    ]
    assert (sprites[0] * 255).int()[:, 16, 16].tolist() == [255, 0, 0, 255]
    assert (sprites[1] * 255).int()[:, 16, 16].tolist() == [0, 0, 255, 255]
    assert (sprites[1, 3].amax(1) > 0).nonzero().flatten().tolist() == list(range(8, 24))  # wide


@pytest.mark.usefixtures("built")
def test_photographs_come_back_with_their_kind_and_a_black_frame() -> None:
    for split, number in (("upstream", 0), ("train", 0), ("test", 1)):
        grey, names = sheets.fashion.__wrapped__(split)
        assert (grey[:, :, 2:30, 2:30] > 0).all()
        assert grey[:, :, 2:30, 2:30].sum() == pytest.approx(grey.sum())
        labels = [9, 3, 0, 1, 2, 3, 4, 5, 6, 7, 8]
        named = {brightness(number, i): FASHION_CLASSES[label] for i, label in enumerate(labels)}
        assert [named[round(255 * float(picture[0, 16, 16]))] for picture in grey] == names


@pytest.mark.usefixtures("built")
def test_no_test_photograph_is_upstream_and_kinds_are_kept_apart() -> None:
    upstream, train, test = (
        Counter(sheets.fashion.__wrapped__(split)[1]) for split in ("upstream", "train", "test")
    )
    assert (
        sum(upstream.values()) + sum(train.values()) == 11
    )  # nothing of the training file is lost
    assert not set(upstream) & set(train)
    assert set(train) == set(test)
    assert len(upstream) == len(train) == 5


def test_building_twice_gives_the_same_bytes(sources: Path, built_once: list[Path]) -> None:
    first = {path.name: path.read_bytes() for path in built_once}
    assert {path.name: path.read_bytes() for path in build_from(sources)} == first


@pytest.mark.parametrize(
    "gone",
    [
        "packages/emoji-datasource-google/emoji.json",
        "packages/emoji-datasource-twitter/img/twitter/64/two.png",
        "packages/emojibase-data/en/data.json",
        "packages/@iconify-json/fxemoji/icons.json",
        "packages/@iconify-json/noto-v1/chars.json",
        "fashion/t10k-labels-idx1-ubyte.gz",
    ],
)
def test_a_missing_source_is_named(sources: Path, gone: str) -> None:
    (sources / gone).unlink()
    with pytest.raises(
        VTError,
        match=r"expected the source file .*, found none; see the top of vtlite/data/build.py",
    ) as error:
        build_from(sources)
    assert str(Path(gone)) in str(error.value)


def test_a_missing_folder_to_write_into_is_a_sentence(sources: Path) -> None:
    shutil.rmtree(sources / "out")
    with pytest.raises(VTError, match=r"expected an existing folder to write emoji\.json into"):
        build_from(sources)
