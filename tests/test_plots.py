from __future__ import annotations

from pathlib import Path

import matplotlib.pyplot as plt
import pytest
import torch
from matplotlib.colors import to_rgba
from matplotlib.patches import Rectangle
from matplotlib.text import Annotation

import vtlite as vt
from vtlite import plots
from vtlite.taxonomy import GROUPS

ROWS = [
    {"method": "finetuning/full", "trainable": 700_000, "accuracy": 0.8},
    {"method": "parameter/weight/lora", "trainable": 9_000, "accuracy": 0.9, "spread": 0.01},
    {"method": "adapter/parallel/adaptformer", "trainable": 11_000, "accuracy": 0.85},
]


def test_every_group_of_the_taxonomy_has_its_own_colour_and_marker() -> None:
    assert set(plots.GROUP_STYLE) == set(plots.GROUP_LABEL) == {group.path for group in GROUPS}
    assert (
        len({colour for colour, _ in plots.GROUP_STYLE.values()})
        == len({marker for _, marker in plots.GROUP_STYLE.values()})
        == len(GROUPS)
    )


def test_the_figure_of_the_field_shows_every_row_where_it_belongs() -> None:
    ax = plots.accuracy_over_parameters(ROWS).axes[0]
    assert ax.get_xscale() == "log"
    assert {text.get_text(): text.xy for text in ax.texts} == {
        "full": (700_000, 80.0),
        "lora": (9_000, 90.0),
        "adaptformer": (11_000, 85.0),
    }
    assert [line.get_ydata()[0] for line in ax.get_lines() if line.get_linestyle() == "--"] == [
        80.0
    ]  # full fine-tuning's level


def test_show_task_draws_images_with_their_class_names() -> None:
    task = vt.load_task("shapes-count")
    figure = plots.show_task(task, columns=3)
    assert [ax.get_title() for ax in figure.axes] == [
        task.classes[task.train[i][1]] for i in range(3)
    ]


def test_learning_curves_and_bars_plot_the_given_values() -> None:
    curve = (
        plots.learning_curves(
            {"a": [{"epoch": 1, "val_accuracy": 0.2}, {"epoch": 2, "val_accuracy": 0.4}]}
        )
        .axes[0]
        .get_lines()[0]
    )
    assert list(curve.get_ydata()) == [20, 40]
    assert curve.axes.get_ylabel() == "validation accuracy (%)"
    loss = plots.learning_curves({"a": [{"epoch": 1, "loss": 0.2}]}, "loss").axes[0]
    assert (list(loss.get_lines()[0].get_ydata()), loss.get_ylabel()) == ([0.2], "loss")
    assert [
        bar.get_height() for bar in plots.bars(["x", "y"], [1.5, 2.5], "value").axes[0].patches
    ] == [1.5, 2.5]


def test_panels_show_their_values_under_their_names() -> None:
    panels = {"time (ms)": [1.0, 2.0], "memory (MiB)": [3.0, 4.0]}
    axes = plots.bar_panels(["x", "y"], panels).axes
    assert {ax.get_ylabel(): [bar.get_height() for bar in ax.patches] for ax in axes} == panels
    axes = plots.line_panels([0, 0.01], "strength", panels).axes
    assert {ax.get_ylabel(): list(ax.get_lines()[0].get_ydata()) for ax in axes} == panels
    assert [tick.get_text() for tick in axes[0].get_xticklabels()] == ["0", "0.01"]


def test_a_path_names_its_points_and_those_beside_it() -> None:
    ax = plots.path({"a": (1.0, 2.0), "b": (3.0, 1.0)}, "own", "other", {"c": (2.0, 2.0)}).axes[0]
    assert [(*line.get_xdata(), *line.get_ydata()) for line in ax.get_lines()] == [
        (1, 3, 2, 1),
        (2, 2),
    ]
    assert {text.get_text(): text.xy for text in ax.texts} == {
        "a": (1, 2),
        "b": (3, 1),
        "c": (2, 2),
    }


