from __future__ import annotations

from typing import Any

import torch
from matplotlib.colors import to_rgba

from vtlite import plots_remapping
from vtlite.methods import METHODS
from vtlite.plots import _FROZEN, _TRAINED


def test_every_method_of_distillation_stands_once_where_its_transfer_is_drawn() -> None:
    found = [name for names, _ in plots_remapping.TRANSFERRED.values() for name in names]
    own = [key.split("/")[-1] for key in METHODS if key.startswith("remapping/distillation/")]
    assert sorted(found) == sorted(own)
    for ax, (what, (names, layers)) in zip(
        plots_remapping.transfers().axes, plots_remapping.TRANSFERRED.items(), strict=True
    ):
        assert ax.get_title() == what
        assert ", ".join(names) in [text.get_text() for text in ax.texts]
        colours = [patch.get_facecolor() for patch in ax.patches]
        assert colours == [to_rgba(_FROZEN)] * 5 + [to_rgba(_TRAINED)] * 5
        arrows = [text for text in ax.texts if getattr(text, "arrow_patch", None) is not None]
        assert len(arrows) == 8 + len(layers)  # four within each network


def test_soft_labels_are_bars_as_long_as_the_shares_and_the_true_one_stands_out() -> None:
    shares = torch.tensor([[0.7, 0.2, 0.1], [0.3, 0.3, 0.4]])
    figure = plots_remapping.soft_labels(
        torch.zeros(2, 3, 8, 8), {"T = 1": shares, "T = 4": shares / 2}, ("a", "b", "c"), (0, 2)
    )
    panels: list[Any] = [ax for ax in figure.axes if ax.patches]
    assert len(panels) == 4
    for ax, wanted in zip(
        panels, (shares[0], shares[0] / 2, shares[1], shares[1] / 2), strict=True
    ):
        widths = torch.tensor([float(bar.get_width()) for bar in ax.patches])
        torch.testing.assert_close(widths, wanted.float())
    for ax, true in zip(panels, (0, 0, 2, 2), strict=True):
        colours = [bar.get_facecolor() for bar in ax.patches]
        assert [i for i in range(3) if colours.count(colours[i]) == 1] == [true]


def test_maps_stand_below_their_image() -> None:
    maps = {"teacher": torch.rand(2, 4, 4), "student": torch.rand(2, 4, 4)}
    axes = plots_remapping.map_rows(torch.zeros(2, 3, 8, 8), maps).axes
    assert len(axes) == 6
    assert [ax.get_ylabel() for ax in axes[::2]] == ["", "teacher", "student"]
    shown: Any = axes[5].images[0].get_array()
    assert (shown == maps["student"][1].numpy()).all()
