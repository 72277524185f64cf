from __future__ import annotations

import inspect
import sys
from typing import Any

import matplotlib.pyplot as plt
import pytest
import torch

import vtlite as vt
from vtlite import plots
from vtlite.backbones.vit import Attention, Block
from vtlite.lesson import (
    against,
    claim,
    knob,
    listed,
    read,
    set_up,
    show_figure,
    show_source,
    table,
)


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


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What the lesson would display."""
    found: list[Any] = []
    monkeypatch.setattr("IPython.display.display", found.append)
    return found


def test_an_old_torch_stops_a_lesson_in_a_sentence(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    set_up(3)
    assert torch.initial_seed() == 3
    assert f"torch {torch.__version__}, vtlite {vt.__version__}" in capsys.readouterr().out
    monkeypatch.setattr(torch, "__version__", "2.7.1+cpu")
    with pytest.raises(SystemExit, match=r"need torch 2\.8 or newer, found 2\.7\.1"):
        set_up()


def test_a_figure_is_shown_once_with_its_alt_text(shown: list[Any]) -> None:
    figure = plots.bars(["full", "linear"], [80.0, 60.0], "accuracy (%)")
    alt = "Two bars of accuracy: full fine-tuning and the probe"
    show_figure(figure, alt)
    data, metadata = shown[0]._repr_mimebundle_()
    assert alt in shown[1].data
    assert data["image/png"].startswith("iVBOR")
    assert metadata["image/png"] == {"alt": alt}
    assert not plt.fignum_exists(figure.number)  # or the notebook would show it again
    with pytest.raises(vt.VTError, match="expected an alt text that says what the figure draws"):
        show_figure(figure, "a figure")


def test_what_is_read_follows_the_result(shown: list[Any]) -> None:
    for lora, full in ((0.831, 0.8), (0.8, 0.8), (0.7, 0.8)):
        read(
            f"LoRA is {against(lora, full)} full fine-tuning.",
            claim(lora > full, "Less was more.", ""),
        )
    assert [markdown.data for markdown in shown] == [
        "*Read*: LoRA is 3.1 points above full fine-tuning. Less was more.",
        "*Read*: LoRA is within 1 point of full fine-tuning.",
        "*Read*: LoRA is 10.0 points below full fine-tuning.",
    ]


def test_a_claim_that_the_result_does_not_show_stops_or_says_the_other_thing() -> None:
    assert claim(torch.tensor(True), "it rises") == "it rises"
    assert claim(False, "it rises", "it falls") == "it falls"
    with pytest.raises(AssertionError, match="the result does not show this: it rises"):
        claim(torch.tensor(False), "it rises")


def test_noise_has_its_own_width() -> None:
    assert against(0.83, 0.81, noise=0.025) == "within 2.5 points of"
    assert against(0.80, 0.81) == "within 1 point of"
    assert against(0.79, 0.81) == "2.0 points below"


def test_lists_and_tables() -> None:
    assert [listed(names) for names in ([], ["a"], ["a", "b"], ["a", "b", "c"])] == [
        "none",
        "a",
        "a and b",
        "a, b and c",
    ]
    assert table(["method", "points"], [["lora", 3], ["ssf", "-4"]]).data == (
        "| method | points |\n|---|---:|\n| lora | 3 |\n| ssf | -4 |"
    )


def test_a_knob_turns_with_and_without_widgets(
    shown: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    turned: list[int] = []
    monkeypatch.setitem(sys.modules, "ipywidgets", None)  # as if it were not installed
    knob(turned.append, 4, (1, 4, 16))
    assert (turned, shown) == ([4], [])
    monkeypatch.undo()
    pytest.importorskip("ipywidgets")
    shown_again: list[Any] = []
    monkeypatch.setattr("IPython.display.display", shown_again.append)
    knob(turned.append, 4, (1, 4, 16))
    shown_again[0].children[0].value = 16
    assert turned == [4, 4, 16]
    knob(turned.append, 5, (1, 4, 16))  # a number that the lesson did not foresee
    assert turned[-1] == 5
    assert shown_again[1].children[0].options == (1, 4, 5, 16)


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
    under, veil = axes[2 + 2 + 1].images  # row by row: images, head 1, head 2
    assert torch.allclose(
        torch.tensor(veil.get_array()[..., 3]).float(), 1 - maps[1, 1] / maps[1, 1].max()
    )
    assert veil.get_extent() == list(under.get_extent())
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
