from __future__ import annotations

import pytest
from matplotlib.colors import to_rgba

import vtlite as vt
from vtlite import plots_adapters
from vtlite.backbones.base import is_norm
from vtlite.method import find_method
from vtlite.plots import _TRAINED

NAMES = [name for designs in plots_adapters.DESIGNS.values() for name in designs]


def panels() -> dict:
    return {ax.get_title(): ax for ax in plots_adapters.design_map().axes if ax.get_title()}


def test_the_map_has_a_panel_for_each_method_and_says_what_its_class_says() -> None:
    drawn = panels()
    assert list(drawn) == NAMES
    for name, ax in drawn.items():
        method, said = find_method(name), " ".join(text.get_text() for text in ax.texts)
        assert method.key.startswith("adapter/")
        assert ("folds away" in said) != bool(method.unmergeable)
        assert ("starts as the backbone" in said) != bool(method.starts_elsewhere)


@pytest.mark.parametrize("family", ["in series", "in parallel"])
def test_what_is_blue_on_a_block_is_what_trains_in_one(family: str) -> None:
    """A map that forgets the adapter of one branch, or the norms that Consolidator trains."""
    backbone, drawn = vt.load_backbone("vtlite-tiny"), panels()
    for name in plots_adapters.DESIGNS[family]:
        block = vt.tune(backbone, name, 2, **find_method(name).small).backbone.blocks[0]
        adapters = [m for m in block.modules() if hasattr(m, "up") or hasattr(m, "blocks")]
        norms = [m for m in block.modules() if is_norm(m) and name == "consolidator"]
        blue = [p for p in drawn[name].patches if p.get_facecolor() == to_rgba(_TRAINED)]
        assert len(blue) == len(adapters) + len(norms), name


def test_memory_bars_put_published_figures_at_their_names() -> None:
    panels = {"kept": {"full": 100.0, "lst": 20.0}, "all": {"full": 100.0, "lst": 30.0}}
    left, right = plots_adapters.memory_bars(panels, {"all": {"lst": 31.0}}).axes
    assert [bar.get_width() for bar in left.patches] == [100, 20]
    assert not left.get_lines()
    (diamonds,) = right.get_lines()
    assert list(diamonds.get_xdata()) == [31]
    assert list(diamonds.get_ydata(orig=False)) == [1]  # the second name's bar
