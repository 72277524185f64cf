from __future__ import annotations

import pytest
import torch
from matplotlib.colors import to_rgba

import vtlite as vt
from vtlite import plots_prompts
from vtlite.methods.prompt.contexts import Texts
from vtlite.methods.prompt.language.prograd import aligned
from vtlite.plots import _TRAINED


@pytest.mark.parametrize("position", ["end", "middle", "front"])
def test_the_texts_are_drawn_in_the_order_in_which_the_tower_reads_them(position: str) -> None:
    texts = Texts(vt.load_backbone("vtlite-clip"), (plots_prompts._NAME,), 3, position)  # type: ignore[arg-type]
    labels = {"end": "CoOp, name at the end", "middle": "CoOp, in the middle"}
    before, behind = plots_prompts.LANGUAGE_PROMPTS[labels.get(position, "CoOp, in front")]
    words = ["v1", "v2", "v3", "start", plots_prompts._NAME, "end"]  # places of `order`
    drawn = ["start", *before, plots_prompts._NAME, *behind, "end"]
    assert [words[place] for place in texts.order[0].tolist()] == drawn


def test_what_is_learned_is_blue() -> None:
    (ax,) = plots_prompts.prompt_texts().axes
    words = [text.get_text() for text in ax.texts if text.get_ha() == "center"]
    for word, box in zip(words, ax.patches, strict=True):
        assert (word[0] == "v") == (box.get_facecolor() == to_rgba(_TRAINED)), word


@pytest.mark.parametrize("strength", [0.0, 0.5, 1.0])
def test_a_projection_is_drawn_at_its_true_angle_and_length(strength: float) -> None:
    gradient, general = torch.tensor([[-3.0, 4.0]]), torch.tensor([[2.0, 0.0]])
    used = aligned(gradient, general, strength)
    figure = plots_prompts.projections({"one": (gradient, general, used)})
    along, labels, taken = figure.axes[0].collections[-3:]
    found = [float(value[0]) for q in (along, labels, taken) for value in (q.U, q.V)]
    assert found == pytest.approx([1, 0, -0.6, 0.8, -0.6 * (1 - strength), 0.8])


def test_place_maps_put_the_even_share_in_the_middle_of_the_colours() -> None:
    maps = torch.tensor([[[0.0, 1.0], [2.0, 3.0]], [[1.0, 1.0], [1.0, 1.0]]])[None]
    figure = plots_prompts.place_maps(torch.zeros(1, 3, 4, 4), maps, [["a", "b"]])
    shades = [ax.images[0].get_array().tolist() for ax in figure.axes[1:3]]  # type: ignore[union-attr]
    assert shades == [[[-1, 0], [0.5, 1]], [[0, 0], [0, 0]]]
    assert [ax.get_title() for ax in figure.axes[1:3]] == ["a", "b"]
    assert [label.get_text() for label in figure.axes[-1].get_yticklabels()] == ["0", "1", "3.0"]
