"""Drawings of lessons 03: what is drawn is what the methods are."""

from __future__ import annotations

from typing import Any

import matplotlib.pyplot as plt
import pytest
import torch
from matplotlib.colors import to_rgba

import vtlite as vt
from vtlite.method import find_method
from vtlite.plots import _TRAINED
from vtlite.plots_prompts import (
    VISUAL_PROMPTS,
    looks,
    prompt_map,
    sizes_by_block,
    stages_learnt,
)


@pytest.fixture(autouse=True)
def close() -> Any:
    yield
    plt.close("all")


def test_the_map_has_a_panel_for_each_method_of_the_leaf() -> None:
    leaf = {key.split("/")[-1] for key in vt.METHODS if key.startswith("prompt/vision/")}
    assert set(VISUAL_PROMPTS) == leaf
    axes = prompt_map().axes
    assert [ax.get_title() for ax in axes] == list(VISUAL_PROMPTS)
    for ax in axes:
        assert [p for p in ax.patches if p.get_facecolor() == to_rgba(_TRAINED)], ax.get_title()


@pytest.mark.parametrize("name", [name for name in VISUAL_PROMPTS if name != "pro_tuning"])
def test_what_enters_every_block_trains_in_the_last_one(name: str) -> None:
    """Prompts for every block train in the last one too, others in front of the network only."""
    backbone, said = vt.load_backbone("vtlite-tiny"), VISUAL_PROMPTS[name]
    network = vt.tune(backbone, name, 2, **find_method(name).small).backbone
    last = (network.base if hasattr(network, "base") else network).blocks[-1]
    own = [p for p in last.parameters() if p.requires_grad]
    assert bool(own) == said.enters.startswith("every")


def test_tokens_look_under_their_own_names() -> None:
    figure = looks(torch.zeros(3, 3, 8, 8), torch.rand(3, 2, 2, 2), ("class", "prompt 1"))
    assert [ax.get_ylabel() for ax in figure.axes[::3]] == ["", "class", "prompt 1"]


def test_stages_are_rows_and_forgetting_is_below_the_diagonal() -> None:
    values = torch.tensor([[0.9, 0.1], [0.2, 0.8]])
    left, right, _ = stages_learnt({"one": values, "other": values.T}, ("a", "b")).axes
    assert [ax.get_title() for ax in (left, right)] == ["one", "other"]
    assert [text.get_text() for text in left.texts] == ["90", "10", "20", "80"]
    assert [text.get_text() for text in right.texts] == ["90", "20", "10", "80"]
    assert [label.get_text() for label in left.get_yticklabels()] == ["a", "b"]


def test_sizes_have_a_bar_for_each_block() -> None:
    left, right = sizes_by_block({"prompts": (1, 5, 0), "rank": (10, 0, 0)}).axes
    assert [bar.get_height() for bar in left.patches] == [1, 5, 0]
    assert right.get_title() == "rank"