def test_names_stay_inside_the_axes() -> None:
    ax = plots.path({"left": (0, 0), "a long name at the right": (10, 1)}, "x", "y").axes[0]
    names = [text.get_window_extent() for text in ax.texts]
    frame = ax.get_window_extent()
    assert all(frame.x0 <= name.x0 and name.x1 <= frame.x1 for name in names)


def test_rows_of_images_have_names_and_titles() -> None:
    black, white = torch.full((2, 3, 4, 4), -1.0), torch.full((2, 3, 4, 4), 1.0)
    axes = plots.image_rows({"own": (black, ["a", "b"]), "other": (white, ["c", "d"])}).axes
    assert [ax.get_title() for ax in axes] == ["a", "b", "c", "d"]
    assert [ax.get_ylabel() for ax in axes[::2]] == ["own", "other"]
    assert [ax.images[0].get_array().mean() for ax in axes] == [0, 0, 1, 1]


def test_the_five_groups_differ_in_what_trains() -> None:
    """Blue boxes and grey ones in each network; arrows are the way of the tokens."""
    trains = {}
    for ax in plots.five_groups().axes:
        boxes = [patch for patch in ax.patches if isinstance(patch, Rectangle)]
        blue = [box for box in boxes if box.get_facecolor() == to_rgba("#8CC8F0")]
        trains[ax.get_title(loc="left")] = (len(blue), len(boxes) - len(blue))
        assert len([text for text in ax.texts if isinstance(text, Annotation)]) >= 4
    assert trains == {
        "fine-tuning": (4, 0),
        "prompt tuning": (4, 3),
        "adapter tuning": (4, 3),
        "parameter tuning": (4, 3),
        "remapping tuning": (4, 3),
    }


def test_update_families_has_a_panel_for_each_form_and_tells_what_is_shared() -> None:
    figure = plots.update_families()
    owners = {
        ax.get_title().split(":")[0]: [
            patch.get_hatch() or patch.get_facecolor() for patch in ax.patches
        ]
        for ax in figure.axes
    }
    assert set(owners) == {
        "LoRA",
        "KronA",
        "KAdaptation",
        "Compacter",
        "FacT-TT",
        "FacT-TK",
        "Aurora",
        "VeRA",
    }
    layer, shared = owners["LoRA"][0], owners["FacT-TT"][0]
    assert layer != shared
    assert owners["LoRA"] == [layer, layer]
    assert owners["FacT-TT"] == [shared, layer, shared]
    assert owners["VeRA"] == [layer, "///", layer, "///"]


def test_save_figure_is_atomic_and_closes(tmp_path: Path) -> None:
    figure = plots.bars(["x"], [1], "value")
    plots.save_figure(figure, tmp_path / "f.png")
    assert (tmp_path / "f.png").read_bytes().startswith(b"\x89PNG")
    assert figure.number not in plt.get_fignums()
    with pytest.raises(
        ValueError, match="bmp9"
    ):  # a format matplotlib lacks: the old file stays, no new one appears
        plots.save_figure(plots.bars(["x"], [1], "value"), tmp_path / "g.bmp9")
    assert [path.name for path in tmp_path.iterdir()] == ["f.png"]


@pytest.fixture(autouse=True)
def _close() -> object:
    yield
    plt.close("all")


def test_curves_stand_evenly_or_on_a_log_axis_under_levels() -> None:
    series = {"a": {0: 10.0, 1: 20.0, 8: 30.0}, "b": {0: 5.0, 1: 6.0, 8: 7.0}}
    figure = plots.curves(series, "rank", "accuracy (%)", {"full": 40.0})
    (ax,) = figure.axes
    assert [list(line.get_xdata()) for line in ax.lines[:2]] == [["0", "1", "8"]] * 2
    assert [text.get_text() for text in ax.get_xticklabels()] == ["0", "1", "8"]
    assert [line.get_ydata()[0] for line in ax.lines[2:]] == [40.0]
    (ax,) = plots.curves({"a": {1: 1.0, 100: 2.0}}, "n", "y", axis="log").axes
    assert ax.get_xscale() == "log"
    assert ax.lines[0].get_xdata().tolist() == [1, 100]


