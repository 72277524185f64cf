"""Drawings of lesson 03c: what they show is what they were given."""

from __future__ import annotations

from collections.abc import Iterator

import matplotlib.pyplot as plt
import pytest
import torch

from vtlite.plots_prompts import attended, both_towers, sure_views


@pytest.fixture(autouse=True)
def close() -> Iterator[None]:
    yield
    plt.close("all")


def test_towers_are_drawn_with_what_couples_them() -> None:
    axes = both_towers().axes
    titles = [ax.get_title().split(":")[0] for ax in axes]
    assert titles == ["CoOp", "IVLP", "MaPLe", "UPT", "CLIP-LoRA"]
    written = {
        name: [text.get_text() for text in ax.texts] for name, ax in zip(titles, axes, strict=True)
    }
    assert [written[name].count("$P$") for name in titles] == [1, 3, 3, 0, 0]
    assert [written[name].count("$F$") for name in titles] == [0, 0, 3, 0, 0]
    assert written["CLIP-LoRA"].count("$BA$") == 6


def test_sure_views_frame_what_is_kept_beside_both_answers() -> None:
    views, entropy = torch.rand(9, 3, 8, 8), torch.arange(9) / 10
    before, after = torch.tensor([0.5, 0.3]), torch.tensor([0.2, 0.7])
    figure = sure_views([(views, entropy, 2)], [(("a", "b"), before, after)], shown=5)
    *pictures, bars = figure.axes
    assert [ax.get_title() for ax in pictures] == ["0.00", "0.10", "0.20", "0.40", "0.80"]
    assert [ax.spines["top"].get_visible() for ax in pictures] == [True, True, False, False, False]
    widths = [bar.get_width() for bar in bars.patches]  # type: ignore[attr-defined]
    assert widths == pytest.approx([50, 30, 20, 70], abs=1e-4)
    assert [label.get_text() for label in bars.get_yticklabels()] == ["a", "b"]


def test_attended_patches_are_clear() -> None:
    images, found = torch.rand(2, 3, 8, 8), torch.zeros(2, 2, 2)
    found[:, 0, 1] = 0.5
    axes = attended(images, {"prompt": found}).axes
    assert [ax.get_ylabel() for ax in axes] == ["image", "", "prompt", ""]
    veil = torch.as_tensor(axes[2].get_images()[1].get_array())[..., 3]
    assert torch.equal(veil, torch.tensor([[1.0, 0.0], [1.0, 1.0]]).to(veil.dtype))
