from __future__ import annotations

import inspect

import matplotlib.pyplot as plt
import pytest
import torch

import vtlite as vt
from vtlite import plots
from vtlite.backbones.vit import Attention, Block
from vtlite.lesson import show_source


@pytest.mark.parametrize("obj", [Attention, vt.fit, Attention.forward])
def test_source_is_shown_whole_and_with_its_file(obj: object) -> None:
    text = show_source(obj).data
    file, fence, *lines, end = text.splitlines()
    assert file.startswith("`vtlite/")
    assert (fence, end) == ("```python", "```")
    shown = "\n".join(lines)
    assert inspect.cleandoc("\n" + inspect.getsource(obj)) == inspect.cleandoc("\n" + shown)  # type: ignore[arg-type]
    assert not lines[0].startswith(" ")  # a method is moved to the margin
    compile(shown, "shown", "exec")


@pytest.mark.parametrize("obj", [3, "Attention", len, torch.nn.Linear, Block(8, 2)])
def test_what_has_no_source_in_the_package_is_refused_in_a_sentence(obj: object) -> None:
    with pytest.raises(vt.VTError, match="expected a class, function or method of vtlite, found"):
        show_source(obj)


def test_patches_are_drawn_in_reading_order() -> None:
    image = torch.linspace(-1, 1, 64).view(1, 8, 8).expand(3, 8, 8)
    whole, *patches = plots.show_patches(image, 4).axes
    assert whole.images[0].get_array().shape == (8, 8, 3)
    drawn = [ax.images[0].get_array()[..., 0] for ax in patches]
    expected = ((image[0] + 1) / 2).unfold(0, 4, 4).unfold(1, 4, 4).reshape(4, 4, 4)
    assert [ax.get_title() for ax in patches] == ["1", "2", "3", "4"]
    assert all(torch.allclose(torch.tensor(a), b) for a, b in zip(drawn, expected, strict=True))


def test_maps_are_drawn_as_given() -> None:
    maps = torch.rand(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    axes = plots.attention_maps(torch.zeros(2, 3, 8, 8), maps).axes
    assert torch.equal(
        torch.tensor(axes[2 + 2 + 1].images[0].get_array()), maps[1, 1]
    )  # row by row: images, head 1, head 2
    similarity = torch.eye(16)
    assert torch.equal(
        torch.tensor(plots.position_similarity(similarity).axes[6].images[0].get_array()),
        similarity[6].view(4, 4),
    )


def test_right_neighbours_have_a_frame() -> None:
    right = torch.tensor([[True, False], [False, True]])
    figure = plots.neighbours(
        torch.zeros(2, 3, 8, 8), {"pixels": (torch.zeros(2, 2, 3, 8, 8), right)}
    )
    framed = [ax.spines["left"].get_visible() for ax in figure.axes[2:]]
    assert framed == [True, False, False, True]


def test_bars_and_curves_show_the_given_values() -> None:
    values = {"a": {"x": [0.2, 0.4], "y": [0.5]}, "b": {"x": [0.1], "y": [0.9]}}
    heights = [
        patch.get_height()
        for patch in plots.grouped_bars(values, "accuracy", {"a": 0.1, "b": 0.2}).axes[0].patches
    ]
    assert heights == pytest.approx([30, 10, 50, 90])  # by name, then by group
    ax = plots.accuracy_over_dimension(
        {"p": {8: 0.5, 32: 0.7}, "r": {8: 0.2, 32: 0.3}}, {"p": 0.8, "r": 0.4}, 0.1
    ).axes[0]
    assert [list(line.get_ydata()) for line in ax.get_lines()] == [
        pytest.approx(y) for y in ([50, 70], [80, 80], [20, 30], [40, 40], [10, 10])
    ]
    assert plots.tuning_idea().axes[0].texts
    plt.close("all")
