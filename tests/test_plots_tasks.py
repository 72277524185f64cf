"""Pictures of tasks: the answers that are written and drawn are the task's."""

from __future__ import annotations

from typing import Any

import matplotlib.pyplot as plt
import pytest
import torch

import vtlite as vt
from vtlite.plots_tasks import answer, show_answers, show_kernels, show_task
from vtlite.task import Classification


@pytest.fixture(autouse=True)
def close() -> Any:
    yield
    plt.close("all")


def test_several_answers_stand_on_lines_of_their_own() -> None:
    task: Any = vt.load_task("emoji-several-tasks")
    titles = [ax.get_title() for ax in show_task(task, columns=3).axes]
    for title, i in zip(titles, range(3), strict=True):
        target = task.train[i][1]
        assert title.split("\n") == [p.classes[target[name]] for name, p in task.parts.items()]


def test_several_labels_are_those_that_are_one() -> None:
    task: Any = vt.load_task("emoji-several")
    assert (
        answer(task, torch.eye(9)[2] + torch.eye(9)[5]) == f"{task.classes[2]}\n{task.classes[5]}"
    )
    assert answer(task, torch.zeros(9)) == "none"


def test_masks_lie_over_a_second_copy_with_a_legend() -> None:
    task: Any = vt.load_task("emoji-masks")
    figure = show_task(task, columns=2)
    drawn = [[image.get_array() for image in ax.get_images()] for ax in figure.axes]
    assert [len(images) for images in drawn] == [1, 1, 2, 2]
    assert (torch.as_tensor(drawn[3][1]) == task.train[1][1]).all()
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["background", "emoji"]


def test_clips_are_rows_of_frames() -> None:
    task: Any = vt.load_task("emoji-motion")
    axes = show_task(task).axes
    assert len(axes) == 4 * 8
    assert [ax.get_ylabel().replace("\n", " ") for ax in axes[::8]] == list(task.classes)


def test_a_stream_has_a_row_for_each_stage_and_its_normalisation_is_undone() -> None:
    backbone = vt.create_backbone("vtlite-tiny")
    task: Any = vt.load_task("emoji-domains", like=backbone)
    axes = show_task(task, columns=2).axes
    assert [ax.get_ylabel() for ax in axes[::2]] == [stage.name for stage in task.stages]
    shown = torch.as_tensor(axes[0].get_images()[0].get_array()).permute(2, 0, 1)
    assert torch.allclose(shown, task.stages[0].train.images[0] / 255, atol=1e-6)


def test_a_task_without_images_is_a_sentence() -> None:
    with pytest.raises(vt.VTError, match="expected a task with training images, found 'empty'"):
        show_task(Classification("empty", ("a",)))


def test_answers_stand_under_the_true_masks() -> None:
    task: Any = vt.load_task("emoji-masks")
    answers = {"nothing": torch.zeros(3, 32, 32), "all": torch.ones(3, 32, 32)}
    axes = show_answers(task, task.test, answers).axes
    assert [ax.get_ylabel() for ax in axes[::3]] == ["image", "truth", "nothing", "all"]
    drawn = [torch.as_tensor(ax.get_images()[0].get_array()) for ax in axes]
    assert (drawn[4] == task.test[1][1]).all()
    assert not drawn[7].any()
    assert drawn[10].all()


def test_kernels_are_columns_with_one_scale_each() -> None:
    kernels = torch.randn(2, 3, 3, 3)
    axes = show_kernels(kernels).axes
    assert [ax.get_ylabel() for ax in axes[::2]] == ["frame t-1", "frame t", "frame t+1"]
    image = axes[3].get_images()[0]
    assert torch.allclose(torch.as_tensor(image.get_array()), kernels[1, 1])
    assert image.get_clim()[1] == pytest.approx(kernels[1].abs().max().item())