def test_named_points_are_named_and_marked() -> None:
    points = {"lora": (10.0, 50.0), "krona": (1000.0, 60.0)}
    (ax,) = plots.named_points(points, "numbers", "accuracy (%)", {"full": 70.0}, ["lora"]).axes
    assert [text.get_text() for text in ax.texts] == ["lora", "krona"]
    assert [line.get_marker() for line in ax.lines[:2]] == ["o", "D"]


def test_spreads_count_groups_from_one() -> None:
    (ax,) = plots.spreads([[0.9, 1.0, 1.2], [1.0, 1.1, 1.3]], "block", "scale", 1.0).axes
    assert ax.get_xticks().tolist() == [1, 2]


def test_a_heat_map_has_its_marks() -> None:
    figure = plots.heatmap(torch.ones(2, 3), ["a", "b"], ["x", "y", "z"], "n", marks={(1, 2): "L"})
    (text,) = figure.axes[0].texts
    assert (text.get_text(), text.get_position()) == ("L", (2, 1))


def test_memory_trips_are_four_and_two() -> None:
    words = [[text.get_text() for text in ax.texts] for ax in plots.memory_trips().axes]
    assert [sum("read" in w or "write" in w for w in each) for each in words] == [4, 2]


def test_a_roofline_turns_flat_at_the_ridge() -> None:
    figure = plots.roofline({"a": (1.0, 2.0), "b": (0.5, 4.0)}, 1e12, 1e10, "a machine")
    top, low = figure.axes
    assert top.lines[0].get_xydata().tolist()[1] == [100.0, 1e12]
    found = [text.get_text() for text in low.texts if text.get_text()]
    assert found == ["b, 8.0 times fewer bytes", "a, 2.0 times fewer bytes"]


def test_kept_bytes_are_megabytes() -> None:
    left, right = plots.kept_bytes({"plain": 2e6, "own": 1e6}, {"op": (4e6, 3e6)}).axes
    assert [bar.get_width() for bar in left.patches] == [2.0, 1.0]
    assert [bar.get_width() for bar in right.patches] == [4.0, 3.0]


def test_tiles_show_the_addresses_of_the_last_program() -> None:
    seen = torch.arange(11)[:, None] // 4 * 3 + torch.arange(20) // 8
    left, right = plots.tiles(seen, (4, 8)).axes
    assert len([text for text in left.texts if "program" in text.get_text()]) == 9
    assert right.texts[0].get_text() == str(8 * 20 + 16)
    assert [right.texts[i].get_color() == "black" for i in (0, 3, 4, 31)] == [
        True,
        True,
        False,
        False,
    ]


def test_hits_are_said_in_words() -> None:
    (ax,) = plots.hits({"a": [True, False], "b": [False, False]}, ["x", "y"]).axes
    assert [text.get_text() for text in ax.texts] == ["found", "passes", "passes", "passes"]


def test_a_graph_has_its_points_arrows_and_one_colour_a_label() -> None:
    points = {"a": (0.0, 0.5), "b": (0.5, 0.5), "c": (1.0, 0.5)}
    figure = plots.graph(points, [("a", "b", "skip"), ("b", "c", "pool"), ("a", "c", "skip")])
    (ax,) = figure.axes
    assert [text.get_text() for text in ax.texts if text.get_text()] == ["a", "b", "c"]
    arrows = [text for text in ax.texts if isinstance(text, Annotation)]
    assert [(a.xyann, a.xy) for a in arrows] == [
        (points["a"], points["b"]),
        (points["b"], points["c"]),
        (points["a"], points["c"]),
    ]
    colours = [a.arrow_patch.get_edgecolor() for a in arrows if a.arrow_patch]
    assert colours[0] == colours[2] != colours[1]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["skip", "pool"]
