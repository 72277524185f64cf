from __future__ import annotations

import matplotlib.pyplot as plt
import pytest

from tests.conftest import make_tiny, make_tiny_resnet
from vtlite import plots_remapping
from vtlite.methods.remapping.weight.steps import (
    ADDED,
    DEEPER,
    NARROWER,
    SHORTER,
    WIDER,
    block_list,
    take_step,
)


def test_the_idea_divides_the_weight_of_a_copied_unit() -> None:
    panels = plots_remapping.net2net_idea().axes
    said = [[text.get_text().strip() for text in ax.texts] for ax in panels]
    assert said[1].count("w1/2") == 2
    assert said[2].count("1") == 2
    plt.close("all")


def test_steps_become_what_is_drawn_of_a_residual_network() -> None:
    plan = [(WIDER, 1), (WIDER, 1), (NARROWER, 3), (ADDED, 2), (DEEPER, 0)]
    cells = plots_remapping.cells_after(make_tiny_resnet(), plan)
    assert [cell.deeper for cell in cells] == [1, 0, 0, 0]
    assert [bool(cell.branches) for cell in cells].count(True) == 1
    assert cells[1].width == 2.25
    figure = plots_remapping.networks_drawn({"found": cells})
    assert {"found", "x2.25", "+"} <= {text.get_text() for text in figure.axes[0].texts}
    plt.close("all")


@pytest.mark.parametrize("plan", [[(DEEPER, 0), (DEEPER, 2)], [(DEEPER, 1), (SHORTER, 0)]])
def test_a_block_that_is_there_is_drawn_as_there(plan: list[tuple[int, int]]) -> None:
    backbone = make_tiny()
    cells = plots_remapping.cells_after(backbone, plan)
    for step in plan:
        take_step(backbone, *step)
    assert sum(not cell.gone for cell in cells) == len(block_list(backbone))
    assert sum(cell.new for cell in cells) == sum(kind == DEEPER for kind, _ in plan)
